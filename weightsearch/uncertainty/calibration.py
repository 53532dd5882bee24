"""What an encoder's errors and distances are on networks that it has not seen, measured once and kept beside it.

Two parts of a zoo are used: the runs set aside for calibration, which serve nothing else, give the width of the
intervals; the held-out runs (validation and test) tell how far from its neighbours an ordinary new network lies.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch.distance import pairwise, prepare, smallest_distances
from weightsearch.types import Metric, SplitBy, Target
from weightsearch.uncertainty.conformal import Conformal, calibrate, thirds
from weightsearch.uncertainty.novelty import NEAREST, Familiar, far

if TYPE_CHECKING:  # a query reads calibrations, and has no use for zoos
    from weightsearch.zoo.splits import Split
    from weightsearch.zoo.store import CheckpointTable

FAMILIAR = "familiar.npz"  # beside the encoder
HELD_OUT_SAMPLE = 2000  # checkpoints that distances are measured of
BLOCK = 256


@dataclass(frozen=True)
class Calibration:
    """Kept in `encoder.json`. Accuracies, or the values of another target."""

    interval: Conformal | None  # None where there were too few runs to promise anything
    found_coverage: (
        float | None
    )  # share of the test part's checkpoints, each run counting the same, inside its interval
    found_runs: int
    distance_limit: float  # from the 5 nearest; that of 99 in 100 held-out networks is smaller

    def to_dict(self) -> dict[str, Any]:
        """JSON has no infinity: null stands for it."""
        values = asdict(self)
        if values["interval"]:
            for end in ("low", "high"):
                values["interval"][end] = value if math.isfinite(value := values["interval"][end]) else None
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        interval = values["interval"] and Conformal(
            values["interval"]["width"],
            values["interval"]["coverage"],
            values["interval"]["runs"],
            low=_or(values["interval"]["low"], -math.inf),
            high=_or(values["interval"]["high"], math.inf),
            edges=tuple(values["interval"].get("edges", ())),  # an index made before has one width
            widths=tuple(values["interval"].get("widths", ())),
        )
        return cls(**{**values, "interval": interval})


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def load_calibration(encoder_directory: Path) -> Calibration | None:
    """None where an index was made before there were calibrations."""
    content = json.loads((encoder_directory / "encoder.json").read_text())
    return Calibration.from_dict(content["calibration"]) if content.get("calibration") else None


def calibrate_encoder(
    table: CheckpointTable,
    split: Split,
    embedding: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    indexed: np.ndarray,
    *,
    metric: Metric,
    target: Target,
    seed: int,
) -> Calibration:
    """From embeddings `(n, D)`, predictions and truths `(n,)` of all checkpoints, and the positions `indexed`."""
    low, high = (0.0, 1.0) if target.is_accuracy else (-math.inf, math.inf)
    # Where checkpoints were dealt out instead of runs, they are what is exchangeable.
    units = table.run if split.by is SplitBy.RUN else np.arange(len(table))
    part = split.calibration
    interval, coverage, judged = None, None, units[split.test]
    if len(part):
        edges = thirds(truth[split.train])
        calibrated = calibrate(predicted[part], truth[part], units[part], low=low, high=high, edges=edges, seed=seed)
        interval = calibrated if math.isfinite(calibrated.width) else None
    if interval is not None:
        lower, upper = interval.interval(predicted[split.test])
        inside = (lower <= truth[split.test]) & (truth[split.test] <= upper)
        coverage = float(np.mean([inside[judged == unit].mean() for unit in np.unique(judged)]))
    held_out = sample_held_out(split, seed)
    distances = nearest_distances(
        embedding[held_out], table.run[held_out], embedding[indexed], table.run[indexed], metric
    )
    return Calibration(interval, coverage, len(np.unique(judged)), far(distances))


def sample_held_out(split: Split, seed: int) -> np.ndarray:
    """Positions of up to `HELD_OUT_SAMPLE` checkpoints that did not train the encoder."""
    positions = np.concatenate([split.validation, split.test])
    return np.sort(np.random.default_rng(seed).permutation(positions)[:HELD_OUT_SAMPLE])


def familiar_layers(descriptions: np.ndarray, split: Split, seed: int) -> Familiar:
    """From descriptions `(n, F)` of all checkpoints: what the training part's are like."""
    return Familiar.fit(descriptions[split.train], descriptions[sample_held_out(split, seed)], seed)


def nearest_distances(
    queries: np.ndarray, query_runs: np.ndarray, rows: np.ndarray, row_runs: np.ndarray, metric: Metric
) -> np.ndarray:
    """Mean distances `(m,)` of `queries (m, D)` from the `NEAREST` nearest of `rows (n, D)` that are of another run."""
    queries, rows = prepare(queries, metric), prepare(rows, metric)
    means = []
    for start in range(0, len(queries), BLOCK):
        distances = pairwise(queries[start : start + BLOCK], rows, metric)
        distances[query_runs[start : start + BLOCK, None] == row_runs] = np.inf
        nearest = smallest_distances(distances, NEAREST)
        means.append(np.where(np.isfinite(nearest), nearest, np.nan))
    return np.nanmean(np.concatenate(means), axis=1)
