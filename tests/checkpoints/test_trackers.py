"""Folders as training frameworks write them: each file gets its own accuracy, epoch, run and recipe, with no option."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints.other_formats import keras_h5, keras_zip
from weightsearch.checkpoints.discovery import DescribedCheckpoint, Sources, discover
from weightsearch.checkpoints.metadata import as_fractions, interpret, number, typed, unread, vary
from weightsearch.checkpoints.runs import one_run, sketch
from weightsearch.checkpoints.trackers.ray_tune import match_results


def state(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 2).state_dict()


def save(path: Path, content: Any = None, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state(seed) if content is None else content, path)


def read(folder: Path, **options: Any) -> dict[str, DescribedCheckpoint]:
    sources = Sources.make(**options)
    found = discover([folder])
    assert not found.missing
    return {file.path.relative_to(folder).as_posix(): sources.read(file) for file in found.files}


def accuracies(records: dict[str, DescribedCheckpoint]) -> dict[str, float]:
    return {name: record.metadata.value("test_accuracy") for name, record in records.items()}


def test_lightning(tmp_path: Path):
    for run in range(2):
        version = tmp_path / f"logs/version_{run}"
        for epoch, step in ((0, 11), (2, 33)):
            content = {"state_dict": state(epoch), "epoch": epoch, "global_step": step, "hyper_parameters": {"lr": 0.1}}
            save(version / f"checkpoints/epoch={epoch}-step={step}.ckpt", content)
        (version / "hparams.yaml").write_text("lr: 1e-3\nobject: !!python/object:os.system {a: 1}\n")
        rows = [f"{epoch},{11 * epoch + 10},,{run / 10 + epoch / 100}" for epoch in range(3)]
        (version / "metrics.csv").write_text("epoch,step,train_loss,val_acc\n" + "\n".join(rows) + "\n")
    records = read(tmp_path)
    expected = {
        f"logs/version_{run}/checkpoints/epoch={epoch}-step={11 * epoch + 11}.ckpt": run / 10 + epoch / 100
        for run in range(2)
        for epoch in (0, 2)
    }
    assert accuracies(records) == pytest.approx(expected)
    for name, record in records.items():
        assert record.metadata.run == f"{tmp_path.name}/{'/'.join(name.split('/')[:2])}"
        assert record.metadata.recipe == {"lr": 0.001, "object": {"a": 1}} or record.metadata.recipe["lr"] == 0.001


def test_ray_tune_by_name_then_by_order(tmp_path: Path):
    trial = tmp_path / "trial_a"
    for n in range(3):
        save(trial / f"checkpoint_{n:06d}" / "model.pt", seed=n)
    lines = [
        {"accuracy": n / 10, "training_iteration": n, "checkpoint_dir_name": f"checkpoint_{n - 1:06d}"}
        for n in (1, 2, 3)
    ]
    (trial / "params.json").write_text('{"lr": 0.5}')
    (trial / "result.json").write_text("\n".join(map(json.dumps, lines)))
    expected = {f"trial_a/checkpoint_{n - 1:06d}/model.pt": n / 10 for n in (1, 2, 3)}
    assert accuracies(read(tmp_path)) == expected
    nameless = [{key: value for key, value in line.items() if key != "checkpoint_dir_name"} for line in lines]
    matched = match_results([f"checkpoint_{n:06d}" for n in range(3)], nameless)
    assert {name: line["accuracy"] for name, line in matched.items()} == {
        f"checkpoint_{n - 1:06d}": n / 10 for n in (1, 2, 3)
    }
    by_number = match_results(["checkpoint_000000", "checkpoint_000002"], [{"training_iteration": n} for n in range(3)])
    assert by_number == {f"checkpoint_{n:06d}": {"training_iteration": n} for n in (0, 2)}


def test_timm_metrics_inside_and_copies(tmp_path: Path):
    for epoch, name in ((0, "checkpoint-0"), (1, "checkpoint-1"), (1, "last")):
        content = {"epoch": epoch, "arch": "r", "args": {"lr": 1}, "metric": 50.0 + epoch, "state_dict": state(epoch)}
        save(tmp_path / "run" / f"{name}.pth.tar", content)
    records = read(tmp_path)
    assert list(records) == [f"run/{name}.pth.tar" for name in ("checkpoint-0", "checkpoint-1", "last")]
    known, _ = as_fractions([record.metadata for record in records.values()])
    assert [metadata.value("test_accuracy") for metadata in known] == [0.5, 0.51, 0.51]


def test_timm_arguments_that_no_run_varies_are_no_recipe(tmp_path: Path):
    """Of the hundred and fifty of `train.py`; the file's own, and those of `args.yaml`."""
    arguments = {"lr": 0.1, "opt": "sgd", "amp": False, "workers": 4, "output": "", "clip_grad": None, "mixup": 0.0}
    arguments["model_kwargs"] = {"width": 8}
    for run in range(2):
        swept = arguments | {"lr": 0.1 / (1 + run), "mixup": 0.1 * run}
        content = {"epoch": 0, "arch": "r", "args": swept, "metric": 50.0, "state_dict": state(run)}
        save(tmp_path / f"run-{run}" / "checkpoint-0.pth.tar", content)
        (tmp_path / f"run-{run}" / "args.yaml").write_text(json.dumps(swept))
    records = list(read(tmp_path).values())
    told = [record.metadata for record in records]
    assert [metadata.recipe for metadata in told] == [
        {"lr": 0.1 / (1 + run), "opt": "sgd", "model_kwargs.width": 8} for run in range(2)
    ]
    assert [metadata.recipe["mixup"] for metadata in vary(told, ["run-0", "run-1"])] == [0.0, 0.1]
    assert not {"amp", "workers"} & {key for metadata in vary(told, ["run-0", "run-1"]) for key in metadata.recipe}


def test_optuna(tmp_path: Path):
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.executescript("""
            CREATE TABLE studies (study_id, study_name); INSERT INTO studies VALUES (1, 's');
            CREATE TABLE study_directions (direction, study_id, objective);
            INSERT INTO study_directions VALUES ('MAXIMIZE', 1, 0);
            CREATE TABLE study_system_attributes (study_id, key, value_json);
            CREATE TABLE trials (trial_id, number, study_id, state); INSERT INTO trials VALUES (7, 3, 1, 'COMPLETE');
            CREATE TABLE trial_params (trial_id, param_name, param_value, distribution_json);
            INSERT INTO trial_params VALUES
              (7, 'n', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}}');
            CREATE TABLE trial_user_attributes (trial_id, key, value_json);
            INSERT INTO trial_user_attributes VALUES (7, 'team', '"red"');
            CREATE TABLE trial_values (trial_id, objective, value); INSERT INTO trial_values VALUES (7, 0, 0.75);
            CREATE TABLE trial_intermediate_values (trial_id, step, intermediate_value);
            INSERT INTO trial_intermediate_values VALUES (7, 0, 0.5), (7, 1, 0.75);
        """)  # fmt: skip
    for epoch in range(2):
        save(tmp_path / "trials" / "trial_3" / f"model_epoch{epoch}.pt", seed=epoch)
    for options in ({}, {"metadata": tmp_path / "study.db"}):
        records = read(tmp_path, **options)
        assert list(accuracies(records).values()) == [0.5, 0.75]
        for record in records.values():
            assert record.metadata.recipe == {"n": "b"}
            assert record.metadata.extras["team"] == "red"


def test_mlflow_wandb_and_csv_logs(tmp_path: Path):
    run = tmp_path / "mlruns" / "0" / "abc"
    save(run / "artifacts" / "model.pt", {"state_dict": state(0), "step": 2})
    (run / "metrics").mkdir()
    (run / "params").mkdir()
    (run / "meta.yaml").write_text("run_name: bold\n")
    (run / "metrics" / "val_acc").write_text("1 0.25 1\n2 0.5 2\n3 0.75 3\n")
    (run / "params" / "lr").write_text("0.1")
    other = tmp_path / "wandb" / "offline-run-20260101_000000-x1" / "files"
    save(other / "model.pt", seed=1)
    (other / "config.yaml").write_text("lr:\n  value: 0.2\n")
    (other / "wandb-summary.json").write_text('{"test_acc": 0.625, "_step": 9}')
    save(tmp_path / "own" / "epoch_3.pt", seed=2)
    (tmp_path / "own" / "log.csv").write_text("epoch;val_accuracy\n2;0,5\n3;0,875\n")
    records = read(tmp_path)
    found = accuracies(records)
    assert found == {
        "mlruns/0/abc/artifacts/model.pt": 0.5,
        "own/epoch_3.pt": 0.875,
        "wandb/offline-run-20260101_000000-x1/files/model.pt": 0.625,
    }
    recipes = [record.metadata.recipe for record in records.values()]
    assert recipes == [{"lr": 0.1}, {}, {"lr": 0.2}]


def test_the_epoch_in_a_name_by_keras_finds_its_row(tmp_path: Path):
    """ModelCheckpoint counts epochs from 1 and CSVLogger from 0."""
    names = ("07-0.91.keras", "weights.08-0.31.weights.h5", "cp-0009.weights.h5")
    for folder, logged in ((tmp_path / "run", "run/"), (tmp_path, "")):
        folder.mkdir(exist_ok=True)
        for name, write in zip(names, (keras_zip, keras_h5, keras_h5), strict=True):
            write(folder / name)
        rows = [f"{epoch},{epoch / 100},{(50 + epoch) / 100}" for epoch in range(12)]
        (folder / "training.log").write_text("epoch,accuracy,val_accuracy\n" + "\n".join(rows) + "\n")
        records = {name: record.metadata for name, record in read(tmp_path).items()}
        told = {name: (records[logged + name].epoch, records[logged + name].value("test_accuracy")) for name in names}
        assert told["07-0.91.keras"] == (7, 0.56)
        assert told["weights.08-0.31.weights.h5"] == (8, 0.57)
        assert [records[logged + name].value("train_accuracy") for name in names[:2]] == [0.06, 0.07]
    assert records["run/cp-0009.weights.h5"].epoch == 9
    assert records["run/cp-0009.weights.h5"].value("test_accuracy") == 0.58
    save(tmp_path / "other" / "07-0.91.pt")
    assert read(tmp_path)["other/07-0.91.pt"].metadata.epoch is None  # of Keras alone: others mean anything by it


def test_what_is_passed_over_is_counted_and_links_are_followed_once(tmp_path: Path):
    folder = tmp_path / "sweep"
    save(folder / "run" / "a.pth.tar")
    save(folder / "run" / "optimizer.pt", {"state": {}})
    torch.save(state(3), folder / "run" / "without-suffix")
    (folder / "run" / "notes.txt").write_text("x")
    (folder / "run" / "best.pt").symlink_to("a.pth.tar")
    (folder / "again").symlink_to(folder / "run")
    (folder / "loop").symlink_to(folder)
    found = discover([folder])
    assert sorted(file.path.name for file in found.files) == ["a.pth.tar", "without-suffix"]
    assert found.account.seen == 5
    assert dict(found.account.others) == {"optimizer states and the like": 1, ".txt files": 1, "links to others": 1}


def test_epochs_of_one_folder_are_one_run_if_they_are_alike(tmp_path: Path):
    for epoch in range(3):
        alike = {name: value + epoch / 1000 for name, value in state(0).items()}
        save(tmp_path / "one" / f"epoch_{epoch}.pt", alike)
        save(tmp_path / "many" / f"epoch_{epoch}.pt", seed=epoch)
    for folder, count in (("one", 1), ("many", 3)):
        found = discover([tmp_path / folder]).files
        records = [Sources().read(file) for file in found]
        sketches = {record.path: sketch(record.checkpoint.weights) for record in records}
        known, notes = one_run([record.metadata for record in records], found, sketches)
        assert len({metadata.run for metadata in known}) == count
        assert len(notes) == (count == 1)


def test_values_as_people_write_them():
    given = [("93.1%", 0.931), ("0,931", 0.931), (" 92 % ", 0.92), ("92 (best)", np.nan)]
    for text, value in given:
        known = interpret({"accuracy": text}, "table")
        np.testing.assert_allclose(as_fractions([known])[0][0].value("test_accuracy"), value)
    assert "table's accuracy is no number in 1 file, such as '92 (best)'" in unread([known])[0]
    assert [number(text) for text in ("1e-3", "1,5", "x", True)] == [0.001, 1.5, None, None]
    assert [typed(text) for text in ("9223372036854775807", "9223372036854775808", "0007", "1e-3", "True")] == [
        *(2**63 - 1, "9223372036854775808", "0007", 0.001, True)
    ]


def test_relative_paths_are_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trial = tmp_path / "exp" / "trial_a"
    save(trial / "checkpoint_000000" / "model.pt")
    (trial / "params.json").write_text('{"lr": 0.5}')
    (trial / "result.json").write_text('{"accuracy": 0.5, "training_iteration": 0}')
    save(tmp_path / "exp" / "b" / "epoch_3.pt", seed=1)
    monkeypatch.chdir(tmp_path)
    for paths in (["exp"], [tmp_path / "exp"]):
        known = [Sources().read(file).metadata for file in discover(paths).files]
        assert [metadata.run for metadata in known] == ["exp/b", "exp/trial_a"]
        assert known[1].recipe == {"lr": 0.5}
    [alone] = discover([Path("exp/b/epoch_3.pt")]).files
    assert Sources().read(alone).metadata.run == "exp/b"
