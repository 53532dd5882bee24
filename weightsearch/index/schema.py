"""The database's tables, and what a reader compares at each call: which index they are of, and how often it changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

ARCHITECTURE = "architecture"
# DuckDB's hash of some values: another version of DuckDB may hash in another way, and then its checksums say nothing.
HASHING = "hash(7::BIGINT, 'short', 'a text of over twelve letters', 0.5::DOUBLE, NULL::VARCHAR, 'bytes'::BLOB)"
SCHEMA = f"""
CREATE TABLE ix.state (
    generation BIGINT NOT NULL, next_number BIGINT NOT NULL, identity VARCHAR NOT NULL,
    hashing UBIGINT,               -- what `HASHING` is to who wrote the checksums; NULL where there are none
    digests VARCHAR                -- JSON: checksums of columns by architecture (see `checks`)
);
CREATE TABLE ix.keys (name VARCHAR PRIMARY KEY, type VARCHAR NOT NULL);  -- of recipes and metadata, for filters
CREATE TABLE ix.checkpoints (
    number BIGINT PRIMARY KEY,     -- FAISS's id; never given twice
    id VARCHAR NOT NULL,           -- content hash of the weights
    architecture VARCHAR NOT NULL, -- fingerprint
    dataset VARCHAR,
    run VARCHAR,
    epoch DOUBLE,                  -- may be a fraction
    train_loss DOUBLE,
    train_accuracy DOUBLE,
    test_loss DOUBLE,
    test_accuracy DOUBLE,
    predicted_accuracy DOUBLE,
    split VARCHAR,                 -- the part of the encoder's fit its run was in: train, validation, test
    recipe VARCHAR,                -- JSON
    source VARCHAR,                -- where the weights can be found again: a file, or zoo-path#run/epoch
    metadata VARCHAR,              -- JSON, the user's own columns
    description BLOB,              -- of the layers (see `uncertainty.novelty`), float32
    embedding BLOB NOT NULL,       -- float32, little endian
    shown_hash UBIGINT,            -- checksums of the row's columns (see `checks`)
    other_hash UBIGINT,
    embedding_hash UBIGINT,
    description_hash UBIGINT,
    UNIQUE (architecture, id)
);
INSERT INTO ix.state VALUES (0, 0, uuid(), {HASHING}, '{{}}');
"""
NUMBERS = {  # columns that hold numbers, with NaN where unknown
    "epoch": np.float64,
    "train_loss": np.float64,
    "train_accuracy": np.float64,
    "test_loss": np.float64,
    "test_accuracy": np.float64,
    "predicted_accuracy": np.float64,
}
TEXTS = ("id", "dataset", "run", "split", "recipe", "source", "metadata")
COLUMNS = ("number", *TEXTS[:3], *NUMBERS, *TEXTS[3:])  # of a row, the embedding aside
ADDED_IN_FORMAT_2 = {"source": "VARCHAR", "metadata": "VARCHAR", "description": "BLOB"}


def first(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()) -> Any:
    """The first row of a query's result, None where there is none. All are fetched: DuckDB waits for the last one."""
    rows = connection.execute(query, parameters).fetchall()
    return rows[0] if rows else None


@dataclass(frozen=True)
class DatabaseState:
    """What a reader compares at each call with what it has kept in memory."""

    generation: int  # counts the committed changes
    identity: str | None  # of the index, drawn when it was made; None before format 3
    hashing: int | None = None  # see `HASHING`
    digests: str | None = None


# By connections to a database that nobody changes as long as they have it; None where it was not read yet.
_of_readers: weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, DatabaseState | None] = weakref.WeakKeyDictionary()


@contextmanager
def unchanging(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """While a connection has its database attached for reading: `state` is read once, as a question needs it often."""
    _of_readers[connection] = None
    try:
        yield
    finally:
        _of_readers.pop(connection, None)


def state(connection: duckdb.DuckDBPyConnection) -> DatabaseState:
    """As of the connection's snapshot."""
    if (kept := _of_readers.get(connection)) is not None:
        return kept
    current = _read_state(connection)
    if connection in _of_readers:
        _of_readers[connection] = current
    return current


def _read_state(connection: duckdb.DuckDBPyConnection) -> DatabaseState:
    result = connection.execute("SELECT * FROM ix.state")
    values = dict(zip([name for name, *_ in result.description or ()], result.fetchall()[0], strict=True))
    names = ("identity", "hashing", "digests")
    return DatabaseState(int(values["generation"]), *(values.get(name) for name in names))


def generation(connection: duckdb.DuckDBPyConnection) -> int:
    """Counts the committed changes."""
    return state(connection).generation


def is_current(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the database has this format's tables."""
    return state(connection).identity is not None
