"""Shards and their parts: whatever their number, order and ends, the index is as if `add` had read the files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

from tests.conftest import share
from weightsearch.checkpoints.discovery import Sources
from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.search.add import add
from weightsearch.search.record_writer import AddReport
from weightsearch.search.shards import collect, embed, parse_shard

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "index" / "examples"


def copy_of_index(place: Path) -> Path:
    """The reference index, whose examples it does not hold."""
    shutil.copytree(ROOT / "index", place)
    return place


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in folders and in one, accuracies in per cent, copies, and files that can have no row or no signature."""
    folder = tmp_path_factory.mktemp("files") / "sweep"
    examples = [read_checkpoint(path) for path in sorted(EXAMPLES.glob("*.pt"))]
    rng = np.random.default_rng(0)

    def weights(number: int) -> np.ndarray:
        noise = rng.normal(scale=1e-3, size=examples[0].weights.shape)
        return (examples[number % len(examples)].weights + noise).astype(np.float32)

    def write(path: Path, values: np.ndarray, **metadata: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, values, examples[0].architecture, metadata)

    for run in range(3):
        for epoch in range(4):
            write(
                folder / f"run-{run}" / f"epoch={epoch}.pt", weights(run),
                val_acc=50.0 + run + epoch, epoch=epoch, hparams={"lr": 10.0**-run, "activation": "relu"},
            )  # fmt: skip
        shutil.copy(folder / f"run-{run}" / "epoch=3.pt", folder / f"run-{run}" / "last.pt")
    for step in range(3):
        write(folder / f"ckpt_{step}.safetensors", weights(0))
    (folder / "run-0" / "epoch=1.json").write_text('{"team": "red", "cost": 2.5}')
    (folder / "broken.pt").write_bytes(b"PK\x03\x04")
    infinite = weights(1)
    infinite[3] = np.inf
    write(folder / "infinite.pt", infinite)
    torch.save({"0.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}, folder / "other.pt")
    return folder


def rows_of(index: Path) -> dict[str, list[object]]:
    """All that an index keeps, read by DuckDB itself, but what names the database."""
    with duckdb.connect(str(index / "index.duckdb"), read_only=True) as connection:
        checkpoints = connection.execute("SELECT * FROM checkpoints ORDER BY number").fetchall()
        columns = [name for name, *_ in connection.description or ()]
        without = "number, head_hash, rest_hash"  # checksums: of numbers, too, and of sums that agree within rounding
        signatures = connection.execute(f"SELECT * EXCLUDE ({without}) FROM signatures ORDER BY source").fetchall()
        tensors = connection.execute(
            "SELECT s.source, t.* EXCLUDE (signature) FROM tensors t JOIN signatures s ON t.signature = s.number "
            "ORDER BY s.source, t.place"
        ).fetchall()
    vectors = [columns.index(name) for name in ("embedding", "description", "predicted_accuracy")]
    rounded = {*vectors, *(i for i, name in enumerate(columns) if name.endswith("_hash"))}  # and checksums of them
    return {
        "rows": [tuple(value for i, value in enumerate(row) if i not in rounded) for row in checkpoints],
        "vectors": [row[vectors[0]] for row in checkpoints],
        "predicted": [row[vectors[2]] for row in checkpoints],
        "signatures": signatures,
        "tensors": tensors,
    }


def assert_same(index: Path, expected: Path) -> None:
    """Sums of a signature are added in another order where compiled code is not ready yet."""
    ours, theirs = rows_of(index), rows_of(expected)
    assert repr(ours["rows"]) == repr(theirs["rows"])  # repr: NaN is NaN
    for name in ("signatures", "tensors"):
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert isinstance(one, tuple)
            assert isinstance(other, tuple)
            for value, expected_value in zip(one, other, strict=True):
                if isinstance(value, bytes) and len(value) % 4 == 0:
                    value, expected_value = np.frombuffer(value, "<f4"), np.frombuffer(expected_value, "<f4")
                    assert value == pytest.approx(expected_value, rel=1e-5, abs=1e-4), name
                elif isinstance(value, float):
                    assert value == pytest.approx(expected_value, rel=1e-6, nan_ok=True), name
                else:
                    assert value == expected_value, name
    for one, other in zip(ours["vectors"], theirs["vectors"], strict=True):
        assert isinstance(one, bytes)
        assert isinstance(other, bytes)
        assert np.frombuffer(one, "<f4") == pytest.approx(np.frombuffer(other, "<f4"), rel=1e-6, abs=1e-6)
    assert ours["predicted"] == pytest.approx(theirs["predicted"], rel=1e-6, abs=1e-6)


def counts(report: AddReport) -> tuple[object, ...]:
    left_out = sorted((Path(bad.path).name, bad.reason) for bad in report.quarantined)
    return report.added, report.already, report.unknown, left_out, report.signed, report.signed_already


@pytest.fixture(scope="module")
def added(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AddReport]:
    index = copy_of_index(tmp_path_factory.mktemp("added") / "index")
    return index, add([sweep], index, dataset="usps", quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [[0], [2, 0, 1], [4, 1, 0, 3, 2]], ids=len)
def test_any_number_of_shards_in_any_order_is_as_one_add(
    sweep: Path, added: tuple[Path, AddReport], tmp_path: Path, shards: list[int]
):
    reports = []
    for i in shards:
        shard = f"{i}/{len(shards)}"
        reports.append(embed([sweep], tmp_path / "parts", index=added[0], shard=shard, dataset="usps", quiet=True))
    assert sum(report.files for report in reports) == sum(report.read for report in reports) == 21
    index = copy_of_index(tmp_path / "index")
    report = collect(tmp_path / "parts", index, quiet=True)
    assert counts(report) == counts(added[1])
    assert_same(index, added[0])
    again = collect(tmp_path / "parts", index, quiet=True)
    assert (again.added, again.signed) == (0, 0)
    assert_same(index, added[0])


@pytest.mark.slow
def test_finished_parts_are_not_read_again_and_changed_files_are(sweep: Path, tmp_path: Path):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep / "run-0", folder / "run-0")
    parts = tmp_path / "parts"
    first = [embed([folder], parts, shard=f"{i}/2", quiet=True) for i in range(2)]
    names = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    old, fresh = parts / ".part-old.parquet.1.tmp", parts / ".part-fresh.parquet.2.tmp"  # of killed workers
    for left in (old, fresh):
        left.touch()
    os.utime(old, (0, 0))
    again = [embed([folder], parts, shard=f"{i}/3", quiet=True) for i in range(3)]  # another n, the same parts
    assert [report.read for report in again] == [0, 0, 0]
    assert sum(report.already for report in again) == sum(report.read for report in first) == 5
    assert {path: path.stat().st_mtime_ns for path in parts.iterdir() if path != fresh} == names
    assert fresh.exists()
    other = embed([folder], parts, sources=Sources.make(run_pattern="run-."), quiet=True)
    assert other.read == 5  # read otherwise, so read again
    shutil.rmtree(parts)

    embed([folder], parts, quiet=True)
    shutil.copy(sweep / "run-1" / "epoch=2.pt", folder / "run-0" / "epoch=2.pt")
    os.utime(folder / "run-0" / "epoch=2.pt")
    report = embed([folder], parts, quiet=True)
    assert (report.read, report.already) == (1, 4)
    expected = add([folder], tmp_path / "expected", quiet=True)
    assert collect(parts, tmp_path / "index", quiet=True).signed == expected.signed == 5
    assert_same(tmp_path / "index", tmp_path / "expected")


KILLED = """
import os, random, shutil, signal, sys, time
from weightsearch.search import record_writer, shards
from weightsearch.search.shards import collect, embed

sweep, parts, index, kills = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
shards.PART_FILES = shards.SIGNED_TOGETHER = record_writer.SIGNED_TOGETHER = 2
chance = random.Random(0)

def embed_two(folder):
    for i in range(2):
        embed([sweep], folder, index=index, shard=f"{i}/2", dataset="usps", quiet=True)

def until_done(task, alike):
    # Killed at random moments of the time that another task takes, which does as much.
    killed, start = 0, time.monotonic()
    if (child := os.fork()) == 0:
        alike()
        os._exit(0)
    os.waitpid(child, 0)
    longest = time.monotonic() - start
    for attempt in range(kills + 1):
        child = os.fork()
        if child == 0:
            task(attempt)
            os._exit(0)
        if attempt < kills:
            time.sleep(chance.uniform(0, longest * (attempt + 1) / (kills + 1)))  # the first ones early
            os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return killed

shutil.copytree(index, index + "-alike")
print(
    until_done(lambda attempt: embed_two(parts), lambda: embed_two(parts + "-alike")),
    until_done(
        lambda attempt: collect(parts, index, quiet=True),
        lambda: collect(parts + "-alike", index + "-alike", quiet=True),
    ),
)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_is_the_same(sweep: Path, added: tuple[Path, AddReport], tmp_path: Path):
    index = copy_of_index(tmp_path / "index")
    command = [sys.executable, "-c", KILLED, str(sweep), str(tmp_path / "parts"), str(index), str(share(60))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(int(killed) > 0 for killed in done.stdout.split())
    assert_same(index, added[0])
    left = [path.name for path in (tmp_path / "parts").iterdir() if not path.name.startswith(("part-", "."))]
    assert left == []


@pytest.mark.slow
def test_what_cannot_be_is_one_line(sweep: Path, added: tuple[Path, AddReport], tmp_path: Path):
    for shard in ("8/8", "-1/2", "1", "1/0", "a/b"):
        with pytest.raises(UsageError, match="give i/n with i from 0"):
            parse_shard(shard)
    with pytest.raises(UsageError, match="holds no parts; make some"):
        collect(tmp_path / "nothing", tmp_path / "index", quiet=True)
    embed([sweep / "run-0" / "epoch=0.pt"], tmp_path / "parts", index=added[0], quiet=True)
    with pytest.raises(UsageError, match="start with a copy of that index"):
        collect(tmp_path / "parts", tmp_path / "index", quiet=True)
    index = copy_of_index(tmp_path / "other")
    manifest = (index / "manifest.json").read_text()
    add([sweep / "run-0"], tmp_path / "empty", quiet=True)
    with pytest.raises(UsageError, match="by another encoder than that of"):
        collect(tmp_path / "parts", tmp_path / "empty", quiet=True)
    assert (index / "manifest.json").read_text() == manifest
    part = next((tmp_path / "parts").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(WeightsearchError, match="remove a damaged one and run its shard again"):
        collect(tmp_path / "parts", index, quiet=True)
