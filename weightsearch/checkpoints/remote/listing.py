"""What this process knows of remote folders: listed once, or taken from an inventory, and asked for the rest.

A listing holds until its folder is given to a command, or to a function of this package, once more.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from weightsearch.checkpoints.remote import stores
from weightsearch.checkpoints.remote.stores import Entry
from weightsearch.errors import WeightsearchError

LISTERS = 16  # requests for folders at a time
ENOUGH_FOLDERS = 8  # from which on each is listed as a stream of its own
MOST_FOLDERS = 512  # beyond which there are not more streams, but one for what lies above
DEEPEST_SPLIT = 3  # levels of folders that are looked into for so many
MAX_LINKS = 1_000_000  # of a web server's pages, which may link to new folders without end
MAX_DEPTH = 32  # of folders there

_entries: dict[str, Entry | None] = {}  # by URL; None: there is no such file
_folders: dict[str, dict[str, bool]] = {}  # by URL, the names in it, and whether each is a folder
_listed: set[str] = set()  # URLs below which all is known
_lock = threading.RLock()
_NO_PATH = re.compile(r"//|/\.{1,2}(/|$)")
log = logging.getLogger("weightsearch")


def is_listed(url: str) -> bool:
    """Whether all that lies at `url` and below is known."""
    while url not in _listed:
        url, slash, name = url.rpartition("/")
        if not name or not slash or url.endswith("/"):
            return False
    return True


def known(url: str) -> Entry | None:
    """What is known of a file without asking its store."""
    return _entries.get(url)


def forget(url: str) -> None:
    """Makes the next question about a file, or about what lies below a folder, go to its store."""
    with _lock:
        if _entries.pop(url, None) is not None:
            _entries[url] = Entry(None, "")  # it is asked for again
        if url in _folders or url in _listed:
            below = f"{url}/"
            _listed.difference_update({name for name in _listed if name == url or name.startswith(below)})
            for table in (_entries, _folders):
                for name in [name for name in table if name == url or name.startswith(below)]:
                    del table[name]


def entry_of(url: str) -> Entry | None:
    """The file at `url`; None where there is a folder.

    Raises FileNotFoundError, or WeightsearchError where the store does not say.
    """
    entry = _entries.get(url)
    if entry is not None and entry.size is not None:
        return entry
    if url in _folders:
        return None
    if entry is None and (url in _entries or is_listed(url)):
        raise FileNotFoundError(2, "there is no such file", url)
    try:
        entry = stores.info(url)
    except FileNotFoundError:
        _entries[url] = None
        raise
    if entry is not None:
        _entries[url] = entry
    return entry


def names_in(url: str) -> dict[str, bool]:
    """The names in a folder, and whether each is a folder itself. Raises as `stores.list_folder` does."""
    if url not in _folders:
        if is_listed(url):
            return {}
        files, folders = stores.list_folder(url)
        with _lock:
            _entries.update({f"{url}/{name}": entry for name, entry in files.items()})
            _folders[url] = {**dict.fromkeys(folders, True), **dict.fromkeys(files, False)}
    return _folders[url]


def list_below(url: str) -> None:
    """Lists a folder and all below it once: by many requests at a time where it has folders, else page by page."""
    if is_listed(url):
        return
    with ThreadPoolExecutor(LISTERS) as pool:
        if stores.scheme_of(url) in stores.WEB:
            _walk_pages(url, pool)
            return
        listed: list[tuple[str, Entry]] = []
        folders = [url]
        for _ in range(DEEPEST_SPLIT):
            if len(folders) >= ENOUGH_FOLDERS:
                break
            files, below_them = _one_level(folders, pool)
            if len(below_them) > MOST_FOLDERS:  # fewer requests list all below as it comes
                break
            listed += files
            folders = below_them
        for folder, below in zip(folders, pool.map(stores.list_below, folders), strict=True):
            listed += [(f"{folder}/{place}", entry) for place, entry in below.items()]
    keep(url, listed)


def _one_level(folders: list[str], pool: ThreadPoolExecutor) -> tuple[list[tuple[str, Entry]], list[str]]:
    """The files of folders, and the folders in them."""
    files: list[tuple[str, Entry]] = []
    below: list[str] = []
    for folder, (entries, names) in zip(folders, pool.map(stores.list_folder, folders), strict=True):
        files += [(f"{folder}/{name}", entry) for name, entry in entries.items()]
        below += [f"{folder}/{name}" for name in names]
    return files, below


def _walk_pages(url: str, pool: ThreadPoolExecutor) -> None:
    """A web server's folders, level by level."""
    listed: list[tuple[str, Entry]] = []
    level = [url]
    for _ in range(MAX_DEPTH):
        if not level:
            break
        if len(listed) + len(level) > MAX_LINKS:
            raise WeightsearchError(f"{url}: its pages have over {MAX_LINKS:,} links; give one of its folders")
        files, level = _one_level(level, pool)
        listed += files
    if level:
        raise WeightsearchError(f"{url}: its folders are nested over {MAX_DEPTH} deep; give one of them")
    keep(url, listed)


def keep(url: str, files: Iterable[tuple[str, Entry]]) -> None:
    """Takes `files` for all that lies below the folder `url`; those whose names are no paths are left out."""
    left_out = 0
    with _lock:
        _folders.setdefault(url, {})
        for file, entry in files:
            if _NO_PATH.search(file[len(url) :]):
                left_out += 1
                continue
            _entries[file] = entry
            place, is_folder = file, False
            while place != url:
                folder, _, name = place.rpartition("/")
                names = _folders.setdefault(folder, {})
                if name in names:
                    break
                names[name] = is_folder
                place, is_folder = folder, True
        _listed.add(url)
    if left_out:
        log.warning("%s: %d files are left out, whose names have empty parts, . or .. between slashes", url, left_out)
