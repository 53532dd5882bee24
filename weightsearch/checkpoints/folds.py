"""Reparametrised layers -> the layers that they stand for, and tied weights counted once.

Weight norm (Salimans & Kingma 2016), spectral norm (Miyato et al. 2018) and pruning masks are ways to train or store a
weight; the network computes with their product, and so do we, whatever it was saved as.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from weightsearch.errors import WeightsearchError

Tensors = dict[str, Any]
Read = Callable[[Any], np.ndarray]
_HEADS = re.compile(
    r"(.*\.)?(lm_head|embed_out|output_projection|output|decoder|generator|proj_out|classifier)\.weight"
)
_EMBEDDINGS = re.compile(r"(.*\.)?(\w*embed\w*|wte|shared|tok\w*)\.weight")


def fold(tensors: Mapping[str, Any], read: Read) -> tuple[Tensors, list[str]]:
    """The tensors with every reparametrisation computed, and notes. A folded weight comes where its first part came.

    `read` gives a tensor's values.
    """
    result: Tensors = dict(tensors)
    notes = []
    for what, find in (
        ("weight norm", _weight_norm),
        ("spectral norm", _spectral_norm),
        ("a pruning mask", _mask),
    ):
        folded = 0
        for name in list(result):
            product = find(name, result, read) if name in result else None
            if product is not None:
                target, value, parts = product
                result = _replaced(result, target, value, parts)
                folded += 1
        if folded:
            notes.append(f"{what} was folded into {folded:,} layers")
    return result, notes


def _replaced(tensors: Tensors, target: str, value: np.ndarray, parts: set[str]) -> Tensors:
    first = next(name for name in tensors if name in parts)
    replaced: Tensors = {}
    for name, tensor in tensors.items():
        if name == first:
            replaced[target] = value
        elif name not in parts:
            replaced[name] = tensor
    return replaced


def _weight_norm(name: str, tensors: Tensors, read: Read) -> tuple[str, np.ndarray, set[str]] | None:
    """`weight_g`, `weight_v`, or `parametrizations.weight.original0` and `1`: the weight is g · v / ‖v‖."""
    if match := re.fullmatch(r"(.*\.|)(\w+)_g", name):
        direction, target = f"{match[1]}{match[2]}_v", match[1] + match[2]
    elif match := re.fullmatch(r"(.*\.|)parametrizations\.(\w+)\.original0", name):
        direction, target = f"{match[1]}parametrizations.{match[2]}.original1", match[1] + match[2]
    else:
        return None
    if direction not in tensors or target in tensors:
        return None
    length, vector = read(tensors[name]).astype(np.float64), read(tensors[direction]).astype(np.float64)
    if length.ndim not in (0, vector.ndim) or any(
        n not in (1, m) for n, m in zip(length.shape, vector.shape, strict=False)
    ):
        return None
    axes = tuple(axis for axis in range(vector.ndim) if length.ndim == 0 or length.shape[axis] == 1)
    norm = np.sqrt((vector**2).sum(axis=axes, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = length * (vector / norm)
    return target, weight.astype(np.float32), {name, direction}


def _spectral_norm(name: str, tensors: Tensors, read: Read) -> tuple[str, np.ndarray, set[str]] | None:
    """`weight_orig` with `_u` and `_v`: the weight is W / (uᵀ W v), as in evaluation."""
    if match := re.fullmatch(r"(.*\.|)(\w+)_orig", name):
        target = match[1] + match[2]
        left, right = f"{target}_u", f"{target}_v"
    elif match := re.fullmatch(r"(.*\.|)parametrizations\.(\w+)\.original", name):
        target, place = match[1] + match[2], f"{match[1]}parametrizations.{match[2]}"
        left, right = f"{place}.0._u", f"{place}.0._v"
    else:
        return None
    if left not in tensors or right not in tensors or target in tensors:
        return None
    weight = read(tensors[name]).astype(np.float64)
    u, v = read(tensors[left]).astype(np.float64), read(tensors[right]).astype(np.float64)
    axis = next(
        (axis for axis in range(weight.ndim) if weight.shape[axis] == len(u) and weight.size == len(u) * len(v)), None
    )
    if u.ndim != 1 or v.ndim != 1 or axis is None:
        return None
    sigma = u @ np.moveaxis(weight, axis, 0).reshape(len(u), -1) @ v
    with np.errstate(divide="ignore", invalid="ignore"):
        return target, (weight / sigma).astype(np.float32), {name, left, right}


def _mask(name: str, tensors: Tensors, read: Read) -> tuple[str, np.ndarray, set[str]] | None:
    """torch.nn.utils.prune: `weight_orig` and `weight_mask`."""
    match = re.fullmatch(r"(.*\.|)(\w+)_orig", name)
    if match is None:
        return None
    target = match[1] + match[2]
    mask = f"{target}_mask"
    if mask not in tensors or target in tensors or tuple(tensors[mask].shape) != tuple(tensors[name].shape):
        return None
    return target, (read(tensors[name]) * read(tensors[mask])).astype(np.float32), {name, mask}


def without_ties(tensors: Mapping[str, Any], place: Callable[[Any], Any], read: Read) -> tuple[Tensors, dict[str, str]]:
    """Each tensor once, where several names mean one: those kept, and for each left out the name that is kept.

    Tensors are one where they are the same values of one storage (`place`), and where an output layer holds what an
    embedding holds, as files without ties write it twice.
    """
    kept: Tensors = {}
    tied: dict[str, str] = {}
    places: dict[Any, str] = {}
    for name, tensor in tensors.items():
        first = places.setdefault(place(tensor), name)
        if first == name or not tensor.shape:
            kept[name] = tensor
        else:
            tied[name] = first
    heads = [name for name in kept if _HEADS.fullmatch(name)]
    embeddings = [name for name in kept if _EMBEDDINGS.fullmatch(name)]
    for head in heads:
        for embedding in embeddings:
            one, other = kept.get(head), kept.get(embedding)
            if head == embedding or one is None or other is None or tuple(one.shape) != tuple(other.shape):
                continue
            if len(one.shape) == 2 and np.array_equal(read(one), read(other)):
                first, second = sorted((head, embedding), key=list(kept).index)
                tied[second] = first
                del kept[second]
    return kept, tied


def fold_adapter(tensors: Mapping[str, Any], scale: Callable[[str], float], read: Read, limit: int) -> Tensors:
    """LoRA (Hu et al. 2021): for each adapted layer the change of its weight, scale · B·A.

    Args:
        scale: of a module's name, `lora_alpha / r`.
        limit: the most values that may be made.
    """
    products: Tensors = {}
    total = 0
    for name in tensors:
        match = re.fullmatch(r"(.*)\.lora_(A|embedding_A)(\.\w+)??(\.weight)?", name)
        if match is None:
            if re.search(r"\.lora_(B|embedding_B)(\.|$)", name) is None:
                products[name] = tensors[name]  # a layer that was trained whole
            continue
        other = name.replace(".lora_A", ".lora_B").replace(".lora_embedding_A", ".lora_embedding_B")
        if other not in tensors:
            raise WeightsearchError(f"its adapter lacks {other}; save it again")
        a, b = read(tensors[name]).astype(np.float64), read(tensors[other]).astype(np.float64)
        total += b.shape[0] * a[0].size
        if total > limit:
            raise WeightsearchError("its adapter's products B·A are over the limit; merge it into its network")
        module = match[1].removeprefix("base_model.model.").removeprefix("base_model.")
        if a.ndim == 2 and b.ndim == 2 and b.shape[1] == a.shape[0]:
            product = b @ a
        elif a.ndim > 2 and b.shape[1] == a.shape[0]:  # a convolution, B being 1x1
            product = np.tensordot(b.reshape(len(b), -1), a, axes=1)
        else:
            raise WeightsearchError(f"its adapter's shapes at {module} do not fit; save it again")
        products[f"{module}.lora_delta"] = (scale(match[1]) * product).astype(np.float32)
    return products
