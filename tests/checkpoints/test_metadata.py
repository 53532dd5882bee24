"""What is known of a checkpoint, from wherever its maker wrote it: keys, sidecars, tables, names of files."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsearch.checkpoints.discovery import CheckpointFile, Skipped, Sources, find_files
from weightsearch.checkpoints.metadata import Measured, Metadata, as_fractions, interpret, merge, told, unread
from weightsearch.checkpoints.metadata_table import MetadataTable
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.errors import UsageError, WeightsearchError

STATE = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}


def values(metadata: Metadata) -> dict[str, float]:
    return {column: measured.value for column, measured in metadata.metrics.items()}


@pytest.mark.parametrize(
    ("given", "metrics", "extras"),
    [
        ({"test_acc": 0.9, "train_acc": 0.95}, {"test_accuracy": 0.9, "train_accuracy": 0.95}, {}),
        ({"Test Accuracy": "0.9", "test/loss": 2}, {"test_accuracy": 0.9, "test_loss": 2}, {}),
        ({"eval_accuracy": 0.7, "eval_loss": 0.1}, {"test_accuracy": 0.7, "test_loss": 0.1}, {}),
        ({"metrics": {"test": {"acc": 0.8}, "f1": 0.5}}, {"test_accuracy": 0.8}, {"f1": 0.5}),
        ({"accuracy": 0.99, "test_acc": 0.8}, {"test_accuracy": 0.8}, {"accuracy": 0.99}),  # the surer name
        (
            {"val_acc": 0.6, "val_loss": 1.0},
            {"test_accuracy": 0.6, "test_loss": 1.0},
            {"val_acc": 0.6, "val_loss": 1.0},
        ),
        ({"val_acc": 0.6, "test_acc": 0.5}, {"test_accuracy": 0.5}, {"val_acc": 0.6}),
        ({"val_acc": 0.6, "test_acc": float("nan")}, {"test_accuracy": 0.6}, {"val_acc": 0.6}),
        ({"test_acc": [0.1, 0.9]}, {}, {"test_acc": [0.1, 0.9]}),  # a history, not this checkpoint's
        ({"accuracy": True, "acc": "high"}, {}, {"accuracy": True, "acc": "high"}),
        ({"loss": 0.1, "note": None, "bad": float("inf")}, {}, {"loss": 0.1}),  # whose loss, nobody knows
        ({"split": "a", "source": 1}, {}, {"split_": "a", "source_": 1}),  # the index's own columns' names
    ],
)
def test_metrics_by_their_many_names(given: dict, metrics: dict, extras: dict):
    found = interpret(given, "file")
    assert values(found) == metrics
    assert found.extras == extras


def test_epoch_run_dataset_and_recipe():
    given = {
        "epoch": 3.0, "run": 7, "dataset": "usps", "hyper_parameters": {"lr": 0.1, "optim": {"name": "sgd"}},
        "config.batch": 32, "args": {"lr": 5}, "optimizer": "adam", "seed": 3, "scheduler": {"state": 1},
    }  # fmt: skip
    found = interpret(given, "file")
    assert (found.epoch, found.run, found.dataset) == (3, "7", "usps")
    assert found.recipe == {"lr": 0.1, "optim.name": "sgd", "batch": 32, "optimizer": "adam", "seed": 3}
    assert found.extras == {"scheduler": {"state": 1}}
    assert interpret({"epoch": 2.5}, "file").epoch == 2.5
    texts = ("12/90", "7", "1,5", "none", "nan", "epoch=03-step=120", "Epoch 4/10", "epoch_2.5", "epochs", "ep")
    expected = [12, 7, 1.5, None, None, 3, 4, 2.5, None, None]
    assert [interpret({"epoch": text}, "file").epoch for text in texts] == expected
    assert unread([interpret({"epoch": [3]}, "file")]) == [
        "file's epoch is no number in 1 file, such as '[3]': it is not taken"
    ]
    runs = [1.0, 0.001, datetime.date(2024, 1, 2), "a", 3, True, None, float("nan")]
    named = [interpret({"run": run}, "table").run for run in runs]
    assert named == ["1", "0.001", "2024-01-02", "a", "3", None, None, None]


def test_settings_that_are_numbers_are_numbers_as_text_too():
    written = {
        "lr": "1e-3",
        "wd": "0,01",
        "batch_size": "128",
        "seed": "007",
        "optimizer": "1e-3x",
        "args": {"opt.lr": ".5"},
    }
    given = {**written, "config": {"decay": "5e-4", "commit": "12345e7", "version": "1.10", "dropout": "none"}}
    assert interpret(given, "sidecar").recipe == {
        "lr": 0.001, "wd": 0.01, "batch_size": 128, "seed": "007", "optimizer": "1e-3x", "opt.lr": 0.5,
        "decay": 0.0005, "commit": "12345e7", "version": "1.10", "dropout": "none",
    }  # fmt: skip


def test_an_origin_is_named_once():
    given = [interpret({"acc": value}, "sidecar") for value in ("93 %", 0.5)]
    assert told(given) == ["accuracy for 2 of 2, from acc in sidecar"]


def test_the_surest_source_counts():
    table = interpret({"val_acc": 0.5, "team": "red"}, "table")
    sidecar = interpret({"epoch": 4, "team": "blue", "recipe": {"lr": 1}}, "sidecar")
    file = interpret({"test_acc": 0.9, "epoch": 5, "recipe": {"lr": 2, "wd": 3}}, "file")
    merged = merge([table, sidecar, file])
    assert (merged.epoch, merged.recipe) == (4, {"lr": 1, "wd": 3})
    assert merged.extras == {"val_acc": 0.5, "team": "red"}
    assert merged.metrics == {"test_accuracy": Measured(0.9, "file's test_acc")}  # a test accuracy, not a stand-in


def accuracies(*numbers: float, origin: str = "file's acc") -> list[Metadata]:
    return [Metadata({"test_accuracy": Measured(number, origin)}) for number in numbers]


@pytest.mark.parametrize(
    ("given", "expected", "warns"),
    [
        ([0.1, 0.5, 1.0], [0.1, 0.5, 1.0], None),
        ([0.5, 55.0, 100.0], [0.005, 0.55, 1.0], "goes up to 100: taken as per cent and divided by 100"),
        ([0.5, 55.0, 120.0], [None, None, None], "is no accuracy (it goes from 0.5 to 120), so those are unknown"),
        ([0.5, 120.0], [0.5, None], "is no accuracy in 1 file, such as 120, so it is unknown there"),
        ([-1.0, 0.5, -1.0], [None, 0.5, None], "is no accuracy in 2 files, such as -1"),  # of runs that failed
        ([-1.0, -2.0], [None, None], "is no accuracy (it goes from -2 to -1), so those are unknown"),
        ([0.25, 1.00000001], [0.25, 1.0], None),  # rounding is no per cent
        ([25.0, 100.0000001], [0.25, 1.0], "goes up to 100: taken as per cent"),
    ],
)
def test_per_cent_is_judged_over_all_that_have_one_origin(given: list, expected: list, warns: str | None):
    others = accuracies(0.9, origin="sidecar's acc")
    found, warnings = as_fractions([*accuracies(*given), *others])
    assert [values(metadata).get("test_accuracy") for metadata in found] == [*expected, 0.9]
    assert [warns in warning for warning in warnings] == ([True] if warns else [])


def save(path: Path, **content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": STATE, **content}, path)
    return path


def read(path: Path, sources: Sources | None = None) -> Metadata:
    return (sources or Sources()).read(CheckpointFile(path, path.parent.parent, path.parent.name)).metadata


@pytest.mark.parametrize("name", ["model.json", "model.pt.json"])
def test_a_sidecar_counts_before_the_file_itself(tmp_path: Path, name: str):
    path = save(tmp_path / "run" / "model.pt", test_acc=0.5, epoch=3)
    (path.parent / name).write_text('{"test_acc": 0.75, "lr": NaN, "tags": ["a"], "recipe": {"lr": 0.1}}')
    found = read(path)
    assert (values(found), found.epoch, found.run) == ({"test_accuracy": 0.75}, 3, "run")
    assert (found.extras, found.recipe) == ({"tags": ["a"]}, {"lr": 0.1})


@pytest.mark.parametrize("text", ["{", "[1]", '"text"', "\x00"])
def test_a_broken_sidecar_costs_itself_alone(tmp_path: Path, text: str):
    path = save(tmp_path / "run" / "model.pt", test_acc=0.5)
    path.with_suffix(".json").write_text(text)
    sources = Sources()
    assert sources.read(CheckpointFile(path, tmp_path, "run")).metadata.value("test_accuracy") == 0.5
    assert "model.json cannot be read" in sources.notes[0]
    path.with_suffix(".json").write_bytes(b'\xef\xbb\xbf{"test_acc": 0.75}')  # with a byte order mark
    assert read(path).value("test_accuracy") == 0.75


TABLE = """path,test_acc,lr,run_id
a/model.pt,0.1,0.01,one
b/model.pt,0.2,0.02,two
solo,0.3,0.03,three
gone.pt,0.4,0.04,four
"""


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet", "csv.gz"])
def test_tables(tmp_path: Path, suffix: str):
    import duckdb

    (tmp_path / "source.csv").write_text(TABLE)
    target = tmp_path / f"runs.{suffix}"
    if suffix == "csv":
        target.write_text(TABLE)
    else:
        kind = {"json": "(FORMAT json)", "parquet": "(FORMAT parquet)", "csv.gz": "(HEADER)"}[suffix]
        duckdb.connect().execute(f"COPY (FROM '{tmp_path}/source.csv') TO '{target}' {kind}")
    sources = Sources.make(target, run_column="run_id")
    paths = [save(tmp_path / name, test_acc=0.9) for name in ("a/model.pt", "b/model.pt", "c/solo.pt")]
    found = [read(path, sources) for path in paths]
    assert [values(metadata)["test_accuracy"] for metadata in found] == [0.1, 0.2, 0.3]
    assert [metadata.run for metadata in found] == ["one", "two", "three"]
    assert [metadata.recipe["lr"] for metadata in found] == [0.01, 0.02, 0.03]
    assert sources.table is not None
    assert sources.table.notes == [f"1 row of runs.{suffix} is about no file here, such as gone.pt"]
    with pytest.raises(WeightsearchError, match=r"the row solo of .* is also about .*solo.pt: give more of the path"):
        read(save(tmp_path / "d" / "solo.pt"), sources)
    with pytest.raises(WeightsearchError, match="its metadata has no run_id, which --run-column asks for"):
        read(save(tmp_path / "d" / "unlisted.pt"), sources)


def test_paths_of_another_machine_are_told_by_their_ends(tmp_path: Path):
    rows = ["/scratch/me/a/run/m.pt,1", "/scratch/me/b/run/m.pt,2", "../c/m.pt,3", "/x/d/other.pt,4"]
    (tmp_path / "runs.csv").write_text("\n".join(["path,n", *rows]))
    table = MetadataTable.read(tmp_path / "runs.csv")
    for name, expected in (("a/run", 1), ("b/run", 2), ("c", 3), ("d", None), ("run", None)):
        found = table.find(tmp_path / "here" / name / "m.pt")
        assert (None if found is None else found.extras["n"]) == expected  # `run/m.pt` is as much the one as the other


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("a,b\n1,2\n", {}, "--key path: runs.csv has no such column; it has a, b"),
        ('"i\nv', {}, "no such column; it has i\\nv"),  # found by the attack
        (None, {}, "there is no such file"),
        ("path\nx\n", {"run_pattern": "("}, "is no regular expression"),
        ("path\nx\n", {"run_pattern": "a", "run_column": "b"}, "give one of them"),
    ],
)
def test_wrong_tables_and_flags_are_one_line(tmp_path: Path, content: str | None, options: dict, says: str):
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WeightsearchError) as caught:
        Sources.make(path, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"give a \.csv, \.json or \.parquet file"):
        MetadataTable.read(tmp_path / "runs.xlsx")


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("run/epoch=12-step=400.ckpt", 12),
        ("run/model_epoch12.pt", 12),
        ("run/model_12.pt", 12),
        ("run/12.pt", 12),
        ("run/checkpoint_000012/model.pt", 12),
        ("run/resnet18.pt", None),  # no separator: part of the name
        ("run/best.pt", None),
        ("seed_7.pt", None),  # a run of its own: the number is rather the run's
        ("seed_7_epoch_2.pt", 2),
        ("run/epoch=2.5.pt", 2.5),
    ],
)
def test_epochs_in_names(tmp_path: Path, name: str, epoch: float | None):
    save(tmp_path / name)
    ((found,), _) = find_files([tmp_path])
    assert Sources().read(found).metadata.epoch == epoch


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("epoch=3-val_acc=0.391.ckpt", 0.391),
        ("model_epoch_12_acc_0.85.pt", 0.85),
        ("ckpt-0013-acc-91.5.pth", 91.5),
        ("best_val_acc=0.95_epoch=20.ckpt", 0.95),
        ("best_acc_0.93.pt", 0.93),
        ("e3-test-accuracy0.75.pth.tar", 0.75),
        ("net_acc_3.pt", None),  # a number without a point may be anything
        ("vacc0.5.pt", None),
        ("acc_1.2.3.pt", None),  # a version
    ],
)
def test_accuracies_in_names(tmp_path: Path, name: str, accuracy: float | None):
    assert values(read(save(tmp_path / "runs" / "run" / name))).get("test_accuracy") == accuracy


def test_what_a_pattern_took_as_the_run_is_no_epoch(tmp_path: Path):
    save(tmp_path / "sweep" / "lr_7.pt")
    ((found,), _) = find_files([tmp_path])
    metadata = Sources.make(run_pattern=r"lr_(\d+)").read(found).metadata
    assert (metadata.run, metadata.epoch) == ("7", None)
    with pytest.raises(WeightsearchError, match=r"--run-pattern x.z does not match its path"):
        Sources.make(run_pattern="x.z").read(found)


def test_files_folders_and_patterns(tmp_path: Path):
    root = tmp_path / "zoo"
    for name in ("b.pt", "run-10/m.ckpt", "run-2/m.ckpt", "run-2/optimizer.pt", ".hidden/m.pt", "run-2/notes.txt"):
        save(root / name)
    shards = root / "big"
    shards.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (shards / name).write_bytes(b"")
    (shards / "model.safetensors.index.json").write_text("{}")
    found, missing = find_files([root, root / "b.pt", root / "run-*" / "*.ckpt", root / "none.pt", root / "*.xyz"])
    assert [(file.path.relative_to(root).as_posix(), file.run) for file in found] == [
        ("b.pt", "zoo/b"),
        ("big/model.safetensors.index.json", "zoo/big"),
        ("run-2/m.ckpt", "zoo/run-2"),
        ("run-10/m.ckpt", "zoo/run-10"),
    ]
    assert [Path(bad.path).name for bad in missing] == ["none.pt", "*.xyz"]
    (tmp_path / "empty").mkdir()
    assert [bad.reason.partition(" .")[0] for bad in find_files([tmp_path / "empty"])[1]] == [
        "it holds no file of weights"
    ]


def test_a_run_the_file_names_counts_before_its_folder(tmp_path: Path):
    assert read(save(tmp_path / "examples" / "good.pt", run="usps-v1/7")).run == "usps-v1/7"
    assert read(save(tmp_path / "examples" / "bad.pt")).run == "examples"


def test_numbers_survive_json(tmp_path: Path):
    """What DuckDB and NumPy make of numbers becomes plain JSON."""
    (tmp_path / "runs.csv").write_text("path,day,cost,flag\nx.pt,2024-05-01,1.50,true\n")
    table = MetadataTable.read(tmp_path / "runs.csv")
    row = table.find(tmp_path / "x.pt")
    assert row is not None
    assert json.loads(json.dumps(row.extras)) == {"day": "2024-05-01", "cost": 1.5, "flag": True}
    assert interpret({"x": np.float64(1.5)}, "file").extras == {"x": 1.5}


def test_what_is_skipped_is_counted_by_its_last_name(tmp_path: Path):
    skipped = Skipped()
    for run in range(3):
        path = tmp_path / f"{run}.pt"
        layers = {f"layer{i}.bn.num_batches_tracked": torch.tensor(run) for i in range(2)}
        torch.save({"state_dict": STATE | layers, "optimizer_states": [{"lr": 1}]}, path)
        skipped.count(read_checkpoint(path))
    assert Skipped().notes == []
    assert skipped.notes == [
        "skipped: num_batches_tracked: not floating (int64) (in 3 files); optimizer_states: training state (in 3 files)"
    ] or skipped.notes == [
        "skipped: optimizer_states: training state (in 3 files); num_batches_tracked: not floating (int64) (in 3 files)"
    ]
