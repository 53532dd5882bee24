"""What an index meets in use: copies taken in between, clocks that jump, quotas, many runs, readers that stay open."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.attack.common import in_child
from tests.index.test_store import DENSE, FINGERPRINT, make_index, make_rows, more_rows, write_encoder_files
from tests.index.test_writer import by_id, check
from weightsearch.errors import WeightsearchError
from weightsearch.files import write_whole
from weightsearch.index import (
    IndexStore,
    State,
    add_rows,
    create_index,
    doctor,
    export,
    rebuild,
    remove_rows,
    update_rows,
)
from weightsearch.index import writer as writing
from weightsearch.index.connection import IDLE_KEPT
from weightsearch.index.manifest import MANIFEST, read_manifest, write_manifest
from weightsearch.types import Selection

ROOT = Path(__file__).parents[2]


def add_for(path: Path, first: int, seconds: float, say: Callable) -> None:
    """In a child: adds ten rows at a time and says which."""
    writing.STALE_ROWS = 30
    end = time.monotonic() + seconds
    while time.monotonic() < end or first % 10_000 < 30:
        add_rows(path, FINGERPRINT, more_rows(10, first, seed=first))
        first += 10
        say([first - 10, first])


def said_rows(said: list) -> dict[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    for start, end in said:
        rows |= by_id(more_rows(end - start, start, seed=start))
    return rows


@pytest.mark.slow
def test_two_writers_beside_a_reader_lose_nothing(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(50)
    make_index(path, rows)
    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(lambda first: in_child(lambda say: add_for(path, first, 2.0, say)), (10_000, 20_000))
    said = [*theirs.said, *ours.said]
    assert all(isinstance(entry[0], int) for entry in said), said[-1:]
    assert min(len(theirs.said), len(ours.said)) >= 3
    check(path, by_id(rows) | said_rows(sorted(said, key=lambda entry: order_of(path, entry[0]))))


def order_of(path: Path, first: int) -> int:
    """When a batch was added: `check` compares embeddings in that order."""
    table = IndexStore.open(path).table(FINGERPRINT, ["id", "number"])
    return int(dict(zip(table["id"], table["number"], strict=True))[f"{first:016x}"])


@pytest.mark.slow
def test_a_copy_taken_while_somebody_writes_is_whole_or_refused(tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(50))
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            add_for(path, 10_000, 60.0, lambda _: None)
        os._exit(0)
    outcomes = []
    try:
        for number in range(6):
            time.sleep(0.05 * (number % 4))
            copy = tmp_path / f"copy{number}"
            try:
                shutil.copytree(path, copy)
            except shutil.Error:  # a file went away meanwhile: who copies is told
                continue
            outcomes.append(in_child(lambda say, copy=copy: say(state_of(copy))).said[-1])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert outcomes
    assert {outcome for outcome in outcomes if not outcome.startswith("refused: ")} <= {"whole"}, outcomes


def state_of(copy: Path) -> str:
    try:
        index = IndexStore.open(copy)
        ids = index.table(FINGERPRINT, ["id"])["id"].tolist()
        added = len(ids) - 50
        if added % 10 or ids[50:] != [f"{i:016x}" for i in range(10_000, 10_000 + added)]:
            return f"not a state that there ever was: {len(ids)} rows"
        starts = range(10_000, 10_000 + added, 10)
        check(copy, by_id(make_rows(50)) | said_rows([[start, start + 10] for start in starts]))
        broken = [finding for finding in doctor(copy) if finding.state is State.BROKEN]
    except WeightsearchError as error:
        return f"refused: {error}"
    return f"refused: {broken[0].detail}" if broken else "whole"


@pytest.mark.slow
def test_a_clock_that_jumps_back_hides_no_change(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(20)
    make_index(path, rows)
    os.utime(path / MANIFEST, (2**31, 2**31))  # as if written in 2038
    reader = IndexStore.open(path)
    assert reader.count(FINGERPRINT) == 20
    add_rows(path, FINGERPRINT, more_rows(5, 20))
    assert reader.count(FINGERPRINT) == 25
    create_index(path, DENSE, make_rows(7, seed=3), write_extras=write_encoder_files, replace=True)
    os.utime(path / MANIFEST, (1, 1))
    assert reader.count(FINGERPRINT) == 7
    before = (path / MANIFEST).stat()
    manifest = read_manifest(path)
    write_manifest(path, manifest | {"identity": manifest["identity"][::-1]})  # the same size, and the same time
    os.utime(path / MANIFEST, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WeightsearchError, match="not of one index"):
        reader.count(FINGERPRINT)
    write_manifest(path, manifest)
    assert reader.count(FINGERPRINT) == 7
    assert {finding.state for finding in doctor(path)} == {State.OK}


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_what_the_system_refuses_while_files_are_written_is_one_line(number: int, tmp_path: Path, monkeypatch):
    path, rows = tmp_path / "index", make_rows(20)
    make_index(path, rows)
    monkeypatch.setattr(writing, "STALE_ROWS", 0)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), "vectors-2.faiss")

    with monkeypatch.context() as patched:
        patched.setattr("weightsearch.index.vectors.write_whole", refuse)
        assert add_rows(path, FINGERPRINT, more_rows(5, 20)).added == 5  # FAISS's file can come later
        with pytest.raises(WeightsearchError, match="cannot write") as caught:
            rebuild(path)
    assert "\n" not in str(caught.value)
    full = number in (errno.EDQUOT, errno.EFBIG, errno.ENOSPC)
    assert ("the disk is full" in str(caught.value)) == full
    check(path, by_id(rows) | by_id(more_rows(5, 20)))
    assert {finding.state for finding in doctor(path)} <= {State.OK, State.REPAIRED}
    assert {finding.state for finding in doctor(path)} == {State.OK}


@pytest.mark.slow
def test_one_row_and_its_every_question(tmp_path: Path):
    index = make_index(tmp_path / "index", make_rows(1))
    answer = index.search(FINGERPRINT, np.ones(8), 1)
    assert [len(rows) for rows in (answer.neighbours, answer.good, answer.bad)] == [1, 1, 0]
    assert index.thresholds(FINGERPRINT)[0] == index.thresholds(FINGERPRINT)[1]
    assert {finding.state for finding in doctor(tmp_path / "index")} == {State.OK}


@pytest.mark.slow
def test_a_hundred_thousand_runs_of_one_checkpoint(tmp_path: Path):
    """Equal weights are one row; a run each is a neighbour each."""
    n, path = 100_000, tmp_path / "index"
    rows = replace(make_rows(n, width=4), run=np.array([f"run {i}" for i in range(n)]))
    index = make_index(path, replace(rows, id=np.full(n, "0" * 16)))
    assert index.count(FINGERPRINT) == 1
    assert add_rows(path, FINGERPRINT, rows).added == n - 1
    vector = np.random.default_rng(5).standard_normal(4)
    distances = 1 - rows.embedding.astype(float) @ vector / np.linalg.norm(rows.embedding, axis=1) / np.linalg.norm(
        vector
    )
    answer = index.search(FINGERPRINT, vector, 20, Selection(per_run=1, where="epoch < 2"))
    passing = np.flatnonzero(np.arange(n) % 3 < 2)
    expected = passing[np.argsort(distances[passing])[:20]]
    np.testing.assert_allclose([row.distance for row in answer.neighbours], distances[expected], atol=1e-5)
    assert [row.run for row in answer.neighbours] == [f"run {i}" for i in expected]


def held_by_process() -> tuple[int, float]:
    """Open files and MiB of memory."""
    status = Path("/proc/self/status").read_text()
    return len(list(Path("/proc/self/fd").iterdir())), int(status.partition("VmRSS:")[2].split()[0]) / 1024


def live_through(path: Path, say: Callable) -> None:
    """In a child: one open reader while everything is changed, thirty times over."""
    writing.STALE_ROWS, writing.READERS_SECONDS = 20, 0.0
    reader, generator = IndexStore.open(path), np.random.default_rng(0)
    for turn in range(30):
        first = 1000 * (turn + 1)
        add_rows(path, FINGERPRINT, more_rows(30, first, seed=turn))
        update_rows(path, {f"{first:016x}": {"dataset": f"d{turn}"}})
        if turn % 5 == 1:
            rebuild(path)
        if turn % 10 == 9:
            create_index(path, DENSE, make_rows(2000, seed=turn), write_extras=write_encoder_files, replace=True)
        if turn % 5 == 4:
            remove_rows(path, where="number % 50 = 0")
        fresh, vector = IndexStore.open(path), generator.standard_normal(8)
        for where in (None, "number % 2 = 0"):
            ours, theirs = (each.search(FINGERPRINT, vector, 9, Selection(where=where)) for each in (reader, fresh))
            assert ours == theirs, turn
        del fresh
        if turn in (9, 29):
            say([*held_by_process()])


@pytest.mark.slow
def test_a_reader_that_stays_open_sees_every_change_and_holds_on_to_nothing(tmp_path: Path):
    make_index(tmp_path / "index", make_rows(2000))
    ended = in_child(lambda say: live_through(tmp_path / "index", say))
    assert ended.signal == 0
    (early, mib_early), (late, mib_late) = ended.said
    assert late <= early + 2
    assert mib_late < mib_early + 60


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "query examples/good.pt --json --k 2", "doctor"])
def test_no_library_warns_where_warnings_are_errors(command: str, tmp_path: Path):
    shutil.copytree(ROOT / "index", tmp_path / "index")
    words = command.split()
    if words[0] != "--help":
        words += ["--index", "."]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "weightsearch", *words],
        cwd=tmp_path / "index", env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Warning" not in ended.stderr


@pytest.mark.slow
def test_ctrl_c_while_libraries_load_is_one_line(tmp_path: Path):
    shutil.copytree(ROOT / "index", tmp_path / "index")
    command = [sys.executable, "-m", "weightsearch", "query", "index/examples/good.pt", "--index", "index"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for library in ("duckdb", "_swigfaiss", "libtorch_cpu"):
        start = time.monotonic()
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as running:
            while not mapped(running.pid, library):
                if running.poll() is not None or time.monotonic() - start > 60:
                    break
                time.sleep(0.005)
            running.send_signal(signal.SIGINT)
            _, error = running.communicate(timeout=60)
        assert "Traceback" not in error, error[-1500:]
        assert running.returncode in (0, 130, -signal.SIGINT), (running.returncode, error)
        assert error.count("\n") <= 3


def mapped(pid: int, library: str) -> bool:
    try:
        return library in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_a_fork_may_free_what_its_parent_left(tmp_path: Path):
    """A connection has threads, which a fork has none of."""
    frames: list = []
    frames.append(frames)  # a cycle, as exceptions make them, which only the collector frees
    paths = [tmp_path / f"index{number}" for number in range(IDLE_KEPT + 3)]
    for path in paths:
        make_index(path, make_rows(20))
        with IndexStore.open(path).connection() as connection:
            frames.append(connection)
    pid = os.fork()
    if pid == 0:
        del frames, connection
        gc.collect()
        os._exit(0 if all(IndexStore.open(path).count(FINGERPRINT) == 20 for path in paths) else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.slow
def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path):
    """Not by the temporary file beside it."""
    make_index(tmp_path / "index", make_rows(20))
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "folder.parquet", "text")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "folder.parquet"), None)
    for place, reason in (("folder.parquet", "Is a directory"), ("nowhere/rows.parquet", "there is no such folder")):
        with pytest.raises(WeightsearchError) as refused:
            export(tmp_path / "index", tmp_path / place, overwrite=True)
        assert str(refused.value) == f"cannot write {tmp_path / place}: {reason}"
    (tmp_path / "aim").write_text("mine")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "aim")
    assert export(tmp_path / "index", tmp_path / "link.parquet", overwrite=True) == 20
    assert (tmp_path / "aim").read_text() == "mine"
    assert not (tmp_path / "link.parquet").is_symlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WeightsearchError, match=r"cannot write .*rows\.parquet: the disk is full"):
            export(tmp_path / "index", tmp_path / "rows.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".") or file.name == "rows.parquet"]
