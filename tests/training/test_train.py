"""Training on zoos that people may have: users' own targets, and those from which nothing can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import IndexStore
from weightsearch.training.data import target_values
from weightsearch.training.train import train
from weightsearch.types import Architecture, Layer, LayerKind, Method, Target, content_hash
from weightsearch.zoo.schema import CheckpointRow, RunRow
from weightsearch.zoo.store import Zoo, ZooInfo, open_writer, part_path, write_part

ARCHITECTURE = Architecture((Layer("0", LayerKind.DENSE, (4, 3)), Layer("1", LayerKind.DENSE, (2, 4))))


def make_zoo(path: Path, runs: int = 30, *, accuracy: float | None = None, unknown: int = 0, nan_rows: int = 0) -> Zoo:
    """Runs of two checkpoints whose accuracy is in the weights' scale, and the user's column `f1`, its opposite.

    `unknown` first checkpoints have no accuracy and no f1; `nan_rows` first ones have NaN weights.
    """
    info = ZooInfo("toy", "none", "imported", 0, "float32", ARCHITECTURE, {}, "0")
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 0.9, (2 * runs, 1))
    weights = (rng.normal(size=(2 * runs, ARCHITECTURE.size)) * scale).astype(np.float32)
    weights[:nan_rows, 0] = np.nan
    nan = float("nan")
    with open_writer(path, info) as writer:
        write_part(writer.temporary(0), weights)
        rows = []
        for i, row in enumerate(weights):
            value = nan if i < unknown else accuracy if accuracy is not None else float(scale[i, 0])
            extras = {} if i < unknown else {"f1": 1 - value, "team": "red"}
            rows.append(CheckpointRow(content_hash(row), i // 2, i % 2, nan, nan, nan, value, None, extras))
        writer.publish(0, writer.temporary(0), [RunRow(run, {"lr": 0.1}) for run in range(runs)], rows)
    return Zoo.open(path)


def refusal(zoo: Zoo, tmp_path: Path, **options: object) -> str:
    with pytest.raises(WeightsearchError) as caught:
        train(zoo.path, tmp_path / "index", method=Method.STATISTICS, quiet=True, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index").exists()
    return str(caught.value)


@pytest.mark.slow
def test_a_users_column_is_a_target(tmp_path: Path):
    zoo = make_zoo(tmp_path / "zoo", unknown=3)
    values = target_values(zoo.table(), Target("f1", lower_is_better=True))
    np.testing.assert_array_equal(values, 1 - zoo.table().test_accuracy)
    assert np.isnan(values[:3]).all()
    with pytest.raises(UsageError, match=r"--target team: the zoo has no such column; choose among .*f1"):
        target_values(zoo.table(), Target("team"))  # words, not numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runs": 1}, "the zoo has 1 finished run(s) to use; splitting by run into train, validation and test needs"),
        ({"accuracy": 0.5}, "every training checkpoint has the same test_accuracy; there is nothing to learn"),
        ({"unknown": 60}, "no checkpoint has a test_accuracy; choose another --target, or import the zoo again"),
        ({"nan_rows": 60}, "the zoo has 0 finished run(s)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_zoos_that_teach_nothing_are_one_line(tmp_path: Path, options: dict[str, int], says: str):
    assert says in refusal(make_zoo(tmp_path / "zoo", **options), tmp_path)


@pytest.mark.slow
def test_a_zoo_without_the_target_names_those_that_it_has(tmp_path: Path):
    zoo = make_zoo(tmp_path / "zoo", accuracy=0.5)
    assert refusal(zoo, tmp_path, target=Target("train_loss")).endswith("another --target among f1, test_accuracy")


@pytest.mark.slow
def test_two_architectures_mixed_are_one_line(tmp_path: Path):
    zoo = make_zoo(tmp_path / "zoo")
    np.save(part_path(zoo.path, 0), np.ones((60, 7), np.float32))
    assert "two architectures are mixed" in refusal(zoo, tmp_path)


@pytest.mark.slow
def test_an_index_judges_by_a_users_column_and_holds_rows_without_it(tmp_path: Path):
    zoo = make_zoo(tmp_path / "zoo", unknown=3, nan_rows=1)
    target = Target("f1", lower_is_better=True)
    summary = train(zoo.path, tmp_path / "index", method=Method.STATISTICS, target=target, examples=1, quiet=True)
    index = IndexStore.open(tmp_path / "index")
    fingerprint = zoo.architecture.fingerprint
    table = index.table(fingerprint, ["source", "test_accuracy", "f1", "team"])
    by_source = {source.rpartition("#")[2]: i for i, source in enumerate(table["source"])}
    assert "0/0" not in by_source  # NaN weights
    unknown = [by_source[key] for key in ("0/1", "1/0")]
    values = index.accuracies(fingerprint)
    assert np.isnan(values[unknown]).all()
    assert np.isnan(values).sum() == 2
    np.testing.assert_allclose(values, 1 - table["test_accuracy"])
    np.testing.assert_array_equal(values, table["f1"])
    assert [table["team"][i] for i in (*unknown, by_source["2/0"])] == [None, None, "red"]
    bad, good = index.thresholds(fingerprint)
    assert (good, bad) == tuple(np.nanquantile(values, [0.25, 0.75]))
    grades = index.grades(fingerprint)
    assert (grades[unknown] == 0).all()
    np.testing.assert_array_equal(grades == 1, values <= good)
    example = read_checkpoint(summary.examples[0].path)
    assert example.metadata["f1"] == pytest.approx(1 - example.metadata["test_accuracy"])
