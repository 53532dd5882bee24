"""What `train` says of itself, computed anew from the zoo and the files that it left."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from weightsearch.encoders import activation_code, load_encoder
from weightsearch.errors import UsageError
from weightsearch.index import IndexStore
from weightsearch.metrics import Prediction
from weightsearch.training.options import TrainOptions
from weightsearch.training.summary import TrainSummary
from weightsearch.training.train import best_method, train
from weightsearch.types import Method, Metric, SplitBy, Target
from weightsearch.uncertainty.novelty import Familiar, describe_layers
from weightsearch.zoo.store import Zoo


def parts_by_hand(runs: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The protocol as the documentation tells it: 15 % of the runs to test, 15 % to validation, by a seeded shuffle."""
    shuffled = np.random.default_rng(seed).permutation(np.unique(runs))
    held = round(0.15 * len(shuffled))
    return {"test": shuffled[:held], "validation": shuffled[held : 2 * held], "train": shuffled[2 * held :]}


def r2_by_hand(predicted: np.ndarray, truth: np.ndarray) -> float:
    return 1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()


def prediction(r2: float) -> Prediction:
    return Prediction(r2=r2, tau=0.5, mae=0.1, mse=0.01, count=10)


def test_the_method_kept_is_the_best_on_validation_runs():
    scores = {Method.FC: prediction(0.3), Method.INVARIANT: prediction(0.9), Method.STATISTICS: prediction(-5.0)}
    assert best_method(scores) is Method.INVARIANT
    assert best_method({Method.FC: prediction(-2.0), Method.COMVEX_CONV: prediction(-1.0)}) is Method.COMVEX_CONV


@pytest.mark.slow
def test_split_method_and_scores_are_as_computed_anew(zoo: Zoo, trained: TrainSummary):
    table = zoo.table()
    parts = parts_by_hand(table.run, seed=0)
    directory = trained.index / zoo.architecture.fingerprint
    notes = json.loads((directory / "encoder.json").read_text())
    for name, runs in parts.items():
        assert notes["split"][name] == sorted(runs.tolist())
        assert trained.runs[name] == len(runs)
    assert trained.method == max(trained.validation, key=lambda method: trained.validation[method].r2)
    assert len(trained.validation) == 3
    encoder = load_encoder(directory)
    codes = torch.tensor([activation_code(table.recipes[run]["activation"]) for run in table.run.tolist()])
    predicted = encoder.embed(torch.from_numpy(zoo.weights(slice(None))), codes)[1].double().numpy()
    for name, said in (("validation", trained.validation[trained.method]), ("test", trained.test)):
        here = np.isin(table.run, parts[name])
        assert said.count == here.sum()
        assert said.r2 == pytest.approx(r2_by_hand(predicted[here], table.test_accuracy[here]), abs=1e-5)
        assert said.mae == pytest.approx(np.abs(predicted[here] - table.test_accuracy[here]).mean(), abs=1e-6)
    learned = np.isin(table.run, parts["train"])  # so that the training rows' score could not be taken for it
    assert abs(r2_by_hand(predicted[learned], table.test_accuracy[learned]) - trained.test.r2) > 1e-3


@pytest.mark.slow
def test_novelty_is_fitted_on_training_rows_alone(zoo: Zoo, trained: TrainSummary):
    table = zoo.table()
    learned = np.isin(table.run, parts_by_hand(table.run, seed=0)["train"])
    descriptions = describe_layers(zoo.weights(slice(None)), zoo.architecture)
    familiar = Familiar.load(trained.index / zoo.architecture.fingerprint / "familiar.npz")
    ends = np.stack([descriptions[learned].min(axis=0), descriptions[learned].max(axis=0)])
    np.testing.assert_allclose(familiar.ends, ends, rtol=1e-5, atol=1e-6)
    assert (descriptions[~learned] > ends[1] + 1e-3).any()  # held-out rows would have widened them
    np.testing.assert_allclose(familiar.centre, np.median(descriptions[learned], axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_choices_take_their_strings(zoo: Zoo, tmp_path):
    summary = train(
        zoo.path, tmp_path / "index", method="statistics", metric="l2", split_by="run", target="train_accuracy",
        quiet=True,
    )  # fmt: skip
    assert summary.method is Method.STATISTICS
    index = IndexStore.open(tmp_path / "index")
    assert index.metric is Metric.L2
    assert index.target == Target("train_accuracy")


def test_options_say_what_they_take():
    assert TrainOptions(method="auto").method is None
    assert TrainOptions(split_by="checkpoint").split_by is SplitBy.CHECKPOINT
    for changes, says in (
        ({"method": "magic"}, "--method magic: choose auto or one of fc, "),
        ({"metric": "l3"}, "--metric l3: choose one of cosine, l2"),
        ({"split_by": "epoch"}, "--split epoch"),
        ({"examples": 9}, "--examples 9"),
        ({"trials": -1}, "--trials -1"),
        ({"per_run": 0}, "--per-run 0"),
    ):
        with pytest.raises(UsageError, match=says):
            TrainOptions(**changes)
