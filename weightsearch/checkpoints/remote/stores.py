"""Object stores, hubs and web servers through fsspec: what lies where, and parts of it, with errors of one line.

Credentials are found as each store's own programs find them (`AWS_PROFILE`, `gcloud auth`, `HF_TOKEN`, `~/.netrc`, …),
and options of fsspec's own configuration are obeyed (`FSSPEC_S3_ANON=true`).
https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration
"""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from weightsearch.errors import UsageError, WeightsearchError

TRIES = 4  # of a request, beside what a store's own library tries
FIRST_PAUSE_SECONDS = 0.2  # before the second try; each later one is three times as long
CONNECT_SECONDS, READ_SECONDS = 10, 60
PATIENCE = 5  # times as long, where a store asks for fewer requests
S3_TRIES = 4  # of s3fs itself, within each of these


@dataclass(frozen=True)
class Store:
    """A kind of place: the package that reads it, the extra that installs it, and where its credentials come from."""

    package: str
    extra: str
    credentials: str


_S3 = Store("s3fs", "s3", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
_GS = Store("gcsfs", "gs", "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS")
_AZ = Store("adlfs", "az", "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _KEY")
_HF = Store("huggingface_hub", "hf", "run `hf auth login`, or set HF_TOKEN")
_WEB = Store("aiohttp", "http", "put the server's user and password into ~/.netrc")
STORES = {
    **{"s3": _S3, "s3a": _S3, "gs": _GS, "gcs": _GS, "az": _AZ, "abfs": _AZ, "abfss": _AZ, "hf": _HF},
    **{"http": _WEB, "https": _WEB, "memory": Store("fsspec", "remote", "")},
}
WEB = ("http", "https")
_URL = re.compile(rf"({'|'.join(STORES)}):/{{1,3}}(?=.)")  # a `Path` of the text has one slash left


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as its store tells it. Equal versions (ETags, or what a store has in their place) are equal contents."""

    size: int | None  # bytes; None where it is only told with the file itself
    version: str  # "" where the store tells none


class ChangedError(WeightsearchError):
    """Another version lies there than the one that was asked for."""


class NoRangesError(Exception):
    """A web server sends files in whole alone."""


def is_url(text: str) -> bool:
    """Whether text names a file or folder of a known kind of store, rather than one of this machine's disk.

    Example:
        >>> is_url("s3://bucket/model.pt"), is_url("runs/model.pt")
        (True, False)
    """
    return _URL.match(text) is not None


def scheme_of(url: str) -> str:
    return url.partition(":")[0]


def info(url: str) -> Entry | None:
    """The file at `url`; None for a folder.

    Raises FileNotFoundError where there is neither, WeightsearchError with one line where that cannot be told.
    """
    if scheme_of(url) in WEB:
        from weightsearch.checkpoints.remote import web

        return _tried(url, lambda: web.info(_filesystem(url), url))
    described = _tried(url, lambda: _filesystem(url).info(url, **_anew(url)))
    return None if described["type"] == "directory" else _entry(described)


def list_folder(url: str) -> tuple[dict[str, Entry], list[str]]:
    """The files of a folder by name, and its folders' names. Raises as `info` does."""
    if scheme_of(url) in WEB:
        from weightsearch.checkpoints.remote import web

        return _tried(url, lambda: web.links(_filesystem(url), url))
    described = _tried(url, lambda: _filesystem(url).ls(url, detail=True, **_anew(url)))
    files, folders = {}, []
    for item in described:
        name = str(item["name"]).rstrip("/").rpartition("/")[2]
        if item["type"] == "directory":
            folders.append(name)
        elif not str(item["name"]).endswith("/"):  # a marker that stands for a folder
            files[name] = _entry(item)
    return files, folders


def list_below(url: str) -> dict[str, Entry]:
    """All files below a folder, by their place in it, as one stream of pages. Raises as `info` does."""
    described = _tried(url, lambda: _filesystem(url).find(url, detail=True, **_anew(url)))
    start = len(str(_filesystem(url)._strip_protocol(url)).rstrip("/")) + 1
    return {name[start:]: _entry(item) for name, item in described.items() if name[start:] and name[-1] != "/"}


def fetch(url: str, start: int, stop: int, version: str) -> bytes:
    """The bytes from `start` to before `stop` of this version of a file.

    Raises ChangedError where another version lies there, NoRangesError of a web server that sends no parts,
    FileNotFoundError where the file is gone, WeightsearchError with one line for all else.
    """

    def attempt() -> bytes:
        filesystem = _filesystem(url)
        if scheme_of(url) in WEB:
            from weightsearch.checkpoints.remote import web

            content = web.fetch(filesystem, url, start, stop, version)
        elif scheme_of(url) in ("s3", "s3a") and version:
            content = _fetch_from_s3(filesystem, url, start, stop, version)
        else:
            content = filesystem.cat_file(url, start=start, end=stop)
            now = _entry(filesystem.info(url, **_anew(url)))
            if now.version != version:
                raise ChangedError("it changed while it was read; run the same command again")
        if len(content) != stop - start:
            raise ConnectionError(f"the connection was cut after {len(content):,} of {stop - start:,} bytes")
        return bytes(content)

    return _tried(url, attempt)


def _fetch_from_s3(filesystem: Any, url: str, start: int, stop: int, version: str) -> bytes:
    """In one request, which S3 refuses where the ETag is another one by now."""
    from fsspec.asyn import sync

    bucket, key, _ = filesystem.split_path(url)

    async def get() -> bytes:
        response = await filesystem._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{version}"',
            **filesystem.req_kw,
        )  # fmt: skip
        async with response["Body"] as body:
            return bytes(await body.read())

    return bytes(sync(filesystem.loop, get))


def _entry(described: dict[str, Any]) -> Entry:
    """What stores tell of a file, which each of them names in its own way."""
    for name in (
        "ETag",
        "etag",
        "md5Hash",
        "generation",
        "blob_id",
        "LastModified",
        "last_modified",
        "mtime",
        "created",
    ):
        if value := described.get(name):
            text = str(value.timestamp() if isinstance(value, datetime) else value)
            return Entry(described.get("size"), plain_version(text))
    return Entry(described.get("size"), "")


def plain_version(text: str) -> str:
    """An ETag without its quotes, which inventories leave out.

    Example:
        >>> plain_version('"9b2cf535f27731c9"')
        '9b2cf535f27731c9'
    """
    return text.strip().removeprefix("W/").strip('"')


_filesystems: dict[tuple[int, str], Any] = {}
_lock = threading.Lock()


def _filesystem(url: str) -> Any:
    """The one connection of this process to a kind of store. Raises UsageError where its package is not installed."""
    scheme = scheme_of(url)
    store = STORES[scheme]
    with _lock:
        key = (os.getpid(), scheme)
        if key not in _filesystems:
            try:
                import fsspec

                _filesystems[key] = fsspec.filesystem(scheme, **_options(scheme))
            except ImportError:
                raise UsageError(
                    f"{scheme}:// paths are read with the package {store.package}, which is not installed: "
                    f"pip install 'weightsearch[{store.extra}]'"
                ) from None
            if store is _S3:
                _filesystems[key].retries = S3_TRIES
        return _filesystems[key]


def _options(scheme: str) -> dict[str, Any]:
    if STORES[scheme] is _S3:
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        return {"use_listings_cache": False, "config_kwargs": {**timeouts, "retries": {"max_attempts": 1}}}
    if scheme in WEB:
        from weightsearch.checkpoints.remote import web

        return web.options(CONNECT_SECONDS, READ_SECONDS)
    return {} if scheme == "memory" else {"use_listings_cache": False}


def _anew(url: str) -> dict[str, bool]:
    """What makes a library ask its store rather than what it remembers, where no option of it does so for good."""
    return {"refresh": True} if STORES[scheme_of(url)] is _HF else {}


T = TypeVar("T")


def _tried(url: str, attempt: Callable[[], T]) -> T:
    """What `attempt` returns, tried again where the network or the store may do better the next time."""
    pause = FIRST_PAUSE_SECONDS
    for left in reversed(range(TRIES)):
        try:
            return attempt()
        except (WeightsearchError, NoRangesError, KeyboardInterrupt):
            raise
        except Exception as error:
            explained, patience = _explained(url, error)
            if not left or not patience:
                raise explained from None
        time.sleep(patience * pause * random.uniform(0.5, 1.5))
        pause *= 3
    raise AssertionError("the last try raises")


def _explained(url: str, error: Exception) -> tuple[Exception, float]:
    """One line that names the thing and the fix, and how many times the usual pause another try is worth; 0: none."""
    store, text = STORES[scheme_of(url)], str(error) or type(error).__name__
    status = _status(error)
    place = url.split("/")[2]
    if "PreconditionFailed" in text or "pre-conditions" in text or status == 412:
        return ChangedError("it changed while it was read; run the same command again"), 0
    if "bucket does not exist" in text or "NoSuchBucket" in text or "container does not exist" in text:
        return WeightsearchError(f"{url}: there is no bucket {place}; check its name, and the store's endpoint"), 0
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "there is no such file", url), 0
    if type(error).__name__ == "TooManyRedirects":
        return WeightsearchError(f"{url}: it is redirected again and again; check the address"), 0
    if "credentials" in text.lower() or type(error).__name__ == "DefaultCredentialsError":
        anonymous = "; of a public one, set FSSPEC_S3_ANON=true" if store is _S3 else ""
        return WeightsearchError(f"{url}: there are no credentials for it; {store.credentials}{anonymous}"), 0
    if isinstance(error, PermissionError) or status in (401, 403) or "Forbidden" in text:
        return WeightsearchError(f"{url}: no permission to read it; {store.credentials}"), 0
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return WeightsearchError(f"{url}: the server refuses it ({status}); check the address"), 0
    if isinstance(error, ValueError | TypeError | NotADirectoryError | IsADirectoryError):
        return WeightsearchError(f"{url}: it cannot be read ({_first_line(text)}); check the address"), 0
    if "SlowDown" in text or "reduce your request rate" in text or status in (429, 503):
        return WeightsearchError(
            f"{url}: the store asks for fewer requests; run the same command again later"
        ), PATIENCE
    return WeightsearchError(f"{url}: {place} cannot be reached ({_first_line(text)}); check the network"), 1


def _status(error: Exception) -> int | None:
    """The HTTP status of an error, which each store's library keeps elsewhere."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return None


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")[:200]
