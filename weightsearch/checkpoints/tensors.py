"""Tensors as files hold them: known by type and shape before a value is read, and read one at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from weightsearch.checkpoints.remote.paths import RemotePath
from weightsearch.errors import WeightsearchError

# By torch's names. NumPy lacks those that have None: `_widened` reads them.
ITEM_TYPES: dict[str, str | None] = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": None,
    "float8_e4m3fn": None,
    "float8_e5m2": None,
    "float8_e4m3fnuz": None,
    "float8_e5m2fnuz": None,
    "float8_e8m0fnu": None,
    "complex128": "c16",
    "complex64": "c8",
    "complex32": None,
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "bool": "?",
}
ITEM_BYTES = {
    name: int(code.lstrip("ifuc")) if code and code != "?" else 1 for name, code in ITEM_TYPES.items()
} | {"bfloat16": 2, "complex32": 4}  # fmt: skip


class Source(Protocol):
    """Bytes that can be read from anywhere: a file, a part of one, or memory."""

    def read(self, start: int, length: int) -> bytes | memoryview: ...


@dataclass(frozen=True)
class FileBytes:
    """The bytes of a file from `start` on. The file is opened for each reading, so that none is held."""

    path: Path
    start: int = 0

    def read(self, start: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            return OpenBytes(file, self.start).read(start, length)

    @contextmanager
    def opened(self) -> Iterator[OpenBytes]:
        """The same for many readings."""
        with self.path.open("rb") as file:
            yield OpenBytes(file, self.start)


class Readable(Protocol):
    """What is read of an open file."""

    def seek(self, position: int, whence: int = ..., /) -> int: ...

    def read(self, length: int, /) -> bytes: ...


@dataclass(frozen=True)
class OpenBytes:
    file: Readable
    start: int

    def read(self, start: int, length: int) -> bytes:
        self.file.seek(self.start + start, os.SEEK_SET)
        return self.file.read(length)


@dataclass(frozen=True)
class MemoryBytes:
    content: bytes | memoryview

    def read(self, start: int, length: int) -> memoryview:
        return memoryview(self.content)[start : start + length]


def within(source: Source, start: int, length: int) -> Source:
    """A part of a source's bytes, unread where they are a file's."""
    if isinstance(source, FileBytes):
        return FileBytes(source.path, source.start + start)
    return MemoryBytes(source.read(start, length))


@dataclass(eq=False)
class Storage:
    """One block of stored values. `source` may become known only after those who refer to it."""

    nbytes: int
    source: Source | None = None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a file: `shape` and `stride` in items over a storage, from item `offset` on.

    `problem` says why its values are none that can be compared ("is sparse"); there is no storage then.
    """

    dtype: str  # torch's name
    shape: tuple[int, ...]
    storage: Storage | None = None
    offset: int = 0
    stride: tuple[int, ...] | None = None  # None: row-major
    problem: str | None = None
    byteorder: str = "<"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES.get(self.dtype, 1)

    @property
    def steps(self) -> tuple[int, ...]:
        return row_major(self.shape) if self.stride is None else self.stride

    @property
    def extent(self) -> int:
        """How many items of its storage it spans."""
        if 0 in self.shape:
            return 0
        return 1 + sum((count - 1) * step for count, step in zip(self.shape, self.steps, strict=True))

    @property
    def place(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...], str]:
        """Equal for tensors that are one: the same values of the same storage, such as tied weights."""
        return id(self.storage), self.offset, self.shape, self.steps, self.dtype

    def array(self) -> np.ndarray:
        """The values, in their own type where NumPy has it, else as float32. Raises WeightsearchError."""
        if self.problem is not None or self.storage is None or self.storage.source is None:
            raise WeightsearchError(f"the tensor {self.problem or 'has no values'}")
        if self.lies_in_order:
            return self._read(self.storage.source, 0, self.size).reshape(self.shape)
        if overlaps(self.shape, self.steps):
            raise WeightsearchError("the tensor is expanded: its values share memory")
        wanted = self.extent * self.item_bytes
        content = self.storage.source.read(self.offset * self.item_bytes, wanted)
        if len(content) != wanted:
            raise WeightsearchError("the file ends within a tensor; copy or save it again")
        items = decode(content, self.dtype, self.byteorder)
        if 0 in self.shape:
            return items.reshape(self.shape)
        strides = tuple(step * items.itemsize for step in self.steps)
        return np.lib.stride_tricks.as_strided(items, self.shape, strides, writeable=False)

    @property
    def value_dtype(self) -> np.dtype:
        """Of the arrays that its values are read as."""
        return np.dtype(ITEM_TYPES.get(self.dtype) or "f4")

    def blocks(self, items: int) -> Iterator[np.ndarray]:
        """The values in row-major order, flat, `items` at a time; no more are in memory where they lie in that order.

        Those of a remote file come all together, by few requests. Raises WeightsearchError, as `array` does.
        """
        source = None if self.storage is None else self.storage.source
        is_remote = isinstance(source, FileBytes) and isinstance(source.path, RemotePath)
        if source is None or is_remote or not self.lies_in_order:
            flat = self.array().reshape(-1)
            yield from (flat[start : start + items] for start in range(0, flat.size, items))
            return
        with source.opened() if isinstance(source, FileBytes) else nullcontext(source) as opened:
            for start in range(0, self.size, items):
                yield self._read(opened, start, min(items, self.size - start))

    @property
    def lies_in_order(self) -> bool:
        """Whether its values lie one behind the other, the last index first."""
        return self.stride is None or self.stride == row_major(self.shape)

    def _read(self, source: Source, start: int, count: int) -> np.ndarray:
        """`count` values `(count,)` of a tensor that lies in order, from its value `start` on."""
        size = self.item_bytes
        content = source.read((self.offset + start) * size, count * size)
        if len(content) != count * size:
            raise WeightsearchError("the file ends within a tensor; copy or save it again")
        return decode(content, self.dtype, self.byteorder)


@lru_cache(maxsize=4096)
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps: list[int] = []
    step = 1
    for length in reversed(shape):
        steps.append(step)
        step *= max(length, 1)
    return tuple(reversed(steps))


def overlaps(shape: Sequence[int], steps: Sequence[int]) -> bool:
    """Whether positions of a strided tensor share memory: billions of values may stand for a few stored ones."""
    if 0 in shape:
        return False
    extent = 1
    for step, length in sorted(zip(steps, shape, strict=True)):
        if length > 1 and step < extent:
            return True
        extent += (length - 1) * step
    return False


def decode(content: bytes | memoryview, dtype: str, byteorder: str = "<") -> np.ndarray:
    """Stored bytes as a flat array `(N,)` of `dtype` in the machine's own order, or of float32 if NumPy lacks it."""
    code = ITEM_TYPES[dtype]
    if code is not None:
        stored = np.frombuffer(content, code if code == "?" else byteorder + code)
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(content, f"{byteorder}u2").astype(np.uint32) << 16).view(np.float32)
    import torch

    values = torch.frombuffer(bytearray(content), dtype=torch.uint8) if len(content) else torch.empty(0)
    if dtype == "complex32":
        return values.view(torch.complex32).to(torch.complex64).numpy()
    return values.to(torch.uint8).view(getattr(torch, dtype)).float().numpy()


def in_memory(array: np.ndarray, dtype: str | None = None) -> StoredTensor:
    """A tensor over an array of any kind that `ITEM_TYPES` has, or over raw bytes of type `dtype`."""
    content = np.ascontiguousarray(array)
    name = dtype or str(content.dtype.newbyteorder("="))
    if name not in ITEM_TYPES:
        return StoredTensor(name, array.shape, problem=f"is of type {name}")
    native = content.astype(content.dtype.newbyteorder("="), copy=False)
    return StoredTensor(name, array.shape, Storage(native.nbytes, MemoryBytes(native.tobytes())))


@dataclass(frozen=True)
class Content:
    """What a file holds, unchecked: a tree of mappings, lists, plain values and tensors."""

    tree: object
    notes: tuple[str, ...] = ()
    ordered: bool = True  # whether the tensors come in the order of the network's layers
    globals: tuple[str, ...] = field(default=())  # what a pickle names
    adapter: dict[str, object] | None = None  # the configuration of a LoRA adapter, from beside its file
    form: object = None  # hashable; equal for contents that differ in plain values alone
    whole: bytes | None = None  # the file's bytes where it is one file, which was read at once
