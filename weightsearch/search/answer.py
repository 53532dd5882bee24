"""What an index says of one network: the data, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightsearch.files import plain
from weightsearch.search import wording
from weightsearch.search.answer_data import SCHEMA, AnswerData, Forecast, Novelty


@dataclass(frozen=True)
class Answer(AnswerData):
    """What the index says of one network. Accuracies lie in [0, 1]; `percentile`, in [0, 100], is of the index.

    `verdict` is the sentence that comes first, `label` its one word: good, middling, bad, early (not done training,
    and runs like it got better), unlike (anything known: there is neither interval nor percentile) or unknown (nothing
    to judge by, or what there is contradicts itself: prediction and neighbours, or weights and the file's own word).

    An index that was trained with another `target` predicts that, under the same names. Prints as text, and as tables
    in a notebook.

    Example:
        >>> answer = query('index', 'index/examples/good.pt', k=2)
        >>> [neighbour.distance < 0.1 for neighbour in answer.neighbours]
        [True, True]
    """

    @property
    def predicted_accuracy(self) -> float:
        """`predicted`, as version 0.1.0 named it."""
        return self.predicted

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them: what is not known is None."""
        values: dict[str, Any] = plain(vars(self))
        return {**values, "predicted_accuracy": values["predicted"]}  # its name until it could be a loss

    def __str__(self) -> str:
        return wording.as_text(self)

    def _repr_html_(self) -> str:
        return wording.as_html(self)


__all__ = ["SCHEMA", "Answer", "Forecast", "Novelty"]
