"""An index opened for reading: its rows, its thresholds, and the search for neighbours."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import duckdb
import numpy as np

from weightsearch.distance import prepare
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import MISREAD
from weightsearch.index import checks, database, filters, planner, reranked, snapshot, vectors
from weightsearch.index.connection import Database
from weightsearch.index.database import Columns
from weightsearch.index.kept import IDS_LARGEST, Kept, NotKept, Watch
from weightsearch.index.lists import DamagedListError
from weightsearch.index.manifest import DATABASE, MANIFEST, Stamp, stamp_of, verified, verify_encoder
from weightsearch.index.paged import DamagedVectorsError
from weightsearch.index.planner import Segment
from weightsearch.index.thresholds import distinct, grades_of, thresholds_among
from weightsearch.types import Architecture, Metric, Neighbour, Plan, Selection, Target

REPLACED_WAIT_SECONDS = 2.0  # for another index to take a replaced one's place
ID_LETTERS = 16
T = TypeVar("T")

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
        # Of who is within `asked`: thread, connection (None: all is of memory) and generation.
        self._one = threading.Lock()  # thread at a time is within `asked`
        self._held: tuple[int, duckdb.DuckDBPyConnection | None, int] | None = None
        self._take_whole(*verified(path))

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens the index directory at `path`. Whatever lies in it is verified when it is first needed."""
        return cls(Path(path))

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
        self._sound_encoders: set[str] = set()  # by architecture
        self._rotten: set[str] = set()  # FAISS files, by their checksums, that turned out to be damaged
        self._damaged: dict[str, np.ndarray] = {}  # numbers of rows whose vectors are taken from the database
        self._found: tuple[Segment, Any, Plan, Any] | None = None  # the last search, for a second try of `asked`
        self._grades_of: dict[tuple[str | None, str | None], tuple[Columns, np.ndarray]] = {}
        self._watch = Watch(self.path / DATABASE)
        self._kept = Kept(-1)

    @property
    def identity(self) -> str:
        """Drawn when the index was made; of an index from before format 3, when its manifest was written."""
        return self.manifest.get("identity") or str(self._manifest_stamp)

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The database that the manifest is of: what is kept in memory of another one is let go first.

        A caller that looked at what is kept before it opened this looks again. Within `asked` it is open already.
        """
        if self._held is not None and self._held[0] == threading.get_ident():
            if self._held[1] is None:
                raise NotKept(f"{self.path} is asked again")
            yield self._held[1]
            return
        deadline = time.monotonic() + REPLACED_WAIT_SECONDS
        while True:
            self.refresh()
            with self.database.open() as connection:
                state = database.state(connection)
                # A manifest is migrated before its database, and both are read while neither is.
                if state.identity in (None, self.manifest.get("identity")):
                    self._watch.has_read()
                    if self._kept.generation != state.generation:
                        self._kept = Kept(state.generation)
                    yield connection
                    return
            if time.monotonic() > deadline:
                raise WeightsearchError(
                    f"{self.path}: {MANIFEST} and {DATABASE} are not of one index; restore both from one copy"
                )
            self._manifest_stamp = None  # replaced between the two looks
            time.sleep(0.01)

    def asked(self, ask: Callable[[], T]) -> T:
        """What `ask` gives, all of whose questions are about one generation of the index.

        They are answered from memory where the database has not changed since it was last read and all that they need
        is kept. Else `ask` is called (again) with the database attached, which nobody writes meanwhile: nothing slow
        but questions belongs in it.
        """
        if self._held is not None and self._held[0] == threading.get_ident():
            return ask()
        with self._one:
            self.refresh()
            if self._watch.is_unchanged():
                with contextlib.suppress(NotKept):
                    return self._ask(ask, None)
            with self.connection() as connection:
                return self._ask(ask, connection)

    def _ask(self, ask: Callable[[], T], connection: duckdb.DuckDBPyConnection | None) -> T:
        self._held = threading.get_ident(), connection, self._kept.generation
        try:
            return ask()
        finally:
            self._held = None

    @property
    def _generation(self) -> int:
        """That is asked about, within `asked`."""
        assert self._held is not None
        return self._held[2]

    def refresh(self) -> None:
        """Reads the manifest again where it has changed: for another index, or for one more architecture."""
        deadline = time.monotonic() + REPLACED_WAIT_SECONDS
        stamp = stamp_of(self.path)
        while stamp is None and time.monotonic() < deadline:  # between the two renames of a replacement
            time.sleep(0.01)
            stamp = stamp_of(self.path)
        if stamp is None or stamp != self._manifest_stamp:
            self._take_whole(*verified(self.path))

    def __len__(self) -> int:
        return sum(self.count(fingerprint) for fingerprint in self.architectures)

    def load(self, fingerprint: str) -> None:
        """Reads what searches of one architecture need, which the first search would do otherwise."""
        self._known(fingerprint)
        self.asked(lambda: self._segment(fingerprint))

    def encoder_directory(self, fingerprint: str) -> Path:
        """Where an architecture's encoder lies, whose files are verified by their checksums the first time.

        Raises WeightsearchError where one of them is missing or damaged.
        """
        self._known(fingerprint)
        if fingerprint not in self._sound_encoders:
            try:
                verify_encoder(self.path, self.manifest, fingerprint)
            except WeightsearchError:
                manifest = self.manifest
                self.refresh()
                if self.manifest is manifest:
                    raise
                return self.encoder_directory(fingerprint)  # of the index that took this one's place
            self._sound_encoders.add(fingerprint)
        return self.path / fingerprint

    def count(self, fingerprint: str) -> int:
        return len(self.columns(fingerprint))

    def numbers(self, fingerprint: str) -> np.ndarray:
        """The rows' numbers `(n,)` of one architecture, ascending."""
        return self.columns(fingerprint).numbers

    def accuracies(self, fingerprint: str, dataset: str | None = None) -> np.ndarray:
        """Test accuracies `(n,)`, or the other target, of an architecture's rows or those on `dataset`; NaN unknown."""
        columns = self.columns(fingerprint)
        return columns.values if dataset is None else columns.values[columns.datasets == self._hash(dataset)]

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
        among = list(self.architectures) if fingerprint is None else [fingerprint]
        return self.asked(lambda: self._find(id, among))

    def _find(self, id: str, among: list[str]) -> Row:
        if len(id) == ID_LETTERS and self._lacks(id, among):
            raise UsageError(f"{self.path} holds no checkpoint with id {id}")
        begins = "id = ?" if len(id) == ID_LETTERS else "starts_with(id, ?)"  # equality takes half as long
        with self.connection() as connection:
            rows = connection.execute(
                "SELECT architecture, number, id FROM ix.checkpoints "
                f"WHERE {begins} AND architecture IN ({database.places(among)}) LIMIT 3",
                [id, *among],
            ).fetchall()
            if not rows:
                for one in among:
                    checks.verify(connection, one, ["id"])
            if len(rows) != 1:
                several = ", ".join(f"{row[2]} of architecture {row[0]}" for row in rows)
                what = f"more than one ({several})" if rows else "no checkpoint"
                raise UsageError(f"{self.path} holds {what} with id {id}")
            architecture, number, _ = rows[0]
            return Row(architecture, *database.row(connection, architecture, number))

    def _lacks(self, id: str, among: list[str]) -> bool:
        """Whether no row has this id, as far as all ids are in memory; they are read once they will be needed again."""
        if not self._watch.is_settled or any(len(self._fresh_columns(one)) > IDS_LARGEST for one in among):
            return False
        return all(self._kept.lacks(self.connection, fingerprint, id) for fingerprint in among)

    def descriptions(self, fingerprint: str, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """What the layers of rows are like (see `layers`), `(F,)` by id, of those for which that was kept."""
        return self.asked(lambda: self._kept.descriptions_of(self.connection, fingerprint, ids))

    def finals(
        self, fingerprint: str, runs: Sequence[str], good: str | None = None, bad: str | None = None
    ) -> dict[str, tuple[float, float, int]]:
        """How each of `runs` ended: the last epoch with a known accuracy (or other target), that, and its grade."""
        return self.asked(lambda: self._finals(fingerprint, runs, good, bad))

    def _finals(
        self, fingerprint: str, runs: Sequence[str], good: str | None, bad: str | None
    ) -> dict[str, tuple[float, float, int]]:
        columns = self._fresh_columns(fingerprint)
        ends = self._kept.ends_of(self.connection, fingerprint, runs, self.target, columns.table)
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
        return thresholds_among(self.target, self.columns(fingerprint).values, good, bad)

    def grades(self, fingerprint: str, good: str | None = None, bad: str | None = None) -> np.ndarray:
        """1 where good, -1 where bad, else 0, `(n,)`: each row among those of its own dataset."""
        return self._grades(self.columns(fingerprint), good, bad)

    def only_dataset(self, fingerprint: str) -> str | None:
        """The dataset of all rows of one architecture; None where they are of several, or of none that is known."""
        return self.columns(fingerprint).only_dataset

    def search(
        self, fingerprint: str, vector: np.ndarray, k: int = 10, selection: Selection | None = None
    ) -> Neighbourhood:
        """The `k` nearest, nearest good and nearest bad rows of `vector (D,)` among those that pass `selection`."""
        selection = selection or Selection()
        filters.check_selection(selection)
        self._known(fingerprint)
        while True:
            try:
                return self.asked(lambda: self._search(fingerprint, vector, k, selection))
            except (DamagedListError, DamagedVectorsError) as error:
                self._pass_over(fingerprint, error)

    def _pass_over(self, fingerprint: str, error: DamagedListError | DamagedVectorsError) -> None:
        """Takes the vectors that were found damaged from the database from now on, or all of them."""
        segment = self._segments.pop(fingerprint)
        if segment.cache.paged is None or isinstance(error, DamagedListError):
            self._rotten.add(str(segment.cache.info.file and segment.cache.info.file["xxh3"]))
            return
        error = segment.cache.paged.all_damage() or error  # one page is rarely alone
        message = "%s: %s in the file of vectors are damaged, and are taken from %s until `weightsearch rebuild`"
        log.warning(message, self.path / fingerprint, error, DATABASE)
        numbers = segment.cache.numbers[error.positions]
        self._damaged[fingerprint] = np.union1d(self._damaged.get(fingerprint, numbers), numbers)

    def _search(self, fingerprint: str, vector: np.ndarray, k: int, selection: Selection) -> Neighbourhood:
        start = time.perf_counter()
        segment = self._segment(fingerprint)
        asked = (self._generation, vector.tobytes(), k, selection)
        if self._found is None or self._found[0] is not segment or self._found[1] != asked:
            mask = self._mask(segment, fingerprint, selection)
            name, lists = self._lists(segment, vector, k, selection, mask)
            passing = len(segment) if mask is None else int(np.count_nonzero(mask))
            self._found = segment, asked, Plan(name, passing, len(segment), time.perf_counter() - start), lists
        *_, plan, lists = self._found
        near, good, bad = self._neighbours(segment, lists, selection)
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
        self, segment: Segment, lists: list[tuple[np.ndarray, np.ndarray]], selection: Selection
    ) -> list[tuple[Neighbour, ...]]:
        numbers = segment.columns.numbers
        grades = self._grades(segment.columns, selection.good, selection.bad)
        wanted = distinct(np.concatenate([numbers[rows] for rows, _ in lists]))
        by_number = self._kept.rows_of(self.connection, segment.columns, wanted.tolist())

        def neighbour(row: int, distance: float) -> Neighbour:
            id, accuracy, epoch, run, recipe, dataset, metadata, source = by_number[int(numbers[row])]
            value = float(segment.columns.values[row])
            return Neighbour(
                id, distance, accuracy, epoch, run, dict(recipe), None if np.isnan(value) else value, dataset,
                dict(metadata), int(grades[row]), source,
            )  # fmt: skip

        return [
            tuple(neighbour(row, distance) for row, distance in zip(rows.tolist(), distances.tolist(), strict=True))
            for rows, distances in lists
        ]

    def _known(self, fingerprint: str) -> None:
        if fingerprint not in self.architectures:
            held = ", ".join(self.architectures)
            raise WeightsearchError(f"{self.path} holds no architecture {fingerprint}; it holds {held}")

    def columns(self, fingerprint: str) -> Columns:
        """What searches need of all rows of one architecture."""
        return self.asked(lambda: self._fresh_columns(fingerprint))

    def _fresh_columns(self, fingerprint: str) -> Columns:
        """Of the generation that is asked about, within `asked`."""
        self._known(fingerprint)
        columns, generation = self._columns_of.get(fingerprint), self._generation
        if columns is None or columns.generation != generation:
            with self.connection() as connection:
                saved = snapshot.load(self.path / fingerprint, generation, self.target, connection)
                columns = saved or database.columns(connection, fingerprint, self.target)
            self._columns_of[fingerprint] = columns
        return columns

    def _segment(self, fingerprint: str) -> Segment:
        columns = self._fresh_columns(fingerprint)
        if not len(columns):
            raise UsageError(f"{self.path} holds no checkpoints of architecture {fingerprint} yet; add some")
        segment = self._segments.get(fingerprint)
        if segment is None or segment.columns is not columns:
            self._found = None  # nor are an older segment's vectors kept
            with self.connection() as connection:
                cache = self._cache(connection, fingerprint, columns)
                segment = self._segments[fingerprint] = planner.place(
                    connection, fingerprint, columns, cache, self.metric, self._damaged.get(fingerprint)
                )
        return segment

    def _cache(self, connection: duckdb.DuckDBPyConnection, fingerprint: str, columns: Columns) -> vectors.Cache:
        """The newest FAISS file that is whole; made anew from the database, in memory, where none is."""
        cache = self.newest_cache(fingerprint, columns.generation, at_once=False)
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

    def newest_cache(self, fingerprint: str, generation: int, *, at_once: bool = True) -> vectors.Cache | None:
        """The newest FAISS file up to a generation that is as its description says; None where there is none.

        Where not `at_once`, its exact vectors are verified as they are used: see `vectors.Cache.blocks`.
        """
        for _ in range(2):  # a writer may remove a file just after it was listed here
            for path in vectors.cache_files(self.path / fingerprint, generation):
                info = vectors.read_info(path, self.manifest)
                if info is None or (info.file is not None and info.file.get("xxh3") in self._rotten):
                    continue
                cache = vectors.load(path, info, at_once=at_once)
                if cache is not None:
                    return cache
        return None

    def prepared(self, fingerprint: str, *, from_cache: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `(n,)` and vectors as FAISS takes them `(n, D)`: of the exact FAISS file where it has them."""
        return self.asked(lambda: self._prepared(fingerprint, from_cache))

    def _prepared(self, fingerprint: str, from_cache: bool) -> tuple[np.ndarray, np.ndarray]:
        columns = self._fresh_columns(fingerprint)
        cache = self.newest_cache(fingerprint, columns.generation) if from_cache else None
        with self.connection() as connection:
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
        statement = "SELECT octet_length(embedding) FROM ix.checkpoints WHERE architecture = ? LIMIT 1"
        with self.connection() as connection:
            row = database.first(connection, statement, [fingerprint])
        return row[0] // 4 if row else None

    def _mask(self, segment: Segment, fingerprint: str, selection: Selection) -> np.ndarray | None:
        """The rows `(n,)` that pass; None for all."""
        mask, columns = None, segment.columns
        if selection.where is not None:
            mask = self._kept.passing(self.connection, fingerprint, selection.where, columns.numbers)
        if selection.not_run is not None:
            others = columns.runs != self._hash(selection.not_run)
            mask = others if mask is None else mask & others
        return mask

    def _hash(self, name: str) -> np.uint64:
        """As in `Columns.runs` and `.datasets`."""
        attached = self._held and self._held[1]
        of = self.database.hash_of if attached is None else partial(database.hash_of, attached)
        return self._kept.hash_of(name, of)


__all__ = ["IndexStore", "Neighbourhood", "Row"]
