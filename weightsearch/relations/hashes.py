"""Hashes of arrays by value: in order at three precisions, and without order. Streaming, in bounded memory.

A value's bits are mixed by the finaliser of SplitMix64 (Steele, Lea & Flood 2014). The order-free hash is the sum of
the mixed values (MSet-Add-Hash, Clarke et al. 2003); the ordered one weighs each by a random number of its place. They
tell equal from different, and are not meant against somebody who makes collisions on purpose: before anything is
deleted, bytes are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 65_536  # values at a time: they stay in the cache, and memory stays bounded
_WEIGHTS = np.random.PCG64(20_261_127).random_raw(CHUNK) | np.uint64(1)
_ADD, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_FOLD = 0xD1342543DE82EF95  # odd: chunks' hashes are folded in as digits of this base


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


def mixed(values: np.ndarray) -> np.ndarray:
    """Each float32 value `(n,)` as a well-mixed uint64."""
    bits = (values + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0 makes -0 to 0
    bits += _ADD
    bits ^= bits >> np.uint64(30)
    bits *= _FIRST
    bits ^= bits >> np.uint64(27)
    bits *= _SECOND
    bits ^= bits >> np.uint64(31)
    return bits


def to_float16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to float16's grid, as float32; ties to even, as hardware does."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
    rounded &= np.uint32(0xFFFFE000)
    normal = rounded.view(np.float32)
    large = np.abs(values) >= np.float32(2**-14)
    if large.all() and np.abs(normal).max(initial=0) <= 65504:
        return normal
    small = (np.abs(values) + np.float32(0.5)) - np.float32(0.5)  # 0.5 has the spacing of float16's subnormals
    result = np.where(large, normal, np.copysign(small, values))
    overflow = np.abs(result) > 65504
    return np.where(overflow, np.copysign(np.float32(np.inf), values), result) if overflow.any() else result


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to bfloat16's grid, as float32; ties to even."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    rounded &= np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


class Hasher:
    """Fed chunks of a tensor in order, each `CHUNK` values but the last."""

    def __init__(self) -> None:
        self._ordered = [0, 0, 0]
        self._unordered = 0

    def update(self, values: np.ndarray) -> None:
        """`values (n,)` float32, finite or not, `n <= CHUNK`."""
        weights = _WEIGHTS[: len(values)]
        bits = mixed(values)
        self._unordered += int(bits.sum(dtype=np.uint64))
        bits *= weights
        self._fold(0, bits)
        for place, rounded in ((1, to_float16(values)), (2, to_bfloat16(values))):
            bits = mixed(rounded)
            bits *= weights
            self._fold(place, bits)

    def _fold(self, place: int, bits: np.ndarray) -> None:
        total = int(bits.sum(dtype=np.uint64))
        self._ordered[place] = (self._ordered[place] * _FOLD + total) & 0xFFFFFFFFFFFFFFFF

    def finish(self) -> ValueHashes:
        single, half, brain = self._ordered
        return ValueHashes(single, half, brain, self._unordered & 0xFFFFFFFFFFFFFFFF)


def value_hashes(values: np.ndarray) -> ValueHashes:
    """Of a whole array of any shape, in C order.

    >>> value_hashes(np.arange(3)).unordered == value_hashes(np.array([2, 0, 1])).unordered
    True
    """
    hasher = Hasher()
    for chunk in chunks(values):
        hasher.update(chunk)
    return hasher.finish()


def chunks(values: np.ndarray):  # type: ignore[no-untyped-def]
    """The array's values in C order as float32, `CHUNK` at a time."""
    flat = values.reshape(-1)  # a copy only where the array is not contiguous
    for start in range(0, len(flat), CHUNK):
        with np.errstate(over="ignore", invalid="ignore"):
            yield np.ascontiguousarray(flat[start : start + CHUNK], dtype=np.float32)


def row_hashes(matrix: np.ndarray, *, ordered: bool) -> np.ndarray:
    """uint64 `(rows,)` of each row's values, with or without their order."""
    rows, width = matrix.shape
    result = np.empty(rows, np.uint64)
    weights = np.random.PCG64(width).random_raw(width) | np.uint64(1) if ordered else None
    step = max(1, CHUNK // max(width, 1))
    for start in range(0, rows, step):
        block = np.ascontiguousarray(matrix[start : start + step], np.float32)
        bits = mixed(block.ravel()).reshape(block.shape)
        if weights is not None:
            bits *= weights
        result[start : start + step] = bits.sum(axis=1, dtype=np.uint64)
    return result
