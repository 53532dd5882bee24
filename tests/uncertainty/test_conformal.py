"""Intervals hold the truth as often as promised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weightsearch.uncertainty.conformal import Conformal, calibrate, conformal_quantile, one_per_run


@pytest.mark.parametrize("count", [1, 8, 9, 10, 19, 20, 57])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_the_quantile_is_the_smallest_that_leaves_few_enough_outside(count: int, coverage: float):
    errors = np.random.default_rng(count).exponential(size=count)
    # By definition: among n + 1 exchangeable errors, the new one lies within the k smallest with probability k/(n+1).
    wide_enough = [error for k, error in enumerate(np.sort(errors), 1) if k / (count + 1) >= coverage - 1e-12]
    assert conformal_quantile(errors, coverage) == (wide_enough[0] if wide_enough else math.inf)


def test_one_checkpoint_of_each_run_is_drawn_and_all_are_drawn_alike():
    runs = np.array([7, 3, 7, 3, 3, 9])
    drawn = np.array([one_per_run(runs, np.random.default_rng(seed)) for seed in range(3000)])
    assert (runs[drawn] == [3, 7, 9]).all()
    shares = [(drawn[:, 0] == position).mean() for position in (1, 3, 4)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [9, 19, 40])
def test_coverage_of_new_runs_whose_checkpoints_are_near_copies(runs: int):
    """Errors that are shared by a run's checkpoints and grow towards the middle; a new run each time."""
    generator = np.random.default_rng(runs)
    inside, lengths = [], []
    for seed in range(4000):
        run = np.repeat(np.arange(runs + 1), 5)
        predicted = generator.uniform(size=len(run))
        error = generator.normal(size=runs + 1)[run] * 0.2 * predicted * (1 - predicted)
        truth = predicted + error
        old = run < runs
        found = calibrate(predicted[old], truth[old], run[old], seed=seed)
        assert found.runs == runs
        low, high = found.interval(predicted[~old][:1])
        inside.append(low[0] <= truth[~old][0] <= high[0])
        lengths.append(high[0] - low[0])
    promised = math.ceil((runs + 1) * 0.9 - 1e-9) / (runs + 1)
    assert np.mean(inside) == pytest.approx(promised, abs=0.017)  # 3.5 standard errors
    assert np.mean(lengths) < 0.3


def test_too_few_runs_promise_nothing_narrower_than_everything():
    some = np.linspace(0.1, 0.9, 8)
    found = calibrate(some, some, np.arange(8))
    assert found.width == math.inf
    low, high = found.interval(some)
    assert (low == 0).all()
    assert (high == 1).all()
    assert calibrate(some, some, np.arange(8), coverage=0.8).width == 0


def test_other_targets_have_one_width_and_no_ends():
    predicted = np.array([0.0, 2.0, 50.0])
    found = Conformal(1.5, 0.9, 20, -math.inf, math.inf)
    low, high = found.interval(predicted)
    np.testing.assert_allclose(low, predicted - 1.5)
    np.testing.assert_allclose(high, predicted + 1.5)
    runs = np.arange(19)
    assert calibrate(runs * 0.0, runs * 1.0, runs, low=-math.inf, high=math.inf).width == 17.0


def test_a_coverage_of_one_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_quantile(np.zeros(3), 1.0)
