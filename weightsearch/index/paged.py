"""Exact vectors in a file that is memory-mapped and only ever grows, each page of it verified before its first use."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from weightsearch.files import sync, write_whole

PAGE_BYTES = 4096
BLOCK_BYTES, BLOCK_ROWS = 2**18, 64  # of vectors that are all read: few enough for a processor's second cache


class DamagedVectorsError(Exception):
    """Some vectors are not as they were written: `positions (m,)` of them in the file."""

    def __init__(self, positions: np.ndarray) -> None:
        super().__init__(f"{len(positions):,} vectors")
        self.positions = positions


@dataclass(frozen=True)
class PagedVectors:
    """The first rows of a file of vectors, as one generation described them.

    `check` compares pages with their checksums when they are first used, so that opening reads none of them, and no
    search uses a rotten one.
    """

    path: Path
    matrix: np.ndarray  # float32 (n, D), mapped
    checksums: np.ndarray  # uint64 (pages,)
    checked: np.ndarray = field(repr=False)  # bool (pages,)
    page_bytes: int = PAGE_BYTES

    @classmethod
    def open(cls, directory: Path, description: dict[str, Any]) -> Self | None:
        """As `describe` says; None where the files are missing, too short, or their checksums are damaged."""
        path, rows, width = directory / description["file"], description["rows"], description["width"]
        try:
            content = (directory / description["checksums"]).read_bytes()
            if xxh3_128_hexdigest(content) != description["xxh3"] or path.stat().st_size < rows * width * 4:
                return None
            matrix = np.memmap(path, np.float32, "r", shape=(rows, width)).view(np.ndarray)
        except OSError:
            return None
        checksums = np.frombuffer(content, "<u8")
        return cls(path, matrix, checksums, np.zeros(len(checksums), bool))

    def check(self, at: np.ndarray | None = None) -> None:
        """Raises DamagedVectorsError where a vector `at` these positions `(m,)`, or any, is not as it was written."""
        row_bytes = self.matrix.shape[1] * 4
        if at is None:
            pages = np.flatnonzero(~self.checked)
        else:
            first, last = at * row_bytes // self.page_bytes, ((at + 1) * row_bytes - 1) // self.page_bytes
            further = range(int((last - first).max(initial=0)) + 1)
            asked = np.concatenate([np.minimum(first + i, last) for i in further])
            pages = np.unique(asked[~self.checked[asked]])
        damaged = pages[page_checksums(self.matrix, pages, self.page_bytes) != self.checksums[pages]]
        self.checked[np.setdiff1d(pages, damaged)] = True
        if len(damaged):
            starts = damaged * self.page_bytes // row_bytes
            ends = np.minimum(-(-(damaged + 1) * self.page_bytes // row_bytes), len(self.matrix))
            rows = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
            raise DamagedVectorsError(np.unique(np.concatenate(rows)))

    def check_page(self, page: int) -> None:
        """As `check`, of one page."""
        if not self.checked[page]:
            content = self._content[page * self.page_bytes : (page + 1) * self.page_bytes]
            if xxh3_64_intdigest(content) != int(self.checksums[page]):
                self.check()
            self.checked[page] = True

    @cached_property
    def _content(self) -> memoryview:
        return self.matrix.reshape(-1).view(np.uint8).data

    def release(self) -> None:
        """Lets go of the pages that were read, so that they no longer count as this process's memory."""
        if isinstance(self.matrix.base, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.matrix.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def all_damage(self) -> DamagedVectorsError | None:
        """What is wrong in the whole file, which is read."""
        try:
            self.check()
        except DamagedVectorsError as error:
            return error
        return None


def read_ahead(matrix: np.ndarray) -> None:
    """Tells the system that mapped vectors will be read from the first to the last; FAISS says that they will not.

    https://man7.org/linux/man-pages/man2/madvise.2.html, MADV_SEQUENTIAL. Elsewhere than on Linux nothing is told.
    """
    if sys.platform != "linux" or not matrix.nbytes:
        return
    sequential, address = 2, matrix.ctypes.data
    start = address - address % mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + matrix.nbytes - start), sequential)


def block_bytes(width: int) -> int:
    """A page's size for vectors of `width` values that are all read: whole vectors, in groups as FAISS takes them."""
    return max(1, BLOCK_BYTES // (4 * width * BLOCK_ROWS)) * BLOCK_ROWS * 4 * width


def page_checksums(matrix: np.ndarray, pages: np.ndarray, page_bytes: int = PAGE_BYTES) -> np.ndarray:
    """XXH3 of each of these pages `(m,)` of an array's content, of which the last one may be short: uint64 `(m,)`."""
    content = matrix.reshape(-1).view(np.uint8).data
    starts = (pages * page_bytes).tolist()
    return np.array([xxh3_64_intdigest(content[start : start + page_bytes]) for start in starts], np.uint64)


def append(path: Path, rows: int, blocks: Iterable[np.ndarray]) -> int:
    """Writes blocks of vectors `(m, D)` behind the first `rows` of the file, and syncs it; returns how many it has.

    What lies behind the first `rows` is a killed writer's, and goes. Readers have mapped those alone.
    """
    with path.open("r+b" if rows else "wb") as file:
        for block in blocks:
            if file.tell() == 0 and rows:
                file.seek(rows * block.shape[1] * 4)
                file.truncate()
            file.write(np.ascontiguousarray(block, "<f4").data)
            rows += len(block)
    sync(path)
    return rows


def describe(path: Path, rows: int, width: int, checksums: Path, before: PagedVectors | None) -> dict[str, Any]:
    """Writes the checksums of the file's pages, of which those `before` has are taken; returns what `open` takes."""
    matrix = np.memmap(path, np.float32, "r", shape=(rows, width))
    taken = 0 if before is None else before.matrix.nbytes // PAGE_BYTES
    added = page_checksums(matrix, np.arange(taken, -(-matrix.nbytes // PAGE_BYTES)))
    content = np.concatenate([*([] if before is None else [before.checksums[:taken]]), added]).astype("<u8").tobytes()
    write_whole(checksums, content)
    return {
        "file": path.name, "rows": rows, "width": width,
        "checksums": checksums.name, "xxh3": xxh3_128_hexdigest(content),
    }  # fmt: skip
