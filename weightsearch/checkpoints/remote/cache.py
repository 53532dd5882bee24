"""Remote files on this machine's disk: in a private folder, by version, the least lately used leaving first."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from weightsearch.checkpoints.remote.stores import Entry
from weightsearch.errors import UsageError, WeightsearchError

FOLDER_VARIABLE = "WEIGHTSEARCH_CACHE"
LIMIT_VARIABLE = "WEIGHTSEARCH_CACHE_BYTES"
DEFAULT_LIMIT = 10 * 10**9
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_OFTEN = 16  # times that the folder is measured while it fills once
_SESSION = secrets.token_hex(8)  # stands for versions that a store does not tell: kept for this process alone

_lock = threading.Lock()
_unmeasured: dict[Path, int] = {}  # bytes written since the folder was measured


def folder() -> Path:
    """The cache's folder: `$WEIGHTSEARCH_CACHE`, or below the user's folder for caches. It is made with mode 0700.

    Raises WeightsearchError where somebody else may write into it.
    """
    import platformdirs

    given = os.environ.get(FOLDER_VARIABLE)
    path = Path(given) if given else Path(platformdirs.user_cache_dir("weightsearch")) / "remote"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise WeightsearchError(
            f"{path}: no cache can be made there ({error.strerror}); set {FOLDER_VARIABLE}"
        ) from None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise WeightsearchError(
            f"{path}: others can write into it, so that it is no safe cache; chmod 700 it, or set {FOLDER_VARIABLE}"
        )
    return path


def limit() -> int:
    """The most bytes that the cache takes: `$WEIGHTSEARCH_CACHE_BYTES`, such as 50G; 10 GB without it."""
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", given.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"{LIMIT_VARIABLE}={given}: give a number of bytes, or 500M, 20G, 1T")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def place_of(url: str, entry: Entry, name: str) -> Path:
    """Where a version of a file, or a part of it, is kept."""
    version = entry.version or _SESSION
    key = hashlib.sha256(f"{url}\0{version}\0{entry.size}".encode()).hexdigest()[:40]
    plain = name if Path(name).name == name and len(os.fsencode(name)) < 200 else f"file{Path(name).suffix[:20]}"
    return folder() / key / plain


def kept(place: Path, size: int) -> bool:
    """Whether the whole of it is there, which counts as a use."""
    try:
        if place.stat().st_size != size:
            return False
        os.utime(place)
    except OSError:
        return False
    return True


def keep(place: Path, size: int, write: Callable[[BinaryIO], None]) -> None:
    """Puts what `write` writes, `size` bytes, into the cache; what was used least lately makes room for it.

    Raises WeightsearchError where it can never have room.
    """
    most = limit()
    if size > most:
        raise WeightsearchError(
            f"its {size:,} bytes are more than the cache may hold ({most:,}); raise {LIMIT_VARIABLE}"
        )
    make_room(size, most)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    # Not in that folder, which whoever makes room removes when it is empty.
    temporary = folder() / f".{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            if file.tell() != size:
                raise ConnectionError(f"{file.tell():,} of {size:,} bytes came")
        try:
            temporary.replace(place)
        except FileNotFoundError:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def make_room(size: int, most: int) -> None:
    """Removes what was used least lately, until `size` more bytes are within the limit."""
    root = folder()
    with _lock:
        _unmeasured[root] = _unmeasured.get(root, most) + size
        if _unmeasured[root] <= most // _OFTEN:
            return
        files = []
        for parent, _, names in os.walk(root):
            for name in names:
                with suppress(OSError):
                    status = (Path(parent) / name).stat()
                    files.append((status.st_mtime_ns, status.st_size, Path(parent) / name))
        total = sum(length for _, length, _ in files)
        # What this process and others write until the next measure has room, too.
        allowed = max(most - size - most // _OFTEN, 0)
        for _, length, path in sorted(files):
            if total <= allowed:
                break
            with suppress(OSError):
                path.unlink()
                total -= length
            with suppress(OSError):  # it holds other parts
                path.parent.rmdir()
        _unmeasured[root] = 0
