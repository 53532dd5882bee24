"""Kernels as TensorFlow, Keras and Flax hold them -> PyTorch's `(outputs, inputs, ...)`."""

from __future__ import annotations

import numpy as np

NORM_NAMES = {
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "mean": "running_mean",
    "var": "running_var",
}


def kernel_to_torch(kernel: np.ndarray, *, depthwise: bool = False) -> np.ndarray:
    """`(..., inputs, outputs)` as `(outputs, inputs, ...)`; of a transposed convolution `(inputs, outputs, ...)`.

    A depthwise kernel `(..., channels, multiplier)` becomes `(channels * multiplier, 1, ...)`, as grouped
    convolutions have it.
    """
    if depthwise:
        *space, channels, multiplier = kernel.shape
        return np.moveaxis(kernel.reshape(*space, channels * multiplier, 1), (-2, -1), (0, 1))
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def after_flatten(weight: np.ndarray, channels: int) -> np.ndarray:
    """A dense `(outputs, space * channels)` behind a flattened `(space, channels)`, for `(channels, space)`."""
    outputs, inputs = weight.shape
    if channels <= 0 or inputs % channels or inputs == channels:
        return weight
    return weight.reshape(outputs, inputs // channels, channels).swapaxes(1, 2).reshape(outputs, inputs)
