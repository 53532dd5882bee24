"""From where on a row is good, and down from where bad: a value, or a quantile of the known ones."""

from __future__ import annotations

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.types import Target

GOOD, BAD = "q75", "q25"  # good are the top quarter, bad the bottom quarter


def thresholds_among(target: Target, values: np.ndarray, good: str | None, bad: str | None) -> tuple[float, float]:
    """As `IndexStore.thresholds`, of any rows' values."""
    quality = np.sort(target.quality(values[~np.isnan(values)]))

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
        return float(target.quality(np.interp(place, np.arange(len(quality)), quality)))

    return threshold(bad or BAD, "--bad"), threshold(good or GOOD, "--good")
