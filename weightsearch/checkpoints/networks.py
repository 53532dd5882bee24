"""Where a network lies in what a file holds: which mapping of named tensors it is, and what stands beside it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import Placeholder, shown
from weightsearch.checkpoints.pickle_values import plain
from weightsearch.checkpoints.tensors import StoredTensor
from weightsearch.errors import WeightsearchError

# Keys that weights are nested under, the surest first: what was trained before its moving average.
RAW = (
    *("state_dict", "model_state_dict", "model", "network", "module", "net", "model_state", "net_state_dict"),
    *("network_state_dict", "model_weights", "weights", "params", "parameters", "generator", "online_model", "student"),
    *("policy", "actor", "state"),
)
AVERAGED = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "params_ema", "ema", "swa_model", "teacher"),
    *("generator_ema", "g_ema", "shadow"),
)
WRAPPERS = (*RAW, *AVERAGED)
# Tensors under these are a training's state or its results, and no network.
BESIDE = re.compile(
    r"(.*_)?(optim|optimizer|optimizers|optimizer_states?|sched|lr_schedulers?|schedulers?|scaler|amp|callbacks|loops"
    r"|rng|rng_states?|random_states?|metrics?|results?|history|stats|logs?|args|config|hparams|hyper_parameters)(_.*)?",
    re.IGNORECASE,
)
MAX_DEPTH = 8  # mappings within mappings on the way to the weights
MAX_MODULES = 100  # modules within modules
_LOSSES = re.compile(
    r"(criterion|loss|loss_fn|loss_func|loss_function|losses|metrics?|(train|val|valid|test)_[a-z0-9_]+)\."
)


# What people call data and results; a file in which all tensors are called so holds no network.
_DATA = re.compile(
    r"((train|test|val|valid)_?)?(x|y|data|images?|labels?|inputs?|targets?|features?|logits|preds?|predictions?|outputs?"
    r"|probs|probabilities|samples?|activations?|gradients?|mean|std)(_?(train|test|val|valid))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class NetworkPlace:
    """The network's tensors by name, the mappings that it was found through, and what to tell of the search."""

    tensors: Mapping[Any, Any]
    levels: Sequence[Mapping[Any, Any]]
    notes: tuple[str, ...] = field(default=())


def find_network(tree: Any, weights: str | None = None) -> NetworkPlace:
    """The one mapping of named float tensors that is the network.

    Args:
        weights: the key of the mapping to take, its levels joined by dots; None to choose.

    Raises:
        WeightsearchError: there is none, or several of equal right.
    """
    top = as_mapping(tree)
    if top is None:
        raise WeightsearchError(f"it holds a {_kind(tree)}, not a state dict; save model.state_dict()")
    if weights is not None:
        return _by_key(top, weights)
    levels: list[Mapping[Any, Any]] = [top]
    notes: list[str] = []
    while True:
        if len(levels) > MAX_DEPTH:
            raise WeightsearchError("its weights are nested too deeply, or in themselves; save model.state_dict()")
        level = levels[-1]
        inner = {key: value for key in level if (value := candidate(key, level[key])) is not None}
        wrappers = [key for key in WRAPPERS if key in inner]
        if wrappers:
            chosen: Any = wrappers[0]
        elif names := [key for key, value in level.items() if isinstance(key, str) and is_weight(value)]:
            if all(map(_DATA.fullmatch, names)):
                raise WeightsearchError(f"it holds data ({', '.join(names[:4])}), not a network's weights")
            return NetworkPlace(level, levels, tuple(notes))
        elif len(inner) == 1:
            (chosen,) = inner
        elif not inner:
            raise WeightsearchError(_none_found(tree, level))
        elif len(levels) > 1:  # parts of one network, under a key that means a network
            joined = {f"{key}.{name}": tensor for key, part in inner.items() for name, tensor in _flattened(part)}
            return NetworkPlace(joined, [*levels, joined], tuple(notes))
        else:
            raise WeightsearchError(
                f"it holds several networks ({', '.join(shown(str(key)) for key in inner)}); "
                "choose one with --weights KEY"
            )
        others = [shown(str(key)) for key in inner if key != chosen]
        if others:
            notes.append(f"the weights under `{chosen}` were taken; --weights KEY chooses another: {', '.join(others)}")
        levels.append(inner[chosen])


def _by_key(top: Mapping[Any, Any], weights: str) -> NetworkPlace:
    levels = [top]
    rest = weights
    while rest:
        level = levels[-1]
        names = {str(key): key for key in level}
        name = next((rest[:end] for end in _ends(rest) if rest[:end] in names), None)
        inner = None if name is None else as_mapping(level[names[name]])
        if name is None or inner is None:
            keys = ", ".join(shown(str(key)) for key in level if candidate(key, level[key]) is not None) or "none"
            raise WeightsearchError(f"--weights {shown(weights)}: it has no such weights; there are: {keys}")
        levels.append(inner)
        rest = rest[len(name) + 1 :]
    if not any(is_weight(value) for value in levels[-1].values()):
        deeper = find_network(levels[-1])
        return NetworkPlace(deeper.tensors, [*levels[:-1], *deeper.levels], deeper.notes)
    return NetworkPlace(levels[-1], levels)


def network_keys(tree: Any, depth: int = 0) -> Iterator[str]:
    """The keys that `--weights` can choose in what a file holds, the sure ones first."""
    mapping = as_mapping(tree)
    if mapping is None or depth > 2:
        return
    inner = {str(key): value for key in mapping if (value := candidate(key, mapping[key])) is not None}
    for key in sorted(inner, key=lambda key: WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS)):
        yield key
        yield from (f"{key}.{deeper}" for deeper in network_keys(inner[key], depth + 1))


def _ends(text: str) -> Iterator[int]:
    """Where a key of dots may end, the longest first."""
    yield len(text)
    yield from reversed([match.start() for match in re.finditer(r"\.", text)])


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """Whatever can hold named things: a mapping, a module's tensors, an object's attributes, a tuple of state dicts."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Placeholder):
        tensors = module_tensors(value)
        if tensors:
            return tensors
        value = plain(value)
        return value if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple) and any(_is_named(item) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return None


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, Placeholder) and _module_state(value) is not None)


def module_tensors(module: Placeholder) -> dict[str, Any]:
    """A whole module's parameters and buffers, named as its state dict would name them; {} where it is no module."""
    tensors: dict[str, Any] = {}
    _collect(module, "", tensors, set(), 0)
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, Any], seen: set[int], depth: int) -> None:
    state = _module_state(module)
    if state is None or id(module) in seen or depth > MAX_MODULES:
        return
    seen.add(id(module))
    if isinstance(state.get("_modules"), Mapping) or isinstance(state.get("_parameters"), Mapping):
        passing = state.get("_non_persistent_buffers_set")
        left_out = set(map(str, passing.members)) if isinstance(passing, Placeholder) else set()
        direct = [state.get("_parameters"), state.get("_buffers")]
        named = {name: value for part in direct if isinstance(part, Mapping) for name, value in part.items()}
        inner = state.get("_modules")
        modules = inner if isinstance(inner, Mapping) else {}
    else:  # TorchScript keeps all of a module's attributes together
        left_out, named, modules = set(), dict(state), state
    for name, value in named.items():
        if is_tensor(value) and name not in left_out:
            tensors[f"{prefix}{name}"] = value
    for name, value in modules.items():
        if isinstance(value, Placeholder):
            _collect(value, f"{prefix}{name}.", tensors, seen, depth + 1)
    seen.discard(id(module))


def _module_state(module: Any) -> Mapping[Any, Any] | None:
    if not isinstance(module, Placeholder):
        return None
    if isinstance(module.state, Mapping):
        is_script = module.name.startswith("__torch__.")
        return module.state if is_script or {"_modules", "_parameters"} & set(map(str, module.state)) else None
    body = module.arguments[0] if isinstance(module.arguments, tuple) and module.arguments else None
    return body if isinstance(body, Mapping) and "_modules" in body else None  # a graph module of torch.fx


def candidate(key: Any, value: Any) -> Mapping[Any, Any] | None:
    """The value as a mapping if it may be the network, or hold it."""
    if isinstance(key, str) and BESIDE.fullmatch(key) and key not in WRAPPERS:
        return None
    mapping = as_mapping(value) if isinstance(value, Mapping | Placeholder | list | tuple) else None
    if mapping is None or "param_groups" in mapping:  # an optimizer's state
        return None
    return mapping if _holds_weights(mapping, 0) else None


def _holds_weights(mapping: Mapping[Any, Any], depth: int) -> bool:
    if depth > MAX_DEPTH or "param_groups" in mapping:
        return False
    if any(isinstance(key, str) and is_weight(value) for key, value in mapping.items()):
        return True
    for key, value in mapping.items():
        if isinstance(key, str) and BESIDE.fullmatch(key) and key not in WRAPPERS:
            continue
        inner = as_mapping(value) if isinstance(value, Mapping | Placeholder) else None
        # A mapping within itself holds what it holds.
        if inner is not None and (inner is mapping or (isinstance(key, str) and _holds_weights(inner, depth + 1))):
            return True
    return False


def _flattened(mapping: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        inner = as_mapping(value) if isinstance(value, Mapping | Placeholder) else None
        if is_tensor(value):
            yield str(key), value
        elif inner is not None and depth < MAX_DEPTH:
            yield from ((f"{key}.{name}", tensor) for name, tensor in _flattened(inner, depth + 1))


def is_tensor(value: Any) -> bool:
    """Whether it is an array or a torch tensor. torch is not imported for it: without torch there is no tensor."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray | StoredTensor) or (torch is not None and isinstance(value, torch.Tensor))


def is_weight(value: Any) -> bool:
    """Whether a value may be a weight: a tensor of one dimension or more, unless of numbers that only count."""
    if isinstance(value, Placeholder) and value.name.startswith("numpy."):
        value = plain(value)
    return is_tensor(value) and len(value.shape) > 0


def _kind(value: Any) -> str:
    if is_tensor(value):
        return "single tensor without a name"
    if isinstance(value, list | tuple) and any(map(is_tensor, value)):
        return f"{type(value).__name__} of tensors without names"
    return value.name if isinstance(value, Placeholder) else type(value).__name__


def _none_found(tree: Any, level: Mapping[Any, Any]) -> str:
    if "param_groups" in level:
        return "it is an optimizer's state, not a network's weights; give the checkpoint beside it"
    if any(map(is_weight, level.values())):
        return "its tensors have numbers instead of names; save model.state_dict()"
    parts = [
        shown(str(key)) + (f" ({shown(repr(value))})" if isinstance(value, Placeholder) else "")
        for key, value in list(level.items())[:8]
        if isinstance(key, str)
    ]
    held = ", ".join(parts) or (shown(repr(tree)) if isinstance(tree, Placeholder) else "nothing")
    return f"no weights at its top or under {', '.join(RAW[:6])}, … (found {held}); save a state dict"


def without_losses(names: Sequence[str]) -> dict[str, str]:
    """Tensors of a criterion or a metric beside a model, and why they are left out; {} where there is nothing else."""
    losses = {name: "of a loss or metric, not of the network" for name in names if _LOSSES.match(name)}
    return losses if len(losses) < len(names) else {}


def lightning_scores(callbacks: Any) -> Iterator[tuple[str, Any]]:
    """The metric that each of Lightning's ModelCheckpoint callbacks watches, at the moment of saving."""
    for key, callback in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if str(key).startswith("ModelCheckpoint") and isinstance(callback, Mapping):
            monitor, score = callback.get("monitor"), callback.get("current_score")
            if isinstance(monitor, str) and score is not None:
                yield monitor, score
