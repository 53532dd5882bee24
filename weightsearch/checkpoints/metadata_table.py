"""Files of metadata: JSON objects, and tables that say which checkpoint file each row is about."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from weightsearch.checkpoints.metadata import Metadata, interpret, typed
from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.readers.guard import read_apart
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.text_table import counted

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_VALUES = 1_000_000
MAX_TABLE_BYTES = 2**28  # of a table's cells, as they are in memory
CELL_BYTES = 64
CONTESTED_LISTED = 3
TABLE_MEMORY = "1GB"  # that DuckDB may take for reading a table


def _too_large() -> str:
    return f"it holds over {MAX_TABLE_BYTES // 2**20} MiB of cells; leave out columns or rows that say nothing"


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


def read_table(path: Path, key: str, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows, by column, of a .csv, .tsv, .json, .jsonl or .parquet file that has a column `key`.

    A text table's columns get their types from all of their values.

    Args:
        notes: takes what to tell of lines that are left out; None refuses a table with such lines.

    Raises:
        WeightsearchError: it cannot be read.
        UsageError: it has no such column, which is found in other capitals, too.
    """
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        names, rows, ragged = _query(path, "csv")
        _typed_columns(rows, key)
        if ragged:
            what = f"{path.name}: {ragged}; put quotes around cells that hold the separator"
            if notes is None:
                raise WeightsearchError(what)
            notes.append(what)
    elif suffix in ("json", "jsonl", "ndjson"):
        rows = _read_objects(path)
        names = list(dict.fromkeys(name for row in rows for name in row))
    elif suffix == "parquet":
        names, rows, _ = _query(path, "parquet")
    else:
        raise UsageError(f"{path}: give a .csv, .json or .parquet file")
    if key not in names and (rows or names):
        alike = [name for name in names if name.strip().lower() == key.lower()]
        if len(alike) != 1:
            raise UsageError(f"--key {key}: {path.name} has no such column; it has {', '.join(map(shown, names))}")
        for row in rows:
            row[key] = row.pop(alike[0], None)
    return [row for row in rows if row.get(key) is not None]


def _query(path: Path, kind: str) -> tuple[list[str], list[dict[str, Any]], str]:
    """The columns' names, the rows by them, and what to tell of lines that are left out, read in a process apart."""
    if not path.exists():
        raise WeightsearchError(f"{path} cannot be read: there is no such file")
    try:
        names, rows, ragged = read_apart("table", path, kind)
    except WeightsearchError as error:
        raise WeightsearchError(f"{path} cannot be read: {error}") from None
    return names, [dict(zip(names, values, strict=True)) for values in rows], ragged


def query_table(path: Path, kind: str) -> tuple[list[str], list[Sequence[Any]], str]:
    """Columns' names, rows, and what to tell of lines that are left out, of a "csv" or "parquet" file."""
    if kind == "csv":
        return _read_csv(path)
    import duckdb

    try:
        with duckdb.connect(config={"memory_limit": TABLE_MEMORY, "threads": 2}) as connection:
            result = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            return [column[0] for column in result.description or ()], _fetch(result, path), ""
    except duckdb.OutOfMemoryException:
        raise WeightsearchError(
            f"it needs more than the memory that a table may take ({TABLE_MEMORY}); "
            "leave out columns or rows that say nothing"
        ) from None
    except duckdb.Error as error:
        raise WeightsearchError(str(error).splitlines()[0]) from None


def _read_csv(path: Path) -> tuple[list[str], list[Sequence[Any]], str]:
    """A text table as spreadsheets and programs write them: `,`, `;` or tabs between its cells, which stay text.

    Lines before the header that begin with `#` are passed over. A line of more cells than the header has is left out:
    nobody knows which of them is in its place (`a.pt,0,93` under `path,acc`).
    """
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        raw = file.read(MAX_TABLE_BYTES + 1)
    if len(raw) > MAX_TABLE_BYTES:
        raise WeightsearchError(_too_large())
    lines = _decoded(raw).splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    separator = max(",;\t|", key="".join(lines[start : start + 1]).count)
    csv.field_size_limit(MAX_TABLE_BYTES)
    reader = csv.reader(io.StringIO("".join(lines[start:]), newline=""), delimiter=separator, skipinitialspace=True)
    names = _distinct(next(reader, []))
    rows: list[Sequence[Any]] = []
    ragged: list[int] = []
    left = MAX_TABLE_BYTES
    for cells in reader:
        if any(cells[len(names) :]):
            ragged.append(start + reader.line_num)
            continue
        row = [cell.strip() or None for cell in cells[: len(names)]]
        row += [None] * (len(names) - len(row))
        left -= sum(CELL_BYTES + len(cell or "") for cell in row)
        if left < 0:
            raise WeightsearchError(_too_large())
        if any(row):
            rows.append(row)
    what = f"line {ragged[0]:,}" if len(ragged) == 1 else f"{len(ragged):,} lines, such as {min(ragged, default=0):,},"
    more = f"more cells than the header's {len(names):,}"
    return names, rows, f"{what} {'has' if len(ragged) == 1 else 'have'} {more} and left out" if ragged else ""


def _decoded(raw: bytes) -> str:
    """Text by its byte order mark, as UTF-8, or as spreadsheets in the West write what is none."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _distinct(names: Iterable[str]) -> list[str]:
    """Columns' names, each once: a second `acc` is `acc_1`, and one without a name is its place."""
    distinct: list[str] = []
    for place, given in enumerate(names):
        name = given.strip() or f"column{place}"
        count = 1
        while name in distinct:
            name, count = f"{given.strip()}_{count}", count + 1
        distinct.append(name)
    return distinct


def _fetch(result: Any, path: Path) -> list[Sequence[Any]]:
    """All rows, as long as they are no more than `MAX_TABLE_BYTES`: a small Parquet file may hold any number."""
    rows: list[Sequence[Any]] = []
    left = MAX_TABLE_BYTES
    while batch := result.fetchmany(1000):
        left -= sum(CELL_BYTES + (len(cell) if isinstance(cell, str | bytes) else 0) for row in batch for cell in row)
        if left < 0:
            raise WeightsearchError(_too_large())
        rows += batch
    return rows


def _typed_columns(rows: list[dict[str, Any]], key: str) -> None:
    """Columns of text as whole numbers, numbers or truth values where all of their values are such.

    Names in the column `key` stay as they are written: `1e3` and `12.50` are no numbers there.
    """
    for name in rows[0] if rows else ():
        values = [(row, typed(row[name].strip())) for row in rows if row[name] is not None]
        if name == key and any(str(value) != row[name].strip() for row, value in values):
            continue
        kinds = {type(value) for _, value in values}
        if kinds <= {int, float} or kinds == {bool}:
            for row, value in values:
                row[name] = float(value) if float in kinds else value


def _read_objects(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects, or an object a line."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            raw = file.read(MAX_TABLE_BYTES + 1)
        if len(raw) > MAX_TABLE_BYTES or CELL_BYTES * sum(map(raw.count, (b",", b"[", b"{"))) > MAX_TABLE_BYTES:
            raise WeightsearchError(f"{path} cannot be read: {_too_large()}")
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

    Where nobody can tell which row or file is meant, none is: rows of one name that differ are about no file, and a row
    that several files of `expect` match is about none of them; `notes` say so.
    """

    def __init__(self, path: Path, rows: Mapping[str, Mapping[str, Any] | Metadata], key: str) -> None:
        self.path = path
        self.key = key
        self.lines: list[str] = []  # what to tell of the table itself
        self._rows = rows
        self._interpreted: dict[str, Metadata] = {}
        self._taken: dict[str, Path] = {}
        self._contested: dict[str, tuple[Path, Path]] = {}
        self._lost: set[Path] = set()  # files whose row is another one's by its whole path
        self._by_name: dict[str, list[str]] = {}
        for name in rows:
            self._by_name.setdefault(name.rpartition("/")[2], []).append(name)

    @classmethod
    def read(cls, path: str | Path, key: str = "path") -> MetadataTable:
        """Reads a .csv, .tsv, .json, .jsonl or .parquet file; raises WeightsearchError where it cannot."""
        path = Path(path)
        rows: dict[str, dict[str, Any]] = {}
        differing: dict[str, None] = {}
        notes: list[str] = []
        for row in read_table(path, key, notes):
            name = trail(str(row.pop(key)))
            if rows.setdefault(name, row) != row:
                differing[name] = None
        if not rows:
            notes.append(f"{path.name} has no line that names a file, so nothing is taken from it")
        for name in differing:
            del rows[name]
        if differing:
            examples = ", ".join(map(shown, list(differing)[:3]))
            notes.append(f"{path.name} has rows for {examples} that differ: none of them is taken; keep one of each")
        table = cls(path, rows, key)
        table.lines = notes
        return table

    def expect(self, files: Iterable[tuple[Path, Path]]) -> None:
        """Prepares for all `files`, each with the folder that was given, so that a row two of them match is noticed.

        A row that is a file's whole path below that folder, or below the table's, is about it alone.
        """
        claims: dict[str, dict[Path, Path]] = {}
        for path, root in files:
            if (row := self._row_of(path)) is not None:
                claims.setdefault(row, {})[path] = root
        folder = self.path.absolute().parent
        for row, roots in claims.items():
            if len(roots) > 1:
                whole = [
                    path for path, root in roots.items() if path.absolute() in (root.absolute() / row, folder / row)
                ]
                if len(whole) == 1:
                    self._taken[row] = whole[0]
                    self._lost |= roots.keys() - {whole[0]}
                else:
                    one, other, *_ = roots
                    self._contested[row] = (one, other)

    def find(self, path: Path) -> Metadata | None:
        """The row about the file `path`, None where there is none, or `expect` saw that it may be about another one.

        Raises WeightsearchError where it has been found to be about another file before.
        """
        row = self._row_of(path)
        if row is None or row in self._contested or path in self._lost:
            return None
        other = self._taken.setdefault(row, path)
        if other != path:
            raise WeightsearchError(
                f"the row {row} of {self.path.name} is also about {other}: give more of the path in {self.key}"
            )
        if row not in self._interpreted:
            values = self._rows[row]
            self._interpreted[row] = values if isinstance(values, Metadata) else interpret(values, "table")
        return self._interpreted[row]

    def _row_of(self, path: Path) -> str | None:
        for given in (path.absolute(), path.resolve()):  # a link's own name, or what it leads to
            parts = given.parts[1:]
            ends = ["/".join(parts[start:]) for start in range(len(parts))]
            names = [name for end in ends for name in (end, str(PurePosixPath(end).with_suffix("")))]
            row = next((name for name in names if name in self._rows), None) or self._elsewhere(parts)
            if row is not None:
                return row
        return None

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
    def contested(self) -> list[str]:
        """Of each row that several files match, one line."""
        return [
            f"the row {row} of {self.path.name} may be about {one} and {other}, so it is about none: "
            f"give more of the path in {self.key}"
            for row, (one, other) in self._contested.items()
        ]

    @property
    def notes(self) -> list[str]:
        """What to tell of rows that are about none of the files that were asked for, or nobody knows about which."""
        notes = self.lines + self.contested[:CONTESTED_LISTED]
        if len(self.contested) > CONTESTED_LISTED:
            notes.append(f"{len(self.contested):,} rows of {self.path.name} match several files each, in all")
        unused = [name for name in self._rows if name not in self._taken and name not in self._contested]
        if not unused:
            return notes
        rows = counted(len(unused), "row")
        return [
            *notes,
            f"{rows} of {self.path.name} {'is' if len(unused) == 1 else 'are'} about no file here, such as {unused[0]}",
        ]


def trail(text: str) -> str:
    return "/".join(part for part in text.replace("\\", "/").split("/") if part not in ("", "."))
