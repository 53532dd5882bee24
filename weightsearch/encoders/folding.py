"""Batch normalisations folded into the layers before them: fewer layers that compute the same once trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from weightsearch.encoders.symmetry import hidden_units
from weightsearch.types import Architecture, Layer, LayerKind

EPSILON = 1e-5  # beside the variance: PyTorch's default, since a state dict does not tell


def without_norms(architecture: Architecture) -> Architecture:
    """What `fold_norms` makes weights of: a layer that had a batch normalisation has a bias.

    Raises WeightsearchError as `hidden_units` does.

    Example:
        >>> norm = Layer('b', LayerKind.NORM, (4,), ('bias', 'running_mean', 'running_var'))
        >>> without_norms(Architecture((Layer('a', LayerKind.DENSE, (4, 6), ()), norm))).describe()
        'dense 4x6 (28 parameters)'
    """
    hidden_units(architecture)
    layers: list[Layer] = []
    for layer in architecture.layers:
        if layer.kind is not LayerKind.NORM:
            layers.append(layer)
        elif "bias" not in layers[-1].extras:
            layers[-1] = replace(layers[-1], extras=("bias",))
    return Architecture(tuple(layers))


def fold_norms(weights: Tensor, architecture: Architecture) -> Tensor:
    """Flat weights `(B, P)` of an architecture -> those of the same networks in `without_norms(architecture)`."""
    folded: list[tuple[Tensor, Tensor | None]] = []  # kernels `(B, rows, columns)` and bias `(B, rows)` of each layer
    for part, layer in zip(architecture.slices, architecture.layers, strict=True):
        matrix = weights[:, part].view(len(weights), layer.rows, layer.columns)
        own = {name: matrix[:, :, layer.weight_columns + number] for number, name in enumerate(layer.extras)}
        if layer.kind is not LayerKind.NORM:
            folded.append((matrix[:, :, : layer.weight_columns], own.get("bias")))
            continue
        kernels, bias = folded.pop()
        factor = matrix[:, :, 0] / (own["running_var"].clamp_min(0) + EPSILON).sqrt()
        shift = (-own["running_mean"] if bias is None else bias - own["running_mean"]) * factor
        folded.append((kernels * factor[:, :, None], shift + own["bias"] if "bias" in own else shift))
    parts = [kernels if bias is None else torch.cat([kernels, bias[:, :, None]], dim=2) for kernels, bias in folded]
    return torch.cat([part.flatten(1) for part in parts], dim=1)
