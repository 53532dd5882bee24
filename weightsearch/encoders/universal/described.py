"""Networks as their layers' features: many networks of any number of layers, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightsearch.encoders.universal.constructions import constructions
from weightsearch.encoders.universal.features import TOKEN, WHOLE, classes, pooled, tokens
from weightsearch.encoders.universal.graph import graph
from weightsearch.encoders.universal.order import in_running_order
from weightsearch.encoders.universal.responses import RESPONSE, responses
from weightsearch.types import Architecture


@dataclass(frozen=True)
class Described:
    """n networks with T layers in all.

    layers: `(T, len(TOKEN))` float32, network after network.
    starts: `(n + 1,)` where each network's layers begin; the last is T.
    head: `(n,)` each network's head among its own layers.
    whole: `(n, len(WHOLE) + len(RESPONSE))` float32, what is known of it as a whole.
    chance: `(n,)` float32, the accuracy of a guess.
    built: `(n,)` objects, frozen sets of each network's constructions.
    """

    layers: np.ndarray
    starts: np.ndarray
    head: np.ndarray
    whole: np.ndarray
    chance: np.ndarray
    built: np.ndarray

    def __len__(self) -> int:
        return len(self.head)

    def take(self, positions: np.ndarray) -> Described:
        """Those networks, in that order."""
        positions = np.asarray(positions, int)
        lengths = np.diff(self.starts)[positions]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.repeat(self.starts[positions] - starts[:-1], lengths) + np.arange(starts[-1])
        return Described(
            self.layers[rows],
            starts,
            *(getattr(self, name)[positions] for name in ("head", "whole", "chance", "built")),
        )

    def pooled(self) -> np.ndarray:
        """One row per network, `(n, 7 len(TOKEN) + len(WHOLE) + len(RESPONSE))`."""
        rows = [
            pooled(self.layers[None, start:end], self.whole[None, i], int(self.head[i]))
            for i, (start, end) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True))
        ]
        width = 7 * len(TOKEN) + len(WHOLE) + len(RESPONSE)
        return np.concatenate(rows) if rows else np.empty((0, width), np.float32)

    def in_context(self) -> np.ndarray:
        """One row per layer, `(T, 4 len(TOKEN) + len(WHOLE) + len(RESPONSE))`: the layer, the ones before and after it
        (nought at either end), the network's mean, and the network as a whole."""
        lengths = np.diff(self.starts)
        before, after = np.roll(self.layers, 1, axis=0), np.roll(self.layers, -1, axis=0)
        before[self.starts[:-1]] = 0
        after[self.starts[1:] - 1] = 0
        mean = np.add.reduceat(self.layers, self.starts[:-1]) / lengths[:, None]
        context = np.concatenate([mean, self.whole], 1, dtype=np.float32)
        return np.concatenate([self.layers, before, after, np.repeat(context, lengths, axis=0)], 1)


def describe(weights: np.ndarray, architecture: Architecture) -> Described:
    """Flat weights `(B, P)` of one architecture; raises WeightsearchError where it has no matrix at all."""
    weights, architecture = in_running_order(weights, architecture)
    layers, whole = tokens(weights, architecture)
    links = graph(architecture)
    assert links is not None  # or `tokens` would have raised
    size, length = layers.shape[:2]
    built = np.empty(size, object)
    built[:] = [constructions(architecture)] * size
    return Described(
        layers=layers.reshape(size * length, -1),
        starts=np.arange(size + 1) * length,
        head=np.full(size, links.head),
        whole=np.concatenate([whole, responses(weights, architecture)], 1),
        chance=np.full(size, 1 / classes(architecture), np.float32),
        built=built,
    )


def concatenate(parts: Sequence[Described]) -> Described:
    """Networks of several architectures, one part after another."""
    offsets = np.cumsum([0, *(part.starts[-1] for part in parts)])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Described(
        np.concatenate([part.layers for part in parts]),
        np.concatenate([*starts, offsets[-1:]]),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("head", "whole", "chance", "built")),
    )
