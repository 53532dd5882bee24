"""The words for what two checkpoints are to each other, and the record of one comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """Most specific first: where several hold, the first of them leads."""

    IDENTICAL = "identical"  # the same bytes
    SAME_WEIGHTS = "same-weights"  # other format, names, layout or precision
    SAME_FUNCTION = "same-function"  # hidden units permuted or rescaled, gates re-ordered
    QUANTISED = "quantised"
    PRUNED = "pruned"
    NOISED = "noised"
    LORA_MERGED = "lora-merged"
    NEW_HEAD = "new-head"
    MERGE = "merge"
    CONTAINS = "contains"
    RELATIVE = "relative"
    PERMUTED_RELATIVE = "permuted-relative"
    SHARES = "shares"  # a component, no more
    INDEPENDENT = "independent"  # the same shapes, trained apart
    UNRELATED = "unrelated"

    def to(self, source: str) -> str:
        """What a checkpoint of this relation is to `source`, for people.

        Example:
            >>> Kind.SAME_WEIGHTS.to('base.pt')
            'the same weights as base.pt'
        """
        words = {Kind.IDENTICAL: "identical to", Kind.SAME_WEIGHTS: "the same weights as"}
        words |= {Kind.SAME_FUNCTION: "the same function as", Kind.CONTAINS: "containing, or contained in,"}
        return f"{words.get(self, f'{self} of')} {source}"

    @property
    def is_copy(self) -> bool:
        return self in (Kind.IDENTICAL, Kind.SAME_WEIGHTS)

    @property
    def is_related(self) -> bool:
        """Whether one was made from the other, or both from a third; a shared component alone is not enough."""
        return self not in (Kind.SHARES, Kind.INDEPENDENT, Kind.UNRELATED)


class Direction(StrEnum):
    A_TO_B = "a-to-b"
    B_TO_A = "b-to-a"

    def turned(self) -> Direction:
        return Direction.B_TO_A if self is Direction.A_TO_B else Direction.A_TO_B


class Certainty(StrEnum):
    """`certain`: equal values; `very likely`: never wrong where the truth was known; `likely`: seldom; `unknown`."""

    CERTAIN = "certain"
    VERY_LIKELY = "very likely"
    LIKELY = "likely"
    UNKNOWN = "unknown"


class State(StrEnum):
    """What became of one tensor."""

    UNTOUCHED = "untouched"
    PRECISION = "other precision"
    LAYOUT = "other layout"
    REORDERED = "re-ordered"
    MOVED = "moved"
    QUANTISED = "quantised"
    PRUNED = "pruned"
    LOW_RANK = "low rank"
    RESCALED = "rescaled"
    DIFFERENT = "different"  # nothing in common in place
    ONLY_A = "only in a"
    ONLY_B = "only in b"

    @property
    def is_same(self) -> bool:
        return self in (State.UNTOUCHED, State.PRECISION, State.LAYOUT)


@dataclass(frozen=True)
class LayerChange:
    """One tensor in both checkpoints. Shares in [0, 1]; `difference` is ‖b − a‖ / ‖a‖; None where not measured."""

    a: str | None
    b: str | None
    shape: tuple[int, ...]
    state: State
    detail: str = ""
    equal: float | None = None
    cosine: float | None = None
    difference: float | None = None
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        numbers = {
            name: None if (value := getattr(self, name)) is None else round(value, 6)
            for name in ("equal", "cosine", "difference", "score")
        }
        text = {"a": self.a, "b": self.b, "shape": list(self.shape), "state": str(self.state), "detail": self.detail}
        return {**text, **numbers}


@dataclass(frozen=True)
class Comparison:
    """What `b` is to `a`: the relation that leads, the others that hold as well, and why.

    `summary` is one line for people; `unseen` says what kind of relation could not have been seen.

    Example:
        >>> answer = diff('index/examples/good.pt', 'index/examples/bad.pt')
        >>> str(answer.relation), answer.layers[0].shape
        ('independent', (16, 1, 3, 3))
    """

    relation: Kind
    also: tuple[Kind, ...]
    direction: Direction | None
    certainty: Certainty
    summary: str
    evidence: dict[str, Any] = field(default_factory=dict)
    layers: tuple[LayerChange, ...] = ()
    unseen: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As `diff --json` prints it."""
        return {
            "relation": str(self.relation),
            "also": [str(kind) for kind in self.also],
            "direction": None if self.direction is None else str(self.direction),
            "certainty": str(self.certainty),
            "summary": self.summary,
            "evidence": self.evidence,
            "layers": [layer.to_dict() for layer in self.layers],
            "unseen": self.unseen,
        }
