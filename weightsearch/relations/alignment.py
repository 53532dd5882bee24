"""Hidden units matched across two networks whose graph is not known.

Weight matching (Ainsworth, Hayase & Srinivasa 2023) by one linear assignment a tensor. In place of the graph, the
orders that were found for one tensor's outputs are tried on every other tensor's inputs of that number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightsearch.relations.measures import as_units, equilibrated

MOST_UNITS = 2_048  # an assignment's time grows with the cube
GOOD = 0.5  # cosine from which an order found for one tensor is tried on others
PASSES = 3


@dataclass(frozen=True)
class Alignment:
    """`cosine` of all weights once aligned, and of each pair in turn; None for those too large to align."""

    cosine: float
    each: tuple[float | None, ...]


def align(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Alignment:
    """Aligns pairs of tensors of one shape, `(D_out, D_in, ...)`, in the network's order where it is known."""
    small = [
        (equilibrated(a), equilibrated(b)) if max(a.shape[:2]) <= MOST_UNITS else None for a, b in pairs
    ]  # fmt: skip
    orders: dict[int, list[np.ndarray]] = {}
    best: list[float | None] = [None] * len(pairs)
    for _ in range(PASSES):
        before = list(best)
        for k, pair in enumerate(small):
            if pair is None:
                continue
            cosine, rows, columns = _align_one(*pair, orders)
            so_far = best[k]
            if so_far is None or cosine > so_far + 1e-9:
                best[k] = cosine
            if cosine > GOOD:
                for order in (rows, *_block_orders(rows), columns):
                    of_size = orders.setdefault(len(order), [])
                    if not any((order == other).all() for other in of_size) and len(of_size) < 12:
                        of_size.append(order)
        if before == best:
            break
    total = sum(cosine * a.size for cosine, (a, _) in zip(best, pairs, strict=True) if cosine is not None)
    size = sum(pair[0].size for pair in small if pair is not None)
    return Alignment(total / size if size else math.nan, tuple(best))


def _align_one(
    a: np.ndarray, b: np.ndarray, orders: dict[int, list[np.ndarray]]
) -> tuple[float, np.ndarray, np.ndarray]:
    """The best cosine with a's outputs in the order `rows` and its inputs in the order `columns`."""
    from scipy.optimize import linear_sum_assignment  # half as long to import as torch

    units, inputs = a.shape[:2]
    candidates = [np.arange(inputs), *orders.get(inputs, [])]
    for size, of_size in orders.items():  # a flattened map: several inputs a unit
        if size > 1 and inputs > size and inputs % size == 0:
            each = inputs // size
            candidates += [(order[:, None] * each + np.arange(each)).ravel() for order in of_size[:4]]
    candidates.append(_by_sorted_values(as_units(a, 1), as_units(b, 1)))
    best = (-2.0, np.arange(units), candidates[0])
    right = b.reshape(units, -1)
    for columns in candidates:
        left = a[:, columns].reshape(units, -1)
        rows = linear_sum_assignment(-(right @ left.T))[1]
        cosine = float(np.sum(left[rows] * right)) / math.sqrt(float(np.sum(left**2)) * float(np.sum(right**2)))
        if cosine > best[0]:
            best = (cosine, rows, columns)
    return best


def _by_sorted_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The order of a's units that brings their sorted values nearest to b's."""
    from scipy.optimize import linear_sum_assignment  # half as long to import as torch

    a, b = np.sort(a, axis=1), np.sort(b, axis=1)
    distance = np.sum(a**2, axis=1)[None] + np.sum(b**2, axis=1)[:, None] - 2 * b @ a.T
    return linear_sum_assignment(distance)[1]


def _block_orders(rows: np.ndarray) -> list[np.ndarray]:
    """The orders within equal blocks of rows, where each block keeps to itself: a gate's units, queries and keys."""
    orders = []
    for blocks in (2, 3, 4):
        size, rest = divmod(len(rows), blocks)
        if rest or size < 2:
            continue
        for k in range(blocks):
            part = rows[k * size : (k + 1) * size]
            start = int(np.median(part)) // size * size
            order = part - start
            if np.array_equal(np.sort(order), np.arange(size)):
                orders.append(order)
    return orders
