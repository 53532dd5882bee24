"""What a reader keeps of an index's database between questions, and how it sees that it still is so.

Attaching the database and asking it takes ten times as long as a search: who asks again and again, as a server does,
does so only for what it has not read of this generation yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np

from weightsearch.errors import WeightsearchError

SETTLED_SECONDS = 2.5  # beyond the ticks of file systems' clocks, of which FAT's are the longest
ROWS_KEPT = 5_000
MASKS_BYTES = 2**26
MASKS_FEWEST = 2
IDS_LARGEST = 1_000_000  # rows
HEX = 16
K = TypeVar("K")
V = TypeVar("V")


class NotKept(WeightsearchError):
    """What is asked is not in memory; the question is asked again, of the database."""


class Watch:
    """Whether a database's files are as when they were last read: the same inodes, sizes and times.

    Two changes within one tick of a file system's clock may leave the same time. So a read counts only when the times
    that it saw had been seen `SETTLED_SECONDS` before, too; git calls a younger one racy
    (https://git-scm.com/docs/racy-git).
    """

    def __init__(self, path: Path) -> None:
        self._files = (path, path.with_name(f"{path.name}.wal"))
        self._seen: tuple[Any, float] = (None, 0.0)  # the files' states, and when they were seen first
        self._settled: Any = None

    def has_read(self) -> None:
        """To be called while the database is attached, when nobody writes."""
        states = self._states()
        if states != self._seen[0]:
            self._seen = (states, time.monotonic())
        self._settled = states if time.monotonic() - self._seen[1] >= SETTLED_SECONDS else None

    @property
    def is_settled(self) -> bool:
        """Whether what was read last is worth keeping."""
        return self._settled is not None

    def is_unchanged(self) -> bool:
        return self._settled is not None and self._states() == self._settled

    def _states(self) -> tuple[tuple[int, int, int] | None, ...]:
        states: list[tuple[int, int, int] | None] = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                states.append(None)
            else:
                states.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(states)


@dataclass
class Kept:
    """What was read of one generation: answers have rows in common, and so have the answers of one day."""

    generation: int
    rows: dict[int, Any] = field(default_factory=dict)  # by number
    ends: dict[tuple[str, str], Any] = field(default_factory=dict)  # of runs, by architecture and name
    descriptions: dict[tuple[str, str], np.ndarray | None] = field(default_factory=dict)  # by architecture and id
    ids: dict[str, np.ndarray] = field(default_factory=dict)  # by architecture, as numbers, ascending
    masks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # by architecture and condition
    hashes: dict[str, np.uint64] = field(default_factory=dict)  # of names of runs and datasets

    def values(self, table: dict[K, V], keys: Sequence[K], read: Callable[[list[K]], dict[K, V]]) -> dict[K, V]:
        """What one of the tables has for `keys`, or else `read` gives for those that it lacks.

        A table starts anew where it has many.
        """
        values = {key: table[key] for key in keys if key in table}
        lacking = [key for key in keys if key not in values]
        if lacking:
            added = read(lacking)
            values |= added
            if len(table) > ROWS_KEPT:
                table.clear()
            table.update(added)
        return values

    def keep_mask(self, key: tuple[str, str], mask: np.ndarray) -> None:
        most = max(MASKS_FEWEST, MASKS_BYTES // max(1, len(mask)))
        while len(self.masks) >= most:
            self.masks.pop(next(iter(self.masks)))
        self.masks[key] = mask


def ids_of(connection: duckdb.DuckDBPyConnection, fingerprint: str) -> np.ndarray | None:
    """An architecture's ids as numbers `(n,)` uint64, ascending; None where one is none."""
    stored = connection.execute("SELECT id FROM ix.checkpoints WHERE architecture = ?", [fingerprint]).fetchall()
    if any(len(id) != HEX for (id,) in stored):
        return None
    try:
        return np.sort(np.array([int(id, HEX) for (id,) in stored], np.uint64))
    except ValueError:
        return None


def has_id(ids: np.ndarray, id: str) -> bool:
    """Whether an id of 16 digits is among ids as `ids_of` has them."""
    number = np.uint64(int(id, HEX))
    at = int(np.searchsorted(ids, number))
    return at < len(ids) and bool(ids[at] == number)
