"""Uploads and the index behind a server: one temporary file each, gone whatever happens, and one question at a time."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request

from weightsearch.checkpoints.walk import SUFFIXES
from weightsearch.relations import SignatureIndex
from weightsearch.search.answer import Answer
from weightsearch.search.index import Index
from weightsearch.server.options import ServeOptions
from weightsearch.server.reading import Readers

BLOCK = 2**20
CLOSE = {"Connection": "close"}  # or what is still sent would be read for ever


@dataclass(frozen=True)
class Told:
    """An answer about an uploaded file, what the file is to indexed ones, and what it says of itself."""

    answer: Answer
    relations: dict[str, Any] | None
    metadata: Mapping[str, Any]


class Desk:
    """Answers questions about uploaded files and indexed checkpoints."""

    def __init__(self, index: Index, options: ServeOptions) -> None:
        self.index = index
        self.options = options
        self.slots = asyncio.Semaphore(options.readers)
        self.waiting = 0
        self.readers = Readers(options, index.path if len(SignatureIndex(index.path)) else None)
        self._one = threading.Lock()  # an Index keeps what it read, for one thread at a time

    async def answer_upload(self, file: Path, name: str, **asked: Any) -> Told:
        """Of a file on the disk, which is read apart. `name` is only shown to who sent it."""
        if self.waiting >= self.options.waiting:
            raise HTTPException(503, "too many files are waiting; try again in a moment", {"Retry-After": "2"})
        self.waiting += 1
        try:
            async with self.slots:
                return await asyncio.to_thread(self._read_and_ask, file, name, asked)
        finally:
            self.waiting -= 1

    def _read_and_ask(self, file: Path, name: str, asked: dict[str, Any]) -> Told:
        checkpoint, relations = self.readers.read(file)
        return Told(replace(self.ask(checkpoint, **asked), path=name), relations, checkpoint.metadata)

    def ask(self, model: Any = None, **asked: Any) -> Answer:
        with self._one:
            return self.index.query(model, **asked)

    async def uploads(self, request: Request, folder: Path) -> list[tuple[str, Path]]:
        """The request's files on the disk below `folder`, by the names that they were sent with.

        A raw body is one file (`?name=model.pt`), a form may have several. Ends with 413 beyond the limits, while it
        is being sent.
        """
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.options.largest_upload:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.options.upload_seconds):
                if request.headers.get("content-type", "").startswith("multipart/"):
                    return await self._form(request, folder)
                name = request.query_params.get("name", "model.pt")
                path = folder / f"0{suffix_of(name)}"
                with path.open("wb") as out:
                    async for block in self._limited(request):
                        out.write(block)
                return [(name[-200:], path)]
        except TimeoutError:
            raise HTTPException(408, "the file came too slowly", CLOSE) from None

    async def _form(self, request: Request, folder: Path) -> list[tuple[str, Path]]:
        from starlette.formparsers import MultiPartException, MultiPartParser

        stream = self._limited(request)
        parser = MultiPartParser(request.headers, cast(Any, stream), max_files=self.options.most_files, max_fields=10)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(400, str(error.message)) from None
        uploads: list[tuple[str, Path]] = []
        try:
            for number, (_, part) in enumerate(form.multi_items()):
                if isinstance(part, str) or not part.size:
                    continue
                name = part.filename or "model.pt"
                path = folder / f"{number}{suffix_of(name)}"
                with path.open("wb") as out:
                    while block := await part.read(BLOCK):
                        out.write(block)
                uploads.append((name[-200:], path))
        finally:
            await form.close()
        if not uploads:
            raise HTTPException(400, "no file was sent")
        return uploads

    async def _limited(self, request: Request) -> AsyncIterator[bytes]:
        size = 0
        async for block in request.stream():
            size += len(block)
            if size > self.options.largest_upload:
                raise self._too_large()
            yield block

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"more than {self.options.largest_upload // 2**20} MiB in one request", CLOSE)


def suffix_of(name: str) -> str:
    """The end of a sent name that says its format; nothing else of it reaches the disk."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), ".pt")


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="weightsearch-upload-")
