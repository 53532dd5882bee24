"""Files that appear whole or not at all, locks between processes, checksums, and JSON as others can read it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

if sys.platform != "win32":  # where writers and readers wait for one another by chance
    import fcntl

from weightsearch.errors import UsageError, WeightsearchError

DISK_FULL = "the disk is full; what is there stays good: free some space and run the same command again"
TRY_SECONDS = 0.1  # that a try and the pause before it count at most, of a wait for others
DATABASE_ENDINGS = ("", ".wal", ".wal.checkpoint", ".wal.recovery")  # of DuckDB's file and of its logs
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HELD_TEXTS = (  # by another process on Unix and on Windows, and by a thread of this one
    "onflicting lock",
    "used by another process",
    "already attached",
    "different configuration",
)
_FULL_TEXTS = ("No space left", "File too large", "quota exceeded")  # as other libraries pass it on


# What reading JSON raises that rotted, or that is of another shape than what was written.
MISREAD = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, of the system or of a library that wrote for us, means that the disk or a quota is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL_ERRNOS
    return any(text in str(error) for text in _FULL_TEXTS)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well.

    Whoever reads meanwhile, and whenever the process is killed, meets the old file or the new one: the new one is
    flushed to the disk before it is renamed, and the directory after. An error removes the temporary file.

    Example:
        >>> with replacing(tmp_path / "scores.csv") as temporary:
        ...     _ = temporary.write_text("run,accuracy")
        >>> (tmp_path / "scores.csv").read_text()
        'run,accuracy'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if str(temporary) in (error.filename, error.filename2):  # which nobody asked for
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # the same once more
            temporary.unlink(missing_ok=True)


def cannot_write(path: str | Path, error: BaseException) -> WeightsearchError:
    """What is said where we, or a library for us, could not write a file."""
    reason = str((isinstance(error, OSError) and error.strerror) or error).splitlines()[0]
    return WeightsearchError(f"cannot write {path}: {DISK_FULL if is_disk_full(error) else reason}")


def refuse_to_overwrite(path: str | Path, overwrite: bool) -> None:
    """Raises UsageError where a result's file is there already, or its name is a link."""
    path = Path(path)
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} exists; choose another name, or --force to write over it")


def write_whole(path: str | Path, content: bytes | memoryview | str) -> None:
    """Writes bytes, or text as UTF-8, to `path` by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Flushes a file, or a directory's list of names, to the disk. Windows cannot do the latter and need not."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step. False where the system cannot: only Linux can, on most of its file systems.

    https://man7.org/linux/man-pages/man2/rename.2.html, RENAME_EXCHANGE
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_here, swap = -100, 2
    return rename is not None and rename(at_here, os.fsencode(one), at_here, os.fsencode(other), swap) == 0


def runs_elsewhere(pid: int) -> bool:
    """Whether another process than this one has that number; True where the system cannot tell."""
    if pid == os.getpid():
        return False
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        pass
    return True


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Patience:
    """How long somebody goes on trying, where time in which this process was not run hardly counts.

    Whoever was stopped, or had little of the processor, has not waited: those that it waits for had no more of it.
    """

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self._since = time.monotonic()

    def pause(self, seconds: float) -> bool:
        """Sleeps before the next try; False, at once, where the patience is at an end."""
        if self.left <= 0:
            return False
        time.sleep(seconds)
        now = time.monotonic()
        self.left -= min(now - self._since, TRY_SECONDS)
        self._since = now
        return True


@contextmanager
def lock(path: Path, busy: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path` against other processes; the system frees it however the process ends.

    Args:
        busy: the error of whoever waited in vain, with `{pid}` where the holder's PID is to stand.
        wait_seconds: how long to wait for the holder.

    Raises:
        WeightsearchError: another process holds it still.
    """
    holder = path.with_name(f"{path.name}.pid")  # a file of its own: Windows lets nobody read a locked one
    file, patience = FileLock(path, mode=0o644), Patience(wait_seconds)
    while True:
        try:
            file.acquire(timeout=0)
            break
        except Timeout:
            if not patience.pause(0.02):
                try:
                    pid = holder.read_text()
                except OSError:
                    pid = ""
                raise WeightsearchError(busy.format(pid=pid or "unknown")) from None
    try:
        holder.unlink(missing_ok=True)  # a link is not written through
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        file.release()


@contextmanager
def turnstile(path: Path, *, first: bool, wait_seconds: float) -> Iterator[None]:
    """Lets whoever comes `first` pass before all others, who wait for up to `wait_seconds` and then go on anyway.

    A writer holds the lock file `path` while it waits for readers to let go, and readers hold it, together, while they
    wait for a writer to let go: so a writer without a pause does not pass the same readers again and again. The system
    frees it however the process ends. Where there is no such file and none can be made, nobody waits.
    """
    descriptor = None
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            descriptor = os.open(path, (os.O_RDWR | os.O_CREAT if first else os.O_RDONLY) | os.O_NOFOLLOW, 0o644)
    if sys.platform == "win32" or descriptor is None:
        yield
        return
    try:
        patience = Patience(wait_seconds)
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if first else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except OSError:
                if not patience.pause(0.001 if first else 0.005):
                    break
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


T = TypeVar("T")


def when_unlocked(attempt: Callable[[], T], path: Path, wait_seconds: float, use: str = "is being written by") -> T:
    """What `attempt` returns, which opens DuckDB's file `path`; tried again while somebody else holds it.

    `use` is what others do with it, for the error.

    Raises:
        WeightsearchError: somebody holds it still, or it or its log is a link, which DuckDB would follow out of its
            folder. Other errors of DuckDB pass.
    """
    import duckdb

    for ending in DATABASE_ENDINGS:
        if Path(f"{path}{ending}").is_symlink():
            raise WeightsearchError(
                f"{path}{ending} is a link, which is not followed; put the file itself in its place, or remove it"
            )
    patience = Patience(wait_seconds)
    pause, again = 0.002, 20
    while True:
        try:
            return attempt()
        except duckdb.Error as error:
            text = str(error)
            if "Could not read enough bytes" in text and again:  # a writer may be cutting the file short just now
                again -= 1
                time.sleep(pause)
            elif not any(words in text for words in _HELD_TEXTS):
                raise
            elif not patience.pause(pause):
                pid = re.search(r"PID (\d+)", text)
                holder = f"another process (PID {pid[1]})" if pid else "another process or thread"
                raise WeightsearchError(f"{path} {use} {holder}; try again when it is done") from None
        pause = min(1.5 * pause, 0.02)  # shorter than the gaps between a build's commits


def clean_text(text: str) -> str:
    """As a database can hold it: without lone surrogates, which a file's name may have, and NUL.

    Example:
        >>> clean_text("run-\\udcff")
        'run-?'
    """
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def to_json(value: Any, **options: Any) -> str:
    """JSON that every reader takes, of `plain` values. `options` are those of `json.dumps`."""
    return json.dumps(plain(value), allow_nan=False, **options)


def plain(value: Any) -> Any:
    """The value as JSON has it: NaN and infinity, which JSON lacks, become None; dates and the like their text.

    A dataclass is an object of its fields.

    Example:
        >>> plain({"loss": float("nan"), "sizes": (16, 10)})
        {'loss': None, 'sizes': [16, 10]}
    """
    kind = type(value)
    if kind is str or kind is int or value is None:  # most are, and these take the longest ways below
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is dict or isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if kind is tuple or isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(kind):
        return {name: plain(item) for name, item in vars(value).items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return plain(float(value))
    return value if value is None or isinstance(value, bool | int | str) else str(value)
