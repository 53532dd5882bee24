"""Learned images that go through a network as images do, so that what comes out is a function of its function alone.

After Kahana et al. 2024, "Deep linear probe generators for weight space learning", arXiv:2410.10811. A network's
weights tell neither strides nor padding nor image sizes: convolutions move by one and pad nothing, and an image is as
large as the last convolution's map then has to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsearch.encoders.symmetry import CONVOLUTIONS, Hidden
from weightsearch.types import Architecture, LayerKind

POOLED_SIDE = 3  # pixels of the last convolution's map along each axis, where its mean is taken
CONVOLVE: dict[LayerKind, Callable[..., Tensor]] = {
    LayerKind.CONV1D: F.conv1d,
    LayerKind.CONV2D: F.conv2d,
    LayerKind.CONV3D: F.conv3d,
}


@dataclass(frozen=True)
class ImageSize:
    """What one image is to a network: its shape `(C, ...)`, multiplications, and values of the largest layer's output.

    Example:
        >>> ImageSize((1, 5, 5), 1_520, 144).shape
        (1, 5, 5)
    """

    shape: tuple[int, ...]
    products: int
    values: int


def image_size(architecture: Architecture, chain: Sequence[Hidden]) -> ImageSize | None:
    """Of an image that fits the network; None without convolutions, and with kinds of convolutions mixed.

    Example:
        >>> from weightsearch.encoders.symmetry import hidden_units
        >>> from weightsearch.types import Layer
        >>> layers = (Layer('a', LayerKind.CONV2D, (16, 1, 3, 3)), Layer('b', LayerKind.DENSE, (10, 16)))
        >>> image_size(Architecture(layers), hidden_units(Architecture(layers)))
        ImageSize(shape=(1, 5, 5), products=1610, values=144)
    """
    kinds = [layer.kind for layer in architecture.layers]
    convolutions = [layer for layer in architecture.layers if layer.kind in CONVOLUTIONS]
    count = len(convolutions)
    if not convolutions or len(set(kinds[:count])) != 1 or any(kind is not LayerKind.DENSE for kind in kinds[count:]):
        return None
    axes = len(convolutions[0].shape) - 2
    read = chain[count - 1].block if count <= len(chain) else 1  # by the first dense layer, of each unit
    sides = (POOLED_SIDE,) * axes if read == 1 else _sides(read, axes)
    products = sum(layer.size for layer in architecture.layers[count:])
    values = 0
    for layer in reversed(convolutions):
        products += layer.size * math.prod(sides)
        values = max(values, layer.rows * math.prod(sides))
        sides = tuple(side + kernel - 1 for side, kernel in zip(sides, layer.shape[2:], strict=True))
    return ImageSize((convolutions[0].shape[1], *sides), products, values)


def _sides(pixels: int, axes: int) -> tuple[int, ...]:
    """The most even sides whose product is `pixels`."""
    if axes == 1:
        return (pixels,)
    side = next(n for n in range(round(pixels ** (1 / axes)), 0, -1) if pixels % n == 0)
    return (side, *_sides(pixels // side, axes - 1))


def answers(
    images: Tensor, weights: Tensor, architecture: Architecture, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Images `(K, C, ...)` of `image_size`, flat weights `(B, P)` -> the last layer's outputs `(B, K, rows)`."""
    networks, values = len(weights), images
    for number, (part, layer) in enumerate(zip(architecture.slices, architecture.layers, strict=True)):
        matrix = weights[:, part].view(networks, layer.rows, layer.columns)
        kernels, bias = matrix[:, :, : layer.weight_columns], matrix[:, :, layer.weight_columns :].sum(dim=2)
        if layer.kind in CONVOLUTIONS:  # each network is a group of channels; the first layer's read the same images
            kernels = kernels.reshape(networks * layer.rows, *layer.shape[1:])
            groups = networks if number else 1
            values = CONVOLVE[layer.kind](values, kernels, bias.reshape(-1), groups=groups)
        else:
            values = torch.baddbmm(bias[:, None], values, kernels.transpose(1, 2))  # (B, K, rows)
        following = architecture.layers[number + 1] if number + 1 < len(architecture.layers) else None
        if following is not None:
            values = activation(values)
        if layer.kind in CONVOLUTIONS and (following is None or following.kind is LayerKind.DENSE):
            values = values.view(len(images), networks, layer.rows, -1).transpose(0, 1)
            pooled = following is None or following.weight_columns == layer.rows
            values = values.mean(dim=3) if pooled else values.flatten(2)
    return values
