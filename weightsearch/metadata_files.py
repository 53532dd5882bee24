"""Files of metadata: JSON objects, and tables that say which checkpoint file each row is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.metadata import Metadata, interpret

MAX_JSON_BYTES = 16 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; literal NaN is allowed. Raises WeightsearchError naming the file's problem."""
    return json_object(read_text(path), path.name)


def json_object(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsearchError(f"{name} is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise WeightsearchError(f"{name} holds a {type(content).__name__}, not an object of names and values")
    return content


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise WeightsearchError(f"{path.name} is over {MAX_JSON_BYTES // 2**20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsearchError(f"{path.name} cannot be read ({error})") from None


def read_table(path: Path, key: str) -> list[dict[str, Any]]:
    """The rows, by column, of a .csv, .tsv, .json, .jsonl or .parquet file that has a column `key`.

    Raises WeightsearchError where it cannot be read.
    """
    import duckdb

    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    reader = {"csv": "read_csv", "tsv": "read_csv", "json": "read_json", "jsonl": "read_json", "ndjson": "read_json"}
    function = reader.get(suffix, "read_parquet" if suffix == "parquet" else None)
    if function is None:
        raise UsageError(f"{path}: give a .csv, .json or .parquet file")
    try:
        with duckdb.connect() as connection:
            found = connection.execute(f"SELECT * FROM {function}(?)", [str(path)])
            names = [column[0] for column in found.description or ()]
            content = found.fetchall()
    except duckdb.Error as error:
        reason = "there is no such file" if not path.exists() else str(error).splitlines()[0]
        raise WeightsearchError(f"{path} cannot be read: {reason}") from None
    if key not in names:
        raise UsageError(f"--key {key}: {path.name} has no such column; it has {', '.join(names)}")
    return [dict(zip(names, values, strict=True)) for values in content]


class MetadataTable:
    """A table of metadata whose column `key` says which checkpoint file each row is about.

    It may hold whole paths, their ends (`run-7/model.pt`), or bare names, with the file's suffix or without.
    """

    def __init__(self, path: Path, rows: Mapping[str, Metadata], key: str) -> None:
        self.path = path
        self.key = key
        self._rows = rows
        self._taken: dict[str, Path] = {}

    @classmethod
    def read(cls, path: str | Path, key: str = "path") -> MetadataTable:
        """Reads a .csv, .tsv, .json, .jsonl or .parquet file; raises WeightsearchError where it cannot."""
        path = Path(path)
        rows: dict[str, Metadata] = {}
        for row in read_table(path, key):
            name = _trail(str(row.pop(key)))
            if name in rows:
                raise WeightsearchError(f"{path} has two rows for {name}; keep one of them")
            rows[name] = interpret(row, "table")
        return cls(path, rows, key)

    def find(self, path: Path) -> Metadata | None:
        """The row about the file `path`; raises WeightsearchError where the row is about another file as well."""
        parts = path.resolve().parts[1:]
        names = ["/".join(parts[start:]) for start in range(len(parts))]
        for end in (end for name in names for end in (name, str(PurePosixPath(name).with_suffix("")))):
            if end in self._rows:
                other = self._taken.setdefault(end, path)
                if other != path:
                    raise WeightsearchError(
                        f"the row {end} of {self.path.name} is also about {other}: give more of the path in {self.key}"
                    )
                return self._rows[end]
        return None

    @property
    def notes(self) -> list[str]:
        """That some rows are about none of the files that were asked for, if so."""
        unused = [name for name in self._rows if name not in self._taken]
        if not unused:
            return []
        return [f"{len(unused):,} rows of {self.path.name} are about no file here, such as {unused[0]}"]


def _trail(text: str) -> str:
    return "/".join(part for part in text.replace("\\", "/").split("/") if part not in ("", "."))
