"""Anyone's checkpoints into an index: found again by what they are, with what is known of them, each once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.conftest import share
from weightsearch import paths as runs
from weightsearch.checkpoints.discovery import Sources
from weightsearch.checkpoints.state_dict import align, read_checkpoint, to_state_dict, write_checkpoint
from weightsearch.encoders import load_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore
from weightsearch.search.add import add
from weightsearch.search.index import Index
from weightsearch.training.summary import TrainSummary
from weightsearch.training.train import train
from weightsearch.types import Method, Selection
from weightsearch.zoo.import_zoo import import_zoo
from weightsearch.zoo.store import Zoo

pytestmark = pytest.mark.slow  # the index that these tests add to is trained once for all


def noisy(zoo: Zoo, position: int, seed: int = 0) -> np.ndarray:
    """Weights `(P,)` that are in no zoo."""
    weights = zoo.weights([position])[0]
    return weights + np.random.default_rng([seed, position]).normal(scale=1e-3, size=weights.shape).astype(np.float32)


def column(index: Path, fingerprint: str, name: str) -> dict[str, object]:
    """A column by the name of the file that the row came from."""
    table = IndexStore.open(index).table(fingerprint, ["source", name])
    return {Path(source).name: value for source, value in zip(table["source"], table[name], strict=True)}


@pytest.fixture
def sweep(zoo: Zoo, tmp_path: Path) -> Path:
    """Two runs in folders, one lone file, a broken one, and one of another architecture."""
    folder = tmp_path / "sweep"
    for run in range(2):
        (folder / f"run-{run}").mkdir(parents=True)
        for epoch in range(2):
            metadata = {"val_acc": 50.0 + 10 * run + epoch, "epoch": epoch, "hparams": {"lr": run}}
            path = folder / f"run-{run}" / f"r{run}e{epoch}.pt"
            write_checkpoint(path, noisy(zoo, 2 * run + epoch), zoo.architecture, metadata)
    (folder / "run-1" / "r1e1.json").write_text('{"team": "red", "cost": 2.5}')
    write_checkpoint(folder / "lone.safetensors", noisy(zoo, 9), zoo.architecture)
    (folder / "broken.pt").write_bytes(b"PK\x03\x04")
    torch.save({"0.weight": torch.ones(3, 2)}, folder / "other.pt")
    return folder


def test_files_are_found_again_with_what_is_known_of_them(zoo: Zoo, index_copy: Path, sweep: Path):
    fingerprint = zoo.architecture.fingerprint
    before = IndexStore.open(index_copy).count(fingerprint)
    report = add([sweep], index_copy, dataset="toy", quiet=True)
    assert (report.added, report.already) == (5, 0)
    assert [Path(bad.path).name for bad in report.quarantined] == ["broken.pt"]
    assert report.unknown == {"dense 3x2 (6 parameters)": 1}
    assert set(report.notes) == {
        "accuracy for 4 of 5, from val_acc in file",
        "file's val_acc goes up to 61: taken as per cent and divided by 100",
        "file's val_acc stands in for test_accuracy (4 files)",
        "8 files seen, 7 of them weights; passed over: 1 .json files",
    }
    index = IndexStore.open(index_copy)
    assert index.count(fingerprint) == before + 5

    accuracies = column(index_copy, fingerprint, "test_accuracy")
    assert [accuracies[f"r{run}e{epoch}.pt"] for run in range(2) for epoch in range(2)] == [0.5, 0.51, 0.6, 0.61]
    assert np.isnan(accuracies["lone.safetensors"])
    assert column(index_copy, fingerprint, "run")["r1e0.pt"] == "sweep/run-1"
    assert column(index_copy, fingerprint, "run")["lone.safetensors"] == "sweep/lone"
    assert column(index_copy, fingerprint, "epoch")["r1e1.pt"] == 1
    assert np.isnan(column(index_copy, fingerprint, "epoch")["lone.safetensors"])
    assert column(index_copy, fingerprint, "dataset")["r1e1.pt"] == "toy"
    assert json.loads(column(index_copy, fingerprint, "recipe")["r1e1.pt"]) == {"lr": 1}
    assert json.loads(column(index_copy, fingerprint, "metadata")["r1e1.pt"]) == {
        "team": "red", "cost": 2.5, "val_acc": 61.0,
    }  # fmt: skip

    encoder = load_encoder(index.encoder_directory(fingerprint))
    for position in (0, 1, 2, 3, 9):
        embedding, predicted = encoder.embed(torch.from_numpy(noisy(zoo, position)[None]))
        nearest = index.search(fingerprint, embedding[0].numpy(), 1).neighbours[0]
        assert nearest.distance == pytest.approx(0, abs=1e-5)
        if position == 9:
            assert (nearest.run, nearest.epoch, nearest.test_accuracy, nearest.value) == (
                "sweep/lone",
                None,
                None,
                None,
            )
        else:
            name = f"r{position // 2}e{position % 2}.pt"
            assert (nearest.run, nearest.epoch) == (f"sweep/run-{position // 2}", position % 2)
            assert column(index_copy, fingerprint, "predicted_accuracy")[name] == pytest.approx(
                predicted[0].item(), abs=1e-5
            )
    expensive = index.search(fingerprint, embedding[0].numpy(), 5, Selection(where="cost > 2 and lr = 1")).neighbours
    assert [row.metadata["team"] for row in expensive] == ["red"]


def test_adding_twice_adds_once(zoo: Zoo, index_copy: Path, sweep: Path, tmp_path: Path):
    add([sweep / "run-0"], index_copy, quiet=True)
    again = add([sweep / "run-0" / "r0e0.pt", sweep], index_copy, quiet=True)
    assert (again.added, again.already) == (3, 2)
    shutil.copy(sweep / "lone.safetensors", tmp_path / "copy.safetensors")  # the same network elsewhere
    assert add([tmp_path / "copy.safetensors"], index_copy, quiet=True).already == 1


def test_a_whole_zoo(zoo: Zoo, index_copy: Path):
    """The index lacks the held-out examples' runs; adding its own zoo brings just them."""
    index = IndexStore.open(index_copy)
    fingerprint = zoo.architecture.fingerprint
    held = index.count(fingerprint)
    distinct = len(set(zoo.table().id))
    report = add([zoo.path], index_copy, quiet=True)
    assert report.added == distinct - held > 0
    table = index.table(fingerprint, ["id", "run", "epoch", "test_accuracy", "recipe", "dataset", "source"])
    known = zoo.table()
    rows = {
        (run, epoch): i for i, (run, epoch) in enumerate(zip(known.run.tolist(), known.epoch.tolist(), strict=True))
    }
    for i in range(held, held + report.added):
        run, epoch = table["run"][i].rpartition("/")[2], int(table["epoch"][i])
        position = rows[int(run), epoch]
        assert table["id"][i] == known.id[position]
        assert table["test_accuracy"][i] == known.test_accuracy[position]
        assert json.loads(table["recipe"][i]) == known.recipes[int(run)]
        assert (table["dataset"][i], table["source"][i]) == ("digits", f"{zoo.path}#{run}/{epoch}")
    assert add([zoo.path], index_copy, quiet=True).added == 0


def test_folders_laid_out_as_public_zoos(zoo: Zoo, index_copy: Path, tmp_path: Path):
    fingerprint = zoo.architecture.fingerprint
    trial = tmp_path / "ray" / "trial-0"
    for epoch in range(2):
        arrays = to_state_dict(noisy(zoo, epoch), zoo.architecture)
        (trial / f"checkpoint_{epoch:06d}").mkdir(parents=True)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(tensors, trial / f"checkpoint_{epoch:06d}" / "checkpoints")
    (trial / "params.json").write_text('{"optim::lr": 0.5}')
    (trial / "result.json").write_text('{"epoch": 0, "test_acc": 0.25}\n{"epoch": 1, "test_acc": 0.5, "pid": 7}')
    old = tmp_path / "old"
    for i, (seed, epoch) in enumerate([(1, 0), (2, 0), (1, 1)]):
        content = {"epoch": epoch, "seed": seed, "test_acc": i / 10}
        old.mkdir(exist_ok=True)
        write_checkpoint(old / f"2022041012304{i}_{epoch}.pt", noisy(zoo, 10 + i), zoo.architecture, content)
    before = IndexStore.open(index_copy).count(fingerprint)
    assert add([tmp_path / "ray", old], index_copy, quiet=True).added == 5
    names = ["run", "epoch", "test_accuracy", "recipe", "metadata"]
    table = IndexStore.open(index_copy).table(fingerprint, names)
    rows = [tuple(table[name][i] for name in names) for i in range(before, before + 5)]
    assert rows == [
        ("ray/trial-0", 0, 0.25, '{"learning_rate": 0.5}', "{}"),
        ("ray/trial-0", 1, 0.5, '{"learning_rate": 0.5}', "{}"),
        ("old/seed-1-20220410123040", 0, 0.0, '{"seed": 1}', "{}"),
        ("old/seed-2-20220410123041", 0, 0.1, '{"seed": 2}', "{}"),
        ("old/seed-1-20220410123040", 1, 0.2, '{"seed": 1}', "{}"),
    ]


def test_the_command(zoo: Zoo, trained: TrainSummary, index_copy: Path, sweep: Path, tmp_path: Path):
    rows = "\n".join(f"r{run}e{epoch}.pt,{run / 10 + 0.1},x{run}" for run in range(2) for epoch in range(2))
    (tmp_path / "runs.csv").write_text(f"file,accuracy,group\n{rows}\n")

    def run_cli(*arguments: object) -> tuple[int, str, str]:
        code = "from weightsearch.cli import main; main()"
        command = [sys.executable, "-c", code, "add", *map(str, arguments), "--index", str(index_copy)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, " ".join(done.stdout.split()), done.stderr

    table = ("--metadata", "runs.csv", "--key", "file", "--run-column", "group")
    code, out, err = run_cli("sweep/run-*/*.pt", *table)
    assert (code, out.endswith("4 checkpoints added, 4 signatures")) == (0, True), err
    assert column(index_copy, zoo.architecture.fingerprint, "test_accuracy")["r1e0.pt"] == 0.2
    assert column(index_copy, zoo.architecture.fingerprint, "run")["r1e0.pt"] == "x1"

    code, out, err = run_cli("sweep", "--quarantine", "bad.csv")
    assert "1 checkpoint added, 4 were there already, 2 signatures, 1 known by relations alone, 1 left out" in out
    assert code == 0
    assert "known by relations alone: 1 file of dense 3x2 (6 parameters): no encoder for it here" in err
    assert "left out: sweep/broken.pt: " in err
    assert (tmp_path / "bad.csv").read_text().splitlines()[0] == "path,reason"
    assert (tmp_path / "bad.csv").read_text().splitlines()[1].startswith("sweep/broken.pt,")
    assert run_cli("sweep", "--strict")[0] == 1
    code, _, err = run_cli("sweep/broken.pt", "nothing.pt")
    assert code == 1
    assert "nothing.pt: there is no such file or folder" in err
    assert err.splitlines()[-1] == "error: 2 of 2 checkpoints were left out; see above"


def test_without_an_index_of_ones_own_nothing_is_added_to_the_reference_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsearchError, match="no index in runs/indexes; make one with"):
        runs.own_index()
    assert runs.newest_index() == runs.REFERENCE_INDEX


def test_sources_that_cannot_be_used_are_one_line(index_copy: Path, sweep: Path, tmp_path: Path):
    (tmp_path / "file").write_text("not an index")
    with pytest.raises(WeightsearchError, match="--index takes an index directory"):
        add([sweep], tmp_path / "file", quiet=True)
    report = add([sweep], index_copy, sources=Sources.make(run_column="nobody"), quiet=True)
    assert report.added == 0
    assert any("its metadata has no nobody" in bad.reason for bad in report.quarantined)


def test_damaged_files_enter_whole_or_not_at_all(zoo: Zoo, index_copy: Path, tmp_path: Path):
    """Flipped bits and truncations: each file is either quarantined, unknown, or a row that agrees with its file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "damaged"
    folder.mkdir()
    arrays = to_state_dict(noisy(zoo, 5), zoo.architecture)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    samples = {
        "pt": lambda path: torch.save({"state_dict": state, "test_acc": 0.5, "epoch": 3}, path),
        "pth": lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
        "safetensors": lambda path: safetensors.torch.save_file(state, path),
        "npz": lambda path: np.savez(path, **arrays),
    }
    total = 0
    for suffix, save in samples.items():
        save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        for i in range(share(2000) // len(samples)):
            mutated = bytearray(content)
            for _ in range(rng.integers(1, 4)):
                end = len(content) if rng.random() < 0.5 else 1500
                mutated[rng.integers(end)] ^= 1 << rng.integers(8)
            cut = rng.integers(len(content)) if i % 4 == 0 else len(content)
            (folder / f"{i}.{suffix}").write_bytes(mutated[:cut])
            total += 1
    fingerprint = zoo.architecture.fingerprint
    before = IndexStore.open(index_copy).count(fingerprint)
    report = add([folder], index_copy, quiet=True)
    assert report.added + report.already + len(report.quarantined) + sum(report.unknown.values()) == total
    assert len(report.quarantined) > total // 4
    assert all(bad.reason and "\n" not in bad.reason for bad in report.quarantined)
    index = IndexStore.open(index_copy)
    assert index.count(fingerprint) == before + report.added
    assert np.isfinite(index.embeddings(fingerprint)).all()
    table = index.table(fingerprint, ["id", "source"])
    for id, source in zip(table["id"][before:], table["source"][before:], strict=True):
        assert align(read_checkpoint(source), [zoo.architecture]).id == id


def test_a_file_that_forgot_the_order_of_its_layers_is_added_queried_and_got_back(tmp_path: Path):
    """`.safetensors` sorts by name, and this network's head sorts before its stem."""

    def state(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        scale = 0.2 + torch.rand((), generator=generator)
        shapes = {"stem.weight": (4, 3), "stem.bias": (4,), "head.weight": (2, 4), "head.bias": (2,)}
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    for run in range(12):
        content = {"state_dict": state(run), "test_acc": float(state(run)["stem.weight"].abs().mean())}
        (tmp_path / "sweep").mkdir(exist_ok=True)
        torch.save(content, tmp_path / "sweep" / f"{run}.pt")
    import_zoo(tmp_path / "sweep", tmp_path / "zoo", quiet=True)
    train(tmp_path / "zoo", tmp_path / "index", method=Method.STATISTICS, quiet=True)
    for name, seed in (("known.safetensors", 3), ("new.safetensors", 50)):
        safetensors.torch.save_file(state(seed), tmp_path / name)
    report = add([tmp_path / "known.safetensors", tmp_path / "new.safetensors"], tmp_path / "index", quiet=True)
    assert (report.added, report.already, report.unknown) == (1, 1, {})
    index = Index.open(tmp_path / "index")
    nearest = index.query(tmp_path / "new.safetensors", k=1).neighbours[0]
    assert nearest.distance == pytest.approx(0, abs=1e-5)
    back = read_checkpoint(index.get(nearest.id, tmp_path / "back.pt"))
    assert [layer.name for layer in back.architecture.layers] == ["stem", "head"]
    for name, array in to_state_dict(back.weights, back.architecture).items():
        np.testing.assert_array_equal(array, state(50)[name].numpy())


def test_a_table_that_comes_later_repairs_and_a_later_epoch_joins_its_run(zoo: Zoo, index_copy: Path, tmp_path: Path):
    folder = tmp_path / "sweep" / "run-a"
    folder.mkdir(parents=True)
    for epoch in range(3):
        write_checkpoint(folder / f"epoch_{epoch}.pt", noisy(zoo, epoch, seed=7), zoo.architecture)
    (folder / "epoch_2.pt").rename(tmp_path / "later.pt")
    assert add([tmp_path / "sweep"], index_copy, quiet=True).added == 2
    (tmp_path / "later.pt").rename(folder / "epoch_2.pt")
    assert add([folder / "epoch_2.pt"], index_copy, quiet=True).added == 1
    (tmp_path / "t.csv").write_text("path,accuracy,team\nepoch_0.pt,50%,red\nepoch_1.pt,75%,blue\n")
    again = add([tmp_path / "sweep"], index_copy, sources=Sources.make(tmp_path / "t.csv"), quiet=True)
    assert (again.added, again.already) == (0, 3)
    assert "set from t.csv: 4 cells of 2 checkpoints held before" in again.notes
    fingerprint = zoo.architecture.fingerprint
    names = [f"epoch_{epoch}.pt" for epoch in range(3)]
    for name, values in (("run", ["sweep/run-a"] * 3), ("epoch", [0, 1, 2]), ("team", ["red", "blue", None])):
        found = column(index_copy, fingerprint, name)
        assert [found[file] for file in names] == values
    accuracy = column(index_copy, fingerprint, "test_accuracy")
    assert [accuracy[file] for file in names[:2]] == [0.5, 0.75]
