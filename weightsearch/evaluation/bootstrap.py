"""The measures, with their uncertainty: each takes one value per query and weights of the runs. NumPy only.

`run (n,)` says which of R runs each query is of, 0 to R - 1. `weights (B, R)` says how often each run counts: see
`resampled`. Every measure returns `(B,)`, one value per row of weights, and is exactly what it would be on queries
repeated that often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightsearch.distance import unit_length


def resampled(runs: int, count: int, seed: int = 0) -> np.ndarray:
    """Weights `(1 + count, runs)`: the sample itself (all ones), then `count` bootstrap samples of runs.

    Runs are drawn, not checkpoints, since checkpoints of one run are near-copies (cluster bootstrap).
    """
    draws = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=count)
    return np.concatenate([np.ones((1, runs)), draws]).astype(np.float64)


def mean(values: np.ndarray, run: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of `values (n,)`, leaving out NaN; NaN where nothing is left."""
    finite = np.isfinite(values)
    runs = weights.shape[1]
    total = weights @ np.bincount(run[finite], values[finite], runs)
    count = weights @ np.bincount(run[finite], minlength=runs).astype(np.float64)
    return _divide(total, count)


def r2(predicted: np.ndarray, truth: np.ndarray, run: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 - sum of squared errors / sum of squares about the mean, as `metrics.score`."""
    runs = weights.shape[1]

    def total(values: np.ndarray) -> np.ndarray:
        return weights @ np.bincount(run, values, runs)

    centred = truth - truth.mean()  # so that squares do not cancel
    spread = total(centred**2) - _divide(total(centred) ** 2, total(np.ones(len(run))))
    return 1 - _divide(total((predicted - truth) ** 2), np.where(spread > 1e-12, spread, 0.0))


def tau(predicted: np.ndarray, truth: np.ndarray, run: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kendall's tau-b, as `metrics.score`: from counts of concordant and tied pairs between each two runs."""
    order = np.argsort(run, kind="stable")
    present, starts = np.unique(run[order], return_index=True)
    signs = [np.sign(values[order, None] - values[None, order]).astype(np.int8) for values in (predicted, truth)]

    def pairs(matrix: np.ndarray) -> np.ndarray:
        """Sums over the pairs of checkpoints `(n, n)`, by weight."""
        between = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0, dtype=np.int64), starts, axis=1)
        weights_of_present = weights[:, present]
        return ((weights_of_present @ between) * weights_of_present).sum(axis=1)

    concordance = pairs(signs[0] * signs[1])
    return _divide(concordance, np.sqrt(pairs(signs[0] != 0) * pairs(signs[1] != 0)))


def auc(same: np.ndarray, different: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The probability that a pair of the same class is more similar than one of different classes; 1/2 is chance.

    `same` and `different (R, bins)` count each run's pairs by similarity, ascending; pairs in one bin tie.
    """
    same, different = weights @ same, weights @ different
    below = np.cumsum(different, axis=1) - different / 2
    return _divide((same * below).sum(axis=1), same.sum(axis=1) * different.sum(axis=1))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator != 0)


def is_good(quality: np.ndarray, indexed: np.ndarray) -> np.ndarray:
    """Whether each of `quality (n,)` is in the best quarter of the indexed ones."""
    return quality >= np.quantile(quality[indexed], 0.75)


def is_bad(quality: np.ndarray, indexed: np.ndarray) -> np.ndarray:
    return quality <= np.quantile(quality[indexed], 0.25)


@dataclass(frozen=True)
class BlockMeans:
    """Mean cosine similarity of pairs of different checkpoints, by their classes; NaN where there is no pair.

    The wishes for an embedding (Liu 2022, section 6): good ones near each other, bad ones near each other, and good
    ones far from bad ones.
    """

    good_good: float
    bad_bad: float
    good_bad: float


def block_means(embeddings: np.ndarray, quality: np.ndarray, good: float, bad: float) -> BlockMeans:
    """Block means of the cosine matrix of `embeddings (n, D)`, without building it.

    `quality (n,)` is higher for better ones; good are those from `good` on, bad those up to `bad`.
    """
    unit = unit_length(embeddings.astype(np.float64))
    goods, bads = unit[quality >= good], unit[quality <= bad]

    def within(rows: np.ndarray) -> float:
        pairs = len(rows) * (len(rows) - 1)
        return float((np.square(rows.sum(axis=0)).sum() - len(rows)) / pairs) if pairs else float("nan")

    pairs = len(goods) * len(bads)
    between = float(goods.sum(axis=0) @ bads.sum(axis=0) / pairs) if pairs else float("nan")
    return BlockMeans(within(goods), within(bads), between)


def extrapolate(epochs: np.ndarray, accuracies: np.ndarray, until: int) -> float:
    """The accuracy at epoch `until` of the power law that fits a run's curve so far best, within [0, 1].

    `a - b (epoch + 1)^-c` with b >= 0 by least squares, c from a grid (Domhan et al. 2015, IJCAI, "pow3"). A curve of
    fewer than three epochs says nothing of its bend: the last value stands.
    """
    if len(epochs) < 3:
        return float(accuracies[-1])
    best = (np.inf, float(accuracies[-1]))
    for exponent in np.geomspace(0.1, 3.0, 16):
        x = (epochs + 1.0) ** -exponent
        slope = min(0.0, np.cov(x, accuracies, bias=True)[0, 1] / x.var())
        level = accuracies.mean() - slope * x.mean()
        error = np.square(level + slope * x - accuracies).sum()
        if error < best[0]:
            best = (error, level + slope * (until + 1.0) ** -exponent)
    return float(np.clip(best[1], 0, 1))
