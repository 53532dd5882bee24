"""Baselines: what they see, that they learn from it, and that the seed decides everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from weightsearch.metrics import score
from weightsearch.training.baselines import TreeSettings, baseline_features, fit_baseline, recipe_features
from weightsearch.types import Baseline
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import Zoo

SETTINGS = TreeSettings(leaf_checkpoints=3, trees=200)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [Baseline.STATISTICS_TREES, Baseline.HYPERPARAMETERS])
def test_trees_beat_the_mean_on_training_runs_and_repeat_by_seed(zoo: Zoo, baseline: Baseline):
    split, values = make_split(zoo.table()), zoo.table().test_accuracy
    features = baseline_features(zoo, baseline, np.arange(len(values)))
    first, again, other = (fit_baseline(baseline, features, values, split, SETTINGS, seed=seed) for seed in (0, 0, 1))
    assert score(first.predict(features[split.train]), values[split.train]).r2 > 0.3
    np.testing.assert_array_equal(first.predict(features), again.predict(features))
    assert not np.array_equal(first.predict(features), other.predict(features))
    assert first.validation == score(first.predict(features[split.validation]), values[split.validation])
    assert first.parameters == again.parameters > 1


@pytest.mark.slow
def test_the_mean_is_of_the_training_part(zoo: Zoo):
    split, values = make_split(zoo.table()), zoo.table().test_accuracy
    features = baseline_features(zoo, Baseline.MEAN, split.train)
    fitted = fit_baseline(Baseline.MEAN, features, values, split, SETTINGS)
    assert set(fitted.predict(features)) == {values[split.train].mean()}
    assert fitted.validation.r2 <= 0
    assert np.isnan(fitted.validation.tau)


def test_the_recipe_features_hold_all_of_the_recipe_but_the_seed(zoo: Zoo):
    table = zoo.table()
    features = recipe_features(table)
    rates = np.array([table.recipes[run]["learning_rate"] for run in table.run])
    adam = np.array([table.recipes[run]["optimizer"] == "adam" for run in table.run])
    columns = list(features.T)
    assert any(np.array_equal(column, rates) for column in columns)
    assert any(np.array_equal(column, adam) for column in columns)
    assert any(np.array_equal(column, table.epoch) for column in columns)
    reseeded = {run: {**recipe, "seed": 0} for run, recipe in table.recipes.items()}
    np.testing.assert_array_equal(features, recipe_features(replace(table, recipes=reseeded)))


def test_the_statistics_are_56(zoo: Zoo):
    assert baseline_features(zoo, Baseline.STATISTICS_TREES, np.arange(3)).shape == (len(zoo.table()), 56)
