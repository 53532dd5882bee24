"""The index's rows in DuckDB: the truth, embeddings included. FAISS files are made from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import duckdb
import numpy as np

from weightsearch.errors import UsageError
from weightsearch.files import clean_text
from weightsearch.index import checks
from weightsearch.index.schema import (  # noqa: F401 - many names of one thing
    ADDED_IN_FORMAT_2,
    ARCHITECTURE,
    COLUMNS,
    NUMBERS,
    SCHEMA,
    TEXTS,
    DatabaseState,
    first,
    generation,
    is_current,
    state,
)
from weightsearch.types import Target

ROWS_AT_A_TIME = 100_000  # of embeddings, each of which is a Python object on its way
EXACT = 2**53  # the largest whole number that float64 counts up to


@dataclass(frozen=True)
class Rows:
    """Columns of new index rows, each `(n,)`, for one architecture. `embedding` is `(n, D)` float32.

    Numbers are NaN and texts None where unknown. A row without accuracy is searchable, and neither good nor bad.
    """

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
    dataset: str | np.ndarray | None  # of all rows, or of each
    source: np.ndarray | None = None  # where the weights can be found again: a file, or zoo-path#run/epoch
    metadata: np.ndarray | None = None  # JSON text: the user's own columns
    description: np.ndarray | None = None  # (n, F) float32, of the layers

    def __len__(self) -> int:
        return len(self.id)

    def take(self, chosen: np.ndarray) -> Rows:
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        return replace(
            self, **{name: value[chosen] for name, value in columns.items() if isinstance(value, np.ndarray)}
        )

    def distinct(self) -> Rows:
        """The first row of each id: equal weights (a run that stopped moving) are one checkpoint."""
        return self.take(np.sort(np.unique(self.id, return_index=True)[1]))

    def columns(self) -> dict[str, np.ndarray]:
        """As DuckDB takes them: object arrays of str or None, floats, and embeddings as bytes."""
        columns: dict[str, np.ndarray] = {name: np.asarray(getattr(self, name), kind) for name, kind in NUMBERS.items()}
        for name in TEXTS:
            value = getattr(self, name)
            columns[name] = np.full(len(self), value, object) if not isinstance(value, np.ndarray) else _texts(value)
        for name in ("embedding", "description"):
            columns[name] = np.full(len(self), None, object)
            if (vectors := getattr(self, name)) is not None:
                columns[name][:] = [row.tobytes() for row in np.ascontiguousarray(vectors, "<f4")]
        return columns


def _texts(values: np.ndarray) -> np.ndarray:
    texts = np.empty(len(values), object)
    texts[:] = [None if value is None else clean_text(str(value)) for value in values.tolist()]
    return texts


def rows_sql(connection: duckdb.DuckDBPyConnection) -> str:
    """The table of rows, as this format has it where the database is of an older one."""
    if is_current(connection):
        return "ix.checkpoints"
    missing = _missing_columns(connection)
    nulls = "".join(f", NULL::{ADDED_IN_FORMAT_2[name]} AS {name}" for name in missing)
    whole = "CASE split WHEN 'calibratio' THEN 'calibration' ELSE split END AS split"  # format 2 cut it short
    return f"(SELECT * REPLACE ({whole}, epoch::DOUBLE AS epoch){nulls} FROM ix.checkpoints)"


def _missing_columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Those that format 1 lacked."""
    header = connection.execute("SELECT * FROM ix.checkpoints LIMIT 0")  # far quicker than DuckDB's own catalogue
    present = {name for name, *_ in header.description or ()}
    header.fetchall()
    return [name for name in ADDED_IN_FORMAT_2 if name not in present]


def target_sql(target: Target) -> str:
    """The target as an SQL expression over a row: one of the rows' numbers or a column of the user's."""
    if target.column in NUMBERS:
        return target.column
    return json_sql(target.column, "DOUBLE")


def json_sql(key: str, kind: str) -> str:
    """A user's column or a recipe's key as an SQL expression over a row, metadata first."""
    pointer = "'/" + key.replace("~", "~0").replace("/", "~1").replace("'", "''") + "'"  # RFC 6901, for any letters
    return f"TRY_CAST(coalesce(metadata->>{pointer}, recipe->>{pointer}) AS {kind})"


@dataclass(frozen=True)
class Columns:
    """What the planner needs of all rows of one architecture, each `(n,)`, ordered by number."""

    generation: int
    numbers: np.ndarray  # int64, ascending
    values: np.ndarray  # float64 of the target, NaN where unknown
    datasets: np.ndarray  # uint64, hash of the dataset's name
    runs: np.ndarray  # uint64, hash of the run's name
    table: str  # the rows as SQL
    is_sound: str  # as `checks.row_sql` says of a row's columns
    only_dataset: str | None  # of all rows; None where they are of several, or of none that is known
    saved: bool = False  # whether they are from files beside the vectors

    def __len__(self) -> int:
        return len(self.numbers)


def columns(
    connection: duckdb.DuckDBPyConnection, fingerprint: str, target: Target, condition: str | None = None
) -> Columns:
    """Of all rows of an architecture, or of those under a condition in SQL."""
    table = rows_sql(connection)
    chosen = f"FROM {table} WHERE architecture = ?" + ("" if condition is None else f" AND {condition}")
    if condition is None:
        checks.verify_target(connection, fingerprint, target)
    stored = connection.execute(
        f"SELECT number, coalesce({target_sql(target)}, 'NaN') AS value, hash(dataset) AS dataset, "
        f"{checks.cell_sql('run')} AS run {chosen}",
        [fingerprint],
    ).fetchnumpy()
    numbers, values = np.asarray(stored["number"], np.int64), np.asarray(stored["value"], np.float64)
    datasets, runs = (np.asarray(stored[name], np.uint64) for name in ("dataset", "run"))
    found = {"dataset": checks.digest(numbers, datasets), "run": checks.digest(numbers, runs)}
    if target.column in NUMBERS:
        found[target.column] = checks.digest(numbers, values)
    if condition is None:
        checks.compare(connection, fingerprint, found)
    if not (numbers[1:] > numbers[:-1]).all():  # they mostly come sorted, and DuckDB's sorting takes long
        order = np.argsort(numbers)
        numbers, values, datasets, runs = numbers[order], values[order], datasets[order], runs[order]
    only = None
    if len(datasets) and (datasets == datasets[0]).all():
        (only,) = first(connection, f"SELECT dataset {chosen} LIMIT 1", [fingerprint])
    is_sound = checks.row_sql(connection, "shown_hash")
    return Columns(generation(connection), numbers, values, datasets, runs, table, is_sound, only)


def row(connection: duckdb.DuckDBPyConnection, fingerprint: str, number: int) -> tuple[dict[str, Any], np.ndarray]:
    """One row's columns by name, numbers NaN and texts None where unknown, and its embedding `(D,)`."""
    is_sound = checks.row_sql(connection, "shown_hash", "other_hash", "embedding_hash")
    stored = first(
        connection,
        f"SELECT {', '.join(COLUMNS)}, embedding, {is_sound} "
        f"FROM {rows_sql(connection)} WHERE architecture = ? AND number = ?",
        [fingerprint, number],
    )
    checks.expect([stored is not None])
    *values, embedding, agree = stored
    checks.expect([agree])
    columns = {
        name: math.nan if value is None and name in NUMBERS else value
        for name, value in zip(COLUMNS, values, strict=True)
    }
    return columns, np.frombuffer(embedding, "<f4")


def hash_of(connection: duckdb.DuckDBPyConnection, text: str) -> np.uint64:
    """As in `Columns.runs`."""
    row = first(connection, "SELECT hash(?::VARCHAR)", [text])
    return np.uint64(row[0])


def table(
    connection: duckdb.DuckDBPyConnection,
    fingerprint: str,
    names: Sequence[str],
    types: dict[str, str],
    numbers: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Columns by name, each `(n,)`, ordered by number: of one architecture's rows, or of those in `numbers`.

    Numbers come as float64 with NaN, texts as objects with None, and so do whole numbers that float64 cannot hold.
    `types` are those of recipe keys and user columns.
    """
    expressions: list[str] = []
    for name in names:
        position = f"column_{len(expressions)}"  # a user's column may be called anything
        if name in COLUMNS:
            expressions.append(f"{name} AS {position}")
        elif name in types:
            expressions.append(f"{json_sql(name, types[name])} AS {position}")
        else:
            listed = ", ".join([*COLUMNS, *types])
            raise UsageError(f"the index has no column {name}; it has {listed}")
    checks.verify(connection, fingerprint, read_from(names))
    among = "" if numbers is None else f"AND number IN ({','.join(map(str, numbers.tolist())) or 'NULL'})"
    stored = connection.execute(
        f"SELECT {', '.join(['number AS __number', *expressions])} FROM {rows_sql(connection)} "
        f"WHERE architecture = ? {among} ORDER BY __number",
        [fingerprint],
    ).fetchnumpy()
    return {name: _plain(stored[f"column_{i}"], name not in COLUMNS) for i, name in enumerate(names)}


def read_from(names: Iterable[str]) -> set[str]:
    """The table's columns that columns of these names, in any case of letters, are read from."""
    lowered = {name.lower() for name in names}
    return {name for name in lowered if name in COLUMNS} | ({"recipe", "metadata"} if lowered - {*COLUMNS} else set())


def _plain(column: Any, users: bool = False) -> np.ndarray:
    """As NumPy has it; whole numbers of a user's own column as float64, unless some are too large to be exact so."""
    if column.dtype == object:
        texts = np.array(np.ma.getdata(column))
        texts[np.ma.getmaskarray(column)] = None
        return texts
    if isinstance(column, np.ma.MaskedArray):
        if column.dtype == np.int64 and (np.abs(column.compressed()) > EXACT).any():
            return np.array(column.tolist(), object)  # None where nothing is
        return np.ma.filled(column.astype(np.float64), np.nan)
    if users and column.dtype == np.int64 and not (np.abs(column) > EXACT).any():
        return column.astype(np.float64)
    return column if column.dtype in (np.int64, np.bool_) else column.astype(np.float64)


def embeddings(
    connection: duckdb.DuckDBPyConnection, fingerprint: str, numbers: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `(n,)`, ascending, and embeddings `(n, D)` of one architecture's rows, or of those in `numbers`."""
    if numbers is None:
        blocks = list(embedding_blocks(connection, fingerprint))
        if not blocks:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        return np.concatenate([block[0] for block in blocks]), np.concatenate([block[1] for block in blocks])
    connection.register("wanted", {"number": np.asarray(numbers, np.int64)})
    stored = connection.execute(
        f"SELECT number, embedding, {checks.row_sql(connection, 'embedding_hash')} AS is_sound FROM ix.checkpoints "
        "WHERE architecture = ? AND number IN (SELECT number FROM wanted) ORDER BY number",
        [fingerprint],
    ).fetchnumpy()
    connection.unregister("wanted")
    checks.expect([len(stored["number"]) == len(numbers)])
    return _numbers_and_vectors(stored)


def embedding_blocks(
    connection: duckdb.DuckDBPyConnection, fingerprint: str, after: int = -1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and embeddings as `embeddings` has them, of the rows behind number `after`, some at a time."""
    last = first(connection, "SELECT max(number) FROM ix.checkpoints WHERE architecture = ?", [fingerprint])[0]
    is_sound = checks.row_sql(connection, "embedding_hash")
    for start in range(after + 1, -1 if last is None else last + 1, ROWS_AT_A_TIME):
        block = _numbers_and_vectors(
            connection.execute(
                f"SELECT number, embedding, {is_sound} AS is_sound FROM ix.checkpoints WHERE architecture = ? "
                "AND number >= ? AND number < ? ORDER BY number",
                [fingerprint, start, start + ROWS_AT_A_TIME],
            ).fetchnumpy()
        )
        if len(block[0]):
            yield block


def _numbers_and_vectors(stored: Any) -> tuple[np.ndarray, np.ndarray]:
    checks.expect([bool(np.all(stored["is_sound"]))])
    vectors = np.frombuffer(b"".join(map(bytes, stored["embedding"])), "<f4")
    count = len(stored["number"])
    return np.asarray(stored["number"], np.int64), vectors.reshape(count, -1 if count else 0)


def places(values: Sequence[str]) -> str:
    """For so many parameters of an IN: a list of them takes DuckDB half as long as `SELECT unnest(?)`."""
    return ", ".join("?" * len(values)) or "NULL"


def descriptions(connection: duckdb.DuckDBPyConnection, fingerprint: str, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Of the layers `(F,)` of the rows among `ids` that were made with one."""
    rows = connection.execute(
        f"SELECT id, description, {checks.row_sql(connection, 'description_hash')} FROM {rows_sql(connection)} "
        f"WHERE architecture = ? AND id IN ({places(ids)}) AND description IS NOT NULL",
        [fingerprint, *ids],
    ).fetchall()
    checks.expect(is_sound for _, _, is_sound in rows)
    return {id: np.frombuffer(description, "<f4") for id, description, _ in rows}


def finals(
    connection: duckdb.DuckDBPyConnection, fingerprint: str, runs: Sequence[str], target: Target, table: str
) -> dict[str, tuple[int, float, int]]:
    """The last epoch of each of `runs` whose target is known, and that row's target and number."""
    rows = connection.execute(
        f"WITH known AS (SELECT run, epoch, number, {target_sql(target)} AS value FROM {table} "
        f"WHERE architecture = ? AND run IN ({places(runs)}) AND epoch IS NOT NULL) "
        "SELECT run, max(epoch), arg_max(value, epoch), arg_max(number, epoch) FROM known "
        "WHERE value IS NOT NULL GROUP BY run",
        [fingerprint, *runs],
    ).fetchall()
    return {run: tuple(last) for run, *last in rows}


def insert(connection: duckdb.DuckDBPyConnection, fingerprint: str, rows: Rows) -> int:
    """Adds the rows whose id the architecture lacks, as one more generation, inside the caller's transaction.

    Returns how many there were.
    """
    columns = rows.columns()
    columns["position"] = np.arange(len(rows))
    connection.register("new_rows", columns)
    before = first(connection, "SELECT next_number FROM ix.state")
    hashes = "".join(f", {expression} AS {name}" for name, expression in checks.ROW_HASHES.items())
    connection.execute(
        f"INSERT INTO ix.checkpoints BY NAME SELECT *{hashes} FROM ("
        "SELECT (? + row_number() OVER (ORDER BY position) - 1)::BIGINT AS number, ? AS architecture, "
        f"{', '.join(TEXTS)}, {', '.join(f'if(isnan({name}), NULL, {name}) AS {name}' for name in NUMBERS)}, "
        "description::BLOB AS description, embedding::BLOB AS embedding "
        "FROM new_rows n WHERE NOT EXISTS "
        "(SELECT 1 FROM ix.checkpoints c WHERE c.architecture = ? AND c.id = n.id))",
        [before[0], fingerprint, fingerprint],
    )
    count_row = first(connection, "SELECT count(*) FROM ix.checkpoints WHERE number >= ?", [before[0]])
    added = int(count_row[0])
    if added:
        checks.added(connection, before[0])
        learn_keys(connection, "new_rows")
        connection.execute("UPDATE ix.state SET generation = generation + 1, next_number = next_number + ?", [added])
    connection.unregister("new_rows")
    return added


def key_types(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """The recipes' keys and the user's columns, by name, with their DuckDB types."""
    if is_current(connection) or not _missing_columns(connection):  # format 2 had them, too
        return dict(connection.execute("SELECT name, type FROM ix.keys ORDER BY name").fetchall())
    return _keys_of(connection, rows_sql(connection))


def learn_keys(connection: duckdb.DuckDBPyConnection, source: str) -> None:
    """Adds the keys of the recipes and metadata in the table `source` to those known."""
    types = key_types(connection)
    learnt = {
        name: kind if types.get(name, kind) == kind else _wider(types[name], kind)
        for name, kind in _keys_of(connection, source).items()
    }
    learnt = {name: kind for name, kind in learnt.items() if types.get(name) != kind}
    if learnt:
        columns = {"name": np.array(list(learnt), object), "type": np.array(list(learnt.values()), object)}
        connection.register("learnt", columns)
        connection.execute("INSERT OR REPLACE INTO ix.keys SELECT name, type FROM learnt")
        connection.unregister("learnt")


def _keys_of(connection: duckdb.DuckDBPyConnection, source: str) -> dict[str, str]:
    types: dict[str, str] = {}
    for column in ("recipe", "metadata"):
        row = first(
            connection,
            f"SELECT json_group_structure(value) FROM (SELECT DISTINCT {column}::JSON AS value FROM {source} "
            f"WHERE json_valid({column}))",
        )
        structure = json.loads(row[0]) if row and row[0] else {}
        for name, kind in structure.items() if isinstance(structure, dict) else ():
            if name.lower() in (*COLUMNS, ARCHITECTURE, "embedding") or '"' in name or not name:
                continue  # the rows' own column of that name is what a filter means
            kind = _kind(kind)
            types[name] = kind if types.get(name, kind) == kind else _wider(types[name], kind)
    return types


def _kind(structure: Any) -> str:
    """A JSON structure's type as a column's."""
    if structure in ("UBIGINT", "BIGINT"):
        return "BIGINT"  # exact up to 64 bits: a job's number, a seed
    if structure in ("HUGEINT", "UHUGEINT", "DOUBLE", "NULL"):
        return "DOUBLE"
    return "BOOLEAN" if structure == "BOOLEAN" else "VARCHAR"


def _wider(first: str, second: str) -> str:
    return first if first == second else "DOUBLE" if {first, second} == {"BIGINT", "DOUBLE"} else "VARCHAR"
