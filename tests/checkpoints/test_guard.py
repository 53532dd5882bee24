"""Readers that run in a process apart: what they return arrives whole, and what they do to themselves stays there."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pytest

from weightsearch.checkpoints import metadata_table
from weightsearch.checkpoints.metadata_table import read_table
from weightsearch.checkpoints.readers import child, guard
from weightsearch.checkpoints.readers.guard import Budget, Unread, pack, read_apart, unpack
from weightsearch.checkpoints.tensors import Content, FileBytes, MemoryBytes, Storage, StoredTensor
from weightsearch.errors import WeightsearchError


@pytest.fixture
def odd_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Readers that misbehave, in the child as a library would; it is ended afterwards."""
    (tmp_path / "odd_readers.py").write_text(
        "import os, time\n"
        "def take(path): return bytes(8 * 2**30)\n"
        "def die(path): os.kill(os.getpid(), 11)\n"
        "def hang(path): time.sleep(600)\n"
        "def talk(path): print('x' * 100_000); return {'a': [1, None]}\n"
        "def pid(path): return os.getpid()\n"
        "def fail(path): raise KeyError('a\\x1b[2Jb')\n"
    )
    monkeypatch.setattr(
        guard,
        "_CHILD",
        f"import sys; sys.path[:0] = [sys.argv[1], {str(tmp_path)!r}]\n"
        "from weightsearch.checkpoints.readers import child\nimport odd_readers\n"
        "child._function = lambda name: getattr(odd_readers, name)\nchild.serve()",
    )
    monkeypatch.setattr(guard, "_child", None)
    (tmp_path / "file").write_bytes(b"x")
    yield tmp_path / "file"
    guard._end_child()


def test_everything_a_reader_returns_arrives_as_it_was(tmp_path: Path):
    arrays = {
        "matrix": np.arange(6, dtype="<f4").reshape(2, 3), "none": np.empty((0, 3)), "one": np.array(2.5),
        "half": np.ones(3, np.float16), "turned": np.arange(6).reshape(2, 3).T, "truth": np.array([True, False]),
    }  # fmt: skip
    plain = {
        "text": "\ud800é\0",
        "number": 2**70,
        "nan": float("nan"),
        3: [None, True, (1, 2)],
        "date": date(2026, 1, 2),
    }
    shared = Storage(24, MemoryBytes(bytes(range(24))))
    (tmp_path / "w.bin").write_bytes(bytes(range(40)))
    tensors = {
        "a": StoredTensor("float32", (2, 3), shared), "tied": StoredTensor("float32", (3, 2), shared, 0, (1, 3)),
        "file": StoredTensor("uint8", (4,), Storage(4, FileBytes(tmp_path / "w.bin", 7))),
        "none": StoredTensor("int4", (4,), problem="is of type int4"),
    }  # fmt: skip
    content = Content({"arrays": arrays, "tensors": tensors, "plain": plain}, ("a note",), False)
    head, buffers = pack(content)
    back = unpack(head, [bytearray(buffer) for buffer in buffers], tmp_path)
    assert (back.notes, back.ordered) == (("a note",), False)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back.tree["arrays"][name], array)
        assert back.tree["arrays"][name].dtype == array.dtype
    for name in ("a", "tied", "file"):
        np.testing.assert_array_equal(back.tree["tensors"][name].array(), tensors[name].array())
    assert back.tree["tensors"]["a"].storage is back.tree["tensors"]["tied"].storage  # ties stay ties
    assert back.tree["tensors"]["none"].problem == "is of type int4"
    assert repr(back.tree["plain"]) == repr(plain | {3: [None, True, [1, 2]], "date": "2026-01-02"})
    head, _ = pack([Decimal("0.5"), b"x", {1, 2}])
    other = unpack(head, [], tmp_path)
    assert other == [0.5, Unread("bytes"), Unread("set")]


@pytest.mark.parametrize("place", ["../w.bin", "/etc/passwd", "", ".."])
def test_a_child_that_was_taken_over_cannot_have_other_files_read(place: str, tmp_path: Path):
    head = {"value": {"tensor": ["uint8", [4], 0, 0, None, None, "<"]}, "storages": [[4, place, 0]]}
    with pytest.raises((WeightsearchError, OSError)):
        unpack(head, [], tmp_path).array()


@pytest.mark.slow
def test_what_a_reader_does_to_itself_is_one_line_and_the_next_file_is_read(odd_readers: Path, monkeypatch):
    assert read_apart("talk", odd_readers) == {"a": [1, None]}  # what libraries print is nobody's answer
    first = read_apart("pid", odd_readers)
    assert first != os.getpid()
    for reader, message in {
        "take": "over 1,024 MiB of memory",
        "die": "ended the process that read it (signal 11)",
        "hang": "took over 1 s",
        "fail": r"KeyError: 'a\x1b",
    }.items():
        with monkeypatch.context() as patched:
            if reader == "hang":
                patched.setattr(Budget, "of", lambda path: Budget(2**30, 1.0))
            with pytest.raises(WeightsearchError) as caught:
                read_apart(reader, odd_readers)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert read_apart("talk", odd_readers) == {"a": [1, None]}


@pytest.mark.slow
def test_a_fork_has_a_child_of_its_own_and_each_ends_with_its_parent(odd_readers: Path):
    ours = read_apart("pid", odd_readers)
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writes, str(read_apart("pid", odd_readers)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = int(os.read(reads, 100))
    os.close(reads)
    os.close(writes)
    assert theirs not in (ours, os.getpid())
    assert read_apart("pid", odd_readers) == ours
    for _ in range(100):
        try:
            os.kill(theirs, 0)
        except ProcessLookupError:
            break
        signal.sigtimedwait([], 0.05)
    else:
        pytest.fail("it outlived the process that it read for")


@pytest.mark.slow
def test_a_script_without_a_main_guard_reads_and_ends_without_a_word(tmp_path: Path):
    """`multiprocessing` would run the script again in its child; and a module beside it is not taken for a library."""
    duckdb.connect().execute(f"COPY (SELECT 'a.pt' AS path, 0.5 AS acc) TO '{tmp_path / 't.parquet'}'")
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger\\'s module')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from weightsearch.checkpoints.metadata_table import read_table\nfrom pathlib import Path\n"
        "print(read_table(Path('t.parquet'), 'path'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[{'path': 'a.pt', 'acc': 0.5}]\n", "")


@pytest.mark.slow
def test_bombs_of_tables_are_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a smaller limit, in this process; each inflates to a hundred times its size."""
    monkeypatch.setattr(guard, "_is_apart", True)
    monkeypatch.setattr(metadata_table, "MAX_TABLE_BYTES", 2**23)
    duckdb.connect().execute(f"COPY (SELECT 'a' AS path, 1 AS x FROM range(300_000)) TO '{tmp_path / 'b.parquet'}'")
    for name, content in {
        "b.csv.gz": b"path,x\n" + b"a,\n" * 300_000,
        "b.jsonl.gz": bytes(2**24),
        "c.json.gz": b"[" + b"{}," * 600_000 + b"{}]",
    }.items():
        (tmp_path / name).write_bytes(gzip.compress(content, 1))
    for name in ("b.parquet", "b.csv.gz", "b.jsonl.gz", "c.json.gz"):
        assert (tmp_path / name).stat().st_size < 2**17
        with pytest.raises(WeightsearchError, match=f"{name} cannot be read: it holds over 8 MiB") as caught:
            read_table(tmp_path / name, "path")
        assert "\n" not in str(caught.value)


def test_a_damaged_table_and_every_reader_by_its_name(tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(WeightsearchError, match=r"t\.parquet cannot be read"):
        read_table(tmp_path / "t.parquet", "path")
    for reader in child.READERS:
        assert callable(child._function(reader))
