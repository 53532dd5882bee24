"""Public zoos' layouts and people's folders as zoos: weights checked by running the network that they came from."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.conftest import share
from weightsearch.checkpoints.discovery import Sources
from weightsearch.checkpoints.folder_layouts import recognise
from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.zoo import import_writer as writing
from weightsearch.zoo import import_zoo as importers
from weightsearch.zoo.import_zoo import ImportSummary, Layout, import_zoo
from weightsearch.zoo.store import Zoo, connect
from weightsearch.zoo.trainer.networks import CnnShape

IMAGES = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
        )


def assert_runs_like(zoo: Zoo, position: int, seed: int) -> None:
    """The zoo's checkpoint, rebuilt under its own names, answers as the network it was made of."""
    rebuilt = network(seed=1000)
    arrays = to_state_dict(zoo.weights([position])[0], zoo.architecture)
    rebuilt.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    torch.testing.assert_close(rebuilt(IMAGES), network(seed)(IMAGES), rtol=0, atol=0)


def positions(zoo: Zoo) -> dict[tuple[str, int], int]:
    """(run's name, epoch) -> position."""
    table = zoo.table()
    return {(table.names[run], epoch): i for i, (run, epoch) in enumerate(zip(table.run, table.epoch, strict=True))}


def imported(folder: Path, tmp_path: Path, layout: Layout | None = None, **options: Any) -> tuple[Zoo, ImportSummary]:
    summary = import_zoo(folder, tmp_path / "zoo", layout=layout, quiet=True, **options)
    return Zoo.open(summary.path), summary


# --- The Small CNN Zoo ------------------------------------------------------------------------------------------------

CONFIG = {
    "config.activation": ["relu", "tanh"],
    "config.dataset": ["svhn_cropped", "svhn_cropped"],
    "config.dropout": [0.0, 0.25],
    "config.l2reg": [1e-4, 1e-8],
    "config.learning_rate": [0.01, 0.002],
    "config.optimizer": ["adam", "sgd"],
    "config.random_seed": [42, 42],
    "config.w_init": ["glorot_normal", "RandomNormal"],
}
STEPS = [0, 1, 86]


def keras_run(variables: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The zoo's network as Keras runs it: images NHWC, kernels HWIO, stride 2, relu, global average pooling, dense."""
    hidden = images
    for i in range(3):
        suffix = f"_{i}" if i else ""
        kernel = variables[f"sequential/conv2d{suffix}/kernel:0"]
        n, height, width, _ = hidden.shape
        size = ((height - 3) // 2 + 1, (width - 3) // 2 + 1)
        out = np.zeros((n, *size, kernel.shape[3]))
        for y in range(size[0]):
            for x in range(size[1]):
                patch = hidden[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                out[:, y, x] = np.tensordot(patch, kernel, ([1, 2, 3], [0, 1, 2]))
        hidden = np.maximum(out + variables[f"sequential/conv2d{suffix}/bias:0"], 0)
    return hidden.mean(axis=(1, 2)) @ variables["sequential/dense/kernel:0"] + variables["sequential/dense/bias:0"]


def torch_run(zoo: Zoo, position: int, images: np.ndarray) -> np.ndarray:
    arrays = to_state_dict(zoo.weights([position])[0], zoo.architecture)
    weights = [torch.from_numpy(array) for array in arrays.values()]
    hidden = torch.from_numpy(images.transpose(0, 3, 1, 2)).float()
    for kernel, bias in zip(weights[0:6:2], weights[1:6:2], strict=True):
        hidden = torch.relu(nn.functional.conv2d(hidden, kernel, bias, stride=2))
    return nn.functional.linear(hidden.mean(dim=(2, 3)), *weights[6:]).numpy()


def write_small_cnn_zoo(folder: Path, filters: int = 16, broken: int | None = None) -> list[dict[str, np.ndarray]]:
    """Two runs of three checkpoints, rows shuffled as nobody promised an order; returns each row's variables."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for i, inputs in enumerate((1, filters, filters)):
        name = f"sequential/conv2d{f'_{i}' if i else ''}"
        shapes |= {f"{name}/bias:0": (filters,), f"{name}/kernel:0": (3, 3, inputs, filters)}
    shapes |= {"sequential/dense/bias:0": (10,), "sequential/dense/kernel:0": (filters, 10)}
    start = 0
    with (folder / "layout.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["varname", "start_idx", "end_idx", "shape", "size"])
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            writer.writerow([name, start, start + size, str(shape), size])
            start += size
    rows = [{name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()} for _ in range(6)]
    if broken is not None:
        rows[broken]["sequential/dense/bias:0"][3] = np.nan
    np.save(folder / "weights.npy", np.stack([np.concatenate([v.ravel() for v in row.values()]) for row in rows]))
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["", *CONFIG, "modeldir", "step", "test_accuracy", "test_loss", "train_accuracy", "train_loss", "laststep"]
        )
        for i, (step, run) in enumerate((step, run) for step in STEPS for run in (0, 1)):
            config = [values[run] for values in CONFIG.values()]
            metrics = [i / 10, i + 0.25, i / 20, i + 0.5]
            writer.writerow([i, *config, f"/cns/zoo/{run}/model", step, *metrics, step == 86])
    return rows


def test_small_cnn_zoo(tmp_path: Path):
    rows = write_small_cnn_zoo(tmp_path / "svhn")
    zoo, summary = imported(tmp_path / "svhn", tmp_path)
    assert summary.layout is Layout.SMALL_CNN_ZOO
    assert (summary.runs, summary.checkpoints, summary.quarantined) == (2, 6, ())
    assert zoo.architecture.fingerprint == CnnShape().architecture.fingerprint
    assert (zoo.info.dataset, zoo.info.preset) == ("svhn", "v1")
    table = zoo.table()
    where = positions(zoo)
    assert sorted(where) == [(run, step) for run in ("0/model", "1/model") for step in STEPS]
    images = np.random.default_rng(1).normal(size=(2, 28, 28, 1)).astype(np.float32)
    for i, (step, run) in enumerate((step, run) for step in STEPS for run in (0, 1)):
        position = where[f"{run}/model", step]
        np.testing.assert_allclose(torch_run(zoo, position, images), keras_run(rows[i], images), rtol=1e-4, atol=1e-5)
        assert (table.test_accuracy[position], table.train_loss[position]) == (i / 10, i + 0.5)
        assert (table.test_loss[position], table.train_accuracy[position]) == (i + 0.25, i / 20)
        assert table.extras["laststep"][position] == (step == 86)
        assert table.recipes[table.run[position]] == {
            "activation": ["relu", "tanh"][run],
            "dataset": "svhn_cropped",
            "dropout": [0.0, 0.25][run],
            "l2reg": [1e-4, 1e-8][run],
            "learning_rate": [0.01, 0.002][run],
            "optimizer": ["adam", "sgd"][run],
            "seed": 42,
            "initializer": ["glorot_normal", "RandomNormal"][run],
        }


def test_the_small_cnn_zoo_takes_no_other_metadata(tmp_path: Path):
    write_small_cnn_zoo(tmp_path / "svhn", filters=2)
    with pytest.raises(UsageError, match="leave out --metadata"):
        imported(tmp_path / "svhn", tmp_path, sources=Sources.make(run_pattern="x"))


def test_a_diverged_row_of_the_small_cnn_zoo_is_left_out_and_its_run_kept(tmp_path: Path):
    write_small_cnn_zoo(tmp_path / "svhn", filters=4, broken=3)
    zoo, summary = imported(tmp_path / "svhn", tmp_path)
    assert zoo.info.preset == "imported"
    assert [bad.reason for bad in summary.quarantined] == ["its weights hold NaN or infinite values"]
    assert sorted(positions(zoo)) == [("0/model", 0), ("0/model", 1), ("0/model", 86), ("1/model", 0), ("1/model", 86)]
    assert np.isfinite(zoo.weights(slice(None))).all()
    with connect(zoo.path, read_only=True) as connection:
        assert connection.execute("SELECT name, reason FROM runs WHERE status = 'failed'").fetchall() == [
            ("1/model", "epoch 1: its weights hold NaN or infinite values")
        ]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: np.save(folder / "weights.npy", np.zeros((5, 4970), np.float32)), "5 rows"),
        (lambda folder: np.save(folder / "weights.npy", np.zeros((6, 7), np.float32)), "describes rows of 4,970"),
        (lambda folder: np.save(folder / "weights.npy", np.array([{}])), "cannot be read"),
        (lambda folder: (folder / "layout.csv").write_text("varname,shape\na,b\n"), "it needs the columns"),
        (lambda folder: (folder / "metrics.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")), "no column modeldir"),
        (lambda folder: (folder / "metrics.csv.gz").write_bytes(b"no gzip"), "metrics.csv.gz"),
    ],
    ids=["rows", "columns", "objects", "layout", "metrics", "gzip"],
)
def test_a_damaged_small_cnn_zoo_is_one_line(tmp_path: Path, damage: Any, says: str):
    write_small_cnn_zoo(tmp_path / "svhn")
    damage(tmp_path / "svhn")
    with pytest.raises(WeightsearchError) as caught:
        imported(tmp_path / "svhn", tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "zoo").exists()


# --- Ray Tune: the ModelZoos project, and WeightCLIP ------------------------------------------------------------------


def write_ray_zoo(folder: Path, *, per_cent: bool, key: str, runs: int = 2, pad: str = "06d") -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"trainset": 1}, folder / "dataset.pt")
    scale = 100 if per_cent else 1
    for run in range(runs):
        trial = folder / f"NN_tune_trainable_0000{run}_seed={run}"
        trial.mkdir()
        settings = {"model::nlin": "tanh", "optim::lr": 0.003, "optim::optimizer": "adam", "seed": run, "cuda": True}
        (trial / "params.json").write_text(json.dumps(settings))
        (trial / "progress.csv").write_text("epoch\n")
        lines = []
        for epoch in range(3):
            accuracy = float("nan") if (run, epoch) == (1, 1) else (0.005 if epoch == 0 else 0.3 * epoch) * scale
            row = {key: epoch, "train_loss": -999 if epoch == 0 else 1.5, "test_loss": 2.5, "test_acc": accuracy}
            lines.append(json.dumps({**row, "config": settings, "time_total_s": 3.5}))
            kept = trial / f"checkpoint_{epoch:{pad}}"
            kept.mkdir()
            torch.save(network(10 * run + epoch).state_dict(), kept / "checkpoints")
            torch.save({"state": {}}, kept / "optimizer")
        (trial / "result.json").write_text("\n".join(lines) + '\n{"train_loss": 1.')  # killed while it wrote


@pytest.mark.parametrize(
    ("per_cent", "key", "pad"), [(False, "training_iteration", "d"), (True, "epoch", "06d")], ids=["ray", "weightclip"]
)
def test_ray_tune_zoos(tmp_path: Path, per_cent: bool, key: str, pad: str):
    write_ray_zoo(tmp_path / "mnist", per_cent=per_cent, key=key, pad=pad)
    zoo, summary = imported(tmp_path / "mnist", tmp_path, dataset="mnist")
    assert summary.layout is Layout.RAY_TUNE
    assert (summary.runs, summary.checkpoints, summary.quarantined) == (2, 6, ())
    assert any("per cent" in note for note in summary.notes) == per_cent
    table, where = zoo.table(), positions(zoo)
    for run in range(2):
        name = f"NN_tune_trainable_0000{run}_seed={run}"
        for epoch in range(3):
            position = where[name, epoch]
            assert_runs_like(zoo, position, 10 * run + epoch)
            expected = [0.005, np.nan if run else 0.3, 0.6][epoch]
            np.testing.assert_allclose(table.test_accuracy[position], expected)
            np.testing.assert_equal(table.train_loss[position], np.nan if epoch == 0 else 1.5)
            assert table.extras["time_total_s"][position] == 3.5
            assert table.recipes[table.run[position]] == {
                "activation": "tanh", "learning_rate": 0.003, "optimizer": "adam", "seed": run, "cuda": True,
            }  # fmt: skip
    assert zoo.info.dataset == "mnist"


def test_a_broken_result_file_costs_only_its_metrics(tmp_path: Path):
    write_ray_zoo(tmp_path / "mnist", per_cent=False, key="epoch")
    trial = tmp_path / "mnist" / "NN_tune_trainable_00001_seed=1"
    (trial / "result.json").write_text("not JSON\n{}\n")
    zoo, summary = imported(tmp_path / "mnist", tmp_path)
    assert [(bad.path, "line 1: result.json is no JSON" in bad.reason) for bad in summary.quarantined] == [
        (str(trial), True)
    ]
    assert summary.checkpoints == 6
    assert np.isnan(zoo.table().test_accuracy).sum() == 3
    assert (zoo.path / "quarantine.csv").read_text().startswith("path,reason")


# --- The original ComVeX files ----------------------------------------------------------------------------------------


def test_comvex_files(tmp_path: Path):
    folder = tmp_path / "files"
    folder.mkdir()
    for i, (seed, epoch) in enumerate([(1, 0), (2, 0), (1, 1), (2, 1), (3, 0), (1, 0)]):  # two seeds side by side
        content = {"state_dict": network(i).state_dict(), "epoch": epoch, "seed": seed, "train_loss": 1.0}
        path = folder / f"2022041012304512345{i}_{epoch}.pt"
        torch.save(content | {"train_acc": 0.5, "test_acc": 0.1 * i, "test_loss": 2.0}, path)
    zoo, summary = imported(folder, tmp_path)
    assert summary.layout is Layout.COMVEX
    table = zoo.table()
    runs: dict[int, list[float]] = {}
    for i, run in enumerate(table.run.tolist()):
        runs.setdefault(run, []).append(round(float(table.test_accuracy[i]) * 10))
        assert_runs_like(zoo, i, round(float(table.test_accuracy[i]) * 10))
    assert sorted(runs.values()) == [[0, 2], [1, 3], [4], [5]]  # the first seed was used again
    seeds = {run: {0: 1, 1: 2, 2: 1, 3: 2, 4: 3, 5: 1}[own[0]] for run, own in runs.items()}
    assert table.recipes == {run: {"seed": seed} for run, seed in seeds.items()}


# --- Folders such as the Hugging Face hub has -------------------------------------------------------------------------


def test_hugging_face_folders(tmp_path: Path):
    folder = tmp_path / "hub"
    for name, seed in (("tiny-a", 1), ("tiny-b", 2)):
        for step, epoch in ((5, 1.0), (10, 2.0)):
            model = folder / name / f"checkpoint-{step}"
            model.mkdir(parents=True)
            safetensors.torch.save_file(network(10 * seed + step).state_dict(), model / "model.safetensors")
            torch.save(network(0).state_dict(), model / "pytorch_model.bin")  # the same weights in the older format
            torch.save({"state": {}}, model / "optimizer.pt")
            (model / "config.json").write_text(
                json.dumps({"model_type": "tiny", "hidden_act": "relu", "size": {"w": 4}})
            )
            log = [
                {"step": 5, "eval_accuracy": 0.5 + seed / 100, "eval_loss": 1.0},
                {"step": 5, "loss": 3.0},
                {"step": 10, "eval_accuracy": 0.6 + seed / 100, "eval_loss": 0.5},
            ]
            state = {"epoch": epoch, "global_step": step, "log_history": log}
            (model / "trainer_state.json").write_text(json.dumps(state))
    zoo, summary = imported(folder, tmp_path)
    assert summary.layout is Layout.HUGGINGFACE
    table, where = zoo.table(), positions(zoo)
    assert sorted(where) == [(name, epoch) for name in ("tiny-a", "tiny-b") for epoch in (1, 2)]
    for (name, epoch), position in where.items():
        seed = 1 if name == "tiny-a" else 2
        assert_runs_like(zoo, position, 10 * seed + 5 * epoch)
        assert table.test_accuracy[position] == [0.5, 0.6][epoch - 1] + seed / 100
        assert table.extras["step"][position] == 5 * epoch
    assert table.recipes[0] == {"model_type": "tiny", "hidden_act": "relu", "size.w": 4}


# --- Anybody's folder -------------------------------------------------------------------------------------------------


def write_sweep(folder: Path, runs: int = 3, epochs: int = 2) -> None:
    for run in range(runs):
        (folder / f"lr-{run}").mkdir(parents=True)
        for epoch in range(epochs):
            content = {
                "model": network(10 * run + epoch).state_dict(),
                "val_acc": 10.0 * run + epoch,
                "hparams": {"lr": run},
            }
            torch.save(content, folder / f"lr-{run}" / f"epoch_{epoch}.ckpt")


def test_a_sweep_told_apart_by_folder(tmp_path: Path):
    write_sweep(tmp_path / "sweep")
    (tmp_path / "sweep" / "lr-1" / "broken.pt").write_bytes(b"PK\x03\x04 no zip")
    torch.save({"model": network(0, width=5).state_dict()}, tmp_path / "sweep" / "lr-2" / "wider.pt")
    zoo, summary = imported(tmp_path / "sweep", tmp_path)
    assert summary.layout is Layout.FOLDER
    where = positions(zoo)
    assert sorted(where) == [(f"lr-{run}", epoch) for run in range(3) for epoch in range(2)]
    for (name, epoch), position in where.items():
        assert_runs_like(zoo, position, 10 * int(name[3:]) + epoch)
        assert zoo.table().test_accuracy[position] == pytest.approx((10 * int(name[3:]) + epoch) / 100)
        assert zoo.table().recipes[zoo.table().run[position]] == {"lr": int(name[3:])}
    assert [Path(bad.path).name for bad in summary.quarantined] == ["broken.pt"]
    assert list(summary.others.values()) == [1]
    assert "conv2d 5x1x3x3" in next(iter(summary.others))
    assert any("file's val_acc goes up to 21: taken as per cent" in note for note in summary.notes)
    assert any("file's val_acc stands in for test_accuracy" in note for note in summary.notes)
    other = next(iter(summary.others)).partition(":")[0]
    wider = import_zoo(tmp_path / "sweep", tmp_path / "wider", architecture=other, quiet=True)
    assert (wider.runs, wider.checkpoints) == (1, 1)
    with pytest.raises(UsageError, match=r"--architecture abc: .* has .* \(6 files\), .* \(1 files\)"):
        import_zoo(tmp_path / "sweep", tmp_path / "none", architecture="abc", quiet=True)


def test_a_sweep_told_apart_by_pattern_and_by_column(tmp_path: Path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for run in range(2):
        for epoch in (3, 7):
            torch.save(network(10 * run + epoch).state_dict(), folder / f"seed{run}_{epoch}.pt")
    rows = [
        f"seed{run}_{epoch}.pt,team-{run},{epoch},0.{run}{epoch},{run + 0.5}" for run in range(2) for epoch in (3, 7)
    ]
    (folder / "runs.csv").write_text("\n".join(["path,team,epoch,accuracy,cost", *rows, "gone.pt,x,1,0.5,1"]))

    where = positions(imported(folder, tmp_path / "a", sources=Sources.make(run_pattern=r"seed(\d+)"))[0])
    assert sorted(where) == [("0", 3), ("0", 7), ("1", 3), ("1", 7)]

    sources = Sources.make(metadata=folder / "runs.csv", run_column="team")
    zoo, summary = imported(folder, tmp_path / "b", sources=sources)
    where = positions(zoo)
    assert sorted(where) == [("team-0", 3), ("team-0", 7), ("team-1", 3), ("team-1", 7)]
    assert_runs_like(zoo, where["team-1", 7], 17)
    assert zoo.table().test_accuracy[where["team-1", 7]] == 0.17
    assert zoo.table().extras["cost"][where["team-1", 7]] == 1.5
    assert any("1 rows of runs.csv are about no file here, such as gone.pt" in note for note in summary.notes)

    each = positions(imported(folder, tmp_path / "c")[0])
    assert len({run for run, _ in each}) == 4  # files of one flat folder are runs of their own


def test_files_that_forgot_the_order_of_the_layers_join_the_others(tmp_path: Path):
    def state(seed: int) -> dict[str, torch.Tensor]:
        names = {"0": "stem", "4": "head"}  # sorted by name the head comes first
        tensors = network(seed).state_dict().items()
        return {f"{names[name[0]]}{name[1:]}": tensor for name, tensor in tensors}

    folder = tmp_path / "mixed"
    folder.mkdir()
    torch.save(state(0), folder / "a.pt")
    safetensors.torch.save_file(state(1), folder / "b.safetensors")
    zoo, summary = imported(folder, tmp_path)
    assert (summary.runs, summary.others, summary.quarantined) == (2, {}, ())
    assert [layer.name for layer in zoo.architecture.layers] == ["stem", "head"]
    expected = [np.concatenate([v.numpy().ravel() for v in state(seed).values()]) for seed in range(2)]
    np.testing.assert_array_equal(np.sort(zoo.weights(slice(None))), np.sort(expected))
    arrays = to_state_dict(zoo.weights([1])[0], zoo.architecture)
    for name, tensor in state(1).items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_one_line_for_what_cannot_be_imported(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.pt").write_text("text")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "zoo.json").write_text("{}")
    for folder, says in (
        (tmp_path / "done", "is a zoo already; train on it as it is"),
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "empty", "holds no checkpoints to import"),
        (tmp_path / "bad", "1 cannot be read, such as"),
        (tmp_path / "bad" / "model.pt", "is a file; give the folder that it lies in"),
    ):
        with pytest.raises(WeightsearchError) as caught:
            import_zoo(folder, tmp_path / "zoo", quiet=True)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "zoo").exists()


# --- Streaming, and going on ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_import_that_was_killed_goes_on_and_ends_up_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sweep(tmp_path / "sweep", runs=6)
    monkeypatch.setattr(writing, "PART_BYTES", 1000)  # a run a part
    monkeypatch.setattr(importers, "KEPT_BYTES", 0)  # so that weights are read anew
    whole = import_zoo(tmp_path / "sweep", tmp_path / "whole", quiet=True)
    assert len(list((whole.path / "weights").iterdir())) == 6
    real, calls = importers.read_checkpoint, 0

    def dies(path: str) -> Any:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(importers, "read_checkpoint", dies)
    with pytest.raises(WeightsearchError, match="stopped: 3 runs are kept"):
        import_zoo(tmp_path / "sweep", tmp_path / "zoo", quiet=True)
    monkeypatch.setattr(importers, "read_checkpoint", real)
    assert len(Zoo.open(tmp_path / "zoo").table()) == 6
    again = import_zoo(tmp_path / "sweep", tmp_path / "zoo", quiet=True)
    assert (again.runs, again.added) == (6, 3)
    zoo, expected = Zoo.open(tmp_path / "zoo"), Zoo.open(whole.path)
    np.testing.assert_array_equal(zoo.weights(slice(None)), expected.weights(slice(None)))
    assert zoo.table().names == expected.table().names
    assert import_zoo(tmp_path / "sweep", tmp_path / "zoo", quiet=True).added == 0


SLOWLY = """
import sys, time
from weightsearch.zoo import importers
from weightsearch.zoo.importers import writing

writing.PART_BYTES = 1000  # a run a part
print("go", flush=True)
importers.import_zoo(sys.argv[1], sys.argv[2], quiet=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_up_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_small_cnn_zoo(tmp_path / "svhn", filters=2)
    rows = 300
    size = np.load(tmp_path / "svhn" / "weights.npy").shape[1]
    weights = np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)
    np.save(tmp_path / "svhn" / "weights.npy", weights)
    lines = ["modeldir,step,test_accuracy,test_loss,train_accuracy,train_loss"]
    lines += [f"run/{i // 3},{i % 3},0.{i:03d},1,0.5,1" for i in range(rows)]
    (tmp_path / "svhn" / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    whole = Zoo.open(import_zoo(tmp_path / "svhn", tmp_path / "whole", quiet=True).path)
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(share(40)):
        command = [sys.executable, "-c", SLOWLY, str(tmp_path / "svhn"), str(tmp_path / "zoo")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"go\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 1.5))
            process.kill()
        if (tmp_path / "zoo" / "zoo.duckdb").exists():
            zoo = Zoo.open(tmp_path / "zoo")
            assert len(zoo.table()) >= held  # nothing that was kept is lost
            held = len(zoo.table())
            assert np.isfinite(zoo.weights(slice(None))).all()
    monkeypatch.setattr(writing, "PART_BYTES", 1000)
    assert import_zoo(tmp_path / "svhn", tmp_path / "zoo", quiet=True).checkpoints == rows
    zoo = Zoo.open(tmp_path / "zoo")
    np.testing.assert_array_equal(zoo.weights(slice(None)), whole.weights(slice(None)))
    np.testing.assert_array_equal(zoo.table().test_accuracy, whole.table().test_accuracy)
    assert zoo.table().names == whole.table().names
    parts = [path.name for path in (zoo.path / "weights").iterdir()]
    assert len(parts) == 100
    assert not any(name.startswith(".") for name in parts)


PEAK = """
import sys, threading, time
from pathlib import Path
from weightsearch.zoo.importers import import_zoo

def anonymous():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])

before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
import_zoo(sys.argv[1], sys.argv[2], quiet=True)
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.slow
def test_importing_takes_little_memory(tmp_path: Path):
    """A zoo of 240 MB in under 100 MB."""
    folder = tmp_path / "zoo"
    write_small_cnn_zoo(folder)
    rows = 12_000
    np.lib.format.open_memmap(folder / "weights.npy", "w+", np.float32, (rows, 4970))[:] = 0.1
    lines = ["modeldir,step,test_accuracy,test_loss,train_accuracy,train_loss"]
    lines += [f"run/{i // 9},{i % 9},0.5,1,0.5,1" for i in range(rows)]
    (folder / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100_000
    assert len(Zoo.open(tmp_path / "out").table()) == rows


def test_layouts_are_recognised_by_what_lies_there(tmp_path: Path):
    write_small_cnn_zoo(tmp_path / "small")
    write_ray_zoo(tmp_path / "ray", per_cent=False, key="epoch", runs=1)
    write_sweep(tmp_path / "sweep", runs=1)
    assert [recognise(tmp_path / name) for name in ("small", "ray", "sweep")] == [
        Layout.SMALL_CNN_ZOO, Layout.RAY_TUNE, Layout.FOLDER,
    ]  # fmt: skip


@pytest.mark.slow
def test_an_imported_sweep_trains_from_the_command_line(tmp_path: Path):
    """Twelve runs whose accuracy grows with the weights' scale: imported, trained on, queried."""
    folder = tmp_path / "sweep"
    rng = np.random.default_rng(0)
    for run in range(12):
        (folder / f"run-{run}").mkdir(parents=True)
        for epoch in range(4):
            scale = rng.uniform(0.2, 1)
            state = {name: scale * tensor for name, tensor in network(10 * run + epoch).state_dict().items()}
            path = folder / f"run-{run}" / f"epoch{epoch}.pt"
            torch.save({"state_dict": state, "test_acc": 80 * scale, "hparams": {"lr": 0.1}}, path)
            path.with_suffix(".json").write_text(json.dumps({"f1": scale, "team": "red"}))
    (folder / "run-3" / "epoch9.pt").write_bytes(b"nothing")

    def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = "from weightsearch.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run_cli("import", folder, "--out", "zoo", "--dataset", "toy")
    assert done.returncode == 0, done.stderr
    assert "zoo: 12 runs, 48 checkpoints of conv2d 4x1x3x3 - dense 10x4 (90 parameters)" in done.stdout
    assert "epoch9.pt: it is a text file, not a checkpoint" in done.stderr
    assert "1 left out in all: zoo/quarantine.csv" in done.stderr
    assert "note: file's test_acc goes up to" in done.stderr
    facts = " ".join(run_cli("zoo", "info", "zoo").stdout.split())
    assert "imported as folder" in facts
    assert "own columns f1, team" in facts
    assert "accuracy at epoch 3 median 0." in facts
    done = run_cli("train", "zoo", "--method", "statistics", "--out", "index")
    assert done.returncode == 0, done.stderr
    done = run_cli("query", folder / "run-5" / "epoch2.pt", "--index", "index", "--k", 3, "--json")
    assert done.returncode == 0, done.stderr
    nearest = json.loads(done.stdout)["neighbours"][0]
    assert (nearest["run"], nearest["epoch"]) == ("zoo/run-5", 2)
    assert nearest["distance"] == pytest.approx(0, abs=1e-5)
    done = run_cli("import", folder, "--out", "zoo", "--layout", "x")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "choose auto or one of small-cnn-zoo" in done.stderr
