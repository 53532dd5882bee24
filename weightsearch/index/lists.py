"""Inverted lists of codes in a FAISS file that is memory-mapped, each of them verified before its first search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import faiss
import numpy as np
from xxhash import xxh3_64, xxh3_128


class DamagedListError(Exception):
    """An inverted list is not as it was written."""


@dataclass(frozen=True)
class VerifiedLists:
    """The lists of a mapped `faiss.IndexIVF`, as one generation described them.

    `check` compares lists with their checksums when they are first searched, so that opening reads none of them, and no
    search uses a rotten one.
    """

    inverted: Any
    checksums: np.ndarray  # uint64 (lists,)
    checked: np.ndarray = field(repr=False)  # bool (lists,)

    @classmethod
    def of(cls, inverted: Any, checksums: list[int]) -> Self | None:
        """None where there are not as many lists."""
        if inverted is None or inverted.nlist != len(checksums):
            return None
        return cls(inverted, np.array(checksums, np.uint64), np.zeros(len(checksums), bool))

    def check(self, query: np.ndarray, nprobe: int) -> None:
        """Raises DamagedListError where one of the `nprobe` lists nearest to prepared `query (D,)` is damaged."""
        if self.checked.all():
            return
        nearest = self.inverted.quantizer.search(query[None], nprobe)[1][0]
        for number in nearest[~self.checked[nearest]].tolist():
            if _checksum(self.inverted, number) != int(self.checksums[number]):
                raise DamagedListError(f"list {number}")
            self.checked[number] = True


def describe(inverted: Any, content: memoryview) -> dict[str, Any]:
    """Checksums of the lists of an index in memory, and of what is around them in its file's `content`.

    `start` and `end` are where they lie in it, one behind the other, each list's codes before its ids; empty where they
    do not, in which case the file is verified as a whole.
    """
    numbers = range(inverted.nlist)
    lists = [part for number in numbers for part in _parts(inverted, number)]
    filled = next((part for part in lists if len(part)), None)
    if filled is None:
        return {}
    room = len(content) - sum(map(len, lists)) + len(filled)
    start = bytes(content[:room]).find(filled.tobytes())
    end = start
    for part in lists:
        if start < 0 or not np.array_equal(np.frombuffer(content[end : end + len(part)], np.uint8), part):
            return {}
        end += len(part)
    around = xxh3_128(content[:start])
    around.update(content[end:])
    checksums = [_checksum(inverted, number) for number in numbers]
    return {"around": around.hexdigest(), "start": start, "end": end, "lists": checksums}


def _checksum(inverted: Any, number: int) -> int:
    codes, ids = _parts(inverted, number)
    digest = xxh3_64(codes.data)
    digest.update(ids.data)
    return digest.intdigest()


def _parts(inverted: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A list's codes and its ids, as bytes where they lie."""
    lists = inverted.invlists
    rows = lists.list_size(number)
    if not rows:
        return np.empty(0, np.uint8), np.empty(0, np.uint8)
    ids = faiss.rev_swig_ptr(lists.get_ids(number), rows)
    return faiss.rev_swig_ptr(lists.get_codes(number), rows * inverted.code_size), ids.view(np.uint8)
