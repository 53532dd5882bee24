"""Imports stream, and a killed one goes on."""

from __future__ import annotations

import contextlib
import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import share
from tests.zoo.public_zoos import (
    write_small_cnn_zoo,
    write_sweep,
)
from weightsearch.errors import WeightsearchError
from weightsearch.zoo import import_survey
from weightsearch.zoo import import_writer as writing
from weightsearch.zoo import import_zoo as importers
from weightsearch.zoo.import_zoo import import_zoo
from weightsearch.zoo.store import Zoo


@pytest.mark.slow
def test_an_import_that_was_killed_goes_on_and_ends_up_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sweep(tmp_path / "sweep", runs=6)
    monkeypatch.setattr(writing, "PART_BYTES", 1000)  # a run a part
    monkeypatch.setattr(import_survey, "KEPT_BYTES", 0)  # so that weights are read anew
    whole = import_zoo(tmp_path / "sweep", tmp_path / "whole", quiet=True)
    assert len(list((whole.path / "weights").iterdir())) == 6
    real, calls = importers.read_checkpoint, 0

    def dies(path: str, *_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(importers, "read_checkpoint", dies)
    with pytest.raises(WeightsearchError, match="stopped: 3 runs are kept"):
        import_zoo(tmp_path / "sweep", tmp_path / "zoo", quiet=True)
    monkeypatch.setattr(importers, "read_checkpoint", real)
    assert len(Zoo.open(tmp_path / "zoo").table()) == 6
    again = import_zoo(tmp_path / "sweep", tmp_path / "zoo", quiet=True)
    assert (again.runs, again.added) == (6, 3)
    zoo, expected = Zoo.open(tmp_path / "zoo"), Zoo.open(whole.path)
    np.testing.assert_array_equal(zoo.weights(slice(None)), expected.weights(slice(None)))
    assert zoo.table().names == expected.table().names
    assert import_zoo(tmp_path / "sweep", tmp_path / "zoo", quiet=True).added == 0


SLOWLY = """
import sys, time
from weightsearch.zoo import import_writer, import_zoo

import_writer.PART_BYTES = 1000  # a run a part
print("go", flush=True)
import_zoo.import_zoo(sys.argv[1], sys.argv[2], quiet=True)
"""


def begun(zoo: Zoo) -> bool:
    """Whether its maker came as far as the first commit; before, on a busy machine, a zoo says that it is half made."""
    try:
        zoo.table()
    except WeightsearchError as error:
        return "half made" not in str(error)
    return True


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_up_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_small_cnn_zoo(tmp_path / "svhn", filters=2)
    rows = 300
    size = np.load(tmp_path / "svhn" / "weights.npy").shape[1]
    weights = np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)
    np.save(tmp_path / "svhn" / "weights.npy", weights)
    lines = ["modeldir,step,test_accuracy,test_loss,train_accuracy,train_loss"]
    lines += [f"run/{i // 3},{i % 3},0.{i:03d},1,0.5,1" for i in range(rows)]
    (tmp_path / "svhn" / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    whole = Zoo.open(import_zoo(tmp_path / "svhn", tmp_path / "whole", quiet=True).path)
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(share(40)):
        command = [sys.executable, "-c", SLOWLY, str(tmp_path / "svhn"), str(tmp_path / "zoo")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"go\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 1.5))
            process.kill()
        if (tmp_path / "zoo" / "zoo.duckdb").exists():
            zoo = Zoo.open(tmp_path / "zoo")
            if held == 0 and not begun(zoo):
                continue
            assert len(zoo.table()) >= held  # nothing that was kept is lost
            held = len(zoo.table())
            assert np.isfinite(zoo.weights(slice(None))).all()
    monkeypatch.setattr(writing, "PART_BYTES", 1000)
    assert import_zoo(tmp_path / "svhn", tmp_path / "zoo", quiet=True).checkpoints == rows
    zoo = Zoo.open(tmp_path / "zoo")
    np.testing.assert_array_equal(zoo.weights(slice(None)), whole.weights(slice(None)))
    np.testing.assert_array_equal(zoo.table().test_accuracy, whole.table().test_accuracy)
    assert zoo.table().names == whole.table().names
    parts = [path.name for path in (zoo.path / "weights").iterdir()]
    assert len(parts) == 100
    assert not any(name.startswith(".") for name in parts)


PEAK = """
import sys, threading, time
from pathlib import Path
from weightsearch.zoo.import_zoo import import_zoo

def anonymous():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])

before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
import_zoo(sys.argv[1], sys.argv[2], quiet=True)
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.slow
def test_importing_takes_little_memory(tmp_path: Path):
    """A zoo of 240 MB in under 100 MB."""
    folder = tmp_path / "zoo"
    write_small_cnn_zoo(folder)
    rows = 12_000
    np.lib.format.open_memmap(folder / "weights.npy", "w+", np.float32, (rows, 4970))[:] = 0.1
    lines = ["modeldir,step,test_accuracy,test_loss,train_accuracy,train_loss"]
    lines += [f"run/{i // 9},{i % 9},0.5,1,0.5,1" for i in range(rows)]
    (folder / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100_000
    assert len(Zoo.open(tmp_path / "out").table()) == rows
