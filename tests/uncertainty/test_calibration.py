"""Calibration runs serve nothing else, and distances are those of brute force."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from weightsearch.index import IndexStore
from weightsearch.training.summary import TrainSummary
from weightsearch.types import Metric, SplitBy, Target
from weightsearch.uncertainty.calibration import Calibration, calibrate_encoder, load_calibration, nearest_distances
from weightsearch.uncertainty.conformal import Conformal
from weightsearch.zoo.schema import CheckpointTable
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import Zoo


def table(runs: int) -> CheckpointTable:
    run = np.repeat(np.arange(runs), 3)
    nothing = np.full(len(run), np.nan)
    return CheckpointTable(run.astype(str), run, np.tile([0, 1, 2], runs), *[nothing] * 4, recipes={})


@pytest.mark.parametrize(("runs", "test", "calibration"), [(300, 23, 22), (100, 6, 9), (80, 3, 9), (73, 11, 0)])
def test_calibration_takes_half_of_the_test_runs_or_the_nine_that_an_interval_needs(
    runs: int, test: int, calibration: int
):
    before = make_split(table(runs), seed=4)
    split = before.with_calibration(table(runs), seed=4)
    assert (split.runs(table(runs))["test"], split.runs(table(runs)).get("calibration", 0)) == (test, calibration)
    assert np.array_equal(np.sort(np.concatenate([split.test, split.calibration])), before.test)
    assert not set(table(runs).run[split.test]) & set(table(runs).run[split.calibration])


def test_split_by_checkpoint_sets_checkpoints_aside():
    split = make_split(table(100), by=SplitBy.CHECKPOINT, seed=1).with_calibration(table(100), seed=1)
    assert (len(split.test), len(split.calibration)) == (23, 22)


@pytest.mark.parametrize("metric", Metric)
def test_nearest_distances_leave_out_the_own_run(metric: Metric):
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(40, 6)), rng.normal(size=(9, 6))
    row_runs, query_runs = rng.integers(0, 8, 40), rng.integers(0, 8, 9)
    found = nearest_distances(queries, query_runs, rows, row_runs, metric)
    for query, run, mean in zip(queries, query_runs, found, strict=True):
        others = rows[row_runs != run]
        if metric is Metric.L2:
            distances = np.linalg.norm(others - query, axis=1)
        else:
            distances = 1 - others @ query / np.linalg.norm(others, axis=1) / np.linalg.norm(query)
        assert mean == pytest.approx(np.sort(distances)[:5].mean())


@pytest.mark.parametrize(
    "interval",
    [
        None,
        Conformal(0.3, 0.9, 12),
        Conformal(0.3, 0.9, 12, low=-math.inf, high=math.inf),
        Conformal(0.3, 0.9, 40, edges=(0.4, 0.8), widths=(0.5, 0.2, 0.1)),
    ],
)
def test_calibration_is_plain_json(interval: Conformal | None):
    calibration = Calibration(interval, 0.9, 5, 0.25)
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text)) == calibration


def test_a_calibration_of_an_index_made_before_parts_had_widths_of_their_own():
    values = Calibration(Conformal(0.3, 0.9, 12), 0.9, 5, 0.25).to_dict()
    del values["interval"]["edges"], values["interval"]["widths"]
    assert Calibration.from_dict(values).interval == Conformal(0.3, 0.9, 12)


def test_an_index_keeps_its_calibration_beside_the_encoder(zoo: Zoo, trained: TrainSummary):
    directory = IndexStore.open(trained.index).encoder_directory(zoo.architecture.fingerprint)
    calibration = load_calibration(directory)
    assert calibration == trained.calibration
    assert calibration is not None
    assert calibration.interval is None  # 24 runs are too few
    assert 0 < calibration.distance_limit < 2


def test_an_interval_is_judged_on_test_runs_alone():
    """Predictions are right on the calibration runs, and far off on half of the others."""
    runs = table(300)
    split = make_split(runs, seed=4).with_calibration(runs, seed=4)
    truth = np.full(len(runs), 0.5)
    predicted = truth + 0.01 * np.sin(np.arange(len(runs)))
    test_runs = np.unique(runs.run[split.test])
    far_off = np.isin(runs.run, test_runs[::2])
    predicted[far_off] += 0.3
    embedding = np.random.default_rng(0).normal(size=(len(runs), 4)).astype(np.float32)
    found = calibrate_encoder(
        runs, split, embedding, predicted, truth, split.train, metric=Metric.COSINE, target=Target(), seed=0
    )
    assert found.found_runs == len(test_runs)
    right = 1 - len(test_runs[::2]) / len(test_runs)  # of which the interval holds about nine in ten
    assert 0.8 * right < found.found_coverage <= right
    assert found.interval is not None
    assert found.interval.edges == ()  # all are of one accuracy


def test_an_interval_has_a_width_for_each_third_of_the_training_runs_accuracies():
    runs = table(300)
    split = make_split(runs).with_calibration(runs, seed=0)
    truth = np.random.default_rng(1).uniform(size=len(runs))
    embedding = np.random.default_rng(0).normal(size=(len(runs), 4)).astype(np.float32)
    calibration = calibrate_encoder(
        runs, split, embedding, np.clip(truth + 0.02, 0, 1), truth, split.train, metric=Metric.COSINE, target=Target(),
        seed=0,
    )  # fmt: skip
    assert calibration.interval is not None
    assert calibration.interval.edges == tuple(np.quantile(truth[split.train], [1 / 3, 2 / 3]))
    assert len(calibration.interval.widths) == 3
