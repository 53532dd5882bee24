"""A file of weights -> state dict -> layer matrices, and back.

`read_checkpoint` is safe for files from strangers: it runs no code, allocates no more than a small multiple of
the file's size, and whatever the file holds, raises nothing but a `WeightsearchError` of one line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.formats import ORDER_KEY, read_tree
from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import write_whole
from weightsearch.types import Architecture, Checkpoint, Layer, LayerKind

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "module")  # keys that weights are nested under
PREFIXES = ("module.", "_orig_mod.", "model.")  # stripped where all tensors share them
NORM_EXTRAS = ("bias", "running_mean", "running_var")
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
MAX_METADATA_SIZE = 200_000  # values and characters kept beside the weights, in all
MAX_METADATA_DEPTH = 20
MAX_SHARING = 16  # values in all tensors per stored value: tied layers share them, and a hostile file's all do

_KINDS = {1: LayerKind.NORM, 2: LayerKind.DENSE, 3: LayerKind.CONV1D, 4: LayerKind.CONV2D, 5: LayerKind.CONV3D}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.safetensors` (or its `.safetensors.index.json` of shards), `.pt`, `.pth`, `.ckpt`, `.bin` or `.npz`.

    The format is told by the content. The result has flat float32 weights `(P,)` in layer-matrix layout;
    numbers, strings and dicts beside the weights become `metadata`; the rest is listed in `skipped`. A layer comes
    where its first tensor comes; formats that lose this order are sorted by name, numbers as numbers.

    Raises `WeightsearchError`, one line, for a missing, damaged, hostile or unsuitable file. Zips are checked by
    their checksums; in `.safetensors` and legacy `.pt` files a flipped bit within the weights goes unnoticed.
    """
    with _one_line(str(path)):
        return _assemble(read_tree(Path(path)), str(path))


def from_state_dict(state_dict: Mapping[Any, Any], source: str = "") -> Checkpoint:
    """A checkpoint from a state dict in memory, of arrays or tensors, unwrapped and checked as a file's would be.

    `source` names it in the result and in errors. Raises `WeightsearchError` for tensors that are not finite
    real floats, or are sparse, quantised, expanded or without values.
    """
    with _one_line(source or "state dict"):
        if not isinstance(state_dict, Mapping):
            raise WeightsearchError(
                f"expected a state dict, got a {type(state_dict).__name__}; pass model.state_dict()"
            )
        return _assemble(state_dict, source)


def align(checkpoint: Checkpoint, known: Iterable[Architecture]) -> Checkpoint:
    """The checkpoint with its layers in the order of the known architecture that has the same ones by name, if any.

    `.safetensors` files and shards forget the order, so that a network read from one may have its layers sorted
    otherwise than the same network from a `.pt`; the names tell that it is the same.
    """
    known = list(known)
    architecture = checkpoint.architecture
    if architecture.fingerprint in {other.fingerprint for other in known}:
        return checkpoint
    for other in known:
        if len(other.layers) == len(architecture.layers) and set(other.layers) == set(architecture.layers):
            places = dict(zip(architecture.layers, architecture.slices, strict=True))
            weights = np.concatenate([checkpoint.weights[places[layer]] for layer in other.layers])
            return replace(checkpoint, architecture=other, weights=weights)
    return checkpoint


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
    plain = _Metadata()
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


@contextlib.contextmanager
def _one_line(source: str) -> Iterator[None]:
    """The boundary: whatever a stranger's file provokes in the parsers leaves here as one line.

    Parsers fail in too many ways to list them (struct.error, MemoryError, RecursionError, RuntimeError, …), and
    warn about what they read; neither is the user's doing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except WeightsearchError as error:
        raise WeightsearchError(f"{shown(source)}: {error}") from error
    except OSError as error:
        raise WeightsearchError(f"{shown(source)}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise WeightsearchError(f"{shown(source)}: needs more memory than there is; save only the weights") from error
    except Exception as error:
        reason = shown(next(iter(str(error).splitlines()), "")) or "no reason given"
        raise WeightsearchError(
            f"{shown(source)}: damaged or no checkpoint ({type(error).__name__}: {reason}); copy or save it again"
        ) from error


def _assemble(tree: Mapping[Any, Any], source: str) -> Checkpoint:
    levels = _levels(tree)
    tensors: dict[str, Any] = {}
    metadata = _Metadata()
    skipped: list[str] = []
    for level in levels:
        for key, value in level.items():
            if any(value is inner for inner in levels[1:]):
                continue
            name = key if isinstance(key, str) else repr(key) if isinstance(key, int) else f"a {type(key).__name__}"
            if level is levels[-1] and _is_tensor(value):
                reason = _set_aside(name, value)
                if reason is None:
                    tensors[name] = value
            else:
                reason = metadata.keep(name, value)
            if reason is not None:
                skipped.append(f"{shown(name)}: {reason}")
    if not tensors:
        found = ", ".join(shown(str(key)) for key in list(levels[-1])[:8] if isinstance(key, str)) or "nothing"
        raise WeightsearchError(
            f"no weights at its top or under {', '.join(WRAPPERS)} (found {found}); save a state dict"
        )
    prefix = _common_prefix(list(tensors))
    tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    architecture = Architecture(_layers({name: tuple(value.shape) for name, value in tensors.items()}))
    if architecture.size > MAX_SHARING * sum(dict(map(_stored, tensors.values())).values()):
        raise WeightsearchError(f"its tensors share the stored values over {MAX_SHARING} times; save it without ties")
    return Checkpoint(source, architecture, _flatten(tensors, architecture), metadata.values, tuple(skipped))


def _levels(tree: Mapping[Any, Any]) -> list[Mapping[Any, Any]]:
    """The dicts from the outermost down to the one that holds the weights."""
    levels = [tree]
    while len(levels) <= len(WRAPPERS):
        inner = [levels[-1][key] for key in WRAPPERS if isinstance(levels[-1].get(key), Mapping)]
        # A `model` may also be the model's configuration, beside weights under another name.
        inner = [value for value in inner if any(map(_is_tensor, value.values())) or set(WRAPPERS) & set(value)]
        if not inner:
            return levels
        levels.append(inner[0])
    raise WeightsearchError("its weights are nested too deeply, or in themselves; save model.state_dict()")


def _is_tensor(value: Any) -> bool:
    """Whether it is an array or a torch tensor. torch is not imported for it: without torch there is no tensor."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def _set_aside(name: str, value: Any) -> str | None:
    """Why a tensor of the state dict is no weight, or None. Raises for what cannot be read safely."""
    if not name or not name.isprintable() or len(name) > 1000:
        raise WeightsearchError(f"tensor '{shown(name)}' has no printable name; rename it")
    problem = _numpy_problem(value) if isinstance(value, np.ndarray) else _torch_problem(value)
    if problem is not None:
        raise WeightsearchError(f"tensor '{name}' {problem}; save it as an ordinary float tensor")
    kind = str(value.dtype).removeprefix("torch.")
    if not kind.startswith(("float", "bfloat")):
        if kind.startswith(("int", "uint")) and name.rpartition(".")[2] == "weight":
            raise WeightsearchError(f"tensor '{name}' is quantised ({kind}); save it as an ordinary float tensor")
        return f"not floating ({kind})"
    return "empty" if 0 in value.shape else None


def _numpy_problem(array: np.ndarray) -> str | None:
    if np.iscomplexobj(array):
        return f"is complex ({array.dtype})"
    steps = [abs(step) // max(array.itemsize, 1) for step in array.strides]
    return "is expanded: its values share memory" if _overlaps(array.shape, steps) else None


def _torch_problem(tensor: Any) -> str | None:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"is of the tensor subclass {type(tensor).__name__}"
    if tensor.is_nested:
        return "is a nested tensor"
    if tensor.layout is not torch.strided:
        return "is sparse"
    if tensor.is_quantized:
        return "is quantised"
    if tensor.is_meta:
        return "is on the meta device and has no values"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize == 1):
        return f"is of type {tensor.dtype}"
    if tensor.numel() == 0:
        return None
    if _overlaps(tensor.shape, tensor.stride()):
        return "is expanded: its values share memory"
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    if (last + 1) * tensor.itemsize > tensor.untyped_storage().nbytes():
        return "claims more values than its storage holds"
    return None


def _overlaps(shape: Sequence[int], steps: Sequence[int]) -> bool:
    """Whether positions of a strided tensor share memory: billions of values may stand for a few stored ones."""
    extent = 1
    for step, length in sorted(zip(steps, shape, strict=True)):
        if length > 1 and step < extent:
            return True
        extent += (length - 1) * step
    return False


def _stored(value: Any) -> tuple[int, int]:
    """Which memory holds a tensor's values, and how many it holds."""
    if isinstance(value, np.ndarray):
        return id(value), value.size
    storage = value.untyped_storage()
    return storage.data_ptr(), storage.nbytes() // value.itemsize


class _Metadata:
    """Copies of plain values (None, bool, int, float, str, list, dict), together of limited size and depth."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._left = MAX_METADATA_SIZE

    def keep(self, name: str, value: Any) -> str | None:
        """Put a plain value into `values`, or say why not."""
        is_state = any(word in name.lower() for word in ("optim", "sched", "scaler", "callbacks", "loops"))
        if is_state and not isinstance(value, str | int | float | None):
            return "training state"
        try:
            self.values.setdefault(self._text(name), self._plain(value, 0))
        except WeightsearchError as error:
            return str(error)
        return None

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise WeightsearchError(f"over {MAX_METADATA_SIZE:,} values and characters beside the weights")

    def _text(self, text: str) -> str:
        """Without lone surrogates, which no database or terminal can encode."""
        self._spend(len(text))
        return text.encode("utf-8", "replace").decode()

    def _plain(self, value: Any, depth: int) -> Any:
        self._spend(1)
        if depth > MAX_METADATA_DEPTH:
            raise WeightsearchError(f"nested over {MAX_METADATA_DEPTH} deep")
        if isinstance(value, np.generic) or (_is_tensor(value) and tuple(value.shape) in ((), (1,))):
            value = value.item()
        match value:
            case None | bool() | float():
                return value
            case int() if abs(value) < 2**63:
                return value
            case str():
                return self._text(value)
            case Mapping() if all(isinstance(key, str | int | float | None) for key in value):
                return {self._text(str(key)): self._plain(item, depth + 1) for key, item in value.items()}
            case list() | tuple():
                return [self._plain(item, depth + 1) for item in value]
        raise WeightsearchError(f"not a plain value ({type(value).__name__})")


def _common_prefix(names: Sequence[str]) -> str:
    prefix = ""
    while True:
        longer = next(
            (
                prefix + part
                for part in PREFIXES
                if all(len(n) > len(prefix + part) for n in names) and all(n.startswith(prefix + part) for n in names)
            ),
            None,
        )
        if longer is None:
            return prefix
        prefix = longer


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


def _array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype.itemsize == 2 else value).numpy()  # NumPy has no bfloat16


def _flatten(tensors: Mapping[str, Any], architecture: Architecture) -> np.ndarray:
    """The flat float32 weights `(P,)`, all of them finite."""
    weights = np.empty(architecture.size, np.float32)
    for layer, matrix in zip(architecture.layers, architecture.matrices(weights), strict=True):
        first, *extras = tensor_names(layer)
        width = matrix.shape[1] - len(extras)
        parts = {first: matrix[:, :width]} | {name: matrix[:, width + i] for i, name in enumerate(extras)}
        for name, part in parts.items():
            with np.errstate(over="ignore"):
                part[...] = _array(tensors[name]).reshape(part.shape)
            finite = np.isfinite(part)
            if not finite.all():
                count = part.size - np.count_nonzero(finite)
                raise WeightsearchError(
                    f"tensor '{name}' holds {count:,} NaN or infinite values; give an earlier checkpoint"
                )
    return weights
