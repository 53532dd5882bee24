"""Groups of files that hold the same weights, and what could be freed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.index.connection import Database
from weightsearch.index.manifest import DATABASE
from weightsearch.relations.compare import compare
from weightsearch.relations.kinds import Kind
from weightsearch.relations.search import open_source
from weightsearch.relations.store import read_columns, read_numbers, read_signatures


@dataclass(frozen=True)
class Duplicates:
    """One group: `sources` the first of which to keep, `bytes` of each; `how` is each one's relation to the first."""

    sources: tuple[str, ...]
    bytes: tuple[int, ...]
    how: tuple[Kind, ...]

    @property
    def freed(self) -> int:
        """Bytes of all but the first, those in a zoo not counted."""
        return sum(self.bytes[1:])

    def to_dict(self) -> dict[str, Any]:
        members = [
            {"source": source, "bytes": size, "relation": str(kind)}
            for source, size, kind in zip(self.sources, self.bytes, self.how, strict=True)
        ]
        return {"keep": self.sources[0], "freed_bytes": self.freed, "members": members}


class Groups:
    """Disjoint sets of rows (union–find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, one: int, other: int) -> None:
        self._parent[self.root(other)] = self.root(one)

    def members(self) -> list[list[int]]:
        by_root: dict[int, list[int]] = defaultdict(list)
        for row in range(len(self._parent)):
            by_root[self.root(row)].append(row)
        return list(by_root.values())


def find_duplicates(index: str | Path) -> list[Duplicates]:
    """Groups of the same weights among an index's files, whatever their format, names, layout and precision.

    The most freed bytes first. Of each group the first is the most precise and, among those, the largest, since it may
    hold more than weights. Files with the same numbers in another order are compared; those that only do the same
    (permuted units) are no duplicates. What is in memory is what is told, and a few numbers of each signature.
    """
    numbers, groups = same_weights(Path(index))
    several = [numbers[rows].tolist() for rows in groups.members() if len(rows) > 1]
    duplicates = []
    for some in batches(several):
        files = _files(Path(index), [number for group in some for number in group])
        for group in some:
            members = sorted((files[number] for number in group if number in files), key=_worth)
            first = members[0]
            duplicates.append(
                Duplicates(
                    tuple(member.source for member in members),
                    tuple(member.bytes for member in members),
                    tuple(_how(first, member) for member in members),
                )
            )
    return sorted(duplicates, key=lambda group: -group.freed)


def _joined(kept: str, keys: str, column: str, condition: str) -> str:
    """Pairs of a signature and the first whose `keys` is its `column`, of keys that `kept` chooses."""
    return (
        f"SELECT s.number AS one, f.first AS other FROM ix.signatures s JOIN (SELECT {keys} AS key, min(number) AS "
        f"first FROM ix.signatures GROUP BY {keys} {kept}) f ON s.{column} = f.key WHERE {condition}"
    )


SAME = " UNION ALL ".join(
    [_joined("HAVING count(*) > 1", column, column, "f.first < s.number") for column in ("exact", "file_hash")]
    + [  # of this one, if a file holds just that
        _joined("", "exact", column, f"f.first <> s.number AND s.{column} <> s.exact")
        for column in ("float16", "bfloat16")
    ]
)
SAME_NUMBERS = (
    "SELECT s.number AS number, f.first AS first FROM ix.signatures s JOIN (SELECT content, min(number) AS first FROM "
    "ix.signatures GROUP BY content HAVING count(*) > 1) f ON s.content = f.content ORDER BY f.first, s.number"
)


def same_weights(index: Path) -> tuple[np.ndarray, Groups]:
    """Numbers `(n,)` of an index's signatures, rising, and their rows joined where they hold the same weights.

    Raises WeightsearchError where there are none.
    """
    with Database(index / DATABASE).open() as connection:
        numbers = read_numbers(connection, index)
        pairs = connection.execute(SAME).fetchnumpy()
        contents = connection.execute(SAME_NUMBERS).fetchnumpy()
    groups = Groups(len(numbers))
    ones, others = (np.searchsorted(numbers, pairs[side]).tolist() for side in ("one", "other"))
    for one, other in zip(ones, others, strict=True):
        groups.join(other, one)
    rows = np.searchsorted(numbers, contents["number"])
    for same in np.split(rows, np.flatnonzero(np.diff(contents["first"])) + 1):
        roots = list({groups.root(row): row for row in same.tolist()}.values())
        for one, other in pairwise(roots):
            if _compared(index, int(numbers[one]), int(numbers[other])) in (Kind.SAME_WEIGHTS, Kind.IDENTICAL):
                groups.join(one, other)
    return numbers, groups


def _compared(index: Path, one: int, other: int) -> Kind | None:
    files = _files(index, [one, other])
    a, b = (open_source(files[number].source) for number in (one, other))
    if a is None or b is None:
        return None
    signatures = read_signatures(index, [one, other])
    return compare(a.tensors, b.tensors, signatures[one], signatures[other]).relation


@dataclass(frozen=True)
class _File:
    source: str
    bytes: int
    file_hash: str | None
    is_precise: bool


def _files(index: Path, numbers: list[int]) -> dict[int, _File]:
    columns = read_columns(
        index,
        ("number", "source", "file_bytes", "file_hash", "exact NOT IN (float16, bfloat16) AS is_precise"),
        numbers,
    )
    files = map(_File, columns["source"], columns["file_bytes"].tolist(), columns["file_hash"], columns["is_precise"])
    return dict(zip(columns["number"].tolist(), files, strict=True))


def batches(groups: list[list[int]], most: int = 10_000) -> Iterator[list[list[int]]]:
    """Some groups at a time, of about `most` members."""
    ends = np.cumsum([len(group) for group in groups])
    for _, batch in groupby(zip(groups, (ends // most).tolist(), strict=True), key=lambda pair: pair[1]):
        yield [group for group, _ in batch]


def _how(first: _File, file: _File) -> Kind:
    return Kind.IDENTICAL if file.file_hash is not None and file.file_hash == first.file_hash else Kind.SAME_WEIGHTS


def _worth(file: _File) -> tuple[bool, int, int, str]:
    return not file.is_precise, -file.bytes, len(file.source), file.source
