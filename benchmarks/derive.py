"""Derivations of small networks whose truth is exact: every kind of copy that people make of one.

    python benchmarks/derive.py runs/derived --seed 1          # networks of a set, as .npz, about three minutes
    python benchmarks/derive.py runs/derived-held-out --seed 2

Another seed gives other architectures, recipes and initialisations. Each file holds one network's history (see
`small_networks.train_lineage`). What needs no more than a network's tensors is in `weightsearch.zoo.derivations`; the
functions below need its graph, too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from small_networks import Group, Lineage, Spec, Tensors, hidden_units, specs, train_lineage

from weightsearch.zoo.derivations import (
    dare,
    half_precision,
    is_weight,
    lora_merged,
    merged,
    noised,
    pruned,
    quantised,
    renamed,
    slerp,
    ties,
    transposed,
)

__all__ = [
    "Lineage", "Tensors", "dare", "half_precision", "hidden_units", "is_weight", "lora_merged", "merged", "noised",
    "permuted", "pruned", "quantised", "renamed", "slerp", "ties", "transposed",
]  # fmt: skip


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


def bfloat16(value: np.ndarray) -> np.ndarray:
    return torch.from_numpy(value).to(torch.bfloat16).float().numpy()


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
