"""A zoo's rows: its runs and checkpoints, as they are written to `zoo.duckdb` and as they are read from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np

from weightsearch.files import clean_text
from weightsearch.types import Architecture

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")

# The last columns of both tables came later; a zoo from before is read without them, and gets them when added to.
_LATER = {
    "runs": {"name": "VARCHAR", "extras": "VARCHAR"},
    "checkpoints": {"source": "VARCHAR", "extras": "VARCHAR", "architecture": "VARCHAR", "start": "BIGINT"},
}
# `architectures` is empty, and a checkpoint's `architecture` and `start` are NULL, in a zoo of one architecture.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS architectures (
    fingerprint VARCHAR PRIMARY KEY, layers VARCHAR NOT NULL, size BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    run BIGINT PRIMARY KEY, recipe VARCHAR NOT NULL, status VARCHAR NOT NULL, reason VARCHAR, seconds DOUBLE);
CREATE TABLE IF NOT EXISTS checkpoints (
    id VARCHAR NOT NULL, run BIGINT NOT NULL, epoch DOUBLE NOT NULL, part BIGINT NOT NULL, row BIGINT NOT NULL,
    train_loss DOUBLE, train_accuracy DOUBLE, test_loss DOUBLE, test_accuracy DOUBLE, PRIMARY KEY (run, epoch));
""" + "".join(
    f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {kind};\n"
    for table, columns in _LATER.items()
    for name, kind in columns.items()
)


@dataclass(frozen=True)
class RunRow:
    """One run. `name` is what its maker calls it; `extras` are users' columns of any JSON values."""

    run: int
    recipe: Mapping[str, Any]
    reason: str | None = None  # why it failed, None for a good run
    seconds: float = float("nan")  # of training, NaN where unknown
    name: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return "ok" if self.reason is None else "failed"


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint; its place in the list of rows is its row in the part. Metrics are NaN where unknown."""

    id: str
    run: int
    epoch: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    source: str | None = None  # the file it was imported from
    extras: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None  # its fingerprint, in a zoo of many; None in a zoo of one
    start: int | None = None  # in a zoo of many: where its weights begin in the part


@dataclass(frozen=True)
class Places:
    """Where the checkpoints of a table lie; every array is `(n,)`, the last two empty in a zoo of one architecture."""

    part: np.ndarray
    row: np.ndarray
    fingerprint: np.ndarray  # str
    start: np.ndarray


@dataclass(frozen=True)
class CheckpointTable:
    """One entry per stored checkpoint, ordered by (run, epoch); every array is `(n,)`, the metrics float64."""

    id: np.ndarray  # str, `types.content_hash` of the row
    run: np.ndarray  # int64
    epoch: np.ndarray  # int64, or float64 where some are fractions
    train_loss: np.ndarray  # metrics are NaN where unknown
    train_accuracy: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    recipes: dict[int, dict[str, Any]]  # run -> recipe, of every run, failed ones too
    names: dict[int, str] = field(default_factory=dict)  # run -> its maker's name for it, where it has one
    # Users' columns by name: float64 with NaN where unknown if all values are numbers, else objects with None there.
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    source: np.ndarray = field(default_factory=lambda: np.empty(0, object))  # files imported from, None elsewhere

    def __len__(self) -> int:
        return len(self.run)

    def user_columns(self, position: int) -> dict[str, Any]:
        """What is known in the users' columns of one checkpoint, as plain values."""
        values = {name: column[position] for name, column in self.extras.items()}
        plain = {name: float(value) if isinstance(value, np.floating) else value for name, value in values.items()}
        return {name: value for name, value in plain.items() if value is not None and value == value}  # not NaN


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables, or bring those of an older version up to date."""
    connection.execute(_SCHEMA)
    kind = connection.execute(
        "SELECT data_type FROM duckdb_columns() WHERE table_name = 'checkpoints' AND column_name = 'epoch'"
    ).fetchone()
    if kind == ("BIGINT",):  # of a version that kept whole epochs only; a key's type cannot be changed
        connection.execute(
            "BEGIN; CREATE TEMP TABLE old_rows AS SELECT * FROM checkpoints; DROP TABLE checkpoints;"
            f"{_SCHEMA} INSERT INTO checkpoints BY NAME SELECT * FROM old_rows; DROP TABLE old_rows; COMMIT"
        )


def insert(
    connection: duckdb.DuckDBPyConnection,
    part: int,
    runs: Iterable[RunRow],
    checkpoints: Sequence[CheckpointRow],
    architectures: Iterable[Architecture] = (),
) -> list[int]:
    """Commit a part's rows in one transaction; returns the runs' numbers."""
    runs = list(runs)
    run_columns = {  # noqa: F841 - DuckDB reads these variables by their names
        "run": np.array([row.run for row in runs], np.int64),
        "recipe": _objects(_json(row.recipe) for row in runs),
        "status": _objects(row.status for row in runs),
        "reason": _texts(row.reason for row in runs),
        "seconds": np.array([row.seconds for row in runs], np.float64),
        "name": _texts(row.name for row in runs),
        "extras": _objects(_json(row.extras) if row.extras else None for row in runs),
    }
    columns = {  # noqa: F841
        "id": _objects(row.id for row in checkpoints),
        "run": np.array([row.run for row in checkpoints], np.int64),
        "epoch": np.array([row.epoch for row in checkpoints], np.float64),
        "part": np.full(len(checkpoints), part, np.int64),
        "row": np.arange(len(checkpoints), dtype=np.int64),
        **{key: np.array([getattr(row, key) for row in checkpoints], np.float64) for key in METRICS},
        "source": _texts(row.source for row in checkpoints),
        "extras": _objects(_json(row.extras) if row.extras else None for row in checkpoints),
        "architecture": _objects(row.architecture for row in checkpoints),
        "start": np.ma.array(
            [row.start or 0 for row in checkpoints],
            mask=np.array([row.start is None for row in checkpoints], bool),
            dtype=np.int64,
        ),
    }
    connection.execute("BEGIN")
    for architecture in architectures:
        connection.execute(
            "INSERT OR IGNORE INTO architectures VALUES (?, ?, ?)",
            [architecture.fingerprint, json.dumps(architecture.to_dict()), architecture.size],
        )
    if runs:
        connection.execute("INSERT INTO runs BY NAME SELECT * FROM run_columns")
    if checkpoints:
        connection.execute("INSERT INTO checkpoints BY NAME SELECT * FROM columns")
    connection.execute("COMMIT")
    return [row.run for row in runs]


def replace_rows(
    connection: duckdb.DuckDBPyConnection,
    columns: Mapping[str, np.ndarray],
    recipes: Mapping[int, Mapping[str, Any]],
    names: Mapping[int, str],
) -> None:
    """Changes rows in one transaction, and removes runs that no checkpoint is left in and that did not fail.

    Args:
        columns: values `(n,)` by column, `part` and `row` among them, which say whose they are.
        recipes: of runs, by number; those that are new have a name in `names`.
    """
    changed = dict(columns)  # noqa: F841 - DuckDB reads it by its name
    told = {  # noqa: F841
        "run": np.array([*{**recipes, **names}], np.int64),
        "recipe": _objects(_json(recipes.get(run, {})) for run in {**recipes, **names}),
        "name": _texts(names.get(run) for run in {**recipes, **names}),
    }
    # A key's columns cannot be changed in place.
    connection.execute("BEGIN")
    try:
        if recipes or names:
            connection.execute("UPDATE runs SET recipe = told.recipe FROM told WHERE runs.run = told.run")
            connection.execute(
                "INSERT INTO runs BY NAME SELECT run, recipe, 'ok' AS status, name FROM told "
                "WHERE name IS NOT NULL AND run NOT IN (SELECT run FROM runs)"
            )
        if len(columns["part"]):
            before = connection.execute("SELECT run FROM checkpoints GROUP BY run").fetchall()
            replaced = ", ".join(
                f"CASE WHEN changed.part IS NULL THEN checkpoints.{name} ELSE changed.{name} END AS {name}"
                for name in columns
                if name not in ("part", "row")
            )
            connection.execute(
                f"CREATE TEMP TABLE old_rows AS SELECT checkpoints.* REPLACE ({replaced}) FROM checkpoints "
                "LEFT JOIN changed ON checkpoints.part = changed.part AND checkpoints.row = changed.row"
            )
            connection.execute("DROP TABLE checkpoints")
            connection.execute(_SCHEMA)
            connection.execute("INSERT INTO checkpoints BY NAME SELECT * FROM old_rows")
            connection.execute("DROP TABLE old_rows")
            after = connection.execute("SELECT run FROM checkpoints GROUP BY run").fetchall()
            for (run,) in set(before) - set(after):
                connection.execute("DELETE FROM runs WHERE run = ?", [run])
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def read_architectures(connection: duckdb.DuckDBPyConnection) -> dict[str, Architecture]:
    """Those of a zoo of many, by fingerprint."""
    rows = connection.execute("SELECT fingerprint, layers FROM architectures ORDER BY fingerprint").fetchall()
    return {fingerprint: Architecture.from_dict(json.loads(layers)) for fingerprint, layers in rows}


def read(connection: duckdb.DuckDBPyConnection) -> tuple[CheckpointTable, Places]:
    """The table, and where its checkpoints lie."""
    columns = connection.execute("SELECT * FROM checkpoints ORDER BY run, epoch").fetchnumpy()
    runs = connection.execute("SELECT * FROM runs ORDER BY run").fetchnumpy()
    run = np.asarray(columns["run"], np.int64)
    by_run = {number: values for number, values in zip(runs["run"].tolist(), _parsed(runs), strict=True) if values}
    extras = [
        {**by_run.get(number, {}), **checkpoint_extras}
        for number, checkpoint_extras in zip(run.tolist(), _parsed(columns), strict=True)
    ]
    table = CheckpointTable(
        id=np.asarray(columns["id"], object).astype(str),
        run=run,
        epoch=_whole(np.asarray(columns["epoch"], np.float64)),
        **{key: np.ma.filled(columns[key].astype(np.float64), np.nan) for key in METRICS},
        recipes={
            number: json.loads(recipe) for number, recipe in zip(runs["run"].tolist(), runs["recipe"], strict=True)
        },
        names={number: name for number, name in zip(runs["run"].tolist(), _plain(runs, "name"), strict=True) if name},
        extras={
            name: _column([row.get(name) for row in extras]) for name in sorted({key for row in extras for key in row})
        },
        source=_plain(columns, "source"),
    )
    fingerprint = _plain(columns, "architecture")
    many = any(fingerprint)
    places = Places(
        part=np.asarray(columns["part"], np.int64),
        row=np.asarray(columns["row"], np.int64),
        fingerprint=fingerprint.astype(str) if many else np.empty(0, str),
        start=np.asarray(columns["start"], np.int64) if many else np.empty(0, np.int64),
    )
    return table, places


def _whole(epochs: np.ndarray) -> np.ndarray:
    """Epochs `(n,)` as int64 where all are whole."""
    whole = epochs.astype(np.int64)
    return whole if np.array_equal(whole, epochs) else epochs


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values))


def _objects(values: Iterable[Any]) -> np.ndarray:
    listed = list(values)
    column = np.empty(len(listed), object)
    column[:] = listed
    return column


def _texts(values: Iterable[str | None]) -> np.ndarray:
    return _objects(None if value is None else clean_text(value) for value in values)


def _plain(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A text column `(n,)` with None where it is NULL, or everywhere in a zoo from before it was there."""
    if name not in columns:
        return _objects([None] * len(columns["run"]))
    return _objects(np.ma.asarray(columns[name], object).tolist())


def _parsed(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [json.loads(text) if text else {} for text in _plain(columns, "extras")]


def _column(values: list[Any]) -> np.ndarray:
    present = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return _objects(values)
