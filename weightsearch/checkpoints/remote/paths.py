"""Remote files and folders as paths: whatever reads files of this machine reads these, too."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from weightsearch.checkpoints.readers.limits import natural
from weightsearch.checkpoints.remote import listing, stores
from weightsearch.checkpoints.remote.stores import Entry
from weightsearch.errors import UsageError, WeightsearchError

if TYPE_CHECKING:
    _System = Path
else:
    _System = type(Path())  # before Python 3.12, `Path` itself cannot be derived from
_MAGIC = re.compile(r"[*?\[]")
_queries: dict[str, str] = {}  # of web addresses, such as a signature: part of no name, and never shown or kept


class RemotePath(_System):
    """A file or folder at a URL, with the questions that a `Path` answers; it cannot be written.

    `entry` is the version of a file that is being read: all of its parts come from that one.

    Example:
        >>> path = as_path("s3://bucket/run-7/model.pt")
        >>> str(path), path.name, str(path.parent)
        ('s3://bucket/run-7/model.pt', 'model.pt', 's3://bucket/run-7')
    """

    entry: Entry | None = None

    def __str__(self) -> str:
        scheme, *places = self.parts or ("",)
        return f"{scheme}//{'/'.join(places)}" if scheme.endswith(":") else "/".join(self.parts)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        return str(self)

    @property
    def url(self) -> str:
        """The address to ask, with what is not shown of it."""
        return str(self) + _queries.get(str(self), "")

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def absolute(self) -> RemotePath:
        return self

    def relative_to(self, *other: Any, **options: Any) -> Path:  # type: ignore[override]
        return Path(*super().relative_to(*other, **options).parts)

    def pinned(self) -> RemotePath:
        """The same path, bound to the version that lies there now. Raises FileNotFoundError where there is no file."""
        bound = RemotePath(*self.parts)
        bound.entry = listing.entry_of(self.url)
        if bound.entry is None:
            raise IsADirectoryError(errno.EISDIR, "it is a folder; give one of the files in it", str(self))
        return bound

    @property
    def is_listed(self) -> bool:
        """Whether its folder was listed, so that it is no question to a store whether it is there."""
        return listing.is_listed(str(self))

    def matching(self) -> list[RemotePath]:
        """What a path with wildcards means, in natural order."""
        at = _first_wildcard(self)
        if at == len(self.parts):
            return []
        folder, pattern = RemotePath(*self.parts[:at]), "/".join(self.parts[at:])
        return sorted(folder.glob(pattern), key=lambda path: natural(str(path)))

    def forget(self) -> None:
        listing.forget(self.url)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size, kind, and a time of change that stands for the version: equal for equal ETags."""
        entry = self.entry or listing.entry_of(self.url)
        if entry is None:
            return os.stat_result((stat.S_IFDIR | 0o500, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        number = int.from_bytes(hashlib.sha256(entry.version.encode()).digest()[:7], "big")
        kind = stat.S_IFREG | 0o400
        return os.stat_result((kind, 0, 0, 1, 0, 0, entry.size or 0, 0, 0, 0), {"st_mtime_ns": number})

    def lstat(self) -> os.stat_result:
        return self.stat()

    def exists(self, **options: Any) -> bool:
        try:
            listing.entry_of(self.url)
        except FileNotFoundError:
            return False
        return True

    def is_file(self, **options: Any) -> bool:
        """Whether a file lies there, by the names in its folder; web servers tell these of listed folders alone."""
        if self.entry is not None or listing.known(self.url) is not None:
            return True
        return _names(self.parent).get(self.name) is False

    def is_dir(self, **options: Any) -> bool:
        if self.entry is not None or len(self.parts) < 2:
            return False
        try:
            return listing.entry_of(self.url) is None
        except FileNotFoundError:
            return False

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Generator[RemotePath, None, None]:
        for name in _names(self):
            yield self / name

    def glob(self, pattern: str, **options: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        """As `Path.glob`; a `**` lists all that lies below."""
        return self._matches(pattern.rstrip("/").split("/"), folders_alone=pattern.endswith("/"))

    def rglob(self, pattern: str, **options: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        return self.glob(f"**/{pattern}")

    def _matches(self, parts: list[str], folders_alone: bool) -> Iterator[RemotePath]:
        first, *rest = parts
        names = _names(self)
        if first == "**":
            yield from self._matches(rest, folders_alone) if rest else (self,)
            for name, is_folder in names.items():
                if is_folder:
                    yield from (self / name)._matches(parts, folders_alone)
            return
        for name, is_folder in names.items():
            if fnmatch.fnmatchcase(name, first):
                if rest and is_folder:
                    yield from (self / name)._matches(rest, folders_alone)
                elif not rest and (is_folder or not folders_alone):
                    yield self / name

    def walk_folders(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`: the folder, its folders, which may be cut short, and its files; and so on below."""
        names = _names(self)
        folders = sorted(name for name, is_folder in names.items() if is_folder)
        yield str(self), folders, sorted(name for name, is_folder in names.items() if not is_folder)
        for name in folders:
            yield from (self / name).walk_folders()

    def open(  # type: ignore[override]
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None, *rest: Any, **options: Any
    ) -> IO[Any]:
        """For reading alone, by parts as they are asked for."""
        from weightsearch.checkpoints.remote.reading import RemoteFile

        if mode.strip("tb") != "r":
            raise WeightsearchError(
                f"{self}: remote files are read, never written; give a place on this machine's disk"
            )
        raw = RemoteFile(self if self.entry is not None else self.pinned())
        file = io.BufferedReader(raw, buffer_size=2**16)
        return file if "b" in mode else io.TextIOWrapper(file, encoding=encoding or "utf-8")

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return bytes(file.read())

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        raise WeightsearchError(f"{self}: remote files are read, never written; give a place on this machine's disk")

    mkdir = touch = unlink = rename = replace = rmdir = write_bytes = write_text = symlink_to = hardlink_to = _refuse


def _names(folder: Path) -> dict[str, bool]:
    """The names in a folder; none where it cannot be listed, as above what one may read, and on web servers."""
    if len(folder.parts) < 2 or (folder.parts[0].rstrip(":") in stores.WEB and not listing.is_listed(str(folder))):
        return {}
    try:
        return listing.names_in(str(folder))
    except (FileNotFoundError, WeightsearchError):
        return {}


def as_path(given: str | Path) -> Path:
    """What a user gave as a path: on this machine's disk, or at a URL of `stores.STORES`.

    A URL given as text is asked for anew. Raises UsageError for one that holds a password.

    Example:
        >>> as_path("gs://bucket/sweep").name, as_path("runs") == Path("runs")
        ('sweep', True)
    """
    if isinstance(given, RemotePath):
        return given
    text = str(given)
    if not stores.is_url(text):
        return Path(given)
    scheme, _, place = text.partition(":")
    address = f"{scheme}://{place.lstrip('/')}"
    query = ""
    if scheme in stores.WEB:
        split = urlsplit(address)
        if split.username is not None or split.password is not None:
            raise UsageError(f"{scheme}://…@{split.hostname}: a password would be kept; put it into ~/.netrc instead")
        query = f"?{split.query}" if split.query else ""
        address = f"{scheme}://{split.netloc}{split.path}"
    path = RemotePath(address)
    if ".." in path.parts or str(path) != address.rstrip("/"):
        raise UsageError(f"{address}: give a URL without empty parts, . and .. between its slashes")
    if query:
        _queries[str(path)] = query
    else:
        _queries.pop(str(path), None)
    path.forget()
    return path


def local(given: str | Path, what: str) -> Path:
    """A path for what works on this machine's disk alone. Raises UsageError for a URL."""
    if stores.is_url(str(given)):
        raise UsageError(f"{as_path(given)}: {what} on this machine's disk alone; copy it here, or name a place here")
    return Path(given)


def located(paths: Iterable[str | Path], inventory: str | Path | None = None) -> list[Path]:
    """The paths that a command is given, with the remote folders among them listed: once, in parallel.

    With an `inventory`, a table of files' path, size and etag, the stores are not asked what they hold.
    Raises WeightsearchError, one line, for a store that cannot be read.
    """
    given = [as_path(path) for path in paths]
    if inventory is not None:
        _take_inventory(as_path(inventory), given)
    for path in given:
        if not isinstance(path, RemotePath):
            continue
        fixed = _first_wildcard(path)
        folder = RemotePath(*path.parts[:fixed])
        if fixed < len(path.parts) or folder.is_dir():
            listing.list_below(str(folder))
    return given


def _take_inventory(inventory: Path, given: list[Path]) -> None:
    from weightsearch.checkpoints.remote.inventory import read_inventory
    from weightsearch.checkpoints.remote.reading import localize

    folders = [path for path in given if isinstance(path, RemotePath)]
    if not folders:
        raise UsageError(f"--inventory {inventory}: it is a list of remote files; give a URL, or leave it out")
    table = localize(inventory)
    if not table.is_file():
        raise UsageError(f"--inventory {inventory}: there is no such file")
    for folder in folders:
        if not listing.is_listed(str(folder)):
            listing.keep(str(folder), read_inventory(table, str(folder)))


def _first_wildcard(path: Path) -> int:
    """The place of the first part with one; in web addresses a ? is none."""
    return next((i for i, part in enumerate(path.parts) if _MAGIC.search(part)), len(path.parts))
