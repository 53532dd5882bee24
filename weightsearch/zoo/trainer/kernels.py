"""Training and evaluating one base network in compiled code, at close to the speed of the processor's multipliers.

A chunk of samples goes forward and backward through all layers while it is in the processor's cache; what lies where
is `layout`'s business. The compiled functions check nothing: `population` calls them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from weightsearch.zoo.trainer.tile import LANES, ROWS, TAPS, make_tile

Array = np.ndarray
Number = Any  # NumPy's float32 or uint32: a plain Python number would be 64 bits wide

SGD, ADAM, RMSPROP = range(3)
RELU, TANH = range(2)
# Literals would be float64 and make everything they touch so.
ZERO, ONE = np.float32(0), np.float32(1)
BETA2, EPSILON, RMS_DECAY, RMS_GAIN = np.float32(0.999), np.float32(1e-8), np.float32(0.99), np.float32(0.01)
GAIN1, GAIN2 = np.float32(0.1), np.float32(0.001)  # 1 - float32(0.999) would be wrong in the fifth digit


def _drop_stale_cache(folder: Path) -> None:
    """Removes compiled code that is older than its sources.

    Numba compares with the time of this file alone, and only after it has read a cache, which fails once a type in it
    has another name.
    """
    changed = max((folder / f"{name}.py").stat().st_mtime for name in ("kernels", "tile", "memory_layout"))
    for path in (folder / "__pycache__").glob("kernels.*.nb[ci]"):
        with suppress(OSError):  # removed by another process, or not ours to remove
            if path.stat().st_mtime < changed:
                path.unlink()


_drop_stale_cache(Path(__file__).parent)
_tile = make_tile(ROWS)
_taps_tile = make_tile(TAPS, group=3)
# Not `nnan` or `ninf`: a diverged network's NaN must stay a NaN.
_jit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


class Hyperparameters(NamedTuple):
    """What the kernels need of a recipe, as numbers."""

    optimizer: int
    activation: int
    learning_rate: np.float32
    weight_decay: np.float32
    momentum: np.float32
    threshold: np.uint32  # dropout's probability times 2^32
    scale: np.float32  # of the units that dropout keeps


class Workspace(NamedTuple):
    """Buffers that one network after another uses."""

    capacity: int  # samples of a chunk, a multiple of ROWS
    gradient: np.ndarray  # by the packed weights
    transposed: np.ndarray  # see _transpose
    activations: np.ndarray  # of a chunk
    slopes: np.ndarray  # derivatives of the activations
    gradients: np.ndarray  # by the activations


@_jit
def _convolve(layer: Any, weights: Array, activations: Array, rows: int, capacity: int) -> None:
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
def _input_gradient(layer: Any, transposed: Array, gradients: Array, zeros: Array, rows: int, capacity: int) -> None:
    """The gradient of `rows` samples by a layer's input, from the gradient by its output."""
    k, c, f = layer.kernel, layer.inputs, layer.outputs
    in_size, size = layer.in_size, layer.size
    before, after = layer.before * capacity, layer.after * capacity
    for y in range(layer.in_height):
        # Input row y met kernel row r of output row i, and kernel row r + 2 of output row i - 1. The last row is
        # even, for all sizes are odd: it met r = 2 alone.
        r, i = y & 1, y >> 1
        if i == layer.height:
            r, i = 2, i - 1
        vertical = min((k - 1 - r) // 2, i) + 1
        for x in range(layer.in_width):
            s, j = x & 1, x >> 1
            if j == layer.width:
                s, j = 2, j - 1
            horizontal = min((k - 1 - s) // 2, j) + 1
            pixel, source = before + (y * layer.in_width + x) * c, after + (i * layer.width + j) * f
            for block in range(c // LANES):
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
def _weight_gradient(
    layer: Any, activations: Array, gradients: Array, out: Array, rows: int, tile_rows: int, capacity: int
) -> None:
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
    for start in range(after, after + tile_rows * size, 4 * f):  # by four, for an addition waits for the one before
        g0, g1 = gradients[start : start + f], gradients[start + f : start + 2 * f]
        g2, g3 = gradients[start + 2 * f : start + 3 * f], gradients[start + 3 * f : start + 4 * f]
        for lane in range(f):
            bias[lane] += (g0[lane] + g1[lane]) + (g2[lane] + g3[lane])


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
def _tanh(x: Number) -> Number:
    x = -TANH_LIMIT if x < -TANH_LIMIT else x
    x = TANH_LIMIT if x > TANH_LIMIT else x
    s = x * x
    p = ((((((P13 * s + P11) * s + P9) * s + P7) * s + P5) * s + P3) * s + P1) * x
    return p / (((Q6 * s + Q4) * s + Q2) * s + Q0)


M0, M1, M2 = np.uint32(0x9E3779B1), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
S16, S15 = np.uint32(16), np.uint32(15)


@_jit
def _hash(x: Number, key0: Number, key1: Number) -> Number:
    """32 random bits for counter x: the mixer `lowbias32` of https://nullprogram.com/blog/2018/07/31/, keyed twice."""
    x = np.uint32(np.uint32(x * M0) + key0)
    x = np.uint32(np.uint32(x ^ (x >> S16)) * M1)
    x = np.uint32(x ^ key1)
    x = np.uint32(np.uint32(x ^ (x >> S15)) * M2)
    return np.uint32(x ^ (x >> S16))


@_jit
def _activate(z: Array, slope: Array, hyper: Hyperparameters, first: int, key0: Number, key1: Number) -> None:
    """Activation and dropout in place, and for tanh the derivative in `slope`.

    Unit `first + e` of its batch is dropped where its draw lies below the threshold.
    """
    threshold, scale = hyper.threshold, hyper.scale
    if hyper.activation == RELU:
        if threshold == 0:
            for e in range(len(z)):
                z[e] = ZERO if z[e] < ZERO else z[e]
        else:
            for e in range(len(z)):
                keep = scale if _hash(np.uint32(first + e), key0, key1) >= threshold else ZERO
                z[e] = ZERO if z[e] < ZERO else z[e] * keep
    elif threshold == 0:
        for e in range(len(z)):
            y = _tanh(z[e])
            slope[e] = ONE - y * y
            z[e] = y
    else:
        for e in range(len(z)):
            keep = scale if _hash(np.uint32(first + e), key0, key1) >= threshold else ZERO
            y = _tanh(z[e])
            slope[e] = (ONE - y * y) * keep
            z[e] = y * keep


@_jit
def _through_activation(gradient: Array, activated: Array, slope: Array, hyper: Hyperparameters) -> None:
    """In place, from the gradient after activation and dropout to the one before."""
    scale = hyper.scale
    if hyper.activation == RELU:  # a unit was kept and positive just where it is positive now
        for e in range(len(gradient)):
            gradient[e] = gradient[e] * scale if activated[e] > ZERO else ZERO
    else:
        for e in range(len(gradient)):
            gradient[e] *= slope[e]


@_jit
def _pool(last: Any, dense: Any, activations: Array, rows: int, capacity: int) -> None:
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
def _unpool(last: Any, dense: Any, gradients: Array, rows: int, capacity: int) -> None:
    f, pixels = last.outputs, last.height * last.width
    share = np.float32(1 / pixels)
    for m in range(rows):
        target, source = last.after * capacity + m * last.size, dense.before * capacity + m * f
        for pixel in range(pixels):
            for lane in range(f):
                gradients[target + pixel * f + lane] = gradients[source + lane] * share


@_jit
def _gather(images: Array, order: Array, activations: Array) -> None:
    size = images.shape[1]
    for m in range(len(order)):
        image, target = images[order[m]], activations[m * size : (m + 1) * size]
        for e in range(size):
            target[e] = image[e]


@_jit
def _transpose(layers: Array, weights: Array, transposed: Array) -> None:
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
def _forward(
    layers: Array, weights: Array, work: Workspace, hyper: Hyperparameters, rows: int, position: int, keys: Array
) -> None:
    """From the gathered images to the logits. The chunk's first sample is its batch's `position`-th."""
    last = len(layers) - 1
    for n in range(last):
        layer = layers[n]
        _convolve(layer, weights, work.activations, rows, work.capacity)
        part = slice(layer.after * work.capacity, layer.after * work.capacity + rows * layer.size)
        first, key0, key1 = position * layer.size, keys[n, 0], keys[n, 1]
        _activate(work.activations[part], work.slopes[part], hyper, first, key0, key1)
    _pool(layers[last - 1], layers[last], work.activations, rows, work.capacity)
    _convolve(layers[last], weights, work.activations, rows, work.capacity)


@_jit
def _backward(layers: Array, work: Workspace, hyper: Hyperparameters, count: int, rows: int) -> None:
    """From the gradient by the logits to the one by the weights."""
    zeros = np.zeros(LANES, np.float32)
    last = len(layers) - 1
    for n in range(last, -1, -1):
        layer = layers[n]
        if n < last:
            part = slice(layer.after * work.capacity, layer.after * work.capacity + rows * layer.size)
            _through_activation(work.gradients[part], work.activations[part], work.slopes[part], hyper)
        _weight_gradient(layer, work.activations, work.gradients, work.gradient, count, rows, work.capacity)
        if n > 0:
            _input_gradient(layer, work.transposed, work.gradients, zeros, rows, work.capacity)
        if n == last:
            _unpool(layers[n - 1], layer, work.gradients, rows, work.capacity)


@_jit
def _loss_gradient(
    dense: Any, work: Workspace, labels: Array, order: Array, classes: int, share: Number, rows: int
) -> None:
    """The gradient of the cross-entropy times `share` by the logits; zero in the rows that only fill the last tile."""
    logits = work.activations[dense.after * work.capacity :][: rows * dense.size].reshape(rows, dense.size)
    gradients = work.gradients[dense.after * work.capacity :][: rows * dense.size].reshape(rows, dense.size)
    gradients[len(order) :] = ZERO
    for m in range(len(order)):
        highest = logits[m, :classes].max()
        total = ZERO
        for k in range(classes):
            e = math.exp(logits[m, k] - highest)
            gradients[m, k] = e
            total += e
        for k in range(classes):
            gradients[m, k] *= share / total
        gradients[m, labels[order[m]]] -= share


@_jit
def _update(w: Array, g: Array, m: Array, v: Array, hyper: Hyperparameters, step: int) -> None:
    """torch.optim's formulas with its default constants, L2 added to the gradient."""
    rate, decay, momentum = hyper.learning_rate, hyper.weight_decay, hyper.momentum
    if hyper.optimizer == SGD:
        for e in range(len(w)):
            m[e] = m[e] * momentum + (g[e] + decay * w[e])
            w[e] -= rate * m[e]
    elif hyper.optimizer == ADAM:
        unbiased_rate = np.float32(rate / (1 - 0.9**step))
        unbias = np.float32(1 / math.sqrt(1 - 0.999**step))
        for e in range(len(w)):
            d = g[e] + decay * w[e]
            m[e] += (d - m[e]) * GAIN1
            v[e] = v[e] * BETA2 + d * d * GAIN2
            w[e] -= unbiased_rate * m[e] / (math.sqrt(v[e]) * unbias + EPSILON)
    else:
        for e in range(len(w)):
            d = g[e] + decay * w[e]
            v[e] = v[e] * RMS_DECAY + d * d * RMS_GAIN
            w[e] -= rate * d / (math.sqrt(v[e]) + EPSILON)


@_jit
def train_epoch(
    layers: Array,
    weights: Array,
    state: Array,
    work: Workspace,
    images: Array,
    labels: Array,
    order: Array,
    classes: int,
    batch_size: int,
    hyper: Hyperparameters,
    keys: Array,
    step: int,
) -> None:
    """One pass over `images[order]` in batches; packed `weights` `(Q,)` and optimizer's `state` `(2, Q)` in place.

    `keys` `(batches, convolutions, 2)` uint32 are dropout's; `step` counts the batches that came before.
    """
    for batch in range((len(order) + batch_size - 1) // batch_size):
        members = order[batch * batch_size : (batch + 1) * batch_size]
        share = ONE / np.float32(len(members))
        work.gradient[:] = ZERO
        _transpose(layers, weights, work.transposed)
        for start in range(0, len(members), work.capacity):
            chunk = members[start : start + work.capacity]
            rows = (len(chunk) + ROWS - 1) // ROWS * ROWS
            _gather(images, chunk, work.activations)
            _forward(layers, weights, work, hyper, rows, start, keys[batch])
            _loss_gradient(layers[-1], work, labels, chunk, classes, share, rows)
            _backward(layers, work, hyper, len(chunk), rows)
        _update(weights, work.gradient, state[0], state[1], hyper, step + batch + 1)


@_jit
def evaluate(
    layers: Array,
    weights: Array,
    work: Workspace,
    images: Array,
    labels: Array,
    order: Array,
    classes: int,
    hyper: Hyperparameters,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over `images[order]`; `hyper` without dropout."""
    dense = layers[-1]
    keys = np.zeros((len(layers), 2), np.uint32)
    loss, correct = 0.0, 0
    for start in range(0, len(order), work.capacity):
        chunk = order[start : start + work.capacity]
        rows = (len(chunk) + ROWS - 1) // ROWS * ROWS
        _gather(images, chunk, work.activations)
        _forward(layers, weights, work, hyper, rows, 0, keys)
        for m in range(len(chunk)):
            logits = work.activations[dense.after * work.capacity + m * dense.size :][:classes]
            label, best = labels[chunk[m]], logits.argmax()
            total = 0.0
            for k in range(classes):
                total += math.exp(logits[k] - logits[best])
            loss += math.log(total) + logits[best] - logits[label]
            correct += best == label
    return loss / len(order), correct / len(order)
