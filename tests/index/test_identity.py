"""An opened index that is replaced by another one, and indexes of older formats."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from tests.attack.kills import make_old
from tests.index.test_store import DENSE, make_index, make_rows, more_rows, write_encoder_files
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore, Rows, add_rows, create_index, info, remove_rows
from weightsearch.index.manifest import FORMAT, read_manifest, write_manifest
from weightsearch.index.writer import update_where
from weightsearch.paths import REFERENCE_INDEX
from weightsearch.types import Selection


def old_reference(path: Path) -> Path:
    """The reference index as format 2 had it: no identity, whole epochs, a split's name cut short."""
    shutil.copytree(REFERENCE_INDEX, path)
    manifest = read_manifest(path)
    with duckdb.connect(str(path / "index.duckdb")) as connection:
        columns = {name for name, *_ in connection.execute("SELECT * FROM state").description}
        if "identity" in columns:
            connection.execute("ALTER TABLE state DROP COLUMN identity")
            connection.execute("ALTER TABLE checkpoints ALTER epoch TYPE INTEGER")
        connection.execute("UPDATE checkpoints SET split = left(split, 10)")
    manifest.pop("identity", None)
    write_manifest(path, {**manifest, "format": 2})
    return path


def rows_of(count: int, seed: int) -> Rows:
    """Rows that share no id with those of another seed."""
    return replace(make_rows(count, seed=seed), id=np.array([f"{seed:04x}{i:012x}" for i in range(count)]))


def replace_index(path: Path, rows: Rows) -> IndexStore:
    return create_index(path, DENSE, rows, write_extras=write_encoder_files, replace=True)


def calibration_rows(path: Path) -> int:
    index = IndexStore.open(path)
    fingerprint = next(iter(index.architectures))
    vector = index.embeddings(fingerprint)[0]
    return index.search(fingerprint, vector, 1, Selection(where="split = 'calibration'")).plan.rows_passing


@pytest.mark.slow
def test_calibration_runs_are_found_by_their_name_before_and_after_migration(tmp_path: Path):
    path = old_reference(tmp_path / "index")
    with duckdb.connect(str(path / "index.duckdb"), read_only=True) as connection:
        expected = connection.execute("SELECT count(*) FROM checkpoints WHERE split = 'calibratio'").fetchall()[0][0]
    assert expected > 100
    before = IndexStore.open(path)
    assert calibration_rows(path) == expected  # read as it lies, and left so
    assert read_manifest(path)["format"] == 2
    fingerprint = next(iter(before.architectures))
    table = before.table(fingerprint, ["id", "epoch", "split"])
    update_where(path, "epoch = 0", {"team": "blue"})
    assert read_manifest(path)["format"] == FORMAT
    assert calibration_rows(path) == expected
    assert info(path).architectures[0].rows == len(table["id"])
    after = before.table(fingerprint, ["id", "epoch", "split"])  # the same object goes on
    assert all(np.array_equal(table[name], after[name]) for name in table)


@pytest.mark.slow
def test_every_index_has_an_identity_of_its_own(tmp_path: Path):
    one, other = (make_index(tmp_path / name, rows_of(20, seed)) for seed, name in enumerate("ab"))
    assert one.identity != other.identity
    assert IndexStore.open(one.path).identity == one.identity


@pytest.mark.slow
def test_an_index_held_open_while_it_is_replaced_answers_as_the_new_one(tmp_path: Path):
    held = make_index(tmp_path / "index", rows_of(50, 1))
    (fingerprint,) = held.architectures
    vector = np.ones(8, np.float32)
    held.search(fingerprint, vector, 5)
    held.accuracies(fingerprint)
    fresh = replace_index(tmp_path / "index", rows_of(40, 2))
    expected = fresh.search(fingerprint, vector, 5)
    assert held.search(fingerprint, vector, 5).neighbours == expected.neighbours
    assert np.array_equal(held.accuracies(fingerprint), fresh.accuracies(fingerprint))
    assert len(held) == 40


@pytest.mark.slow
def test_rows_embedded_for_one_index_do_not_enter_another(tmp_path: Path):
    held = make_index(tmp_path / "index", rows_of(50, 1))
    (fingerprint,) = held.architectures
    identity = held.identity
    replace_index(tmp_path / "index", rows_of(40, 2))
    with pytest.raises(WeightsearchError, match="replaced by another index"):
        add_rows(tmp_path / "index", fingerprint, rows_of(5, 3), identity=identity)


@pytest.mark.slow
def test_readers_meet_one_index_or_the_other_while_it_is_replaced_again_and_again(tmp_path: Path):
    rows = [rows_of(60, seed) for seed in (1, 2)]
    ids = [set(part.id.tolist()) for part in rows]
    make_index(tmp_path / "index", rows[0])
    stop, mixed, asked = threading.Event(), [], 0

    def replace_it() -> None:
        for number in range(30):
            replace_index(tmp_path / "index", rows[number % 2])
        stop.set()

    held = IndexStore.open(tmp_path / "index")
    (fingerprint,) = held.architectures
    writer = threading.Thread(target=replace_it)
    writer.start()
    while not stop.is_set():
        nearest = {row.id for row in held.search(fingerprint, np.ones(8, np.float32), 10).neighbours}
        asked += 1
        if not (nearest <= ids[0] or nearest <= ids[1]):
            mixed.append(nearest)
    writer.join()
    assert asked > 10
    assert not mixed


@pytest.mark.slow
def test_a_number_of_a_removed_row_is_not_given_again_after_migration(tmp_path: Path):
    """FAISS's file still has the removed row's vector under it."""
    path = tmp_path / "index"
    make_index(path, make_rows(30))
    assert remove_rows(path, where="number >= 27") == 3
    make_old(path)
    rows = more_rows(3, 100, seed=8)
    add_rows(path, DENSE.fingerprint, rows)
    assert read_manifest(path)["format"] == FORMAT
    index = IndexStore.open(path)
    assert index.numbers(DENSE.fingerprint).tolist() == [*range(27), 30, 31, 32]
    for id, embedding in zip(rows.id, rows.embedding, strict=True):
        nearest = index.search(DENSE.fingerprint, embedding, 1).neighbours[0]
        assert (nearest.id, nearest.distance < 1e-5) == (id, True)
