"""What a tensor is in a network, as far as its name, shape and type tell."""

from __future__ import annotations

import functools
import re
from enum import StrEnum

import numpy as np

_STATISTIC = re.compile(r"(running_(mean|var)|moving_(mean|variance)|num_batches_tracked)$")
_COUNTER = re.compile(r"num_batches_tracked$")
HEAD = re.compile(
    r"(^|[._/])(head|heads|fc|classifier|lm_head|output|out|logits|final|score|predictions?|last|linear_head)([._/]|\d|$)"
)


class Role(StrEnum):
    """Only a `weight` can prove a relation: vectors, statistics and constants are alike in networks that have
    nothing to do with each other."""

    WEIGHT = "weight"  # two or more dimensions
    VECTOR = "vector"  # biases, gains
    STATISTIC = "statistic"  # running means, variances
    COUNTER = "counter"  # a batch norm's count of steps
    CONSTANT = "constant"  # one value throughout
    INTEGER = "integer"  # positions, masks, token ids

    @property
    def is_parameter(self) -> bool:
        return self in (Role.WEIGHT, Role.VECTOR, Role.STATISTIC)


@functools.lru_cache(maxsize=4096)
def role_of(name: str, shape: tuple[int, ...], dtype: np.dtype, constant: bool) -> Role:
    """`constant`: whether all values are one. Eight-bit integers with two dimensions are quantised weights."""
    if _COUNTER.search(name):
        return Role.COUNTER
    if _STATISTIC.search(name):
        return Role.STATISTIC
    wide = [size for size in shape if size != 1]
    if dtype.kind not in "fV" and not (dtype.itemsize == 1 and dtype.kind in "iu" and len(wide) >= 2):
        return Role.INTEGER
    if constant:
        return Role.CONSTANT
    return Role.WEIGHT if len(wide) >= 2 else Role.VECTOR
