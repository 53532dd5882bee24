"""New values for rows that are there, as people write them: per cent, beginnings of ids, names and paths of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import ACCURACIES, PERCENT, Measured, Metadata, as_fractions, measured_value
from weightsearch.checkpoints.metadata_table import MetadataTable, read_table, trail
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import plain
from weightsearch.index import database
from weightsearch.index.connection import decoded
from weightsearch.index.store import IndexStore
from weightsearch.index.writer import CHANGEABLE, checked_value, update_rows


@dataclass(frozen=True)
class Updated:
    """How many checkpoints were named, how many of their cells differ now, and what was assumed."""

    checkpoints: int
    cells: int
    notes: tuple[str, ...] = ()


def update_table(path: str | Path, table: Path, key: str = "id") -> Updated:
    """Sets the columns of a .csv, .json or .parquet file in the rows that its column `key` names.

    `id` may hold the beginnings of ids; another column of the index its values; any other name, and `source`, whole
    paths of files, their ends, or bare names. An empty cell leaves what is there. Accuracies are scaled as `add` scales
    them. Raises UsageError for a line about no row, or about several by the beginning of an id.
    """
    return update_values(path, table_changes(IndexStore.open(path), table, key), table.name)


def table_changes(index: IndexStore, table: Path, key: str = "id") -> dict[str, dict[str, Any]]:
    """What `update_table` is told to change: values by column, by the rows' ids."""
    lines = read_table(table, key)
    changes: dict[str, dict[str, Any]] = {}
    for ids, line in _matched(index, table, key, lines):
        filled = {name: plain(cell) for name, cell in line.items() if cell is not None}
        for id in ids:
            changes.setdefault(id, {}).update(filled)
    return changes


def update_values(path: str | Path, changes: Mapping[str, Mapping[str, Any]], origin: str = "--set") -> Updated:
    """Sets columns of rows by id, as `update_rows` does, with accuracies scaled as `add` scales them.

    `origin` names in messages where the values are from. Raises UsageError for accuracies that are none.
    """
    changes, notes = _scaled(changes, origin)
    differing = _differing(IndexStore.open(path), changes)
    update_rows(path, differing)
    return Updated(len(changes), sum(map(len, differing.values())), tuple(notes))


def _matched(
    index: IndexStore, table: Path, key: str, lines: list[dict[str, Any]]
) -> list[tuple[list[str], dict[str, Any]]]:
    """The ids that each line is about."""
    is_column = key != "source" and key in (*database.COLUMNS, *index.keys())
    columns = ["id", key if is_column else "source"]
    held: list[tuple[str, Any]] = []
    for fingerprint in index.architectures:
        columns_of_rows = index.table(fingerprint, columns)
        held += zip(columns_of_rows["id"].tolist(), columns_of_rows[columns[1]].tolist(), strict=True)
    by_value: dict[str, list[str]] = {}
    if is_column:
        for id, value in held:
            by_value.setdefault(_text(value), []).append(id)
    else:
        by_value = _by_file(table, key, lines, held)
    matched = []
    for line in lines:
        value = _text(line.pop(key))
        ids = by_value.get(value if is_column else trail(value), [])
        if key == "id" and not ids and len(value) >= 4:
            ids = [id for id in by_value if id.startswith(value)]
            if len(ids) > 1:
                raise UsageError(f"{index.path} holds {len(ids)} checkpoints whose id begins with {value}, in {table}")
        if not ids:
            raise UsageError(f"{index.path} holds no checkpoint with {key} {value}, which {table} names")
        matched.append((ids, line))
    return matched


def _by_file(table: Path, key: str, lines: list[dict[str, Any]], held: list[tuple[str, Any]]) -> dict[str, list[str]]:
    """Ids by the path in the table: matched as `add --metadata` matches files."""
    names = [trail(_text(line[key])) for line in lines]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise WeightsearchError(f"{table} has two rows for {twice}; keep one of them")
    files = MetadataTable(table, {name: Metadata(extras={"name": name}) for name in names}, key)
    files.expect((Path(source), Path()) for _, source in held if isinstance(source, str))
    if files.contested:
        raise WeightsearchError(files.contested[0])
    ids: dict[str, list[str]] = {}
    for id, source in held:
        row = files.find(Path(source)) if isinstance(source, str) else None
        if row is not None:
            ids.setdefault(str(row.extras["name"]), []).append(id)
    return ids


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _scaled(changes: Mapping[str, Mapping[str, Any]], origin: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The same with accuracies in [0, 1], and what to tell of it."""
    scaled = {id: dict(values) for id, values in changes.items()}
    notes: list[str] = []
    for column in ACCURACIES:
        ids = [id for id, values in scaled.items() if values.get(column) is not None]
        measured = [measured_value(scaled[id][column]) for id in ids]
        for id, one in zip(ids, measured, strict=True):
            if one is None:
                raise UsageError(f"{column} = {scaled[id][column]!r}: give a number")
        present = [
            Metadata({column: Measured(one[0], f"{origin}'s {column}{PERCENT if one[1] else ''}")})
            for one in measured
            if one is not None
        ]
        fractions, warnings = as_fractions(present)
        if any(column not in one.metrics for one in fractions):
            raise UsageError(f"{warnings[0]}; give shares in [0, 1] or per cent")
        notes += warnings
        for id, fraction in zip(ids, fractions, strict=True):
            scaled[id][column] = fraction.metrics[column].value
    return scaled, notes


def _differing(index: IndexStore, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The changes without values that are there already."""
    with index.connection() as connection:
        rows = connection.execute(
            f"SELECT id, metadata, {', '.join(CHANGEABLE)} FROM ix.checkpoints WHERE id IN (SELECT unnest(?))",
            [list(changes)],
        ).fetchall()
    held: dict[str, list[dict[str, Any]]] = {}
    for id, metadata, *cells in rows:
        held.setdefault(id, []).append({**decoded(metadata, dict), **dict(zip(CHANGEABLE, cells, strict=True))})
    differing: dict[str, dict[str, Any]] = {}
    for id, values in changes.items():
        checked = dict(checked_value(name, value) for name, value in values.items())
        changed = {
            name: value
            for name, value in checked.items()
            if id not in held or any(_missing(row.get(name)) != value for row in held[id])
        }
        if changed:
            differing[id] = changed
    return differing


def _missing(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
