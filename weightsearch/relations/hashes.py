"""Hashes of arrays by value: in order at three precisions, and without order. Streaming, in bounded memory.

The ordered hash weighs each value's bits by a random 64-bit number of its place (multilinear hashing, Carter & Wegman
1981); the order-free one sums squares of the bits once mixed (MSet-Add-Hash, Clarke et al. 2003, with the finaliser of
MurmurHash3). They tell equal from different, and are not meant against somebody who makes collisions on purpose: before
anything is deleted, bytes are compared. `kernels.py` computes the same ones faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

CHUNK = 65_536  # values at a time: they stay in the cache, and memory stays bounded
LANES = 16  # values that compiled code takes at a time
WEIGHTS = np.random.PCG64(20_261_127).random_raw(CHUNK) | np.uint64(1)
MIX_ADD, MIX_FIRST, MIX_SECOND = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35
FOLD = 0xD1342543DE82EF95  # odd: chunks' hashes are folded in as digits of this base


@dataclass(frozen=True)
class ValueHashes:
    """`exact` of the values as float32, `float16` and `bfloat16` of them rounded so, `unordered` of the exact ones.

    The hash at lower precision equals the exact hash of the array that was rounded to it, so that one look-up finds a
    copy in half precision. -0 counts as 0.
    """

    exact: int
    float16: int
    bfloat16: int
    unordered: int


def to_float16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to float16's grid, as float32; ties to even, as hardware does."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
    rounded &= np.uint32(0xFFFFE000)
    normal = rounded.view(np.float32)
    size = np.abs(values)
    large = size >= np.float32(2**-14)
    if large.all() and np.abs(normal).max(initial=0) <= 65504:
        return normal
    small = (size + np.float32(0.5)) - np.float32(0.5)  # 0.5 has the spacing of float16's subnormals
    result = np.where(large, normal, np.copysign(small, values))
    overflow = np.abs(result) > 65504
    return np.where(overflow, np.copysign(np.float32(np.inf), values), result) if overflow.any() else result


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to bfloat16's grid, as float32; ties to even. Values that are not finite stay."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    rounded &= np.uint32(0xFFFF0000)
    finite = np.isfinite(values)
    return rounded.view(np.float32) if finite.all() else np.where(finite, rounded.view(np.float32), values)


class Hasher:
    """Is given the hashes of a tensor's chunks in order, each of `CHUNK` values but the last."""

    def __init__(self) -> None:
        self._ordered = [0, 0, 0]
        self._unordered = 0

    def update(self, ordered: tuple[int, int, int], unordered: int) -> None:
        for place, total in enumerate(ordered):
            self._ordered[place] = (self._ordered[place] * FOLD + total) & 0xFFFFFFFFFFFFFFFF
        self._unordered += unordered

    def finish(self) -> ValueHashes:
        single, half, brain = self._ordered
        return ValueHashes(single, half, brain, self._unordered & 0xFFFFFFFFFFFFFFFF)


def chunk_hashes(values: np.ndarray) -> tuple[tuple[int, int, int], int]:
    """Of one chunk `(n,)` of float32, finite or not, `n <= CHUNK`: in order at the three precisions, and without."""
    rounded = (values, to_float16(values), to_bfloat16(values))
    single, half, brain = (int(_weighted(one, WEIGHTS[: len(values)]).sum(dtype=np.uint64)) for one in rounded)
    return (single, half, brain), int(_squares(values).sum(dtype=np.uint64))


def _bits(values: np.ndarray) -> np.ndarray:
    return (values + np.float32(0)).view(np.uint32)  # + 0 makes -0 to 0


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    bits = _bits(values).astype(np.uint64)
    bits *= weights
    return bits


def _squares(values: np.ndarray) -> np.ndarray:
    mixed = _bits(values) + np.uint32(MIX_ADD)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(MIX_FIRST)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(MIX_SECOND)
    mixed ^= mixed >> np.uint32(16)
    wide = mixed.astype(np.uint64)
    wide *= wide
    return wide


def value_hashes(values: np.ndarray) -> ValueHashes:
    """Of a whole array of any shape, in C order.

    >>> value_hashes(np.arange(3)).unordered == value_hashes(np.array([2, 0, 1])).unordered
    True
    """
    hasher = Hasher()
    for chunk in chunks(values):
        hasher.update(*chunk_hashes(chunk))
    return hasher.finish()


class Unread(Protocol):
    """A tensor whose values are read a block at a time, in C order."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def value_dtype(self) -> np.dtype: ...

    def blocks(self, items: int) -> Iterator[np.ndarray]: ...


def chunks(values: np.ndarray | Unread) -> Iterator[np.ndarray]:
    """The tensor's values in C order as float32, `CHUNK` at a time."""
    read: Iterator[np.ndarray]
    if isinstance(values, np.ndarray):
        flat = values.reshape(-1)  # which copies only where the array is not contiguous
        read = (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))
    else:
        read = values.blocks(CHUNK)
    for chunk in read:
        with np.errstate(over="ignore", invalid="ignore"):
            yield np.ascontiguousarray(chunk, dtype=np.float32)


def row_hashes(matrix: np.ndarray, *, ordered: bool) -> np.ndarray:
    """uint64 `(rows,)` of each row's values, with or without their order."""
    rows, width = matrix.shape
    result = np.empty(rows, np.uint64)
    weights = np.bitwise_or(np.random.PCG64(width).random_raw(width), np.uint64(1))
    step = max(1, CHUNK // max(width, 1))
    for start in range(0, rows, step):
        block = np.ascontiguousarray(matrix[start : start + step], np.float32)
        hashed = _weighted(block, weights) if ordered else _squares(block)
        result[start : start + step] = hashed.sum(axis=1, dtype=np.uint64)
    return result
