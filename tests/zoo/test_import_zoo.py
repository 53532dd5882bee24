"""Public layouts and people's folders as zoos: weights checked by running the network that they came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.zoo.public_zoos import (
    assert_runs_like,
    imported,
    network,
    positions,
    write_ray_zoo,
    write_small_cnn_zoo,
    write_sweep,
)
from weightsearch.checkpoints.discovery import Sources
from weightsearch.checkpoints.folder_layouts import recognise
from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.zoo.import_zoo import Layout, import_zoo
from weightsearch.zoo.store import Zoo


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_broken_result_file_costs_only_its_metrics(tmp_path: Path):
    write_ray_zoo(tmp_path / "mnist", per_cent=False, key="epoch")
    trial = tmp_path / "mnist" / "NN_tune_trainable_00001_seed=1"
    (trial / "result.json").write_text("not JSON\n{}\n")
    zoo, summary = imported(tmp_path / "mnist", tmp_path)
    assert any(str(trial) in note and "line 1: result.json is no JSON" in note for note in summary.notes)
    assert summary.quarantined == ()
    assert summary.checkpoints == 6
    assert np.isnan(zoo.table().test_accuracy).sum() == 3


@pytest.mark.slow
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


@pytest.mark.slow
def test_hugging_face_folders(tmp_path: Path):
    folder = tmp_path / "hub"
    for name, seed in (("tiny-a", 1), ("tiny-b", 2)):
        for step, epoch in ((5, 1.0), (10, 2.0)):
            model = folder / name / f"checkpoint-{step}"
            model.mkdir(parents=True)
            safetensors.torch.save_file(network(10 * seed + step).state_dict(), model / "model.safetensors")
            torch.save(network(0).state_dict(), model / "pytorch_model.bin")  # the same weights in the older format
            torch.save({"state": {}}, model / "optimizer.pt")
            (model / "config.json").write_text(json.dumps({"model_type": "tiny", "hidden_act": "relu", "width": seed}))
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
    assert table.recipes[0] == {"width": 1}  # of the configuration what varies
    assert table.recipes[1] == {"width": 2}
    assert table.extras["model_type"].tolist() == ["tiny"] * 4


@pytest.mark.slow
def test_a_sweep_told_apart_by_folder(tmp_path: Path):
    write_sweep(tmp_path / "sweep")
    (tmp_path / "sweep" / "lr-1" / "broken.pt").write_bytes(b"PK\x03\x04 no zip")
    torch.save({"model": network(0, width=5).state_dict()}, tmp_path / "sweep" / "lr-2" / "wider.pt")
    folder = tmp_path / "sweep"
    everything = import_zoo(folder, tmp_path / "everything", quiet=True)
    assert (everything.architecture, everything.architectures, everything.checkpoints) == (None, 2, 7)
    assert everything.others == {}
    mixed = Zoo.open(tmp_path / "everything")
    (wide, one), (narrow, six) = sorted(mixed.groups(np.arange(7)), key=lambda group: len(group[1]))
    assert (len(one), len(six)) == (1, 6)
    state = torch.load(folder / "lr-2" / "wider.pt")["model"]
    named = to_state_dict(mixed.weights(one)[0], wide)
    assert named.keys() == state.keys()
    assert all(np.array_equal(named[name], state[name].numpy()) for name in named)
    with pytest.raises(WeightsearchError, match="holds networks of 2 architectures, and this needs a zoo of one"):
        _ = mixed.architecture
    zoo, summary = imported(folder, tmp_path, architecture=narrow.fingerprint)
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
    with pytest.raises(UsageError, match=r"--architecture abc: .* has .* \(6 files\), .* \(1 file\)"):
        import_zoo(tmp_path / "sweep", tmp_path / "none", architecture="abc", quiet=True)


@pytest.mark.slow
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
    assert any("1 row of runs.csv is about no file here, such as gone.pt" in note for note in summary.notes)

    each = positions(imported(folder, tmp_path / "c")[0])
    assert len({run for run, _ in each}) == 4  # files of one flat folder are runs of their own


@pytest.mark.slow
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
