"""Groups of files that hold the same weights, and what could be freed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.relations.compare import compare
from weightsearch.relations.kinds import Kind
from weightsearch.relations.search import open_source
from weightsearch.relations.store import Known, read_known, read_signatures


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
    (permuted units) are no duplicates.
    """
    signed = read_known(index, required=True)
    groups = same_weights(signed, Path(index))
    duplicates = []
    for rows in groups.members():
        if len(rows) < 2:
            continue
        rows = _by_worth(rows, signed)
        first = rows[0]
        how = [_how(signed, first, row) for row in rows]
        duplicates.append(
            Duplicates(
                tuple(str(signed["source"][row]) for row in rows),
                tuple(int(signed["file_bytes"][row]) for row in rows),
                tuple(how),
            )
        )
    return sorted(duplicates, key=lambda group: -group.freed)


def same_weights(signed: Known, index: Path) -> Groups:
    """Rows of an index joined where they hold the same weights."""
    groups = Groups(len(signed))
    where: dict[str, int] = {}
    for row in range(len(signed)):
        for key in filter(None, (signed["exact"][row], signed["file_hash"][row])):
            groups.join(where.setdefault(str(key), row), row)
    for row in range(len(signed)):
        for column in ("float16", "bfloat16"):  # of this one, if a file holds just that
            if (other := where.get(str(signed[column][row]))) is not None:
                groups.join(other, row)
    by_content: dict[str, list[int]] = defaultdict(list)
    for row in range(len(signed)):
        by_content[str(signed["content"][row])].append(row)
    for rows in by_content.values():
        roots = list({groups.root(row): row for row in rows}.values())
        for one, other in pairwise(roots):
            if _compared(signed, index, one, other) in (Kind.SAME_WEIGHTS, Kind.IDENTICAL):
                groups.join(one, other)
    return groups


def _compared(signed: Known, index: Path, one: int, other: int) -> Kind | None:
    a, b = (open_source(str(signed["source"][row])) for row in (one, other))
    if a is None or b is None:
        return None
    numbers = [int(signed["number"][row]) for row in (one, other)]
    signatures = read_signatures(index, numbers)
    one_signature, other_signature = (signatures[number] for number in numbers)
    return compare(a.tensors, b.tensors, one_signature, other_signature).relation


def _how(signed: Known, first: int, row: int) -> Kind:
    same = signed["file_hash"][row] is not None and signed["file_hash"][row] == signed["file_hash"][first]
    return Kind.IDENTICAL if same else Kind.SAME_WEIGHTS


def _by_worth(rows: Iterable[int], signed: Known) -> list[int]:
    def precise(row: int) -> bool:
        return bool(signed["exact"][row] not in (signed["float16"][row], signed["bfloat16"][row]))

    def worth(row: int) -> tuple[bool, int, int, str]:
        source = str(signed["source"][row])
        return not precise(row), -int(np.nan_to_num(float(signed["file_bytes"][row]))), len(source), source

    return sorted(rows, key=worth)
