"""Cells that rotted though DuckDB's checksum of their block agrees; vectors that are verified while they are searched.

The damage is done by DuckDB itself, so that all blocks are as DuckDB wrote them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import faiss
import numpy as np
import pytest

from tests.index.test_rot import rot, swap
from tests.index.test_store import FINGERPRINT, change_rows, make_index, make_rows, more_rows
from weightsearch.errors import WeightsearchError
from weightsearch.index import (
    IndexStore,
    State,
    add_rows,
    doctor,
    export,
    rebuild,
    remove_rows,
    update_rows,
    vectors,
)
from weightsearch.index.manifest import DATABASE
from weightsearch.types import Metric, Selection

ROWS = make_rows(60)


def execute(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path / DATABASE)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()


def exchange(path: Path, column: str) -> None:
    """The first and the last row's cells change places: as sums of words and sets of values see it, nothing did."""
    last = len(ROWS) - 1
    other = f"(SELECT number, {column} AS cell FROM checkpoints WHERE number IN (0, {last})) other"
    execute(
        path, f"UPDATE checkpoints SET {column} = cell FROM {other} WHERE checkpoints.number = {last} - other.number"
    )


def without_checks(path: Path) -> None:
    """As the first indexes of format 3 were."""
    for column in ("shown_hash", "other_hash", "embedding_hash", "description_hash"):
        execute(path, f"ALTER TABLE checkpoints DROP COLUMN {column}")
    execute(path, "ALTER TABLE state DROP COLUMN digests", "ALTER TABLE state DROP COLUMN hashing")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "index"
    make_index(path, ROWS)
    return path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "index"))


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    yield
    faiss.omp_set_num_threads(threads)


def nearest(path: Path, where: str | None = None) -> list[str]:
    """Of the first row's own embedding, which finds itself."""
    answer = IndexStore.open(path).search(FINGERPRINT, ROWS.embedding[0], 3, Selection(where=where))
    return [neighbour.id for neighbour in answer.neighbours]


QUESTIONS: dict[str, Callable[[Path], Any]] = {
    "test_accuracy": nearest,
    "run": nearest,
    "id": nearest,
    "recipe": nearest,
    "epoch": nearest,
    "train_loss": lambda path: nearest(path, "train_loss > 2 or number = 5"),
    "split": lambda path: IndexStore.open(path).table(FINGERPRINT, ["split"]),
    "source": lambda path: IndexStore.open(path).find(ROWS.id[0]),
    "predicted_accuracy": lambda path: export(path, path.parent / "rows.parquet"),
    "embedding": lambda path: IndexStore.open(path).embeddings(FINGERPRINT),
    "dataset": lambda path: IndexStore.open(path).accuracies(FINGERPRINT),
}


@pytest.mark.slow
@pytest.mark.parametrize("column", QUESTIONS)
def test_a_cell_in_another_rows_place_is_never_answered_from(column: str, path: Path):
    if column in ("source", "split", "dataset"):
        change_rows(path, f"UPDATE ix.checkpoints SET {column} = 'a' || number")
    QUESTIONS[column](path)
    (path.parent / "rows.parquet").unlink(missing_ok=True)
    exchange(path, column)
    with pytest.raises(WeightsearchError, match=rf"index\.duckdb is damaged \((its column {column}|a row)"):
        QUESTIONS[column](path)
    assert {finding.what for finding in doctor(path) if finding.state is State.BROKEN} == {DATABASE}


@pytest.mark.slow
def test_a_row_that_vanished_or_lost_its_id_is_missed(path: Path):
    execute(path, "UPDATE checkpoints SET id = 'ffffffffffffffff' WHERE number = 7")
    with pytest.raises(WeightsearchError, match="its column id is not as it was written"):
        IndexStore.open(path).find(ROWS.id[7])
    execute(path, "DELETE FROM checkpoints WHERE number = 7")
    with pytest.raises(WeightsearchError, match="is not as it was written"):
        nearest(path)


@pytest.mark.slow
def test_whoever_changes_rows_keeps_the_checksums_and_takes_nothing_rotten_for_the_truth(path: Path):
    add_rows(path, FINGERPRINT, more_rows(20, 1000, seed=3))
    update_rows(path, {ROWS.id[3]: {"dataset": "letters", "team": "a", "epoch": 9}, ROWS.id[4]: {"test_loss": None}})
    assert remove_rows(path, ids=[ROWS.id[5]], where="number > 70") > 1
    rebuild(path)
    assert {finding.state for finding in doctor(path)} == {State.OK}
    before = nearest(path)
    assert before[0] == ROWS.id[0]
    exchange(path, "train_accuracy")
    with pytest.raises(WeightsearchError, match="a row of its tables is not as it was written"):
        update_rows(path, {ROWS.id[0]: {"team": "b"}})
    with pytest.raises(WeightsearchError, match="a row of its tables is not as it was written"):
        remove_rows(path, ids=[ROWS.id[-1]])
    update_rows(path, {ROWS.id[9]: {"team": "b"}})
    add_rows(path, FINGERPRINT, more_rows(5, 2000, seed=4))
    said = [finding.detail for finding in doctor(path) if finding.state is State.BROKEN]
    assert any("2 rows that are not as they were written: number 0" in detail for detail in said), said
    assert any("columns that are not as they were written: train_accuracy" in detail for detail in said), said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["update", "doctor"])
def test_an_index_without_checksums_is_read_and_gets_them_when_it_is_written(how: str, path: Path):
    without_checks(path)
    right = nearest(path)
    assert right[0] == ROWS.id[0]
    assert IndexStore.open(path).find(ROWS.id[0]).columns["run"] == "zoo/0"
    if how == "update":
        update_rows(path, {ROWS.id[9]: {"team": "b"}})
    else:
        assert {finding.what for finding in doctor(path) if finding.state is State.REPAIRED} == {"checksums"}
        assert {finding.state for finding in doctor(path)} == {State.OK}
    assert nearest(path) == right
    exchange(path, "run")
    with pytest.raises(WeightsearchError, match="its column run is not as it was written"):
        nearest(path)


@pytest.mark.slow
def test_checksums_of_another_duckdb_say_nothing_until_the_next_change(path: Path):
    right = nearest(path)
    execute(path, "UPDATE state SET hashing = 5", "UPDATE checkpoints SET shown_hash = 6, embedding_hash = number")
    assert nearest(path) == right
    remove_rows(path, ids=[ROWS.id[30]])
    assert nearest(path) == right
    assert {finding.state for finding in doctor(path)} == {State.OK}
    exchange(path, "run")
    with pytest.raises(WeightsearchError, match="is not as it was written"):
        nearest(path)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("place", ["vectors", "last vectors", "numbers", "head"])
def test_vectors_that_are_verified_while_they_are_searched_are_never_answered_from(
    place: str,
    threads: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    threads_as_before: None,
):  # fmt: skip
    monkeypatch.setattr(vectors, "BLOCKS_EACH", 2)
    faiss.omp_set_num_threads(threads)
    path, rows = tmp_path / "index", make_rows(6000, 64)
    make_index(path, rows)

    def found(index: IndexStore) -> list[str]:
        return [neighbour.id for neighbour in index.search(FINGERPRINT, rows.embedding[5], 4).neighbours]

    assert (rows.embedding[5] @ rows.embedding.T / np.linalg.norm(rows.embedding, axis=1)).argmax() == 5
    right = found(IndexStore.open(path))
    assert right[0] == rows.id[5]
    file = next(path.rglob("*.faiss"))
    assert len(json.loads(file.with_suffix(".json").read_text())["file"]["blocks"]) == 6

    def change(content: bytearray) -> None:
        if place == "vectors":
            swap(content)
        elif place == "last vectors":
            content[-8 * (1 + len(rows)) - 1] ^= 1
        else:
            content[-20 if place == "numbers" else 5] ^= 1

    rot(file, change)
    index = IndexStore.open(path)
    assert found(index) == right
    assert "damaged" in caplog.text
    caplog.clear()
    assert found(index) == right
    assert not caplog.text
    assert index.newest_cache(FINGERPRINT, 99) is None
    assert vectors.load(file, vectors.read_info(file, index.manifest)) is None
    assert State.REPAIRED in {finding.state for finding in doctor(path)}
    assert found(IndexStore.open(path)) == right


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_distances_are_the_same_bits_whether_vectors_are_verified_or_not(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_as_before: None
):
    monkeypatch.setattr(vectors, "BLOCKS_EACH", 1)
    faiss.omp_set_num_threads(threads)
    rows = make_rows(3333, 64)
    cache = make_index(tmp_path / "index", rows).newest_cache(FINGERPRINT, 1, at_once=False)
    assert cache is not None
    assert cache.blocks is not None
    assert cache.matrix is not None
    for metric in Metric:
        cache.blocks.checked[:] = False
        verified = vectors.verified_distances(rows.embedding[7], cache.blocks, metric)
        assert cache.blocks.checked.all()
        np.testing.assert_array_equal(verified, vectors.distances(rows.embedding[7], cache.matrix, metric))
