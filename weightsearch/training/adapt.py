"""From what the shipped encoder says of a sweep, and the sweep's own labels, to predictions for this sweep.

Four candidates stand beside each other, and each counts by how well it foretells runs that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsearch.metrics import Prediction, score
from weightsearch.uncertainty.conformal import Conformal, calibrate

FOLDS = 12  # at most; with fewer runs each is left out alone
TREES = 60
PRIOR = 1.0  # how much the ridge holds on to the shipped prediction as it is, in labelled runs
FEWEST = 3  # labelled runs, below which the shipped prediction stays as it is
FEWEST_FOR_INTERVAL = 9
EDGE = 0.02  # logits are of shares at least so far from nought and one

SHIPPED, MEAN, RECIPE, RIDGE, BOTH = "shipped", "mean", "recipe", "ridge", "recipe+shipped"
CANDIDATES = (MEAN, RECIPE, RIDGE, BOTH)


@dataclass(frozen=True)
class Ridge:
    """logit of the accuracy's share above chance = intercept + slope × that of the shipped prediction."""

    intercept: float
    slope: float

    def predict(self, predicted: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """Shipped predictions `(n,)` and chance levels `(n,)` -> `(n,)`."""
        return from_logit(self.intercept + self.slope * to_logit(predicted, chance), chance)


@dataclass(frozen=True)
class Adapted:
    """Predictions for a sweep's n checkpoints.

    predicted: `(n,)`; of a labelled run from the other runs alone, so that its error is that of a new run.
    weights: each candidate's share, empty where there are too few labelled runs.
    scores: of each candidate, of the shipped prediction and of the whole, on the labelled checkpoints, leaving out a
        checkpoint's own run.
    interval: None where runs are too few.
    """

    predicted: np.ndarray
    weights: dict[str, float]
    scores: dict[str, Prediction]
    interval: Conformal | None
    ridge: Ridge
    mean: float
    labelled_runs: int

    @property
    def is_calibrated(self) -> bool:
        return bool(self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: what a query of a network that is not in the sweep needs, and what was measured."""
        return {
            "weights": self.weights,
            "intercept": self.ridge.intercept,
            "slope": self.ridge.slope,
            "mean": self.mean,
            "labelled_runs": self.labelled_runs,
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
        }


def calibrated(adaptation: dict[str, Any] | None, predicted: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Shipped predictions `(n,)` of networks outside a sweep, by what `Adapted.to_dict` kept of it.

    Their recipes are not at hand, so the two candidates that need none share the weight.
    """
    if not adaptation:
        return predicted
    ridge = Ridge(adaptation["intercept"], adaptation["slope"]).predict(predicted, chance)
    weights = adaptation["weights"]
    share = (weights[RIDGE] + weights[BOTH]) / max(1e-12, sum(weights.values()))
    return share * ridge + (1 - share) * adaptation["mean"]


def to_logit(values: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Accuracies -> logit of their share above chance."""
    share = np.clip((values - chance) / (1 - chance), EDGE, 1 - EDGE)
    return np.log(share / (1 - share))


def from_logit(logits: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The inverse of `to_logit`."""
    return chance + (1 - chance) / (1 + np.exp(-logits))


def adapt(
    predicted: np.ndarray,
    chance: np.ndarray,
    recipe: np.ndarray,
    values: np.ndarray,
    run: np.ndarray,
    *,
    seed: int = 0,
) -> Adapted:
    """Calibrate shipped predictions `(n,)` to the labelled ones among a sweep's n checkpoints.

    Args:
        chance: `(n,)` accuracy of a guess.
        recipe: `(n, F)` the recipes and epochs as numbers, NaN where unknown.
        values: `(n,)` true accuracies, NaN where unknown.
        run: `(n,)` each checkpoint's run.
    """
    labelled = np.isfinite(values)
    runs = np.unique(run[labelled])
    ridge = _ridge(predicted[labelled], chance[labelled], values[labelled], run[labelled])
    mean = float(values[labelled].mean()) if labelled.any() else float("nan")
    if len(runs) < FEWEST:
        scores = {SHIPPED: score(predicted[labelled], values[labelled])} if labelled.sum() > 1 else {}
        return Adapted(predicted, {}, scores, None, Ridge(0.0, 1.0), mean, len(runs))
    fit = _Fit(predicted, chance, np.nan_to_num(recipe, nan=-1.0), values, run, seed)
    left_out = np.full((len(CANDIDATES), len(values)), np.nan)  # predictions without the own run
    folds = np.random.default_rng(seed).permutation(runs)
    for part in np.array_split(folds, min(FOLDS, len(runs))):
        inside = labelled & ~np.isin(run, part)
        outside = labelled & np.isin(run, part)
        for i, name in enumerate(CANDIDATES):
            left_out[i, outside] = fit.candidate(name, inside)(outside)
    errors = _errors(left_out[:, labelled], values[labelled], run[labelled])
    shares = 1 / np.maximum(errors, 1e-6) ** 2
    shares /= shares.sum()
    together = np.full(len(values), np.nan)
    together[labelled] = shares @ left_out[:, labelled]
    for i, name in enumerate(CANDIDATES):
        if (~labelled).any():
            weighted = shares[i] * fit.candidate(name, labelled)(~labelled)
            together[~labelled] = weighted if i == 0 else together[~labelled] + weighted
    labels = values[labelled]
    scores = {SHIPPED: score(predicted[labelled], labels)}
    scores |= {name: score(left_out[i, labelled], labels) for i, name in enumerate(CANDIDATES)}
    scores["all"] = score(together[labelled], labels)
    interval = None
    if len(runs) >= FEWEST_FOR_INTERVAL:
        calibrated = calibrate(together[labelled], labels, run[labelled], low=0.0, high=1.0, seed=seed)
        interval = calibrated if np.isfinite(calibrated.width) else None
    return Adapted(
        np.clip(together, 0, 1), dict(zip(CANDIDATES, shares.tolist(), strict=True)), scores, interval, ridge, mean,
        len(runs),
    )  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    """A sweep's columns, from which candidates are fitted on some of its checkpoints."""

    predicted: np.ndarray
    chance: np.ndarray
    recipe: np.ndarray
    values: np.ndarray
    run: np.ndarray
    seed: int

    def candidate(self, name: str, inside: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Fitted on the checkpoints `inside (n,)`: a function from a mask `(n,)` to predictions of those."""
        if name == MEAN:
            mean = float(self.values[inside].mean())
            return lambda mask: np.full(int(mask.sum()), mean)
        if name == RIDGE:
            ridge = _ridge(self.predicted[inside], self.chance[inside], self.values[inside], self.run[inside])
            return lambda mask: ridge.predict(self.predicted[mask], self.chance[mask])
        features = self.recipe
        if name == BOTH:
            logits = to_logit(self.predicted, self.chance)[:, None]
            features = np.concatenate([features, np.repeat(logits, max(1, features.shape[1] // 2), axis=1)], 1)
        from sklearn.ensemble import RandomForestRegressor

        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.6, random_state=self.seed, n_jobs=1)
        forest.fit(features[inside], self.values[inside])
        return lambda mask: forest.predict(features[mask])


def _errors(left_out: np.ndarray, values: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Mean squared errors of predictions `(candidates, n)`, each run counting the same."""
    squares = (left_out - values) ** 2
    return np.mean([squares[:, run == one].mean(1) for one in np.unique(run)], axis=0)


def _ridge(predicted: np.ndarray, chance: np.ndarray, values: np.ndarray, run: np.ndarray) -> Ridge:
    """Least squares on logits, each run counting the same, held to a slope of one and an intercept of nought."""
    if not len(values):
        return Ridge(0.0, 1.0)
    x, y = to_logit(predicted, chance), to_logit(values, chance)
    _, place, counts = np.unique(run, return_inverse=True, return_counts=True)
    weight = 1 / counts[place]
    design = np.stack([np.ones_like(x), x], 1)
    gram = (design * weight[:, None]).T @ design + PRIOR * np.diag([0.3, 1.0])
    moment = (design * weight[:, None]).T @ (y - x)
    intercept, excess = np.linalg.solve(gram, moment)
    return Ridge(float(intercept), float(1 + excess))
