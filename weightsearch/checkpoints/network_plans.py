"""Where a network was found in what a file holds, for other files of the same form: they differ in plain values alone.

A sweep's files are of one form. What `named_tensors.find_tensors` looks for in the first of them (wrappers, prefixes,
losses, ties) it would find at the same place in each: only the plain values beside the weights are read anew.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from weightsearch.checkpoints.networks import lightning_scores
from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.pickle_values import plain
from weightsearch.checkpoints.plain_values import PlainValues

PLANS = 64  # that are kept; the oldest make room


@dataclass(frozen=True)
class Network:
    """The same with its tensors unread: arrays, torch tensors or `StoredTensor`s."""

    tensors: dict[str, Any]
    metadata: dict[str, Any]
    tied: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ordered: bool = True
    counters: dict[str, Any] = field(default_factory=dict)  # batch norms' counts of steps, by their names in the file


@dataclass(frozen=True)
class Kept:
    """A value beside the weights: in the mapping that is `depth` keys deep, by `key`, kept as `name`."""

    depth: int
    key: Any
    name: str


@dataclass(frozen=True)
class Plan:
    """Where the network was found in one content: it is there in all of the same form, which differ in plain values."""

    path: tuple[Any, ...]  # keys on the way to the mapping of tensors
    steps: tuple[Kept | str, ...]  # values to keep, and what to say was skipped, in order
    keys: dict[str, Any]  # of tensors, by final name
    counters: dict[str, Any]
    like: Network  # what it was, for all that the form decides

    def network_of(self, tree: Any) -> Network:
        levels = [tree]
        for key in self.path:
            levels.append(levels[-1][key])
        metadata = PlainValues()
        skipped: list[str] = []
        for step in self.steps:
            if isinstance(step, str):
                skipped.append(step)
            elif (reason := metadata.keep(step.name, plain(levels[step.depth][step.key]))) is not None:
                skipped.append(f"{shown(step.name)}: {reason}")
        for level in levels:
            for monitor, score in lightning_scores(level.get("callbacks")):
                metadata.keep(monitor, score)
        held = levels[-1]
        return replace(
            self.like,
            tensors={name: held[key] for name, key in self.keys.items()},
            metadata=metadata.values,
            skipped=tuple(skipped),
            counters={name: held[key] for name, key in self.counters.items()},
        )


_PLANS: dict[tuple[object, str | None], Plan] = {}
_LOCK = threading.Lock()


def plan_of(form: object, weights: str | None) -> Plan | None:
    """That of a form, and of the key of the network in files that hold several."""
    return _PLANS.get((form, weights))


def remember(
    key: tuple[object, str | None],
    tree: object,
    levels: Sequence[Mapping[Any, Any]],
    steps: tuple[Kept | str, ...],
    network: Network,
) -> None:
    """Keeps a plan where the network's tensors are items of a mapping that keys lead to."""
    if levels[0] is not tree:  # a mapping was made of it: of the items of a tuple, say
        return
    path = []
    for outer, inner in pairwise(levels):
        keys = [key for key, value in outer.items() if value is inner]
        if not keys:
            return
        path.append(keys[0])
    places = {id(value): key for key, value in levels[-1].items()}
    tensors, counters = network.tensors, network.counters
    if all(id(value) in places for value in (*tensors.values(), *counters.values())):
        tensor_keys, counter_keys = (
            {name: places[id(value)] for name, value in part.items()} for part in (tensors, counters)
        )
        like = replace(network, tensors={}, metadata={}, counters={})
        with _LOCK:
            while len(_PLANS) >= PLANS:
                del _PLANS[next(iter(_PLANS))]
            _PLANS[key] = Plan(tuple(path), steps, tensor_keys, counter_keys, like)
