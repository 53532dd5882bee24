"""What `train` made, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from weightsearch.metrics import Prediction
from weightsearch.training.adapt import Adapted
from weightsearch.types import Method, Target
from weightsearch.uncertainty.calibration import Calibration


@dataclass(frozen=True)
class Example:
    """A checkpoint kept out of the index, with its whole run, to query with."""

    path: Path
    run: int
    epoch: float
    test_accuracy: float


@dataclass(frozen=True)
class TrainSummary:
    """What `train` made: scores on validation runs of every method tried, and on test runs of the one kept.

    Example:
        >>> summary = train('zoo', 'made', method='statistics', quiet=True)
        >>> summary.method, sorted(summary.runs)
        (<Method.STATISTICS: 'statistics'>, ['test', 'train', 'validation'])
    """

    index: Path
    zoo: Path
    method: Method
    validation: dict[Method, Prediction]
    test: Prediction
    runs: dict[str, int]
    checkpoints: int
    examples: tuple[Example, ...]
    seconds: dict[Method, float]
    split: str = "by run"  # the protocol, for people
    target: Target = field(default_factory=Target)
    calibration: Calibration | None = None


@dataclass(frozen=True)
class UniversalSummary:
    """What `train` made of a zoo of many architectures, or of few runs, with the encoder of all architectures.

    `test` are the encoder's scores on runs held out, where it was fitted on the zoo itself (`--from-scratch`).
    """

    index: Path
    zoo: Path
    architectures: int
    runs: int
    checkpoints: int
    flagged: float  # share of the checkpoints that are of no kind that the encoder knows
    damaged: int  # checkpoints whose weights look shuffled, noised or partly random
    adapted: Adapted
    seconds: float
    test: Prediction | None = None
    examples: tuple[Example, ...] = ()
