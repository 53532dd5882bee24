"""Building zoos for real: the same bits whatever interrupts a build, and refusals in one line."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import EVERYTHING, share
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import content_hash
from weightsearch.zoo.build_zoo import build_zoo
from weightsearch.zoo.recipes import V1, Preset, load_preset, sample
from weightsearch.zoo.store import Zoo, ZooWriter, connect
from weightsearch.zoo.summary import render_summary, zoo_summary

TINY = "filters = 4\nepochs = 2\ncheckpoint_epochs = [0, 1, 2]\ntrain_fraction = [0.1]\nruns_per_part = 2\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """A zoo of 5 runs in three parts, and its summary and progress."""
    progress = []
    path = tmp_path_factory.mktemp("zoos") / "new" / "zoo"
    summary = build_zoo(out=path, runs=5, seed=3, recipes=tiny, quiet=True, progress=lambda *now: progress.append(now))
    return path, summary, progress


def names_in(path):
    return sorted(file.name for file in path.iterdir())


def content(path):
    """All of a zoo but how long it took: its files' bytes and its tables' rows."""
    with connect(path, read_only=True) as connection:
        runs = connection.execute("SELECT run, recipe, status, reason FROM runs ORDER BY run").fetchall()
        rows = connection.execute("SELECT * FROM checkpoints ORDER BY run, epoch").fetchall()
    names = [name for name in names_in(path) if not name.startswith("zoo.duckdb")]
    parts = {file.name: file.read_bytes() for file in (path / "weights").iterdir()}
    return runs, rows, names, (path / "zoo.json").read_bytes(), parts


@pytest.mark.slow
def test_a_zoo(built, tiny):
    path, summary, progress = built
    assert (summary.path, summary.runs, summary.failed, summary.checkpoints) == (path, 5, 0, 15)
    assert (summary.trained, summary.network_epochs) == (5, 10)
    assert progress[-1] == (10, 10)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    zoo = Zoo.open(path)
    assert (zoo.info.name, zoo.info.seed, zoo.info.settings["filters"]) == ("digits-v1", 3, 4)
    assert names_in(path / "weights") == ["part-00000.npy", "part-00002.npy", "part-00004.npy"]
    table = zoo.table()
    assert table.run.tolist() == np.repeat(range(5), 3).tolist()
    assert table.epoch.tolist() == [0, 1, 2] * 5
    space = load_preset("v1", recipes=tiny).space
    assert table.recipes == {run: sample(space, 3, run).to_dict() for run in range(5)}
    weights = zoo.weights(slice(None))
    assert table.id.tolist() == [content_hash(row) for row in weights]
    assert len(set(table.id)) == 15


@pytest.mark.slow
def test_stored_accuracies_are_the_weights_own(built):
    torch = pytest.importorskip("torch")
    from weightsearch.datasets.load import load_dataset
    from weightsearch.types import Activation
    from weightsearch.zoo.trainer.networks import CnnShape
    from weightsearch.zoo.trainer.reference import BaseCnn

    zoo = Zoo.open(built[0])
    table, data, shape = zoo.table(), load_dataset("digits"), CnnShape(filters=4)
    for position in (0, 7, 14):
        activation = Activation(table.recipes[int(table.run[position])]["activation"])
        network = BaseCnn(shape, activation).load_flat(zoo.weights([position])[0], shape).eval()
        with torch.no_grad():
            predicted = network(torch.tensor(data.x_test)).argmax(1).numpy()
        assert table.test_accuracy[position] == pytest.approx(np.mean(predicted == data.y_test), abs=0.01)


@pytest.mark.slow
def test_extending_equals_building_at_once_and_again_does_nothing(built, tiny, tmp_path):
    settings = {"out": tmp_path / "zoo", "seed": 3, "recipes": tiny, "quiet": True, "workers": 1}
    assert build_zoo(runs=2, **settings).trained == 2
    summary = build_zoo(runs=5, **settings)
    assert (summary.runs, summary.trained) == (5, 3)
    assert content(tmp_path / "zoo") == content(built[0])
    before = content(tmp_path / "zoo")
    for runs in (5, 3):
        assert build_zoo(runs=runs, **settings).trained == 0
    assert content(tmp_path / "zoo") == before


@pytest.mark.slow
@pytest.mark.skipif(
    not EVERYTHING, reason="compiling takes ten seconds; where the cache is new, the test above says it"
)
def test_the_first_build_on_a_machine_compiles_and_has_the_bits_of_later_ones(built, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    build_zoo(out=tmp_path / "zoo", runs=5, seed=3, recipes=tiny, quiet=True, workers=1)
    assert list((tmp_path / "cache").rglob("kernels.train_epoch*.nbc"))
    assert content(tmp_path / "zoo") == content(built[0])


@pytest.mark.slow
def test_diverged_runs_and_float16(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(TINY + 'optimizer = ["sgd"]\nactivation = ["relu"]\nlearning_rate = [1e-3, 1e12]\n')
    summary = build_zoo(out=tmp_path / "zoo", runs=8, recipes=path, dtype="float16", quiet=True, workers=1)
    zoo = Zoo.open(tmp_path / "zoo")
    table, weights = zoo.table(), zoo.weights(slice(None))
    with connect(zoo.path, read_only=True) as connection:
        failed = dict(connection.execute("SELECT run, reason FROM runs WHERE status = 'failed'").fetchall())
    assert 0 < summary.failed < 8
    assert summary.failed == len(failed)
    assert summary.checkpoints == len(table)
    assert np.isfinite(weights).all()
    assert np.isfinite([table.train_loss, table.test_loss]).all()
    for run in range(8):
        epochs = table.epoch[table.run == run].tolist()
        if run in failed:
            assert epochs == [0, 1, 2][: len(epochs)]
            assert failed[run] == f"weights or loss not finite by epoch {len(epochs)}"
        else:
            assert epochs == [0, 1, 2]
    assert table.id.tolist() == [content_hash(row) for row in weights]
    assert np.load(zoo.path / "weights" / "part-00000.npy").dtype == np.float16
    assert zoo_summary(zoo.path).failed == summary.failed


@pytest.mark.slow
def test_refusals_change_nothing(built, tiny, tmp_path):
    path = built[0]
    before = content(path)
    same = {"out": path, "runs": 9, "seed": 3, "recipes": tiny, "quiet": True}
    for changed, says in (
        ({"seed": 4}, "was made with other settings (seed: 3 -> 4)"),
        ({"epochs": 1}, "(epochs: 2 -> 1; checkpoint_epochs: [0, 1, 2] -> [0, 1])"),
        ({"dtype": "float16"}, "(dtype: float32 -> float16)"),
        ({"preset": "v2"}, "(preset: v1 -> v2; batch_size: 512 -> 128; momentum: 0.0 -> 0.9; learning_rate:"),
    ):
        with pytest.raises(WeightsearchError) as caught:
            build_zoo(**{**same, **changed})
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    for changed, says in (
        ({"runs": 0}, "--runs must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"dtype": "int8"}, "--dtype int8: choose one of float32, float16"),
        ({"layers": 9}, "too small for 9 convolutions"),
        ({"device": "warp9"}, "--device warp9: choose"),
    ):
        with pytest.raises(UsageError) as caught:
            build_zoo(**{**same, **changed, "out": tmp_path / "zoo"})
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    assert content(path) == before
    assert not (tmp_path / "zoo").exists()


@pytest.mark.slow
def test_summary_of_a_zoo(built):
    from rich.console import Console

    summary = zoo_summary(built[0])
    table = Zoo.open(built[0]).table()
    last = table.test_accuracy[table.epoch == 2]
    assert (summary.runs, summary.failed, summary.checkpoints, summary.last_epoch) == (5, 0, 15, 2)
    assert summary.quartiles == pytest.approx(np.quantile(last, [0, 0.25, 0.5, 0.75, 1]))
    for choice, members in summary.choices.items():
        for name, accuracy in members.items():
            mine = [last[run] for run, recipe in table.recipes.items() if str(recipe[choice]) == name]
            assert accuracy.runs == len(mine)
            assert (accuracy.mean, accuracy.median) == pytest.approx((np.mean(mine), np.median(mine)))
        assert sum(accuracy.runs for accuracy in members.values()) == 5
    assert summary.size_bytes > sum(file.stat().st_size for file in (built[0] / "weights").iterdir())
    console = Console(width=120, file=io.StringIO())
    console.print(render_summary(summary))
    assert f"median {summary.quartiles[2]:.3f}" in console.file.getvalue()


def test_groups_are_balanced():
    """Groups are some 30 core-seconds at most, below 200 MB, and whole cores get work in small zoos."""
    from weightsearch.datasets.load import ImageDataset
    from weightsearch.zoo.build_zoo import _runs_per_part
    from weightsearch.zoo.trainer.networks import CnnShape

    def group(preset: Preset, images: int, size: int, device: str = "cpu") -> int:
        x, y = np.empty((images, 1, size, size), np.float32), np.empty(images, np.int64)
        data = ImageDataset("x", x, y, x[: images // 6], y[: images // 6], 10)
        return _runs_per_part(preset, CnnShape(preset.filters), data, device)

    assert group(V1, 7291, 16) == 16
    assert group(load_preset("v2"), 7291, 16) in range(2, 8)
    assert group(load_preset("v2"), 60000, 28) == 1
    assert group(load_preset("v2"), 60000, 28, "cuda") in range(100, 200)


def test_groups_begin_at_multiples_whatever_is_there(tmp_path):
    from weightsearch.zoo.build_zoo import _jobs

    (tmp_path / "zoo").mkdir()
    writer = ZooWriter(tmp_path / "zoo")
    for there, groups in (
        (set(), [[0, 1, 2, 3], [4, 5, 6, 7], [8]]),
        ({0, 1, 2}, [[3], [4, 5, 6, 7], [8]]),
        ({0, 1, 2, 3, 8}, [[4, 5, 6, 7]]),
        (set(range(12)), []),
    ):
        writer.runs = there
        jobs = _jobs(writer, V1.space, seed=5, runs=9, per_part=4)
        assert [job.runs for job in jobs] == groups
        assert [job.part for job in jobs] == [runs[0] for runs in groups]
        for job in jobs:
            assert job.recipes == [sample(V1.space, 5, run).to_dict() for run in job.runs]


# A build in a process of its own, which says when it has trained its first group. No `__main__` guard is needed.
SCRIPT = """
import json, sys
from weightsearch.errors import WeightsearchError
from weightsearch.zoo.build_zoo import build_zoo
first = True
def progress(done, total):
    global first
    if first:
        print("training", flush=True)
    first = False
try:
    print(build_zoo(**json.loads(sys.argv[1]), quiet=True, progress=progress).runs)
except WeightsearchError as error:
    print(type(error).__name__, error)
"""


def start(**arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments, default=str)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def building(**arguments):
    """A process that is training."""
    with start(**arguments) as process:
        try:
            assert process.stdout.readline() == "training\n"
            yield process
        finally:
            process.kill()


def has_tables(path: Path) -> bool:
    """False where the builder was killed between making the database and its first commit, which `Zoo` says."""
    try:
        Zoo.open(path).table()
    except WeightsearchError as error:
        if "half made" not in str(error):
            raise
        return False
    return True


def wait_until_gone(processes, seconds=5):
    gone, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive
    return gone


@pytest.mark.slow
def test_ctrl_c_readers_and_a_second_writer(tiny, tmp_path):
    path = tmp_path / "zoo"
    arguments = {"out": path, "runs": 10_000, "recipes": tiny}
    with building(**arguments) as process:
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        with pytest.raises(WeightsearchError, match=rf"another build \(PID {process.pid}\) is writing to"):
            build_zoo(**arguments, quiet=True)
        for _ in range(5):  # readers see whole groups while it goes on
            zoo = Zoo.open(path)
            table = zoo.table()
            assert len(table) % 6 == 0
            assert table.id.tolist() == [content_hash(row) for row in zoo.weights(slice(None))]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        start = time.monotonic()
        answer = process.communicate()[0]
        assert time.monotonic() - start < 2
    wait_until_gone(workers, 0)
    kept = zoo_summary(path).runs
    assert (
        answer == f"Interrupted stopped: {kept} of 10000 runs are kept in {path}; run the same command again to go on\n"
    )
    assert 0 < kept < 10_000
    assert not list((path / "weights").glob(".*"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_there_stays_good(tmp_path):
    recipes = tmp_path / "space.toml"
    recipes.write_text("filters = 64\nepochs = 1\ntrain_fraction = [0.1]\nruns_per_part = 8\n")
    path = tmp_path / "zoo"
    arguments = {"recipes": recipes, "quiet": True, "workers": 1}
    build_zoo(out=path, runs=4, **arguments)  # 2.4 MB of weights
    with connect(path, read_only=True) as connection:
        before = connection.execute("SELECT id FROM checkpoints ORDER BY run, epoch").fetchall()

    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))\n"
    more = json.dumps({"out": path, "runs": 16, "recipes": recipes, "workers": 1}, default=str)
    process = subprocess.run([sys.executable, "-c", limit + SCRIPT, more], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == (
        f"WeightsearchError cannot write the zoo {path}: the disk is full; what is there stays good: "
        "free some space and run the same command again"
    )
    zoo = Zoo.open(path)
    table = zoo.table()
    assert len(table) == 16  # runs 4 to 7 fitted, the next part of 4.8 MB did not
    assert table.id.tolist()[:8] == [id for (id,) in before]
    assert table.id.tolist() == [content_hash(row) for row in zoo.weights(slice(None))]
    assert not list((path / "weights").glob(".*"))
    assert build_zoo(out=path, runs=16, **arguments).runs == 16


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(tiny, tmp_path):
    with building(out=tmp_path / "zoo", runs=10_000, recipes=tiny, workers=1) as process:
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        answer = process.communicate(timeout=5)[0]
    assert answer.startswith("WeightsearchError a worker was killed, probably for want of memory: use fewer --workers")


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_up_the_same(tiny, tmp_path):
    """kill -9 of the builder's process group, again and again, then one build to the end; in two lanes at once."""
    rng = np.random.default_rng(0)
    images = {"x_train": rng.random((300, 16, 16)) * 2 - 1, "x_test": rng.random((50, 16, 16)) * 2 - 1}
    labels = {"y_train": np.arange(300) % 10, "y_test": np.arange(50) % 10}
    np.savez(tmp_path / "noise.npz", **images, **labels)  # quicker to load than digits
    arguments = {"dataset": str(tmp_path / "noise.npz"), "runs": 200, "recipes": tiny, "workers": 1}
    build_zoo(out=tmp_path / "whole", quiet=True, **{**arguments, "workers": 2})
    expected = content(tmp_path / "whole")
    results = {}

    def lane(number):
        rng = random.Random(number)
        path = tmp_path / f"lane{number}"
        kept = []
        for moment in range(30):
            if moment >= max(2, share(10)) and kept and kept[-1]:  # one kill at least hit a build at work
                break
            process = start(out=path, **arguments)
            with process:
                if moment % 5 == 0:  # anywhere from the start on
                    time.sleep(rng.uniform(0.1, 3))
                else:  # while groups are trained and published, however slow the machine is
                    process.stdout.readline()
                    enough = len(list(path.glob("weights/*"))) + rng.randint(1, 8)
                    while process.poll() is None and len(list(path.glob("weights/*"))) < enough:
                        time.sleep(0.01)
                    time.sleep(rng.uniform(0, 0.05))
                children = psutil.Process(process.pid).children(recursive=True)
                os.killpg(process.pid, signal.SIGKILL)
            wait_until_gone(children)  # workers notice
            if (path / "zoo.duckdb").exists() and has_tables(path):
                zoo = Zoo.open(path)
                kept.append(len(set(zoo.table().run.tolist())))
                assert len(zoo.weights(slice(None))) == 3 * kept[-1]  # no rows without weights
        build_zoo(out=path, quiet=True, **arguments)
        results[number] = kept, content(path)

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(2)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    assert sorted(results) == [0, 1]
    for kept, got in results.values():
        assert kept == sorted(kept)
        assert 0 < kept[-1] < 200, "the kills should hit a build at work"
        for mine, whole in zip(got, expected, strict=True):
            assert mine == whole
