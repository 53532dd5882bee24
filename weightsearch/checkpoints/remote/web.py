"""Web servers: parts of files, and the links of a folder's page, with limits that a hostile server cannot pass.

Redirects lead to http and https alone, and never from https to http.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

from weightsearch.checkpoints.remote.stores import ChangedError, Entry, NoRangesError, plain_version
from weightsearch.errors import WeightsearchError

MAX_PAGE_BYTES = 16 * 2**20  # of a page that lists a folder
_LINK = re.compile(r"<a\s[^>]*?href\s*=\s*[\"']?([^\"'\s>]+)", re.IGNORECASE)
_WHOLE = {"Accept-Encoding": "identity"}  # compressed, a file's size and parts would be others
CHUNK = 2**20


def options(connect_seconds: float, read_seconds: float) -> dict[str, Any]:
    """For fsspec's file system. aiohttp reads `~/.netrc` and the variables that name proxies."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=read_seconds)
    return {"encoded": True, "get_client": _session, "client_kwargs": {"trust_env": True, "timeout": timeout}}


async def _session(**arguments: Any) -> Any:
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    return aiohttp.ClientSession(trace_configs=[trace], **arguments)


async def _check_redirect(session: Any, context: Any, redirect: Any) -> None:
    headers = redirect.response.headers
    source = str(redirect.response.url)
    target = urljoin(source, headers.get("Location") or headers.get("URI") or "")
    before, after = urlsplit(source).scheme, urlsplit(target).scheme
    if after not in ("http", "https") or (before, after) == ("https", "http"):
        raise WeightsearchError(f"{source}: it is redirected from {before} to {after}, which is not followed")


def info(filesystem: Any, url: str) -> Entry | None:
    """A file by its headers; None where the server leads on to a folder's page."""
    return _run(filesystem, _info, url)


async def _info(filesystem: Any, url: str) -> Entry | None:
    session = await filesystem.set_session()
    async with session.head(filesystem.encode_url(url), headers=_WHOLE, allow_redirects=True) as response:
        status, headers, last = response.status, response.headers, str(response.url)
    if status in (405, 501):  # it knows no HEAD
        async with session.get(filesystem.encode_url(url), headers={**_WHOLE, "Range": "bytes=0-0"}) as response:
            response.raise_for_status()
            headers, last = response.headers, str(response.url)
    else:
        response.raise_for_status()
    if last.endswith("/"):
        return None
    whole = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    if not whole.isdecimal():
        raise WeightsearchError(f"{url}: the server does not tell its size; fetch it and give the file")
    return Entry(int(whole), _version(headers))


def _version(headers: Any) -> str:
    return plain_version(headers.get("ETag") or headers.get("Last-Modified") or "")


def links(filesystem: Any, url: str) -> tuple[dict[str, Entry], list[str]]:
    """The files and folders that the page of a folder links to, in that folder alone; sizes are asked for later."""
    page = _run(filesystem, _page, url.rstrip("/") + "/")
    base = url.rstrip("/") + "/"
    files: dict[str, Entry] = {}
    folders: list[str] = []
    for link in _LINK.findall(page):
        target = urljoin(base, unescape(link))
        name = target.removeprefix(base)
        if name == target or not name or "?" in name or "#" in name or name.strip("/") in (".", ".."):
            continue
        if "/" not in name:
            files[name] = Entry(None, "")
        elif name.count("/") == 1 and name.endswith("/"):
            folders.append(name[:-1])
    return files, list(dict.fromkeys(folders))


async def _page(filesystem: Any, url: str) -> str:
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url)) as response:
        response.raise_for_status()
        if "html" not in response.headers.get("Content-Type", "html"):
            return ""
        content = await response.content.read(MAX_PAGE_BYTES)
        while len(content) < MAX_PAGE_BYTES and (more := await response.content.read(CHUNK)):
            content += more
        return bytes(content).decode(errors="ignore")


def fetch(filesystem: Any, url: str, start: int, stop: int, version: str) -> bytes:
    """As `stores.fetch`; never more bytes than were asked for, whatever the server sends."""
    return _run(filesystem, _fetch, url, start, stop, version)


async def _fetch(filesystem: Any, url: str, start: int, stop: int, version: str) -> bytes:
    session = await filesystem.set_session()
    headers = {**_WHOLE, "Range": f"bytes={start}-{stop - 1}"}
    async with session.get(filesystem.encode_url(url), headers=headers) as response:
        response.raise_for_status()
        if _version(response.headers) != version:
            raise ChangedError("it changed while it was read; run the same command again")
        if response.status != 206 and start > 0:
            raise NoRangesError
        content = bytearray()
        while len(content) < stop - start and (more := await response.content.read(CHUNK)):
            content += more
        return bytes(content[: stop - start])


def _run(filesystem: Any, coroutine: Any, *arguments: Any) -> Any:
    from fsspec.asyn import sync

    return sync(filesystem.loop, coroutine, filesystem, *arguments)
