"""Beyond `EXACT_LIMIT` rows, which these tests lower: codes that are ranked anew, against a sort of all distances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.index.test_store import DENSE, FINGERPRINT, change_rows, make_rows, write_encoder_files
from weightsearch.index import (
    IndexStore,
    Rows,
    add_rows,
    create_index,
    database,
    info,
    rebuild,
    remove_rows,
    update_rows,
)
from weightsearch.index.doctor import State, doctor
from weightsearch.types import Metric, Selection, Target

WIDTH = 16


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightsearch.index.vectors.EXACT_LIMIT", 1_000)


def runs_of_checkpoints(n: int, first: int = 0) -> Rows:
    """Rows of runs of ten that lie near each other, with ids from `first` on."""
    generator = np.random.default_rng([n, first])
    centres = np.repeat(generator.standard_normal((n // 10, WIDTH)), 10, axis=0)
    embedding = (centres + 0.2 * generator.standard_normal((n, WIDTH))).astype(np.float32)
    ids = np.array([f"{first + i:016x}" for i in range(n)])
    return replace(make_rows(n), id=ids, embedding=embedding, epoch=np.arange(n) % 100)


def joined(*parts: Rows) -> Rows:
    arrays = [field.name for field in fields(Rows) if isinstance(getattr(parts[0], field.name), np.ndarray)]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays})


def agreement(index: IndexStore, rows: Rows, metric: Metric = Metric.COSINE) -> float:
    """Share of the true ten nearest, good and bad, with several filters; distances have to be true in any case."""
    vectors = rows.embedding.astype(np.float64)
    low, high = np.quantile(rows.test_accuracy, [0.25, 0.75])
    graded = np.ones(len(rows), bool), rows.test_accuracy >= high, rows.test_accuracy <= low
    position = {id: i for i, id in enumerate(rows.id.tolist())}
    hits = total = 0
    for vector in np.random.default_rng(5).standard_normal((10, WIDTH)):
        if metric is Metric.COSINE:
            distance = 1 - vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
        else:
            distance = np.linalg.norm(vectors - vector, axis=1)
        for where, passing in (
            (None, np.ones(len(rows), bool)), ("epoch < 50", rows.epoch < 50), ("epoch < 10", rows.epoch < 10),
            ("epoch < 1", rows.epoch < 1),
        ):  # fmt: skip
            answer = index.search(FINGERPRINT, vector, 10, Selection(where=where))
            for grade, neighbours in zip(graded, (answer.neighbours, answer.good, answer.bad), strict=True):
                among = np.flatnonzero(grade & passing)
                nearest = among[np.argsort(distance[among])[:10]]
                found = [position[neighbour.id] for neighbour in neighbours]
                assert set(found) <= set(among.tolist())
                np.testing.assert_allclose([row.distance for row in neighbours], distance[found], atol=1e-5)
                assert len(found) == len(nearest)
                hits += len(set(found) & set(nearest.tolist()))
                total += len(nearest)
    return hits / total


@pytest.mark.slow
@pytest.mark.parametrize("metric", list(Metric))
def test_it_answers_as_a_sort_does_through_adding_removing_and_opening_anew(metric: Metric, tmp_path: Path):
    path, first = tmp_path / "index", runs_of_checkpoints(4_000)
    index = create_index(path, DENSE, first, write_extras=write_encoder_files, metric=metric)
    entry = info(path).architectures[0]
    assert (entry.faiss, entry.exact) == ("IVF64,RaBitQ2", False)
    assert entry.recall is not None
    assert entry.recall >= 0.99
    assert index.search(FINGERPRINT, np.ones(WIDTH), 3).plan.name == "IVF64,RaBitQ2"
    assert agreement(index, first, metric) >= 0.99

    more = runs_of_checkpoints(1_000, 10_000)
    files = {file.name: file.stat().st_ino for file in (path / FINGERPRINT).glob("vectors-*.float32")}
    add_rows(path, FINGERPRINT, more)
    assert {file.name: file.stat().st_ino for file in (path / FINGERPRINT).glob("vectors-*.float32")} == files
    assert agreement(index, joined(first, more), metric) >= 0.99  # which sees what was added
    assert info(path).architectures[0].behind == 0

    few = runs_of_checkpoints(20, 20_000)
    add_rows(path, FINGERPRINT, few)
    assert info(path).architectures[0].behind == 20
    assert agreement(index, joined(first, more, few), metric) >= 0.99

    remove_rows(path, where="epoch % 7 = 0")
    kept = joined(first, more, few)
    kept = kept.take(kept.epoch % 7 != 0)
    for opened in (index, IndexStore.open(path)):
        assert agreement(opened, kept, metric) >= 0.99
    assert {finding.state for finding in doctor(path)} == {State.OK}


@pytest.mark.slow
def test_it_is_made_anew_when_it_has_grown_fourfold(tmp_path: Path):
    path, first, more = tmp_path / "index", runs_of_checkpoints(1_100), runs_of_checkpoints(4_000, 10_000)
    create_index(path, DENSE, first, write_extras=write_encoder_files)
    assert info(path).architectures[0].faiss == "IVF32,RaBitQ2"
    add_rows(path, FINGERPRINT, more)
    assert info(path).architectures[0].faiss == "IVF64,RaBitQ2"
    assert agreement(IndexStore.open(path), joined(first, more)) >= 0.99
    assert len(list((path / FINGERPRINT).glob("vectors-*"))) == 4
    assert (
        len(list((path / FINGERPRINT).glob("columns-*"))) == 9
    )  # a file and its checksums for each of four, and what they are
    rebuild(path, "Flat")
    assert [file.suffix for file in sorted((path / FINGERPRINT).glob("vectors-*"))] == [".faiss", ".json"]
    assert agreement(IndexStore.open(path), joined(first, more)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "zero", "exchange"])
def test_rotten_exact_vectors_are_noticed_at_their_first_use_and_taken_from_the_database(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path, rows = tmp_path / "index", runs_of_checkpoints(4_000)
    create_index(path, DENSE, rows, write_extras=write_encoder_files)
    (file,) = (path / FINGERPRINT).glob("*.float32")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[100_000] ^= 64
    elif damage == "zero":
        content[8192:16384] = bytes(8192)
    else:
        content[:4096], content[4096:8192] = content[4096:8192], content[:4096]
    file.write_bytes(content)
    index = IndexStore.open(path)
    assert agreement(index, rows) >= 0.99
    assert any("are damaged, and are taken from index.duckdb" in record.message for record in caplog.records)
    findings = {finding.what: finding for finding in doctor(path)}
    assert findings[f"{FINGERPRINT}/vectors"].state is State.REPAIRED
    assert {finding.state for finding in doctor(path)} == {State.OK}
    caplog.clear()
    assert agreement(IndexStore.open(path), rows) >= 0.99
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "zero", "exchange", "ids"])
def test_rotten_lists_of_codes_are_noticed_when_they_are_first_searched_and_the_database_answers(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path, rows = tmp_path / "index", runs_of_checkpoints(4_000)
    create_index(path, DENSE, rows, write_extras=write_encoder_files)
    (file,) = (path / FINGERPRINT).glob("*.faiss")
    content = bytearray(file.read_bytes())
    whole = faiss.read_index(str(file))
    inverted = faiss.extract_index_ivf(whole.index)
    size, count = inverted.code_size, inverted.invlists.list_size(7)
    start = content.find(bytes(faiss.rev_swig_ptr(inverted.invlists.get_codes(7), size * count)))
    assert start > 0
    if damage == "flip":
        content[start + size] ^= 64
    elif damage == "zero":
        content[start : start + size * count] = bytes(size * count)
    elif damage == "exchange":
        content[start : start + size], content[start + size : start + 2 * size] = (
            content[start + size : start + 2 * size], content[start : start + size]
        )  # fmt: skip
    else:
        content[start + size * count] ^= 1
    file.write_bytes(content)
    index = IndexStore.open(path)
    index.load(FINGERPRINT)
    assert not caplog.records
    assert agreement(index, rows) == 1  # it searches all lists, sooner or later
    assert any("the file of vectors is missing or damaged" in record.message for record in caplog.records)
    assert {finding.state for finding in doctor(path)} == {State.OK, State.REPAIRED}
    caplog.clear()
    assert agreement(IndexStore.open(path), rows) >= 0.99
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("place", [100, -9])
def test_what_is_rotten_around_the_lists_of_codes_is_noticed_when_it_is_opened(
    place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path, rows = tmp_path / "index", runs_of_checkpoints(2_000)
    create_index(path, DENSE, rows, write_extras=write_encoder_files)
    (file,) = (path / FINGERPRINT).glob("*.faiss")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    index = IndexStore.open(path)
    index.load(FINGERPRINT)
    assert any("the file of vectors is missing or damaged" in record.message for record in caplog.records)
    assert agreement(index, rows) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".faiss", ".pages", ".json", ".float32"])
def test_without_one_of_its_files_the_database_answers_exactly_and_the_doctor_writes_it(ending: str, tmp_path: Path):
    path, rows = tmp_path / "index", runs_of_checkpoints(2_000)
    create_index(path, DENSE, rows, write_extras=write_encoder_files)
    (file,) = (path / FINGERPRINT).glob(f"vectors-*{ending}")
    file.unlink()
    assert agreement(IndexStore.open(path), rows) == 1
    assert State.BROKEN not in {finding.state for finding in doctor(path)}
    assert {finding.state for finding in doctor(path)} == {State.OK}
    assert agreement(IndexStore.open(path), rows) >= 0.99


@pytest.mark.slow
def test_columns_are_read_from_their_file_only_where_that_is_as_the_database_and_sound(tmp_path: Path):
    path, rows = tmp_path / "index", runs_of_checkpoints(2_000)
    create_index(path, DENSE, rows, write_extras=write_encoder_files)

    def file() -> Path:
        (only,) = (path / FINGERPRINT).glob("columns-*.values")
        return only

    def values() -> np.ndarray:
        return IndexStore.open(path).accuracies(FINGERPRINT)

    assert isinstance(values().base, np.ndarray)  # mapped
    first = file()
    update_rows(path, {rows.id[7]: {"test_accuracy": 0.125}})
    assert file() != first
    rows.test_accuracy[7] = 0.125
    assert values().tolist() == rows.test_accuracy.tolist()
    content = bytearray(file().read_bytes())
    content[10_000] ^= 1
    file().write_bytes(content)
    assert values().tolist() == rows.test_accuracy.tolist()
    assert agreement(IndexStore.open(path), rows) >= 0.99
    change_rows(path, f"UPDATE ix.checkpoints SET test_accuracy = 0.5 WHERE id = '{rows.id[3]}'")  # another process
    change_rows(path, "UPDATE ix.state SET generation = generation + 1")  # before it writes its file
    assert values()[3] == 0.5


@pytest.mark.slow
def test_only_the_columns_and_rows_that_change_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, rows = tmp_path / "index", runs_of_checkpoints(2_000)
    rows.test_accuracy[5] = np.nan
    create_index(path, DENSE, rows, write_extras=write_encoder_files)
    every, conditions = {".numbers", ".values", ".datasets", ".runs"}, []
    everything = database.columns
    monkeypatch.setattr(database, "columns", lambda *args: conditions.append(args[3:]) or everything(*args))

    def files() -> dict[str, int]:
        columns = [file for file in (path / FINGERPRINT).glob("columns-*") if file.suffix in every]
        return {file.suffix: file.stat().st_ino for file in columns}

    def written(change: Callable[[], object]) -> set[str]:
        """Which columns' files are others after a change, whose rows alone were read from the database."""
        before = files()
        change()
        assert all(condition for condition in conditions)
        after = files()
        assert after.keys() == every
        values, held = IndexStore.open(path).accuracies(FINGERPRINT), np.isin(rows.id, sorted(gone), invert=True)
        np.testing.assert_array_equal(values, rows.test_accuracy[held])
        assert all(condition for condition in conditions)
        return {name for name in after if after[name] != before[name]}

    gone: set[str] = set()
    rows.test_accuracy[[7, 1_999]] = 0.125, np.nan
    values = {rows.id[7]: {"test_accuracy": 0.125}, rows.id[1_999]: {"test_accuracy": None}}
    assert written(lambda: update_rows(path, values)) == {".values"}
    assert written(lambda: update_rows(path, {rows.id[7]: {"note": "again"}})) == set()
    assert written(lambda: update_rows(path, {rows.id[3]: {"run": "mine"}})) == {".runs"}
    assert IndexStore.open(path).only_dataset(FINGERPRINT) == rows.dataset
    assert written(lambda: update_rows(path, {rows.id[0]: {"dataset": "svhn"}})) == {".datasets"}
    assert IndexStore.open(path).only_dataset(FINGERPRINT) is None
    assert written(lambda: update_rows(path, {rows.id[0]: {"dataset": rows.dataset}})) == {".datasets"}
    assert IndexStore.open(path).only_dataset(FINGERPRINT) == rows.dataset
    gone |= {rows.id[5], rows.id[1_000]}
    assert written(lambda: remove_rows(path, ids=sorted(gone))) == every
    assert IndexStore.open(path).only_dataset(FINGERPRINT) == rows.dataset
    runs = IndexStore.open(path).columns(FINGERPRINT).runs
    with IndexStore.open(path).connection() as connection:
        np.testing.assert_array_equal(runs, everything(connection, FINGERPRINT, Target()).runs)
    add_rows(path, FINGERPRINT, runs_of_checkpoints(10, 30_000))  # appended to files of several generations
    assert all(condition for condition in conditions)
    assert len(IndexStore.open(path).accuracies(FINGERPRINT)) == 2_008
    assert {finding.state for finding in doctor(path)} == {State.OK}


@pytest.mark.slow
def test_rows_that_are_added_are_appended_to_the_files_of_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, rows = tmp_path / "index", runs_of_checkpoints(2_000)
    create_index(path, DENSE, rows, write_extras=write_encoder_files)

    def files() -> dict[str, bytes]:
        return {file.suffix: file.read_bytes() for file in (path / FINGERPRINT).glob("columns-*[a-z]")}

    before, inode = files(), next((path / FINGERPRINT).glob("columns-*.values")).stat().st_ino
    few = replace(runs_of_checkpoints(20, 20_000), dataset=np.full(20, "svhn", object))
    reads: list[object] = []
    everything = database.columns
    monkeypatch.setattr(database, "columns", lambda *args: reads.append(args[3:]) or everything(*args))
    opened = IndexStore.open(path)
    assert opened.only_dataset(FINGERPRINT) is not None
    add_rows(path, FINGERPRINT, few)
    assert reads == [("number > 1999",)]  # no other row was read
    after = files()
    for part in (".numbers", ".values", ".datasets", ".runs"):
        assert after[part][: len(before[part])] == before[part]
        assert len(after[part]) == 8 * 2_020
    assert next((path / FINGERPRINT).glob("columns-*.values")).stat().st_ino == inode
    for index in (opened, IndexStore.open(path)):
        assert index.accuracies(FINGERPRINT).tolist() == [*rows.test_accuracy, *few.test_accuracy]
        assert index.only_dataset(FINGERPRINT) is None
        assert agreement(index, joined(rows, few)) >= 0.99
    assert len(reads) == 1
    assert add_rows(path, FINGERPRINT, few).added == 0
    assert files() == after
    for file in (path / FINGERPRINT).glob("columns-*.values"):  # as a writer leaves it that is killed
        with file.open("ab") as handle:
            handle.write(b"half")
    add_rows(path, FINGERPRINT, runs_of_checkpoints(10, 30_000))
    assert len(files()[".values"]) == 8 * 2_030
    assert len(IndexStore.open(path).accuracies(FINGERPRINT)) == 2_030
    assert {finding.state for finding in doctor(path)} == {State.OK}
