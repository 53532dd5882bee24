"""What searches need of many rows, in files beside the vectors: an index of ten million opens without reading all.

A file a column, which is appended to as rows are added, and written anew where rows in it are changed or removed; and
`columns-G.json`, which says how much of which files is the state as of generation `G`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.files import MISREAD
from weightsearch.index import checks, database, paged
from weightsearch.index.database import Columns
from weightsearch.index.manifest import is_sealed, write_sealed
from weightsearch.index.paged import DamagedVectorsError, PagedVectors
from weightsearch.types import Target

PARTS = {"numbers": np.int64, "values": np.float64, "datasets": np.uint64, "runs": np.uint64}  # of eight bytes each
WORDS = 2  # of four bytes, as `paged` has them


@dataclass(frozen=True)
class _Snapshot:
    only_dataset: str | None
    files: dict[str, PagedVectors]

    def part(self, name: str) -> np.ndarray:
        return self.files[name].matrix.reshape(-1).view(PARTS[name])


def save(directory: Path, columns: Columns, target: Target) -> None:
    """Writes the columns as new files, then removes the older ones, which readers may still map."""
    _write(directory, columns, target, columns.only_dataset, {})


def extend(directory: Path, generation: int, target: Target, fresh: Callable[[str], Columns]) -> None:
    """Appends the rows that were added since `generation`, after which nothing else was changed.

    Args:
        fresh: called, where the files of that generation are sound, with what is true in SQL of the rows behind theirs.
    """
    before = _open(directory, generation, target)
    if before is None:
        return
    columns = fresh(f"number > {int(before.part('numbers')[-1])}")
    if columns.generation == generation:
        return
    same = (columns.datasets == before.part("datasets")[0]).all()
    _write(directory, columns, target, before.only_dataset if same else None, before.files)


def patch(directory: Path, generation: int, target: Target, changed: np.ndarray, fresh: Callable[[], Columns]) -> None:
    """Brings the rows with numbers `changed (m,)` up to date, which alone were changed or removed since `generation`.

    Only the files of columns that differ are written.

    Args:
        fresh: called where the files of that generation are sound: those of the rows that are left.
    """
    before = _open(directory, generation, target)
    if before is None:
        return
    numbers = before.part("numbers")
    columns = fresh()
    if columns.generation == generation:
        return
    left = np.ones(len(numbers), bool)
    left[_positions(numbers, changed)] = False
    at = _positions(numbers, columns.numbers)
    left[at] = True
    if not left.any():
        return
    now = {name: before.part(name).copy() for name in PARTS}
    for name, part in now.items():
        part[at] = getattr(columns, name)
        now[name] = part[left]
    was, only = before.part("datasets"), before.only_dataset
    if not (now["datasets"] == now["datasets"][0]).all():
        only = None
    elif len(columns):
        only = columns.only_dataset
    elif only is None and not (was == was[0]).all():
        return  # the name of the dataset that alone is left, only the database knows
    unchanged = {
        name: file for name, file in before.files.items()
        if np.array_equal(now[name].view(np.int64), before.part(name).view(np.int64))  # bits: NaN differs from itself
    }  # fmt: skip
    appended: dict[str, Any] = {name: part[:0] if name in unchanged else part for name, part in now.items()}
    _write(directory, replace(columns, **appended), target, only, unchanged)


def _positions(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of those `wanted (m,)` that are among ascending `numbers (n,)`."""
    at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return at[numbers[at] == wanted]


def load(directory: Path, generation: int, target: Target, connection: duckdb.DuckDBPyConnection) -> Columns | None:
    """The columns as of exactly this generation, mapped; None where there are no sound files of them."""
    saved = _open(directory, generation, target)
    if saved is None:
        return None
    parts = {name: saved.part(name) for name in PARTS}
    table, is_sound = database.rows_sql(connection), checks.row_sql(connection, "shown_hash")
    return Columns(generation, table=table, is_sound=is_sound, only_dataset=saved.only_dataset, saved=True, **parts)


def leftovers(directory: Path) -> list[Path]:
    """Files that no description names, and descriptions whose files are gone: of killed writers and older versions."""
    needed: set[str] = set()
    for path in directory.glob("columns-*.json"):
        try:
            parts = json.loads(path.read_text())["parts"].values()
            names = {part[key] for part in parts for key in ("file", "checksums")}
        except MISREAD:
            continue
        if all((directory / name).exists() for name in names):
            needed |= {path.name, *names}
    return [path for path in directory.glob("columns-*") if path.name not in needed]


def _open(directory: Path, generation: int, target: Target) -> _Snapshot | None:
    try:
        info = json.loads((directory / f"columns-{generation}.json").read_text())
        # DuckDB's hashes, of datasets and runs, are those of its version.
        if not is_sealed(info) or (info["target"], info["duckdb"]) != (target.column, duckdb.__version__):
            return None
        files = {name: PagedVectors.open(directory, info["parts"][name]) for name in PARTS}
        sound = {name: file for name, file in files.items() if file is not None}
        for file in sound.values():
            file.check()
        return _Snapshot(info["only_dataset"], sound) if len(sound) == len(PARTS) else None
    except (*MISREAD, DamagedVectorsError):
        return None


def _write(
    directory: Path, columns: Columns, target: Target, only_dataset: str | None, earlier_files: dict[str, PagedVectors]
) -> None:
    """Appends the columns to their earlier files; those that have none get a new one."""
    parts = {}
    for name, kind in PARTS.items():
        earlier = earlier_files.get(name)
        file = directory / f"columns-{columns.generation}.{name}" if earlier is None else earlier.path
        words = np.ascontiguousarray(getattr(columns, name), kind).view("<f4").reshape(-1, WORDS)
        rows = paged.append(file, 0 if earlier is None else len(earlier.matrix), [words])
        checksums = directory / f"columns-{columns.generation}.{name}-pages"
        parts[name] = paged.describe(file, rows, WORDS, checksums, earlier)
    info = {"target": target.column, "duckdb": duckdb.__version__, "only_dataset": only_dataset, "parts": parts}
    description = directory / f"columns-{columns.generation}.json"
    write_sealed(description, info)
    kept = {description.name, *(part[key] for part in parts.values() for key in ("file", "checksums"))}
    for older in directory.glob("columns-*"):
        if older.name not in kept:
            older.unlink(missing_ok=True)
