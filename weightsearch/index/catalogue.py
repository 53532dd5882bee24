"""The index's rows in DuckDB: the truth, embeddings included. FAISS files are made from it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import duckdb
import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.types import Neighbour, Target

LOCK_WAIT_SECONDS = 2.0
TARGETS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")  # columns that an index can judge by
SCHEMA = """
CREATE TABLE state (generation BIGINT NOT NULL);
CREATE TABLE checkpoints (
    number BIGINT PRIMARY KEY,     -- FAISS's id
    id VARCHAR NOT NULL,           -- content hash of the weights
    architecture VARCHAR NOT NULL, -- fingerprint
    dataset VARCHAR,
    run VARCHAR NOT NULL,
    epoch INTEGER,
    train_loss DOUBLE,
    train_accuracy DOUBLE,
    test_loss DOUBLE,
    test_accuracy DOUBLE,
    predicted_accuracy DOUBLE,
    split VARCHAR,                 -- the part of the encoder's fit its run was in: train, validation, test
    recipe VARCHAR,                -- JSON
    embedding BLOB NOT NULL,       -- float32, little endian
    UNIQUE (architecture, id)
);
"""


@dataclass(frozen=True)
class Rows:
    """Columns of new index rows, all of length n, for one architecture. `embedding` is `(n, D)` float32."""

    id: np.ndarray
    run: np.ndarray
    epoch: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    predicted_accuracy: np.ndarray
    split: np.ndarray
    recipe: np.ndarray  # JSON text
    embedding: np.ndarray
    dataset: str

    def __len__(self) -> int:
        return len(self.id)

    def distinct(self) -> Rows:
        """The first row of each id: equal weights (a run that stopped moving) are one checkpoint."""
        keep = np.sort(np.unique(self.id, return_index=True)[1])
        columns = {column.name: getattr(self, column.name)[keep] for column in fields(self) if column.name != "dataset"}
        return replace(self, **columns)


@contextmanager
def connect(path: Path, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """A short-lived connection; waits up to two seconds for another process's lock, then names its PID."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    wait = 0.02
    while True:
        try:
            connection = duckdb.connect(str(path), read_only=read_only)
            break
        except duckdb.IOException as error:
            text = str(error)
            if "onflicting lock" not in text:
                raise WeightsearchError(
                    f"{path} cannot be opened ({text.splitlines()[0]}); make the index again with `weightsearch train`"
                ) from error
            if time.monotonic() > deadline:
                holder = text.partition("PID ")[2].split(")")[0].split()[0] if "PID " in text else "unknown"
                raise WeightsearchError(
                    f"{path} is being written by another process (PID {holder}); try again when it is done"
                ) from error
            time.sleep(wait)
            wait = min(2 * wait, 0.2)
        except duckdb.Error as error:
            raise WeightsearchError(
                f"{path} is damaged ({str(error).splitlines()[0]}); make the index again with `weightsearch train`"
            ) from error
    try:
        yield connection
    except duckdb.Error as error:  # a full disk, a damaged block
        raise WeightsearchError(f"{path}: {str(error).splitlines()[0]}") from error
    finally:
        connection.close()


def create(path: Path, fingerprint: str, rows: Rows) -> None:
    """A new catalogue at generation 1 that holds `rows`, numbered from 0."""
    blobs = np.empty(len(rows), dtype=object)
    blobs[:] = [embedding.tobytes() for embedding in np.ascontiguousarray(rows.embedding, "<f4")]
    columns = {  # found by name in the statement below
        "number": np.arange(len(rows)),
        **{
            column.name: getattr(rows, column.name)
            for column in fields(rows)
            if column.name not in ("embedding", "dataset")
        },
        "embedding": blobs,
    }
    for name in ("id", "run", "split", "recipe"):
        columns[name] = columns[name].astype(object)
    with connect(path, read_only=False) as connection:
        connection.execute(SCHEMA)
        connection.begin()
        connection.execute("INSERT INTO state VALUES (1)")
        connection.register("new_rows", columns)
        connection.execute(
            "INSERT INTO checkpoints BY NAME SELECT *, ? AS architecture, ? AS dataset FROM new_rows",
            [fingerprint, rows.dataset],
        )
        connection.commit()


def values(connection: duckdb.DuckDBPyConnection, fingerprint: str, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `(n,)` and targets (test accuracies, say) `(n,)` of one architecture's rows."""
    columns = connection.execute(
        f"SELECT number, {_column(target)} AS value FROM checkpoints WHERE architecture = ? ORDER BY number",
        [fingerprint],
    ).fetchnumpy()
    return np.asarray(columns["number"], np.int64), np.asarray(columns["value"], np.float64)


def _column(target: Target) -> str:
    if target.column not in TARGETS:
        raise WeightsearchError(
            f"the index has no column {target.column} to judge by; make it again with `weightsearch train`"
        )
    return target.column


def embeddings(connection: duckdb.DuckDBPyConnection, fingerprint: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `(n,)` and embeddings `(n, D)` of one architecture's rows."""
    columns = connection.execute(
        "SELECT number, embedding FROM checkpoints WHERE architecture = ? ORDER BY number", [fingerprint]
    ).fetchnumpy()
    vectors = np.frombuffer(b"".join(map(bytes, columns["embedding"])), "<f4")
    return np.asarray(columns["number"], np.int64), vectors.reshape(len(columns["number"]), -1)


def neighbours(
    connection: duckdb.DuckDBPyConnection, numbers: np.ndarray, distances: np.ndarray, target: Target
) -> tuple[Neighbour, ...]:
    """The rows with these numbers and distances, in the order given."""
    found = connection.execute(
        f"SELECT number, id, test_accuracy, epoch, run, recipe, {_column(target)} FROM checkpoints "
        "WHERE number IN (SELECT unnest(?))",
        [numbers.tolist()],
    ).fetchall()
    by_number = {number: rest for number, *rest in found}
    return tuple(
        Neighbour(id, float(distance), accuracy, epoch, run, json.loads(recipe), value)
        for distance, (id, accuracy, epoch, run, recipe, value) in zip(
            distances, (by_number[number] for number in numbers.tolist()), strict=True
        )
    )
