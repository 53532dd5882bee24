"""Each main command does its work once, on small things, in the fast suite."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
import torch

from tests.cli.conftest import Run
from tests.zoo.public_zoos import write_sweep
from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint
from weightsearch.training.summary import TrainSummary
from weightsearch.zoo.store import Zoo


def answered(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 0, err
    return out


def test_build_zoo_train_and_query(run: Run, tmp_path: Path):
    """Twelve networks are too few to learn from, but enough for every step to do its work."""
    options = ("--runs", 12, "--epochs", 1, "--filters", 2, "--workers", 1, "--seed", 1, "--quiet")
    assert "12 runs" in answered(run("build-zoo", "--dataset", "digits", "--out", "zoo", *options))
    assert "24" in answered(run("zoo", "info", "zoo"))
    trained = answered(run("train", "zoo", "--method", "statistics", "--out", "index", "--examples", 1, "--quiet"))
    assert "statistics" in trained
    (example,) = (tmp_path / "index" / "examples").glob("*.pt")
    answer = json.loads(answered(run("query", example, "--index", "index", "--k", 2, "--json")))
    assert len(answer["neighbours"]) == 2
    assert answer["id"] == read_checkpoint(example).id


def test_import(run: Run, tmp_path: Path):
    write_sweep(tmp_path / "sweep", runs=2)
    assert "2 runs, 4 checkpoints" in answered(run("import", "sweep", "--out", "zoo", "--quiet"))
    assert len(Zoo.open(tmp_path / "zoo").table()) == 4


def test_what_is_added_is_found_changed_exported_and_removed(run: Run, trained: TrainSummary, index_copy: Path):
    own = read_checkpoint(trained.examples[0].path)
    write_checkpoint("own.pt", own.weights * 1.01, own.architecture)
    id = read_checkpoint("own.pt").id
    index = ("--index", index_copy)
    assert "1 checkpoint added" in answered(run("add", "own.pt", *index, "--quiet"))
    answer = json.loads(answered(run("query", "own.pt", *index, "--k", 1, "--json")))
    assert answer["indexed"]
    answered(run("update", "--set", "team=red", "--where", f"id = '{id}'", *index))
    answered(run("export", "rows.parquet", "--where", "team = 'red'", *index))
    assert duckdb.connect().sql("SELECT id FROM 'rows.parquet'").fetchall() == [(id,)]
    answered(run("get", id, "--out", "back.pt", *index))
    original = torch.load("own.pt")
    assert all(torch.equal(value, original[name]) for name, value in torch.load("back.pt").items())
    info = json.loads(answered(run("info", *index, "--json")))
    assert info["architectures"][0]["rows"] == trained.checkpoints + 1
    answered(run("rebuild", *index))
    answered(run("remove", id, *index))
    assert "broken" not in answered(run("doctor", *index))
    answer = json.loads(answered(run("query", "own.pt", *index, "--k", 1, "--json")))
    assert not answer["indexed"]


def test_viz(run: Run, trained: TrainSummary, tmp_path: Path):
    answered(run("viz", "--index", trained.index, "--figure", "distribution", "--out", "drawn", "--quiet"))
    (picture,) = (tmp_path / "drawn").iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_evaluate(run: Run, zoo: Zoo):
    options = ("--method", "raw-weights", "--seeds", 1, "--workers", 1, "--json", "--quiet")
    rows = [json.loads(line) for line in answered(run("evaluate", zoo.path, *options)).splitlines()]
    good = {row["metric"]: row["value"] for row in rows if row["method"] == "raw-weights" and row["seed"] is None}
    assert good["precision.chance.good"] == pytest.approx(0.25, abs=0.05)  # good is the best quarter
    assert 0 <= good["precision@10.good"] <= 1
    assert good["twin.recall"] < 1  # raw weights do not find a permuted copy
