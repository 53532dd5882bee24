"""How well predictions follow the truth. NumPy in, floats out."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """Scores of predicted against true accuracies, both in [0, 1].

    `r2` is 1 - sum of squared errors / sum of squares about the true mean (ComVeX paper, section 5);
    `tau` is Kendall's rank correlation (tau-b); `mae` the mean absolute error; `mse` the test loss.
    """

    r2: float
    tau: float
    mae: float
    mse: float
    count: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def score(predicted: np.ndarray, truth: np.ndarray) -> Prediction:
    """Scores `predicted (n,)` against `truth (n,)`. R² is NaN where the truth is constant."""
    from scipy.stats import kendalltau

    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    error = predicted - truth
    spread = np.sum((truth - truth.mean()) ** 2)
    r2 = 1.0 - np.sum(error**2) / spread if spread > 0 else float("nan")
    tau = kendalltau(predicted, truth).statistic
    return Prediction(float(r2), float(tau), float(np.abs(error).mean()), float((error**2).mean()), len(truth))
