"""The measures against their slow definitions on repeated queries."""

from __future__ import annotations

import numpy as np
import pytest

from weightsearch.evaluation import block_means
from weightsearch.evaluation.bootstrap import auc, extrapolate, mean, r2, resampled, tau
from weightsearch.metrics import score


@pytest.fixture
def sample() -> tuple[np.ndarray, ...]:
    """Predicted (with ties), truth and run of 60 queries of 8 runs, in no order."""
    generator = np.random.default_rng(0)
    truth = generator.uniform(size=60).round(1)
    return (truth + generator.normal(size=60) * 0.2).round(1), truth, generator.integers(8, size=60)


def repeated(run: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Positions of a bootstrap sample, each as often as its run counts."""
    return np.repeat(np.arange(len(run)), row[run].astype(int))


def test_measures_are_those_of_the_repeated_queries(sample: tuple[np.ndarray, ...]):
    predicted, truth, run = sample
    weights = resampled(8, 20, seed=1)
    found = [f(predicted, truth, run, weights) for f in (r2, tau)] + [mean(np.abs(predicted - truth), run, weights)]
    for row, *values in zip(weights, *found, strict=True):
        drawn = repeated(run, row)
        wanted = score(predicted[drawn], truth[drawn])
        assert values == pytest.approx([wanted.r2, wanted.tau, wanted.mae], abs=1e-12)


def test_the_first_sample_is_the_sample_and_others_draw_runs():
    weights = resampled(5, 2000)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 5).all()
    assert weights[1:].mean(axis=0) == pytest.approx(np.ones(5), abs=0.1)
    assert (weights[1:] == 0).mean() == pytest.approx(0.8**5, abs=0.02)


def test_missing_values_are_left_out_of_a_mean():
    run, weights = np.array([0, 0, 1, 2]), np.array([[1.0, 1, 1], [2, 0, 1], [0, 1, 0]])
    found = mean(np.array([1.0, np.nan, np.nan, 4.0]), run, weights)
    np.testing.assert_allclose(found, [2.5, 2.0, np.nan])


def test_constant_truth_has_no_r2():
    run = np.array([0, 1, 1])
    assert np.isnan(r2(np.array([0.1, 0.2, 0.3]), np.full(3, 0.7), run, np.ones((1, 2)))).all()


def test_auc_counts_pairs():
    generator = np.random.default_rng(2)
    same, different = generator.integers(5, size=(3, 6)), generator.integers(5, size=(3, 6))
    weights = np.array([[1, 1, 1], [2, 0, 1]])
    for row, found in zip(weights, auc(same, different, weights), strict=True):
        left, right = (np.repeat(np.arange(6), row @ counts) for counts in (same, different))
        wins = (left[:, None] > right).mean() + (left[:, None] == right).mean() / 2
        assert found == pytest.approx(wins)


def test_block_means_are_those_of_the_cosine_matrix():
    generator = np.random.default_rng(3)
    embeddings, quality = generator.normal(size=(30, 4)).astype(np.float32), generator.uniform(size=30)
    found = block_means(embeddings, quality, good=0.7, bad=0.3)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine, good, bad = unit @ unit.T, np.flatnonzero(quality >= 0.7), np.flatnonzero(quality <= 0.3)
    assert found.good_good == pytest.approx(np.mean([cosine[i, j] for i in good for j in good if i != j]), abs=1e-6)
    assert found.bad_bad == pytest.approx(np.mean([cosine[i, j] for i in bad for j in bad if i != j]), abs=1e-6)
    assert found.good_bad == pytest.approx(cosine[np.ix_(good, bad)].mean(), abs=1e-6)
    assert np.isnan(block_means(embeddings, quality, good=2.0, bad=0.3).good_good)


def test_extrapolation_continues_a_power_law():
    exponent = np.geomspace(0.1, 3.0, 16)[8]
    epochs = np.array([0, 1, 2, 3, 5])
    curve = 0.9 - 0.7 * (epochs + 1.0) ** -exponent
    assert extrapolate(epochs, curve, until=50) == pytest.approx(0.9 - 0.7 * 51.0**-exponent)
    assert extrapolate(epochs[:2], curve[:2], until=50) == curve[1]
    assert extrapolate(epochs, curve[::-1], until=50) == pytest.approx(curve.mean())  # falling: no power law of growth
    assert extrapolate(np.array([0, 1, 2]), np.array([0.2, 0.6, 1.0]), until=90) == 1.0
