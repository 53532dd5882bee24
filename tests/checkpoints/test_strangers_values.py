"""Values that no honest program writes, in every place where strangers' metadata comes from."""

from __future__ import annotations

import csv
import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from weightsearch.checkpoints.discovery import CheckpointFile, Quarantined, Sources, write_quarantine
from weightsearch.checkpoints.folder_layouts import Layout, find
from weightsearch.checkpoints.metadata import interpret, stand_ins
from weightsearch.checkpoints.metadata_table import MetadataTable, read_json, read_table
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.checkpoints.trackers.yaml_file import read_yaml
from weightsearch.errors import WeightsearchError
from weightsearch.search.wording import recipe_text
from weightsearch.zoo.small_cnn_zoo import read_layout

STATE = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value} if depth % 2 else [value]
    return value


@pytest.mark.parametrize("place", ["file", "sidecar", "table"])
def test_lone_surrogates_and_nul_are_replaced_wherever_they_stand(place: str, tmp_path: Path):
    path = tmp_path / "model.pt"
    bad = {"run": "\ud800run", "team": "a\0b", "config": {"optimizer": "\udfff", "\ud801": 1}}
    torch.save({"state_dict": STATE, **(bad if place == "file" else {})}, path)
    sources = Sources()
    if place == "sidecar":
        (tmp_path / "model.json").write_text(json.dumps(bad))
    elif place == "table":
        (tmp_path / "t.jsonl").write_text(json.dumps({"path": "model.pt", "run": "a\0run", "team": "a\0b"}) + "\n")
        sources = Sources(MetadataTable.read(tmp_path / "t.jsonl"))
    metadata = sources.read(CheckpointFile(path, tmp_path, "model")).metadata
    for text in (metadata.run, json.dumps([metadata.recipe, metadata.extras], ensure_ascii=False)):
        assert text is not None
        text.encode()  # a lone surrogate cannot be
        assert "\0" not in text
    assert metadata.extras["team"] == "a\ufffdb"


@pytest.mark.parametrize("value", [nested(600), nested(601), b"bytes", object(), "x" * 300_000])
def test_one_bad_cell_costs_that_cell(value: object):
    found = interpret({"config": {"deep": value, "lr": 0.1}, "test_acc": 0.5, "bad": value}, "sidecar")
    assert found.recipe == {"lr": 0.1}
    assert found.extras == {}
    assert found.metrics["test_accuracy"].value == 0.5
    (first, *_) = stand_ins([found])
    assert first.startswith("left out sidecar's config.deep")


@pytest.mark.parametrize("value", [[0.1, 0.01], 10**400, {}, True, "fast", None, float("inf"), "x\ny"])
def test_any_recipe_is_a_line(value: object):
    recipe = {"learning_rate": value, "dropout": value, "my key": value}
    cleaned = interpret({"config": recipe}, "sidecar").recipe
    assert "\n" not in recipe_text(dict(cleaned)).replace("x\ny", "")
    recipe_text(recipe)  # of an index that was made before values were cleaned


def test_an_integer_of_any_length_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"config": {"lr": 1' + "0" * 400 + ', "big": 1' + "0" * 9000 + "}}")
    recipe = interpret(read_json(path), "sidecar").recipe
    assert recipe["lr"] == "1" + "0" * 400
    assert recipe["big"] == "1" + "0" * 9000


@pytest.mark.parametrize(
    "state",
    [
        '{"log_history": [{"step": "x", "eval_loss": 1}], "global_step": 5}',
        '{"log_history": 5}',
        '{"log_history": [1, null, {"step": [1]}], "global_step": {}}',
        '{"global_step": "many", "epoch": [1]}',
        "[]",
        "{",
    ],
)
def test_a_trainer_state_of_any_kind_costs_no_more_than_itself(state: str, tmp_path: Path):
    (tmp_path / "m").mkdir()
    torch.save(STATE, tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "trainer_state.json").write_text(state)
    found = find(tmp_path, Layout.HUGGINGFACE)
    assert [file.path.name for file in found] == ["pytorch_model.bin"]
    records = Sources().read(found[0])
    assert records


@pytest.mark.slow
def test_json_and_tables_cannot_ask_for_much_more_memory_than_they_are_long(tmp_path: Path):
    many = "[" + ",".join(["[]"] * 2_100_000) + "]"
    (tmp_path / "a.safetensors.index.json").write_text('{"weight_map": {"a": "b"}, "x": ' + many + "}")
    (tmp_path / "a.json").write_text('{"x": ' + many + "}")
    header = json.dumps({"__metadata__": {"x": many}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for name in ("a.safetensors.index.json", "a.safetensors"):
        with pytest.raises(WeightsearchError, match="values"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(WeightsearchError, match="values"):
        read_json(tmp_path / "a.json")
    (tmp_path / "layout.csv").write_text('varname,start_idx,end_idx,shape\nd/kernel:0,0,300000000,"(300000000,)"\n')
    with pytest.raises(WeightsearchError, match="10,000,000"):
        read_layout(tmp_path / "layout.csv")


@pytest.mark.slow
def test_a_table_of_few_bytes_and_many_cells_is_refused(tmp_path: Path):
    import duckdb

    path = tmp_path / "bomb.parquet"
    duckdb.connect().execute(f"COPY (SELECT repeat('x', 1000000) AS path FROM range(400)) TO '{path}'")
    assert path.stat().st_size < 2**21
    with pytest.raises(WeightsearchError, match=r"MiB of cells|memory"):
        read_table(path, "path")


def test_a_spreadsheet_computes_nothing_of_a_quarantine(tmp_path: Path):
    names = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\tx", "run/1"]
    write_quarantine(tmp_path / "q.csv", [Quarantined(name, name) for name in names])
    with (tmp_path / "q.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == [*(f"'{name}" for name in names[:-1]), "run/1"]


LISTS = "l0: &l0 [x]\n" + "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 15))
MERGED = "m0: &m0 {x: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 15))


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", LISTS], ids=["itself", "map", "lists"])
def test_yaml_that_unfolds_without_end_is_refused(text: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(WeightsearchError, match=r"config\.yaml is no YAML"):
        read_yaml(tmp_path / "config.yaml")


def test_mappings_merged_again_and_again_end(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(MERGED)
    with suppress(WeightsearchError):  # older versions of PyYAML keep a key as often as it is merged
        assert read_yaml(tmp_path / "config.yaml")["m14"] == {"x": 1}


def test_few_aliases_in_yaml_are_unfolded(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("base: &base {lr: 1e-3}\nhead: {<<: *base, wd: 0}\nboth: [*base, *base]\n")
    expected = {"base": {"lr": 1e-3}, "head": {"lr": 1e-3, "wd": 0}, "both": [{"lr": 1e-3}] * 2}
    assert read_yaml(tmp_path / "config.yaml") == expected
