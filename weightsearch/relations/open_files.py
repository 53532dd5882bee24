"""Checkpoint files as named tensors and signatures. Opening goes through `checkpoints`, the only reader of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.files import sha256
from weightsearch.relations.signature import Signature, sign

if TYPE_CHECKING:
    from weightsearch.checkpoints.named_tensors import Network

HASHED_BESIDE = 2**26  # bytes of a file that is hashed while it is signed, on another core where there is one


@dataclass(frozen=True)
class OpenFile:
    """A file's tensors by name, read when they are asked for. `path` is None for tensors in memory.

    `whole` are the file's bytes where they were read at once.
    """

    path: Path | None
    tensors: Mapping[str, np.ndarray]
    whole: bytes | None = None

    def sign(self) -> Signature:
        if self.path is None:
            return sign(self.tensors)
        tensors = self.tensors.unread if isinstance(self.tensors, _Lazy) else self.tensors
        if self.whole is not None:
            file_hash = hashlib.sha256(self.whole).hexdigest()
            return sign(tensors, file_hash=file_hash, file_bytes=len(self.whole))
        file_bytes = bytes_of_file(self.path)
        if file_bytes < HASHED_BESIDE:
            return replace(sign(tensors), file_hash=hash_of_file(self.path), file_bytes=file_bytes)
        from weightsearch.relations.hashed_file import HashedFile, lie_in

        with ThreadPoolExecutor(1) as beside:
            if lie_in(self.path, tensors.values()):
                with self.path.open("rb") as file:
                    hashed = HashedFile(file, beside)
                    signature = sign({name: hashed.holding(tensor) for name, tensor in tensors.items()})
                    return replace(signature, file_hash=hashed.digest(), file_bytes=file_bytes)
            hashing = beside.submit(hash_of_file, self.path)
            return replace(sign(tensors), file_hash=hashing.result(), file_bytes=file_bytes)

    @property
    def label(self) -> str:
        return "network in memory" if self.path is None else str(self.path)


def open_file(model: Any, weights: str | None = None) -> OpenFile:
    """Opens a checkpoint file, or takes a mapping of named arrays or a module with a `state_dict`.

    `weights` is the key of the network in a file that holds several. Raises WeightsearchError, one line, for a file
    that cannot be read or holds no tensors.
    """
    if isinstance(model, OpenFile):
        return model
    if isinstance(model, str | Path):
        from weightsearch.checkpoints.remote.paths import as_path

        path = as_path(model)
        return OpenFile(path, _read(path, weights))
    if callable(getattr(model, "state_dict", None)):
        model = model.state_dict()
    if isinstance(model, Mapping):
        return OpenFile(None, {str(name): _array(value) for name, value in model.items()})
    raise UsageError(f"a {type(model).__name__} is no network; give a file, a module or a state dict")


def hash_of_file(path: Path) -> str:
    """SHA-256 of the bytes; of a sharded checkpoint, of its parts' hashes in turn."""
    parts = _parts(path)
    if len(parts) == 1:
        return sha256(path)
    return hashlib.sha256("".join(sha256(part) for part in parts).encode()).hexdigest()


def bytes_of_file(path: Path) -> int:
    return sum(part.stat().st_size for part in _parts(path))


def _parts(path: Path) -> list[Path]:
    if path.is_dir():  # a distributed checkpoint
        return sorted(part for part in path.iterdir() if part.is_file())
    if not path.name.endswith(".index.json"):
        return [path]
    import json

    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [path]
    return [path, *(path.parent / str(name) for name in names)]


def _read(path: Path, weights: str | None) -> Mapping[str, np.ndarray]:
    """The network's tensors, and its batch norms' counters, which tell which of two relatives is later."""
    from weightsearch.checkpoints.formats import read_content
    from weightsearch.checkpoints.named_tensors import find_tensors, one_line

    with one_line(str(path)):
        return signed_tensors(find_tensors(read_content(path), weights))


def signed_tensors(network: Network) -> Mapping[str, np.ndarray]:
    """The tensors that a signature is of, read one at a time: those of a file's network, and its norms' counters."""
    return _Lazy({**network.counters, **network.tensors} if network.counters else network.tensors)


class _Lazy(Mapping[str, np.ndarray]):
    """Tensors of a file, read one at a time."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.unread = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        from weightsearch.checkpoints.named_tensors import array_of

        return array_of(self.unread[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.unread)

    def __len__(self) -> int:
        return len(self.unread)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu()
        return np.asarray(value.float() if str(value.dtype) == "torch.bfloat16" else value)
    return np.asarray(value)
