"""What an index holds, in numbers for people and as a Parquet file for other tools."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.errors import UsageError
from weightsearch.files import cannot_write, refuse_to_overwrite, replacing
from weightsearch.index import database, filters, vectors
from weightsearch.index.store import IndexStore

# What a column holds, for people; dates are texts, as filters compare them.
KINDS = {"VARCHAR": "text", "DOUBLE": "number", "BIGINT": "integer", "BOOLEAN": "boolean"}


@dataclass(frozen=True)
class ArchitectureInfo:
    fingerprint: str
    description: str
    method: str | None
    rows: int
    runs: int
    datasets: dict[str, int]  # rows of each
    unknown: int  # rows without a known target
    bad: float  # at or worse than this
    good: float  # at or better than this
    width: int | None  # D, the embeddings' number of values
    faiss: str  # FAISS's name for the type
    nprobe: int | None
    recall: float | None  # as nprobe was tuned: of a sample's 51st to 100th nearest; None where there is none
    exact: bool  # whether results are those of brute force over the passing rows
    behind: int  # rows that the FAISS file lacks or has too many; readers make up for them


@dataclass(frozen=True)
class IndexInfo:
    path: str
    format: int
    generation: int
    metric: str
    target: str
    size: int  # bytes on the disk
    keys: dict[str, str]  # recipe keys and user's columns that filters know, with what they hold (`KINDS`)
    architectures: tuple[ArchitectureInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def info(path: str | Path) -> IndexInfo:
    """What the index at `path` holds."""
    index = IndexStore.open(path)
    with index.database.open() as connection:
        generation = database.generation(connection)
    return IndexInfo(
        path=str(index.path),
        format=index.manifest["format"],
        generation=generation,
        metric=index.metric.value,
        target=index.target.column,
        size=sum(file.stat().st_size for file in index.path.rglob("*") if file.is_file()),
        keys={name: KINDS[kind] for name, kind in index.keys().items()},
        architectures=tuple(_architecture(index, fingerprint, generation) for fingerprint in index.architectures),
    )


def _architecture(index: IndexStore, fingerprint: str, generation: int) -> ArchitectureInfo:
    with index.database.open() as connection:
        rows = database.rows_sql(connection)
        datasets = connection.execute(
            f"SELECT coalesce(dataset, 'unknown'), count(*) FROM {rows} WHERE architecture = ? GROUP BY 1 ORDER BY 1",
            [fingerprint],
        ).fetchall()
        runs = connection.execute(
            f"SELECT count(DISTINCT run) FROM {rows} WHERE architecture = ?", [fingerprint]
        ).fetchall()[0][0]
        columns = database.columns(connection, fingerprint, index.target)
    cache = index.newest_cache(fingerprint, generation)
    numbers = np.empty(0, np.int64) if cache is None else cache.numbers
    entry = index.manifest["architectures"][fingerprint]
    index.encoder_directory(fingerprint)  # says so where it is damaged
    bad, good = index.thresholds(fingerprint)
    return ArchitectureInfo(
        fingerprint=fingerprint,
        description=index.architectures[fingerprint].describe(),
        method=entry.get("method", index.manifest.get("method")),
        rows=len(columns),
        runs=runs,
        datasets=dict(datasets),
        unknown=int(np.isnan(columns.values).sum()),
        bad=bad,
        good=good,
        width=index.width(fingerprint),
        faiss=cache.info.factory if cache else entry.get("factory") or vectors.default_factory(len(columns)),
        nprobe=cache.info.nprobe if cache else None,
        recall=cache.info.recall if cache else None,
        exact=cache is None or cache.is_exact,
        behind=vectors.behind(numbers, columns.numbers),
    )


def export(path: str | Path, out: str | Path, *, where: str | None = None, overwrite: bool = False) -> int:
    """Writes the rows, or those that pass the filter, to one Parquet file; returns how many.

    Recipe keys and the user's columns become columns; `embedding` is a list of floats. Raises UsageError where `out`
    exists, unless `overwrite`.
    """
    index, out = IndexStore.open(path), Path(out)
    if out.suffix != ".parquet":
        raise UsageError(f"--out {out}: the file's name should end in .parquet")
    refuse_to_overwrite(out, overwrite)
    count = 0
    with duckdb.connect(":memory:") as target:
        for fingerprint in index.architectures:
            with index.database.open() as connection:
                numbers = None if where is None else filters.passing(connection, fingerprint, where)
                types = database.key_types(connection)
                names = [*database.COLUMNS, *{name.lower(): name for name in types}.values()]
                columns = database.table(connection, fingerprint, names, types, numbers)
                embeddings = database.embeddings(connection, fingerprint, numbers)[1]
            if not len(embeddings):
                continue
            # Under names of our own: a user's column may be called anything.
            renamed = {f"column_{i}": columns[name] for i, name in enumerate(names)}
            values = {f"value_{j}": np.ascontiguousarray(embeddings[:, j]) for j in range(embeddings.shape[1])}
            target.register("part", renamed | values)
            array = ", ".join(values)
            # A text that no row of this architecture has is no value without a type.
            casts = {
                name: f"::VARCHAR{'::BIGINT' if types.get(name) == 'BIGINT' else ''}"
                for name in names
                if columns[name].dtype.kind == "O"
            }
            selected = ", ".join(f'column_{i}{casts.get(name, "")} AS "{name}"' for i, name in enumerate(names))
            statement = (
                f"SELECT ? AS architecture, {selected}, array_value({array})::FLOAT[] AS embedding "
                "FROM part ORDER BY column_0"
            )
            make = "CREATE TABLE rows AS" if count == 0 else "INSERT INTO rows BY NAME"
            target.execute(f"{make} {statement}", [fingerprint])
            target.unregister("part")
            count += len(embeddings)
        if not count:
            raise UsageError(f"{index.path} holds no rows to export{' that pass --where' if where else ''}")
        try:
            with replacing(out) as temporary:
                target.execute(f"COPY rows TO '{str(temporary).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)")
        except (duckdb.Error, OSError) as error:
            raise cannot_write(out, error) from error
    return count
