"""The index against brute force, and what it does when its files are damaged, half written or locked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import IndexStore, Rows, checks, create_index
from weightsearch.index.connection import Database
from weightsearch.index.manifest import DATABASE
from weightsearch.training.summary import TrainSummary
from weightsearch.types import Architecture, Layer, LayerKind, Metric, Selection
from weightsearch.uncertainty.novelty import describe_layers
from weightsearch.zoo.store import Zoo

DENSE = Architecture((Layer("dense", LayerKind.DENSE, (2, 3)),))
FINGERPRINT = DENSE.fingerprint


def make_rows(n: int, width: int = 8, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    return Rows(
        id=np.array([f"{i:016x}" for i in range(n)]),
        run=np.array([f"zoo/{i // 3}" for i in range(n)]),
        epoch=np.arange(n) % 3,
        train_loss=generator.random(n),
        train_accuracy=generator.random(n),
        test_loss=generator.random(n),
        test_accuracy=generator.random(n),
        predicted_accuracy=generator.random(n),
        split=np.array(["train"] * n),
        recipe=np.array([json.dumps({"optimizer": "adam", "number": i}) for i in range(n)]),
        embedding=generator.standard_normal((n, width)).astype(np.float32),
        dataset="digits",
    )


def more_rows(n: int, start: int, seed: int = 7) -> Rows:
    rows = make_rows(n, seed=seed)
    return replace(rows, id=np.array([f"{i:016x}" for i in range(start, start + n)]))


def write_encoder_files(directory: Path, encoder_directory: Path) -> None:
    for name in ("encoder.json", "encoder.safetensors"):
        (encoder_directory / name).write_text("stands for an encoder")


def make_index(path: Path, rows: Rows, metric: Metric = Metric.COSINE) -> IndexStore:
    return create_index(path, DENSE, rows, write_extras=write_encoder_files, metric=metric)


def change_rows(path: Path, statement: str) -> None:
    """Changes an index's tables behind its back, and takes what comes of it for the truth."""
    with Database(path / DATABASE).open(read_only=False) as connection:
        connection.execute(statement)
        checks.renew(connection)


@pytest.mark.parametrize("metric", list(Metric))
def test_all_three_lists_equal_brute_force(metric: Metric, tmp_path: Path):
    rows = make_rows(300)
    index = make_index(tmp_path / "index", rows, metric)
    vector = np.random.default_rng(9).standard_normal(8)
    vectors = rows.embedding.astype(np.float64)
    if metric is Metric.COSINE:
        distance = 1 - vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
    else:
        distance = np.linalg.norm(vectors - vector, axis=1)
    low, high = np.quantile(rows.test_accuracy, [0.25, 0.75])
    answer = index.search(DENSE.fingerprint, vector, k=12)
    everything = np.ones(300, bool)
    for rows_found, passing in (
        (answer.neighbours, everything),
        (answer.good, rows.test_accuracy >= high),
        (answer.bad, rows.test_accuracy <= low),
    ):
        expected = np.flatnonzero(passing)[np.argsort(distance[passing])[:12]]
        assert [row.id for row in rows_found] == rows.id[expected].tolist()
        np.testing.assert_allclose([row.distance for row in rows_found], distance[expected], atol=1e-5)
        assert [row.test_accuracy for row in rows_found] == rows.test_accuracy[expected].tolist()
        assert [row.run for row in rows_found] == rows.run[expected].tolist()
        assert [row.epoch for row in rows_found] == rows.epoch[expected].tolist()
        assert [row.recipe["number"] for row in rows_found] == expected.tolist()


def test_equal_weights_are_one_row(tmp_path: Path):
    rows = make_rows(20)
    rows.id[7] = rows.id[3]
    index = make_index(tmp_path / "index", rows)
    assert len(index) == 19
    assert rows.test_accuracy[3] in index.accuracies(DENSE.fingerprint)
    assert rows.test_accuracy[7] not in index.accuracies(DENSE.fingerprint)


@pytest.mark.slow
def test_k_beyond_the_index_or_below_one_is_refused_and_short_lists_are_short(tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(20))
    vector = np.ones(8)
    for k in (0, 21):
        with pytest.raises(UsageError, match="between 1 and 20"):
            index.search(DENSE.fingerprint, vector, k=k)
    answer = index.search(DENSE.fingerprint, vector, k=20)
    assert (len(answer.neighbours), len(answer.good), len(answer.bad)) == (20, 5, 5)


@pytest.mark.slow
@pytest.mark.parametrize("vector", [np.ones(7), np.full(8, np.nan)])
def test_a_vector_that_cannot_be_searched_is_refused(vector: np.ndarray, tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(20))
    with pytest.raises(WeightsearchError, match="finite vector of 8"):
        index.search(DENSE.fingerprint, vector)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damaged_vectors_are_taken_from_the_database(how: str, trained: TrainSummary, index_copy: Path, caplog):
    whole = IndexStore.open(trained.index)
    fingerprint = next(iter(whole.architectures))
    vector = whole.embeddings(fingerprint)[5]
    expected = whole.search(fingerprint, vector, k=5)
    damage(index_copy / fingerprint / "vectors-1.faiss", how)
    assert IndexStore.open(index_copy).search(fingerprint, vector, k=5) == expected
    assert "vectors are taken from" in caplog.text


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", ["*/encoder.json", "*/encoder.safetensors"])
def test_any_other_damage_is_one_line_that_names_the_file(name: str, how: str, index_copy: Path):
    file = next(index_copy.glob(name))
    damage(file, how)
    with pytest.raises(WeightsearchError, match=f"{file.name} is missing or damaged") as caught:
        IndexStore.open(index_copy).encoder_directory(file.parent.name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["truncate", "remove"])
def test_a_database_that_is_cut_or_gone_is_one_line_that_names_it(how: str, index_copy: Path):
    file = index_copy / "index.duckdb"
    os.truncate(file, file.stat().st_size // 3) if how == "truncate" else file.unlink()
    with pytest.raises(WeightsearchError, match=r"index\.duckdb is (missing|damaged)") as caught:
        IndexStore.open(index_copy).embeddings(next(iter(IndexStore.open(index_copy).architectures)))
    assert "\n" not in str(caught.value)


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "remove":
        file.unlink()
    else:
        file.write_bytes(content if how == "flip" else content[:-1])


def test_half_written_missing_and_foreign_directories_are_told_apart(index_copy: Path, tmp_path: Path):
    (index_copy / "manifest.json").unlink()
    with pytest.raises(WeightsearchError, match="only half written"):
        IndexStore.open(index_copy)
    with pytest.raises(WeightsearchError, match="does not exist"):
        IndexStore.open(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(WeightsearchError, match="is no index"):
        IndexStore.open(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsearchError, match="takes an index directory"):
        IndexStore.open(tmp_path / "file")
    (index_copy / "manifest.json").write_text("{")
    with pytest.raises(WeightsearchError, match="cannot be read"):
        IndexStore.open(index_copy)


@pytest.mark.slow
def test_a_failed_write_leaves_nothing_and_an_older_index_whole(tmp_path: Path):
    target = tmp_path / "index"
    make_index(target, make_rows(20))

    def fail(directory: Path, encoder_directory: Path) -> None:
        raise RuntimeError("in the middle")

    for path in (target, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="in the middle"):
            create_index(path, DENSE, make_rows(30), write_extras=fail, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert len(IndexStore.open(target)) == 20


@pytest.mark.slow
def test_vectors_on_a_full_disk_are_an_os_error_and_leave_nothing(tmp_path: Path):
    """A limit on the size of files stands for the full disk."""
    code = (
        "import resource, signal, sys, numpy as np; from pathlib import Path\n"
        "from weightsearch.index import vectors; from weightsearch.types import Metric\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "built = vectors.build(np.arange(300), np.eye(300, dtype=np.float32), Metric.COSINE)\n"
        "try: vectors.save(built, Path(sys.argv[1]) / 'vectors-1.faiss')\n"
        "except OSError as error: print(error.strerror)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("File too large\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_there_is_only_replaced_when_asked_and_when_it_is_an_index(tmp_path: Path):
    target = tmp_path / "index"
    make_index(target, make_rows(20))
    with pytest.raises(UsageError, match="--replace"):
        make_index(target, make_rows(30))
    create_index(target, DENSE, make_rows(30), write_extras=write_encoder_files, replace=True)
    assert len(IndexStore.open(target)) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(UsageError, match="is no index"):
        create_index(tmp_path / "photos", DENSE, make_rows(5), write_extras=write_encoder_files, replace=True)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"


@pytest.mark.slow
def test_a_writer_elsewhere_is_named_by_its_pid(index_copy: Path):
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(index_copy / "index.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(WeightsearchError, match=rf"another process \(PID {writer.pid}\)"):
            IndexStore.open(index_copy).thresholds(next(iter(IndexStore.open(index_copy).architectures)))
        writer.communicate("")


def test_training_indexes_every_checkpoint_but_the_examples_runs(zoo: Zoo, trained: TrainSummary):
    table = zoo.table()
    held_out = {example.run for example in trained.examples}
    with duckdb.connect(str(trained.index / "index.duckdb"), read_only=True) as connection:
        rows = connection.execute("SELECT run, epoch, test_accuracy, id FROM checkpoints ORDER BY number").fetchall()
    assert len({row[3] for row in rows}) == len(rows) == trained.checkpoints
    expected = {
        (f"{zoo.info.name}/{run}", epoch, accuracy)
        for run, epoch, accuracy in zip(
            table.run.tolist(), table.epoch.tolist(), table.test_accuracy.tolist(), strict=True
        )
        if run not in held_out
    }
    assert {row[:3] for row in rows} == expected


@pytest.mark.slow
def test_filters_radius_runs_and_thresholds_equal_brute_force(tmp_path: Path):
    rows = make_rows(400, seed=1)
    rows.test_accuracy[::7] = np.nan
    metadata = np.array([json.dumps({"team": "blue" if i % 3 else "red", "note": None}) for i in range(400)])
    rows = replace(rows, metadata=metadata, dataset=np.array(["a", "b"])[(np.arange(400) > 150).astype(int)])
    rows.test_accuracy[151:] /= 2  # what is good in b is middling in a
    index = make_index(tmp_path / "index", rows)
    vector = np.random.default_rng(5).standard_normal(8)
    unit = rows.embedding / np.linalg.norm(rows.embedding, axis=1, keepdims=True)
    distance = 1 - unit @ vector / np.linalg.norm(vector)
    number, accuracy, epoch = np.arange(400), rows.test_accuracy, rows.epoch
    everything = np.ones(400, bool)

    def grades(good: float | str, bad: float | str) -> tuple[np.ndarray, np.ndarray]:
        masks = np.zeros((2, 400), bool)
        for here in (number <= 150, number > 150):
            values = accuracy[here][~np.isnan(accuracy[here])]
            high = np.quantile(values, float(good[1:]) / 100) if isinstance(good, str) else good
            low = np.quantile(values, float(bad[1:]) / 100) if isinstance(bad, str) else bad
            masks[0] |= here & (accuracy >= high)
            masks[1] |= here & (accuracy <= low)
        return masks[0], masks[1]

    for selection, passing, (good, bad) in (
        (Selection(), everything, grades("q75", "q25")),
        (Selection(where="epoch = 1 and optimizer = 'adam'"), epoch == 1, grades("q75", "q25")),
        (
            Selection(where="number < 20 or team = 'red'", good="q90"),
            (number < 20) | (number % 3 == 0),
            grades("q90", "q25"),
        ),
        (Selection(where='"number" % 100 = 3 -- few'), number % 100 == 3, grades("q75", "q25")),
        (Selection(good="0.4", bad="0.2"), everything, grades(0.4, 0.2)),
        (Selection(not_run="zoo/3", within=0.9), (number // 3 != 3) & (distance <= 0.9), grades("q75", "q25")),
        (Selection(where="test_accuracy is null"), np.isnan(accuracy), grades("q75", "q25")),
        (Selection(where="dataset = 'none such'"), ~everything, grades("q75", "q25")),
    ):
        for _ in range(2):  # the second time from what the first remembered
            answer = index.search(DENSE.fingerprint, vector, k=9, selection=selection)
            for got, mask in ((answer.neighbours, passing), (answer.good, passing & good), (answer.bad, passing & bad)):
                expected = np.flatnonzero(mask)[np.argsort(distance[mask])[:9]]
                assert [row.id for row in got] == rows.id[expected].tolist(), selection
                assert [row.grade for row in got] == (good.astype(int) - (bad & ~good))[expected].tolist()
                assert [row.metadata["team"] for row in got] == ["blue" if i % 3 else "red" for i in expected]
                assert [row.test_accuracy for row in got] == [None if np.isnan(a) else a for a in accuracy[expected]]
            if selection.within is None:
                assert (answer.plan.rows_passing, answer.plan.rows) == (passing.sum(), 400)

    good, bad = grades("q75", "q25")
    ends = {f"zoo/{run}": np.flatnonzero((number // 3 == run) & ~np.isnan(accuracy))[-1] for run in range(40, 60)}
    for run, (epoch_then, value, grade) in index.finals(DENSE.fingerprint, list(ends)).items():
        last = ends.pop(run)
        assert (epoch_then, value, grade) == (epoch[last], accuracy[last], int(good[last]) - int(bad[last]))
    assert not ends


@pytest.mark.slow
@pytest.mark.parametrize("per_run", [1, 2])
def test_few_of_each_run_and_yet_k_rows(per_run: int, tmp_path: Path):
    rows = make_rows(600)
    rows = replace(rows, run=np.array([f"zoo/{i // 100}" for i in range(600)]))
    rows.embedding[:] += 3 * np.eye(8, dtype=np.float32)[np.arange(600) // 100]  # a run crowds together
    index = make_index(tmp_path / "index", rows)
    vector = rows.embedding[50]
    unit = rows.embedding / np.linalg.norm(rows.embedding, axis=1, keepdims=True)
    order = np.argsort(1 - unit @ unit[50])
    expected, seen = [], Counter()
    for i in order.tolist():
        seen[i // 100] += 1
        if seen[i // 100] <= per_run:
            expected.append(rows.id[i])
    answer = index.search(DENSE.fingerprint, vector, k=6, selection=Selection(per_run=per_run))
    assert [row.id for row in answer.neighbours] == expected[:6]
    assert len({row.run for row in answer.good}) >= 6 // per_run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("lr >", "it cannot be read at '>'"),
        ("colour = 'red'", r"there is no column colour .columns: number, id, dataset, run, epoch, .*, optimizer\)"),
        ("epoch = 1; drop table checkpoints", "more than one expression"),
        ("1=1 order by epoch", "more than one expression"),
        ("1=1 union select 2", "more than one expression"),
        ("1=1) or (1=1", "it cannot be read at"),
        ("epoch in (select 1)", "a subquery is not allowed"),
        ("run in (select content from read_text('/etc/passwd'))", "a subquery is not allowed"),
        ("row_number() over () > 1", "a window is not allowed"),
        ("epoch = ?", "a parameter is not allowed"),
        ("count(*) > 1", "is not a function that it may call"),
        ("", "it is empty"),
        ("split", "names a column and compares it with nothing"),
        ("'a'", "is a value and compares nothing"),
        ("split = 5", "'train' is no number, and is compared with one"),
        ("epoch::DATE > '2020-01-01'", "it takes a number for a date$"),
        ("regexp_matches(run, '(')", r"the regular expression in it is broken at '\('$"),
        ("length(epoch) > 3", r"length\(\) takes other values than a number$"),
        ("run between 1 and 2", "it compares a text with a number"),
        ("checkpoints.run = 'a'", "without checkpoints"),
        ("run = 'a", "a ' in it is not closed"),
        ("strptime(run, '%Q') is null", "%Q is no part of a date's format$"),
    ],
)
def test_what_is_no_condition_is_one_line(where: str, says: str, tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(30))
    with pytest.raises(UsageError, match=says) as caught:
        index.search(DENSE.fingerprint, np.ones(8), k=3, selection=Selection(where=where))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--where {where!r}: ")
    assert index.search(DENSE.fingerprint, np.ones(8), k=3).neighbours


@pytest.mark.slow
def test_the_readers_connection_reaches_no_other_file(tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(30))
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for statement in (
        f"SELECT * FROM '{tmp_path}/secret.csv'",
        f"SELECT * FROM read_text('{tmp_path}/secret.csv')",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/other.duckdb'",
        "SET enable_external_access = true",
        "DELETE FROM ix.checkpoints",
    ):
        with pytest.raises(WeightsearchError), index.database.open() as connection:
            connection.execute(statement)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "secret.csv"]
    assert index.count(DENSE.fingerprint) == 30


@pytest.mark.slow
@pytest.mark.parametrize("text", ["high", "q101", "q-1", "q", "nan", "75%"])
def test_a_threshold_that_is_neither_value_nor_quantile_is_refused(text: str, tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(20))
    with pytest.raises(UsageError, match=f"--good {text}: give a value such as"):
        index.thresholds(DENSE.fingerprint, good=text)


def test_where_nothing_is_known_nothing_is_good_or_bad(tmp_path: Path):
    rows = make_rows(20)
    rows.test_accuracy[:] = np.nan
    index = make_index(tmp_path / "index", rows)
    answer = index.search(DENSE.fingerprint, np.ones(8), k=20)
    assert (len(answer.neighbours), answer.good, answer.bad) == (20, (), ())
    assert np.isnan(index.thresholds(DENSE.fingerprint)).all()


def test_table_and_find(tmp_path: Path):
    rows = make_rows(20)
    rows.test_loss[3] = np.nan
    source = np.array([None if i % 2 else f"file-{i}.pt" for i in range(20)])
    index = make_index(tmp_path / "index", replace(rows, source=source))
    table = index.table(DENSE.fingerprint, ["id", "epoch", "test_loss", "source", "dataset", "optimizer", "number"])
    assert table["id"].tolist() == rows.id.tolist()
    assert table["source"].tolist() == source.tolist()
    np.testing.assert_array_equal(table["test_loss"], rows.test_loss)
    np.testing.assert_array_equal(table["epoch"], rows.epoch)
    assert set(table["dataset"]) == {"digits"}
    assert set(table["optimizer"]) == {"adam"}
    row = index.find(rows.id[13])
    np.testing.assert_array_equal(row.embedding, rows.embedding[13])
    assert (row.fingerprint, row.columns["run"]) == (DENSE.fingerprint, "zoo/4")
    with pytest.raises(UsageError, match="more than one"):
        index.find("00000")
    with pytest.raises(UsageError, match="no checkpoint"):
        index.find("f" * 16)
    with pytest.raises(UsageError, match="no column colour; it has number, id"):
        index.table(DENSE.fingerprint, ["colour"])


def test_rows_keep_what_their_layers_are_like(trained: TrainSummary, zoo: Zoo):
    index = IndexStore.open(trained.index)
    fingerprint = zoo.architecture.fingerprint
    id = str(index.table(fingerprint, ["id"])["id"][7])
    position = np.flatnonzero(zoo.table().id == id)[:1]
    descriptions = index.descriptions(fingerprint, [id, "0" * 16])
    assert list(descriptions) == [id]
    assert np.array_equal(descriptions[id], describe_layers(zoo.weights(position), zoo.architecture)[0])


def test_finals_are_the_last_known_accuracies_of_runs(trained: TrainSummary, zoo: Zoo):
    index = IndexStore.open(trained.index)
    table = index.table(zoo.architecture.fingerprint, ["run", "epoch", "test_accuracy"])
    runs = sorted(set(table["run"].tolist()))[:3]
    ends = index.finals(zoo.architecture.fingerprint, [*runs, "no/such"])
    assert sorted(ends) == runs
    for run, (epoch, accuracy, _) in ends.items():
        of_run = table["run"] == run
        last = np.argmax(np.where(of_run, table["epoch"], -1))
        assert (epoch, accuracy) == (table["epoch"][last], table["test_accuracy"][last])
