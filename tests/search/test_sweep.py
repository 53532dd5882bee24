"""A folder of runs as a table: ranks, advice, copies, files that cannot be read, settings that matter."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightsearch import cli
from weightsearch.checkpoints.state_dict import write_checkpoint
from weightsearch.errors import WeightsearchError
from weightsearch.search.sweep import Run, lines, settings, sweep
from weightsearch.types import Architecture, Layer, LayerKind

ARCHITECTURE = Architecture((Layer("dense", LayerKind.DENSE, (3, 2)),))


def write(path: Path, seed: int, **metadata: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).normal(size=ARCHITECTURE.size).astype(np.float32)
    write_checkpoint(path, weights, ARCHITECTURE, metadata)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Run i ends at i / 10; run 3 still improves, run 1 has the weights of run 8."""
    root = tmp_path / "runs"
    for run in range(1, 10):
        for epoch in (1, 2):
            rising = 0.1 if run == 3 else 0.001
            accuracy = run / 10 - rising * (2 - epoch)
            seed = 100 * (8 if run == 1 and epoch == 2 else run) + epoch
            recipe = {"learning_rate": 10.0 ** -(run % 4), "width": run}
            write(root / f"run{run}" / f"epoch_{epoch}.pt", seed, epoch=epoch, test_accuracy=accuracy, recipe=recipe)
    (root / "run9" / "broken.pt").write_bytes(b"nothing")
    return root


def test_runs_are_ranked_by_their_latest_checkpoint_with_advice(folder: Path):
    table = sweep([folder])
    by_name = {run.run.rpartition("/")[2]: run for run in table.runs}
    assert [run.accuracy for run in table.runs] == pytest.approx([i / 10 for i in range(9, 0, -1)])
    assert {run.epoch for run in table.runs} == {2}
    assert by_name["run9"].advice == "keep"
    assert by_name["run2"].advice == "stop"
    copied = {by_name["run1"].advice, by_name["run8"].advice}
    assert "could go" in copied
    assert [path for path, _ in table.failures] == [str(folder / "run9" / "broken.pt")]
    assert "9 runs, 18 checkpoints" in table.summary()
    assert "1 files" not in table.summary()


def test_copies_count_once_and_what_varies_in_a_configuration_is_of_the_recipe(tmp_path: Path):
    """A Trainer's folders: the last network lies once more in its run's own, and `config.json` beside each."""
    for run in range(2):
        for part, seed in (("checkpoint-1", 0), ("checkpoint-2", 1), (".", 1)):
            write(tmp_path / f"r{run}" / part / "model.safetensors", 10 * run + seed)
            config = {"hidden_size": 8 * (1 + run), "model_type": "vit"}
            (tmp_path / f"r{run}" / part / "config.json").write_text(json.dumps(config))
    table = sweep([tmp_path])
    assert [run.checkpoints for run in table.runs] == [2, 2]
    assert sorted(run.recipe["hidden_size"] for run in table.runs) == [8, 16]
    assert not any("model_type" in run.recipe for run in table.runs)


def test_a_run_that_improves_goes_on(tmp_path: Path):
    for run, last in enumerate((0.2, 0.5, 0.6, 0.9)):
        for epoch in (1, 2):
            accuracy = last - (0.1 if run == 1 else 0.0) * (2 - epoch)
            write(tmp_path / f"r{run}" / f"epoch_{epoch}.pt", 10 * run + epoch, epoch=epoch, test_accuracy=accuracy)
    assert {run.run[-2:]: run.advice for run in sweep([tmp_path]).runs}["r1"] == "continue"


def test_the_table_fits_and_the_csv_has_all(folder: Path):
    table = sweep([folder])
    shown = lines(table, 80, most=3)
    assert max(map(len, shown[:5])) <= 80
    assert any("6 more" in line for line in shown)
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    assert len(rows) == 9
    assert float(rows[0]["accuracy"]) == pytest.approx(0.9)
    assert float(rows[0]["recipe.width"]) == 9
    assert json.loads(json.dumps(table.to_dict(), allow_nan=False))["runs"][0]["recipe"]["width"] == 9


@pytest.mark.slow
def test_the_setting_that_makes_the_difference_is_found():
    generator = np.random.default_rng(0)
    runs = []
    for i in range(40):
        rate, noise = 10.0 ** generator.uniform(-4, -1), float(generator.normal())
        accuracy = float(0.9 + 0.1 * np.log10(rate) + 0.01 * generator.normal())
        runs.append(Run(str(i), "", "", 1, accuracy=accuracy, recipe={"noise": noise, "lr": rate, "seed": i}))
    found = settings(runs)
    assert [one.key for one in found] == ["lr", "noise"]
    assert found[0].importance > 5 * found[0].deviation
    assert found[1].importance < 0.1 * found[0].importance
    assert settings(runs[:19]) == ()


def test_nothing_to_rank_is_one_line(tmp_path: Path):
    with pytest.raises(WeightsearchError, match="holds no file of weights"):
        sweep([tmp_path])


@pytest.mark.slow
def test_the_command_prints_one_screen(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    index = Path(__file__).parents[2] / "index"
    out: dict[str, str] = {}
    for command in ("sweep", "query"):
        monkeypatch.setattr("sys.argv", ["weightsearch", command, str(folder), "--index", str(index)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
        out[command], err = capsys.readouterr()
        assert "broken.pt" in err
    assert out["sweep"] == out["query"]
    assert out["sweep"].startswith("9 runs, 18 checkpoints")
