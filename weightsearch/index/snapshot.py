"""What searches need of many rows, in files beside the vectors: an index of ten million opens without reading all.

A file a column, which is appended to as rows are added, and `columns-G.json`, which says how much of them is the state
as of generation `G`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    started: int  # the generation that the files' names have
    only_dataset: str | None
    files: dict[str, PagedVectors]

    def part(self, name: str) -> np.ndarray:
        return self.files[name].matrix.reshape(-1).view(PARTS[name])


def save(directory: Path, columns: Columns, target: Target) -> None:
    """Writes the columns as new files, then removes the older ones, which readers may still map."""
    _write(directory, columns, target, columns.only_dataset, None)


def extend(directory: Path, generation: int, target: Target, fresh: Callable[[int], Columns]) -> None:
    """Appends the rows that were added since `generation`, after which nothing else was changed.

    Args:
        fresh: called with the last number in the files of that generation, where these are sound: the rows behind it.
    """
    before = _open(directory, generation, target)
    if before is None:
        return
    columns = fresh(int(before.part("numbers")[-1]))
    if columns.generation == generation:
        return
    same = (columns.datasets == before.part("datasets")[0]).all()
    _write(directory, columns, target, before.only_dataset if same else None, before)


def load(directory: Path, generation: int, target: Target, connection: duckdb.DuckDBPyConnection) -> Columns | None:
    """The columns as of exactly this generation, mapped; None where there are no sound files of them."""
    saved = _open(directory, generation, target)
    if saved is None:
        return None
    parts = {name: saved.part(name) for name in PARTS}
    table, is_sound = database.rows_sql(connection), checks.row_sql(connection, "shown_hash")
    return Columns(generation, table=table, is_sound=is_sound, only_dataset=saved.only_dataset, **parts)


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
        return _Snapshot(info["started"], info["only_dataset"], sound) if len(sound) == len(PARTS) else None
    except (*MISREAD, DamagedVectorsError):
        return None


def _write(
    directory: Path, columns: Columns, target: Target, only_dataset: str | None, before: _Snapshot | None
) -> None:
    started = columns.generation if before is None else before.started
    parts = {}
    for name, kind in PARTS.items():
        file, earlier = directory / f"columns-{started}.{name}", None if before is None else before.files[name]
        words = np.ascontiguousarray(getattr(columns, name), kind).view("<f4").reshape(-1, WORDS)
        rows = paged.append(file, 0 if earlier is None else len(earlier.matrix), [words])
        checksums = directory / f"columns-{columns.generation}.{name}-pages"
        parts[name] = paged.describe(file, rows, WORDS, checksums, earlier)
    info = {
        "target": target.column, "duckdb": duckdb.__version__, "only_dataset": only_dataset, "started": started,
        "parts": parts,
    }  # fmt: skip
    description = directory / f"columns-{columns.generation}.json"
    write_sealed(description, info)
    kept = {description.name, *(part[key] for part in parts.values() for key in ("file", "checksums"))}
    for older in directory.glob("columns-*"):
        if older.name not in kept:
            older.unlink(missing_ok=True)
