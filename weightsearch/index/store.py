"""An index opened for reading: its rows, its thresholds, and the search for neighbours."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np

from weightsearch.distance import prepare
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import database as catalogue
from weightsearch.index import filters, planner, vectors
from weightsearch.index.database import Catalogue, Columns
from weightsearch.index.manifest import DATABASE, is_intact, read_manifest
from weightsearch.index.planner import Shelf
from weightsearch.types import Architecture, Metric, Neighbour, Plan, Selection, Target

GOOD, BAD = "q75", "q25"  # good are the top quarter, bad the bottom quarter

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


class Index:
    """An index opened for reading. Holds no lock between calls, and sees what others have committed since.

    Arrays over rows are ordered by the rows' number, which is the order in which they were added.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.metric = Metric(manifest["metric"])
        self.target = Target(**manifest.get("target", {}))
        self.architectures = {
            fingerprint: Architecture.from_dict(entry["layers"])
            for fingerprint, entry in manifest["architectures"].items()
        }
        self.catalogue = Catalogue(path / DATABASE)
        self._columns_of: dict[str, Columns] = {}
        self._shelves: dict[str, Shelf] = {}
        self._masks: dict[tuple[str, str | None, str | None], tuple[int, np.ndarray]] = {}
        self._grades_of: dict[tuple[str | None, str | None], tuple[Columns, np.ndarray]] = {}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens the index directory at `path`; verifies files that changed since the manifest was written."""
        path = Path(path)
        manifest = read_manifest(path)
        for name, expected in manifest["files"].items():
            if not name.endswith(".faiss") and not is_intact(path / name, expected):
                raise WeightsearchError(
                    f"{path / name} is missing or damaged (its checksum is not the manifest's); "
                    "restore it from a copy or make the index again with `weightsearch train`"
                )
        if not (path / DATABASE).is_file():
            raise WeightsearchError(f"{path / DATABASE} is missing; restore it from a copy or make the index again")
        return cls(path, manifest)

    def __len__(self) -> int:
        return sum(self.count(fingerprint) for fingerprint in self.architectures)

    def load(self, fingerprint: str) -> None:
        """Reads what searches of one architecture need, which the first search would do otherwise."""
        self._known(fingerprint)
        with self.catalogue.open() as connection:
            self._shelf(connection, fingerprint)

    def encoder_directory(self, fingerprint: str) -> Path:
        return self.path / fingerprint

    def count(self, fingerprint: str) -> int:
        return len(self._columns(fingerprint))

    def accuracies(self, fingerprint: str) -> np.ndarray:
        """Test accuracies `(n,)`, or the index's other target, of one architecture's rows; NaN where unknown."""
        return self._columns(fingerprint).values

    def embeddings(self, fingerprint: str) -> np.ndarray:
        """All embeddings `(n, D)` of one architecture."""
        self._known(fingerprint)
        with self.catalogue.open() as connection:
            return catalogue.embeddings(connection, fingerprint)[1]

    def table(self, fingerprint: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns `(n,)` by name: `catalogue.COLUMNS`, recipe keys and the user's own.

        Numbers are float64 with NaN where unknown, texts objects with None.
        """
        self._known(fingerprint)
        with self.catalogue.open() as connection:
            return catalogue.table(connection, fingerprint, columns, catalogue.key_types(connection))

    def keys(self) -> dict[str, str]:
        """Recipe keys and the user's columns by name, with their DuckDB types: what filters know beside COLUMNS."""
        with self.catalogue.open() as connection:
            return catalogue.key_types(connection)

    def find(self, id: str) -> Row:
        """The row with this id or with the only id that begins so. Raises UsageError for none or several."""
        if not id or not all(letter in "0123456789abcdef" for letter in id):
            raise UsageError(f"{id!r} is no id; ids are 16 hexadecimal digits, as queries show them")
        with self.catalogue.open() as connection:
            found = connection.execute(
                "SELECT architecture, number, id FROM ix.checkpoints WHERE id = ? OR (starts_with(id, ?)) LIMIT 3",
                [id, id],
            ).fetchall()
            found = [row for row in found if row[0] in self.architectures]
            if len(found) != 1:
                what = "no checkpoint" if not found else f"more than one ({', '.join(row[2] for row in found)})"
                raise UsageError(f"{self.path} holds {what} with id {id}")
            fingerprint, number, _ = found[0]
            return Row(fingerprint, *catalogue.row(connection, fingerprint, number))

    def descriptions(self, fingerprint: str, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """What the layers of rows are like (see `layers`), `(F,)` by id, of those for which that was kept."""
        with self.catalogue.open() as connection:
            return catalogue.descriptions(connection, fingerprint, ids)

    def finals(
        self, fingerprint: str, runs: Sequence[str], good: str | None = None, bad: str | None = None
    ) -> dict[str, tuple[int, float, int]]:
        """How each of `runs` ended: the last epoch with a known accuracy (or other target), that, and its grade."""
        with self.catalogue.open() as connection:
            columns = self._fresh_columns(connection, fingerprint)
            found = catalogue.finals(connection, fingerprint, runs, self.target)
        grades = self._grades(columns, good, bad)
        return {
            run: (epoch, value, int(grades[np.searchsorted(columns.numbers, number)]))
            for run, (epoch, value, number) in found.items()
        }

    def thresholds(self, fingerprint: str, good: str | None = None, bad: str | None = None) -> tuple[float, float]:
        """Bad at or worse than the first, good at or better than the second, over all rows of one architecture.

        `good` and `bad` are values ("0.9") or quantiles ("q75": better than 75 % of the rows with a known value); by
        default the quartiles. NaN where no row has a known value.
        """
        return _thresholds(self.target, self._columns(fingerprint).values, good, bad)

    def grades(self, fingerprint: str, good: str | None = None, bad: str | None = None) -> np.ndarray:
        """1 where good, -1 where bad, else 0, `(n,)`: each row among those of its own dataset."""
        return self._grades(self._columns(fingerprint), good, bad)

    def search(
        self, fingerprint: str, vector: np.ndarray, k: int = 10, selection: Selection | None = None
    ) -> Neighbourhood:
        """The `k` nearest, nearest good and nearest bad rows of `vector (D,)` among those that pass `selection`."""
        selection = selection or Selection()
        _check(selection)
        self._known(fingerprint)
        start = time.perf_counter()
        shelf = self._shelves.get(fingerprint)
        mask = self._mask_of(shelf, fingerprint, selection)
        found, seconds = None, 0.0
        if shelf is not None and (mask is not None or not _filters(selection)):
            found = self._lists(shelf, vector, k, selection, mask)
            seconds = time.perf_counter() - start
        with self.catalogue.open() as connection:
            if found is None or shelf is None or catalogue.generation(connection) != shelf.columns.generation:
                shelf = self._shelf(connection, fingerprint)
                mask = self._mask(connection, shelf, fingerprint, selection)
                found = self._lists(shelf, vector, k, selection, mask)
                seconds = time.perf_counter() - start
            name, lists = found
            passing = len(shelf) if mask is None else int(np.count_nonzero(mask))
            plan = Plan(name, passing, len(shelf), seconds)
            near, good, bad = self._neighbours(connection, shelf, lists, selection)
        return Neighbourhood(near, good, bad, plan)

    def _lists(
        self, shelf: Shelf, vector: np.ndarray, k: int, selection: Selection, mask: np.ndarray | None
    ) -> tuple[str, list[tuple[np.ndarray, np.ndarray]]]:
        if not 1 <= k <= len(shelf):
            raise UsageError(
                f"k = {k}: the index holds {len(shelf):,} checkpoints of this architecture; "
                f"choose --k between 1 and {len(shelf)}"
            )
        vectors.check_query(vector, shelf.cache.inner.d)
        return planner.search(
            shelf, prepare(vector[None], self.metric)[0], k,
            mask=mask, grades=self._grades(shelf.columns, selection.good, selection.bad),
            within=selection.within, per_run=selection.per_run,
        )  # fmt: skip

    def _grades(self, columns: Columns, good: str | None, bad: str | None) -> np.ndarray:
        known = self._grades_of.get((good, bad))
        if known is not None and known[0] is columns:
            return known[1]
        quality = self.target.quality(columns.values)
        grades = np.zeros(len(columns), np.int8)
        for dataset in _distinct(columns.datasets):
            here = columns.datasets == dataset
            low, high = _thresholds(self.target, columns.values[here], good, bad)
            with np.errstate(invalid="ignore"):
                grades[here & (quality >= self.target.quality(high))] = 1
                grades[here & (quality <= self.target.quality(low)) & (grades == 0)] = -1
        self._grades_of = {(good, bad): (columns, grades)}
        return grades

    def _neighbours(
        self,
        connection: duckdb.DuckDBPyConnection,
        shelf: Shelf,
        lists: list[tuple[np.ndarray, np.ndarray]],
        selection: Selection,
    ) -> list[tuple[Neighbour, ...]]:
        numbers = shelf.columns.numbers
        grades = self._grades(shelf.columns, selection.good, selection.bad)
        wanted = _distinct(np.concatenate([numbers[rows] for rows, _ in lists]))
        found = connection.execute(
            "SELECT number, id, test_accuracy, epoch, run, recipe, dataset, metadata "
            f"FROM {shelf.columns.table} WHERE number IN ({','.join(map(str, wanted.tolist())) or 'NULL'})"
        ).fetchall()
        by_number = {number: rest for number, *rest in found}

        def neighbour(row: int, distance: float) -> Neighbour:
            id, accuracy, epoch, run, recipe, dataset, metadata = by_number[int(numbers[row])]
            value = float(shelf.columns.values[row])
            return Neighbour(
                id, distance, accuracy, epoch, run, json.loads(recipe or "{}"),
                None if np.isnan(value) else value, dataset, json.loads(metadata or "{}"), int(grades[row]),
            )  # fmt: skip

        return [
            tuple(neighbour(row, distance) for row, distance in zip(rows.tolist(), away.tolist(), strict=True))
            for rows, away in lists
        ]

    def _known(self, fingerprint: str) -> None:
        if fingerprint not in self.architectures:
            known = ", ".join(self.architectures)
            raise WeightsearchError(f"{self.path} holds no architecture {fingerprint}; it holds {known}")

    def _columns(self, fingerprint: str) -> Columns:
        self._known(fingerprint)
        with self.catalogue.open() as connection:
            return self._fresh_columns(connection, fingerprint)

    def _fresh_columns(self, connection: duckdb.DuckDBPyConnection, fingerprint: str) -> Columns:
        known = self._columns_of.get(fingerprint)
        if known is None or known.generation != catalogue.generation(connection):
            known = self._columns_of[fingerprint] = catalogue.columns(connection, fingerprint, self.target)
        return known

    def _shelf(self, connection: duckdb.DuckDBPyConnection, fingerprint: str) -> Shelf:
        columns = self._fresh_columns(connection, fingerprint)
        if not len(columns):
            raise UsageError(f"{self.path} holds no checkpoints of architecture {fingerprint} yet; add some")
        shelf = self._shelves.get(fingerprint)
        if shelf is None or shelf.columns is not columns:
            cache = self._cache(connection, fingerprint, columns)
            shelf = self._shelves[fingerprint] = _place(connection, fingerprint, columns, cache, self.metric)
        return shelf

    def _cache(self, connection: duckdb.DuckDBPyConnection, fingerprint: str, columns: Columns) -> vectors.Cache:
        """The newest FAISS file that is whole; made anew from the catalogue, in memory, where none is."""
        cache = self.newest_cache(fingerprint, columns.generation)
        if cache is not None:
            return cache
        log.warning(
            "%s: the file of vectors is missing or damaged; its vectors are taken from %s instead "
            "(`weightsearch rebuild` writes it anew)",
            self.path / fingerprint, DATABASE,
        )  # fmt: skip
        factory = self.manifest["architectures"][fingerprint].get("factory")
        return vectors.build(*catalogue.embeddings(connection, fingerprint), self.metric, factory)

    def newest_cache(self, fingerprint: str, generation: int, *, thorough: bool = False) -> vectors.Cache | None:
        """The newest FAISS file up to a generation that is as its description says; None where there is none."""
        for _ in range(2):  # a writer may remove a file just after it was listed here
            for path in vectors.cache_files(self.path / fingerprint, generation):
                cache = vectors.load(path, vectors.read_info(path, self.manifest), thorough=thorough)
                if cache is not None:
                    return cache
        return None

    def prepared(self, fingerprint: str, *, from_cache: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `(n,)` and vectors as FAISS takes them `(n, D)`: of the exact FAISS file where it has them."""
        with self.catalogue.open() as connection:
            columns = self._fresh_columns(connection, fingerprint)
            cache = self.newest_cache(fingerprint, columns.generation) if from_cache else None
            if cache is None or cache.matrix is None:
                numbers, found = catalogue.embeddings(connection, fingerprint)
                return numbers, prepare(found, self.metric)
            shelf = _place(connection, fingerprint, columns, cache, self.metric)
        if shelf.places is None:
            return columns.numbers, np.array(cache.matrix)
        return columns.numbers, np.concatenate([cache.matrix, shelf.extra[::-1]])[shelf.places]

    def width(self, fingerprint: str) -> int | None:
        """D, the embeddings' number of values; None where there are no rows."""
        self._known(fingerprint)
        with self.catalogue.open() as connection:
            row = catalogue.first(
                connection,
                "SELECT octet_length(embedding) FROM ix.checkpoints WHERE architecture = ? LIMIT 1",
                [fingerprint],
            )
        return row[0] // 4 if row else None

    def _mask_of(self, shelf: Shelf | None, fingerprint: str, selection: Selection) -> np.ndarray | None:
        """The rows that pass, where that is known from an earlier search."""
        generation, mask = self._masks.get((fingerprint, selection.where, selection.not_run), (None, None))
        return mask if shelf is not None and generation == shelf.columns.generation else None

    def _mask(
        self, connection: duckdb.DuckDBPyConnection, shelf: Shelf, fingerprint: str, selection: Selection
    ) -> np.ndarray | None:
        """The rows `(n,)` that pass; None for all."""
        if not _filters(selection):
            return None
        mask = self._mask_of(shelf, fingerprint, selection)
        if mask is None:
            mask = np.ones(len(shelf), bool)
            if selection.where is not None:
                numbers = filters.passing(connection, fingerprint, selection.where)
                mask = np.isin(shelf.columns.numbers, numbers, assume_unique=True)
            if selection.not_run is not None:
                mask &= shelf.columns.runs != catalogue.hash_of(connection, selection.not_run)
            if len(self._masks) >= MASKS_KEPT:
                self._masks.pop(next(iter(self._masks)))
            key = (fingerprint, selection.where, selection.not_run)
            self._masks[key] = (shelf.columns.generation, mask)
        return mask


MASKS_KEPT = 16  # results of filters, a byte a row each


def _filters(selection: Selection) -> bool:
    return selection.where is not None or selection.not_run is not None


def _check(selection: Selection) -> None:
    if selection.within is not None and not selection.within >= 0:
        raise UsageError(f"--within {selection.within}: choose a distance of at least 0")
    if selection.per_run is not None and selection.per_run < 1:
        raise UsageError(f"--per-run {selection.per_run}: choose at least 1")


def _place(
    connection: duckdb.DuckDBPyConnection, fingerprint: str, columns: Columns, cache: vectors.Cache, metric: Metric
) -> Shelf:
    """Finds each row's vector in the cache; those that it lacks come from the catalogue."""
    width = cache.inner.d
    if np.array_equal(cache.numbers, columns.numbers):
        return Shelf(columns, cache, metric, None, np.empty((0, width), np.float32))
    at = np.searchsorted(cache.numbers, columns.numbers)
    cached = np.zeros(len(columns), bool)
    inside = at < len(cache.numbers)
    cached[inside] = cache.numbers[at[inside]] == columns.numbers[inside]
    extra = catalogue.embeddings(connection, fingerprint, columns.numbers[~cached])[1]
    places = np.where(cached, at, 0)
    places[~cached] = -1 - np.arange(len(columns) - np.count_nonzero(cached))
    prepared = prepare(extra, metric) if len(extra) else np.empty((0, width), np.float32)
    return Shelf(columns, cache, metric, places, prepared)


def _thresholds(target: Target, values: np.ndarray, good: str | None, bad: str | None) -> tuple[float, float]:
    quality = np.sort(target.quality(values[~np.isnan(values)]))

    def threshold(text: str, flag: str) -> float:
        share = text[1:] if text.startswith("q") else None
        try:
            number = float(text if share is None else share)
            if np.isnan(number) or (share is not None and not 0 <= number <= 100):
                raise ValueError
        except ValueError:
            raise UsageError(f"{flag} {text}: give a value such as 0.9, or a quantile from q0 to q100") from None
        if share is None:
            return number
        if not len(quality):
            return float("nan")
        place = number / 100 * (len(quality) - 1)
        return float(target.quality(np.interp(place, np.arange(len(quality)), quality)))

    return threshold(bad or BAD, "--bad"), threshold(good or GOOD, "--good")


def _distinct(values: np.ndarray) -> np.ndarray:
    """As np.unique, which imports numpy.ma (a tenth of what a question about an id takes) unless it counts as well."""
    return np.unique(values, return_counts=True)[0]


__all__ = ["Index", "Neighbourhood", "Row"]
