"""Where the compiled kernels find a network's weights and activations in their flat buffers.

Images and activations are channels-last, `(S, h, w, channels)`, so that a row of a 3x3 patch is contiguous. Channels
are padded to whole tiles of LANES; the padding's weights are zero and stay zero.

A network's weights are packed, layer by layer, as `(blocks, kernel, kernel, inputs, LANES)` and then the bias
`(blocks * LANES,)`: the right operand of a tile, contiguous. The dense layer is a 1x1 convolution of a 1x1 image.
"""

from __future__ import annotations

import numpy as np

from weightsearch.zoo.trainer.networks import CnnShape
from weightsearch.zoo.trainer.tile import LANES

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            *(
                "kernel",
                "in_height",
                "in_width",
                "inputs",
                "height",
                "width",
                "outputs",
            ),  # channels with padding
            *("weights", "bias", "transposed"),  # offsets of its parts in the packed buffers
            *("in_size", "size"),  # floats per sample
            *("before", "after"),  # offsets of its input and output among a chunk's activations, per sample
        )
    ]
)


class MemoryLayout:
    """The layout of networks of `shape` on images of `height` x `width`, of which they see `sizes[0]`."""

    def __init__(self, shape: CnnShape, height: int, width: int) -> None:
        filters, classes = (-(-count // LANES) * LANES for count in (shape.filters, shape.classes))
        self.sizes = shape.spatial(height, width)
        sizes = [*self.sizes, (1, 1)]
        self.layers = np.zeros(shape.layers + 1, LAYER)  # the convolutions and the dense layer
        positions = []
        offset = transposed = before = 0
        after = sizes[0][0] * sizes[0][1] * shape.channels
        inputs = shape.channels
        for i in range(len(self.layers)):
            dense = i == shape.layers
            if dense:  # its input, between the last convolution's activations and the logits, is their mean
                before, after = after, after + filters
            kernel, outputs = (1, classes) if dense else (3, filters)
            (in_height, in_width), (out_height, out_width) = ((1, 1) if dense else sizes[i]), sizes[i + 1]
            weights, in_size, size = (
                kernel**2 * inputs * outputs,
                in_height * in_width * inputs,
                out_height * out_width * outputs,
            )
            self.layers[i] = (
                *(kernel, in_height, in_width, inputs, out_height, out_width, outputs),
                *(offset, offset + weights, transposed),
                *(in_size, size, before, after),
            )
            # Where every weight of the layer matrix, (D_out, D_in*kh*kw + 1), is packed.
            real_inputs = shape.channels if i == 0 else shape.filters
            real_outputs = shape.classes if dense else shape.filters
            grid = np.arange(weights).reshape(outputs // LANES, kernel, kernel, inputs, LANES)
            grid = grid.transpose(0, 4, 3, 1, 2).reshape(outputs, inputs, -1)[:real_outputs, :real_inputs]
            bias = weights + np.arange(real_outputs)
            positions.append(offset + np.column_stack([grid.reshape(real_outputs, -1), bias]).ravel())
            offset, transposed = offset + weights + outputs, transposed + weights
            before, after = after, after + size
            inputs = outputs
        self.positions = np.concatenate(positions)
        self.packed_size, self.transposed_size = offset, transposed
        self.sample_size = after  # floats per sample, of all activations together

    def pack(self, weights: np.ndarray) -> np.ndarray:
        """Flat weights `(N, P)` as packed ones `(N, Q)`."""
        packed = np.zeros((len(weights), self.packed_size), np.float32)
        packed[:, self.positions] = weights
        return packed

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """Flat weights `(N, P)` of packed ones `(N, Q)`."""
        return packed[:, self.positions]
