"""What became of each tensor from one checkpoint to the other: the measurements that the rules judge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from weightsearch.relations.hashes import row_hashes
from weightsearch.relations.kinds import LayerChange, State
from weightsearch.relations.measures import (
    FLOAT32,
    Grid,
    equilibrated,
    find_grid,
    is_filter_bank,
    place_score,
    sorted_distance,
    spectrum,
    storage_precision,
)
from weightsearch.relations.pairing import Pair, best_axes
from weightsearch.relations.roles import Role

SHUFFLED = "values"  # in an order that no order of units explains
ROUNDINGS = 1.01  # of a half-precision copy's error over half a spacing


@dataclass(frozen=True)
class Fact:
    """One pair of tensors. NaN and None where a measurement was not needed or has no meaning."""

    pair: Pair
    state: State
    detail: str = ""
    equal: float = math.nan  # share of equal values
    cosine: float = math.nan
    difference: float = math.nan  # ‖b − a‖ / ‖a‖
    score: float = math.nan  # see `place_score`
    grid_a: Grid | None = None
    grid_b: Grid | None = None
    zeros_a: float = 0.0
    zeros_b: float = 0.0
    kept_equal: float = math.nan  # share equal among the values that are zero in neither
    rank: tuple[int, int] | None = None
    white: float = math.nan
    spread: float = math.nan  # the difference's root mean square
    spread_a: float = math.nan  # a's standard deviation
    precision_a: float = FLOAT32
    precision_b: float = FLOAT32
    fixed: bool = False  # a filter bank, which proves nothing

    @property
    def numbers(self) -> int:
        return self.pair.a.numbers

    @property
    def is_weight(self) -> bool:
        return self.pair.a.role is Role.WEIGHT and self.pair.b.role is Role.WEIGHT

    def to_layer(self) -> LayerChange:
        def known(value: float) -> float | None:
            return None if math.isnan(value) else value

        same = self.state is State.UNTOUCHED
        return LayerChange(
            self.pair.a.name,
            self.pair.b.name,
            self.pair.a.shape,
            self.state,
            self.detail,
            1.0 if same else known(self.equal),
            1.0 if same else known(self.cosine),
            0.0 if same else known(self.difference),
            known(self.score),
        )


def load(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The tensor in float32 without axes of length 1."""
    values = np.asarray(arrays[name])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.squeeze(values).astype(np.float32, copy=False)


def measure(pair: Pair, arrays_a: Mapping[str, np.ndarray], arrays_b: Mapping[str, np.ndarray]) -> Fact:
    """All that one pair's values tell. A pair that hashes showed to be equal is not read, but for filter banks."""
    exact = pair.a.hashes.exact == pair.b.hashes.exact
    if pair.how == "values":
        state = State.UNTOUCHED if exact else State.PRECISION
        fixed = pair.a.role is Role.WEIGHT and is_filter_bank(load(arrays_a, pair.a.name))
        detail = "" if exact else f"{pair.a.dtype} and {pair.b.dtype}"
        return Fact(pair, state, detail, cosine=1.0, fixed=fixed)
    if exact and pair.a.shape == pair.b.shape:
        return Fact(pair, State.UNTOUCHED)
    a, b = load(arrays_a, pair.a.name), load(arrays_b, pair.b.name)
    if not (_all_finite(a) and _all_finite(b)):
        return Fact(pair, State.DIFFERENT, "holds values that are not finite")
    if pair.a.role is not Role.WEIGHT or pair.b.role is not Role.WEIGHT or a.ndim < 2:
        return _vector(pair, a, b)
    if pair.how == "order":
        return _reordered(pair, a, b)
    detail = ""
    if a.shape != b.shape or _square(a):
        axes, _ = best_axes(a, b)
        if axes is not None:
            b = b.transpose(axes)
            detail = "other layout"
        if a.shape != b.shape:
            return Fact(pair, State.DIFFERENT, "other shape")
    return _changed(pair, a, b, detail)


def _all_finite(a: np.ndarray) -> bool:
    flat = a.ravel()
    return math.isfinite(float(np.dot(flat, flat))) or bool(np.isfinite(a).all())


def _square(a: np.ndarray) -> bool:
    return len(set(a.shape)) < a.ndim


def _vector(pair: Pair, a: np.ndarray, b: np.ndarray) -> Fact:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    if a.shape != b.shape:
        return Fact(pair, State.DIFFERENT, "other shape")
    if (a == b).all():
        return Fact(pair, State.UNTOUCHED)
    if np.array_equal(np.sort(a), np.sort(b)):
        return Fact(pair, State.REORDERED, equal=float(np.mean(a == b)))
    size_a, size_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    precision = storage_precision(a, pair.a.dtype), storage_precision(b, pair.b.dtype)
    if _only_rounded(a, b, *precision):
        return Fact(pair, State.PRECISION, "rounded", precision_a=precision[0], precision_b=precision[1])
    return Fact(
        pair,
        State.MOVED,
        equal=float(np.mean(a == b)),
        cosine=float(a @ b) / (size_a * size_b) if size_a and size_b else 0.0,
        difference=float(np.linalg.norm(b - a)) / size_a if size_a else math.inf,
    )


def _reordered(pair: Pair, a: np.ndarray, b: np.ndarray) -> Fact:
    axes, _ = best_axes(a, b)
    turned = b if axes is None else b.transpose(axes)
    if a.shape == turned.shape and np.array_equal(a, turned):
        return Fact(pair, State.LAYOUT, "axes in another order", cosine=1.0, fixed=is_filter_bank(a))
    if a.shape != turned.shape:
        if a.size == turned.size and np.array_equal(a.ravel(), b.ravel()):
            return Fact(pair, State.LAYOUT, "other shape", cosine=1.0, fixed=is_filter_bank(a))
        return Fact(pair, State.REORDERED, "in another shape")
    return Fact(pair, State.REORDERED, how_reordered(a, turned), cosine=_cosine(a, turned))


def how_reordered(a: np.ndarray, b: np.ndarray) -> str:
    """What was put into another order in a tensor whose values are the same; `SHUFFLED` where no units were."""
    left, right = (row_hashes(x.reshape(len(x), -1), ordered=True) for x in (a, b))
    if np.array_equal(np.sort(left), np.sort(right)):
        where = {value: place for place, value in enumerate(left.tolist())}
        order = np.array([where[value] for value in right.tolist()])
        for blocks in (4, 3):
            size, rest = divmod(len(order), blocks)
            if not rest and size > 1 and (np.diff(order.reshape(blocks, size), axis=1) == 1).all():
                return f"its {blocks} gates"
        return "outputs"
    columns = [row_hashes(np.moveaxis(x, 1, 0).reshape(x.shape[1], -1), ordered=True) for x in (a, b)]
    if np.array_equal(np.sort(columns[0]), np.sort(columns[1])):
        return "inputs"
    unordered = [
        np.sort(row_hashes(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1), ordered=False))
        for axis in (0, 1) for x in (a, b)
    ]  # fmt: skip
    if np.array_equal(unordered[0], unordered[1]) and np.array_equal(unordered[2], unordered[3]):
        return "outputs and inputs"
    return SHUFFLED


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel(), b.ravel()
    size = math.sqrt(float(np.dot(a, a)) * float(np.dot(b, b)))
    return float(np.dot(a, b)) / size if size > 0 else 0.0


def _changed(pair: Pair, a: np.ndarray, b: np.ndarray, detail: str) -> Fact:
    difference = b - a
    same = difference == 0
    equal = int(np.count_nonzero(same)) / a.size
    if equal == 1:
        return Fact(pair, State.LAYOUT if detail else State.UNTOUCHED, detail, 1.0, 1.0, 0.0)
    precision_a, precision_b = storage_precision(a, pair.a.dtype), storage_precision(b, pair.b.dtype)
    coarse = max(precision_a, precision_b)
    cosine = _cosine(a, b)
    size = float(np.linalg.norm(difference))
    relative = size / pair.a.norm if pair.a.norm else math.inf
    if relative < coarse and _only_rounded(a, b, precision_a, precision_b):
        return Fact(
            pair, State.PRECISION, "rounded", equal, cosine, relative, precision_a=precision_a, precision_b=precision_b
        )
    score = place_score(a, b)
    state = State.MOVED if cosine > 0.3 or score > 3 else State.DIFFERENT
    fact = Fact(
        pair, state, detail, equal, cosine, relative, score,
        zeros_a=pair.a.zeros / a.size, zeros_b=pair.b.zeros / b.size, kept_equal=_kept_equal(pair, a, b, same),
        spread=size / math.sqrt(a.size), spread_a=math.sqrt(max(pair.a.norm**2 / a.size - pair.a.mean**2, 0.0)),
        precision_a=precision_a, precision_b=precision_b,
        fixed=cosine > 0.9 and is_filter_bank(a) and is_filter_bank(b),
    )  # fmt: skip
    if state is State.DIFFERENT:
        return fact
    grid_a, grid_b = find_grid(a, precision_a), find_grid(b, precision_b)
    values = spectrum(difference, 0.5 * coarse * max(pair.a.largest, pair.b.largest))
    return replace(fact, grid_a=grid_a, grid_b=grid_b, rank=(values.rank, values.full), white=values.whiteness)


def _kept_equal(pair: Pair, a: np.ndarray, b: np.ndarray, same: np.ndarray) -> float:
    """The share of equal values among those that are zero in neither; NaN without any."""
    if not pair.a.zeros and not pair.b.zeros:
        return int(np.count_nonzero(same)) / a.size
    kept = (a != 0) & (b != 0)
    count = int(np.count_nonzero(kept))
    return int(np.count_nonzero(same & kept)) / count if count else math.nan


def _only_rounded(a: np.ndarray, b: np.ndarray, precision_a: float, precision_b: float) -> bool:
    """Whether rounding to the coarser of two precisions explains every difference."""
    coarse = max(precision_a, precision_b)
    if coarse <= FLOAT32:
        return False
    error = 0.5 * (coarse if min(precision_a, precision_b) <= FLOAT32 else precision_a + precision_b) * ROUNDINGS
    return bool((np.abs(b - a) <= error * np.maximum(np.abs(a), np.abs(b)) + 2.0**-24).all())


def rescaled_distance(a: np.ndarray, b: np.ndarray, *, in_place: bool) -> float:
    """How far the tensors are apart once outputs and inputs are rescaled, signs aside; 0 for permuted twins, too."""
    a, b = equilibrated(np.abs(a)), equilibrated(np.abs(b))
    if in_place:
        return float(np.linalg.norm(a - b)) / (float(np.linalg.norm(a)) or 1.0)
    return sorted_distance(a, b)


def looks_rescaled(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether b / a is a product of an output's and an input's factor, judged on a small block."""
    x, y = a[:64, :64].astype(np.float64), b[:64, :64].astype(np.float64)
    if ((x == 0) != (y == 0)).any():
        return False
    both = x != 0
    if not both.any():
        return False
    logs = np.where(both, np.log(np.abs(np.where(both, y, 1) / np.where(both, x, 1))), 0)
    if x.ndim > 2:
        logs, both = logs.reshape(*logs.shape[:2], -1), both.reshape(*both.shape[:2], -1)
        within = logs.max(axis=2) - logs.min(axis=2)
        if not both.all() or np.median(within) > 1e-2:
            return False
        logs = np.median(logs, axis=2)
    rest = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    return float(np.median(np.abs(rest))) < 1e-2
