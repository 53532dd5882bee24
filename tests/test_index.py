"""The index against brute force, and what it does when its files are damaged, half written or locked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import Index, Rows, create_index, vectors
from weightsearch.training import TrainSummary
from weightsearch.types import Architecture, Layer, LayerKind, Metric
from weightsearch.zoo.store import Zoo

DENSE = Architecture((Layer("dense", LayerKind.DENSE, (2, 3)),))


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


def write_encoder_files(directory: Path, encoder_directory: Path) -> None:
    for name in ("encoder.json", "encoder.safetensors"):
        (encoder_directory / name).write_text("stands for an encoder")


def make_index(path: Path, rows: Rows, metric: Metric = Metric.COSINE) -> Index:
    return create_index(path, DENSE, rows, write_extras=write_encoder_files, metric=metric)


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
    found = index.search(DENSE.fingerprint, vector, k=12)
    everything = np.ones(300, bool)
    for rows_found, passing in (
        (found.neighbours, everything),
        (found.good, rows.test_accuracy >= high),
        (found.bad, rows.test_accuracy <= low),
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


def test_k_beyond_the_index_or_below_one_is_refused_and_short_lists_are_short(tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(20))
    vector = np.ones(8)
    for k in (0, 21):
        with pytest.raises(UsageError, match="between 1 and 20"):
            index.search(DENSE.fingerprint, vector, k=k)
    found = index.search(DENSE.fingerprint, vector, k=20)
    assert (len(found.neighbours), len(found.good), len(found.bad)) == (20, 5, 5)


@pytest.mark.parametrize("vector", [np.ones(7), np.full(8, np.nan)])
def test_a_vector_that_cannot_be_searched_is_refused(vector: np.ndarray, tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(20))
    with pytest.raises(WeightsearchError, match="finite vector of 8"):
        index.search(DENSE.fingerprint, vector)


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damaged_vectors_are_taken_from_the_database(how: str, trained: TrainSummary, index_copy: Path, caplog):
    whole = Index.open(trained.index)
    fingerprint = next(iter(whole.architectures))
    vector = whole.embeddings(fingerprint)[5]
    expected = whole.search(fingerprint, vector, k=5)
    damage(index_copy / fingerprint / "vectors-1.faiss", how)
    assert Index.open(index_copy).search(fingerprint, vector, k=5) == expected
    assert "vectors are taken from" in caplog.text


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", ["index.duckdb", "*/encoder.json", "*/encoder.safetensors"])
def test_any_other_damage_is_one_line_that_names_the_file(name: str, how: str, index_copy: Path):
    file = next(index_copy.glob(name))
    damage(file, how)
    with pytest.raises(WeightsearchError, match=f"{file.name} is missing or damaged") as caught:
        Index.open(index_copy)
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
        Index.open(index_copy)
    with pytest.raises(WeightsearchError, match="does not exist"):
        Index.open(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(WeightsearchError, match="is no index"):
        Index.open(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsearchError, match="takes an index directory"):
        Index.open(tmp_path / "file")
    (index_copy / "manifest.json").write_text("{")
    with pytest.raises(WeightsearchError, match="cannot be read"):
        Index.open(index_copy)


def test_a_failed_write_leaves_nothing_and_an_older_index_whole(tmp_path: Path):
    target = tmp_path / "index"
    make_index(target, make_rows(20))

    def fail(directory: Path, encoder_directory: Path) -> None:
        raise RuntimeError("in the middle")

    for path in (target, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="in the middle"):
            create_index(path, DENSE, make_rows(30), write_extras=fail, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert len(Index.open(target)) == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_vectors_on_a_full_disk_are_an_os_error():
    built = vectors.build(np.arange(3), np.eye(3, dtype=np.float32), Metric.COSINE)
    with pytest.raises(OSError, match="No space left"):
        vectors.save(built, Path("/dev/full"))


def test_what_is_there_is_only_replaced_when_asked_and_when_it_is_an_index(tmp_path: Path):
    target = tmp_path / "index"
    make_index(target, make_rows(20))
    with pytest.raises(UsageError, match="--replace"):
        make_index(target, make_rows(30))
    create_index(target, DENSE, make_rows(30), write_extras=write_encoder_files, replace=True)
    assert len(Index.open(target)) == 30
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
            Index.open(index_copy).thresholds(next(iter(Index.open(index_copy).architectures)))
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
