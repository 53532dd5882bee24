"""A process apart, with limits of memory and time, for readers whose libraries cannot be trusted with any file.

HDF5, ONNX, GGUF, TensorFlow Lite, msgpack, event files and tables are parsed by libraries in C and C++, which a file
may make crash, loop or take all memory. They run in one child of this process that is started at the first such file
and kept for the next; where it dies, the file is named and another child takes its place. What comes back is JSON and
arrays' bytes, never pickled objects.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import numpy as np

from weightsearch.checkpoints.remote.reading import localize
from weightsearch.checkpoints.tensors import Content, FileBytes, MemoryBytes, Storage, StoredTensor
from weightsearch.errors import WeightsearchError

FREE_BYTES, BYTES_PER_BYTE = 2**30, 32  # memory that a file may take: this, and so much for each of its own bytes
FREE_SECONDS, BYTES_PER_SECOND = 60.0, 2**20  # and time, on a busy machine
_PACKAGE = Path(__file__).parents[3]
_CHILD = "import sys; sys.path.append(sys.argv[1]); from weightsearch.checkpoints.readers.child import serve; serve()"
_is_apart = False  # this process is such a child itself
_may_use_libraries, _was_refused = True, False


@dataclass(frozen=True)
class Budget:
    """What reading one file may take."""

    memory_bytes: int
    seconds: float

    @classmethod
    def of(cls, path: Path) -> Budget:
        size = path.stat().st_size
        return cls(FREE_BYTES + BYTES_PER_BYTE * size, FREE_SECONDS + size / BYTES_PER_SECOND)


def read_apart(reader: str, path: Path, *arguments: str) -> Any:
    """What the reader of that name in `readers.child` makes of a file.

    Raises WeightsearchError for what it refuses, and where it takes more than its `Budget` or ends its process.
    """
    global _was_refused
    if not _may_use_libraries:
        _was_refused = True
        raise WeightsearchError(f"{reader} is read by a library, which this process may not use")
    if _is_apart:
        from importlib import import_module

        return import_module("weightsearch.checkpoints.readers.child").read(reader, path, *arguments)
    path = localize(path)
    budget = Budget.of(path)
    with _lock:
        return _child_of_this_process().ask(reader, path, arguments, budget)


def was_refused_a_library() -> bool:
    """Whether a file needed one since `limit_process` forbade them."""
    return _was_refused


def limit_process(memory_bytes: int, seconds: float, *, libraries: bool = True) -> None:
    """From now on this process may take so much more memory and processor time, and reads all files by itself.

    Without `libraries` it refuses files that are read by one. Windows has no such limits.
    """
    global _is_apart, _may_use_libraries
    _is_apart, _may_use_libraries = True, libraries
    if sys.platform == "win32":
        return
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        pages = 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory_bytes,
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime + seconds) + 1,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (soft, hard))


class _Child:
    """The process that reads, and what is said between it and this one."""

    def __init__(self) -> None:
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, str(_PACKAGE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | single,
        )
        self.owner = os.getpid()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._answers = self.process.stdin, self.process.stdout

    @property
    def is_of_this_process(self) -> bool:
        """False in a fork of the process that started it, which must not talk to it."""
        return self.owner == os.getpid()

    def ask(self, reader: str, path: Path, arguments: tuple[str, ...], budget: Budget) -> Any:
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            self.process.kill()

        alarm = threading.Timer(budget.seconds, stop)
        alarm.daemon = True
        alarm.start()
        try:
            request = {
                "reader": reader, "path": os.fspath(path.absolute()), "arguments": arguments,
                "memory_bytes": budget.memory_bytes, "seconds": budget.seconds,
            }  # fmt: skip
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            head, buffers = receive(self._answers, budget.memory_bytes)
        except (OSError, ValueError):
            self.end()
            if timed_out.is_set():
                reason = f"took over {budget.seconds:,.0f} s"
            else:
                reason = f"ended the process that read it (signal {-self.process.returncode})"
            raise WeightsearchError(
                f"the file is damaged or hostile: it {reason}; copy it again, or save it in another format"
            ) from None
        except BaseException:  # an answer is on its way that nobody will read
            self.end()
            raise
        finally:
            alarm.cancel()
        if "error" in head:
            raise WeightsearchError(head["error"])
        return unpack(head, buffers, path.absolute().parent)

    def end(self) -> None:
        if self.is_of_this_process:
            self.process.kill()
            self.process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # what was not sent yet
                pipe.close()


_lock = threading.Lock()
_child: _Child | None = None


def _child_of_this_process() -> _Child:
    global _child
    if _child is not None and (not _child.is_of_this_process or _child.process.poll() is not None):
        if _child.is_of_this_process:
            _child.end()
        _child = None
    if _child is None:
        _child = _Child()
    return _child


@atexit.register
def _end_child() -> None:
    if _child is not None and _child.is_of_this_process:
        _child.end()


def _renew_lock() -> None:
    """In a fork: another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def send(pipe: IO[bytes], head: dict[str, Any], buffers: list[memoryview] | None = None) -> None:
    """A length, JSON of that length, and the buffers, whose lengths stand in it."""
    content = json.dumps(head | {"lengths": [len(buffer) for buffer in buffers or ()]}).encode()
    pipe.write(len(content).to_bytes(8, "little") + content)
    for buffer in buffers or ():
        pipe.write(buffer)
    pipe.flush()


def receive(pipe: IO[bytes], most: int) -> tuple[dict[str, Any], list[bytearray]]:
    """What `send` sent. Raises ValueError for more than `most` bytes and for an end before the end."""
    start = pipe.read(8)
    if len(start) < 8 or int.from_bytes(start, "little") > most:
        raise ValueError("no answer")
    head = json.loads(pipe.read(int.from_bytes(start, "little")))
    if sum(head["lengths"]) > most:
        raise ValueError("an answer beyond the limit")
    buffers = []
    for length in head["lengths"]:
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            count = pipe.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise ValueError("an answer cut short")
            view = view[count:]
        buffers.append(buffer)
    return head, buffers


def pack(value: Any) -> tuple[dict[str, Any], list[memoryview]]:
    """What readers return, as JSON and buffers: mappings, sequences, plain values, arrays, tensors, `Content`."""
    buffers: list[memoryview] = []
    storages: list[list[Any]] = []
    places: dict[int, int] = {}

    def buffer(content: Any) -> int:
        buffers.append(memoryview(content).cast("B"))
        return len(buffers) - 1

    def storage(block: Storage | None) -> int | None:
        if block is None:
            return None
        if id(block) not in places:
            places[id(block)] = len(storages)
            if isinstance(block.source, FileBytes):
                storages.append([block.nbytes, block.source.path.name, block.source.start])
            else:
                assert block.source is not None
                storages.append([block.nbytes, buffer(bytes(block.source.read(0, block.nbytes)))])
        return places[id(block)]

    def packed(item: Any) -> Any:
        match item:
            case None | bool() | int() | float() | str():
                return item
            case np.generic():
                return packed(item.item())
            case np.ndarray():
                return {"array": [item.dtype.str, item.shape, buffer(item.tobytes())]}
            case StoredTensor():
                kept = [item.dtype, item.shape, storage(item.storage), item.offset, item.stride, item.problem]
                return {"tensor": [*kept, item.byteorder]}
            case Content():
                return {"content": [packed(item.tree), item.notes, item.ordered]}
            case Mapping():
                return {"mapping": [[packed(key), packed(inner)] for key, inner in item.items()]}
            case list() | tuple():
                return {"list": [packed(inner) for inner in item]}
            case Decimal():
                return float(item) if item.is_finite() else None
            case date() | time() | timedelta() | UUID():  # a table's
                return str(item)
        return {"other": type(item).__name__}

    value = packed(value)
    return {"value": value, "storages": storages}, buffers


@dataclass(frozen=True)
class Unread:
    """Stands for a value that is neither plain nor an array."""

    kind: str


def unpack(head: dict[str, Any], buffers: list[bytearray], folder: Path) -> Any:
    """What `pack` packed. Tensors in files are taken from `folder` alone."""

    def storage(nbytes: int, place: str | int, start: int = 0) -> Storage:
        if isinstance(place, int):
            return Storage(nbytes, MemoryBytes(memoryview(buffers[place])))
        if Path(place).name != place:
            raise WeightsearchError("it names a file outside of its folder")
        return Storage(nbytes, FileBytes(folder / place, start))

    storages = [storage(*described) for described in head["storages"]]

    def tensor(
        dtype: str, shape: list[int], at: int | None, offset: int, stride: list[int] | None, problem: str | None,
        byteorder: str,
    ) -> StoredTensor:  # fmt: skip
        block, steps = None if at is None else storages[at], None if stride is None else tuple(stride)
        return StoredTensor(dtype, tuple(shape), block, offset, steps, problem, byteorder)

    kinds: dict[str, Callable[[Any], Any]] = {
        "array": lambda given: np.frombuffer(buffers[given[2]], np.dtype(given[0])).reshape(given[1]),
        "tensor": lambda given: tensor(*given),
        "content": lambda given: Content(unpacked(given[0]), tuple(given[1]), given[2]),
        "mapping": lambda given: {unpacked(key): unpacked(inner) for key, inner in given},
        "list": lambda given: [unpacked(inner) for inner in given],
        "other": Unread,
    }

    def unpacked(item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        ((kind, given),) = item.items()
        return kinds[kind](given)

    return unpacked(head["value"])
