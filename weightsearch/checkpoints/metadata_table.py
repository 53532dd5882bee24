"""Files of metadata: JSON objects, and tables that say which checkpoint file each row is about."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from weightsearch.checkpoints.metadata import Metadata, interpret, typed
from weightsearch.checkpoints.readers.guard import read_apart
from weightsearch.errors import UsageError, WeightsearchError

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_VALUES = 1_000_000
MAX_TABLE_BYTES = 2**28  # of a table's cells, as they are in memory
CELL_BYTES = 64
TABLE_MEMORY = "1GB"  # that DuckDB may take for reading a table


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; literal NaN is allowed. Raises WeightsearchError naming the file's problem."""
    return json_object(read_text(path), path.name)


def json_object(text: str, name: str) -> dict[str, Any]:
    try:
        if sum(map(text.count, ",[{")) > MAX_JSON_VALUES:
            raise WeightsearchError(f"{name} holds over {MAX_JSON_VALUES:,} values")
        content = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise WeightsearchError(f"{name} is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise WeightsearchError(f"{name} holds a {type(content).__name__}, not an object of names and values")
    return content


def _integer(digits: str) -> int | str:
    """A number; as text where it is longer than Python turns into one."""
    return int(digits) if len(digits) < 4000 else digits


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise WeightsearchError(f"{path.name} is over {MAX_JSON_BYTES // 2**20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsearchError(f"{path.name} cannot be read ({error})") from None


def read_table(path: Path, key: str) -> list[dict[str, Any]]:
    """The rows, by column, of a .csv, .tsv, .json, .jsonl or .parquet file that has a column `key`.

    A text table's columns get their types from all of their values. Raises WeightsearchError where it cannot be read.
    """
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        rows = _typed_columns(_query(path, "csv"))
    elif suffix in ("json", "jsonl", "ndjson"):
        rows = _read_objects(path)
    elif suffix == "parquet":
        rows = _query(path, "parquet")
    else:
        raise UsageError(f"{path}: give a .csv, .json or .parquet file")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if rows and key not in names:
        raise UsageError(f"--key {key}: {path.name} has no such column; it has {', '.join(names)}")
    return [row for row in rows if row.get(key) is not None]


def _query(path: Path, kind: str) -> list[dict[str, Any]]:
    """The rows, by column, as DuckDB reads them in a process apart."""
    if not path.exists():
        raise WeightsearchError(f"{path} cannot be read: there is no such file")
    try:
        names, rows = read_apart("table", path, kind)
    except WeightsearchError as error:
        raise WeightsearchError(f"{path} cannot be read: {error}") from None
    return [dict(zip(names, values, strict=True)) for values in rows]


def query_table(path: Path, kind: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns' names and rows of a "csv" or "parquet" file."""
    import duckdb

    query = {
        "csv": "SELECT * FROM read_csv(?, all_varchar = true, sample_size = -1)",
        "parquet": "SELECT * FROM read_parquet(?)",
    }[kind]
    try:
        with duckdb.connect(config={"memory_limit": TABLE_MEMORY, "threads": 2}) as connection:
            result = connection.execute(query, [str(path)])
            return [column[0] for column in result.description or ()], _fetch(result, path)
    except duckdb.OutOfMemoryException:
        raise WeightsearchError(
            f"it needs more than the memory that a table may take ({TABLE_MEMORY}); "
            "leave out columns or rows that say nothing"
        ) from None
    except duckdb.Error as error:
        raise WeightsearchError(str(error).splitlines()[0]) from None


def _fetch(result: Any, path: Path) -> list[tuple[Any, ...]]:
    """All rows, as long as they are no more than `MAX_TABLE_BYTES`: a small Parquet file may hold any number."""
    rows: list[tuple[Any, ...]] = []
    left = MAX_TABLE_BYTES
    while batch := result.fetchmany(1000):
        left -= sum(CELL_BYTES + (len(cell) if isinstance(cell, str | bytes) else 0) for row in batch for cell in row)
        if left < 0:
            raise WeightsearchError(
                f"it holds over {MAX_TABLE_BYTES // 2**20} MiB of cells; leave out columns or rows that say nothing"
            )
        rows += batch
    return rows


def _typed_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns of text as whole numbers, numbers or truth values where all of their values are such."""
    for name in rows[0] if rows else ():
        values = [(row, typed(row[name].strip())) for row in rows if row[name] is not None]
        kinds = {type(value) for _, value in values}
        if kinds <= {int, float} or kinds == {bool}:
            for row, value in values:
                row[name] = float(value) if float in kinds else value
    return rows


def _read_objects(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects, or an object a line."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            raw = file.read(MAX_TABLE_BYTES + 1)
        if len(raw) > MAX_TABLE_BYTES or CELL_BYTES * sum(map(raw.count, (b",", b"[", b"{"))) > MAX_TABLE_BYTES:
            raise WeightsearchError(
                f"{path} cannot be read: it holds over {MAX_TABLE_BYTES // 2**20} MiB of cells; "
                "leave out columns or rows that say nothing"
            )
        text = raw.decode("utf-8-sig")
        content = (
            json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(x) for x in text.splitlines() if x.strip()]
        )
    except FileNotFoundError:
        raise WeightsearchError(f"{path} cannot be read: there is no such file") from None
    except (OSError, ValueError, RecursionError, EOFError, zlib.error) as error:
        raise WeightsearchError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not all(isinstance(row, dict) for row in content):
        raise WeightsearchError(f"{path} cannot be read: it is no list of objects")
    return list(content)


class MetadataTable:
    """A table of metadata whose column `key` says which checkpoint file each row is about.

    It may hold whole paths, their ends (`run-7/model.pt`), or bare names, with the file's suffix or without; and paths
    of another machine, told by their ends from the folder on if no other row's agrees as well.
    """

    def __init__(self, path: Path, rows: Mapping[str, Metadata], key: str) -> None:
        self.path = path
        self.key = key
        self._rows = rows
        self._taken: dict[str, Path] = {}
        self._by_name: dict[str, list[str]] = {}
        for name in rows:
            self._by_name.setdefault(name.rpartition("/")[2], []).append(name)

    @classmethod
    def read(cls, path: str | Path, key: str = "path") -> MetadataTable:
        """Reads a .csv, .tsv, .json, .jsonl or .parquet file; raises WeightsearchError where it cannot."""
        path = Path(path)
        rows: dict[str, Metadata] = {}
        for row in read_table(path, key):
            name = trail(str(row.pop(key)))
            if name in rows:
                raise WeightsearchError(f"{path} has two rows for {name}; keep one of them")
            rows[name] = interpret(row, "table")
        return cls(path, rows, key)

    def find(self, path: Path) -> Metadata | None:
        """The row about the file `path`; raises WeightsearchError where the row is about another file as well."""
        row = None
        for given in (path.absolute(), path.resolve()):  # a link's own name, or what it leads to
            parts = given.parts[1:]
            ends = ["/".join(parts[start:]) for start in range(len(parts))]
            names = [name for end in ends for name in (end, str(PurePosixPath(end).with_suffix("")))]
            row = row or next((name for name in names if name in self._rows), None) or self._elsewhere(parts)
        if row is None:
            return None
        other = self._taken.setdefault(row, path)
        if other != path:
            raise WeightsearchError(
                f"the row {row} of {self.path.name} is also about {other}: give more of the path in {self.key}"
            )
        return self._rows[row]

    def _elsewhere(self, parts: Sequence[str]) -> str | None:
        """The row of a path of another machine that ends in the same folder and file, and only it."""
        agreeing: dict[int, list[str]] = {}
        for name in self._by_name.get(parts[-1], ()):
            pairs = zip(reversed(parts), reversed(name.split("/")), strict=False)
            count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            agreeing.setdefault(count, []).append(name)
        most = max(agreeing, default=0)
        return agreeing[most][0] if most >= 2 and len(agreeing[most]) == 1 else None

    @property
    def notes(self) -> list[str]:
        """That some rows are about none of the files that were asked for, if so."""
        unused = [name for name in self._rows if name not in self._taken]
        if not unused:
            return []
        return [f"{len(unused):,} rows of {self.path.name} are about no file here, such as {unused[0]}"]


def trail(text: str) -> str:
    return "/".join(part for part in text.replace("\\", "/").split("/") if part not in ("", "."))
