"""One network's answer: what the index says of a checkpoint it may never have seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightsearch.checkpoints import read_checkpoint
from weightsearch.encoders import load_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.index import Index
from weightsearch.types import Checkpoint, Neighbour

DISAGREEMENT = 0.15  # prediction and neighbours further apart than this are not to be trusted


@dataclass(frozen=True)
class Answer:
    """What the index says of one network. Accuracies lie in [0, 1]; `percentile`, in [0, 100], is of the index."""

    path: str
    architecture: str
    fingerprint: str
    predicted_accuracy: float
    percentile: float
    stated_accuracy: float | None  # what the file itself says, where it does
    neighbours: tuple[Neighbour, ...]
    good: tuple[Neighbour, ...]
    bad: tuple[Neighbour, ...]
    good_threshold: float
    bad_threshold: float
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def query(index: Index | str | Path, model: Checkpoint | str | Path, k: int = 10) -> Answer:
    """The index's answer for `model`, a checkpoint file or one already read, with up to `k` rows in each list.

    Raises `WeightsearchError` for a file that cannot be read or an architecture that the index does not hold.
    """
    index = index if isinstance(index, Index) else Index.open(index)
    checkpoint = model if isinstance(model, Checkpoint) else read_checkpoint(model)
    fingerprint = checkpoint.architecture.fingerprint
    if fingerprint not in index.architectures:
        known = "; ".join(architecture.describe() for architecture in index.architectures.values())
        raise WeightsearchError(
            f"{checkpoint.source}: its architecture, {checkpoint.architecture.describe()}, is not in {index.path}, "
            f"which knows {known}; query an index that was trained on networks like it"
        )
    encoder = load_encoder(index.encoder_directory(fingerprint))
    embedding, predicted = encoder.embed(torch.from_numpy(checkpoint.weights[None]))
    found = index.search(fingerprint, embedding[0].numpy(), k)
    accuracy = float(predicted[0])
    percentile = 100 * float(np.mean(index.accuracies(fingerprint) < accuracy))
    bad_threshold, good_threshold = index.thresholds(fingerprint)
    return Answer(
        path=checkpoint.source,
        architecture=checkpoint.architecture.describe(),
        fingerprint=fingerprint,
        predicted_accuracy=accuracy,
        percentile=percentile,
        stated_accuracy=_stated(checkpoint),
        neighbours=found.neighbours,
        good=found.good,
        bad=found.bad,
        good_threshold=good_threshold,
        bad_threshold=bad_threshold,
        verdict=_verdict(accuracy, percentile, found.neighbours, bad_threshold, good_threshold),
    )


def _stated(checkpoint: Checkpoint) -> float | None:
    value = checkpoint.metadata.get("test_accuracy", checkpoint.metadata.get("test_acc"))
    return float(value) if isinstance(value, int | float) else None


def _verdict(accuracy: float, percentile: float, neighbours: tuple[Neighbour, ...], bad: float, good: float) -> str:
    """One sentence: what it probably is, and whether the neighbours agree."""
    near = np.array([neighbour.test_accuracy for neighbour in neighbours])
    label = "good" if accuracy >= good else "bad" if accuracy <= bad else "middling"
    opening = f"Probably {label}: predicted accuracy {accuracy:.3f} beats {percentile:.0f} % of the indexed checkpoints"
    nearest = (
        f"its {len(near)} nearest average {near.mean():.3f} ({(near >= good).sum()} good, {(near <= bad).sum()} bad)"
    )
    if len(near) == 1:
        nearest = f"its nearest has {near[0]:.3f}"
    if abs(near.mean() - accuracy) > DISAGREEMENT:
        return f"Unsure: {opening[0].lower()}{opening[1:]}, but {nearest}, so trust neither before testing it."
    return f"{opening}, and {nearest}."


__all__ = ["Answer", "query"]
