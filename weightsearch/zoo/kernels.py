"""Training and evaluating one base network in compiled code, at close to the speed of the processor's multipliers.

Everything lies in flat float32 buffers. Images and activations are channels-last, `(S, h, w, channels)`, so that a row
of a 3x3 patch is contiguous; a chunk of S samples goes forward and backward through all layers while it is in cache.
Channels are padded to whole tiles of LANES with weights that are zero and stay zero.

A network's weights are packed, layer by layer, as `(blocks, kernel, kernel, inputs, LANES)` and then the bias
`(blocks * LANES,)`: the right operand of a tile, contiguous. The dense layer is a 1x1 convolution of a 1x1 image.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from weightsearch.zoo.networks import CnnShape
from weightsearch.zoo.tile import LANES, ROWS, TAPS, make_tile

SGD, ADAM, RMSPROP = range(3)
RELU, TANH = range(2)

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("kernel", "in_height", "in_width", "inputs", "height", "width", "outputs"),  # outputs: padded
            *("weights", "bias", "transposed"),  # where the layer's parts begin in the packed buffers
            *("in_size", "size"),  # floats per sample
            *("before", "after"),  # where, per sample of a chunk, its input and output begin among the activations
        )
    ]
)

_tile = make_tile(ROWS)
_taps_tile = make_tile(TAPS, group=3)
# Not `nnan` or `ninf`: a diverged network's NaN must stay a NaN.
_jit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


class Layout:
    """Where everything lies, for networks of `shape` on images of `height` x `width`."""

    def __init__(self, shape: CnnShape, height: int, width: int) -> None:
        sizes = shape.spatial(height, width)
        blocks = -(-shape.filters // LANES)
        filters, classes = blocks * LANES, -(-shape.classes // LANES) * LANES
        self.layers = np.zeros(shape.layers + 1, LAYER)
        offset = transposed = 0
        place = height * width * shape.channels
        before = 0
        inputs = shape.channels
        positions = []
        for i, layer in enumerate(self.layers):
            dense = i == shape.layers
            kernel, outputs = (1, classes) if dense else (3, filters)
            (ih, iw), (oh, ow) = ((1, 1), (1, 1)) if dense else (sizes[i], sizes[i + 1])
            weights = kernel * kernel * inputs * outputs
            layer["kernel"], layer["inputs"], layer["outputs"] = kernel, inputs, outputs
            layer["in_height"], layer["in_width"], layer["height"], layer["width"] = ih, iw, oh, ow
            layer["weights"], layer["bias"], layer["transposed"] = offset, offset + weights, transposed
            layer["in_size"], layer["size"] = ih * iw * inputs, oh * ow * outputs
            layer["before"], layer["after"] = before, place
            # The packed position of every weight in the flat layout, (D_out, D_in*kh*kw + 1) by layer.
            real_out = shape.classes if dense else shape.filters
            real_in = shape.channels if i == 0 else shape.filters
            grid = np.arange(weights).reshape(outputs // LANES, kernel, kernel, inputs, LANES)
            grid = grid.transpose(0, 4, 3, 1, 2).reshape(outputs, inputs, kernel * kernel)[:real_out, :real_in]
            bias = weights + np.arange(real_out)
            positions.append(offset + np.concatenate([grid.reshape(real_out, -1), bias[:, None]], 1).ravel())
            offset += weights + outputs
            transposed += weights
            before = place
            place += int(layer["size"])
            inputs = outputs
            if i == shape.layers - 1:  # the pooled activations are the dense layer's input
                before = place
                place += filters
        self.positions = np.concatenate(positions)
        self.packed_size, self.transposed_size, self.sample_size = offset, transposed, place

    def pack(self, weights: np.ndarray) -> np.ndarray:
        """Flat weights `(N, P)` as packed ones `(N, Q)`."""
        packed = np.zeros((len(weights), self.packed_size), np.float32)
        packed[:, self.positions] = weights
        return packed

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        return packed[:, self.positions]



@_jit
def _convolve(layer, weights, activations, rows, capacity):  # type: ignore[no-untyped-def]
    """A layer of `rows` samples, a multiple of ROWS: its input to what goes into its activation function."""
    k, c, f = layer.kernel, layer.inputs, layer.outputs
    in_row, in_size, size = layer.in_width * c, layer.in_size, layer.size
    before, after = layer.before * capacity, layer.after * capacity
    for i in range(layer.height):
        for j in range(layer.width):
            patch, pixel = before + 2 * (i * in_row + j * c), after + (i * layer.width + j) * f
            for block in range(f // LANES):
                kernel = layer.weights + block * k * k * c * LANES
                for m in range(0, rows, ROWS):
                    _tile(
                        *(activations, pixel + m * size + block * LANES, size),
                        *(weights, layer.bias + block * LANES, 0),
                        *(activations, patch + m * in_size, in_size, 0, 0, in_row, 1),
                        *(weights, kernel, 0, k * c * LANES, LANES),
                        *(1, k, k * c),
                    )


@_jit
def _input_gradient(layer, transposed, gradients, zeros, rows, capacity):  # type: ignore[no-untyped-def]
    """The gradient of `rows` samples by a layer's input, from the gradient by its output."""
    k, c, f = layer.kernel, layer.inputs, layer.outputs
    in_size, size = layer.in_size, layer.size
    before, after = layer.before * capacity, layer.after * capacity
    for y in range(layer.in_height):
        # Input row y met kernel row r of output row i, and kernel row r + 2 of output row i - 1.
        r, i = y & 1, y >> 1
        if i >= layer.height:
            r, i = r + 2, i - 1
        vertical = min((k - 1 - r) // 2, i) + 1 if r < k else 0
        for x in range(layer.in_width):
            s, j = x & 1, x >> 1
            if j >= layer.width:
                s, j = s + 2, j - 1
            horizontal = min((k - 1 - s) // 2, j) + 1 if s < k else 0
            pixel, source = before + (y * layer.in_width + x) * c, after + (i * layer.width + j) * f
            for block in range(c // LANES):
                if vertical * horizontal == 0:  # no patch reaches the last row or column of an even size
                    for m in range(rows):
                        for lane in range(LANES):
                            gradients[pixel + m * in_size + block * LANES + lane] = zeros[lane]
                    continue
                kernel = layer.transposed + ((block * k + r) * k + s) * f * LANES
                for m in range(0, rows, ROWS):
                    _tile(
                        *(gradients, pixel + m * in_size + block * LANES, in_size),
                        *(zeros, 0, 0),
                        *(gradients, source + m * size, size, 0, -layer.width * f, -f, 1),
                        *(transposed, kernel, 2 * k * f * LANES, 2 * f * LANES, LANES),
                        *(vertical, horizontal, f),
                    )


@_jit
def _weight_gradient(layer, activations, gradients, out, rows, tile_rows, capacity):  # type: ignore[no-untyped-def]
    """Add to `out`, packed like the weights, the gradient of `rows` samples (any number) by a layer's weights."""
    k, c, f = layer.kernel, layer.inputs, layer.outputs
    in_row, in_size, size = layer.in_width * c, layer.in_size, layer.size
    before, after = layer.before * capacity, layer.after * capacity
    for block in range(f // LANES):
        if c % LANES == 0:
            for r in range(k):
                for q in range(0, k * c, ROWS):
                    target = layer.weights + ((block * k + r) * k * c + q) * LANES
                    _tile(
                        *(out, target, LANES),
                        *(out, target, LANES),
                        *(activations, before + r * in_row + q, 1, 0, 2 * in_row, 2 * c, in_size),
                        *(gradients, after + block * LANES, layer.width * f, f, size),
                        *(layer.height, layer.width, rows),
                    )
        else:  # images: their few channels fill no tile of ROWS, but the taps of a channel do
            for channel in range(c):
                target = layer.weights + (block * k * k * c + channel) * LANES
                _taps_tile(
                    *(out, target, c * LANES),
                    *(out, target, c * LANES),
                    *(activations, before + channel, in_row, c, 2 * in_row, 2 * c, in_size),
                    *(gradients, after + block * LANES, layer.width * f, f, size),
                    *(layer.height, layer.width, rows),
                )
    bias = out[layer.bias : layer.bias + f]
    for start in range(after, after + tile_rows * size, 4 * f):  # by four: an addition waits for the one before
        g0, g1 = gradients[start : start + f], gradients[start + f : start + 2 * f]
        g2, g3 = gradients[start + 2 * f : start + 3 * f], gradients[start + 3 * f : start + 4 * f]
        for lane in range(f):
            bias[lane] += (g0[lane] + g1[lane]) + (g2[lane] + g3[lane])


ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
# tanh as the rational function x p(x^2) / q(x^2) on [-7.905, 7.905], within a few units in the last place: Eigen's
# `ptanh_float` (https://gitlab.com/libeigen/eigen, MathFunctionsImpl.h).
TANH_LIMIT = np.float32(7.90531110763549805)
P1, P3, P5, P7, P9, P11, P13 = (
    np.float32(value)
    for value in (
        *(4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08),
        *(-8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16),
    )
)
Q0, Q2, Q4, Q6 = (
    np.float32(value)
    for value in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
)


@_jit
def _tanh(x):  # type: ignore[no-untyped-def]
    x = -TANH_LIMIT if x < -TANH_LIMIT else x
    x = TANH_LIMIT if x > TANH_LIMIT else x
    s = x * x
    p = ((((((P13 * s + P11) * s + P9) * s + P7) * s + P5) * s + P3) * s + P1) * x
    return p / (((Q6 * s + Q4) * s + Q2) * s + Q0)


@_jit
def _activate(z, activation):  # type: ignore[no-untyped-def]
    """In place, in evaluation: no dropout."""
    if activation == RELU:
        for e in range(len(z)):
            z[e] = ZERO if z[e] < ZERO else z[e]
    else:
        for e in range(len(z)):
            z[e] = _tanh(z[e])


@_jit
def _activate_training(z, slope, activation):  # type: ignore[no-untyped-def]
    """In place, with the activation's derivative in `slope`."""
    if activation == RELU:
        for e in range(len(z)):
            slope[e] = ONE if z[e] > ZERO else ZERO
            z[e] = ZERO if z[e] < ZERO else z[e]
    else:
        for e in range(len(z)):
            y = _tanh(z[e])
            slope[e] = ONE - y * y
            z[e] = y


M0, M1, M2 = np.uint32(0x9E3779B1), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
S16, S15 = np.uint32(16), np.uint32(15)


@_jit
def _hash(x, key0, key1):  # type: ignore[no-untyped-def]
    """32 random bits for counter x: the finalizer `lowbias32` (https://nullprogram.com/blog/2018/07/31/), keyed twice."""
    x = np.uint32(np.uint32(x * M0) + key0)
    x = np.uint32(np.uint32(x ^ (x >> S16)) * M1)
    x = np.uint32(x ^ key1)
    x = np.uint32(np.uint32(x ^ (x >> S15)) * M2)
    return np.uint32(x ^ (x >> S16))


@_jit
def _activate_dropout(z, slope, activation, threshold, scale, first, key0, key1):  # type: ignore[no-untyped-def]
    """As _activate_training, and units whose draw is below `threshold` dropped, the others scaled."""
    if activation == RELU:
        for e in range(len(z)):
            keep = scale if _hash(np.uint32(first + e), key0, key1) >= threshold else ZERO
            slope[e] = keep if z[e] > ZERO else ZERO
            z[e] = ZERO if z[e] < ZERO else z[e] * keep
    else:
        for e in range(len(z)):
            keep = scale if _hash(np.uint32(first + e), key0, key1) >= threshold else ZERO
            y = _tanh(z[e])
            slope[e] = (ONE - y * y) * keep
            z[e] = y * keep


@_jit
def _pool(last, dense, activations, rows, capacity):  # type: ignore[no-untyped-def]
    """The mean over the last convolution's pixels becomes the dense layer's input."""
    f, pixels = last.outputs, last.height * last.width
    share = np.float32(1 / pixels)
    for m in range(rows):
        source, target = last.after * capacity + m * last.size, dense.before * capacity + m * f
        pooled = activations[target : target + f]
        pooled[:] = ZERO
        for pixel in range(pixels):
            for lane in range(f):
                pooled[lane] += activations[source + pixel * f + lane] * share


@_jit
def _unpool(last, dense, gradients, rows, capacity):  # type: ignore[no-untyped-def]
    f, pixels = last.outputs, last.height * last.width
    share = np.float32(1 / pixels)
    for m in range(rows):
        target, source = last.after * capacity + m * last.size, dense.before * capacity + m * f
        for pixel in range(pixels):
            for lane in range(f):
                gradients[target + pixel * f + lane] = gradients[source + lane] * share


@_jit
def _gather(layers, images, order, activations, capacity):  # type: ignore[no-untyped-def]
    size = images.shape[1]
    start = layers[0].before * capacity
    for m in range(len(order)):
        activations[start + m * size : start + (m + 1) * size] = images[order[m]]


@_jit
def _transpose(layers, weights, transposed):  # type: ignore[no-untyped-def]
    """Of all layers but the first, the kernels with inputs and outputs exchanged, packed for _input_gradient."""
    for n in range(1, len(layers)):
        layer = layers[n]
        c, f, taps = layer.inputs, layer.outputs, layer.kernel * layer.kernel
        for block in range(c // LANES):
            for tap in range(taps):
                for o in range(f):
                    target = layer.transposed + ((block * taps + tap) * f + o) * LANES
                    source = layer.weights + ((o // LANES * taps + tap) * c + block * LANES) * LANES + o % LANES
                    for lane in range(LANES):
                        transposed[target + lane] = weights[source + lane * LANES]


@_jit
def _loss_gradient(dense, activations, gradients, labels, order, classes, share, capacity):  # type: ignore[no-untyped-def]
    """The gradient of the cross-entropy times `share` by the logits."""
    for m in range(len(order)):
        start = dense.after * capacity + m * dense.size
        highest = activations[start]
        for k in range(1, classes):
            highest = max(highest, activations[start + k])
        total = ZERO
        for k in range(classes):
            e = math.exp(activations[start + k] - highest)
            gradients[start + k] = e
            total += e
        factor = share / total
        for k in range(classes):
            gradients[start + k] *= factor
        gradients[start + labels[order[m]]] -= share


@_jit
def train_epoch(  # type: ignore[no-untyped-def]
    layers, classes, weights, state, work, images, labels, order, batch_size, recipe, keys, step
):
    """One pass over `images[order]` in batches; `weights` and the optimizer's `state` `(2, Q)` change in place."""
    gradient, transposed, activations, slopes, gradients, capacity = work
    optimizer, learning_rate, weight_decay, momentum, activation, threshold, scale = recipe
    zeros = np.zeros(LANES, np.float32)
    dense = layers[-1]
    count = len(order)
    for batch in range((count + batch_size - 1) // batch_size):
        batch_start, batch_end = batch * batch_size, min((batch + 1) * batch_size, count)
        share = ONE / np.float32(batch_end - batch_start)
        gradient[:] = ZERO
        _transpose(layers, weights, transposed)
        for start in range(batch_start, batch_end, capacity):
            chunk = order[start : min(start + capacity, batch_end)]
            rows = (len(chunk) + ROWS - 1) // ROWS * ROWS
            _gather(layers, images, chunk, activations, capacity)
            for n in range(len(layers)):
                layer = layers[n]
                if n == len(layers) - 1:
                    _pool(layers[n - 1], layer, activations, rows, capacity)
                _convolve(layer, weights, activations, rows, capacity)
                if n < len(layers) - 1:
                    part = slice(layer.after * capacity, layer.after * capacity + rows * layer.size)
                    if threshold == 0:
                        _activate_training(activations[part], slopes[part], activation)
                    else:
                        first = (start - batch_start) * layer.size
                        _activate_dropout(
                            *(activations[part], slopes[part], activation, threshold, scale, first),
                            *(keys[batch, n, 0], keys[batch, n, 1]),
                        )
            tail = slice(dense.after * capacity + len(chunk) * dense.size, dense.after * capacity + rows * dense.size)
            gradients[tail] = ZERO
            _loss_gradient(dense, activations, gradients, labels, chunk, classes, share, capacity)
            for n in range(len(layers) - 1, -1, -1):
                layer = layers[n]
                if n < len(layers) - 1:
                    part = slice(layer.after * capacity, layer.after * capacity + rows * layer.size)
                    gradients[part] *= slopes[part]
                _weight_gradient(layer, activations, gradients, gradient, len(chunk), rows, capacity)
                if n > 0:
                    _input_gradient(layer, transposed, gradients, zeros, rows, capacity)
                if n == len(layers) - 1:
                    _unpool(layers[n - 1], layer, gradients, rows, capacity)
        step += 1
        _update(weights, gradient, state[0], state[1], optimizer, learning_rate, weight_decay, momentum, step)


BETA2, EPSILON = np.float32(0.999), np.float32(1e-8)
# One minus the betas, rounded once: 1 - float32(0.999) would be wrong in the fifth digit.
GAIN1, GAIN2, RMS_DECAY, RMS_GAIN = np.float32(0.1), np.float32(0.001), np.float32(0.99), np.float32(0.01)


@_jit
def _update(w, g, m, v, optimizer, learning_rate, weight_decay, momentum, step):  # type: ignore[no-untyped-def]
    """torch.optim's formulas with its default constants, L2 added to the gradient."""
    if optimizer == SGD:
        for e in range(len(w)):
            m[e] = m[e] * momentum + (g[e] + weight_decay * w[e])
            w[e] -= learning_rate * m[e]
    elif optimizer == ADAM:
        rate = np.float32(learning_rate / (1 - 0.9**step))
        unbias = np.float32(1 / math.sqrt(1 - 0.999**step))
        for e in range(len(w)):
            d = g[e] + weight_decay * w[e]
            m[e] += (d - m[e]) * GAIN1
            v[e] = v[e] * BETA2 + d * d * GAIN2
            w[e] -= rate * m[e] / (math.sqrt(v[e]) * unbias + EPSILON)
    else:
        for e in range(len(w)):
            d = g[e] + weight_decay * w[e]
            v[e] = v[e] * RMS_DECAY + d * d * RMS_GAIN
            w[e] -= learning_rate * d / (math.sqrt(v[e]) + EPSILON)


@_jit
def evaluate(layers, classes, weights, work, images, labels, order, activation):  # type: ignore[no-untyped-def]
    """Mean cross-entropy and accuracy over `images[order]`."""
    activations, capacity = work[2], work[5]
    dense = layers[-1]
    loss, correct = 0.0, 0
    for start in range(0, len(order), capacity):
        chunk = order[start : start + capacity]
        rows = (len(chunk) + ROWS - 1) // ROWS * ROWS
        _gather(layers, images, chunk, activations, capacity)
        for n in range(len(layers)):
            layer = layers[n]
            if n == len(layers) - 1:
                _pool(layers[n - 1], layer, activations, rows, capacity)
            _convolve(layer, weights, activations, rows, capacity)
            if n < len(layers) - 1:
                part = slice(layer.after * capacity, layer.after * capacity + rows * layer.size)
                _activate(activations[part], activation)
        for m in range(len(chunk)):
            logits = activations[dense.after * capacity + m * dense.size :][:classes]
            best = 0
            for k in range(1, classes):
                if logits[k] > logits[best]:
                    best = k
            total = 0.0
            for k in range(classes):
                total += math.exp(logits[k] - logits[best])
            label = labels[chunk[m]]
            loss += math.log(total) + logits[best] - logits[label]
            correct += best == label
    return loss / len(order), correct / len(order)
