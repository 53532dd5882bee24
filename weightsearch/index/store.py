"""An index opened for reading: its rows, its thresholds, and the search for neighbours."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np

from weightsearch.distance import prepare
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import MISREAD
from weightsearch.index import database, filters, planner, reranked, snapshot, vectors
from weightsearch.index.connection import Database, decoded
from weightsearch.index.database import Columns
from weightsearch.index.manifest import DATABASE, MANIFEST, is_intact, listed_files, read_manifest
from weightsearch.index.paged import DamagedVectorsError
from weightsearch.index.planner import Segment
from weightsearch.index.thresholds import distinct, grades_of, thresholds_among
from weightsearch.types import Architecture, Metric, Neighbour, Plan, Selection, Target, epoch_number

REPLACED_WAIT_SECONDS = 2.0  # for another index to take a replaced one's place

Stamp = tuple[int, int, int]

log = logging.getLogger("weightsearch")


@dataclass(frozen=True)
class Neighbourhood:
    """What the index says of one vector: its nearest rows, its nearest good and bad rows, each nearest first."""

    neighbours: tuple[Neighbour, ...]
    good: tuple[Neighbour, ...]
    bad: tuple[Neighbour, ...]
    plan: Plan = field(compare=False)


@dataclass(frozen=True)
class Row:
    """An indexed checkpoint: `columns` by name as in `Index.table`, and its embedding `(D,)`."""

    fingerprint: str
    columns: dict[str, Any]
    embedding: np.ndarray


class IndexStore:
    """An index's files opened for reading. Holds no lock between calls, and sees what others have committed since.

    That goes for another index under the same path, too: each has an identity of its own, which every call compares,
    so that vectors and rows are always of the same one. Arrays over rows are ordered by the rows' number, which is the
    order in which they were added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: tuple[int, duckdb.DuckDBPyConnection, int] | None = None  # thread, connection, generation
        self._take_whole(*self._verified(path))

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens the index directory at `path`; verifies the encoders' files by their checksums."""
        return cls(Path(path))

    @staticmethod
    def _verified(path: Path) -> tuple[dict[str, Any], Stamp | None]:
        """The manifest, after a look at the files that it lists, and when it was written."""
        stamp = _stamp(path / MANIFEST)
        manifest = read_manifest(path)
        for name, expected in listed_files(path, manifest):
            if not name.endswith(".faiss") and not is_intact(path / name, expected):
                raise WeightsearchError(
                    f"{path / name} is missing or damaged (its checksum is not the manifest's); "
                    "restore it from a copy or make the index again with `weightsearch train`"
                )
        if not (path / DATABASE).is_file():
            raise WeightsearchError(f"{path / DATABASE} is missing; restore it from a copy or make the index again")
        return manifest, stamp

    def _take_whole(self, manifest: dict[str, Any], stamp: Stamp | None) -> None:
        try:
            self._take(manifest, stamp)
        except MISREAD as error:  # format 1 has no checksum of itself
            raise WeightsearchError(
                f"{self.path / MANIFEST} is damaged ({type(error).__name__}: {error}); restore it from a copy or make "
                "the index again with `weightsearch train`"
            ) from error

    def _take(self, manifest: dict[str, Any], stamp: Stamp | None) -> None:
        """Starts anew from a manifest, with nothing kept of what was read before."""
        self.manifest = manifest
        self._manifest_stamp = stamp
        self.metric = Metric(manifest["metric"])
        self.target = Target(**manifest.get("target", {}))
        self.architectures = {
            fingerprint: Architecture.from_dict(entry["layers"])
            for fingerprint, entry in manifest["architectures"].items()
        }
        self.database = Database(self.path / DATABASE)
        self._columns_of: dict[str, Columns] = {}
        self._segments: dict[str, Segment] = {}
        self._damaged: dict[str, np.ndarray] = {}  # numbers of rows whose vectors are taken from the database
        self._masks: dict[tuple[str, str | None, str | None], tuple[int, np.ndarray]] = {}
        self._grades_of: dict[tuple[str | None, str | None], tuple[Columns, np.ndarray]] = {}
        self._rows_of: tuple[Columns | None, dict[int, list[Any]]] = (None, {})

    @property
    def identity(self) -> str:
        """Drawn when the index was made; of an index from before format 3, when its manifest was written."""
        return self.manifest.get("identity") or str(self._manifest_stamp)

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The database that the manifest is of: what is kept in memory of another one is let go first.

        A caller that looked at what is kept before it opened this looks again. Within `reading` it is open already.
        """
        if self._held is not None and self._held[0] == threading.get_ident():
            yield self._held[1]
            return
        deadline = time.monotonic() + REPLACED_WAIT_SECONDS
        while True:
            self.refresh()
            with self.database.open() as connection:
                identity = database.state(connection).identity
                # A manifest is migrated before its database, and both are read while neither is.
                if identity in (None, self.manifest.get("identity")):
                    yield connection
                    return
            if time.monotonic() > deadline:
                raise WeightsearchError(
                    f"{self.path}: {MANIFEST} and {DATABASE} are not of one index; restore both from one copy"
                )
            self._manifest_stamp = None  # replaced between the two looks
            time.sleep(0.01)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What this thread asks within is asked of one attached database, which nobody writes meanwhile.

        Attaching takes as long as a question. Writers wait, so that nothing slow but questions belongs here.
        """
        with self.connection() as connection:
            if self._held is not None and self._held[0] == threading.get_ident():
                yield
                return
            self._held = threading.get_ident(), connection, database.generation(connection)
            try:
                yield
            finally:
                self._held = None

    def _generation(self, connection: duckdb.DuckDBPyConnection) -> int:
        held = self._held
        return held[2] if held is not None and held[1] is connection else database.generation(connection)

    def refresh(self) -> None:
        """Reads the manifest again where it has changed: for another index, or for one more architecture."""
        deadline = time.monotonic() + REPLACED_WAIT_SECONDS
        stamp = _stamp(self.path / MANIFEST)
        while stamp is None and time.monotonic() < deadline:  # between the two renames of a replacement
            time.sleep(0.01)
            stamp = _stamp(self.path / MANIFEST)
        if stamp is None or stamp != self._manifest_stamp:
            self._take_whole(*self._verified(self.path))

    def __len__(self) -> int:
        return sum(self.count(fingerprint) for fingerprint in self.architectures)

    def load(self, fingerprint: str) -> None:
        """Reads what searches of one architecture need, which the first search would do otherwise."""
        self._known(fingerprint)
        with self.connection() as connection:
            self._segment(connection, fingerprint)

    def encoder_directory(self, fingerprint: str) -> Path:
        return self.path / fingerprint

    def count(self, fingerprint: str) -> int:
        return len(self._columns(fingerprint))

    def numbers(self, fingerprint: str) -> np.ndarray:
        """The rows' numbers `(n,)` of one architecture, ascending."""
        return self._columns(fingerprint).numbers

    def accuracies(self, fingerprint: str) -> np.ndarray:
        """Test accuracies `(n,)`, or the index's other target, of one architecture's rows; NaN where unknown."""
        return self._columns(fingerprint).values

    def embeddings(self, fingerprint: str) -> np.ndarray:
        """All embeddings `(n, D)` of one architecture."""
        self._known(fingerprint)
        with self.connection() as connection:
            return database.embeddings(connection, fingerprint)[1]

    def table(self, fingerprint: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns `(n,)` by name: `database.COLUMNS`, recipe keys and the user's own.

        Numbers are float64 with NaN where unknown, texts objects with None.
        """
        self._known(fingerprint)
        with self.connection() as connection:
            return database.table(connection, fingerprint, columns, database.key_types(connection))

    def keys(self) -> dict[str, str]:
        """Recipe keys and the user's columns by name, with their DuckDB types: what filters know beside COLUMNS."""
        with self.connection() as connection:
            return database.key_types(connection)

    def find(self, id: str, fingerprint: str | None = None) -> Row:
        """The only row whose id begins so, of one architecture or of any; raises UsageError for none or several."""
        if not id or not all(letter in "0123456789abcdef" for letter in id):
            raise UsageError(f"{id!r} is no id; ids are 16 hexadecimal digits, as queries show them")
        begins = "id = ?" if len(id) == ID_LETTERS else "starts_with(id, ?)"  # equality takes half as long
        with self.connection() as connection:
            among = list(self.architectures) if fingerprint is None else [fingerprint]
            rows = connection.execute(
                "SELECT architecture, number, id FROM ix.checkpoints "
                f"WHERE {begins} AND architecture IN ({database.places(among)}) LIMIT 3",
                [id, *among],
            ).fetchall()
            if len(rows) != 1:
                several = ", ".join(f"{row[2]} of architecture {row[0]}" for row in rows)
                what = f"more than one ({several})" if rows else "no checkpoint"
                raise UsageError(f"{self.path} holds {what} with id {id}")
            architecture, number, _ = rows[0]
            return Row(architecture, *database.row(connection, architecture, number))

    def descriptions(self, fingerprint: str, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """What the layers of rows are like (see `layers`), `(F,)` by id, of those for which that was kept."""
        with self.connection() as connection:
            return database.descriptions(connection, fingerprint, ids)

    def finals(
        self, fingerprint: str, runs: Sequence[str], good: str | None = None, bad: str | None = None
    ) -> dict[str, tuple[float, float, int]]:
        """How each of `runs` ended: the last epoch with a known accuracy (or other target), that, and its grade."""
        with self.connection() as connection:
            columns = self._fresh_columns(connection, fingerprint)
            ends = database.finals(connection, fingerprint, runs, self.target, columns.table)
        grades = self._grades(columns, good, bad)
        return {
            run: (epoch, value, int(grades[np.searchsorted(columns.numbers, number)]))
            for run, (epoch, value, number) in ends.items()
        }

    def thresholds(self, fingerprint: str, good: str | None = None, bad: str | None = None) -> tuple[float, float]:
        """Bad at or worse than the first, good at or better than the second, over all rows of one architecture.

        `good` and `bad` are values ("0.9") or quantiles ("q75": better than 75 % of the rows with a known value); by
        default the quartiles. NaN where no row has a known value.
        """
        return thresholds_among(self.target, self._columns(fingerprint).values, good, bad)

    def grades(self, fingerprint: str, good: str | None = None, bad: str | None = None) -> np.ndarray:
        """1 where good, -1 where bad, else 0, `(n,)`: each row among those of its own dataset."""
        return self._grades(self._columns(fingerprint), good, bad)

    def only_dataset(self, fingerprint: str) -> str | None:
        """The dataset of all rows of one architecture; None where they are of several, or of none that is known."""
        return self._columns(fingerprint).only_dataset

    def search(
        self, fingerprint: str, vector: np.ndarray, k: int = 10, selection: Selection | None = None
    ) -> Neighbourhood:
        """The `k` nearest, nearest good and nearest bad rows of `vector (D,)` among those that pass `selection`."""
        selection = selection or Selection()
        filters.check_selection(selection)
        self._known(fingerprint)
        while True:
            try:
                return self._search(fingerprint, vector, k, selection)
            except DamagedVectorsError as error:
                self._pass_over(fingerprint, error)

    def _pass_over(self, fingerprint: str, error: DamagedVectorsError) -> None:
        """Takes the vectors that were found damaged from the database from now on."""
        segment = self._segments.pop(fingerprint)
        error = (segment.cache.paged and segment.cache.paged.all_damage()) or error  # one page is rarely alone
        message = "%s: %s in the file of vectors are damaged, and are taken from %s until `weightsearch rebuild`"
        log.warning(message, self.path / fingerprint, error, DATABASE)
        numbers = segment.cache.numbers[error.positions]
        self._damaged[fingerprint] = np.union1d(self._damaged.get(fingerprint, numbers), numbers)

    def _search(self, fingerprint: str, vector: np.ndarray, k: int, selection: Selection) -> Neighbourhood:
        start = time.perf_counter()
        segment = self._segments.get(fingerprint)
        mask = self._mask_of(segment, fingerprint, selection)
        result, seconds = None, 0.0
        if segment is not None and (mask is not None or not filters.has_filter(selection)):
            result = self._lists(segment, vector, k, selection, mask)
            seconds = time.perf_counter() - start
        with self.connection() as connection:
            if segment is not self._segments.get(fingerprint):  # it was of an index that was replaced
                segment = None
            if result is None or segment is None or segment.columns.generation != self._generation(connection):
                segment = self._segment(connection, fingerprint)
                mask = self._mask(connection, segment, fingerprint, selection)
                result = self._lists(segment, vector, k, selection, mask)
                seconds = time.perf_counter() - start
            name, lists = result
            passing = len(segment) if mask is None else int(np.count_nonzero(mask))
            plan = Plan(name, passing, len(segment), seconds)
            near, good, bad = self._neighbours(connection, segment, lists, selection)
        return Neighbourhood(near, good, bad, plan)

    def _lists(
        self, segment: Segment, vector: np.ndarray, k: int, selection: Selection, mask: np.ndarray | None
    ) -> tuple[str, list[tuple[np.ndarray, np.ndarray]]]:
        if not 1 <= k <= len(segment):
            raise UsageError(
                f"k = {k}: the index holds {len(segment):,} checkpoints of this architecture; "
                f"choose --k between 1 and {len(segment)}"
            )
        vectors.check_query(vector, segment.cache.inner.d)
        return planner.search(
            segment, prepare(vector[None], self.metric)[0], k,
            mask=mask, grades=self._grades(segment.columns, selection.good, selection.bad),
            within=selection.within, per_run=selection.per_run,
        )  # fmt: skip

    def _grades(self, columns: Columns, good: str | None, bad: str | None) -> np.ndarray:
        kept = self._grades_of.get((good, bad))
        if kept is not None and kept[0] is columns:
            return kept[1]
        grades = grades_of(columns, self.target, good, bad)
        self._grades_of = {(good, bad): (columns, grades)}
        return grades

    def _neighbours(
        self,
        connection: duckdb.DuckDBPyConnection,
        segment: Segment,
        lists: list[tuple[np.ndarray, np.ndarray]],
        selection: Selection,
    ) -> list[tuple[Neighbour, ...]]:
        numbers = segment.columns.numbers
        grades = self._grades(segment.columns, selection.good, selection.bad)
        wanted = distinct(np.concatenate([numbers[rows] for rows, _ in lists]))
        by_number = self._rows(connection, segment.columns, wanted.tolist())

        def neighbour(row: int, distance: float) -> Neighbour:
            id, accuracy, epoch, run, recipe, dataset, metadata, source = by_number[int(numbers[row])]
            value = float(segment.columns.values[row])
            return Neighbour(
                id, distance, accuracy, epoch_number(epoch), run, decoded(recipe, dict),
                None if np.isnan(value) else value, dataset, decoded(metadata, dict), int(grades[row]), source,
            )  # fmt: skip

        return [
            tuple(neighbour(row, distance) for row, distance in zip(rows.tolist(), distances.tolist(), strict=True))
            for rows, distances in lists
        ]

    def _rows(
        self, connection: duckdb.DuckDBPyConnection, columns: Columns, numbers: list[int]
    ) -> dict[int, list[Any]]:
        """Rows by number: an answer's lists have many in common, and so have the answers of one day."""
        of, kept = self._rows_of
        if of is not columns or len(kept) > ROWS_KEPT:
            kept = {}
        lacking = ",".join(str(number) for number in numbers if number not in kept)
        if lacking:
            rows = connection.execute(
                "SELECT number, id, test_accuracy, epoch, run, recipe, dataset, metadata, source "
                f"FROM {columns.table} WHERE number IN ({lacking})"
            ).fetchall()
            kept |= {number: rest for number, *rest in rows}
        self._rows_of = columns, kept
        return kept

    def _known(self, fingerprint: str) -> None:
        if fingerprint not in self.architectures:
            names = ", ".join(self.architectures)
            raise WeightsearchError(f"{self.path} holds no architecture {fingerprint}; it holds {names}")

    def _columns(self, fingerprint: str) -> Columns:
        self._known(fingerprint)
        with self.connection() as connection:
            return self._fresh_columns(connection, fingerprint)

    def _fresh_columns(self, connection: duckdb.DuckDBPyConnection, fingerprint: str) -> Columns:
        self._known(fingerprint)
        columns = self._columns_of.get(fingerprint)
        if columns is None or columns.generation != self._generation(connection):
            table = database.rows_sql(connection)
            saved = snapshot.load(self.path / fingerprint, self._generation(connection), self.target, table)
            columns = self._columns_of[fingerprint] = saved or database.columns(connection, fingerprint, self.target)
        return columns

    def _segment(self, connection: duckdb.DuckDBPyConnection, fingerprint: str) -> Segment:
        columns = self._fresh_columns(connection, fingerprint)
        if not len(columns):
            raise UsageError(f"{self.path} holds no checkpoints of architecture {fingerprint} yet; add some")
        segment = self._segments.get(fingerprint)
        if segment is None or segment.columns is not columns:
            cache = self._cache(connection, fingerprint, columns)
            segment = self._segments[fingerprint] = planner.place(
                connection, fingerprint, columns, cache, self.metric, self._damaged.get(fingerprint)
            )
        return segment

    def _cache(self, connection: duckdb.DuckDBPyConnection, fingerprint: str, columns: Columns) -> vectors.Cache:
        """The newest FAISS file that is whole; made anew from the database, in memory, where none is."""
        cache = self.newest_cache(fingerprint, columns.generation)
        if cache is not None:
            return cache
        log.warning(
            "%s: the file of vectors is missing or damaged; its vectors are taken from %s instead "
            "(`weightsearch rebuild` writes it anew)",
            self.path / fingerprint, DATABASE,
        )  # fmt: skip
        factory = self.manifest["architectures"][fingerprint].get("factory")
        if reranked.is_reranked(factory or vectors.default_factory(len(columns))):
            factory = "Flat"  # codes take long to make
        return vectors.build(*database.embeddings(connection, fingerprint), self.metric, factory)

    def newest_cache(self, fingerprint: str, generation: int) -> vectors.Cache | None:
        """The newest FAISS file up to a generation that is as its description says; None where there is none."""
        for _ in range(2):  # a writer may remove a file just after it was listed here
            for path in vectors.cache_files(self.path / fingerprint, generation):
                cache = vectors.load(path, vectors.read_info(path, self.manifest))
                if cache is not None:
                    return cache
        return None

    def prepared(self, fingerprint: str, *, from_cache: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `(n,)` and vectors as FAISS takes them `(n, D)`: of the exact FAISS file where it has them."""
        with self.connection() as connection:
            columns = self._fresh_columns(connection, fingerprint)
            cache = self.newest_cache(fingerprint, columns.generation) if from_cache else None
            if cache is None or cache.matrix is None or cache.paged is not None:
                numbers, embeddings = database.embeddings(connection, fingerprint)
                return numbers, prepare(embeddings, self.metric)
            segment = planner.place(connection, fingerprint, columns, cache, self.metric)
        if segment.places is None:
            return columns.numbers, np.array(cache.matrix)
        return columns.numbers, np.concatenate([cache.matrix, segment.extra[::-1]])[segment.places]

    def width(self, fingerprint: str) -> int | None:
        """D, the embeddings' number of values; None where there are no rows."""
        self._known(fingerprint)
        with self.connection() as connection:
            row = database.first(
                connection,
                "SELECT octet_length(embedding) FROM ix.checkpoints WHERE architecture = ? LIMIT 1",
                [fingerprint],
            )
        return row[0] // 4 if row else None

    def _mask_of(self, segment: Segment | None, fingerprint: str, selection: Selection) -> np.ndarray | None:
        """The rows that pass, where that is known from an earlier search."""
        generation, mask = self._masks.get((fingerprint, selection.where, selection.not_run), (None, None))
        return mask if segment is not None and generation == segment.columns.generation else None

    def _mask(
        self, connection: duckdb.DuckDBPyConnection, segment: Segment, fingerprint: str, selection: Selection
    ) -> np.ndarray | None:
        """The rows `(n,)` that pass; None for all."""
        if not filters.has_filter(selection):
            return None
        mask = self._mask_of(segment, fingerprint, selection)
        if mask is None:
            mask = np.ones(len(segment), bool)
            if selection.where is not None:
                numbers = filters.passing(connection, fingerprint, selection.where)
                mask = np.zeros(len(segment), bool)
                mask[np.searchsorted(segment.columns.numbers, numbers)] = True
            if selection.not_run is not None:
                mask &= segment.columns.runs != database.hash_of(connection, selection.not_run)
            if len(self._masks) >= MASKS_KEPT:
                self._masks.pop(next(iter(self._masks)))
            key = (fingerprint, selection.where, selection.not_run)
            self._masks[key] = (segment.columns.generation, mask)
        return mask


ID_LETTERS = 16
ROWS_KEPT = 2_000
MASKS_KEPT = 16  # results of filters, a byte a row each


def _stamp(manifest: Path) -> Stamp | None:
    """Changes whenever the manifest is written; None while there is none, between two renames."""
    try:
        status = manifest.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


__all__ = ["IndexStore", "Neighbourhood", "Row"]
