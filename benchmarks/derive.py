"""Derivations of small networks whose truth is exact: every kind of copy that people make of one.

    python benchmarks/derive.py runs/derived --seed 1          # networks of a set, as .npz, about three minutes
    python benchmarks/derive.py runs/derived-held-out --seed 2

Another seed gives other architectures, recipes and initialisations. Each file holds one network's history (see
`small_networks.train_lineage`); the functions below make copies of any network from its tensors alone and a seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from small_networks import Group, Lineage, Spec, Tensors, hidden_units, specs, train_lineage


def permuted(tensors: Tensors, groups: list[Group], rng: np.random.Generator, *, rescale: bool = False) -> Tensors:
    """The same function with its hidden units in another order and, where possible, rescaled by c in [1/4, 4]."""
    result = {name: value.copy() for name, value in tensors.items()}
    for group in groups:
        order = rng.permutation(group.units)
        scale = np.exp2(rng.uniform(-2, 2, group.units)) if rescale and group.scalable else np.ones(group.units)
        for place in group.places:
            value = np.moveaxis(result[place.tensor], place.axis, 0)
            shape = value.shape
            value = value.reshape(place.blocks, group.units, place.each, *shape[1:])[:, order]
            factor = {"out": scale, "in": 1 / scale, "square": scale**2, "none": np.ones(group.units)}[place.role]
            if rescale and group.scalable:
                value = value * factor[order].reshape(1, -1, 1, *[1] * (len(shape) - 1)).astype(np.float32)
            result[place.tensor] = np.ascontiguousarray(np.moveaxis(value.reshape(shape), 0, place.axis))
    return result


def with_gates_reordered(tensors: Tensors) -> Tensors:
    """An LSTM's gates i f g o as i o f g, the way ONNX keeps them."""
    result = dict(tensors)
    for name, value in tensors.items():
        if ".weight_ih" in name or ".weight_hh" in name or ".bias_ih" in name or ".bias_hh" in name:
            i, f, g, o = np.split(value, 4)
            result[name] = np.concatenate([i, o, f, g])
    return result


def is_weight(name: str, value: np.ndarray) -> bool:
    return value.ndim >= 2 and value.dtype.kind == "f"


def _each_weight(tensors: Tensors, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    return {name: change(value) if is_weight(name, value) else value.copy() for name, value in tensors.items()}


def bfloat16(value: np.ndarray) -> np.ndarray:
    return torch.from_numpy(value).to(torch.bfloat16).float().numpy()


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


def with_batch_norm_folded(spec: Spec, tensors: Tensors) -> Tensors | None:
    """Batch norms multiplied into the layers before them, for the families where one follows directly."""
    if not spec.norm or spec.family not in ("mlp", "cnn"):
        return None
    result = {name: value for name, value in tensors.items() if not name.startswith("norms.")}
    for k in range(spec.depth):
        gain = tensors[f"norms.{k}.weight"] / np.sqrt(tensors[f"norms.{k}.running_var"] + 1e-5)
        weight, bias = tensors[f"layers.{k}.weight"], tensors[f"layers.{k}.bias"]
        result[f"layers.{k}.weight"] = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
        result[f"layers.{k}.bias"] = (bias - tensors[f"norms.{k}.running_mean"]) * gain + tensors[f"norms.{k}.bias"]
    return result


def with_units_removed(spec: Spec, tensors: Tensors, share: float) -> Tensors:
    """Structured pruning: hidden units with the least norm are cut out, so that the shapes shrink."""
    result = {name: value for name, value in tensors.items()}
    for group in hidden_units(spec):
        first = group.places[0]
        if first.blocks != 1 or first.each != 1 or (spec.family == "residual" and "stem" in first.tensor):
            continue
        value = np.moveaxis(tensors[first.tensor], first.axis, 0).reshape(group.units, -1)
        keep = np.sort(np.argsort(np.linalg.norm(value, axis=1))[int(share * group.units) :])
        for place in group.places:
            if place.blocks != 1 or place.each != 1:
                break
        else:
            for place in group.places:
                result[place.tensor] = np.take(result[place.tensor], keep, place.axis)
    return result


def renamed(tensors: Tensors) -> Tensors:
    return {f"module.net_{name.replace('.', '_')}": value for name, value in tensors.items()}


def transposed(tensors: Tensors) -> Tensors:
    """The layout of Keras: dense (in, out), convolutions (height, width, in, out)."""

    def change(value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0))

    return _each_weight(tensors, change)


def build(out: Path, seed: int, per_family: int, seeds: int) -> None:
    """Every architecture of the set, trained from `seeds` seeds, one .npz and one .json each; resumes."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    numbered = sorted(enumerate(specs(seed, per_family)), key=lambda one: one[0] % per_family)  # all families early
    for k, spec in numbered:
        for repeat in range(seeds):
            path = out / f"{k:02d}-{spec.family}-{repeat}.npz"
            if path.exists():
                continue
            lineage = train_lineage(spec, seed * 10_000 + k * 100 + repeat)
            flat = {f"{state}|{name}": v for state, tensors in lineage.states.items() for name, v in tensors.items()}
            path.with_suffix(".json").write_text(json.dumps({"spec": spec.__dict__, "seed": lineage.seed}))
            np.savez(path.with_suffix(".tmp.npz"), **flat)
            path.with_suffix(".tmp.npz").rename(path)
            print(path, flush=True)


def load(path: Path) -> Lineage:
    about = json.loads(path.with_suffix(".json").read_text())
    lineage = Lineage(Spec(**about["spec"]), about["seed"])
    with np.load(path) as arrays:
        for key in arrays.files:
            state, name = key.split("|")
            lineage.states.setdefault(state, {})[name] = arrays[key]
    return lineage


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-family", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    build(options.out, options.seed, options.per_family, options.seeds)
