"""The search among an index's sketches: those of many signatures lie in mapped files beside the database.

A bit for the sign of each of a sketch's 512 numbers finds what is near: the share of signs that differ estimates the
angle (Charikar 2002, https://doi.org/10.1145/509907.509965). The sketches themselves, in a second file, rank what was
found. Both files are a cache that is only ever appended to; signatures that they lack are taken from the database.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.files import MISREAD
from weightsearch.index import paged
from weightsearch.index.connection import Database
from weightsearch.index.database import first, generation
from weightsearch.index.manifest import DATABASE, is_sealed, write_sealed
from weightsearch.index.paged import DamagedVectorsError, PagedVectors
from weightsearch.relations.signature import SKETCH_WIDTH

FRESH = 20_000  # signatures that are taken from the database into memory; where there are more, the files are written
BY_SIGNS = 10_000  # of the files' signatures that are ranked by their sketches
DEAD_SHARE = 0.2  # of replaced and removed signatures, from which on the files are made anew
BLOCK = 20_000
DESCRIPTION = "sketches.json"
WORDS = 2 + SKETCH_WIDTH // 2  # of four bytes in the second file's rows: a number of eight bytes, and float16
log = logging.getLogger("weightsearch")


@dataclass(frozen=True)
class SketchFiles:
    """The two files as their description has them; numbers rise along their rows, which include dead ones."""

    last: int  # number of the newest signature in them
    started: int  # which the files' names have
    signs: PagedVectors  # 64 bytes a row
    rows: PagedVectors  # number and sketch

    @classmethod
    def open(cls, path: Path, scheme: int, generation: int) -> SketchFiles | None:
        """Those of the index at `path`; None where there are none that are whole and of this database."""
        for _ in range(3):  # a writer replaces the checksums after the description
            try:
                info = json.loads((path / DESCRIPTION).read_text())
                if not is_sealed(info) or info["scheme"] != scheme or info["generation"] > generation:
                    return None
                signs, rows = (PagedVectors.open(path, info[name]) for name in ("signs", "rows"))
                if signs is not None and rows is not None:
                    signs.check()
                    return cls(info["last"], info["started"], signs, rows)
            except FileNotFoundError:
                return None
            except (*MISREAD, DamagedVectorsError):
                break
        log.warning("%s: the files of sketches are damaged; they are read from %s instead", path, DATABASE)
        return None

    def nearest(self, sketch: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `(m,)` and cosines `(m,)` of those whose signs are the most alike. Raises DamagedVectorsError."""
        import faiss

        codes = self.signs.matrix.view(np.uint8)  # (n, 64)
        positions = faiss.knn_hamming(signs_of(sketch[None]), codes, min(count, len(codes)))[1][0]
        positions = np.sort(positions)
        self.rows.check(positions)
        found = self.rows.matrix[positions]
        self.rows.release()  # with each row, the system maps many that lie beside it
        numbers = np.ascontiguousarray(found[:, :2]).view(np.int64)[:, 0]
        return numbers, np.ascontiguousarray(found[:, 2:]).view(np.float16).astype(np.float32) @ sketch


def signs_of(sketches: np.ndarray) -> np.ndarray:
    """A bit for each number of sketches `(n, 512)` that is above 0: uint8 `(n, 64)`."""
    return np.packbits(sketches > 0, axis=1)


class Sketches:
    """An index's sketches for many questions: the files, and in memory what they lack."""

    def __init__(self, path: Path, scheme: int) -> None:
        self.path = path
        with Database(path / DATABASE).open() as connection:
            self.files = SketchFiles.open(path, scheme, generation(connection))
            self._read_fresh(connection)

    def _read_fresh(self, connection: duckdb.DuckDBPyConnection) -> None:
        after = -1 if self.files is None else self.files.last
        self.fresh: list[tuple[np.ndarray, np.ndarray]] | None = []
        for numbers, sketches in blocks(connection, after):
            self.fresh.append((numbers, sketches.astype(np.float32)))
            if len(self.fresh) * BLOCK > 2 * FRESH:  # an older version's index: they are read for each question
                self.fresh = None
                return

    def nearest(self, sketch: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `(m,)` and cosines `(m,)` of the `count` sketches nearest to one `(512,)`, the nearest first.

        Some of the numbers may be of signatures that are gone.
        """
        found: list[tuple[np.ndarray, np.ndarray]] = []
        if self.files is not None:
            try:
                found.append(self.files.nearest(sketch, BY_SIGNS))
            except DamagedVectorsError:
                log.warning("%s: the file of sketches is damaged; they are read from %s", self.path, DATABASE)
                self.files, self.fresh = None, None
        if self.fresh is None:
            after = -1 if self.files is None else self.files.last
            with Database(self.path / DATABASE).open() as connection:
                for numbers, sketches in blocks(connection, after):
                    found.append(_nearest(numbers, sketches.astype(np.float32) @ sketch, BY_SIGNS))
        else:
            found += [(numbers, sketches @ sketch) for numbers, sketches in self.fresh]
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        numbers, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return _nearest(numbers, cosines, count)


def _nearest(numbers: np.ndarray, cosines: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.argpartition(-cosines, min(count, len(cosines) - 1))[:count]
    chosen = chosen[np.argsort(-cosines[chosen], kind="stable")]
    return numbers[chosen], cosines[chosen]


def blocks(connection: duckdb.DuckDBPyConnection, after: int = -1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers `(m,)` and sketches `(m, 512)` float16 of the signatures behind number `after`, some at a time."""
    last = first(connection, "SELECT max(number) FROM ix.signatures")[0]
    for start in range(after + 1, -1 if last is None else last + 1, BLOCK):
        stored = connection.execute(
            "SELECT number, sketch FROM ix.signatures WHERE number >= ? AND number < ? ORDER BY number",
            [start, start + BLOCK],
        ).fetchnumpy()
        if len(stored["number"]):
            sketches = np.frombuffer(b"".join(map(bytes, stored["sketch"])), "<f2").reshape(-1, SKETCH_WIDTH)
            yield np.asarray(stored["number"], np.int64), sketches


def last_number(path: Path) -> int:
    """The highest number that the files may hold, so that none is given twice; -1 without files."""
    try:
        return int(json.loads((path / DESCRIPTION).read_text())["last"])
    except (*MISREAD, KeyError):
        return -1


def publish_if_stale(path: Path, connection: duckdb.DuckDBPyConnection, scheme: int) -> None:
    """Appends to the files what they lack, once that is much; makes them anew where much of them is dead.

    The caller holds the index's write lock. Whoever is killed leaves the description as it was.
    """
    files = SketchFiles.open(path, scheme, generation(connection))
    after = -1 if files is None else files.last
    fresh, held = first(connection, "SELECT count(*) FILTER (number > ?), count(*) FROM ix.signatures", [after])
    if fresh <= FRESH:
        return
    if files is not None and held - fresh < (1 - DEAD_SHARE) * len(files.rows.matrix):
        files, after = None, -1
    newest = first(connection, "SELECT max(number) FROM ix.signatures")[0]
    about = {"scheme": scheme, "generation": generation(connection)}
    try:
        write(path, files, newest, lambda: blocks(connection, after), about)
    except DamagedVectorsError:
        write(path, None, newest, lambda: blocks(connection), about)


def write(
    path: Path,
    files: SketchFiles | None,
    newest: int,
    read: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    about: dict[str, Any],
) -> None:
    """Appends numbers and sketches up to number `newest`, which `read` gives like `blocks`; None makes files anew."""
    started = newest if files is None else files.started
    kept = {f"sketches-{started}.signs", f"sketches-{started}.rows"}
    info = {**about, "last": newest, "started": started}
    for name, width, packed in (("signs", SKETCH_WIDTH // 32, _packed_signs), ("rows", WORDS, _packed_rows)):
        before = None if files is None else getattr(files, name)
        if before is not None:
            before.check(np.array([len(before.matrix) - 1]))  # its page gets another checksum
        file, checksums = path / f"sketches-{started}.{name}", path / f"sketches-{newest}.{name}-pages"
        count = paged.append(file, 0 if before is None else len(before.matrix), (packed(*block) for block in read()))
        info[name] = paged.describe(file, count, width, checksums, before)
        kept.add(checksums.name)
    write_sealed(path / DESCRIPTION, info)
    for older in path.glob("sketches-*"):
        if older.name not in kept:
            older.unlink(missing_ok=True)


def _packed_signs(numbers: np.ndarray, sketches: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(signs_of(sketches)).view("<f4")


def _packed_rows(numbers: np.ndarray, sketches: np.ndarray) -> np.ndarray:
    """Numbers and sketches as rows of words of four bytes `(n, 258)`."""
    return np.hstack([numbers[:, None].view("<f4"), np.ascontiguousarray(sketches).view("<f4")])
