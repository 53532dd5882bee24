"""Readers without a pause beside two writers: who waits how long, and what the readers see."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.common import Ended, Report, in_child
from tests.index.test_store import DENSE, make_index, make_rows, more_rows
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore, add_rows, remove_rows, update_where

READERS = 4
FINGERPRINT = DENSE.fingerprint


def read(path: Path, seconds: float, say: Callable[[Any], None]) -> None:
    index = IndexStore.open(path)
    generator = np.random.default_rng(0)
    asked, longest, errors = 0, 0.0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            index.search(FINGERPRINT, generator.standard_normal(8).astype(np.float32), 5)
        except WeightsearchError as error:
            errors.append(str(error)[:200])
        asked += 1
        longest = max(longest, time.monotonic() - start)
    say(["reader", asked, longest, errors[:3]])


def write(path: Path, seconds: float, say: Callable[[Any], None], first: int = 10_000) -> None:
    changes, longest, errors = 0, 0.0, []
    kept: set[str] = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        first += 10
        try:
            rows = more_rows(5, first, seed=first)
            add_rows(path, FINGERPRINT, rows)
            kept |= set(rows.id.tolist())
            if changes % 5 == 3:
                update_where(path, "number % 7 = 0", {"team": str(first)})
            if changes % 5 == 4:
                remove_rows(path, ids=rows.id.tolist())
                kept -= set(rows.id.tolist())
        except WeightsearchError as error:
            errors.append(str(error)[:200])
        changes += 1
        longest = max(longest, time.monotonic() - start)
    lost = kept - set(IndexStore.open(path).table(FINGERPRINT, ["id"])["id"])
    errors += [f"{len(lost)} acknowledged rows are lost"] if lost else []
    say(["writer", changes, longest, errors[-3:]])


def write_too(path: Path, seconds: float, say: Callable[[Any], None]) -> None:
    write(path, seconds, say, first=10_000_000)


def attack(report: Report, folder: Path, draw: random.Random, until: float) -> None:
    """All of them at once until the time is over."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index"
    in_child(lambda say: make_index(path, make_rows(2000)))
    seconds = max(until - time.monotonic(), 3.0)
    ended: list[Ended] = []
    works = [*[read] * READERS, write, write_too]
    threads = [
        threading.Thread(
            target=lambda work=work: ended.append(in_child(lambda say: work(path, seconds, say), limit=seconds + 60))
        )
        for work in works
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in ended:
        if not child.said or child.said[-1][0] not in ("reader", "writer"):
            report.finding("waits", f"a child ended: {child.said[-1:]}, signal {child.signal}")
            continue
        who, count, longest, errors = child.said[-1]
        report.counts[f"{who}s' calls"] += count
        report.most(f"longest wait of a {who} in seconds", longest)
        for error in errors:
            report.finding("waits", f"a {who} was refused: {error}")
