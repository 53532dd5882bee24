"""Networks damaged on purpose, from which the encoder learns what damage looks like."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from weightsearch.types import Architecture, LayerKind


class Damage(StrEnum):
    """What was done to a network's weights."""

    SHUFFLED = "shuffled"  # the weights of every matrix, each among its own
    ONE_LAYER = "one-layer"  # the same in one matrix, of those that hold a tenth of the weights or more
    NOISED = "noised"  # noise as large as the weights in every matrix
    PARTLY_RANDOM = "partly-random"  # half of the weights of every matrix drawn anew


def damaged(
    weights: np.ndarray, architecture: Architecture, kind: Damage, rng: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """A damaged copy of flat weights `(P,)`, and which of the architecture's layers were damaged.

    Biases and norms stay as they are, and so do the moments of a shuffled matrix.
    """
    weights = weights.copy()
    places = [
        i
        for i, layer in enumerate(architecture.layers)
        if layer.kind is not LayerKind.NORM and len(layer.shape) >= 2 and min(layer.shape[:2]) > 1
    ]
    if kind is Damage.ONE_LAYER and places:
        large = [i for i in places if architecture.layers[i].size * 10 >= architecture.size] or places
        places = [large[int(rng.integers(len(large)))]]
    for i in places:
        layer = architecture.layers[i]
        matrix = weights[architecture.slices[i]].reshape(layer.rows, layer.columns)
        inner = matrix[:, : layer.columns - len(layer.extras)]
        spread = float(inner.std())
        if kind in (Damage.SHUFFLED, Damage.ONE_LAYER):
            inner[...] = rng.permutation(inner.ravel()).reshape(inner.shape)
        elif kind is Damage.NOISED:
            inner += rng.normal(0, spread, inner.shape).astype(np.float32)
        else:
            chosen = rng.random(inner.shape) < 0.5
            inner[chosen] = rng.normal(0, spread, int(chosen.sum())).astype(np.float32)
    return weights, places
