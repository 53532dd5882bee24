"""Many small files read by several processes: what each holds comes back in the order that was given.

The processes open, check and sign files and send what is to be kept; the one that asked embeds and writes. What comes
back is what that one would have read itself. A process that dies costs nothing: its files are read once more, here.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from weightsearch.checkpoints.discovery import CheckpointFile
from weightsearch.checkpoints.remote.paths import RemotePath
from weightsearch.checkpoints.trackers import Trackers
from weightsearch.relations.store import SignedColumns
from weightsearch.search.file_records import FileRecord, RecordReader

MANY = 2_000  # files from which processes pay for their start
PROCESSES = 4  # at most: one that embeds and writes keeps about three of them busy
BATCH = 64  # files that a process is given at a time
PIECE_BYTES = 2**24  # of weights, after which what was read so far is sent
WAITING = 2  # pieces of a process that wait here
DEATHS = 10  # of processes that others take the place of
_PACKAGE = str(Path(__file__).parents[2])
_CHILD = f"import sys; sys.path.append(sys.argv[1]); from {__name__} import serve; serve()"

Signs = Mapping[str, tuple[int, int]]  # bytes and time of files when they were signed before
Question = tuple[Sequence[CheckpointFile], Signs]


@dataclass
class Piece:
    """What was read of files in a row: their records without signatures, and those by themselves."""

    records: list[FileRecord] = field(default_factory=list)
    signed: SignedColumns | None = None
    unread: dict[str, str] = field(default_factory=dict)  # sidecars that cannot be read, and why
    problems: dict[str, str] = field(default_factory=dict)  # what trackers wrote that cannot be read, and why
    error: Exception | None = None  # a bug, or no memory: it is raised where the files were asked for


def processes_for(files: Sequence[CheckpointFile], reader: RecordReader) -> int:
    """How many processes are to read files: none for few, for those of stores, and where a table tells of them.

    A table notices files that contest a row, which takes one reader for all.
    """
    if len(files) < MANY or reader.sources.given_path is not None or isinstance(files[0].path, RemotePath):
        return 0
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, PROCESSES) if count > 1 else 0


class ReadingProcesses:
    """Processes that read for `reader`."""

    def __init__(self, reader: RecordReader, count: int) -> None:
        self.reader = reader
        self._setup = pickle.dumps(for_another_process(reader))
        self._processes = [_Process(self._setup) for _ in range(count)]
        self._deaths = 0

    def read(self, files: Sequence[CheckpointFile], signed: Signs) -> Iterator[Piece]:
        """What `reader` would read of files, in their order, a piece after the other."""
        batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
        count = len(self._processes)
        for number, batch in enumerate(batches):
            self._processes[number % count].ask(batch, signed)
        for number, batch in enumerate(batches):
            done = 0
            for piece in self._processes[number % count].answers():
                for record, file in zip(piece.records, batch[done:], strict=False):
                    record.file = file
                done += len(piece.records)
                self._tell(piece)
                yield piece
            if done < len(batch):
                yield from read_pieces(self.reader, batch[done:], signed)
                self._replace(number % count, [(later, signed) for later in batches[number + count :: count]])

    def _tell(self, piece: Piece) -> None:
        """Takes over what is to be said of what was read."""
        if piece.error is not None:
            raise piece.error
        sources = self.reader.sources
        sources.unread.update(piece.unread)
        for place, problem in piece.problems.items():
            sources.trackers.problems.setdefault(place, problem)

    def _replace(self, place: int, questions: Sequence[Question]) -> None:
        """Puts a process in the place of one that has died. Where they die again and again, the place stays empty."""
        self._deaths += 1
        if self._deaths <= DEATHS:
            self._processes[place].end()
            self._processes[place] = _Process(self._setup)
            for files, signed in questions:
                self._processes[place].ask(files, signed)

    def end(self) -> None:
        for process in self._processes:
            process.end()


@contextmanager
def reading_processes(files: Sequence[CheckpointFile], reader: RecordReader) -> Iterator[ReadingProcesses | None]:
    """Processes for as long as the block lasts, None where this one had better read by itself."""
    count = processes_for(files, reader)
    if not count:
        yield None
        return
    processes = ReadingProcesses(reader, count)
    try:
        yield processes
    finally:
        processes.end()


def read_pieces(reader: RecordReader, files: Sequence[CheckpointFile], signed: Signs) -> Iterator[Piece]:
    """What a reader reads of files, sent on whenever its weights are many."""
    records: list[FileRecord] = []
    weight_bytes = 0
    for file in files:
        record = reader.read(file, signed)
        records.append(record)
        weight_bytes += 0 if record.weights is None else record.weights.nbytes
        if weight_bytes >= PIECE_BYTES:
            yield _piece(reader, records)
            records, weight_bytes = [], 0
    yield _piece(reader, records)


def _piece(reader: RecordReader, records: list[FileRecord]) -> Piece:
    signed = [record.signed for record in records if record.signed is not None]
    for record in records:
        record.signed = None
    return Piece(records, SignedColumns.of(signed))


def for_another_process(reader: RecordReader) -> RecordReader:
    """The same reader as it was before it read anything: what it has read of folders is functions."""
    return RecordReader(reader.architectures, replace(reader.sources, trackers=Trackers(), unread={}), reader.dataset)


class _Process:
    """A process that reads, with a thread that gives it files and one that takes what it sends."""

    def __init__(self, setup: bytes) -> None:
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, _PACKAGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | single,
            start_new_session=True,  # so that Ctrl-C reaches who asked alone
        )
        self._setup = setup
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answers: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def ask(self, files: Sequence[CheckpointFile], signed: Signs) -> None:
        self._questions.put((files, signed))

    def answers(self) -> Iterator[Piece]:
        """The pieces of one batch; they end early where the process has died."""
        while (content := self._answers.get()) is not None:
            piece: Piece | None = pickle.loads(content)
            if piece is None:  # the batch's end
                return
            yield piece
        self._answers.put(None)  # for whoever asks once more

    def _write(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended
            send(self._process.stdin, self._setup)
            while (question := self._questions.get()) is not None:
                files, signed = question
                places = {str(file.place) for file in files} if signed else set()
                question = list(files), {place: signed[place] for place in places & signed.keys()}
                send(self._process.stdin, pickle.dumps(question))

    def _read(self) -> None:
        assert self._process.stdout is not None
        while (content := receive(self._process.stdout)) is not None and not self._ended.is_set():
            self._answers.put(content)
        self._answers.put(None)

    def end(self) -> None:
        """Ends it now: it writes nothing, so that nothing is lost."""
        self._ended.set()
        self._process.kill()
        self._process.wait()
        self._questions.put(None)
        while self._threads[1].is_alive():  # until its queue has room for its end
            with suppress(queue.Empty):
                self._answers.get(timeout=0.01)
        self._threads[0].join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


def send(file: IO[bytes], content: bytes) -> None:
    """Writes a message, its length before it."""
    file.write(len(content).to_bytes(8, "little"))
    file.write(content)
    file.flush()


def receive(file: IO[bytes]) -> bytes | None:
    """The next whole message, None where there is none."""
    try:
        head = file.read(8)
        size = int.from_bytes(head, "little")
        content = file.read(size) if len(head) == 8 else b""
    except (OSError, ValueError):
        return None
    return content if len(head) == 8 and len(content) == size else None


def serve() -> None:
    """What such a process does, until there are no more questions on its standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    questions = sys.stdin.buffer
    setup = receive(questions)
    if setup is None:
        return
    reader: RecordReader = pickle.loads(setup)
    with suppress(BrokenPipeError):  # who asked is gone
        while (question := receive(questions)) is not None:
            files, signed = pickle.loads(question)
            for piece in _told_pieces(reader, files, signed):
                send(answers, pickle.dumps(piece))


def _told_pieces(reader: RecordReader, files: Sequence[CheckpointFile], signed: Signs) -> Iterator[Piece | None]:
    """A batch's pieces as they are sent: with what is to be said and without the files, which the asker has."""
    unread, problems = reader.sources.unread, reader.sources.trackers.problems
    try:
        for piece in read_pieces(reader, files, signed):
            for record in piece.records:
                record.file = _THE_ASKERS
            yield replace(piece, unread=dict(unread), problems=dict(problems))
            unread.clear()
            problems.clear()
    except Exception as error:
        yield Piece(error=error)
    yield None


_THE_ASKERS: Any = None
