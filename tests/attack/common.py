"""What the parts of the attack share: children that may die, and the figures and findings of a run."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD_SECONDS = 60.0
NEAR_MIB = 50.0


@dataclass
class Report:
    """Counts by name, the greatest of what is measured, and findings; each finding's input lies in `folder`."""

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    greatest: dict[str, float] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def most(self, name: str, value: float) -> None:
        self.greatest[name] = max(self.greatest.get(name, 0.0), round(value, 3))

    def finding(self, part: str, text: str, input: bytes | None = None, suffix: str = "") -> None:
        """Keeps the first of each text; the others are counted."""
        self.counts["findings"] += 1
        if any(kept["text"] == text and kept["part"] == part for kept in self.findings):
            return
        kept = {"part": part, "text": text}
        if input is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{part}-{len(self.findings)}{suffix}"
            path.write_bytes(input)
            kept["input"] = path.name
        self.findings.append(kept)

    def to_dict(self) -> dict[str, Any]:
        return {"counts": dict(sorted(self.counts.items())), "greatest": self.greatest, "findings": self.findings}


def peak_mib() -> float:
    """The most memory that this process had since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def reset_peak() -> None:
    """Where the most is far more than what there is: it takes a while."""
    status = Path("/proc/self/status").read_text()
    most, now = (int(status.partition(f"{name}:")[2].split()[0]) / 1024 for name in ("VmHWM", "VmRSS"))
    if most - now > NEAR_MIB:
        Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class Ended:
    """How a child ended: what it said, line by line, and the signal that ended it (0: none)."""

    said: list[Any]
    signal: int
    seconds: float


def in_child(
    work: Callable[[Callable[[Any], None]], object], *, kill_after: float | None = None, limit: float = CHILD_SECONDS
) -> Ended:
    """Forks, runs `work(say)`, whose every `say(value)` arrives as JSON, and kills it after `kill_after` seconds.

    The clock starts at the child's first word. A child that runs beyond `limit` is killed, too.
    """
    start = time.monotonic()
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.freeze()  # what the parent left to be freed may need its threads
        os.close(reads)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

        def say(value: Any) -> None:
            os.write(writes, json.dumps(value).encode() + b"\n")

        try:
            work(say)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            say(["error", type(error).__name__, str(error)[:500], f"{Path(place.filename).name}:{place.lineno}"])
        os._exit(0)
    os.close(writes)
    content = b""
    deadline = start + limit
    while True:
        ready, _, _ = select.select([reads], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            kill_after, deadline = None, time.monotonic() + 10
            continue
        part = os.read(reads, 2**16)
        if not part:
            break
        if not content and kill_after is not None:
            deadline = time.monotonic() + kill_after
        content += part
    os.close(reads)
    _, status = os.waitpid(pid, 0)
    lines = [line for line in content.split(b"\n") if line.endswith((b"]", b"}", b'"'))]
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Ended([json.loads(line) for line in lines], ended, time.monotonic() - start)
