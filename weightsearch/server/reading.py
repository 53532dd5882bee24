"""Strangers' files are read in processes of their own, with limits of memory and time.

What comes back is JSON and numbers, never pickled objects. Processes wait for files, so that none waits for a process.
One that has read a file without fault, by Python and NumPy alone, reads the next one; whatever else happens, another
takes its place: a file that was refused, was large, took too long, or needs a library in C.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import signal
import threading
import time
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.readers.guard import limit_process, was_refused_a_library
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.errors import WeightsearchError
from weightsearch.files import plain
from weightsearch.relations import SignatureIndex
from weightsearch.server.options import ServeOptions
from weightsearch.types import Architecture, Checkpoint

PRELOADED = ["weightsearch.server.reading", "safetensors.numpy", "resource"]
NAME = "uploaded file"
START_SECONDS = 300.0  # that a process may take to start, on a machine that does other things
FILES_EACH = 200  # that a process reads
LARGE_BYTES = 2**24  # after a file of so many it ends, too, with the memory that it took
ENDED = "reading it took more memory or time than is allowed"


class Readers:
    """Processes that wait for files, as many as are read at a time."""

    def __init__(self, options: ServeOptions, signatures: Path | None = None) -> None:
        """`signatures` is an index that keeps some: what files are to those that it knows is told, too."""
        self.options = options
        self.signatures = signatures
        self.processes = _context()
        self._waiting: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
        self._closed = threading.Event()

    def start(self) -> None:
        """Starts them, and waits for one: it loads what reads files."""
        _start_without_interrupts(self.processes)
        for _ in range(self.options.readers):
            self._waiting.put(self._reader())
        first = self._waiting.get()
        first.wait()
        self._waiting.put(first)

    def close(self) -> None:
        """Ends all that wait."""
        self._closed.set()
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait().end()

    def read(self, path: Path) -> tuple[Checkpoint, dict[str, Any] | None]:
        """The checkpoint in the file, and what it is to those that the index has signatures of.

        Raises WeightsearchError for what is none, too large, or takes too long; relations that do are None.
        """
        try:
            reader = self._waiting.get_nowait()
        except queue.Empty:
            reader = self._reader()
        told, again = None, False
        try:
            told = reader.ask(path, self.options.read_seconds)
            again = told is not None and reader.files < FILES_EACH and path.stat().st_size <= LARGE_BYTES
        finally:
            if again:
                self._waiting.put(reader)
            else:
                reader.end()
                self._waiting.put(self._reader())
            if self._closed.is_set():
                self.close()
        if told is None:  # it needs a library: by a process that reads nothing else
            reader = self._reader(libraries=True)
            try:
                told = reader.ask(path, self.options.read_seconds)
            finally:
                reader.end()
        assert told is not None
        return told

    def _reader(self, libraries: bool = False) -> _Reader:
        return _Reader(self.processes, self.options, self.signatures, libraries)


class _Reader:
    """One of the processes, as this one sees it."""

    def __init__(self, processes: Any, options: ServeOptions, signatures: Path | None, libraries: bool) -> None:
        self.pipe, theirs = processes.Pipe()
        self.process = processes.Process(
            target=_serve, args=(theirs, options.largest_memory, options.read_seconds, signatures, libraries),
            daemon=True,
        )  # fmt: skip
        self.process.start()
        theirs.close()
        self.files = 0
        self.is_ready = False

    def wait(self) -> None:
        """Until it has loaded what reads files."""
        if self.is_ready:
            return
        with suppress(EOFError, OSError):
            self.is_ready = self.pipe.poll(START_SECONDS) and self.pipe.recv_bytes() == b"ready"
        if not self.is_ready:
            raise WeightsearchError("the process that reads files did not start; try again")

    def ask(self, path: Path, seconds: float) -> tuple[Checkpoint, dict[str, Any] | None] | None:
        """As `Readers.read`; None where the file needs a library that this process may not use."""
        self.wait()
        self.files += 1
        ends = time.monotonic() + seconds
        relations = None
        try:
            self.pipe.send_bytes(str(path).encode())
            if not self.pipe.poll(max(0.0, ends - time.monotonic())) or time.monotonic() > ends:
                raise WeightsearchError(f"reading it took more than {seconds:g} seconds")
            head = json.loads(self.pipe.recv_bytes())
            if "library" in head:
                return None
            if "error" in head:
                raise WeightsearchError(str(head["error"]))
            weights = np.frombuffer(bytearray(self.pipe.recv_bytes()), "<f4")
            if head["signed"]:
                if self.pipe.poll(max(0.0, ends - time.monotonic())):
                    relations = json.loads(self.pipe.recv_bytes())
                else:
                    self.files = FILES_EACH  # a process that is still at it reads no other file
        except (EOFError, OSError, ValueError):
            raise WeightsearchError(ENDED) from None
        checkpoint = Checkpoint(
            NAME, Architecture.from_dict(head["architecture"]), weights, head["metadata"], tuple(head["skipped"]),
            tuple(head["notes"]), head["ordered"],
        )  # fmt: skip
        return checkpoint, relations

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


def _context() -> Any:
    """Where processes come from: a fork server with the readers loaded, or new ones where there is none."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    return processes


def _start_without_interrupts(processes: Any) -> None:
    """Starts the fork server with SIGINT blocked, as all that it forks have it then: Ctrl-C is for the server alone."""
    if processes.get_start_method() == "forkserver":
        resource_tracker.ensure_running()  # else the server starts it, which lets SIGINT in again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, largest_memory: int, seconds: float, signatures: Path | None, libraries: bool) -> None:
    """In the process: one file after the other, for each of them limits first."""
    pipe.send_bytes(b"ready")
    with suppress(EOFError, OSError):  # the server has gone
        while True:
            path = pipe.recv_bytes().decode()
            limit_process(largest_memory, seconds, libraries=libraries)
            head, weights = _read(path)
            pipe.send_bytes(json.dumps(head | {"signed": signatures is not None}, default=str).encode())
            if weights is None:
                return
            pipe.send_bytes(weights)
            if signatures is not None:
                pipe.send_bytes(json.dumps(_relations(path, signatures)).replace(path, NAME).encode())


def _read(path: str) -> tuple[dict[str, Any], bytes | None]:
    try:
        checkpoint = read_checkpoint(path)
    except MemoryError:
        return {"error": "it takes more memory than is allowed"}, None
    except Exception as error:
        if was_refused_a_library():
            return {"library": True}, None
        if isinstance(error, WeightsearchError):
            return {"error": str(error).replace(path, NAME)}, None
        return {"error": f"it cannot be read ({type(error).__name__})"}, None
    head = {
        "architecture": checkpoint.architecture.to_dict(), "metadata": plain(checkpoint.metadata),
        "skipped": checkpoint.skipped, "notes": [note.replace(path, NAME) for note in checkpoint.notes],
        "ordered": checkpoint.ordered,
    }  # fmt: skip
    return head, np.ascontiguousarray(checkpoint.weights, "<f4").tobytes()


_signatures: list[tuple[Any, SignatureIndex]] = []  # as of the index's files, once they have been read


def _relations(path: str, signatures: Path) -> dict[str, Any] | None:
    """By the index's signatures, read again where it has changed."""
    try:
        state = [(file.name, file.stat().st_mtime_ns) for file in sorted(signatures.glob("index.duckdb*"))]
        if not _signatures or _signatures[0][0] != state:
            _signatures[:] = [(state, SignatureIndex(signatures))]
        return _signatures[0][1].relatives(path).to_dict()
    except Exception:  # a file that has an answer keeps it
        return None
