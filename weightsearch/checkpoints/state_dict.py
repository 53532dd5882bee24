"""A file of weights -> state dict -> layer matrices, and back.

`read_checkpoint` is safe for files from strangers: it runs no code, allocates no more than a small multiple of
the file's size, and whatever the file holds, raises nothing but a `WeightsearchError` of one line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.formats import ORDER_KEY, read_content
from weightsearch.checkpoints.named_tensors import Network, array_of, find_tensors, one_line, stored_values
from weightsearch.checkpoints.plain_values import PlainValues
from weightsearch.checkpoints.remote.paths import as_path
from weightsearch.checkpoints.tensors import Content, StoredTensor
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import write_whole
from weightsearch.types import Architecture, Checkpoint, Layer, LayerKind

NORM_EXTRAS = ("bias", "running_mean", "running_var")
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
READ_TOGETHER = 2**18  # values of a file that are read at a time to be checked alone
MAX_SHARING = 16  # values in all tensors per stored value: tied layers share them, and a hostile file's all do

_KINDS = {1: LayerKind.NORM, 2: LayerKind.DENSE, 3: LayerKind.CONV1D, 4: LayerKind.CONV2D, 5: LayerKind.CONV3D}


def read_checkpoint(
    path: str | Path,
    weights: str | None = None,
    needed: Callable[[Architecture], bool] = lambda architecture: True,
) -> Checkpoint:
    """Read a file of weights of any format that `checkpoints.formats` knows; the content tells which.

    The result has flat float32 weights `(P,)` in layer-matrix layout; numbers, strings and dicts beside the weights
    become `metadata`; the rest is listed in `skipped`, and `notes` say what was assumed. A layer comes where its first
    tensor comes; formats that lose this order are sorted by name, numbers as numbers, and are not `ordered`.

    Args:
        weights: the key of the network, where the file holds several (`ema`, `model.generator`); None to choose.
        needed: whether the weights of an architecture are wanted; else they are checked, and the result has none.

    Raises `WeightsearchError`, one line, for a missing, damaged, hostile or unsuitable file. Zips are checked by
    their checksums; in `.safetensors` and legacy `.pt` files a flipped bit within the weights goes unnoticed.

    Example:
        >>> read_checkpoint('index/examples/good.pt').architecture.size
        4970
    """
    with one_line(str(path)):
        return assemble(find_tensors(read_content(as_path(path)), weights), str(path), needed)


def from_state_dict(state_dict: Mapping[Any, Any], source: str = "", weights: str | None = None) -> Checkpoint:
    """A checkpoint from a state dict in memory, of arrays or tensors, unwrapped and checked as a file's would be.

    `source` names it in the result and in errors. Raises `WeightsearchError` for tensors that are not finite
    real floats, or are sparse, quantised, expanded or without values.
    """
    with one_line(source or "state dict"):
        if not isinstance(state_dict, Mapping):
            raise WeightsearchError(
                f"expected a state dict, got a {type(state_dict).__name__}; pass model.state_dict()"
            )
        return assemble(find_tensors(Content(state_dict), weights), source)


def assemble(
    network: Network,
    source: str,
    needed: Callable[[Architecture], bool] = lambda architecture: True,
    not_finite: Mapping[str, int] | None = None,
) -> Checkpoint:
    """A network's tensors, read and checked, as a checkpoint. To be called within `one_line`.

    Of an architecture that is not `needed` no more than a block is in memory, and the checkpoint has no weights.
    `not_finite` has each tensor's count of NaN and infinite values where somebody counted them: they are not read then.
    """
    tensors = network.tensors
    architecture = _architecture(tuple((name, tuple(value.shape)) for name, value in tensors.items()))
    if architecture.size > MAX_SHARING * sum(dict(map(stored_values, tensors.values())).values()):
        raise WeightsearchError(f"its tensors share the stored values over {MAX_SHARING} times; save it without ties")
    if needed(architecture):
        flat = _flatten(tensors, architecture)
    else:
        flat = np.empty(0, np.float32)
        for name, value in tensors.items():
            _refuse_not_finite(name, _count_not_finite(value) if not_finite is None else not_finite[name])
    return Checkpoint(
        source, architecture, flat, network.metadata, network.skipped, network.notes, ordered=network.ordered
    )


def align(checkpoint: Checkpoint, architectures: Iterable[Architecture]) -> Checkpoint:
    """The checkpoint with its layers in the order of the known architecture that it is, if any.

    `.safetensors` files and shards forget the order, so that a network read from one may have its layers sorted
    otherwise than the same network from a `.pt`. The layers' names tell that it is the same; where no known
    architecture has these names, a file that forgot the order is taken for the one that has the same layers, and a
    note says where their order is a guess.
    """
    architectures = list(architectures)
    layers = checkpoint.architecture.layers
    if any(other.layers == layers for other in architectures):
        return checkpoint
    for other in architectures:
        if len(other.layers) == len(layers) and set(other.layers) == set(layers):
            return _in_order(checkpoint, other, [layers.index(layer) for layer in other.layers])
    if checkpoint.ordered:
        return checkpoint
    forms = [replace(layer, name="") for layer in layers]
    for other in sorted(architectures, key=lambda other: other.fingerprint != checkpoint.architecture.fingerprint):
        wanted = [replace(layer, name="") for layer in other.layers]
        if Counter(wanted) == Counter(forms):
            break
    else:
        return checkpoint
    places: dict[Layer, list[int]] = {}
    for place, form in enumerate(forms):
        places.setdefault(form, []).append(place)
    unsure = sum(len(alike) for alike in places.values() if len(alike) > 1)
    order = [places[form].pop(0) for form in wanted]
    ordered = _in_order(checkpoint, Architecture(tuple(layers[place] for place in order)), order)
    if not unsure:
        return ordered
    note = (
        f"the order of its layers is a guess: the file does not keep it, and {unsure} layers have the shape of another "
        "under names that are not known; give a file by torch.save, or the names that the index knows"
    )
    return replace(ordered, notes=(*ordered.notes, note))


def _in_order(checkpoint: Checkpoint, architecture: Architecture, order: Sequence[int]) -> Checkpoint:
    slices = checkpoint.architecture.slices
    weights = np.concatenate([checkpoint.weights[slices[place]] for place in order])
    return replace(checkpoint, architecture=architecture, weights=weights)


def to_state_dict(weights: np.ndarray, architecture: Architecture) -> dict[str, np.ndarray]:
    """Flat weights `(P,)` as named float32 arrays in their own shapes: the inverse of `from_state_dict`.

    Names are the original ones without a prefix that all shared (`module.` …); a tensor without dimensions comes
    back as `(1,)`, which `load_state_dict` accepts. Integer buffers, which are no weights, are not in it.
    """
    state_dict = {}
    weights = np.asarray(weights, np.float32)
    for layer, matrix in zip(architecture.layers, architecture.matrices(weights), strict=True):
        first, *extras = tensor_names(layer)
        width = matrix.shape[1] - len(extras)
        state_dict[first] = matrix[:, :width].reshape(layer.shape).copy()
        for column, name in enumerate(extras, start=width):
            state_dict[name] = matrix[:, column].copy()
    return state_dict


def tensor_names(layer: Layer) -> tuple[str, ...]:
    """The state dict's names of a layer's tensors: the weight, then one per name in `extras`."""
    if layer.kind is LayerKind.OTHER:
        return (layer.name,)
    prefix = f"{layer.name}." if layer.name else ""
    return tuple(prefix + leaf for leaf in ("weight", *layer.extras))


def write_checkpoint(
    path: str | Path, weights: np.ndarray, architecture: Architecture, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write flat weights `(P,)` as a `.safetensors` or, by torch.save, a `.pt`, `.pth`, `.ckpt` or `.bin`.

    With metadata (plain numbers, strings, lists and dicts) a torch file holds `{"state_dict": ..., **metadata}`,
    without any the bare state dict. The file appears complete or not at all.
    """
    path = Path(path)
    state_dict = to_state_dict(weights, architecture)
    plain = PlainValues()
    for key, value in (metadata or {}).items():
        problem = "the weights' own name" if key in ("state_dict", ORDER_KEY) else plain.keep(key, value)
        if problem is not None:
            raise UsageError(f"{path}: metadata '{key}' cannot be written: {problem}; rename or leave it out")
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        texts = {key: json.dumps(value) for key, value in ({ORDER_KEY: list(state_dict)} | plain.values).items()}
        content = save(state_dict, metadata=texts)
    elif path.suffix in TORCH_SUFFIXES:
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in state_dict.items()}
        buffer = BytesIO()
        torch.save({"state_dict": tensors, **plain.values} if plain.values else tensors, buffer)
        content = buffer.getvalue()
    else:
        raise UsageError(f"{path}: a checkpoint is written as {', '.join(TORCH_SUFFIXES)} or .safetensors; rename it")
    try:
        write_whole(path, content)
    except OSError as error:
        raise WeightsearchError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


@lru_cache(maxsize=64)
def _architecture(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Architecture:
    """Of tensors by name and shape; the same for all files of a sweep, with what it knows of itself."""
    return Architecture(_layers(dict(shapes)))


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """Group tensors into layers, by name and shape, in order of first appearance."""
    layers = []
    taken: set[str] = set()
    for name, shape in shapes.items():
        if name in taken:
            continue
        module, _, leaf = name.rpartition(".")
        layer = _module_layer(module, shapes) if leaf in ("weight", *NORM_EXTRAS) else None
        if layer is None or name not in tensor_names(layer):
            layer = Layer(name, LayerKind.OTHER, shape or (1,), extras=())
        layers.append(layer)
        taken.update(tensor_names(layer))
    return tuple(layers)


def _module_layer(module: str, shapes: Mapping[str, tuple[int, ...]]) -> Layer | None:
    """The layer made of a module's `weight` and what stands beside it, one value per row."""
    prefix = f"{module}." if module else ""
    shape = shapes.get(prefix + "weight", ())
    if len(shape) not in _KINDS:
        return None
    kind = _KINDS[len(shape)]
    candidates = NORM_EXTRAS if kind is LayerKind.NORM else ("bias",)
    extras = tuple(leaf for leaf in candidates if shapes.get(prefix + leaf) == shape[:1])
    return Layer(module, kind, shape, extras)


def _flatten(tensors: Mapping[str, Any], architecture: Architecture) -> np.ndarray:
    """The flat float32 weights `(P,)`, all of them finite."""
    weights = np.empty(architecture.size, np.float32)
    parts: dict[str, np.ndarray] = {}
    for layer, matrix in zip(architecture.layers, architecture.matrices(weights), strict=True):
        first, *extras = tensor_names(layer)
        width = matrix.shape[1] - len(extras)
        parts[first] = matrix[:, :width]
        parts |= {name: matrix[:, width + i] for i, name in enumerate(extras)}
    with np.errstate(over="ignore"):
        for name, part in parts.items():
            part[...] = array_of(tensors[name]).reshape(part.shape)
    if not np.isfinite(weights).all():
        for name, part in parts.items():
            _refuse_not_finite(name, part.size - int(np.count_nonzero(np.isfinite(part))))
    return weights


def _count_not_finite(value: Any) -> int:
    count = 0
    for block in value.blocks(READ_TOGETHER) if isinstance(value, StoredTensor) else (array_of(value),):
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(block, np.float32))
        count += finite.size - int(np.count_nonzero(finite))
    return count


def _refuse_not_finite(name: str, count: int) -> None:
    if count:
        raise WeightsearchError(f"tensor '{name}' holds {count:,} NaN or infinite values; give an earlier checkpoint")
