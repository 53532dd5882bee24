"""A file that is read and hashed at once, so that a large one is read a single time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from weightsearch.checkpoints.remote.paths import RemotePath
from weightsearch.checkpoints.tensors import FileBytes, OpenBytes, Storage, StoredTensor

TOGETHER = 2**22  # bytes that are hashed by one call


def lie_in(path: Path, tensors: Iterable[Any]) -> bool:
    """Whether all tensors' values are read from this one file, of this machine."""
    return not isinstance(path, RemotePath) and all(_source(tensor, path) is not None for tensor in tensors)


def _source(tensor: Any, path: Path) -> FileBytes | None:
    source = tensor.storage.source if isinstance(tensor, StoredTensor) and tensor.storage is not None else None
    return source if isinstance(source, FileBytes) and source.path == path else None


class HashedFile:
    """A file whose bytes are hashed as they are read, by another thread; what is passed over, before what follows it.

    Where tensors lie in the order in which they are asked for, as they nearly always do, no byte is read twice.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(1) as beside, open(__file__, "rb") as file:
        ...     HashedFile(file, beside).digest() == hashlib.file_digest(open(__file__, "rb"), "sha256").hexdigest()
        True
    """

    def __init__(self, file: IO[bytes], beside: Executor) -> None:
        self._file = file
        self._beside = beside
        self._hash = hashlib.sha256()
        self._hashing: Future[None] | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._taken = 0  # bytes from the file's beginning on

    def holding(self, tensor: Any) -> StoredTensor:
        """A tensor that `lie_in` is true of, whose values are read through this."""
        source = _source(tensor, Path(self._file.name))
        if source is None:
            raise ValueError("the tensor lies in another file")
        return replace(tensor, storage=Storage(tensor.storage.nbytes, OpenBytes(self, source.start)))

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(position, whence)

    def read(self, length: int, /) -> bytes:
        start = self._file.tell()
        self._take_until(start)
        self._file.seek(start)
        content = self._file.read(length)
        self._take(content[self._taken - start :])
        return content

    def digest(self) -> str:
        """The SHA-256 of the whole file, in hexadecimal."""
        self._take_until(None)
        self._hash_waiting().result()
        return self._hash.hexdigest()

    def _take_until(self, end: int | None) -> None:
        """Hashes what lies between the last byte hashed and `end`, or the file's."""
        self._file.seek(self._taken)
        while end is None or self._taken < end:
            content = self._file.read(TOGETHER if end is None else min(TOGETHER, end - self._taken))
            if not content:
                return
            self._take(content)

    def _take(self, content: bytes) -> None:
        self._taken += len(content)
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        if self._waiting_bytes >= TOGETHER:
            self._hash_waiting()

    def _hash_waiting(self) -> Future[None]:
        """Gives the other thread what waits, once it is through with what it was given before."""
        if self._hashing is not None:
            self._hashing.result()
        self._hashing = self._beside.submit(self._add, self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        return self._hashing

    def _add(self, contents: list[bytes]) -> None:
        for content in contents:
            self._hash.update(content)
