"""Intervals hold the truth as often as promised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weightsearch.uncertainty.conformal import Conformal, calibrate, conformal_quantile, one_per_run, thirds


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


@pytest.mark.slow
def test_each_part_is_covered_as_promised():
    """Errors ten times as large in the highest third: one width misses them, and is too wide for the others."""
    generator = np.random.default_rng(0)
    inside: dict[bool, list[tuple[float, bool]]] = {False: [], True: []}
    for seed in range(300):
        run = np.repeat(np.arange(40), 4)
        truth = generator.uniform(0.2, 0.8, len(run))
        predicted = truth + generator.normal(size=len(run)) * np.where(truth > 0.6, 0.05, 0.005)
        old = run < 39
        for own in (False, True):
            edges = (0.4, 0.6) if own else ()
            calibrated = calibrate(predicted[old], truth[old], run[old], edges=edges, seed=seed)
            assert bool(calibrated.widths) == own
            low, high = calibrated.interval(predicted[~old])
            held = (low <= truth[~old]) & (truth[~old] <= high)
            inside[own] += zip(truth[~old].tolist(), held.tolist(), strict=True)

    def coverage(own: bool, least: float, most: float) -> float:
        return float(np.mean([held for value, held in inside[own] if least < value <= most]))

    for least, most in ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8)):  # 30 or so runs have a checkpoint in a third: up to .93
        assert 0.88 < coverage(True, least, most) < 0.94
    assert coverage(False, 0.6, 0.8) < 0.8
    assert coverage(False, 0.2, 0.4) > 0.99


def test_parts_have_widths_of_their_own_where_each_has_enough_runs():
    truth = np.linspace(0.0, 1.0, 60)
    predicted = np.clip(truth + 0.01, 0, 1)
    runs = np.arange(60) % 20
    calibrated = calibrate(predicted, truth, runs, edges=(0.3, 0.7))
    assert len(calibrated.widths) == 3
    assert calibrated.runs == 20
    assert calibrate(predicted, truth, runs, edges=(0.05, 0.7)).widths == ()  # three checkpoints in the lowest part
    assert calibrate(predicted, truth, runs, edges=(0.05, 0.7)) == calibrate(predicted, truth, runs)


def test_widths_are_narrowed_to_what_is_needed_beside_the_others():
    """The highest part's wide errors reach up from the middle, which so needs no width of its own for what is above."""
    signs = np.random.default_rng(2).choice([-1, 1], 60)
    truth = np.concatenate([np.linspace(0.1, 0.4, 30), np.linspace(0.6, 0.9, 30), np.linspace(0.5, 0.52, 30)])
    predicted = truth + np.concatenate([signs * np.repeat([0.01, 0.1], 30), np.linspace(-0.02, -0.01, 30)])
    calibrated = calibrate(predicted, truth, np.arange(90) % 30, edges=(0.45, 0.55))
    low, high = calibrated.interval(predicted)
    held = ((low <= truth) & (truth <= high)).reshape(3, 30).sum(axis=1)
    assert (held >= [27, 27, 30]).all()  # (30 + 1) * .9 rounded up is 28, of which the last is at the very end
    lowest, middle, highest = calibrated.widths
    assert middle < 1e-4  # not the 0.045 that these errors alone would ask for
    scale = 0.2 + predicted * (1 - predicted)
    errors = np.abs(truth - predicted) / scale
    assert lowest == pytest.approx(np.sort(errors[:30])[27])
    assert highest == pytest.approx(np.sort(errors[30:60])[27])


def test_the_interval_holds_what_each_part_reaches():
    calibrated = Conformal(9.0, 0.9, 40, -math.inf, math.inf, edges=(0.0, 10.0), widths=(3.0, 1.0, 2.0))
    low, high = calibrated.interval(np.array([5.0, 2.0, 9.5, -20.0]))
    np.testing.assert_allclose(low, [4.0, -1.0, 8.5, -23.0])  # 2 reaches 3 below into the part below 0
    np.testing.assert_allclose(high, [6.0, 3.0, 11.5, -17.0])  # 9.5 reaches 2 above into the part above 10


def test_thirds_that_fall_together_have_one_edge():
    assert thirds(np.arange(10.0)) == (3.0, 6.0)
    assert thirds(np.array([0.1, 0.1, 0.1, 0.1, 0.9])) == (0.1,)
    assert thirds(np.ones(5)) == ()


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
