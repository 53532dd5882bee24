"""The worker processes of `build_zoo`: started, fed, listened to, and ended whatever happens."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from weightsearch.errors import WeightsearchError
from weightsearch.zoo.workers.messages import Group, Setup, TrainingJob


def train_jobs(
    setup: Setup,
    jobs: Sequence[TrainingJob],
    count: int,
    *,
    on_epoch: Callable[[int], None],
    on_group: Callable[[TrainingJob, Group], None],
) -> None:
    """Have `count` workers train the jobs.

    Args:
        on_epoch: called with the number of networks that have advanced by one epoch.
        on_group: called with each finished job; the weights are in the job's file, which it takes away.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the answer at hand is dealt with.
        WeightsearchError, OSError: what went wrong in a worker.
    """
    answers: _Answers = queue.SimpleQueue()
    workers: list[_Worker] = []
    waiting = iter(jobs)
    left = len(jobs)
    ready = 0

    def feed(worker: _Worker) -> None:
        worker.job = next(waiting, None)
        if worker.job is not None:
            worker.send(worker.job)

    try:
        with _interruptions(answers) as interrupted:
            for _ in range(count):
                workers.append(_Worker(setup, answers))
            while left:
                worker, answer = answers.get()
                if worker is None or interrupted.is_set():
                    raise KeyboardInterrupt
                match answer:
                    case {"kind": "ready"}:
                        ready += 1
                        if ready == count:  # the maps stay; gone now, the files cannot be left behind by a kill
                            for file in Path(setup.data).iterdir():
                                file.unlink()
                        feed(worker)
                    case {"kind": "epoch", "networks": networks}:
                        on_epoch(networks)
                    case {"kind": "done", "group": content}:
                        job = worker.job
                        assert job is not None
                        feed(worker)  # first, so that it need not wait
                        on_group(job, Group.from_dict(content))
                        left -= 1
                    case {"kind": "error", "text": text}:
                        raise WeightsearchError(text)
                    case {"kind": "os-error", "errno": number, "text": text}:
                        raise OSError(number, text)
                    case {"kind": "bug", "text": text}:
                        raise RuntimeError(f"a worker failed:\n{text}")
                    case _:
                        raise WeightsearchError(_end(worker.process.wait()))
    finally:
        for worker in workers:
            worker.kill()
        for job in jobs:
            Path(job.path).unlink(missing_ok=True)


def _end(code: int) -> str:
    if code == -getattr(signal, "SIGKILL", 9):  # Windows has no such signal
        return "a worker was killed, probably for want of memory: use fewer --workers and run the same command again"
    return f"a worker ended unexpectedly (exit code {code}): run the same command again"


@contextmanager
def _interruptions(answers: _Answers) -> Iterator[threading.Event]:
    """Ctrl-C sets the event and wakes the reader of `answers`, so that it cannot break into a commit.

    A second Ctrl-C interrupts at once. Outside the main thread, or where somebody else handles Ctrl-C, nothing changes.
    """
    event = threading.Event()
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        answers.put((None, None))  # a SimpleQueue may be used in a handler

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Worker:
    """A worker process; a thread puts its answers into the parent's queue, and None when it has ended."""

    def __init__(self, setup: Setup, answers: _Answers) -> None:
        package = str(Path(__file__).parents[3])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "weightsearch.zoo.workers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches this process alone
        )
        self.job: TrainingJob | None = None

        def read() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if line.endswith("\n"):  # or it was killed in the middle of it
                    answers.put((self, json.loads(line)))
            answers.put((self, None))

        self.thread = threading.Thread(target=read, daemon=True)
        self.thread.start()
        self.send(setup)

    def send(self, message: Setup | TrainingJob) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; the thread says so
            self.process.stdin.write(message.to_json() + "\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End it now. It never publishes anything itself, so nothing is lost but the group it was at."""
        self.process.kill()
        self.process.wait()
        self.thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


_Answers = queue.SimpleQueue[tuple[_Worker | None, dict[str, Any] | None]]
