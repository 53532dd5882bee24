"""Which tensor of one checkpoint is which of another's: by value, by name and shape, then by likeness."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from weightsearch.relations.measures import equilibrated
from weightsearch.relations.roles import Role
from weightsearch.relations.signature import Signature, TensorSignature

Key = Callable[[TensorSignature], Sequence[object]]
_PREFIX = re.compile(r"^(module|_orig_mod|model|net|network|state_dict)\.")
SAMPLE = 4_096  # values that likeness is judged by where names do not tell
QUANTILES = 64
LIKE = 0.3  # |cosine| under which likeness in place says nothing


@dataclass(frozen=True)
class Pair:
    """One tensor in both.

    `how`: `values` (equal as stored or at one's precision), `order` (equal but for their order), `name`, `cosine`,
    `quantiles`, `shape`.
    """

    a: TensorSignature
    b: TensorSignature
    how: str


@dataclass(frozen=True)
class Pairing:
    pairs: tuple[Pair, ...]
    only_a: tuple[TensorSignature, ...]
    only_b: tuple[TensorSignature, ...]


def pair_tensors(
    a: Signature, b: Signature, arrays_a: Mapping[str, np.ndarray], arrays_b: Mapping[str, np.ndarray]
) -> Pairing:
    """Pairs of two checkpoints' tensors. Arrays are read only for those that names and hashes leave open."""
    pairs: list[Pair] = []
    open_a = {tensor.name: tensor for tensor in a.tensors}
    open_b = {tensor.name: tensor for tensor in b.tensors}
    short_a, short_b = _short_names(list(open_a)), _short_names(list(open_b))

    def take(x: TensorSignature, y: TensorSignature, how: str) -> None:
        pairs.append(Pair(x, y, how))
        del open_a[x.name], open_b[y.name]

    def by_key(key: Key, how: str, roles: Sequence[Role], key_b: Key | None = None) -> None:
        """Pairs tensors that share one of their keys; among several, those of one name first."""
        where: dict[object, list[TensorSignature]] = defaultdict(list)
        for tensor in open_b.values():
            if tensor.role in roles:
                for one in dict.fromkeys((key_b or key)(tensor)):
                    where[one].append(tensor)
        for named in (True, False):
            for x in [tensor for tensor in open_a.values() if tensor.role in roles]:
                for one in key(x):
                    y = next(
                        (
                            y for y in where[one]
                            if y.name in open_b and (not named or short_a[x.name] == short_b[y.name])
                        ),
                        None,
                    )  # fmt: skip
                    if y is not None:
                        take(x, y, how)
                        break

    telling = (Role.WEIGHT, Role.VECTOR, Role.STATISTIC)
    by_key(_at_any_precision, "values", telling, _as_stored)  # not both rounded: that would hide small changes
    by_key(_as_stored, "values", telling, _at_any_precision)
    by_key(lambda t: [(t.sorted_shape, t.hashes.unordered)], "order", telling)
    short = {id(t): names[t.name] for s, names in ((a, short_a), (b, short_b)) for t in s.tensors}
    by_key(lambda t: [(_wide(t.shape), short[id(t)])], "name", tuple(Role))
    by_key(lambda t: [(t.sorted_shape, short[id(t)])], "name", telling)
    _pair_by_likeness(open_a, open_b, arrays_a, arrays_b, take)
    vectors = (Role.VECTOR, Role.STATISTIC, Role.CONSTANT, Role.COUNTER, Role.INTEGER)
    for x in [tensor for tensor in open_a.values() if tensor.role in vectors]:
        y = next((y for y in open_b.values() if y.role == x.role and y.shape == x.shape), None)
        if y is not None:  # vectors prove nothing, and so may be paired in the files' order
            take(x, y, "shape")
    order = {tensor.name: place for place, tensor in enumerate(a.tensors)}
    pairs.sort(key=lambda pair: order[pair.a.name])
    return Pairing(tuple(pairs), tuple(open_a.values()), tuple(open_b.values()))


def _as_stored(tensor: TensorSignature) -> list[object]:
    return [(_wide(tensor.shape), tensor.hashes.exact)]


def _at_any_precision(tensor: TensorSignature) -> list[object]:
    hashes = tensor.hashes
    return [(_wide(tensor.shape), one) for one in (hashes.exact, hashes.float16, hashes.bfloat16)]


def _short_names(names: list[str]) -> dict[str, str]:
    """Names without the wrappers' prefixes that all share."""
    short = {name: name for name in names}
    while names and all((match := _PREFIX.match(one)) is not None for one in short.values()):
        short = {name: _PREFIX.sub("", one) for name, one in short.items()}
        del match
    return short


def _wide(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing and leading ones, which formats add and drop."""
    return tuple(size for size in shape if size != 1)


def _pair_by_likeness(
    open_a: dict[str, TensorSignature],
    open_b: dict[str, TensorSignature],
    arrays_a: Mapping[str, np.ndarray],
    arrays_b: Mapping[str, np.ndarray],
    take: Callable[..., None],
) -> None:
    from scipy.optimize import linear_sum_assignment  # half as long to import as torch

    groups: dict[tuple[int, ...], tuple[list[TensorSignature], list[TensorSignature]]] = defaultdict(lambda: ([], []))
    for tensors, place in ((open_a, 0), (open_b, 1)):
        for tensor in tensors.values():
            if tensor.role is Role.WEIGHT:
                groups[tensor.sorted_shape][place].append(tensor)
    for left, right in groups.values():
        if not left or not right:
            continue
        likeness = np.zeros((len(left), len(right)))
        samples = [_sample(np.squeeze(arrays_a[x.name])) for x in left]
        for j, y in enumerate(right):
            for _, sample in _orders(np.squeeze(arrays_b[y.name]), {sample.shape for sample in samples}):
                for i, left_sample in enumerate(samples):
                    if sample.shape == left_sample.shape:
                        likeness[i, j] = max(likeness[i, j], abs(_cosine(left_sample.values, sample.values)))
        for i, j in zip(*linear_sum_assignment(-likeness), strict=True):
            if likeness[i, j] >= LIKE:
                take(left[i], right[j], "cosine")
        left = [x for x in left if x.name in open_a]
        right = [y for y in right if y.name in open_b]
        if not left or not right:
            continue
        if len(left) == len(right) == 1:
            take(left[0], right[0], "shape")
            continue
        cost = np.array(
            [[_quantile_distance(x, y) for y in _quantiles(arrays_b, right)] for x in _quantiles(arrays_a, left)]
        )
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            take(left[i], right[j], "quantiles")


@dataclass(frozen=True)
class _Sample:
    values: np.ndarray
    shape: tuple[int, ...]


def _sample(values: np.ndarray) -> _Sample:
    """Values at places spread evenly, the same places for one shape."""
    places = np.linspace(0, values.size - 1, min(values.size, SAMPLE)).astype(np.int64)
    return _Sample(values[np.unravel_index(places, values.shape)].astype(np.float64), values.shape)


def _orders(values: np.ndarray, shapes: set[tuple[int, ...]]) -> list[tuple[tuple[int, ...] | None, _Sample]]:
    """The array as it is and with its axes in every other order that gives one of the shapes."""
    orders: list[tuple[tuple[int, ...] | None, _Sample]] = []
    if values.shape in shapes:
        orders.append((None, _sample(values)))
    if values.ndim <= 4:
        for axes in permutations(range(values.ndim)):
            if axes != tuple(range(values.ndim)) and tuple(values.shape[axis] for axis in axes) in shapes:
                turned = values.transpose(axes)
                orders.append((axes, _sample(turned)))
    return orders


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else 0.0


def _quantiles(arrays: Mapping[str, np.ndarray], tensors: Sequence[TensorSignature]) -> list[np.ndarray]:
    at = np.linspace(0, 1, QUANTILES)
    return [np.quantile(equilibrated(np.squeeze(arrays[tensor.name])), at) for tensor in tensors]


def _quantile_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum())


def best_axes(a: np.ndarray, b: np.ndarray) -> tuple[tuple[int, ...] | None, float]:
    """The order of `b`'s axes in which it is likest to `a`, None for its own, and the cosine of a sample there."""
    best: tuple[tuple[int, ...] | None, float] = (None, -2.0)
    left = _sample(a)
    for axes, sample in _orders(b, {a.shape}):
        cosine = _cosine(left.values, sample.values)
        if cosine > best[1]:
            best = (axes, cosine)
    return best
