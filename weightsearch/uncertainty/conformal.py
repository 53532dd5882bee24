"""Intervals around a predicted accuracy that hold the truth as often as promised, whatever the encoder is like.

Split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018, https://arxiv.org/abs/1604.04173, section 2):
the interval is as wide as the errors on calibration runs, which serve nothing else. Checkpoints of one run are
near-copies of each other, so one checkpoint of each run is drawn: those, and a new run's checkpoint, are exchangeable,
and that is all the promise rests on. It is one on average over runs, not for a run of a certain kind.

Where each of several parts of what can be true has enough runs, each has a width of its own, and the promise is kept in
each (label-conditional, or Mondrian, conformal prediction; Vovk et al. 2005, "Algorithmic Learning in a Random World",
section 4.5): a value lies inside if it does by the width of its part. The least and the greatest that do are the ends
of the interval, which holds more where parts meet; so widths are narrowed until together they hold what is promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

COVERAGE = 0.9
ROUNDS = 12  # of narrowing, each half of the way
FLOOR = 0.2  # of `_scale`, whose middle is at FLOOR + 1/4


@dataclass(frozen=True)
class Conformal:
    """A calibrated width. `width` is infinite where there are too few `runs` to promise `coverage` (9 for 90 %)."""

    width: float
    coverage: float
    runs: int
    low: float = 0.0
    high: float = 1.0
    edges: tuple[float, ...] = ()  # where the parts meet that have widths of their own, ascending
    widths: tuple[float, ...] = ()  # one more than `edges`; of one width alone, none

    def interval(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends `(n,)` around `predicted (n,)`, within [low, high].

        Example:
            >>> Conformal(0.5, 0.9, 30, edges=(0.5,), widths=(1.0, 0.1)).interval(np.array([0.6]))
            (array([0.16]), array([0.644]))
        """
        predicted = np.clip(np.asarray(predicted, np.float64), self.low, self.high)
        scale = _scale(predicted, self.low, self.high)
        ends = (self.low, *self.edges, self.high)
        lower, upper = np.full_like(predicted, np.inf), np.full_like(predicted, -np.inf)
        for width, least, most in zip(self.widths or (self.width,), ends[:-1], ends[1:], strict=True):
            bottom, top = np.maximum(predicted - width * scale, least), np.minimum(predicted + width * scale, most)
            reached = bottom <= top
            lower = np.where(reached, np.minimum(lower, bottom), lower)
            upper = np.where(reached, np.maximum(upper, top), upper)
        return lower, upper


def calibrate(
    predicted: np.ndarray,
    truth: np.ndarray,
    runs: np.ndarray,
    *,
    coverage: float = COVERAGE,
    low: float = 0.0,
    high: float = 1.0,
    edges: Sequence[float] = (),
    seed: int = 0,
) -> Conformal:
    """The width at which a new run's checkpoint lies inside with probability `coverage` or a little more.

    Args:
        predicted, truth: `(n,)` of checkpoints of calibration runs, which neither trained nor chose the encoder.
        runs: `(n,)` which run each is of; one checkpoint of each is drawn by `seed`.
        low, high: the ends of what can be true: 0 and 1 for accuracies, -inf and inf for a loss.
        edges: ascending, where parts of the truth meet, from other runs (see `thirds`). If every part has enough runs,
            each gets its own width; one checkpoint of each run is drawn in each part.
    """
    predicted, truth, runs = np.clip(predicted, low, high), np.asarray(truth, np.float64), np.asarray(runs)
    errors = np.abs(truth - predicted) / _scale(predicted, low, high)

    def draw(members: np.ndarray) -> np.ndarray:
        return members[one_per_run(runs[members], np.random.default_rng(seed))]

    everything = draw(np.arange(len(truth)))
    calibrated = Conformal(conformal_quantile(errors[everything], coverage), coverage, len(everything), low, high)
    part = np.searchsorted(edges, truth)
    drawn = [draw(np.flatnonzero(part == one)) for one in range(len(edges) + 1)]
    widths = tuple(conformal_quantile(errors[positions], coverage) for positions in drawn)
    if not edges or not np.isfinite(widths).all():
        return calibrated
    calibrated = replace(calibrated, edges=tuple(edges), widths=widths)
    for _ in range(ROUNDS):
        calibrated = _narrowed(calibrated, drawn, predicted, truth, errors)
    return calibrated


def _narrowed(
    interval: Conformal, drawn: Sequence[np.ndarray], predicted: np.ndarray, truth: np.ndarray, errors: np.ndarray
) -> Conformal:
    """Each part's width halfway to what it needs to be beside the others', by the positions `drawn` in each part."""
    widths = []
    for part, positions in enumerate(drawn):
        others = replace(interval, widths=(*interval.widths[:part], 0.0, *interval.widths[part + 1 :]))
        lower, upper = others.interval(predicted[positions])
        held = (lower <= truth[positions]) & (truth[positions] <= upper)  # whatever this part's width is
        needed = conformal_quantile(np.where(held, 0.0, errors[positions]), interval.coverage)
        widths.append((interval.widths[part] + needed) / 2)
    return replace(interval, widths=tuple(widths))


def thirds(values: np.ndarray) -> tuple[float, ...]:
    """Where the thirds of `values (n,)` meet; of thirds that fall together, one edge."""
    edges = np.unique(np.quantile(values, [1 / 3, 2 / 3]))
    return tuple(edges[edges < np.max(values)].tolist())


def conformal_quantile(errors: np.ndarray, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest of `errors (n,)`; infinite where that is more than n.

    A further error, exchangeable with these, is at most as large with probability at least `coverage`, and less than
    `coverage + 1 / (n + 1)` unless errors tie.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"expected a coverage between 0 and 1, got {coverage}")
    rank = math.ceil(round((len(errors) + 1) * coverage, 9))  # rounded: 10 * 0.9 is meant to be 9
    return float(np.partition(errors, rank - 1)[rank - 1]) if rank <= len(errors) else math.inf


def one_per_run(runs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random position of each run in `runs (n,)`, in the order of the runs' numbers or names."""
    order = generator.permutation(len(runs))
    _, first = np.unique(np.asarray(runs)[order], return_index=True)
    return order[first]


def _scale(predicted: np.ndarray, low: float, high: float) -> np.ndarray:
    """How uncertain a prediction is beside others: most in the middle of [low, high], where most can happen.

    With `FLOOR`, intervals of the statistics encoder became 9 % (USPS V1), 5 % (Fashion-MNIST V1) and -1 % (MNIST V1)
    shorter than of one width everywhere; a smaller floor gains more where it gains, and loses more on the third.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return np.ones_like(predicted)
    share = (np.clip(predicted, low, high) - low) / (high - low)
    return FLOOR + share * (1 - share)
