"""Splits and fits: no run lies in two parts, a fit learns what is there to learn, and the seed decides everything."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tensors import assert_close
from weightsearch.encoders import EncoderConfig, build_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.metrics import score
from weightsearch.training.data import Features, usable_checkpoints
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS, FitOptimizer, FitSettings
from weightsearch.training.represent import represent_zoo
from weightsearch.types import Method, SplitBy, Target
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import CheckpointTable, Zoo


def some_table(runs: int = 100, epochs: int = 9) -> CheckpointTable:
    run, epoch = (part.ravel() for part in np.meshgrid(np.arange(40, 40 + runs), np.arange(epochs), indexing="ij"))
    some = np.random.default_rng(0).random((4, runs * epochs))
    return CheckpointTable(np.arange(runs * epochs).astype(str), run, epoch, *some, recipes={})


def test_splits_are_by_run_and_by_share():
    table = some_table()
    split = make_split(table, seed=0)
    parts = [set(table.run[part]) for part in split.parts.values()]
    assert [len(part) for part in parts] == [70, 15, 15] == list(split.runs(table).values())
    assert set.union(*parts) == set(range(40, 140))
    assert sorted(np.concatenate(list(split.parts.values()))) == list(range(900))
    assert split.to_dict(table) == make_split(table, seed=0).to_dict(table)
    assert split.to_dict(table) != make_split(table, seed=1).to_dict(table)
    assert set(split.names(table)[split.validation]) == {"validation"}
    assert not (split.names(table) == "").any()


def test_splits_by_checkpoint_mix_the_runs_and_say_so():
    table = some_table()
    split = make_split(table, by=SplitBy.CHECKPOINT, seed=0)
    assert [len(part) for part in split.parts.values()] == [630, 135, 135]
    assert sorted(np.concatenate(list(split.parts.values()))) == list(range(900))
    assert len(np.intersect1d(table.run[split.train], table.run[split.test])) > 50
    assert "looser" in split.label
    assert [[40 + p // 9, p % 9] for p in split.test] == split.to_dict(table)["test"]


def test_one_checkpoint_of_each_run_is_drawn_at_random_and_its_run_keeps_its_part():
    table = some_table()
    split = make_split(table, per_run=1, seed=0)
    drawn = np.concatenate(list(split.parts.values()))
    assert sorted(table.run[drawn]) == list(range(40, 140))
    assert np.bincount(table.epoch[drawn], minlength=9).min() > 3
    names = split.names(table)
    assert all(len(set(names[table.run == run])) == 1 for run in range(40, 140))
    assert "1 random checkpoint" in split.label
    bigger = make_split(some_table(200), per_run=1, seed=0)  # the same runs are drawn alike in a zoo that has grown
    assert set(drawn) < set(np.concatenate(list(bigger.parts.values())))


def test_folds_share_the_test_part_alone():
    table = some_table()
    splits = [make_split(table, seed=0, fold=fold) for fold in range(3)]
    for one, other in itertools.pairwise(splits):
        assert np.array_equal(one.test, other.test)
        assert not np.array_equal(one.validation, other.validation)
        assert not np.intersect1d(other.train, other.validation).size


def test_too_few_runs_to_split_are_refused():
    with pytest.raises(WeightsearchError, match="at least 8"):
        make_split(some_table(7))
    make_split(some_table(7), by=SplitBy.CHECKPOINT)


def test_scores_equal_scikit_learns_and_counted_pairs():
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score  # as long to import as torch

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


@pytest.mark.slow
@pytest.mark.parametrize("method", list(Method))
def test_a_fit_beats_the_mean_on_its_training_runs_and_repeats_by_seed(zoo: Zoo, method: Method):
    split = make_split(zoo.table())
    config, _ = DEFAULTS[method]
    settings = FitSettings(epochs=25, batch_size=16)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = fit(zoo, split, config, settings, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())  # global state untouched
    truth = zoo.table().test_accuracy
    assert score(represent_zoo(zoo, first.encoder, split.train).predicted, truth[split.train]).r2 > 0.5
    again = score(represent_zoo(zoo, first.encoder, split.validation).predicted, truth[split.validation])
    assert asdict(again) == pytest.approx(asdict(first.validation), rel=1e-5)
    assert min(first.losses) == pytest.approx(first.validation.mse)

    second = fit(zoo, split, config, settings, seed=1)
    for name, tensor in first.encoder.state_dict().items():
        assert torch.equal(tensor, second.encoder.state_dict()[name])
    assert fit(zoo, split, config, settings, seed=2).validation != first.validation


@pytest.mark.slow
def test_the_normalisation_sees_the_training_part_only(zoo: Zoo):
    split = make_split(zoo.table())
    train = torch.from_numpy(zoo.weights(split.train))
    fitted = fit(zoo, split, DEFAULTS[Method.STATISTICS][0], FitSettings(epochs=1)).encoder
    features = fitted.features(train)
    assert_close(fitted.knots[:, 0], features.min(dim=0).values)
    assert_close(fitted.knots[:, -1], features.max(dim=0).values)
    fitted = fit(zoo, split, DEFAULTS[Method.FC][0], FitSettings(epochs=1)).encoder
    assert_close(fitted.mean, train.quantile(0.5, dim=0))


@pytest.mark.slow
def test_a_zoo_too_big_for_memory_is_fitted_the_same(zoo: Zoo, monkeypatch: pytest.MonkeyPatch):
    split = make_split(zoo.table())
    config, settings = DEFAULTS[Method.COMVEX_CONV][0], FitSettings(epochs=3, batch_size=16)
    kept = fit(zoo, split, config, settings)
    monkeypatch.setattr("weightsearch.zoo.store.RELEASE_BYTES", 100_000)
    features = Features(zoo, Method.COMVEX_CONV, split.train, split.train, cache_bytes=0)
    assert kept.losses == fit(zoo, split, config, settings, features=features).losses


RAW = (Method.FC, Method.FC_LINEAR, Method.COMVEX_LINEAR, Method.COMVEX_CONV)


@pytest.mark.slow
@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("method", RAW)
def test_large_networks_in_bfloat16_give_nearly_the_same_fit(
    zoo: Zoo, method: Method, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    split = make_split(zoo.table())
    config, settings = DEFAULTS[method][0], FitSettings(epochs=2, batch_size=16)
    exact = fit(zoo, split, config, settings)
    monkeypatch.setattr("weightsearch.training.data.SMALL", 0)
    monkeypatch.setattr("weightsearch.training.data.multiplies_bfloat16", lambda: True)
    positions = np.concatenate([split.train, split.validation])
    features = Features(zoo, method, split.train, positions, cache_bytes)
    assert features(split.train[:3]).dtype is torch.bfloat16
    rounded = fit(zoo, split, config, settings, features=features)
    assert rounded.losses != exact.losses  # it did take the other way
    np.testing.assert_allclose(rounded.losses, exact.losses, rtol=0.15)  # steps part ways, not where they lead
    assert all(parameter.dtype is torch.float32 for parameter in rounded.encoder.parameters())
    # Who uses the encoder later does so in float32, and finds what the fit found.
    with torch.no_grad():
        found = rounded.encoder(features(split.validation))
    assert_close(
        torch.from_numpy(represent_zoo(zoo, rounded.encoder, split.validation).predicted).float(),
        found,
        atol=0.005,
        rtol=0,
    )


@pytest.mark.parametrize("method", RAW)
def test_gradients_in_bfloat16_are_those_in_float32(zoo: Zoo, method: Method):
    encoder = build_encoder(zoo.architecture, EncoderConfig(method, dropout=0.0), torch.Generator().manual_seed(0))
    inputs = torch.randn(32, zoo.architecture.size, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = []
    for batch in (inputs, inputs.float()):
        encoder.zero_grad()
        encoder(batch).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    for rounded, exact in zip(*gradients, strict=True):
        assert rounded.dtype is torch.float32
        assert (rounded - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", list(FitOptimizer))
def test_a_killed_fit_goes_on_where_it_was(
    zoo: Zoo, optimizer: FitOptimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("weightsearch.training.fit.PROGRESS_SECONDS", 0.0)
    split = make_split(zoo.table())
    config = EncoderConfig(Method.STATISTICS, input_noise=0.1, dropout=0.3)
    settings = FitSettings(epochs=6, batch_size=16, optimizer=optimizer)
    whole = fit(zoo, split, config, settings)

    def kill(epoch: int, _: float) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    progress = tmp_path / "fit"
    with pytest.raises(KeyboardInterrupt):
        fit(zoo, split, config, settings, on_epoch=kill, progress=progress)
    seen: list[int] = []
    resumed = fit(zoo, split, config, settings, on_epoch=lambda epoch, _: seen.append(epoch), progress=progress)
    assert seen == [4, 5, 6]
    assert resumed.losses == whole.losses
    assert resumed.validation == whole.validation
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("column", ["train_loss", "test_loss", "train_accuracy"])
def test_another_column_can_be_the_target(zoo: Zoo, column: str):
    split = make_split(zoo.table())
    target = Target(column, lower_is_better="loss" in column)
    fitted = fit(zoo, split, DEFAULTS[Method.STATISTICS][0], FitSettings(epochs=30, batch_size=16), target=target)
    truth = getattr(zoo.table(), column)
    assert score(represent_zoo(zoo, fitted.encoder, split.train).predicted, truth[split.train]).tau > 0.5
    assert fitted.encoder.config.target == column


def test_what_cannot_be_learnt_is_one_line(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    config, settings = DEFAULTS[Method.STATISTICS][0], FitSettings(epochs=2)
    table = zoo.table()
    with pytest.raises(WeightsearchError, match="no such column; choose among train_loss"):
        usable_checkpoints(zoo, Target("recipes"))
    with pytest.raises(WeightsearchError, match="diverged"):
        fit(zoo, make_split(table), config, replace(settings, learning_rate=1e38))
    constant = replace(table, test_accuracy=np.full(len(table), 0.1))
    monkeypatch.setattr(zoo, "table", lambda: constant)
    with pytest.raises(WeightsearchError, match="same test_accuracy; there is nothing to learn"):
        fit(zoo, make_split(table), config, settings)
    unknown = table.test_accuracy.copy()
    unknown[:3] = np.nan
    monkeypatch.setattr(zoo, "table", lambda: replace(table, test_accuracy=unknown))
    read = type(zoo).weights

    def weights(positions: np.ndarray) -> np.ndarray:
        values = read(zoo, positions)
        values[np.asarray(positions) == 7] = np.inf
        return values

    monkeypatch.setattr(zoo, "weights", weights)
    usable = usable_checkpoints(zoo, Target())
    assert set(range(len(table))) - set(usable) == {0, 1, 2, 7}
    assert len(caplog.records) == 1
    assert "3 without a test_accuracy, 1 with NaN or infinite weights" in caplog.text
