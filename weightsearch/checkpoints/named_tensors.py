"""A file or a state dict -> the network in it, as named tensors in PyTorch's layout, and what stands beside them.

What is one network comes out as one: found under whatever key, without the prefixes that wrappers add, without a loss
beside it, with reparametrised layers computed and tied tensors counted once.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.folds import fold, fold_adapter, without_ties
from weightsearch.checkpoints.formats import read_content
from weightsearch.checkpoints.network_plans import Kept, Network, plan_of, remember
from weightsearch.checkpoints.networks import (
    as_mapping,
    candidate,
    find_network,
    is_tensor,
    lightning_scores,
    without_losses,
)
from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.pickle_values import is_dangerous, plain
from weightsearch.checkpoints.plain_values import PlainValues
from weightsearch.checkpoints.readers.limits import MAX_FILE_BYTES
from weightsearch.checkpoints.remote.paths import as_path
from weightsearch.checkpoints.tensors import Content, StoredTensor, overlaps
from weightsearch.errors import WeightsearchError

PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "ema_model.",
    "net.",
    "network.",
)  # stripped where all tensors share them
# Parts of packed quantised weights, which stand beside integers: GPTQ, AWQ, bitsandbytes, compressed-tensors.
PACKED = re.compile(
    r"(^|\.)(qweight|qzeros|g_idx|weight_packed|_packed_params|SCB|weight_format|B_q|S_group)(\.|$)"
    r"|\.weight\.(absmax|quant_map|nested_absmax|quant_state\.)|weight_scale(_inv)?$"
)

# What unpacks a matrix of integers beside it: HQQ, AQLM, QuIP#, quanto and whoever else packs.
SCALES = frozenset(
    ("scale", "scales", "_scale", "zero", "zeros", "zero_point", "zero_points", "absmax", "codebooks", "SU", "SV")
)


def read_tensors(path: str | Path, weights: str | None = None) -> NamedTensors:
    """The network of a file as named arrays, in PyTorch's layout, whatever format it has.

    Args:
        weights: the key of the network, where the file holds several (`ema`, `model.generator`); None to choose.

    Raises `WeightsearchError`, one line, as `read_checkpoint` does. NaN and infinite values are let through.

    Example:
        >>> read_tensors("model.onnx").arrays["0.weight"].shape
        (64, 64)
    """
    with one_line(str(path)):
        network = find_tensors(read_content(as_path(path)), weights)
        return NamedTensors(
            {name: array_of(tensor) for name, tensor in network.tensors.items()},
            {name: _dtype_name(tensor) for name, tensor in network.tensors.items()},
            network.metadata,
            network.tied,
            network.skipped,
            network.notes,
            network.ordered,
        )


@dataclass(frozen=True)
class NamedTensors:
    """A network as its file holds it: float arrays by name, each in its own shape and type, in the order of layers.

    Names have lost what all shared (`module.`); reparametrised layers are computed; of tied tensors the first is kept.
    """

    arrays: dict[str, np.ndarray]  # of bfloat16 and float8, which NumPy lacks, as float32
    dtypes: dict[str, str]  # as stored, by torch's names
    metadata: dict[str, Any]
    tied: dict[str, str]  # a name that was left out -> the name of the same tensor
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    ordered: bool  # False: the file forgot the order of the layers, and names were sorted


@contextlib.contextmanager
def one_line(source: str) -> Iterator[None]:
    """The boundary: whatever a stranger's file provokes in the parsers leaves here as one line.

    Parsers fail in too many ways to list them (struct.error, MemoryError, RecursionError, RuntimeError, …), and
    warn about what they read; neither is the user's doing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except WeightsearchError as error:
        reason = str(error).removeprefix(f"{source}: ")  # a store's errors name the address themselves
        raise WeightsearchError(f"{shown(source)}: {reason}") from error
    except OSError as error:
        raise WeightsearchError(f"{shown(source)}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise WeightsearchError(f"{shown(source)}: needs more memory than there is; save only the weights") from error
    except Exception as error:
        reason = shown(next(iter(str(error).splitlines()), "")) or "no reason given"
        raise WeightsearchError(
            f"{shown(source)}: damaged or no checkpoint ({type(error).__name__}: {reason}); copy or save it again"
        ) from error


def find_tensors(content: Content, weights: str | None = None) -> Network:
    """The network's tensors under their final names, checked but unread, and all that stands beside them."""
    if content.form is not None and (plan := plan_of(content.form, weights)) is not None:
        return plan.network_of(content.tree)
    network = find_network(content.tree, weights)
    named: dict[str, Any] = {}
    metadata = PlainValues()
    skipped: list[str] = []
    steps: list[Kept | str] = []
    for depth, level in enumerate(network.levels):
        for key, value in level.items():
            mapping = as_mapping(value)
            if mapping is not None and any(mapping is inner or value is inner for inner in network.levels[1:]):
                continue
            name = key if isinstance(key, str) else repr(key) if isinstance(key, int) else f"a {type(key).__name__}"
            value = plain(value)
            if level is network.levels[-1] and is_tensor(value):
                named[name] = value
            elif mapping is not None and candidate(key, value) is not None:
                skipped.append(f"{shown(name)}: other weights")
                steps.append(skipped[-1])
            else:
                steps.append(Kept(depth, key, name))
                if (reason := metadata.keep(name, value)) is not None:
                    skipped.append(f"{shown(name)}: {reason}")
    for level in network.levels:
        for monitor, score in lightning_scores(level.get("callbacks")):
            metadata.keep(monitor, score)
    _refuse_packed(named)
    tensors: dict[str, Any] = {}
    of_values = len(skipped)
    losses = without_losses(list(named))
    for name, value in named.items():
        reason = losses.get(name) or _set_aside(name, value)
        if reason is None:
            tensors[name.replace("_orig_mod.", "")] = value
        else:
            skipped.append(f"{shown(name)}: {reason}")
    _refuse_unfilled(named)
    if not tensors:
        listed = ", ".join(shown(str(key)) for key in list(network.levels[-1])[:8] if isinstance(key, str)) or "nothing"
        raise WeightsearchError(f"no weights among its tensors (found {listed}); save a state dict")
    notes = [*network.notes, *content.notes, *_of_globals(content.globals)]
    if any(".lora_" in name for name in tensors):
        tensors = _adapter(tensors, content.adapter, notes)
    tensors = _one_of_twins(tensors, notes)
    values_read: list[Any] = []

    def read(value: Any) -> np.ndarray:
        values_read.append(value)
        return array_of(value)

    tensors, folds = fold(tensors, read)
    tensors, tied = without_ties(tensors, _place, read)
    if tied:
        notes.append(f"{len(tied):,} tied tensors count once, such as {next(iter(tied))} = {next(iter(tied.values()))}")
    prefix = _common_prefix(list(tensors))
    tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    tied = {name.removeprefix(prefix): kept.removeprefix(prefix) for name, kept in tied.items()}
    counters = {str(name): value for name, value in named.items() if str(name).endswith("num_batches_tracked")}
    result = Network(tensors, metadata.values, tied, tuple(skipped), (*notes, *folds), content.ordered, counters)
    if content.form is not None and not values_read and not any(".lora_" in name for name in named):
        remember((content.form, weights), content.tree, network.levels, (*steps, *skipped[of_values:]), result)
    return result


def _of_globals(names: Sequence[str]) -> list[str]:
    """What to say of the globals that a pickle names beside tensors and plain values."""
    dangerous = [name for name in names if is_dangerous(name)]
    others = [name for name in names if not is_dangerous(name) and not _is_common(name)]
    notes = []
    if dangerous:
        notes.append(
            f"its pickle would call {', '.join(map(shown, dangerous[:3]))}: whoever loads it with Python runs that; "
            "here nothing was called"
        )
    if others:
        more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
        notes.append(f"its pickle names {', '.join(map(shown, others[:3]))}{more}; none was imported or called")
    return notes


_COMMON_MODULES = frozenset(
    ("torch", "torch._utils", "torch.storage", "torch._tensor", "collections", "_codecs", "pathlib")
)
_COMMON = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("set", "frozenset", "list", "dict", "int", "float", "str", "bool", "complex", "bytearray")
) | {"argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "torch.nn.parameter.Parameter"}


def _is_common(name: str) -> bool:
    """Whether a global means a plain value or a tensor, so that nothing need be said of it."""
    module = name.rpartition(".")[0]
    return module in _COMMON_MODULES or module.partition(".")[0] == "numpy" or name in _COMMON


def _refuse_packed(named: Mapping[str, Any]) -> None:
    """Quantised weights are packed into integers beside scales, of which no network can be made."""
    integers = {  # modules with a matrix of integers
        name.rpartition(".")[0]
        for name, value in named.items()
        if len(value.shape) > 1 and _dtype_name(value).startswith(("int", "uint"))
    }
    for name in named:
        module, _, leaf = name.rpartition(".")
        if PACKED.search(name) or (leaf in SCALES and module in integers):
            raise WeightsearchError(
                f"tensor '{shown(name)}' belongs to packed quantised weights (GPTQ, AWQ, bitsandbytes or the like); "
                "give the network in an ordinary float type"
            )


def _refuse_unfilled(named: Mapping[str, Any]) -> None:
    """Where most weights have no values they lie elsewhere, as DeepSpeed's ZeRO-3 leaves them."""
    weights = [value for name, value in named.items() if name.endswith("weight")]
    empty = sum(0 in value.shape for value in weights)
    if empty > 1 and 2 * empty > len(weights):
        raise WeightsearchError(
            f"{empty:,} of {len(weights):,} weights are empty placeholders, as ZeRO-3 leaves them; their values are in "
            "its partitions: merge them with DeepSpeed's zero_to_fp32.py"
        )


def _adapter(tensors: dict[str, Any], config: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any]:
    """A LoRA adapter as the changes that it makes; raises WeightsearchError for one within a whole network."""
    whole = next((name for name in tensors if ".base_layer." in name), None)
    if whole is not None:
        raise WeightsearchError(f"tensor '{shown(whole)}' has a LoRA adapter beside it; merge it into its network")
    config = config or {}
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if not isinstance(alpha, int | float) or not isinstance(rank, int | float) or rank <= 0:
        notes.append("it is a LoRA adapter without its adapter_config.json: its scale is unknown and taken as 1")
        alpha = rank = 1

    def own(pattern: str, module: str, default: float) -> float:
        named = config.get(pattern)
        name = module.rpartition("base_model.model.")[2]
        values = named.items() if isinstance(named, Mapping) else ()
        value = next((value for end, value in values if re.search(rf"(^|\.){re.escape(str(end))}$", name)), default)
        return float(value) if isinstance(value, int | float) and value > 0 else float(default)

    def scale(module: str) -> float:
        rank_ = own("rank_pattern", module, rank)
        return own("alpha_pattern", module, alpha) / (rank_**0.5 if config.get("use_rslora") is True else rank_)

    notes.append("it is a LoRA adapter: its layers are the changes B·A that it makes to its network's")
    return fold_adapter(tensors, scale, array_of, MAX_FILE_BYTES // 4)


def _one_of_twins(tensors: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Of a network and its moving average in one state dict (`online_model.`, `ema_model.`), the network."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = tuple(value.shape)
    averaged = [head for head in groups if re.search(r"(^|_)(ema|swa|averaged?|shadow|teacher)(_|$)", head.lower())]
    for head in averaged:
        if any(other not in averaged and groups[other] == groups[head] for other in groups):
            notes.append(f"of two alike parts the moving average, `{head}`, was left out")
            tensors = {name: value for name, value in tensors.items() if name.partition(".")[0] != head}
    return tensors


def _set_aside(name: str, value: Any) -> str | None:
    """Why a tensor of the state dict is no weight, or None. Raises for what cannot be read safely."""
    if not name or not name.isprintable() or len(name) > 1000:
        raise WeightsearchError(f"tensor '{shown(name)}' has no printable name; rename it")
    if isinstance(value, StoredTensor):
        problem = _stored_problem(value)
    else:
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
    return "is expanded: its values share memory" if overlaps(array.shape, steps) else None


def _stored_problem(tensor: StoredTensor) -> str | None:
    if tensor.problem is not None:
        return tensor.problem
    if tensor.dtype.startswith("complex"):
        return f"is complex ({tensor.dtype})"
    return "is expanded: its values share memory" if overlaps(tensor.shape, tensor.steps) else None


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
    if tensor.is_complex():
        return f"is complex ({tensor.dtype})"
    if tensor.numel() == 0:
        return None
    if overlaps(tensor.shape, tensor.stride()):
        return "is expanded: its values share memory"
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    if (last + 1) * tensor.itemsize > tensor.untyped_storage().nbytes():
        return "claims more values than its storage holds"
    return None


def stored_values(value: Any) -> tuple[int, int]:
    """Which memory holds a tensor's values, and how many it holds."""
    if isinstance(value, np.ndarray):
        return id(value), value.size
    if isinstance(value, StoredTensor):
        return id(value.storage), value.storage.nbytes // value.item_bytes if value.storage else 0
    storage = value.untyped_storage()
    return storage.data_ptr(), storage.nbytes() // value.itemsize


def _place(value: Any) -> Any:
    """Equal for tensors that are one."""
    if isinstance(value, np.ndarray):
        return id(value)
    if isinstance(value, StoredTensor):
        return value.place
    return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype


def _dtype_name(value: Any) -> str:
    return value.dtype if isinstance(value, StoredTensor) else str(value.dtype).removeprefix("torch.")


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


def array_of(value: Any) -> np.ndarray:
    """A tensor's values; bfloat16 and float8, which NumPy lacks, as float32."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, StoredTensor):
        return value.array()
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() and value.itemsize <= 2 else value).numpy()
