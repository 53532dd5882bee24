"""Which of two related checkpoints was made from the other, or was trained further, where their numbers tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from weightsearch.relations.facts import FLOAT32, Fact
from weightsearch.relations.kinds import Direction, State
from weightsearch.relations.roles import Role
from weightsearch.relations.signature import TensorSignature

MARGIN = 0.005  # of the logarithms that signs of training must differ by before they are believed
GROWTH = 0.5  # see `trained_further`


def of_precision(same: Sequence[Fact]) -> Direction | None:
    """From the one with more precise numbers to the one whose low bits are empty."""
    rounded = [fact for fact in same if fact.state is State.PRECISION]
    if not rounded:
        return None
    ways = {_finer(fact) for fact in rounded}
    return ways.pop() if len(ways) == 1 else None


def _finer(fact: Fact) -> Direction | None:
    a, b = fact.pair.a.hashes, fact.pair.b.hashes
    if b.exact in (a.float16, a.bfloat16) and a.exact != b.exact:
        return Direction.A_TO_B
    if a.exact in (b.float16, b.bfloat16) and a.exact != b.exact:
        return Direction.B_TO_A
    if min(fact.precision_a, fact.precision_b) <= FLOAT32 < max(fact.precision_a, fact.precision_b):
        return Direction.A_TO_B if fact.precision_b > fact.precision_a else Direction.B_TO_A
    return None


def of_noise(changed: Sequence[Fact]) -> Direction | None:
    """Noise adds its own variance: the longer of the two, where all tensors agree beyond chance."""
    signs = []
    for fact in changed:
        a, b = fact.pair.a.norm**2, fact.pair.b.norm**2
        noise = fact.spread * math.sqrt(fact.numbers)
        chance = 2 * noise * min(fact.pair.a.norm, fact.pair.b.norm) / math.sqrt(fact.numbers)
        signs.append((b - a) / chance if chance > 0 else 0.0)
    total = sum(signs) / math.sqrt(len(signs)) if signs else 0.0
    if abs(total) < 4:
        return None
    return Direction.A_TO_B if total > 0 else Direction.B_TO_A


def trained_further(facts: Sequence[Fact], new_head: bool) -> tuple[str, Direction | None]:
    """What tells which of two relatives was trained further, and that one as `A_TO_B` for b; None where signs disagree.

    A batch norm's counter tells it; else, where all agree, norms, kurtosis and largest values, which training raises,
    and that each tensor grew by at least half of the square of what it moved (a step that starts at a is about
    orthogonal to a). Two children of one parent cannot be told from a parent and its child by this.
    """
    if new_head:
        return "", None
    counters = [fact for fact in facts if fact.pair.a.role is Role.COUNTER and fact.pair.b.role is Role.COUNTER]
    steps = {np.sign(fact.pair.b.norm - fact.pair.a.norm) for fact in counters}
    if len(steps) == 1 and (step := steps.pop()) != 0:
        return "a batch norm's counter of steps", Direction.A_TO_B if step > 0 else Direction.B_TO_A
    moved = [fact for fact in facts if fact.is_weight and fact.state is State.MOVED and fact.numbers >= 64]
    moved = [fact for fact in moved if fact.pair.a.norm > 0 and fact.pair.b.norm > 0 and fact.spread > 0]
    if len(moved) < 2:
        return "", None
    growth = [(f.pair.b.norm**2 - f.pair.a.norm**2) / (f.spread**2 * f.numbers) for f in moved]
    signs = [
        _mean_log(moved, lambda tensor: tensor.norm),
        _mean_log(moved, lambda tensor: max(tensor.kurtosis, 1.0)),
        _mean_log(moved, lambda tensor: tensor.largest),
    ]
    by = "norms, kurtosis and largest values"
    if min(signs) > MARGIN and min(growth) > GROWTH:
        return by, Direction.A_TO_B
    if max(signs) < -MARGIN and max(growth) < -GROWTH:
        return by, Direction.B_TO_A
    return "", None


def _mean_log(moved: Sequence[Fact], value: Callable[[TensorSignature], float]) -> float:
    return float(np.mean([math.log(value(fact.pair.b) / value(fact.pair.a)) for fact in moved]))
