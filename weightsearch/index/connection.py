"""DuckDB connections to an index's database, and what is said where one cannot be had or used."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.files import DATABASE_ENDINGS, DISK_FULL, is_disk_full, turnstile, when_unlocked
from weightsearch.index import schema

LOCK_WAIT_SECONDS = 5.0  # of a reader
TURN = ".write.lock.turn"  # where readers wait for a writer that waits
# The most rows of one of DuckDB's row groups. A commit merges small groups in memory: up to DuckDB's own 122,880 rows,
# `add` of 100,000 files takes half a gigabyte more. Where groups have fewer rows, millions of rows are read slowly.
GROUP_ROWS = 8_192


class Database:
    """`index.duckdb`, attached to a DuckDB of our own in memory for no longer than a `with` block, as `ix`.

    Attaching takes a fraction of a millisecond where opening takes ten. Nothing but this file and its log can be
    reached through the connection, so that a user's filter cannot read other files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, *, read_only: bool = True, wait_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """Waits up to five seconds, or `wait_seconds`, for another process's lock, then names its PID.

        Readers let a writer that waits go first.
        """
        with self._lock:
            connection = _take_idle(self.path) or self._connect()
            self._attach(connection, read_only, LOCK_WAIT_SECONDS if wait_seconds is None else wait_seconds)
            try:
                with schema.unchanging(connection) if read_only else nullcontext():
                    yield connection
            except duckdb.Error as error:  # a full disk, a damaged block
                raise WeightsearchError(_reason(self.path, error)) from error
            except DamagedCell as error:
                raise WeightsearchError(_damaged(self.path, str(error))) from error
            finally:
                self._detach(connection)

    def hash_of(self, text: str) -> np.uint64:
        """DuckDB's hash of a text, for which nothing has to be attached."""
        with self._lock:
            connection = _take_idle(self.path) or self._connect()
            try:
                return np.uint64(connection.execute("SELECT hash(?::VARCHAR)", [text]).fetchall()[0][0])
            finally:
                _put_idle(self.path, connection)

    @contextmanager
    def transaction(self, wait_seconds: float) -> Iterator[duckdb.DuckDBPyConnection]:
        """One commit, and one short hold of the database's lock."""
        with self.open(read_only=False, wait_seconds=wait_seconds) as connection:
            connection.begin()
            try:
                yield connection
                connection.commit()
            except BaseException:
                with suppress(duckdb.Error):  # some errors end the transaction by themselves
                    connection.rollback()
                raise

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(":memory:")
        path = str(self.path).replace("'", "''")
        files = ", ".join(f"'{path}{ending}'" for ending in DATABASE_ENDINGS)
        connection.execute(f"SET allowed_paths = [{files}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        _made.add(connection)
        return connection

    def _attach(self, connection: duckdb.DuckDBPyConnection, read_only: bool, wait_seconds: float) -> None:
        if not self.path.exists() and read_only:
            raise WeightsearchError(f"{self.path} is missing; restore it from a copy or make the index again")
        path = str(self.path).replace("'", "''")
        how = "READ_ONLY" if read_only else f"READ_WRITE, ROW_GROUP_SIZE {GROUP_ROWS}"
        statement = f"ATTACH '{path}' AS ix ({how})"
        use = "is being written by" if read_only else f"was read or written for {wait_seconds:.0f} s by"
        try:
            with turnstile(self.path.with_name(TURN), first=not read_only, wait_seconds=wait_seconds):
                when_unlocked(lambda: connection.execute(statement), self.path, wait_seconds, use)
        except duckdb.Error as error:
            raise WeightsearchError(_reason(self.path, error)) from error

    def _detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute("DETACH ix")
        except duckdb.Error:  # inside a failed transaction, or the database is beyond use: start anew next time
            connection.close()
        else:
            _put_idle(self.path, connection)


IDLE_KEPT = 4  # connections with nothing attached: making one takes as long as a question
_idle: list[tuple[Path, duckdb.DuckDBPyConnection]] = []  # the last used first
_idle_lock = threading.Lock()
_made: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
_of_parent: list[Any] = []


def _take_idle(path: Path) -> duckdb.DuckDBPyConnection | None:
    with _idle_lock:
        for entry in _idle:
            if entry[0] == path:
                _idle.remove(entry)
                return entry[1]
    return None


def _put_idle(path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    with _idle_lock:
        _idle[:] = [(path, connection), *_idle][:IDLE_KEPT]


def _forget_idle() -> None:
    """In a fork, which has none of the threads that a connection of its parent would wait for when it is freed."""
    global _idle_lock
    _idle_lock = threading.Lock()
    _of_parent.extend(_made)
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_idle)


BEYOND_USE = (duckdb.IOException, duckdb.FatalException, duckdb.SerializationException, duckdb.InternalException)


def _reason(path: Path, error: duckdb.Error) -> str:
    text = str(error)
    first = text.splitlines()[0]
    if is_disk_full(error):
        return f"cannot write {path}: {DISK_FULL}"
    if isinstance(error, BEYOND_USE) or "Corrupt" in first:  # a checksum that differs is a plain Error
        if path.exists() and not os.access(path, os.R_OK):
            return f"cannot read {path}: permission denied; ask its owner for the right to read it"
        if "Permission denied" in text or "read-only" in text.lower():
            return f"cannot write {path}: permission denied; the index is in a read-only place: copy it elsewhere"
        return _damaged(path, first)
    return f"{path}: {first}"


def _damaged(path: Path, what: str) -> str:
    return f"{path} is damaged ({what}); restore it from a copy or make the index again with `weightsearch train`"


class DamagedCell(WeightsearchError):
    """A cell does not hold what was written: DuckDB's checksums miss words of a block that changed places."""


T = TypeVar("T", dict[str, Any], list[Any])


def decoded(text: str | None, kind: type[T]) -> T:
    """What a cell's JSON says, an empty `kind` where there is none; raises DamagedCell where it is no `kind`."""
    try:
        value = json.loads(text) if text else kind()
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise DamagedCell(f"a cell of its tables holds no JSON {'object' if kind is dict else 'list'}")
    return value
