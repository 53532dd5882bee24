"""Whether a checkpoint is a merge of others: least squares over candidates, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightsearch.relations.facts import FLOAT32, load
from weightsearch.relations.measures import storage_precision
from weightsearch.relations.roles import Role
from weightsearch.relations.signature import Signature

Arrays = Mapping[str, np.ndarray]
EXPLAINED = 0.95  # of the changed numbers of a merge of sparse changes
MOST_CHANGED = 200_000  # numbers of a tensor that are looked at for that
SHARE = 0.02  # a parent has at least this share, and none more than 1 − this
# What 1 − R² of an exact merge may reach by rounding of the child, by the spacing of its numbers at 1.
EXACT, ROUNDED = 1e-4, 3e-3  # of the squared distance to the nearest parent, what may be left in float32 and below
LEFT_OVER = {FLOAT32: 2e-13, 2.0**-10: 5e-7, 2.0**-7: 3e-5}


@dataclass(frozen=True)
class Merge:
    """`shares` of the candidates in their order; `left_over` is 1 − R². `how`: `linear`, or `by tensor` as in SLERP."""

    shares: tuple[float, ...]
    left_over: float
    how: str


def find_merge(child: Arrays, parents: Sequence[Arrays], signature: Signature) -> Merge | None:
    """How `child` is made of all `parents`, or None. Tensors of two or more dimensions are matched by name.

    One share for all tensors, or one each (SLERP). Exact merges leave nothing but rounding, which also has to be far
    less than what the child differs from its nearest parent by.
    """
    grams, targets, power_of_child, each, nearest = [], [], 0.0, [], math.inf
    limit = 0.0
    distances = np.zeros(len(parents))
    for tensor in signature.tensors:
        if tensor.role is not Role.WEIGHT or not all(tensor.name in parent for parent in parents):
            continue
        y = load(child, tensor.name)
        columns = [load(parent, tensor.name) for parent in parents]
        if any(column.shape != y.shape for column in columns):
            return None
        limit = max(limit, LEFT_OVER[storage_precision(y, tensor.dtype)])
        y64 = y.ravel().astype(np.float64)
        x = np.stack([column.ravel() for column in columns]).astype(np.float64)  # (parents, n)
        distances += ((x - y64) ** 2).sum(axis=1)
        gram, target, power = x @ x.T, x @ y64, float(y64 @ y64)
        grams.append(gram)
        targets.append(target)
        power_of_child += power
        weights = _solve(gram, target)
        each.append((weights, float(((y64 - weights @ x) ** 2).sum()), power))
    if not grams or power_of_child == 0:
        return None
    nearest = float(distances.min()) / power_of_child * (EXACT if limit <= LEFT_OVER[FLOAT32] else ROUNDED)
    shares = _solve(np.sum(grams, axis=0), np.sum(targets, axis=0))
    left = _left_over(child, parents, signature, shares) / power_of_child
    if left < limit and left < nearest and _are_shares(shares):
        return Merge(tuple(shares.tolist()), left, "linear")
    left = sum(rest for _, rest, _ in each) / power_of_child
    if len(each) > 1 and left < limit and left < nearest and all(_are_shares(w) for w, _, _ in each):
        return Merge(tuple(np.mean([w for w, _, _ in each], axis=0).tolist()), left, "by tensor")
    return None


@dataclass(frozen=True)
class TaskMerge:
    """`scale` of the parents' changes from the base, and the share of the child's changed numbers that they explain."""

    scale: float
    explained: float


def find_task_merge(child: Arrays, base: Arrays, parents: Sequence[Arrays], signature: Signature) -> TaskMerge | None:
    """Whether `child` is `base` plus sparse changes of two fine-tunes of it, as TIES and DARE make it; None if not.

    TIES (Yadav et al. 2023) keeps the largest changes of each and averages those that agree in sign; DARE (Yu et al.
    2024) drops changes at random and scales up the rest. Either way each changed number is the base's plus one scale
    times one parent's change, their sum, or its half.
    """
    kept: list[np.ndarray] = []
    total = 0
    for tensor in signature.tensors:
        if tensor.role is not Role.WEIGHT or not all(tensor.name in one for one in (base, *parents)):
            continue
        y, start, first, second = (load(one, tensor.name).ravel().astype(np.float64) for one in (child, base, *parents))
        if not len(y) == len(start) == len(first) == len(second):
            return None
        changed = np.flatnonzero(y != start)[:MOST_CHANGED]
        total += len(y)
        spacing = 2 * storage_precision(load(child, tensor.name), tensor.dtype) * np.abs(y)
        rows = np.stack([y - start, first - start, second - start, spacing])
        kept.append(rows[:, changed])
    if not kept:
        return None
    change, one, other, rounding = np.concatenate(kept, axis=1)
    if len(change) < 64 or len(change) > 0.98 * total:
        return None
    explained = np.zeros(len(change), bool)
    each = []
    scale = _commonest_ratio(change, one, rounding)
    if scale is None:
        return None
    tolerance = rounding * (1 + abs(scale)) + 1e-6 * np.abs(change)
    for mixture in (one, other, one + other, (one + other) / 2):
        fits = np.abs(change - scale * mixture) <= tolerance
        each.append(float(np.mean(fits & ~explained)))
        explained |= fits
    share = float(explained.mean())
    if share < EXPLAINED or min(each[:2]) < SHARE:
        return None
    return TaskMerge(scale, share)


def _commonest_ratio(change: np.ndarray, one: np.ndarray, rounding: np.ndarray) -> float | None:
    """The scale that most of the changes are of one parent's, where a tenth agree on it."""
    clear = (np.abs(change) > 100 * rounding) & (np.abs(one) > 100 * rounding)
    if np.count_nonzero(clear) < 32:
        return None
    ratios = change[clear] / one[clear]
    ratios = ratios[(ratios > 0.05) & (ratios < 50)]
    bins, counts = np.unique(np.round(np.log(ratios), 2), return_counts=True)
    if not len(bins) or counts.max() < 0.1 * len(change[clear]):
        return None
    near = ratios[np.abs(np.log(ratios) - bins[counts.argmax()]) < 0.006]
    return float(np.median(near))


def _left_over(child: Arrays, parents: Sequence[Arrays], signature: Signature, shares: np.ndarray) -> float:
    total = 0.0
    for tensor in signature.tensors:
        if tensor.role is Role.WEIGHT and all(tensor.name in parent for parent in parents):
            y = load(child, tensor.name).astype(np.float64)
            for share, parent in zip(shares, parents, strict=True):
                y = y - share * load(parent, tensor.name)
            total += float(np.sum(y**2))
    return total


def _solve(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    return np.linalg.lstsq(gram / scale / scale[:, None], target / scale, rcond=1e-13)[0] / scale


def _are_shares(shares: np.ndarray) -> bool:
    return bool((shares > SHARE).all() and (shares < 1 - SHARE).all())
