"""Strangers' files in one folder: an odd row costs nobody else anything, from adding to exporting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.attack.files import NUMBERS, TEXTS
from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint
from weightsearch.cli import app
from weightsearch.index import IndexStore, State, doctor, export, info
from weightsearch.search.add import add
from weightsearch.search.index import Index

REFERENCE = Path(__file__).parents[2] / "index"
DEEP: object = 1
for _ in range(600):
    DEEP = [DEEP]
KEYS = ("run", "epoch", "dataset", "test_accuracy", "learning_rate", "config", "metrics", "__0", "number", "id", "seed")
VALUES = (*TEXTS[:20], *NUMBERS, [0.1, 0.01], {"a": {"b": [None]}}, [], {}, DEEP, [[1, 2], "x"])
pytestmark = pytest.mark.slow


def test_odd_rows_stop_neither_the_batch_nor_a_question(tmp_path: Path):
    index, folder = tmp_path / "index", tmp_path / "in"
    shutil.copytree(REFERENCE, index)
    folder.mkdir()
    good = read_checkpoint(REFERENCE / "examples" / "good.pt")
    for number, value in enumerate(VALUES):
        path = folder / (f"m{number}.pt" if number % 5 else f"m{number} \x1b[2J[b]\u202e.pt")
        write_checkpoint(path, good.weights + np.float32(1e-4 * (number + 1)), good.architecture)
        sidecar = {key: value for i, key in enumerate(KEYS) if (i + number) % 3} | {
            f"key{number}": value,
            str(value)[:9]: 1,
        }
        text = json.dumps({"config": sidecar, **sidecar}, ensure_ascii=number % 2 == 0)
        path.with_suffix(".json").write_bytes(text.encode("utf-8", "surrogatepass"))
    report = add([folder], index, quiet=True)
    assert report.added == len(VALUES), report.quarantined
    assert not report.quarantined
    answer = Index.open(index).query(folder / "m1.pt", k=20)
    assert str(answer).isprintable() or all(line.isprintable() for line in str(answer).split("\n"))
    json.dumps(answer.to_dict(), allow_nan=False).encode()
    assert len({neighbour.id for neighbour in answer.neighbours}) == 20
    json.dumps(info(index).to_dict(), default=str).encode()
    assert {finding.state for finding in doctor(index)} <= {State.OK}
    rows = export(index, tmp_path / "rows.parquet")
    assert rows == len(IndexStore.open(index))
    assert duckdb.connect().execute(f"SELECT count(*) FROM '{tmp_path / 'rows.parquet'}'").fetchone() == (rows,)
    for command in ("info", "doctor"):
        shown = CliRunner().invoke(app, [command, "--index", str(index)], standalone_mode=False)
        assert shown.exception is None, shown.exception
        assert all(line.isprintable() for line in shown.output.split("\n"))
