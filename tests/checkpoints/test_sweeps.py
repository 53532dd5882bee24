"""Sweeps that real frameworks wrote are imported with no option: every run, every checkpoint, the right accuracy."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from weightsearch.zoo.import_zoo import import_zoo
from weightsearch.zoo.store import Zoo

DATA = Path(__file__).parent / "data" / "sweeps.tar.xz"
# Everyday forms that hold no network of their own: what each says of its accuracy is beside the point there.
FORMS = 21


@pytest.fixture(scope="session")
def sweeps(shared: Path) -> Path:
    with FileLock(shared / "sweeps.lock"):
        if not (shared / "sweeps").exists():
            with tarfile.open(DATA) as archive:
                archive.extractall(shared / "sweeps.partial", filter="data")
            (shared / "sweeps.partial").rename(shared / "sweeps")
    return shared / "sweeps"


def lightning(folder: Path) -> dict[str, float]:
    """`val_acc` of a file's epoch in its run's metrics.csv."""
    truth = {}
    for path in folder.rglob("*.ckpt"):
        epoch = re.search(r"epoch=(\d+)", path.name)[1]
        with (path.parent.parent / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["epoch"] == epoch and row["val_acc"]]
        [truth[str(path)]] = [float(row["val_acc"]) for row in rows]
    return truth


def trainer(folder: Path) -> dict[str, float]:
    """`eval_accuracy` of the checkpoint's own step; the run's folder holds a copy, which is none of its own."""
    truth = {}
    for path in folder.rglob("checkpoint-*/model.safetensors"):
        state = json.loads((path.parent / "trainer_state.json").read_text())
        step = int(path.parent.name.rpartition("-")[2])
        [truth[str(path)]] = [
            row["eval_accuracy"] for row in state["log_history"] if row["step"] == step and "eval_accuracy" in row
        ]
    return truth


def timm(folder: Path) -> dict[str, float]:
    """In per cent 10 + epoch + run; `last` and `model_best` are copies."""
    truth = {}
    for path in folder.rglob("checkpoint-*.pth.tar"):
        epoch, run = re.search(r"-(\d+)\.pth", path.name)[1], re.search(r"^2026-(\d+)", path.parent.name)[1]
        truth[str(path)] = (10 + int(epoch) + int(run)) / 100
    return truth


def ray(folder: Path) -> dict[str, float]:
    """The line of result.json that names the checkpoint's folder."""
    truth = {}
    for results in folder.rglob("result.json"):
        for line in map(json.loads, results.read_text().splitlines()):
            for path in (results.parent / line["checkpoint_dir_name"]).glob("*"):
                truth[str(path)] = line["accuracy"]
    return truth


def optuna(folder: Path) -> dict[str, float]:
    """The value that a trial reported at the step that its file's name has."""
    truth = {}
    with sqlite3.connect(folder / "study.db") as study:
        values = study.execute(
            "SELECT number, step, intermediate_value FROM trial_intermediate_values JOIN trials USING (trial_id)"
        ).fetchall()
    study.close()
    for number, step, value in values:
        path = folder / "trials" / f"trial_{number}" / f"model_epoch{step}.pt"
        if path.exists():
            truth[str(path)] = value
    return truth


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "oracle", "runs", "checkpoints"),
    [
        ("lightning", lightning, 4, 16),
        ("hf-bert", trainer, 1, 3),
        ("hf-vit", trainer, 1, 6),
        ("timm-saver", timm, 2, 4),
        ("ray", ray, 9, 27),
        ("optuna", optuna, 10, 60),
    ],
)
def test_a_sweep(
    name: str,
    oracle: Callable[[Path], dict[str, float]],
    runs: int,
    checkpoints: int,
    sweeps: Path,
    tmp_path: Path,
):
    summary = import_zoo(sweeps / name, tmp_path / "zoo", quiet=True)
    truth = {str(Path(path).resolve()): value for path, value in oracle(sweeps / name).items()}
    assert (summary.runs, summary.checkpoints, len(truth)) == (runs, checkpoints, checkpoints)
    table = Zoo.open(summary.path).table()
    known = dict(zip(table.source.tolist(), table.test_accuracy.tolist(), strict=True))
    assert known == pytest.approx(truth)
    assert not summary.quarantined
    assert any(note.startswith(f"accuracy for {checkpoints} of {checkpoints}, from ") for note in summary.notes)
    folders = {source: table.names[run] for source, run in zip(table.source.tolist(), table.run, strict=True)}
    assert len({(run, Path(source).parent) for source, run in folders.items()}) in (runs, checkpoints)
    assert all(table.recipes[run] for run in set(table.run.tolist())) or name == "hf-bert"


@pytest.mark.slow
def test_everyday_files(sweeps: Path, tmp_path: Path):
    """One small network in 21 forms of `torch.save`: each is read, as the same layers."""
    summary = import_zoo(sweeps / "everyday-pickles", tmp_path / "zoo", quiet=True)
    files = [
        path for path in (sweeps / "everyday-pickles").rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".bin")
    ]
    assert (len(files), summary.checkpoints, summary.architectures) == (FORMS, FORMS, 1)
    assert not summary.quarantined
