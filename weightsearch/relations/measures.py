"""What two tensors of one shape are to each other, in numbers.

All take float32 or float64 arrays of two or more dimensions, output first: `(D_out, D_in, ...)`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightsearch.relations.hashes import to_bfloat16, to_float16

FLOAT32 = 2.0**-23  # spacing at 1
BLOCK = 512  # rows and columns of the part of a large matrix that scores are taken of


def as_units(values: np.ndarray, axis: int) -> np.ndarray:
    """`(units, features)`: the tensor's entries by unit along `axis`."""
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(len(moved), -1)


@functools.lru_cache(maxsize=64)
def sub_block(shape: tuple[int, ...], size: int = BLOCK) -> tuple[np.ndarray, ...]:
    """Indices for `np.ix_` of a block of at most `size` entries along the first two axes, the same for one shape."""
    rng = np.random.default_rng([0, *shape])
    picks = []
    for axis, length in enumerate(shape):
        whole = np.arange(length)
        picks.append(np.sort(rng.choice(length, size, replace=False)) if axis < 2 and length > size else whole)
    return np.ix_(*picks)


def place_score(a: np.ndarray, b: np.ndarray) -> float:
    """How far units stand in the same places in both: a permutation score, about standard normal where they do not.

    z = tr(G) / (‖G‖_F / √(n−1)), G = A·Bᵀ of the n units' entries with their means over units taken off; over output
    units and over input units, the smaller of the two. NaN where there are too few units to tell. It is the
    Daniels–Mantel statistic of tr(G) under permutations of one side's units, with the variance for large n.
    """
    pick = sub_block(a.shape)
    a, b = a[pick], b[pick]
    if a.size < 65_536:  # of large ones float32 is precise enough
        a, b = a.astype(np.float64), b.astype(np.float64)
    scores = [_units_score(as_units(a, axis), as_units(b, axis)) for axis in (0, 1)]
    finite = [score for score in scores if not math.isnan(score)]
    return min(finite) if finite else math.nan


def _units_score(a: np.ndarray, b: np.ndarray) -> float:
    units = len(a)
    if units < 6:
        return math.nan
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    thin = a.shape[1] < units  # ‖A·Bᵀ‖_F by the smaller Gram matrices
    square = float(np.sum((a.T @ a) * (b.T @ b)) if thin else np.sum((a @ b.T) ** 2))
    trace = float(np.sum(a * b))
    return trace / math.sqrt(square / (units - 1)) if square > 0 else math.nan


def stouffer(scores: list[float]) -> float:
    """One score of many: their sum over the root of their number. NaN without any."""
    finite = [score for score in scores if not math.isnan(score)]
    return sum(finite) / math.sqrt(len(finite)) if finite else math.nan


@dataclass(frozen=True)
class Spectrum:
    """A difference's singular values, of a block of 256 × 256 where it is large: `rank` of at most `full`.

    A rank is low where values end: those that fall off steadily, until rounding hides them, are of full rank.

    `whiteness` is the largest over what white noise of this size would have, σ(√m + √n) (Geman 1980): near 1 for noise,
    2 and more for training.
    """

    rank: int
    full: int
    whiteness: float


def spectrum(difference: np.ndarray, noise: float) -> Spectrum:
    """Of the difference as a matrix `(D_out, rest)`.

    Singular values that rounding could have made do not count: `noise` is the rounding error of one entry.
    """
    matrix = difference.reshape(len(difference), -1)
    matrix = matrix[sub_block(matrix.shape, 256)].astype(np.float64)
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))  # its error is under the floor below
    if not values[0] > 0:
        return Spectrum(0, len(values), math.inf)
    edge = math.sqrt(matrix.shape[0]) + math.sqrt(matrix.shape[1])
    floor = max(1e-6 * values[0], 3 * noise * edge)
    spread = float(matrix.std())
    rank = int(np.sum(values > floor))
    if 0 < rank < len(values) and values[rank - 1] < GAP * values[rank]:
        rank = len(values)
    return Spectrum(rank, len(values), float(values[0]) / (spread * edge) if spread else math.inf)


def equilibrated(values: np.ndarray) -> np.ndarray:
    """The tensor with outputs and inputs rescaled until all have one norm, in float64: ReLU's scalings are gone.

    Sinkhorn's iteration (Sinkhorn & Knopp 1967) on the squared norms of the blocks between an output and an input.
    """
    values = values.astype(np.float64)
    power = (values**2).reshape(*values.shape[:2], -1).sum(axis=2)
    rows, columns = power.sum(axis=1) > 0, power.sum(axis=0) > 0
    row_scale, column_scale = np.ones(len(rows)), np.ones(len(columns))
    for _ in range(1_000):
        sums = power @ column_scale
        new_rows = np.where(rows, len(columns) / np.where(rows, sums, 1), 1)
        sums = new_rows @ power
        new_columns = np.where(columns, len(rows) / np.where(columns, sums, 1), 1)
        moved = np.abs(np.log(new_columns / column_scale)).max()
        row_scale, column_scale = new_rows, new_columns
        if moved < 1e-9:
            break
    scale = np.sqrt(row_scale[:, None] * column_scale[None])
    scale /= math.sqrt(float(np.sum(power * scale**2)) / values.size) or 1.0
    return values * scale.reshape(*scale.shape, *[1] * (values.ndim - 2))


def sorted_distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖sort(a) − sort(b)‖ / ‖a‖: 0 for the same values in any order."""
    size = float(np.linalg.norm(a))
    return float(np.linalg.norm(np.sort(a, axis=None) - np.sort(b, axis=None))) / size if size else math.inf


@dataclass(frozen=True)
class Grid:
    """Evenly spaced values: `levels` at most, one spacing for each `scope` (`tensor`, `row`, `group of 32`).

    `step` is the spacings' root mean square.
    """

    levels: int
    scope: str
    step: float

    @property
    def bits(self) -> int:
        return max(1, math.ceil(math.log2(self.levels)))

    def __str__(self) -> str:
        return f"{self.bits} bits by {self.scope}"


GAP = 3.0  # of a low rank: its last singular value over the largest that rounding leaves
GROUPS = (32, 64, 128, 256)
MOST_LEVELS = 256


def find_grid(values: np.ndarray, precision: float = FLOAT32) -> Grid | None:
    """The coarsest scope in which the tensor's values lie on a grid of at most 256 levels; None where they do not.

    `precision` is the spacing of the stored numbers at 1. A scope is judged by up to 48 of its sets of values.
    """
    rows = values.reshape(len(values), -1)
    rng = np.random.default_rng(0)
    grid = _grid("tensor", [values.reshape(-1)], precision, rng)
    if grid is not None:
        return grid
    scopes = [("row", rows)]
    if values.ndim >= 2 and values.shape[0] != values.shape[1]:
        scopes.append(("column", as_units(values, 1)))
    for scope, units in scopes:
        grid = _grid(scope, units[_some(len(units), rng)], precision, rng)
        if grid is not None:
            return grid
    for width in GROUPS:
        groups = rows.shape[1] // width
        if rows.shape[1] > width:
            chosen = _some(len(rows) * groups, rng)
            columns = (chosen % groups * width)[:, None] + np.arange(width)
            grid = _grid(f"group of {width}", rows[(chosen // groups)[:, None], columns], precision, rng)
            if grid is not None:
                return grid
    return None


def _some(count: int, rng: np.random.Generator, most: int = 48) -> np.ndarray:
    """Up to `most` of the numbers below `count`, all where those are few."""
    return np.arange(count) if count <= most else rng.choice(count, most, replace=False)


def _grid(
    scope: str, sets: Sequence[np.ndarray] | np.ndarray, precision: float, rng: np.random.Generator
) -> Grid | None:
    most, square, judged, evidence = 2, 0.0, 0, 0.0
    for values in sets:
        even = _even(values, precision, rng)
        if even is None:
            return None
        levels, surprise = even
        most, judged, evidence = max(most, levels), judged + 1, evidence + surprise
        square += (float(values.max() - values.min()) / max(levels - 1, 1)) ** 2
    if not judged or evidence <= 40:  # in nats against values that lie anywhere
        return None
    return Grid(most, scope, math.sqrt(square / judged))


def _even(values: np.ndarray, precision: float, rng: np.random.Generator) -> tuple[int, float] | None:
    """Levels of one set's grid and how surprising it is, in nats; (1, 0) for a set that tells nothing."""
    low, high = float(values.min()), float(values.max())
    span = high - low
    if span <= 0:
        return 1, 0.0
    sample = values if len(values) <= 512 else values[rng.choice(len(values), 512, replace=False)]
    sample = sample.astype(np.float64)
    distinct = np.unique(sample)
    if len(distinct) > MOST_LEVELS:
        return None
    largest = max(abs(low), abs(high))
    if precision <= FLOAT32:
        tolerance = np.full(len(distinct), 4 * precision * largest)  # of a few roundings, in the values' unit
    else:  # 256 levels are near to the spacing of half precision, so that no more than one rounding is forgiven
        tolerance = 0.75 * precision * (np.abs(distinct) + largest)
    steps = np.arange(1, MOST_LEVELS)[:, None]
    places = (distinct - low)[None] / span * steps  # (255, distinct)
    off = np.abs(places - np.round(places)) * (span / steps)
    fits = np.flatnonzero((off <= tolerance).all(axis=1))
    if not len(fits):
        return None
    count = int(fits[0]) + 1
    chance = np.clip(2 * tolerance * count / span, 1e-300, 1.0)
    surprise = -float(np.log(chance).sum()) * (1 - 2 / len(distinct)) - math.log(MOST_LEVELS)
    by_chance = len(sample) ** 2 * precision  # equal values that rounding makes, and several times as many
    repeats = max(len(sample) - len(distinct) - by_chance, 0.0)
    surprise = max(surprise, 0.0) + repeats * 2.0
    return count + 1, surprise


def is_filter_bank(values: np.ndarray) -> bool:
    """Whether each row's energy lies in three frequencies: a fixed Fourier or cosine basis, windowed or not."""
    rows = values.reshape(len(values), -1)
    if rows.shape[1] < 16 or len(rows) < 8:
        return False
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), 128)).astype(int)].astype(np.float64)
    chosen = chosen[np.linalg.norm(chosen, axis=1) > 1e-9 * (np.abs(chosen).max() or 1.0)]
    if not len(chosen):
        return False
    spectrum = np.abs(np.fft.rfft(chosen, axis=1)) ** 2
    largest = np.sort(spectrum, axis=1)[:, -3:].sum(axis=1)
    return bool(np.mean(largest > 0.9 * spectrum.sum(axis=1)) > 0.9)


def storage_precision(values: np.ndarray, dtype: str) -> float:
    """Spacing at 1 of the numbers as they were made: that of float16 or bfloat16 where the values all fit in it."""
    if dtype in ("float16", "bfloat16"):
        return 2.0**-10 if dtype == "float16" else 2.0**-7
    flat = values.reshape(-1)
    sample = np.ascontiguousarray(flat[:: max(1, len(flat) // 4096)], np.float32)
    if (to_bfloat16(sample) == sample).all():
        return 2.0**-7
    if (to_float16(sample) == sample).all():
        return 2.0**-10
    return FLOAT32
