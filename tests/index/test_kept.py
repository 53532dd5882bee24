"""A reader that asks again and again: it asks the database for what it lacks alone, and sees every change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.index.test_store import make_index, make_rows
from weightsearch.errors import UsageError
from weightsearch.index import IndexStore, kept, planner, update_rows
from weightsearch.index.connection import Database
from weightsearch.types import Selection

SELECTION = Selection("epoch > 1", not_run="none", per_run=2)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rows = make_rows(40)
    described = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    make_index(tmp_path / "index", replace(rows, description=described))
    return tmp_path / "index"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Databases, each time that one is attached."""
    attached: list[Path] = []
    attach = Database.open

    @contextmanager
    def counted(database: Database, **options: object) -> Iterator[object]:
        attached.append(database.path)
        with attach(database, **options) as connection:  # type: ignore[arg-type]
            yield connection

    monkeypatch.setattr(Database, "open", counted)
    monkeypatch.setattr(kept, "SETTLED_SECONDS", 0.0)
    return attached


def answers(store: IndexStore, fingerprint: str, vector: np.ndarray) -> object:
    def ask() -> object:
        near = store.search(fingerprint, vector, 5, SELECTION)
        runs = [row.run for row in near.neighbours if row.run is not None]
        described = store.descriptions(fingerprint, [row.id for row in near.good])
        with pytest.raises(UsageError, match="holds no checkpoint"):
            store.find("f" * 16)
        return near, store.finals(fingerprint, runs), {id: value.tolist() for id, value in described.items()}

    return store.asked(ask)


@pytest.mark.slow
def test_what_has_been_read_is_kept_until_the_index_changes(index: Path, opened: list[Path]):
    store = IndexStore.open(index)
    (fingerprint,) = store.architectures
    vector = store.embeddings(fingerprint)[3]
    first = answers(store, fingerprint, vector)
    answers(store, fingerprint, vector)
    opened.clear()
    assert answers(store, fingerprint, vector) == first
    assert not opened
    near, ends, _ = first
    row = near.neighbours[0]
    update_rows(index, {row.id: {"test_accuracy": 0.123, "note": "seen"}})
    changed, _, _ = answers(store, fingerprint, vector)
    assert (changed.neighbours[0].test_accuracy, changed.neighbours[0].metadata["note"]) == (0.123, "seen")
    assert answers(store, fingerprint, vector) == answers(IndexStore.open(index), fingerprint, vector)
    assert {row.run for row in near.neighbours} == set(ends)


@pytest.mark.slow
def test_vectors_are_searched_once_for_an_answer_whose_rows_are_read_from_the_database(
    index: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
):
    searched: list[np.ndarray] = []
    search = planner.search
    monkeypatch.setattr(
        planner, "search", lambda segment, query, *a, **o: searched.append(query) or search(segment, query, *a, **o)
    )
    store = IndexStore.open(index)
    (fingerprint,) = store.architectures
    vectors = store.embeddings(fingerprint)
    store.search(fingerprint, vectors[0], 2)
    assert store.asked(lambda: store.search(fingerprint, vectors[30], 2).neighbours[0].id) == f"{30:016x}"
    assert store.search(fingerprint, vectors[31], 2).neighbours[0].id == f"{31:016x}"
    assert store.search(fingerprint, vectors[31], 2, Selection(not_run="zoo/10")).neighbours[0].run != "zoo/10"
    assert len(searched) == 4
    update_rows(index, {f"{31:016x}": {"dataset": "seen"}})
    assert store.search(fingerprint, vectors[31], 2).neighbours[0].dataset == "seen"


@pytest.mark.slow
def test_what_a_caller_does_to_a_neighbour_is_nobody_elses(index: Path, opened: list[Path]):
    store = IndexStore.open(index)
    (fingerprint,) = store.architectures
    vector = store.embeddings(fingerprint)[0]
    near = store.search(fingerprint, vector, 2).neighbours
    recipe = dict(near[0].recipe)
    near[0].recipe.clear()
    assert store.search(fingerprint, vector, 2).neighbours[0].recipe == recipe


def test_a_change_within_one_tick_of_the_clock_is_not_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database = tmp_path / "index.duckdb"
    database.write_bytes(b"old")
    watch = kept.Watch(database)
    watch.has_read()
    state = database.stat()
    database.write_bytes(b"new")
    os.utime(database, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a coarse clock would have it
    assert not watch.is_unchanged()
    monkeypatch.setattr(kept, "SETTLED_SECONDS", 0.0)
    watch.has_read()
    assert watch.is_unchanged()
    (tmp_path / "index.duckdb.wal").write_bytes(b"more")
    assert not watch.is_unchanged()
