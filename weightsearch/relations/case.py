"""One comparison's facts, sorted by what they can prove, and the answer that is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsearch.relations import direction as directions
from weightsearch.relations.alignment import MOST_UNITS, Alignment
from weightsearch.relations.facts import FLOAT32, Fact, load, rescaled_distance
from weightsearch.relations.kinds import Certainty, Comparison, Kind, LayerChange, State
from weightsearch.relations.pairing import Pairing, best_axes
from weightsearch.relations.roles import HEAD, Role
from weightsearch.relations.signature import Signature, TensorSignature

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Limits:
    """The rules' thresholds, set on networks that no figure in the documentation comes from."""

    related: float = 5.0  # combined place score of relatives; independent trainings stay under it
    unrelated: float = 2.5  # place score under which a single tensor counts as new
    aligned: float = 0.75  # cosine after alignment of permuted relatives
    low_rank: float = 0.5  # rank over the most it could be
    white: float = 1.25  # largest singular value over white noise's
    more_zeros: float = 0.01  # share of values set to zero in a pruned copy
    rescaled: float = 1e-5  # distance after rescaling


LIMITS = Limits()


class Case:
    """Facts of tensors that pair up, and what is in one of the two only."""

    def __init__(
        self,
        a: Arrays,
        b: Arrays,
        signature_a: Signature,
        signature_b: Signature,
        pairing: Pairing,
        facts: list[Fact],
        limits: Limits,
        names: tuple[str, str],
    ) -> None:
        self.a, self.b, self.limits, self.names = a, b, limits, names
        self.signature_a, self.signature_b = signature_a, signature_b
        self.facts = facts
        self.weights = [fact for fact in facts if fact.is_weight]
        self.vectors = [fact for fact in facts if not fact.is_weight and fact.pair.a.role.is_parameter]
        self.same = [fact for fact in self.weights if fact.state.is_same]
        self.proof = [fact for fact in self.same if not fact.fixed]
        self.changed = [fact for fact in self.weights if not fact.state.is_same]
        self.only_a = [tensor for tensor in pairing.only_a if tensor.role.is_parameter]
        self.only_b = [tensor for tensor in pairing.only_b if tensor.role.is_parameter]
        self.repacked = self._take_repacked()
        self.certainty = Certainty.CERTAIN

    def _named(self, side: str) -> str:
        """What the summary calls `a` or `b`."""
        return self.names[side == "b"]

    def _are_heads(self, tensors: list[TensorSignature]) -> bool:
        """Whether tensors without a partner look like a head: few, small, or at the end."""
        weights = [t for t in tensors if t.role is Role.WEIGHT] or tensors
        signature = self.signature_a if weights[0] in self.signature_a.tensors else self.signature_b
        all_weights = signature.weights
        if len(weights) > max(1, len(all_weights) // 2):
            return False
        named = all(HEAD.search(t.name) for t in weights)
        at_end = len(weights) == 1 and bool(all_weights) and weights[0] == all_weights[-1]
        return named or at_end

    def _twins(self, fact: Fact, *, in_place: bool) -> bool:
        x, y = self._arrays(fact)
        if x.shape != y.shape:
            return False
        coarse = max(fact.precision_a, fact.precision_b)
        if coarse > FLOAT32 and not in_place:
            return False  # rounded values in another order are told from others by alignment only
        return rescaled_distance(x, y, in_place=in_place) < max(self.limits.rescaled, 0.6 * coarse)

    def _arrays(self, fact: Fact) -> tuple[np.ndarray, np.ndarray]:
        x, y = load(self.a, fact.pair.a.name), load(self.b, fact.pair.b.name)
        if x.shape != y.shape:
            axes, _ = best_axes(x, y)
            y = y if axes is None else y.transpose(axes)
        return x, y

    def _shape(self, fact: Fact) -> tuple[int, ...]:
        return tuple(size for size in fact.pair.a.shape if size != 1)

    def _same_shapes(self) -> bool:
        return bool(self.weights) and not self._left_weights()

    def _left_weights(self) -> list[TensorSignature]:
        return [tensor for tensor in (*self.only_a, *self.only_b) if tensor.role is Role.WEIGHT]

    def _few_left(self) -> bool:
        left = sum(tensor.numbers for tensor in self._left_weights())
        return left < 0.5 * sum(fact.numbers for fact in self.changed)

    def _left(self, tensors: list[TensorSignature]) -> list[TensorSignature]:
        return tensors

    def _take_repacked(self) -> bool:
        """Whether the parameters without a partner hold the same numbers on both sides, cut into tensors otherwise."""
        if not self.only_a or not self.only_b:
            return False
        if sum(t.numbers for t in self.only_a) != sum(t.numbers for t in self.only_b):
            return False
        left, right = values_of(self.only_a, self.a), values_of(self.only_b, self.b)
        if len(left) >= 8 and np.array_equal(np.sort(left), np.sort(right)):
            self.only_a, self.only_b = [], []
            return True
        return False

    def _how_same(self) -> str:
        ways = []
        if any(fact.state is State.PRECISION for fact in self.facts):
            kinds = sorted({fact.pair.a.dtype for fact in self.same} | {fact.pair.b.dtype for fact in self.same})
            ways.append(f"at another precision ({' and '.join(kinds)})")
        if any(fact.state is State.LAYOUT for fact in self.facts):
            ways.append("in another layout")
        if self.repacked:
            ways.append("cut into other tensors")
        if any(fact.pair.a.name != fact.pair.b.name for fact in self.facts):
            ways.append("under other names")
        return f" ({', '.join(ways)})" if ways else ""

    def _answer(
        self,
        relation: Kind,
        also: tuple[Kind, ...],
        certainty: Certainty,
        summary: str,
        more: dict[str, Any] | None = None,
    ) -> Comparison:
        total = max(self.signature_a.numbers, self.signature_b.numbers) or 1
        same = sum(fact.numbers for fact in (*self.same, *self.vectors) if fact.state.is_same)
        evidence: dict[str, Any] = {
            "tensors": len(self.facts),
            "tensors_identical": sum(fact.state.is_same for fact in self.facts),
            "share_identical": round(same / total, 6),
            "only_in_a": len(self.only_a),
            "only_in_b": len(self.only_b),
        }
        moved = [fact for fact in self.changed if not math.isnan(fact.cosine)]
        if moved:
            evidence["cosine_of_changed"] = round(mean_cosine(moved), 6)
        score = getattr(self, "score", math.nan)
        if not math.isnan(score):
            evidence["score"] = round(score, 2)
        alignment: Alignment | None = getattr(self, "alignment", None)
        if alignment is not None and not math.isnan(alignment.cosine):
            evidence["aligned_cosine"] = round(alignment.cosine, 4)
        evidence.update(more or {})
        way = None
        if relation in (Kind.SAME_WEIGHTS, Kind.CONTAINS, Kind.NEW_HEAD):
            way = directions.of_precision(self.same)
            if way is not None:
                evidence["direction_by"] = "low bits that are empty in one of them"
        layers = [fact.to_layer() for fact in self.facts]
        layers += [LayerChange(t.name, None, t.shape, State.ONLY_A) for t in self.only_a]
        layers += [LayerChange(None, t.name, t.shape, State.ONLY_B) for t in self.only_b]
        unseen = "" if relation.is_related else self._unseen()
        return Comparison(relation, also, way, certainty, summary, evidence, tuple(layers), unseen)

    def _unseen(self) -> str:
        words = ["distillation", "training on for so long that nothing is left in place"]
        if any(max(self._shape(fact)[:2], default=0) > MOST_UNITS for fact in self.changed):
            words.append(f"permuted layers of more than {MOST_UNITS:,} units")
        if not self._same_shapes():
            words.append("relatives whose shapes all changed")
        return "not seen by this comparison: " + ", ".join(words)


def names_of(facts: Sequence[Fact]) -> str:
    names = [fact.pair.b.name for fact in facts]
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def mean_cosine(facts: Sequence[Fact]) -> float:
    """Mean by numbers."""
    weighted = [(fact.cosine, fact.numbers) for fact in facts if not math.isnan(fact.cosine)]
    return sum(c * n for c, n in weighted) / sum(n for _, n in weighted) if weighted else math.nan


def values_of(tensors: Sequence[TensorSignature], arrays: Arrays) -> np.ndarray:
    parts = [load(arrays, tensor.name).ravel() for tensor in tensors]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
