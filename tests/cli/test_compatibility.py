"""What people wrote for version 0.1.0 still works: its options, and the keys of a query's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from weightsearch import cli
from weightsearch.paths import REFERENCE_INDEX

from .conftest import Run

OLD: dict[str, Any] = json.loads((Path(__file__).parent / "version-0.1.0.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("command", OLD["options"])
def test_no_option_is_gone(command: str):
    shown: Any = typer.main.get_command(cli.app)
    for word in command.split():
        shown = shown.commands[word]
    options = {option for parameter in shown.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(OLD["options"][command]) <= options


def keys(value: object, prefix: str = "") -> set[str]:
    """A JSON value's keys as paths; of a list's elements, the first one's."""
    if isinstance(value, dict):
        return {prefix + key for key in value}.union(*(keys(below, f"{prefix}{key}.") for key, below in value.items()))
    return keys(value[0], prefix + "[]") if isinstance(value, list) and value else set()


def test_no_key_of_an_answer_is_gone(run: Run):
    options = ("--index", REFERENCE_INDEX, "--k", 3, "--json")
    code, out, err = run("query", REFERENCE_INDEX / "examples" / "good.pt", *options)
    assert code == 0, err
    assert set(OLD["query_json"]) <= keys(json.loads(out))


def test_scripts_for_0_1_0_find_an_index_and_its_writers():
    from weightsearch.index import Index, add_rows
    from weightsearch.index.writing import update_where

    assert Index.open(REFERENCE_INDEX).architectures
    assert {add_rows.__module__, update_where.__module__} == {"weightsearch.index.writer"}


def test_an_answers_old_name_for_what_is_predicted():
    import weightsearch

    answer = weightsearch.query(REFERENCE_INDEX, REFERENCE_INDEX / "examples" / "good.pt", k=1)
    assert answer.predicted_accuracy == answer.predicted == answer.to_dict()["predicted_accuracy"]


def test_an_index_answers_to_the_methods_that_it_had_in_0_1_0():
    import weightsearch

    index = weightsearch.Index.open(REFERENCE_INDEX)
    fingerprint = next(iter(index.architectures))
    index.load(fingerprint)
    count, row = index.count(fingerprint), index.find(index.table(fingerprint, ["id"])["id"][0])
    assert count == len(index.grades(fingerprint, good="q75")) == len(index.prepared(fingerprint)[0])
    assert index.width(fingerprint) == len(row.embedding)
    assert index.search(fingerprint, row.embedding, k=1).neighbours[0].id == row.columns["id"]
    assert row.columns["run"] in index.finals(fingerprint, [row.columns["run"]])
    assert set(index.descriptions(fingerprint, [row.columns["id"]])) <= {row.columns["id"]}
    assert "optimizer" in index.keys()  # noqa: SIM118 - not a dict
    assert (index.encoder_directory(fingerprint) / "encoder.json").exists()
    assert index.newest_cache(fingerprint, 99) is not None
    assert index.manifest["metric"] == index.metric
    with pytest.raises(AttributeError, match="has no widths"):
        _ = index.widths
