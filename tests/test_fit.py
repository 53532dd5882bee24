"""Splits and fits: no run lies in two parts, a fit learns what is there to learn, and the seed decides everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from weightsearch.errors import WeightsearchError
from weightsearch.fit import DEFAULTS, Features, FitSettings, fit, predict, split_by_run
from weightsearch.metrics import score
from weightsearch.types import Method
from weightsearch.zoo.store import Zoo


def test_splits_are_by_run_and_by_share():
    runs = np.repeat(np.arange(40, 140), 9)
    split = split_by_run(runs, seed=0)
    parts = [set(split.train), set(split.validation), set(split.test)]
    assert [len(part) for part in parts] == [70, 15, 15]
    assert set.union(*parts) == set(range(40, 140))
    assert split == split_by_run(runs[::-1], seed=0)
    assert split != split_by_run(runs, seed=1)
    assert all(split.name_of(run) == "validation" for run in split.validation)


def test_too_few_runs_to_split_are_refused():
    with pytest.raises(WeightsearchError, match="at least 8"):
        split_by_run(np.arange(7), seed=0)


def test_scores_equal_scikit_learns_and_counted_pairs():
    generator = np.random.default_rng(0)
    truth, predicted = generator.random(60), generator.random(60)
    truth[:10] = truth[0]  # ties
    scores = score(predicted, truth)
    assert scores.r2 == pytest.approx(r2_score(truth, predicted))
    assert scores.mae == pytest.approx(mean_absolute_error(truth, predicted))
    assert scores.mse == pytest.approx(mean_squared_error(truth, predicted))
    a = np.sign(truth[:, None] - truth) * np.sign(predicted[:, None] - predicted)
    tied = (np.sign(truth[:, None] - truth) != 0).sum(), (np.sign(predicted[:, None] - predicted) != 0).sum()
    assert scores.tau == pytest.approx(a.sum() / np.sqrt(tied[0] * tied[1]))


@pytest.mark.parametrize("method", list(Method))
def test_a_fit_beats_the_mean_on_its_training_runs_and_repeats_by_seed(zoo: Zoo, method: Method):
    split = split_by_run(zoo.table().run, seed=0)
    config, _ = DEFAULTS[method]
    settings = FitSettings(epochs=25, batch_size=16)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = fit(zoo, split, config, settings, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())  # global state untouched
    table = zoo.table()
    train = np.flatnonzero(np.isin(table.run, split.train))
    predicted = predict(first.encoder, Features(zoo, first.encoder, train), train)
    assert score(predicted, table.test_accuracy[train]).r2 > 0.5
    validation = np.flatnonzero(np.isin(table.run, split.validation))
    again = predict(first.encoder, Features(zoo, first.encoder, validation), validation)
    assert score(again, table.test_accuracy[validation]) == first.validation

    second = fit(zoo, split, config, settings, seed=1)
    for name, tensor in first.encoder.state_dict().items():
        assert torch.equal(tensor, second.encoder.state_dict()[name])
    assert fit(zoo, split, config, settings, seed=2).validation != first.validation


def test_the_normalisation_sees_training_runs_only(zoo: Zoo):
    split = split_by_run(zoo.table().run, seed=0)
    config, _ = DEFAULTS[Method.STATISTICS]
    fitted = fit(zoo, split, config, FitSettings(epochs=1))
    train = np.flatnonzero(np.isin(zoo.table().run, split.train))
    features = fitted.encoder.features(torch.from_numpy(zoo.weights(train)))
    torch.testing.assert_close(fitted.encoder.knots[:, 0], features.min(dim=0).values)
    torch.testing.assert_close(fitted.encoder.knots[:, -1], features.max(dim=0).values)
