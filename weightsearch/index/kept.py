"""What a reader keeps of an index's database between questions, and how it sees that it still is so.

Attaching the database and asking it takes ten times as long as a search: who asks again and again, as a server does,
does so only for what it has not read of this generation yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np

from weightsearch.index import checks, database, filters
from weightsearch.index.connection import decoded
from weightsearch.index.database import Columns
from weightsearch.types import Target, epoch_number

SETTLED_SECONDS = 2.5  # beyond the ticks of file systems' clocks, of which FAT's are the longest
ROWS_KEPT = 5_000
MASKS_BYTES = 2**26
MASKS_FEWEST = 2
IDS_LARGEST = 1_000_000  # rows
HEX = 16
K = TypeVar("K")
V = TypeVar("V")
Connect = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]


class NotKept(Exception):
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
    epochs: set[str] = field(default_factory=set)  # architectures whose epochs were verified
    descriptions: dict[tuple[str, str], np.ndarray | None] = field(default_factory=dict)  # by architecture and id
    ids: dict[str, np.ndarray | None] = field(default_factory=dict)  # by architecture, as numbers, ascending
    masks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # by architecture and condition
    hashes: dict[str, np.uint64] = field(default_factory=dict)  # of names of runs and datasets

    def rows_of(self, connect: Connect, columns: Columns, numbers: Sequence[int]) -> dict[int, Any]:
        """What a `Neighbour` is made of, by number: id, accuracy, epoch, run, recipe, dataset, metadata, source."""

        def read(lacking: list[int]) -> dict[int, Any]:
            with connect() as connection:
                rows = connection.execute(
                    "SELECT number, id, test_accuracy, epoch, run, recipe, dataset, metadata, source, "
                    f"{columns.is_sound} FROM {columns.table} WHERE number IN ({','.join(map(str, lacking))})"
                ).fetchall()
                checks.expect([len(rows) == len(lacking), *(is_sound for *_, is_sound in rows)])
            return {
                number: (
                    *(id, accuracy, epoch_number(epoch), run, decoded(recipe, dict), dataset),
                    *(decoded(metadata, dict), source),
                )
                for number, id, accuracy, epoch, run, recipe, dataset, metadata, source, _ in rows
            }

        return self._values(self.rows, numbers, read)

    def ends_of(
        self, connect: Connect, fingerprint: str, runs: Sequence[str], target: Target, table: str
    ) -> dict[str, tuple[float, float, int]]:
        """As `database.finals` has them."""

        def read(lacking: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[float, float, int] | None]:
            with connect() as connection:
                if fingerprint not in self.epochs:  # what they stand beside was verified when it was loaded
                    checks.verify(connection, fingerprint, ["epoch"])
                    self.epochs.add(fingerprint)
                ends = database.finals(connection, fingerprint, [run for _, run in lacking], target, table)
            return {key: ends.get(key[1]) for key in lacking}

        kept = self._values(self.ends, [(fingerprint, run) for run in runs], read)
        return {run: end for (_, run), end in kept.items() if end is not None}

    def descriptions_of(self, connect: Connect, fingerprint: str, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """As `database.descriptions` has them."""

        def read(lacking: list[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray | None]:
            with connect() as connection:
                descriptions = database.descriptions(connection, fingerprint, [id for _, id in lacking])
            return {key: descriptions.get(key[1]) for key in lacking}

        kept = self._values(self.descriptions, [(fingerprint, id) for id in ids], read)
        return {id: description for (_, id), description in kept.items() if description is not None}

    def hash_of(self, name: str, read: Callable[[str], np.uint64]) -> np.uint64:
        """Of the name of a run or a dataset."""
        return self._values(self.hashes, [name], lambda names: {one: read(one) for one in names})[name]

    def passing(self, connect: Connect, fingerprint: str, where: str, numbers: np.ndarray) -> np.ndarray:
        """Which of the architecture's rows `numbers (n,)` meet a condition: `(n,)` bool."""
        key = (fingerprint, where)
        if key not in self.masks:
            with connect() as connection:
                passing = filters.passing(connection, fingerprint, where)
            mask = np.zeros(len(numbers), bool)
            mask[np.searchsorted(numbers, passing)] = True
            while len(self.masks) >= max(MASKS_FEWEST, MASKS_BYTES // max(1, len(mask))):
                self.masks.pop(next(iter(self.masks)))
            self.masks[key] = mask
        return self.masks[key]

    def lacks(self, connect: Connect, fingerprint: str, id: str) -> bool:
        """Whether no row of the architecture has this id of 16 digits; False, too, where ids cannot be kept."""
        if fingerprint not in self.ids:
            with connect() as connection:
                self.ids[fingerprint] = _ids_of(connection, fingerprint)
        ids = self.ids[fingerprint]
        if ids is None:
            return False
        number = np.uint64(int(id, HEX))
        at = int(np.searchsorted(ids, number))
        return at == len(ids) or bool(ids[at] != number)

    @staticmethod
    def _values(table: dict[K, V], keys: Sequence[K], read: Callable[[list[K]], dict[K, V]]) -> dict[K, V]:
        """What one of the tables has for `keys`, or else `read` gives; a table starts anew where it has many."""
        values = {key: table[key] for key in keys if key in table}
        lacking = [key for key in keys if key not in values]
        if lacking:
            added = read(lacking)
            values |= added
            if len(table) > ROWS_KEPT:
                table.clear()
            table.update(added)
        return values


def _ids_of(connection: duckdb.DuckDBPyConnection, fingerprint: str) -> np.ndarray | None:
    """An architecture's ids as numbers `(n,)` uint64, ascending; None where one is none."""
    checks.verify(connection, fingerprint, ["id"])
    stored = connection.execute("SELECT id FROM ix.checkpoints WHERE architecture = ?", [fingerprint]).fetchall()
    if any(len(id) != HEX for (id,) in stored):
        return None
    try:
        return np.sort(np.array([int(id, HEX) for (id,) in stored], np.uint64))
    except ValueError:
        return None
