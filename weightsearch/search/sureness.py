"""How sure a prediction is: its interval, and whether the neighbours are of the same opinion."""

from __future__ import annotations

import numpy as np

from weightsearch.search.subject import Subject
from weightsearch.types import Target
from weightsearch.uncertainty.calibration import Calibration

DISAGREEMENT = 0.15  # prediction and neighbours further apart than this share of the range are not to be trusted


def interval_of(
    calibration: Calibration | None, subject: Subject
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """The interval, or a note why there is none."""
    if subject.split in ("train", "validation"):
        return None, (f"no interval: the encoder was fitted on this network's run ({subject.split} part)",)
    if calibration is None or calibration.interval is None:
        return None, ("no interval: the index was trained on too few runs to calibrate one",) if calibration else ()
    predicted = [subject.predicted, *subject.by_activation.values()]  # whichever its activation is
    low, high = calibration.interval.interval(np.array(predicted))
    return (float(low.min()), float(high.max())), ()


def agree(
    average: float, predicted: float, interval: tuple[float, float] | None, values: np.ndarray, target: Target
) -> bool:
    """Whether the neighbours are about as good as predicted; if not, neither is to be trusted."""
    span = 1.0 if target.is_accuracy else float(np.ptp(np.quantile(values, [0.05, 0.95])))
    within = interval is not None and interval[0] <= average <= interval[1]
    return within or abs(average - predicted) <= DISAGREEMENT * span
