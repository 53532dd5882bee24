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
from weightsearch.types import Checkpoint, Neighbour, Target

DISAGREEMENT = 0.15  # prediction and neighbours further apart than this share of the range are not to be trusted


@dataclass(frozen=True)
class Answer:
    """What the index says of one network. Accuracies lie in [0, 1]; `percentile`, in [0, 100], is of the index.

    An index that was trained with another `target` predicts that, under the same names.
    """

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
    target: str = "test_accuracy"
    lower_is_better: bool = False

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
    quality = index.target.quality
    percentile = 100 * float(np.mean(quality(index.accuracies(fingerprint)) < quality(accuracy)))
    bad_threshold, good_threshold = index.thresholds(fingerprint)
    return Answer(
        path=checkpoint.source,
        architecture=checkpoint.architecture.describe(),
        fingerprint=fingerprint,
        predicted_accuracy=accuracy,
        percentile=percentile,
        stated_accuracy=_stated(checkpoint, index.target),
        neighbours=found.neighbours,
        good=found.good,
        bad=found.bad,
        good_threshold=good_threshold,
        bad_threshold=bad_threshold,
        verdict=_verdict(index, fingerprint, accuracy, percentile, found.neighbours),
        target=index.target.column,
        lower_is_better=index.target.lower_is_better,
    )


def _stated(checkpoint: Checkpoint, target: Target) -> float | None:
    short = {"test_accuracy": "test_acc"}.get(target.column, target.column)
    value = checkpoint.metadata.get(target.column, checkpoint.metadata.get(short))
    return float(value) if isinstance(value, int | float) else None


def _verdict(
    index: Index, fingerprint: str, predicted: float, percentile: float, neighbours: tuple[Neighbour, ...]
) -> str:
    """One sentence: what it probably is, and whether the neighbours agree."""
    quality = index.target.quality
    near = np.array([neighbour.value for neighbour in neighbours])
    bad, good = (quality(threshold) for threshold in index.thresholds(fingerprint))
    label = "good" if quality(predicted) >= good else "bad" if quality(predicted) <= bad else "middling"
    opening = (
        f"Probably {label}: predicted {index.target.label} {predicted:.3f} beats {percentile:.0f} % of the indexed "
        "checkpoints"
    )
    counts = f"{(quality(near) >= good).sum()} good, {(quality(near) <= bad).sum()} bad"
    nearest = f"its {len(near)} nearest average {near.mean():.3f} ({counts})"
    if len(near) == 1:
        nearest = f"its nearest has {near[0]:.3f}"
    span = 1.0 if index.target.is_accuracy else float(np.ptp(np.quantile(index.accuracies(fingerprint), [0.05, 0.95])))
    if abs(near.mean() - predicted) > DISAGREEMENT * span:
        return f"Unsure: {opening[0].lower()}{opening[1:]}, but {nearest}, so trust neither before testing it."
    return f"{opening}, and {nearest}."


__all__ = ["Answer", "query"]
