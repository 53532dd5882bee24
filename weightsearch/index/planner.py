"""The nearest rows of one architecture: which way to search, and the lists of all, good and bad rows from one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import duckdb
import numpy as np

from weightsearch.distance import prepare
from weightsearch.index import database, vectors
from weightsearch.index.database import Columns
from weightsearch.index.vectors import Cache
from weightsearch.types import Metric

# Share of rows passing below which an approximate index is left aside for an exact search of just those rows, and
# below which an exact search looks at just those rows rather than at all, which lie in a row.
FEW, SOME = 0.1, 0.3
FEW_OF_CODES = 0.02  # as FEW, where codes are searched: among so many rows their search is quicker down to fewer
BLOCK = 64
SORTED = 2_000  # so few distances are sorted once, which is quicker than looking for the smallest of each list
AT_FIRST = 16  # times k: how many rows an approximate index is asked for, in the hope that all lists are among them


@dataclass(frozen=True)
class Segment:
    """One architecture's rows and vectors as of one generation.

    `places (n,)` says where each row's vector is: at that position of the cache, or, negative, at `-1 - place` of
    `extra (m, D)`, the prepared vectors of rows that the cache lacks. None where row i is at position i.
    """

    columns: Columns
    cache: Cache
    metric: Metric
    places: np.ndarray | None
    extra: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    def distances(self, query: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """From prepared `query (D,)` to all rows, or to `rows (m,)`: exact, of a compressed index as decoded."""
        if self.places is None:
            return self._cached(query, rows)
        places = self.places if rows is None else self.places[rows]
        cached = places >= 0
        out = np.empty(len(places), np.float32)
        out[cached] = self._cached(query, places[cached])
        out[~cached] = vectors.distances(query, self.extra, self.metric, -1 - places[~cached])
        return out

    def _cached(self, query: np.ndarray, at: np.ndarray | None) -> np.ndarray:
        blocks = self.cache.blocks
        if blocks is not None and at is None and not blocks.checked.all():
            return vectors.verified_distances(query, blocks, self.metric)
        for pages in (self.cache.paged, blocks):
            if pages is not None and not pages.checked.all():
                pages.check(at)
        if self.cache.matrix is not None:
            return vectors.distances(query, self.cache.matrix, self.metric, at)
        decoded = vectors.decode(self.cache, at)
        return vectors.distances(query, decoded, self.metric)

    @property
    def few(self) -> float:
        """The share of passing rows up to which these are searched exactly."""
        return FEW if self.cache.paged is None else FEW_OF_CODES

    @cached_property
    def _rows(self) -> np.ndarray | None:
        """The row at each position of the cache, -1 where that was removed; None where it is the position."""
        if self.places is None:
            return None
        rows = np.full(len(self.cache.numbers), -1)
        rows[self.places[self.places >= 0]] = np.flatnonzero(self.places >= 0)
        return rows

    def approximate(
        self, query: np.ndarray, k: int, mask: np.ndarray | None, depth: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and distances of about the `k` nearest where `mask (n,)` is true, in any order.

        `depth` is the rank, among all rows, down to which the wanted ones will lie.
        """
        rows = self._rows
        if rows is None or self.places is None:
            return vectors.approximate(self.cache, query, k, self.metric, mask, depth)
        among = rows >= 0 if mask is None else (rows >= 0) & mask[rows]
        at, distances = vectors.approximate(self.cache, query, k, self.metric, among, depth)
        lacking = np.flatnonzero(self.places < 0 if mask is None else (self.places < 0) & mask)
        return np.concatenate([rows[at], lacking]), np.concatenate([distances, self.distances(query, lacking)])


def place(
    connection: duckdb.DuckDBPyConnection,
    fingerprint: str,
    columns: Columns,
    cache: Cache,
    metric: Metric,
    damaged: np.ndarray | None = None,
) -> Segment:
    """Finds each row's vector in the cache; those that it lacks, or that are `damaged` in it, are the database's."""
    width = cache.inner.d
    if damaged is None and np.array_equal(cache.numbers, columns.numbers):
        return Segment(columns, cache, metric, None, np.empty((0, width), np.float32))
    at = np.searchsorted(cache.numbers, columns.numbers)
    cached = np.zeros(len(columns), bool)
    inside = at < len(cache.numbers)
    cached[inside] = cache.numbers[at[inside]] == columns.numbers[inside]
    if damaged is not None:
        cached &= ~np.isin(columns.numbers, damaged)
    extra = database.embeddings(connection, fingerprint, columns.numbers[~cached])[1]
    places = np.where(cached, at, 0)
    places[~cached] = -1 - np.arange(len(columns) - np.count_nonzero(cached))
    prepared = prepare(extra, metric) if len(extra) else np.empty((0, width), np.float32)
    return Segment(columns, cache, metric, places, prepared)


def search(
    segment: Segment,
    query: np.ndarray,
    k: int,
    *,
    mask: np.ndarray | None,
    grades: np.ndarray,
    within: float | None = None,
    per_run: int | None = None,
) -> tuple[str, list[tuple[np.ndarray, np.ndarray]]]:
    """The plan's name, and rows and distances, nearest first, of the lists of all, good and bad rows.

    Args:
        query: `(D,)`, prepared.
        mask: `(n,)` bool, the rows that pass the filter; None for all.
        grades: `(n,)`, 1 where good, -1 where bad.
    """
    passing = len(segment) if mask is None else int(np.count_nonzero(mask))
    if not segment.cache.is_exact and passing > segment.few * len(segment):
        first = segment.approximate(query, min(AT_FIRST * k, passing), mask, 2 * k * len(segment) / passing)
        order = np.lexsort(first)
        first = (first[0][order], first[1][order])
        lists = [
            _pick(_growing(segment, query, k, mask, grades, wanted, first), k, within, per_run, segment.columns.runs)
            for wanted in (None, 1, -1)
        ]
        return f"{segment.cache.info.factory}{'' if mask is None else ' with a selector'}", lists
    rows, name = None, "exact, all rows"
    if mask is not None and passing <= SOME * len(segment):
        rows, name = np.flatnonzero(mask), "exact, passing rows"
        mask, grades = None, grades[rows]
    distances = segment.distances(query, rows)
    if mask is not None:
        distances[~mask] = np.inf
        grades = np.where(mask, grades, 0)
    ordered = np.argsort(distances, kind="stable") if mask is None and len(distances) <= SORTED else None
    lists = []
    for wanted in (mask, grades > 0, grades < 0):
        parts = _nearest(distances, wanted, k, ordered)
        mapped = ((part if rows is None else rows[part], distances[part], done) for part, done in parts)
        lists.append(_pick(mapped, k, within, per_run, segment.columns.runs))
    return name, lists


# Candidates: ever longer lists of rows and distances, nearest first, and whether there are no more.
Candidates = Iterator[tuple[np.ndarray, np.ndarray, bool]]


def _nearest(
    distances: np.ndarray, wanted: np.ndarray | None, k: int, order: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, bool]]:
    """Ever more positions of the smallest distances, in order, and whether those are all.

    `order (n,)` are all positions in order, where that is known.
    """
    if order is not None:
        yield order if wanted is None else order[wanted[order]], True
        return
    total = len(distances) if wanted is None else int(np.count_nonzero(wanted))
    if wanted is not None:
        distances = np.where(wanted, distances, np.float32(np.inf))
    while True:
        yield smallest(distances, min(k, total)), k >= total
        k *= 4


def _growing(
    segment: Segment,
    query: np.ndarray,
    k: int,
    mask: np.ndarray | None,
    grades: np.ndarray,
    grade: int | None,
    first: tuple[np.ndarray, np.ndarray],
) -> Candidates:
    """Rows of a grade, or of any: from the `first` ones found for all lists, then from an approximate index, or exactly
    where few pass."""
    of_grade = np.ones(len(first[0]), bool) if grade is None else grades[first[0]] == grade
    yield first[0][of_grade], first[1][of_grade], False
    if grade is not None:  # only here: it takes longer than a search
        mask = (grades == grade) if mask is None else mask & (grades == grade)
    total = len(segment) if mask is None else int(np.count_nonzero(mask))
    while True:
        if mask is not None and total <= max(segment.few * len(segment), k):
            rows, distances = np.flatnonzero(mask), segment.distances(query, np.flatnonzero(mask))
        else:
            rows, distances = segment.approximate(query, min(k, total), mask, k * len(segment) / max(total, 1))
        order = np.lexsort((rows, distances))[:k]
        yield rows[order], distances[order], k >= total
        k *= 4


def _pick(
    candidates: Candidates, k: int, within: float | None, per_run: int | None, runs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first `k` candidates within the radius, at most `per_run` of each run; asks for more while there are any."""
    while True:
        rows, distances, done = next(candidates)
        if within is not None:
            near = distances <= within
            done = done or not near.all()
            rows, distances = rows[near], distances[near]
        if per_run is not None:
            seen: Counter[int] = Counter()
            kept = np.zeros(len(rows), bool)
            for i, run in enumerate(runs[rows].tolist()):
                seen[run] += 1
                kept[i] = seen[run] <= per_run
            rows, distances = rows[kept], distances[kept]
        if done or len(rows) >= k:
            return rows[:k], distances[:k]


def smallest(values: np.ndarray, k: int) -> np.ndarray:
    """Positions of the `k` smallest values in order, equal ones by position.

    The k smallest lie in the k blocks whose minima are smallest, so that only those need a closer look.
    """
    blocks = len(values) // BLOCK
    if 4 * k >= blocks:
        candidates = np.arange(len(values))
    else:
        minima = values[: blocks * BLOCK].reshape(blocks, BLOCK).min(axis=1)
        # All blocks whose minimum ties with the k-th count, or equal values further on could win by chance.
        limit = np.partition(minima, k - 1)[k - 1] if k else -np.inf
        inside = (np.flatnonzero(minima <= limit)[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        candidates = np.concatenate([inside, np.arange(blocks * BLOCK, len(values))])
    near = values[candidates]
    if 0 < k < len(near):
        candidates = candidates[near <= np.partition(near, k - 1)[k - 1]]
    return candidates[np.argsort(values[candidates], kind="stable")[:k]]
