"""Which rows are good and which bad: at or beyond thresholds, which are values or quantiles among the rows."""

from __future__ import annotations

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.index.database import Columns
from weightsearch.types import Target

GOOD, BAD = "q75", "q25"  # good are the top quarter, bad the bottom quarter


def grades_of(columns: Columns, target: Target, good: str | None, bad: str | None) -> np.ndarray:
    """1 where good, -1 where bad, else 0, `(n,)`: each row among those of its own dataset."""
    quality = target.quality(columns.values)
    grades = np.zeros(len(columns), np.int8)
    for dataset in distinct(columns.datasets):
        here = columns.datasets == dataset
        low, high = thresholds_among(target, columns.values[here], good, bad)
        with np.errstate(invalid="ignore"):
            grades[here & (quality >= target.quality(high))] = 1
            grades[here & (quality <= target.quality(low)) & (grades == 0)] = -1
    return grades


def thresholds_among(target: Target, values: np.ndarray, good: str | None, bad: str | None) -> tuple[float, float]:
    """As `IndexStore.thresholds`, of any rows' values."""
    quality = target.quality(values[~np.isnan(values)])

    def threshold(text: str, flag: str) -> float:
        share = text[1:] if text.startswith("q") else None
        try:
            number = float(text if share is None else share)
            if np.isnan(number) or (share is not None and not 0 <= number <= 100):
                raise ValueError
        except ValueError:
            raise UsageError(f"{flag} {text}: give a value such as 0.9, or a quantile from q0 to q100") from None
        if share is None:
            return number
        if not len(quality):
            return float("nan")
        place = number / 100 * (len(quality) - 1)
        below, above = int(place), min(int(place) + 1, len(quality) - 1)
        quality.partition([below, above])  # where sorting takes a second for ten million
        return float(target.quality(np.interp(place, [below, below + 1], [quality[below], quality[above]])))

    return threshold(bad or BAD, "--bad"), threshold(good or GOOD, "--good")


def distinct(values: np.ndarray) -> np.ndarray:
    """As np.unique, which imports numpy.ma (a tenth of what a question about an id takes) unless it counts as well."""
    if len(values) and (values == values[0]).all():
        return values[:1]
    return np.unique(values, return_counts=True)[0]
