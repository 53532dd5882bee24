"""Checkpoints into an index as they are saved: rows, standings, troubles that end no training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from weightsearch import record
from weightsearch.checkpoints.metadata import interpret
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import IndexStore
from weightsearch.integrations import Recorder
from weightsearch.paths import REFERENCE_INDEX
from weightsearch.relations.store import read_known
from weightsearch.search.add import add
from weightsearch.search.index import Index


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.slow
def test_a_loop_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In an index without an encoder: signatures, and ranks from what lies beside the files."""
    index, folder = tmp_path / "index", tmp_path / "saved"
    accuracies = {"a": (0.3, 0.6, 0.5), "b": (0.2, 0.55, 0.7)}
    for epoch in range(3):
        for seed, (run, values) in enumerate(accuracies.items()):
            model = network(10 * seed + epoch)
            standing = record(
                model, run, epoch=epoch, accuracy=values[epoch], recipe={"lr": 0.1}, index=index, folder=folder
            )
            assert standing.problem is None
            assert standing.best == max(values[: epoch + 1])
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "weightsearch: a, epoch 0: accuracy 0.300, the best of its run; the only run whose accuracy is known",
        "weightsearch: b, epoch 0: accuracy 0.200, the best of its run; rank 2 of 2 runs",
        "weightsearch: a, epoch 1: accuracy 0.600, the best of its run; rank 1 of 2 runs",
        "weightsearch: b, epoch 1: accuracy 0.550, the best of its run; rank 2 of 2 runs",
        "weightsearch: a, epoch 2: accuracy 0.500, best 0.600; rank 1 of 2 runs",
        "weightsearch: b, epoch 2: accuracy 0.700, the best of its run; rank 1 of 2 runs",
    ]
    signed = read_known(index)
    assert sorted(zip(signed["run"], signed["epoch"], strict=True)) == [(run, e) for run in "ab" for e in range(3)]
    path = folder / "a" / "epoch=1.pt"
    loaded = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(loaded[name], value) for name, value in network(1).state_dict().items())
    told = json.loads(path.with_name("epoch=1.pt.json").read_text())
    assert told == {"run": "a", "epoch": 1.0, "test_accuracy": 0.6, "recipe": {"lr": 0.1}}


@pytest.mark.slow
def test_rows_of_an_index_with_an_encoder(index_copy: Path, tmp_path: Path):
    opened = Index.open(index_copy)
    [fingerprint] = opened.architectures
    before = len(opened)
    from weightsearch.checkpoints.state_dict import to_state_dict

    rng = np.random.default_rng(0)
    weights = rng.normal(size=opened.architectures[fingerprint].size).astype(np.float32) / 10
    state = {name: torch.from_numpy(v) for name, v in to_state_dict(weights, opened.architectures[fingerprint]).items()}
    best = np.nanmax(opened.accuracies(fingerprint))
    standing = record(
        state, "mine", epoch=2.5, accuracy=float(best) / 2, values={"team": "red"}, dataset="digits",
        index=index_copy, folder=tmp_path, quiet=True,
    )  # fmt: skip
    table = opened.table(fingerprint, ["run", "epoch", "test_accuracy", "team", "dataset", "source"])
    assert len(opened) == before + 1
    assert (table["run"][-1], table["epoch"][-1], table["team"][-1]) == ("mine", 2.5, "red")
    assert table["test_accuracy"][-1] == best / 2
    assert table["source"][-1] == str((tmp_path / "mine" / "epoch=2.5.pt").resolve())
    runs = {
        run: max(v for r, v in zip(table["run"], table["test_accuracy"], strict=True) if r == run)
        for run in set(table["run"])
    }
    assert standing.runs == len(runs)
    assert standing.rank == 1 + sum(value > best / 2 for value in runs.values())
    assert standing.answer is not None
    other = record(
        {name: value + 1 for name, value in state.items()}, "elsewhere", epoch=1, accuracy=0.5, dataset="svhn",
        index=index_copy, folder=tmp_path, quiet=True,
    )  # fmt: skip
    assert (other.rank, other.runs) == (1, 1)  # of another dataset


@pytest.mark.slow
def test_what_the_framework_knows_goes_before_what_the_file_says(tmp_path: Path):
    import shutil

    index = tmp_path / "index"
    shutil.copytree(REFERENCE_INDEX, index)
    recorder = Recorder(index, quiet=True)
    path = tmp_path / "x.pt"
    torch.save({"state_dict": network(0).state_dict(), "epoch": 3, "val_acc": 0.25}, path)
    standing = recorder.add(path, interpret({"val_acc": 0.5, "run": "r", "hparams": {"lr": 1.0}}, "callback"))
    assert (standing.accuracy, standing.problem) == (0.5, None)
    where = Index.open(index).query(id=standing.answer.id.split()[0])
    assert (where.run, where.epoch, where.stated_accuracy, where.recipe) == ("r", 3, 0.5, {"lr": 1.0})
    assert add([path], index, quiet=True).added == 0


@pytest.mark.slow
def test_troubles_are_one_line_and_end_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "index").write_text("a file")
    standing = record(network(0), "a", epoch=1, index=tmp_path / "index", folder=tmp_path / "saved")
    assert standing.problem
    assert (tmp_path / "saved" / "a" / "epoch=1.pt").exists()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("weightsearch: a, epoch 1: saved in ")
    assert "not in the index" in line
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint at all")
    standing = record(tmp_path / "broken.pt", "a", index=tmp_path / "new", quiet=True)
    assert "text file" in standing.problem


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"accuracy": 91.2}, r"accuracy 91.2: give a share in \[0, 1\]"),
        ({"accuracy": float("nan")}, "accuracy nan: give a finite number"),
        ({"epoch": float("inf")}, "epoch inf: give a finite number"),
        ({"run": "../up"}, "give a name"),
        ({"run": "/etc"}, "give a name"),
        ({"run": " "}, "give a name"),
        ({"model": 3}, "a int is no network"),
        ({"model": "nowhere.pt"}, "nowhere.pt: there is no such checkpoint"),
    ],
)
def test_what_cannot_be_is_said(values: dict[str, object], says: str, tmp_path: Path):
    arguments = {"model": network(0), "run": "a", "index": tmp_path / "index", "folder": tmp_path / "saved", **values}
    with pytest.raises(UsageError, match=says):
        record(**arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "saved").write_text("a file")
    with pytest.raises(WeightsearchError, match=r"saved.*cannot be written"):
        record(network(0), "a", epoch=1, index=tmp_path / "index", folder=tmp_path / "saved")


@pytest.mark.slow
def test_an_index_keeps_what_it_held(tmp_path: Path):
    index = tmp_path / "index"
    record(network(0), "a", epoch=1, index=index, folder=tmp_path / "saved", quiet=True)
    identity = IndexStore.open(index).identity
    record(network(0), "a", epoch=1, index=index, folder=tmp_path / "saved", quiet=True)  # the same once more
    assert (IndexStore.open(index).identity, len(read_known(index))) == (identity, 1)
