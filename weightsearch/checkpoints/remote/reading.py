"""Remote files read by the parts that are asked for, or fetched in whole; either way from the cache the next time."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from weightsearch.checkpoints.readers.limits import file_size
from weightsearch.checkpoints.remote import cache, listing, stores
from weightsearch.checkpoints.remote.paths import RemotePath
from weightsearch.checkpoints.remote.stores import ChangedError, NoRangesError
from weightsearch.errors import WeightsearchError

SMALL = 2**20  # bytes of a file that is fetched in whole by one request, whatever is asked of it
HEAD = 2**16  # the first block: enough for most headers
BLOCK = 4 * 2**20  # the others
PART = 2**26  # of a file that is fetched in whole
FETCHERS = 16  # files fetched ahead at a time
AHEAD_BYTES = 2**28  # that these may have in all
MISSING = "there is no such file"
T = TypeVar("T")


def localize(path: Path) -> Path:
    """A remote file's place on this machine's disk, fetched in whole unless it is there; other paths as they are.

    What changed since it was listed is fetched as it is now. Raises WeightsearchError, one line, for a file over the
    limits of size, and where it cannot be fetched.
    """
    if not isinstance(path, RemotePath):
        return path
    return read_one_version(path, _fetched)


def read_one_version(path: RemotePath, read: Callable[[RemotePath], T]) -> T:
    """What `read` makes of the version that lies there: that which was listed, or where it changed since, the new one.

    Raises WeightsearchError where it changes again, or a part of that version was read before.
    """
    if path.entry is not None:
        return read(path)
    was_listed = path.is_listed
    try:
        try:
            return read(path.pinned())
        except ChangedError:
            path.forget()
        return read(path.pinned())
    except FileNotFoundError:
        gone = "it is gone since its folder was listed; run the same command again" if was_listed else MISSING
        raise WeightsearchError(f"{path}: {gone}") from None


def _whole_place(path: RemotePath) -> Path:
    assert path.entry is not None
    return cache.place_of(str(path), path.entry, path.name)


def _fetched(path: RemotePath) -> Path:
    size, place = file_size(path), _whole_place(path)
    assert path.entry is not None
    version = path.entry.version

    def write(file: BinaryIO) -> None:
        try:
            for start in range(0, size, PART):
                file.write(stores.fetch(path.url, start, min(start + PART, size), version))
        except NoRangesError:
            file.seek(0)
            file.write(stores.fetch(path.url, 0, size, version))

    if not cache.kept(place, size):
        cache.keep(place, size, write)
    return place


class RemoteFile(io.RawIOBase):
    """One version of a remote file, to be read from anywhere; each block of it is fetched once."""

    def __init__(self, path: RemotePath) -> None:
        assert path.entry is not None
        self.path = path
        self.entry = path.entry
        self.size = path.entry.size or 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._read(self._at, min(self._at + len(buffer), self.size))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _read(self, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        whole = _whole_place(self.path)
        if self.size <= SMALL or cache.kept(whole, self.size):
            return _part(localize(self.path), start, stop)
        blocks = range(_block_of(start), _block_of(stop - 1) + 1)
        try:
            return self._from_blocks(blocks)[start - _bounds(blocks[0])[0] :][: stop - start]
        except NoRangesError:
            return _part(localize(self.path), start, stop)

    def _from_blocks(self, blocks: range) -> bytes:
        """The bytes of blocks in a row. Neighbours that are not in the cache come by one request."""
        content: list[bytes] = []
        missing: list[int] = []
        for number in blocks:
            begin, end = self._bounds(number)
            place = self._place(number)
            if cache.kept(place, end - begin):
                content += self._fetch(missing)
                missing = []
                content.append(_part(place, 0, end - begin))
            else:
                missing.append(number)
        return b"".join([*content, *self._fetch(missing)])

    def _fetch(self, blocks: list[int]) -> list[bytes]:
        fetched = []
        for at in range(0, len(blocks), PART // BLOCK):
            some = blocks[at : at + PART // BLOCK]
            begin, end = self._bounds(some[0])[0], self._bounds(some[-1])[1]
            content = stores.fetch(self.path.url, begin, end, self.entry.version)
            for number in some:
                first, last = self._bounds(number)
                block = content[first - begin : last - begin]
                cache.keep(self._place(number), len(block), _writer(block))
                fetched.append(block)
        return fetched

    def _bounds(self, number: int) -> tuple[int, int]:
        begin, end = _bounds(number)
        return begin, min(end, self.size)

    def _place(self, number: int) -> Path:
        return cache.place_of(str(self.path), self.entry, "blocks").with_name(f"{number}.block")


def _writer(content: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def _block_of(at: int) -> int:
    return 0 if at < HEAD else 1 + (at - HEAD) // BLOCK


def _bounds(number: int) -> tuple[int, int]:
    return (0, HEAD) if number == 0 else (HEAD + (number - 1) * BLOCK, HEAD + number * BLOCK)


def _part(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


class HasPath(Protocol):
    """A file to read, however it is described."""

    @property
    def path(self) -> Path: ...


F = TypeVar("F", bound=HasPath)


def fetched_ahead(files: Iterable[F]) -> Iterator[F]:
    """The same files in turn; the small remote ones among the next are fetched meanwhile, many at a time."""
    waiting: deque[tuple[F, Future[None] | None, int]] = deque()
    ahead = 0

    def first() -> F:
        nonlocal ahead
        file, future, size = waiting.popleft()
        ahead -= size
        if future is not None:
            future.result()
        return file

    with ThreadPoolExecutor(FETCHERS) as pool:
        try:
            for file in files:
                size = _size_ahead(file.path)
                waiting.append((file, pool.submit(_try_to_fetch, file.path) if size else None, size))
                ahead += size
                while len(waiting) > 2 * FETCHERS or ahead > AHEAD_BYTES:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _size_ahead(path: Path) -> int:
    """Bytes of a remote file that is worth fetching ahead, which is read in whole in any case; 0 of any other."""
    entry = listing.known(path.url) if isinstance(path, RemotePath) else None
    if entry is None:
        return 0
    if entry.size is None:  # a web server's page does not tell
        return SMALL
    return entry.size if entry.size <= SMALL or (path.suffix != ".safetensors" and entry.size <= BLOCK) else 0


def _try_to_fetch(path: Path) -> None:
    with suppress(WeightsearchError, OSError):  # it is said when the file's turn comes
        localize(path)
