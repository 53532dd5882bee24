"""Copies of a network whose relation to it is exact: made from its named tensors alone, and a generator's numbers.

They are what people make of checkpoints: names, layouts, rounding, pruning, adapters and merges.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Tensors = dict[str, np.ndarray]


def is_weight(name: str, value: np.ndarray) -> bool:
    return value.ndim >= 2 and value.dtype.kind == "f"


def _each_weight(tensors: Tensors, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    return {name: change(value) if is_weight(name, value) else value.copy() for name, value in tensors.items()}


def half_precision(tensors: Tensors) -> Tensors:
    return {name: value.astype(np.float16) if value.dtype.kind == "f" else value for name, value in tensors.items()}


def quantised(tensors: Tensors, bits: int, scheme: str) -> Tensors:
    """Weights rounded to a grid: `tensor` and `row` symmetric about 0, `asymmetric` by row, `group` of 32 in a row."""

    def change(value: np.ndarray) -> np.ndarray:
        rows = value.reshape(1, -1) if scheme == "tensor" else value.reshape(len(value), -1)
        if scheme == "group":
            width = rows.shape[1] // 32 * 32
            if not width:
                return quantised({"w": value}, bits, "row")["w"]
            head = _rounded(rows[:, :width].reshape(-1, 32), bits, False).reshape(len(rows), width)
            tail = rows[:, width:]
            tail = _rounded(tail, bits, False) if tail.size else tail
            return np.concatenate([head, tail], 1).reshape(value.shape).astype(np.float32)
        return _rounded(rows, bits, scheme == "asymmetric").reshape(value.shape).astype(np.float32)

    return _each_weight(tensors, change)


def _rounded(rows: np.ndarray, bits: int, asymmetric: bool) -> np.ndarray:
    rows = rows.astype(np.float32)
    if asymmetric:
        low, high = np.minimum(rows.min(1, keepdims=True), 0), np.maximum(rows.max(1, keepdims=True), 0)
        step = np.maximum((high - low) / np.float32(2**bits - 1), 1e-12)
        zero = np.round(-low / step)
        return (np.clip(np.round(rows / step) + zero, 0, 2**bits - 1) - zero) * step
    top = 2 ** (bits - 1) - 1
    step = np.maximum(np.abs(rows).max(1, keepdims=True) / np.float32(top), 1e-12)
    return np.clip(np.round(rows / step), -top, top) * step


def pruned(tensors: Tensors, share: float, scheme: str) -> Tensors:
    """`magnitude`: the smallest of each tensor to zero; `global`: of all; `rows`: whole rows with the least norm."""
    if scheme == "global":
        limit = np.quantile(np.abs(np.concatenate([v.ravel() for n, v in tensors.items() if is_weight(n, v)])), share)
        return _each_weight(tensors, lambda value: np.where(np.abs(value) < limit, np.float32(0), value))

    def change(value: np.ndarray) -> np.ndarray:
        if scheme == "rows":
            norms = np.linalg.norm(value.reshape(len(value), -1), axis=1)
            keep = norms >= np.quantile(norms, share)
            return value * keep.reshape(-1, *[1] * (value.ndim - 1)).astype(np.float32)
        return np.where(np.abs(value) < np.quantile(np.abs(value), share), np.float32(0), value)

    return _each_weight(tensors, change)


def noised(tensors: Tensors, relative: float, rng: np.random.Generator) -> Tensors:
    """White noise of `relative` times each weight's root mean square."""

    def change(value: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(value.shape) * value.std() * relative
        return (value + noise).astype(np.float32)

    return _each_weight(tensors, change)


def lora_merged(tensors: Tensors, rank: int, relative: float, rng: np.random.Generator) -> Tensors:
    """A product of two thin matrices of `relative` the weight's norm added to each weight that has the room for it."""

    def change(value: np.ndarray) -> np.ndarray:
        rows = value.reshape(len(value), -1)
        if min(rows.shape) < 4 * rank:
            return value.copy()
        product = rng.standard_normal((len(rows), rank)) @ rng.standard_normal((rank, rows.shape[1]))
        product *= relative * np.linalg.norm(rows) / np.linalg.norm(product)
        return (value + product.reshape(value.shape)).astype(np.float32)

    return _each_weight(tensors, change)


def merged(parts: list[tuple[float, Tensors]]) -> Tensors:
    names = parts[0][1]
    return {
        name: sum(w * t[name].astype(np.float64) for w, t in parts).astype(names[name].dtype)  # type: ignore[union-attr]
        for name in names
    }


def slerp(a: Tensors, b: Tensors, share: float) -> Tensors:
    """Spherical interpolation by tensor."""
    result = {}
    for name, x in a.items():
        y = b[name]
        if not is_weight(name, x):
            result[name] = ((1 - share) * x + share * y).astype(x.dtype)
            continue
        u, v = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
        angle = np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))
        first, second = (
            (np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle))
            if angle > 1e-6
            else (1 - share, share)
        )
        result[name] = (first * u + second * v).reshape(x.shape).astype(np.float32)
    return result


def dare(base: Tensors, tuned: list[Tensors], drop: float, rng: np.random.Generator) -> Tensors:
    """Task vectors with a share dropped, the rest scaled up, averaged onto the base (DARE, Yu et al. 2024)."""
    result = {}
    for name, value in base.items():
        if not is_weight(name, value):
            result[name] = value.copy()
            continue
        total = np.zeros(value.shape)
        for other in tuned:
            keep = rng.random(value.shape) >= drop
            total += keep * (other[name].astype(np.float64) - value) / (1 - drop)
        result[name] = (value + total / len(tuned)).astype(np.float32)
    return result


def ties(base: Tensors, tuned: list[Tensors], keep: float) -> Tensors:
    """Task vectors trimmed to the largest, one sign elected, the agreeing averaged (TIES, Yadav et al. 2023)."""
    result = {}
    for name, value in base.items():
        if not is_weight(name, value):
            result[name] = value.copy()
            continue
        vectors = []
        for other in tuned:
            vector = other[name].astype(np.float64) - value
            vectors.append(np.where(np.abs(vector) >= np.quantile(np.abs(vector), 1 - keep), vector, 0))
        stacked = np.stack(vectors)
        agree = (np.sign(stacked) == np.sign(stacked.sum(0))) & (stacked != 0)
        result[name] = (value + (stacked * agree).sum(0) / np.maximum(agree.sum(0), 1)).astype(np.float32)
    return result


def renamed(tensors: Tensors) -> Tensors:
    return {f"module.net_{name.replace('.', '_')}": value for name, value in tensors.items()}


def transposed(tensors: Tensors) -> Tensors:
    """The layout of Keras: dense (in, out), convolutions (height, width, in, out)."""

    def change(value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0))

    return _each_weight(tensors, change)
