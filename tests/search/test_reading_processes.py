"""Files read by processes: what the index holds is what one process would have put there."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import duckdb
import numpy as np
import pytest

from weightsearch.checkpoints.discovery import Sources
from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint
from weightsearch.relations import signature
from weightsearch.search import reading_processes
from weightsearch.search.add import AddReport, add, find_given
from weightsearch.search.file_records import RecordReader
from weightsearch.search.reading_processes import processes_for

REFERENCE = Path(__file__).parents[2] / "index"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty files of a sweep in two formats, three of them damaged, and one of another architecture."""
    folder = tmp_path_factory.mktemp("many") / "sweep"
    examples = [read_checkpoint(path) for path in sorted((REFERENCE / "examples").glob("*.pt"))]
    rng = np.random.default_rng(0)
    for number in range(120):
        example = examples[number % len(examples)]
        weights = example.weights + rng.normal(scale=1e-2, size=example.weights.shape).astype(np.float32)
        suffix = (".pt", ".safetensors")[number % 2]
        path = folder / f"run-{number // 5:02d}" / f"epoch={number % 5}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, weights, example.architecture, {"epoch": number % 5, "test_acc": rng.random()})
    no_weights, cut, empty = (
        next(folder.glob(name)) for name in ("run-03/epoch=0.*", "run-12/epoch=1.*", "run-18/epoch=3.*")
    )
    no_weights.write_bytes(b"no weights at all")
    cut.write_bytes(cut.read_bytes()[:9_000])
    empty.write_bytes(b"")
    (folder / "run-15" / "epoch=2.json").write_text("{ no JSON")
    np.savez(folder / "run-16" / "other.npz", **{"a.weight": np.ones((3, 4), np.float32)})
    return folder


def added(many: Path, index: Path, monkeypatch: pytest.MonkeyPatch, *, processes: bool) -> AddReport:
    shutil.copytree(REFERENCE, index)
    monkeypatch.setattr(reading_processes, "MANY", 1 if processes else 10**9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(reading_processes, "BATCH", 16)
    monkeypatch.setattr(signature, "COMPILED_FROM", 10**12)  # whose sums may differ in their last bit
    return add([many], index, quiet=True)


def held(index: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that the database says, in its order."""
    with duckdb.connect(str(index / "index.duckdb"), read_only=True) as connection:
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        assert {"signatures", "tensors"} <= set(names)
        return {
            name: list(map(repr, connection.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall()))
            for name in names
            if name != "state"
        }


@pytest.mark.slow
def test_an_index_is_the_same(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    alone = added(many, tmp_path / "alone", monkeypatch, processes=False)
    shared = added(many, tmp_path / "shared", monkeypatch, processes=True)
    assert alone.added == 118
    assert len(alone.quarantined) == 3
    assert alone.signed == 118
    assert any("epoch=2.json" in note for note in alone.notes)
    for name in ("added", "already", "unknown", "quarantined", "notes", "signed", "signed_already"):
        assert getattr(shared, name) == getattr(alone, name), name
    one, other = held(tmp_path / "alone"), held(tmp_path / "shared")
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name
    again = added_again(many, tmp_path / "shared")
    assert (again.added, again.already, again.signed) == (0, 118, 0)


def added_again(many: Path, index: Path) -> AddReport:
    return add([many], index, quiet=True)


@pytest.mark.slow
def test_processes_that_are_killed_lose_nothing(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []
    start = reading_processes._Process.__init__

    def counted(process, setup):
        start(process, setup)
        started.append(process._process)

    monkeypatch.setattr(reading_processes._Process, "__init__", counted)
    pieces = reading_processes._Process.answers
    asked = []

    def killed_at_times(process):
        asked.append(process)
        if len(asked) in (1, 4):  # no more than two batches of four or more have come by then
            os.kill(process._process.pid, signal.SIGKILL)
        return pieces(process)

    monkeypatch.setattr(reading_processes._Process, "answers", killed_at_times)
    alone = added(many, tmp_path / "alone", monkeypatch, processes=False)
    shared = added(many, tmp_path / "shared", monkeypatch, processes=True)
    assert len(started) > 2
    assert all(process.poll() is not None for process in started)
    assert (shared.added, shared.signed, shared.quarantined) == (alone.added, alone.signed, alone.quarantined)
    assert held(tmp_path / "alone") == held(tmp_path / "shared")


@pytest.mark.slow
def test_few_files_are_read_by_this_process(many: Path, monkeypatch: pytest.MonkeyPatch):
    files = find_given([many]).files
    reader = RecordReader({}, Sources())
    assert processes_for(files, reader) == 0
    monkeypatch.setattr(reading_processes, "MANY", 50)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert processes_for(files, reader) == reading_processes.PROCESSES
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert processes_for(files, reader) == 0
