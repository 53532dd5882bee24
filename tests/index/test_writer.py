"""Changing an index: what was added, removed or updated is what searches find, across formats and architectures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from tests.index.test_store import DENSE, FINGERPRINT, make_index, make_rows, more_rows, write_encoder_files
from weightsearch import files
from weightsearch.encoders import load_encoder
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import (
    IndexStore,
    Rows,
    State,
    add_architecture,
    add_rows,
    doctor,
    export,
    info,
    rebuild,
    remove_rows,
    update_rows,
    update_table,
    update_where,
    vectors,
)
from weightsearch.index import writer as writing
from weightsearch.index.manifest import DATABASE, FORMAT, describe_file
from weightsearch.search.index import query
from weightsearch.training.summary import TrainSummary
from weightsearch.training.train import train
from weightsearch.types import Architecture, Layer, LayerKind, Method, Metric, Selection
from weightsearch.zoo.build_zoo import build_zoo
from weightsearch.zoo.store import Zoo

pytestmark = pytest.mark.slow  # each test writes indexes of its own

WIDE = Architecture((Layer("dense", LayerKind.DENSE, (4, 3)),))


def check(path: Path, expected: dict[str, np.ndarray], metric: Metric = Metric.COSINE) -> None:
    """The index holds exactly `expected`, embeddings by id, and finds them as brute force does."""
    index = IndexStore.open(path)
    ids = index.table(FINGERPRINT, ["id"])["id"].tolist()
    assert sorted(ids) == sorted(expected)
    np.testing.assert_array_equal(index.embeddings(FINGERPRINT), np.array([expected[id] for id in ids]))
    vector = np.random.default_rng(len(ids)).standard_normal(8).astype(np.float32)
    vectors = np.array(list(expected.values()), np.float64)
    if metric is Metric.COSINE:
        away = 1 - vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
    else:
        away = np.linalg.norm(vectors - vector, axis=1)
    order = np.argsort(away)[:10]
    found = index.search(FINGERPRINT, vector, k=min(10, len(ids))).neighbours
    np.testing.assert_allclose([row.distance for row in found], away[order], atol=1e-5)
    assert [row.id for row in found] == [list(expected)[i] for i in order]


def by_id(rows: Rows) -> dict[str, np.ndarray]:
    return dict(zip(rows.id.tolist(), rows.embedding, strict=True))


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("stale", [0, 10_000], ids=["published", "by readers"])
def test_add_and_remove_equal_brute_force(metric: Metric, stale: int, tmp_path: Path, monkeypatch):
    """Whether the FAISS file follows each change at once, or readers make up for what it lacks."""
    monkeypatch.setattr(writing, "STALE_ROWS", stale)
    path, first, second = tmp_path / "index", make_rows(60), more_rows(25, 50)
    make_index(path, first, metric)
    summary = add_rows(path, FINGERPRINT, second)
    assert (summary.added, summary.already) == (15, 10)
    expected = by_id(second) | by_id(first)  # the ten that were there keep their first embedding
    check(path, expected, metric)
    again = add_rows(path, FINGERPRINT, second)
    assert (again.added, again.generation) == (0, summary.generation)
    for id in (second.id[24], first.id[0], first.id[30]):
        assert remove_rows(path, ids=[id]) == 1
        del expected[id]
        check(path, expected, metric)
    assert add_rows(path, FINGERPRINT, second.take(np.array([24]))).added == 1  # what was removed may come back
    expected[second.id[24]] = second.embedding[24]
    check(path, expected, metric)
    files = sorted(file.name for file in (path / FINGERPRINT).glob("vectors-*"))
    assert len(files) == 2
    assert (files == ["vectors-1.faiss", "vectors-1.json"]) == (stale > 0)


def test_row_groups_stay_small_whatever_the_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A commit merges small groups in memory, which grows with the rows where nothing bounds the groups."""
    monkeypatch.setattr("weightsearch.index.connection.GROUP_ROWS", 2_048)
    path = tmp_path / "index"
    make_index(path, make_rows(600))
    for start in range(600, 6_000, 600):
        add_rows(path, FINGERPRINT, more_rows(600, start))
    with duckdb.connect(str(path / DATABASE), read_only=True) as connection:
        groups = connection.execute(
            "SELECT max(count) FROM pragma_storage_info('checkpoints') GROUP BY row_group_id"
        ).fetchall()
        assert connection.execute("SELECT count(*) FROM checkpoints").fetchone() == (6_000,)
    assert 600 < max(count for (count,) in groups) <= 2_048


def test_remove_by_run_and_by_condition(tmp_path: Path):
    path = tmp_path / "index"
    rows = make_rows(60)
    make_index(path, rows)
    assert remove_rows(path, runs=["zoo/2", "zoo/3"]) == 6
    assert remove_rows(path, where="epoch = 0 and optimizer = 'adam'") == 18
    kept = (np.arange(60) % 3 != 0) & ~np.isin(np.arange(60) // 3, [2, 3])
    check(path, by_id(rows.take(np.flatnonzero(kept))))
    with pytest.raises(UsageError, match="holds no checkpoint with run zoo/3"):
        remove_rows(path, runs=["zoo/3"])
    with pytest.raises(UsageError, match="--where"):
        remove_rows(path, where="colour = 1")
    check(path, by_id(rows.take(np.flatnonzero(kept))))


def test_update_by_id_by_condition_and_by_table(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(30)
    make_index(path, rows)
    ids = rows.id.tolist()
    update_rows(path, {ids[0]: {"test_accuracy": 0.5, "team": "blue"}, ids[1]: {"test_accuracy": None, "score": 3}})
    assert update_where(path, "epoch = 2 and number < 10", {"dataset": "usps", "team": "red"}) == 3
    (tmp_path / "t.csv").write_text("run,team,score\nzoo/9,green,1.5\nzoo/8,,2\n")
    assert update_table(path, tmp_path / "t.csv", "run").checkpoints == 6
    table = IndexStore.open(path).table(FINGERPRINT, ["id", "test_accuracy", "dataset", "team", "score"])
    accuracy = rows.test_accuracy.copy()
    accuracy[:2] = 0.5, np.nan
    np.testing.assert_array_equal(table["test_accuracy"], accuracy)
    assert [i for i in range(30) if table["dataset"][i] == "usps"] == [2, 5, 8]
    teams = {0: "blue", 2: "red", 5: "red", 8: "red", 27: "green", 28: "green", 29: "green"}
    assert {i: team for i, team in enumerate(table["team"]) if team is not None} == teams
    scores = {1: 3, 24: 2, 25: 2, 26: 2, 27: 1.5, 28: 1.5, 29: 1.5}
    assert {i: score for i, score in enumerate(table["score"].tolist()) if not np.isnan(score)} == scores
    found = IndexStore.open(path).search(FINGERPRINT, np.ones(8), 20, Selection(where="score > 1 and team is not null"))
    assert {row.id for row in found.neighbours} == {ids[i] for i in (27, 28, 29)}
    assert {json.dumps(row.metadata) for row in found.neighbours} == {'{"team": "green", "score": 1.5}'}
    check(path, by_id(rows))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"0" * 16: {"id": "x"}}, "id cannot be changed"),
        ({"0" * 16: {"embedding": 1}}, "embedding cannot be changed"),
        ({"0" * 16: {"test_accuracy": "high"}}, "test_accuracy = 'high': give a number"),
        ({"0" * 16: {"team": "blue"}, "f" * 16: {"team": "red"}}, "no checkpoint with id f"),
    ],
)
def test_a_wrong_update_changes_nothing(changes: dict, says: str, tmp_path: Path):
    make_index(tmp_path / "index", make_rows(5))
    before = IndexStore.open(tmp_path / "index").table(FINGERPRINT, ["id", "test_accuracy", "metadata"])
    with pytest.raises(UsageError, match=says):
        update_rows(tmp_path / "index", changes)
    after = IndexStore.open(tmp_path / "index").table(FINGERPRINT, ["id", "test_accuracy", "metadata"])
    assert {name: column.tolist() for name, column in after.items()} == {
        name: column.tolist() for name, column in before.items()
    }


@pytest.mark.parametrize("embedding", [np.full((3, 8), np.inf, np.float32), np.zeros((3, 7), np.float32)])
def test_embeddings_that_do_not_fit_are_refused(embedding: np.ndarray, tmp_path: Path):
    make_index(tmp_path / "index", make_rows(5))
    with pytest.raises(WeightsearchError, match=r"not finite|expected embeddings of shape"):
        add_rows(tmp_path / "index", FINGERPRINT, replace(more_rows(3, 5), embedding=embedding))
    check(tmp_path / "index", by_id(make_rows(5)))


def test_a_reader_sees_what_others_commit_meanwhile(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(40)
    make_index(path, rows)
    reader = IndexStore.open(path)
    vector = rows.embedding[3]
    assert reader.search(FINGERPRINT, vector, 1).neighbours[0].id == rows.id[3]
    remove_rows(path, ids=[rows.id[3]])
    assert reader.search(FINGERPRINT, vector, 1).neighbours[0].id != rows.id[3]
    add_rows(path, FINGERPRINT, replace(more_rows(1, 99), embedding=vector[None]))
    assert reader.search(FINGERPRINT, vector, 1).neighbours[0].id == f"{99:016x}"
    assert (reader.count(FINGERPRINT), len(reader.accuracies(FINGERPRINT))) == (40, 40)
    rebuild(path)
    assert reader.search(FINGERPRINT, vector, 1).neighbours[0].id == f"{99:016x}"


def test_two_architectures_in_one_index(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(40)
    make_index(path, rows)
    other = make_rows(20, width=5, seed=3)
    add_architecture(path, WIDE, other, write_extras=write_encoder_files)
    index = IndexStore.open(path)
    assert list(index.architectures) == [FINGERPRINT, WIDE.fingerprint]
    assert (index.count(FINGERPRINT), index.count(WIDE.fingerprint), len(index)) == (40, 20, 60)
    np.testing.assert_array_equal(index.embeddings(WIDE.fingerprint), other.embedding)
    assert index.search(WIDE.fingerprint, other.embedding[4], 1).neighbours[0].distance < 1e-6
    assert (path / WIDE.fingerprint / "encoder.json").exists()
    check(path, by_id(rows))
    with pytest.raises(UsageError, match="already holds"):
        add_architecture(path, WIDE, other, write_extras=write_encoder_files)
    three = Architecture((Layer("dense", LayerKind.DENSE, (5, 3)),))
    with pytest.raises(UsageError, match="same --target and --metric"):
        add_architecture(path, three, other, write_extras=write_encoder_files, metric=Metric.L2)
    with pytest.raises(WeightsearchError, match=r"holds no architecture .*; it holds"):
        index.search(three.fingerprint, np.ones(5), 1)
    shared_id = str(other.id[4])  # both architectures have a row of this id
    np.testing.assert_array_equal(index.find(shared_id, WIDE.fingerprint).embedding, other.embedding[4])
    with pytest.raises(UsageError, match=f"{shared_id} of architecture {FINGERPRINT}, {shared_id} of architecture"):
        index.find(shared_id)
    assert {finding.state for finding in doctor(path)} == {State.OK}
    assert [entry.rows for entry in info(path).architectures] == [40, 20]


def test_an_architecture_whose_adding_failed_is_not_there_and_may_be_added_again(tmp_path: Path, monkeypatch):
    path, rows, other = tmp_path / "index", make_rows(40), make_rows(20, width=5, seed=3)
    make_index(path, rows)
    with monkeypatch.context() as patched:
        patched.setattr("weightsearch.index.create.write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add_architecture(path, WIDE, other, write_extras=write_encoder_files)
    assert list(IndexStore.open(path).architectures) == [FINGERPRINT]
    assert [finding.state for finding in doctor(path) if "interrupted" in finding.detail] == [State.REPAIRED]
    again = replace(other, embedding=other.embedding + 1)
    add_architecture(path, WIDE, again, write_extras=write_encoder_files)
    np.testing.assert_array_equal(IndexStore.open(path).embeddings(WIDE.fingerprint), again.embedding)
    assert {finding.state for finding in doctor(path)} == {State.OK}


def make_format_1(path: Path, rows: Rows) -> None:
    """As version 0.1.0 wrote it, from a copy of its statements."""
    make_index(path, rows)
    with duckdb.connect(str(path / "index.duckdb")) as connection:
        connection.execute("DROP TABLE keys; DROP TABLE state; CREATE TABLE state (generation BIGINT NOT NULL)")
        connection.execute("INSERT INTO state VALUES (1)")
        names = "number, id, architecture, dataset, run, epoch, train_loss, train_accuracy, test_loss, test_accuracy"
        names += ", predicted_accuracy, split, recipe, embedding"
        connection.execute(f"CREATE TABLE old AS SELECT {names} FROM checkpoints; DROP TABLE checkpoints")
        connection.execute(
            "CREATE TABLE checkpoints (number BIGINT PRIMARY KEY, id VARCHAR NOT NULL, architecture VARCHAR NOT NULL, "
            "dataset VARCHAR, run VARCHAR NOT NULL, epoch INTEGER, train_loss DOUBLE, train_accuracy DOUBLE, "
            "test_loss DOUBLE, test_accuracy DOUBLE, predicted_accuracy DOUBLE, split VARCHAR, recipe VARCHAR, "
            "embedding BLOB NOT NULL, UNIQUE (architecture, id))"
        )
        connection.execute("INSERT INTO checkpoints SELECT * FROM old; DROP TABLE old")
    (path / FINGERPRINT / "vectors-1.json").unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest |= {"format": 1, "generation": 1}
    manifest["architectures"] = {FINGERPRINT: {"count": len(rows), "layers": DENSE.to_dict()}}
    for name in ("index.duckdb", f"{FINGERPRINT}/vectors-1.faiss"):
        manifest["files"][name] = describe_file(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("half", [False, True], ids=["whole", "manifest only"])
def test_an_index_of_format_1_is_read_and_brought_up_to_date_by_the_first_change(
    half: bool, tmp_path: Path, caplog, monkeypatch
):
    path, rows = tmp_path / "index", make_rows(40)
    make_format_1(path, rows)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    check(path, by_id(rows))
    selected = IndexStore.open(path).search(
        FINGERPRINT, np.ones(8), 3, Selection(where="optimizer = 'adam' and number < 9")
    )
    assert len(selected.neighbours) == 3
    assert info(path).architectures[0].rows == 40
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    if half:  # killed between the manifest and the database
        with monkeypatch.context() as patched:
            patched.setattr("weightsearch.index.migration.checks.renew", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                rebuild(path)
        assert json.loads((path / "manifest.json").read_text())["format"] == FORMAT
        check(path, by_id(rows))
    add_rows(path, FINGERPRINT, more_rows(3, 40))
    check(path, by_id(rows) | by_id(more_rows(3, 40)))
    assert json.loads((path / "manifest.json").read_text())["format"] == FORMAT
    assert {finding.state for finding in doctor(path)} == {State.OK}
    assert not caplog.records


def test_the_type_by_size_and_by_choice(tmp_path: Path):
    assert vectors.default_factory(10_000) == vectors.default_factory(1_000_000) == "Flat"
    assert vectors.default_factory(1_500_000) == "IVF1024,RaBitQ2"
    path = tmp_path / "index"
    centres = np.random.default_rng(0).standard_normal((40, 8))
    embedding = np.repeat(centres, 50, axis=0) + 0.1 * np.random.default_rng(1).standard_normal((2000, 8))
    rows = replace(make_rows(2000), embedding=embedding.astype(np.float32))
    make_index(path, rows)
    exact = IndexStore.open(path)
    for factory in ("IVF16,Flat", "HNSW16", "auto"):
        rebuild(path, factory)
        entry = info(path).architectures[0]
        assert entry.faiss == (factory if factory != "auto" else "Flat")
        assert entry.exact == (factory == "auto")
        index, found, wanted = IndexStore.open(path), 0, 0
        for i in range(0, 2000, 97):
            for where in (None, "epoch = 1", "number % 100 = 7"):
                selection = Selection(where=where)
                truth = exact.search(FINGERPRINT, embedding[i], 10, selection)
                got = index.search(FINGERPRINT, embedding[i], 10, selection)
                for ours, theirs in zip((got.neighbours, got.good), (truth.neighbours, truth.good), strict=True):
                    wanted += len(theirs)
                    found += len({row.id for row in ours} & {row.id for row in theirs})
                if where == "number % 100 = 7":
                    assert [row.id for row in got.neighbours] == [row.id for row in truth.neighbours]
                    assert got.plan.name == "exact, passing rows"
        assert found >= 0.98 * wanted
        if factory.startswith("IVF"):
            assert entry.recall is not None
            assert entry.recall >= 0.99
            assert entry.nprobe is not None
            assert entry.nprobe < 16
        add_rows(path, FINGERPRINT, replace(more_rows(1, 5000), embedding=embedding[:1].astype(np.float32) * 2))
        near = IndexStore.open(path).search(FINGERPRINT, embedding[0], 3).neighbours
        assert f"{5000:016x}" in {row.id for row in near}  # which the FAISS file lacks
        remove_rows(path, ids=[f"{5000:016x}"])
        assert f"{5000:016x}" not in {
            row.id for row in IndexStore.open(path).search(FINGERPRINT, embedding[0], 9).neighbours
        }
    with pytest.raises(UsageError, match="FAISS knows no such index"):
        rebuild(path, "Cube")
    assert info(path).architectures[0].faiss == "Flat"


def test_export_is_what_the_index_holds(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(20)
    make_index(path, rows)
    add_architecture(path, WIDE, make_rows(10, width=5), write_extras=write_encoder_files)
    assert export(path, tmp_path / "rows.parquet") == 30
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT id, optimizer, embedding FROM '{tmp_path}/rows.parquet' WHERE architecture = ? ORDER BY number",
            [FINGERPRINT],
        ).fetchall()
    assert [row[:2] for row in found] == [(id, "adam") for id in rows.id]
    np.testing.assert_array_equal(np.array([row[2] for row in found], np.float32), rows.embedding)
    assert export(path, tmp_path / "some.parquet", where="epoch = 1") == 7 + 3
    with pytest.raises(UsageError, match=r"end in \.parquet"):
        export(path, tmp_path / "rows.csv")
    with pytest.raises(WeightsearchError, match="cannot write"):
        export(path, tmp_path / "nowhere" / "rows.parquet")


def test_what_another_writer_removes_meanwhile_is_not_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = make_rows(20)
    make_index(tmp_path / "index", rows)
    matching = writing.matching

    def then_one_goes(path: Path, **chosen: object) -> list[str]:
        ids = matching(path, **chosen)
        if chosen["where"] == "number < 10":
            remove_rows(path, ids=ids[:1])
        return ids

    monkeypatch.setattr(writing, "matching", then_one_goes)
    assert update_where(tmp_path / "index", "number < 10", {"team": "blue"}) == 9
    assert len(writing.matching(tmp_path / "index", where="team = 'blue'")) == 9
    (gone,) = set(rows.id.tolist()) - set(writing.matching(tmp_path / "index", where="number >= 0"))
    with pytest.raises(UsageError, match="holds no checkpoint with id"):
        update_rows(tmp_path / "index", {gone: {"team": "red"}})


COMMANDS = {
    "remove": (["remove", "{id}"], "1 checkpoint removed"),
    "update": (["update", "--set", "team=blue", "--where", "epoch = 0"], "checkpoints changed"),
    "rebuild": (["rebuild"], "Flat"),
    "doctor": (["doctor"], "loads"),
    "info": (["info"], "4,970 parameters"),
    "export": (["export", "{out}"], "rows written to"),
}


def test_commands(index_copy: Path, tmp_path: Path):
    id = IndexStore.open(index_copy).table(next(iter(IndexStore.open(index_copy).architectures)), ["id"])["id"][0]
    for command, says in COMMANDS.values():
        words = [word.format(id=id, out=tmp_path / "rows.parquet") for word in command]
        code = "import sys; from weightsearch.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--index", str(index_copy)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert says in done.stdout


def test_train_adds_an_architecture_and_each_query_meets_only_its_own(
    trained: TrainSummary, index_copy: Path, tmp_path: Path
):
    other = tmp_path / "zoos" / "small"
    build_zoo(out=other, dataset="digits", runs=16, epochs=6, filters=8, batch_size=64, seed=5, quiet=True)
    with pytest.raises(UsageError, match="--target and --metric"):
        train(other, index_copy, method=Method.STATISTICS, add=True, metric=Metric.L2, quiet=True)
    summary = train(other, index_copy, method=Method.STATISTICS, add=True, examples=1, quiet=True)
    index = IndexStore.open(index_copy)
    assert len(index.architectures) == 2
    for example in (summary.examples[0], trained.examples[0]):
        answer = query(index_copy, example.path, k=3)
        assert {row.id for row in answer.neighbours} < set(index.table(answer.fingerprint, ["id"])["id"])
    assert answer.fingerprint != Zoo.open(other).architecture.fingerprint
    with pytest.raises(UsageError, match="already holds"):
        train(other, index_copy, method=Method.STATISTICS, add=True, quiet=True)
    assert {finding.state for finding in doctor(index_copy, check_encoder=load_encoder)} == {State.OK}


def test_the_doctor_leaves_a_healthy_copy_as_it_is(index_copy: Path):
    contents = {file: file.read_bytes() for file in index_copy.rglob("*") if file.is_file()}
    os.utime(next(index_copy.rglob("encoder.safetensors")), ns=(1, 1))  # as a copy or a checkout leaves it
    assert {finding.state for finding in doctor(index_copy)} == {State.OK}
    assert {file: file.read_bytes() for file in contents} == contents


@pytest.mark.parametrize("freed", [True, False])
def test_time_in_which_a_waiting_process_was_stopped_is_no_wait(freed: bool, tmp_path: Path):
    """As where others have the processor: who holds the lock could do nothing, either."""
    with files.lock(tmp_path / "lock", "held"):
        pid = os.fork()
        if pid == 0:
            try:
                (tmp_path / "waits").touch()
                with files.lock(tmp_path / "lock", "held", 0.8):
                    os._exit(3)
            except WeightsearchError:
                os._exit(4)
            finally:
                os._exit(5)
        while not (tmp_path / "waits").exists():
            time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.2)
        status = None if freed else os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1] if status is None else status) == (3 if freed else 4)
