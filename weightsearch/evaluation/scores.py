"""From what methods predicted and found to metrics with intervals, bootstrapped over the queries' runs. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightsearch.evaluation.bootstrap import auc, extrapolate, is_bad, is_good, mean, r2, resampled, tau
from weightsearch.uncertainty.conformal import COVERAGE, calibrate

SAMPLES = 1000  # bootstrap samples
INTERVAL_SPLITS = 20
KS = (1, 5, 10)
THIRDS = ("lowest", "middle", "highest")

Draws = dict[str, np.ndarray]  # metric -> (1 + SAMPLES,): the value, then that of each bootstrap sample


@dataclass(frozen=True)
class MetricRow:
    """One metric of one method on one zoo. `low` and `high` are the 95 % bootstrap interval, None where there is none.

    `seed` is None for all seeds pooled. `on` is the zoo it was judged on where the method was fitted on another;
    `against` the method that was subtracted, where the metric is of a difference.
    """

    zoo: str
    method: str
    metric: str
    value: float
    low: float | None
    high: float | None
    seed: int | None
    on: str | None = None
    against: str | None = None


@dataclass(frozen=True, eq=False)
class Judged:
    """A zoo's table as the metrics need it: `(n,)` each."""

    accuracy: np.ndarray
    run: np.ndarray
    epoch: np.ndarray

    def final(self) -> np.ndarray:
        """The last known accuracy `(n,)` of each checkpoint's run, NaN where none is."""
        runs, number = np.unique(self.run, return_inverse=True)
        ends = np.full(len(runs), np.nan)
        judged = np.isfinite(self.accuracy)
        ends[number[judged]] = self.accuracy[judged]  # ordered by epoch, so that the last one stays
        return ends[number]

    def is_last(self, positions: np.ndarray) -> np.ndarray:
        """Whether each of `positions` is the last of its run whose accuracy is known."""
        judged = np.isfinite(self.accuracy)
        last = [self.epoch[judged & (self.run == self.run[position])].max() for position in positions]
        return self.epoch[positions] == last


def rows_of(
    zoo: str,
    method: str,
    metric: str,
    seeds: Sequence[tuple[int, np.ndarray]],
    *,
    on: str | None = None,
    against: str | None = None,
) -> list[MetricRow]:
    """One row per seed, and one of all pooled: the mean over seeds (of a worst case, the worst) in each sample."""

    def one(draws: np.ndarray, seed: int | None) -> MetricRow:
        low = high = None
        if np.isfinite(draws[1:]).any():
            low, high = (float(end) for end in np.nanquantile(draws[1:], [0.025, 0.975]))
        return MetricRow(zoo, method, metric, float(draws[0]), low, high, seed, on, against)

    pool = np.max if metric.endswith("worst") else np.mean
    pooled = pool([draws for _, draws in seeds], axis=0)
    return [*(one(draws, seed) for seed, draws in seeds), one(pooled, None)]


def prediction(predicted: np.ndarray, truth: np.ndarray, run: np.ndarray, weights: np.ndarray, name: str) -> Draws:
    return {
        f"{name}.r2": r2(predicted, truth, run, weights),
        f"{name}.tau": tau(predicted, truth, run, weights),
        f"{name}.mae": mean(np.abs(predicted - truth), run, weights),
    }


def draws(arrays: Mapping[str, np.ndarray], judged: Judged, indexed: np.ndarray, seed: int) -> Draws:
    """All metrics of one fit, from its arrays (see `probe`). `indexed` are the training part's positions."""
    queries = arrays["queries"]
    truth, run = judged.accuracy[queries], _numbers(judged.run[queries])
    weights = resampled(int(run.max()) + 1, SAMPLES)
    scores: Draws = {}
    if np.isfinite(arrays["predicted"]).all():
        scores |= prediction(arrays["predicted"], truth, run, weights, "prediction")
        edges = np.quantile(judged.accuracy[indexed], [1 / 3, 2 / 3]).tolist()
        scores |= interval(arrays["predicted"], truth, run, weights, seed, edges)
    if "neighbours" in arrays:
        scores |= neighbours(arrays, judged, indexed, run, weights)
        scores |= separation(arrays, judged, indexed, run, weights)
        for kind in ("twin", "rescaled"):
            if np.isfinite(arrays[f"{kind}_first"]).any():
                scores |= {
                    f"{kind}.recall": mean(arrays[f"{kind}_first"], run, weights),
                    f"{kind}.drift": mean(arrays[f"{kind}_drift"], run, weights),
                    f"{kind}.drift_worst": np.array([np.nanmax(arrays[f"{kind}_drift"])]),
                    f"{kind}.predicted": mean(arrays[f"{kind}_predicted"], run, weights),
                }
        scores["noise.shift"] = mean(arrays["noise_shift"], run, weights)
        scores["noise.kept"] = mean(arrays["noise_kept"], run, weights)
        ends = judged.final()
        scores |= forecast(middle_of_neighbours(arrays["epoch_neighbours"], ends), judged, queries, weights)
        of_any = forecast(mean_of_neighbours(arrays["run_neighbours"], ends), judged, queries, weights)
        scores["forecast.mae_any_epoch"] = of_any["forecast.mae"]
    return {metric: values for metric, values in scores.items() if np.isfinite(values[0])}


def prediction_elsewhere(arrays: Mapping[str, np.ndarray], judged: Judged) -> Draws:
    """The predictions alone, of an encoder fitted on another zoo."""
    queries = arrays["queries"]
    run = _numbers(judged.run[queries])
    weights = resampled(int(run.max()) + 1, SAMPLES)
    return prediction(arrays["predicted"], judged.accuracy[queries], run, weights, "prediction")


def neighbours(
    arrays: Mapping[str, np.ndarray], judged: Judged, indexed: np.ndarray, run: np.ndarray, weights: np.ndarray
) -> Draws:
    """Precision@k for good and for bad queries, and the mean accuracy of the 10 nearest, one of each run."""
    queries, accuracy = arrays["queries"], judged.accuracy
    good, bad = is_good(accuracy, indexed), is_bad(accuracy, indexed)
    scores: Draws = {}
    for name, members in (("good", good), ("bad", bad)):
        for k in KS:
            nearest = arrays["neighbours"][:, :k]
            share = np.where(nearest >= 0, members[nearest], np.nan)
            shares = np.full(len(queries), np.nan)
            shares[members[queries]] = np.nanmean(share[members[queries]], axis=1)
            scores[f"precision@{k}.{name}"] = mean(shares, run, weights)
        scores[f"precision.chance.{name}"] = np.array([members[indexed].mean()])
    of_them = mean_of_neighbours(arrays["run_neighbours"], accuracy)
    return scores | prediction(of_them, accuracy[queries], run, weights, "neighbours")


def separation(
    arrays: Mapping[str, np.ndarray], judged: Judged, indexed: np.ndarray, run: np.ndarray, weights: np.ndarray
) -> Draws:
    """AUC of same-class pairs, and mean cosines of queries with indexed checkpoints, by classes."""
    queries = arrays["queries"]
    good, bad = is_good(judged.accuracy, indexed)[queries], is_bad(judged.accuracy, indexed)[queries]
    to_other = np.where(good, arrays["to_bad"], np.where(bad, arrays["to_good"], np.nan))
    return {
        "separation.auc": auc(arrays["same"], arrays["different"], weights),
        "separation.good_good": mean(np.where(good, arrays["to_good"], np.nan), run, weights),
        "separation.bad_bad": mean(np.where(bad, arrays["to_bad"], np.nan), run, weights),
        "separation.good_bad": mean(to_other, run, weights),
    }


def forecast(guess: np.ndarray, judged: Judged, queries: np.ndarray, weights: np.ndarray) -> Draws:
    """Mean absolute error of `guess (Q,)` of the final accuracy, of queries before the last epoch; by epoch, too."""
    error = np.abs(guess - judged.final()[queries])
    error[judged.is_last(queries)] = np.nan
    run, epoch = _numbers(judged.run[queries]), judged.epoch[queries]
    scores = {"forecast.mae": mean(error, run, weights)}
    for one in np.unique(epoch[np.isfinite(error)]):
        scores[f"forecast.mae@{one}"] = mean(np.where(epoch == one, error, np.nan), run, weights)
    return scores


def plain_forecasts(judged: Judged, queries: np.ndarray) -> dict[str, Draws]:
    """What needs no other networks, but the query's own accuracy so far, which a search by weights does not have."""
    weights = resampled(len(np.unique(judged.run[queries])), SAMPLES)
    continued = np.empty(len(queries))
    for i, query in enumerate(queries):
        of_run = np.flatnonzero((judged.run == judged.run[query]) & np.isfinite(judged.accuracy))
        seen = of_run[judged.epoch[of_run] <= judged.epoch[query]]
        continued[i] = extrapolate(judged.epoch[seen], judged.accuracy[seen], int(judged.epoch[of_run].max()))
    return {
        "stays as it is": forecast(judged.accuracy[queries], judged, queries, weights),
        "own curve continued": forecast(continued, judged, queries, weights),
    }


def interval(
    predicted: np.ndarray, truth: np.ndarray, run: np.ndarray, weights: np.ndarray, seed: int, edges: Sequence[float]
) -> Draws:
    """Coverage and width of the conformal interval, the test runs halved into calibration and judged runs 20 times.

    The number of calibration runs is the one nearest to half with which the promise is exactly `COVERAGE`. All
    checkpoints of a judged run count, each run as one: the mean over which of them is drawn. Coverage is told of all
    networks, and of those of each third of the index's true accuracies, which meet at the two `edges`.
    """
    runs = weights.shape[1]
    exact = np.arange(9, runs, 10)  # (n + 1) * 0.9 is whole
    if not len(exact):
        return {}
    count = int(exact[np.argmin(np.abs(exact - runs / 2))])
    times, inside, width = np.zeros((3, len(run)))  # how often each checkpoint was judged, inside; its widths' sum
    for split in range(INTERVAL_SPLITS):
        calibration = np.isin(run, np.random.default_rng([seed, split]).permutation(runs)[:count])
        calibrated = calibrate(
            predicted[calibration], truth[calibration], run[calibration], coverage=COVERAGE, edges=edges, seed=split
        )
        low, high = calibrated.interval(predicted)
        times += ~calibration
        inside += ~calibration & (low <= truth) & (truth <= high)
        width += np.where(calibration, 0, high - low)
    third = np.searchsorted(edges, truth)
    groups = {"": np.full(len(truth), True), **{f"@{name}": third == i for i, name in enumerate(THIRDS)}}
    scores: Draws = {}
    for name, members in groups.items():
        judged = members & (times > 0)
        for metric, total in (("coverage", inside), ("width", width)):
            sums = np.bincount(run[judged], total[judged] / times[judged], runs)
            size = np.bincount(run[judged], minlength=runs)
            of_runs = np.where(size > 0, sums / np.maximum(size, 1), np.nan)
            scores[f"interval.{metric}{name}"] = mean(of_runs, np.arange(runs), weights)
    return scores


def mean_of_neighbours(neighbours: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of `values (n,)` at `neighbours (Q, k)`, positions or -1 for none."""
    return np.nanmean(np.where(neighbours >= 0, values[neighbours], np.nan), axis=1)


def middle_of_neighbours(neighbours: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The median of `values (n,)` at `neighbours (Q, k)`; NaN where there is none."""
    middles = np.full(len(neighbours), np.nan)
    some = (neighbours >= 0).any(axis=1)
    nearest = neighbours[some]
    middles[some] = np.nanmedian(np.where(nearest >= 0, values[nearest], np.nan), axis=1)
    return middles


def _numbers(run: np.ndarray) -> np.ndarray:
    """Runs numbered from 0 in ascending order."""
    return np.unique(run, return_inverse=True)[1]
