"""The zoo's base network: stride-2 convolutions, global average pooling and one dense layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.types import Architecture, Layer, LayerKind
from weightsearch.zoo.recipes import Initializer, Recipe


class Stream(IntEnum):
    """A run's independent random streams, all from its recipe's seed."""

    WEIGHTS = 0
    SUBSET = 1
    BATCHES = 2
    DROPOUT = 3


def stream(recipe: Recipe, kind: Stream, *step: int) -> np.random.Generator:
    """The generator of one of a run's streams (`step`: the epoch, where there is a stream per epoch)."""
    return np.random.default_rng((recipe.seed, kind, *step))


@dataclass(frozen=True)
class CnnShape:
    """The base CNN of the Small CNN Zoo (Unterthiner et al. 2020, https://arxiv.org/abs/2002.11448, section 3).

    `layers` convolutions of `filters` 3x3 kernels, stride 2, no padding, each followed by the recipe's activation
    and dropout; then global average pooling and a dense layer of `classes`.
    """

    filters: int = 16
    layers: int = 3
    classes: int = 10
    channels: int = 1

    @property
    def parameters(self) -> int:
        """Closed formula: 4,970 for 16 filters and 75,146 for 64."""
        f, c = self.filters, self.channels
        return (9 * c + 1) * f + (self.layers - 1) * (9 * f + 1) * f + (f + 1) * self.classes

    @property
    def architecture(self) -> Architecture:
        inputs = [self.channels] + [self.filters] * (self.layers - 1)
        convolutions = [
            Layer(f"conv{i}", LayerKind.CONV2D, (self.filters, width, 3, 3)) for i, width in enumerate(inputs, 1)
        ]
        return Architecture((*convolutions, Layer("dense", LayerKind.DENSE, (self.classes, self.filters))))

    def spatial(self, height: int, width: int) -> list[tuple[int, int]]:
        """What the network sees of an image, and of every convolution's output: `layers + 1` heights and widths.

        A stride of 2 without padding leaves out an even size's last row or column; all that only leads there is
        left out too, so that of 28x28 pixels three convolutions see 23x23. Raises UsageError where nothing is left.
        """
        last = []
        for size in (height, width):
            for _ in range(self.layers):
                size = (size - 1) // 2
            last.append(size)
        if min(last) < 1:
            raise UsageError(
                f"images of {height}x{width} are too small for {self.layers} convolutions: use fewer layers"
            )
        sizes = [(last[0], last[1])]
        for _ in range(self.layers):
            sizes.append((2 * sizes[-1][0] + 1, 2 * sizes[-1][1] + 1))
        return sizes[::-1]


def initialize(shape: CnnShape, recipe: Recipe) -> np.ndarray:
    """A run's initial flat weights `(P,)` float32, from its recipe's initializer and seed alone."""
    rng = stream(recipe, Stream.WEIGHTS)
    weights = np.zeros(shape.parameters, np.float32)
    for layer, matrix in zip(shape.architecture.layers, shape.architecture.matrices(weights), strict=True):
        matrix[:, :-1] = _kernel(rng, recipe, layer)  # the last column, the bias, starts at zero
    return weights


def _kernel(rng: np.random.Generator, recipe: Recipe, layer: Layer) -> np.ndarray:
    """A kernel `(D_out, D_in*kh*kw)`, by the formulas of torch.nn.init (He: gain of ReLU; else gain 1)."""
    rows, columns = layer.rows, math.prod(layer.shape[1:])
    fan_in, fan_out = columns, rows * math.prod(layer.shape[2:])
    size = (rows, columns)
    match recipe.initializer:
        case Initializer.NORMAL:
            return rng.normal(0.0, _std(recipe), size)
        case Initializer.TRUNCATED_NORMAL:  # at two standard deviations, by redrawing
            draws = rng.standard_normal(size)
            while (outside := np.abs(draws) > 2).any():
                draws[outside] = rng.standard_normal(int(outside.sum()))
            return draws * _std(recipe)
        case Initializer.XAVIER_NORMAL:
            return rng.normal(0.0, math.sqrt(2 / (fan_in + fan_out)), size)
        case Initializer.HE_NORMAL:
            return rng.normal(0.0, math.sqrt(2 / fan_in), size)
        case Initializer.XAVIER_UNIFORM:
            return rng.uniform(-1, 1, size) * math.sqrt(6 / (fan_in + fan_out))
        case Initializer.HE_UNIFORM:
            return rng.uniform(-1, 1, size) * math.sqrt(6 / fan_in)
        case Initializer.ORTHOGONAL:  # Saxe et al. 2014, https://arxiv.org/abs/1312.6120
            q, r = np.linalg.qr(rng.standard_normal((max(size), min(size))))
            q *= np.sign(np.diagonal(r))  # makes the draw uniform over orthogonal matrices
            return q if rows >= columns else q.T


def _std(recipe: Recipe) -> float:
    if recipe.init_std is None:
        raise UsageError(f"initializer {recipe.initializer} needs init_std")
    return recipe.init_std
