"""Adaptation to few labels: calibrates a shifted prediction, and leaves a useless one for the mean and the recipe."""

from __future__ import annotations

import numpy as np
import pytest

from weightsearch.training.adapt import MEAN, RECIPE, RIDGE, SHIPPED, adapt, calibrated, from_logit, to_logit


def sweep(runs: int, seed: int = 0):
    """Four checkpoints a run: true accuracies, the run's learning rate (which tells nothing), chance."""
    rng = np.random.default_rng(seed)
    run = np.repeat(np.arange(runs), 4)
    truth = np.clip(rng.uniform(0.2, 0.9, runs)[run] + np.tile([-0.08, 0.0, 0.03, 0.05], runs), 0.1, 1)
    recipe = np.stack([rng.normal(size=runs)[run], np.tile(np.arange(4.0), runs)], 1)
    return truth, run, recipe, np.full(4 * runs, 0.1)


@pytest.mark.slow
def test_a_shifted_prediction_is_calibrated():
    truth, run, recipe, chance = sweep(10)
    shifted = from_logit(0.7 * to_logit(truth, chance) - 0.8, chance)
    found = adapt(shifted, chance, recipe, truth, run)
    assert found.scores[SHIPPED].r2 < 0.6
    assert found.scores["all"].r2 > 0.9
    assert max(found.weights, key=found.weights.get) == RIDGE
    assert found.interval is not None
    low, high = found.interval.interval(found.predicted)
    assert np.mean((low <= truth) & (truth <= high)) > 0.8
    new = from_logit(0.7 * to_logit(np.array([0.8]), np.array([0.1])) - 0.8, np.array([0.1]))
    assert calibrated(found.to_dict(), new, np.array([0.1]))[0] == pytest.approx(0.8, abs=0.06)


@pytest.mark.slow
def test_a_useless_prediction_hands_over():
    truth, run, recipe, chance = sweep(10, seed=1)
    recipe[:, 0] = truth  # the recipe tells all
    noise = np.random.default_rng(0).uniform(0.1, 1, len(truth))
    found = adapt(noise, chance, recipe, truth, run)
    best = max(found.scores[MEAN].r2, found.scores[RECIPE].r2)
    assert found.scores["all"].r2 > best - 0.05
    assert found.scores[SHIPPED].r2 < 0


def test_few_or_no_labels_leave_the_prediction_as_it_is():
    truth, run, recipe, chance = sweep(6)
    for labelled in (0, 2):
        values = np.where(run < labelled, truth, np.nan)
        found = adapt(truth - 0.05, chance, recipe, values, run)
        np.testing.assert_array_equal(found.predicted, truth - 0.05)
        assert (found.weights, found.interval, found.labelled_runs) == ({}, None, labelled)
    assert calibrated(None, truth, chance) is truth


@pytest.mark.slow
def test_unlabelled_runs_get_a_calibrated_prediction():
    truth, run, recipe, chance = sweep(12)
    values = np.where(run < 5, truth, np.nan)
    found = adapt(from_logit(to_logit(truth, chance) - 1, chance), chance, recipe, values, run)
    unknown = run >= 5
    error = np.abs(found.predicted - truth)[unknown].mean()
    assert error < np.abs(from_logit(to_logit(truth, chance) - 1, chance) - truth)[unknown].mean() / 2
    assert found.interval is None  # of fewer than nine runs
