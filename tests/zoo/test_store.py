"""A zoo's files: what was written comes back, and half-written, damaged or locked ones say so in one line."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import duckdb
import numpy as np
import pytest

from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, Layer, LayerKind, content_hash
from weightsearch.zoo import store
from weightsearch.zoo.recipes import V1, sample
from weightsearch.zoo.store import CheckpointRow, RunRow, Zoo, ZooInfo, connect, open_writer, part_path, write_part

ARCHITECTURE = Architecture((Layer("conv1", LayerKind.CONV2D, (2, 1, 3, 3)), Layer("dense", LayerKind.DENSE, (10, 2))))
INFO = ZooInfo(
    name="digits-v1",
    dataset="digits",
    preset="v1",
    seed=0,
    dtype="float32",
    architecture=ARCHITECTURE,
    settings={"filters": 2, "checkpoint_epochs": [0, 1], "dropout": [0.0, 0.7]},
    version="0.1.0",
)


def publish(writer, part, runs, rng, dtype="float32", epochs=(0, 1)):
    """Write a part of random weights `(runs × epochs, P)`, and return them."""
    weights = rng.normal(size=(len(runs) * len(epochs), ARCHITECTURE.size)).astype(dtype)
    temporary = writer.temporary(part)
    write_part(temporary, weights)
    keys = [(run, epoch) for run in runs for epoch in epochs]
    writer.publish(
        part,
        temporary,
        [RunRow(run, sample(V1.space, 0, run).to_dict(), None, 0.5) for run in runs],
        [
            CheckpointRow(content_hash(row), run, epoch, *(run + epoch / 10 + np.arange(4) / 100))
            for row, (run, epoch) in zip(weights, keys, strict=True)
        ],
    )
    return weights


@pytest.fixture
def zoo_path(tmp_path, rng):
    """Runs 0 to 4 in three parts, committed out of order as workers finish."""
    with open_writer(tmp_path / "zoo", INFO) as writer:
        for part, runs in ((2, [2, 3]), (0, [0, 1]), (4, [4])):
            publish(writer, part, runs, rng)
    return tmp_path / "zoo"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def snapshot(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path, rng, dtype):
    info = dataclasses.replace(INFO, dtype=dtype)
    with open_writer(tmp_path / "zoo", info) as writer:
        last = publish(writer, 2, [2, 3], rng, dtype)
        first = publish(writer, 0, [0, 1], rng, dtype)
        assert writer.runs == {0, 1, 2, 3}
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.info == info
    assert zoo.architecture == ARCHITECTURE
    expected = np.concatenate([first, last]).astype(np.float32)
    table = zoo.table()
    assert table.run.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table.epoch.tolist() == [0, 1] * 4
    np.testing.assert_array_equal(table.train_loss, table.run + table.epoch / 10)
    np.testing.assert_array_equal(table.test_accuracy, table.run + table.epoch / 10 + 0.03)
    assert table.id.tolist() == [content_hash(row) for row in expected]
    assert table.recipes == {run: sample(V1.space, 0, run).to_dict() for run in range(4)}
    order = rng.permutation(8)
    for positions in (order, order[:3].tolist(), slice(None), slice(6, 1, -2), np.array([5, 5]), table.run == 2):
        weights = zoo.weights(positions)
        assert weights.dtype == np.float32
        np.testing.assert_array_equal(weights, expected[positions])
    assert zoo.weights(np.array([], int)).shape == (0, ARCHITECTURE.size)
    with pytest.raises(IndexError):
        zoo.weights([8])
    assert np.load(part_path(zoo.path, 2)).dtype == dtype  # plain arrays for anybody


@pytest.mark.slow
def test_reading_does_not_load_the_part(tmp_path):
    with open_writer(tmp_path / "zoo", INFO) as writer:
        rows = 200_000  # 33 MB
        temporary = writer.temporary(0)
        np.lib.format.open_memmap(temporary, "w+", np.float32, (rows, ARCHITECTURE.size))[-1] = 7
        keys = [(0, epoch) for epoch in (3, rows - 1)]
        checkpoints = [CheckpointRow("x", run, epoch, 0, 0, 0, 0) for run, epoch in keys]
        writer.publish(0, temporary, [RunRow(0, sample(V1.space, 0, 0).to_dict(), None, 0.0)], checkpoints)
        with connect(writer.path) as connection:
            connection.execute("UPDATE checkpoints SET row = epoch")
    zoo = Zoo.open(tmp_path / "zoo")
    zoo.table()
    tracemalloc.start()
    try:
        weights = zoo.weights([1, 0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert weights[:, 0].tolist() == [7, 0]
    assert peak < 1e6


@pytest.mark.slow
def test_failed_runs_and_empty_parts(tmp_path):
    with open_writer(tmp_path / "zoo", INFO) as writer:
        reason = "weights or loss not finite by epoch 0"
        writer.publish(0, None, [RunRow(0, sample(V1.space, 0, 0).to_dict(), reason, 1.0)], [])
    zoo = Zoo.open(tmp_path / "zoo")
    assert len(zoo.table()) == 0
    assert list(zoo.table().recipes) == [0]
    assert zoo.weights(slice(None)).shape == (0, ARCHITECTURE.size)
    with connect(zoo.path, read_only=True) as connection:
        assert connection.execute("SELECT status, reason FROM runs").fetchall() == [("failed", reason)]


@pytest.mark.slow
def test_what_a_kill_leaves_is_removed(zoo_path, rng):
    weights = Zoo.open(zoo_path).weights(slice(None))
    # Killed while a part was written, and after its renaming but before its rows were committed.
    (zoo_path / "weights" / ".part-00005.npy.123.tmp").write_bytes(b"half")
    write_part(part_path(zoo_path, 6), np.zeros((2, ARCHITECTURE.size), np.float32))
    (zoo_path / "weights" / "notes.txt").write_text("mine")
    np.testing.assert_array_equal(Zoo.open(zoo_path).weights(slice(None)), weights)
    with open_writer(zoo_path, INFO) as writer:
        assert writer.runs == set(range(5))
    names = sorted(file.name for file in (zoo_path / "weights").iterdir())
    assert names == ["notes.txt", "part-00000.npy", "part-00002.npy", "part-00004.npy"]
    np.testing.assert_array_equal(Zoo.open(zoo_path).weights(slice(None)), weights)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_a_damaged_part_is_named_and_its_runs_are_forgotten_by_the_next_build(zoo_path, rng, damage):
    weights = Zoo.open(zoo_path).weights(slice(None))
    part = part_path(zoo_path, 2)
    content = part.read_bytes()
    part.unlink()
    if damage == "truncated":
        part.write_bytes(content[:-40])
    elif damage == "other":
        part.write_bytes(b"not an array")
    zoo = Zoo.open(zoo_path)
    np.testing.assert_array_equal(zoo.weights([0, 1, 8]), weights[[0, 1, 8]])  # the others stay readable
    with pytest.raises(
        WeightsearchError, match=r"part-00002\.npy is missing or damaged: run the build-zoo or import again"
    ):
        zoo.weights([0, 4])
    with open_writer(zoo_path, INFO) as writer:
        assert writer.runs == {0, 1, 4}
        again = publish(writer, 2, [2, 3], rng)
    np.testing.assert_array_equal(Zoo.open(zoo_path).weights(slice(None)), [*weights[:4], *again, *weights[8:]])


@pytest.mark.slow
def test_no_zoo_is_one_line(tmp_path, zoo_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    content = json.loads((zoo_path / "zoo.json").read_text())

    def write(text):
        (zoo_path / "zoo.json").write_text(text)
        return zoo_path

    for path, says in (
        (lambda: tmp_path / "missing", "is missing: make one with `weightsearch build-zoo` or `weightsearch import`"),
        (lambda: tmp_path / "file", "is no zoo"),
        (lambda: tmp_path / "empty", "is no zoo"),
        (lambda: write("{"), "zoo.json is damaged"),
        (lambda: write("[]"), "zoo.json is damaged"),
        (lambda: write('{"format": 1}'), "zoo.json is damaged"),
        (lambda: write(json.dumps({**content, "format": 3})), "has zoo format 3, this version reads up to 2"),
    ):
        with pytest.raises(WeightsearchError) as caught:
            Zoo.open(path())
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    write(json.dumps(content))
    (zoo_path / "zoo.duckdb").write_bytes(b"not a database")
    with pytest.raises(WeightsearchError, match=r"cannot open .*zoo\.duckdb"):
        Zoo.open(zoo_path).table()
    (zoo_path / "zoo.duckdb").unlink()
    with pytest.raises(WeightsearchError, match="is half made"):
        Zoo.open(zoo_path)
    duckdb.connect(str(zoo_path / "zoo.duckdb")).close()  # as left by a builder killed before its first commit
    with pytest.raises(WeightsearchError, match="is half made"):
        Zoo.open(zoo_path).table()


@pytest.mark.slow
def test_other_settings_are_refused_by_name(zoo_path):
    before = snapshot(zoo_path)
    other = dataclasses.replace(INFO, seed=1, settings={**INFO.settings, "dropout": [0.0, 0.5], "layers": 3})
    with pytest.raises(WeightsearchError) as caught, open_writer(zoo_path, other):
        pass
    assert "(seed: 0 -> 1; dropout: [0.0, 0.7] -> [0.0, 0.5]; layers: None -> 3)" in str(caught.value)
    assert snapshot(zoo_path) == before
    with open_writer(zoo_path, dataclasses.replace(INFO, version="9.9")):  # only what decides the content counts
        pass


def test_other_peoples_directories_are_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("text")
    for name, says in (("photos", "is not empty and holds no zoo"), ("file", "is a file"), ("file/zoo", "file/zoo")):
        with pytest.raises(WeightsearchError, match=says), open_writer(tmp_path / name, INFO):
            pass
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


@pytest.mark.slow
def test_a_start_that_was_killed_early_is_taken_up(tmp_path, rng):
    path = tmp_path / "zoo"
    path.mkdir()
    (path / "build.lock").write_text("123")  # killed before zoo.json
    (path / ".zoo.json.123.tmp").write_text("{")
    with open_writer(path, INFO):
        pass
    (path / "zoo.duckdb").unlink()  # killed before the tables
    with open_writer(path, INFO) as writer:
        publish(writer, 0, [0], rng)
    assert len(Zoo.open(path).table()) == 2


@pytest.mark.slow
def test_two_writers_and_a_reader(zoo_path):
    with open_writer(zoo_path, INFO):
        with (
            pytest.raises(WeightsearchError, match=rf"another build \(PID {os.getpid()}\) is writing to"),
            open_writer(zoo_path, INFO),
        ):
            pass
        assert len(Zoo.open(zoo_path).table()) == 10
    with open_writer(zoo_path, INFO):  # the lock is free again
        pass


HOLD = """
import sys, time, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("waits", [True, False])
def test_a_reader_waits_for_a_commit_and_then_names_the_holder(zoo_path, waits, monkeypatch):
    if not waits:
        monkeypatch.setattr(store, "LOCK_WAIT_SECONDS", 0.1)
    seconds = "0.3" if waits else "30"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(zoo_path / "zoo.duckdb"), seconds], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        if waits:
            assert len(Zoo.open(zoo_path).table()) == 10
        else:
            with pytest.raises(WeightsearchError, match=rf"is being written by another process \(PID {holder.pid}\)"):
                Zoo.open(zoo_path).table()
        holder.kill()


@pytest.mark.slow
def test_the_module_imports_no_torch():
    code = "import sys, weightsearch.zoo.store, weightsearch.zoo.recipes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


OLD_SCHEMA = """
CREATE TABLE runs (run BIGINT PRIMARY KEY, recipe VARCHAR NOT NULL, status VARCHAR NOT NULL, reason VARCHAR,
    seconds DOUBLE);
CREATE TABLE checkpoints (
    id VARCHAR NOT NULL, run BIGINT NOT NULL, epoch BIGINT NOT NULL, part BIGINT NOT NULL, row BIGINT NOT NULL,
    train_loss DOUBLE, train_accuracy DOUBLE, test_loss DOUBLE, test_accuracy DOUBLE, PRIMARY KEY (run, epoch));
"""


def publish_with_extras(path, rng):
    """Run 7, of which little is known, and its three checkpoints of users' columns."""
    weights = rng.normal(size=(3, ARCHITECTURE.size)).astype(np.float32)
    nan = float("nan")
    columns = [{"f1": 0.5, "tags": ["a"]}, {}, {"f1": 1, "team": "blue", "note": "x"}]
    with open_writer(path, INFO) as writer:
        temporary = writer.temporary(7)
        write_part(temporary, weights)
        rows = [
            CheckpointRow(content_hash(row), 7, epoch, nan, nan, nan, nan, f"lr-{epoch}.pt", extra)
            for epoch, (row, extra) in enumerate(zip(weights, columns, strict=True))
        ]
        runs = [RunRow(7, {"lr": 0.1}, name="sweep/7", extras={"team": "red", "cost": 3})]
        writer.publish(7, temporary, runs, rows)


@pytest.mark.slow
def test_users_columns_names_and_sources_come_back(tmp_path, rng):
    publish_with_extras(tmp_path / "zoo", rng)
    table = Zoo.open(tmp_path / "zoo").table()
    assert table.names == {7: "sweep/7"}
    assert table.recipes == {7: {"lr": 0.1}}
    assert table.source.tolist() == ["lr-0.pt", "lr-1.pt", "lr-2.pt"]
    assert np.isnan(table.test_accuracy).all()
    assert sorted(table.extras) == ["cost", "f1", "note", "tags", "team"]
    np.testing.assert_array_equal(table.extras["f1"], [0.5, np.nan, 1.0])
    assert table.extras["f1"].dtype == table.extras["cost"].dtype == np.float64
    assert table.extras["cost"].tolist() == [3, 3, 3]
    assert table.extras["team"].tolist() == ["red", "red", "blue"]  # a checkpoint's own value counts before its run's
    assert table.extras["tags"].tolist() == [["a"], None, None]


@pytest.mark.slow
def test_a_zoo_from_before_users_columns_opens_and_grows(zoo_path, rng):
    expected = Zoo.open(zoo_path).table()
    with connect(zoo_path) as connection:
        connection.execute("ALTER TABLE runs RENAME TO new_runs; ALTER TABLE checkpoints RENAME TO new_checkpoints")
        connection.execute(OLD_SCHEMA)
        connection.execute("INSERT INTO runs SELECT * EXCLUDE (name, extras) FROM new_runs")
        connection.execute(
            "INSERT INTO checkpoints SELECT * EXCLUDE (source, extras, architecture, start) FROM new_checkpoints"
        )
        connection.execute("DROP TABLE new_runs; DROP TABLE new_checkpoints")
    old = Zoo.open(zoo_path).table()
    np.testing.assert_array_equal(old.id, expected.id)
    np.testing.assert_array_equal(old.test_loss, expected.test_loss)
    assert (old.recipes, old.extras, old.names) == (expected.recipes, {}, {})
    assert old.source.tolist() == [None] * 10
    publish_with_extras(zoo_path, rng)
    table = Zoo.open(zoo_path).table()
    assert len(table) == 13
    assert table.extras["team"].tolist() == [None] * 10 + ["red", "red", "blue"]


@pytest.mark.slow
def test_mixed_architectures_are_one_line(zoo_path, rng):
    other = dataclasses.replace(INFO, architecture=Architecture(ARCHITECTURE.layers[:1]))
    with pytest.raises(WeightsearchError, match=r"architecture: .* -> "), open_writer(zoo_path, other):
        pass
    write_part(part_path(zoo_path, 2), rng.normal(size=(4, 7)).astype(np.float32))  # somebody's other zoo
    with pytest.raises(WeightsearchError, match=r"part-00002\.npy holds networks of 7 parameters, but .* mixed"):
        Zoo.open(zoo_path).weights(slice(None))


@pytest.mark.slow
def test_a_database_that_is_a_link_is_not_followed(zoo_path, tmp_path):
    (zoo_path / "zoo.duckdb").rename(tmp_path / "aim.duckdb")
    (zoo_path / "zoo.duckdb").symlink_to(tmp_path / "aim.duckdb")
    with pytest.raises(WeightsearchError, match="is a link, which is not followed"), connect(zoo_path):
        pass
