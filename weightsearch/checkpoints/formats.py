"""Checkpoint files -> trees of tensors and plain values. The only place that opens strangers' files.

The format is told by a file's first bytes, not by its name. Before anything is loaded, sizes, compression and
checksums are checked against the limits of `readers.limits`, so that a small file cannot ask for much memory.
Afterwards `checkpoints.networks` finds the network in the tree, and `checkpoints.state_dict` checks its tensors.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.readers.arrays import ORDER_KEY, read_npz, read_safetensors, read_shards
from weightsearch.checkpoints.readers.deepspeed import joined
from weightsearch.checkpoints.readers.distributed import read_distributed
from weightsearch.checkpoints.readers.guard import read_apart
from weightsearch.checkpoints.readers.limits import (
    MAX_FILE_BYTES,
    Allowance,
    file_size,
    natural,
)
from weightsearch.checkpoints.readers.torch_files import (
    LEGACY_START,
    read_bare_pickle,
    read_legacy,
    read_tar,
    read_torch_zip,
)
from weightsearch.checkpoints.readers.torch_templates import TEMPLATES
from weightsearch.checkpoints.remote.paths import RemotePath
from weightsearch.checkpoints.remote.reading import localize, read_one_version
from weightsearch.checkpoints.tensors import Content, FileBytes, MemoryBytes, Source
from weightsearch.errors import WeightsearchError

# Of the formats that need a library of their own, which `weightsearch[formats]` installs.
FORMAT_SUFFIXES = (".onnx", ".h5", ".hdf5", ".keras", ".gguf", ".tflite", ".msgpack", ".jit", ".pt2")
HDF5 = b"\x89HDF\r\n\x1a\n"
READ_WHOLE = 2**22  # bytes of a file that is read into memory at once
_SNIFFED = 1 << 16  # bytes of a file with an unknown name that are looked at


def looks_like_weights(path: Path) -> bool:
    """Whether a file with an unknown name begins as a file of weights does."""
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED)
    except OSError:
        return False
    if start.startswith(b"PK\x03\x04"):
        return b"/data.pkl" in start[:4096] or b".npy" in start[:256] or b"/archive_format" in start[:4096]
    if is_pickle(start):
        return any(mark in start for mark in (b"_rebuild_tensor", b"_reconstruct", b"_load_from_bytes", b"\x8a\nl\xfc"))
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        return b'"dtype"' in start and b'"data_offsets"' in start
    return start.startswith(HDF5) or start[:4] == b"GGUF" or start[4:8] == b"TFL3"


# A part of a network, by its name; one that is the only one is whole.
SHARD = re.compile(r"(.+)-\d{5}-of-(?!00001\.)(\d{5})\.(?:safetensors|bin)")


def read_content(path: Path) -> Content:
    """What the file holds: tensors unread, plain values, placeholders for what a pickle names besides.

    Whatever the parsers raise comes through; `checkpoints.read_checkpoint` turns it into one line. Of a remote
    .safetensors file the parts that are asked for are fetched, of others all.
    """
    if shard := SHARD.fullmatch(path.name):
        raise WeightsearchError(
            f"it is a shard, one of {int(shard[2]):,} of a network; give their .index.json, or the folder"
        )
    if isinstance(path, RemotePath) and not path.is_dir():
        return read_one_version(path, _read_file)
    if path.is_dir() and (path / ".metadata").is_file():
        return read_distributed(path)
    return _read_file(path)


def _read_file(path: Path) -> Content:
    size = file_size(path)
    with path.open("rb") as file:
        if size > READ_WHOLE or isinstance(path, RemotePath):
            return _read_opened(path, file, FileBytes(path), size)
        content = file.read()  # by one call instead of one a tensor
    read = _read_opened(path, BytesIO(content), MemoryBytes(content), len(content))
    return read if path.name.endswith(".index.json") else replace(read, whole=content)


def _read_opened(path: Path, file: BinaryIO, source: Source, size: int) -> Content:
    start = file.read(4096)
    file.seek(0)
    if path.name.endswith(".index.json"):
        return read_shards(path, file, size, _read_file)
    is_archive = start.startswith((b"PK\x03\x04", LEGACY_START))
    is_safetensors = not is_archive and (path.suffix == ".safetensors" or start[8:9] == b"{")
    if not is_safetensors:
        localize(path)  # all of a remote file is needed: it is read from this machine's disk from now on
    if start.startswith(b"PK\x03\x04"):
        return joined(path, _with_adapter(path, _read_zip(path, file, source, size)), read_content)
    if start.startswith(LEGACY_START):
        return joined(path, read_legacy(file, source, size), read_content)
    if is_safetensors:
        return _with_adapter(path, read_safetensors(file, source, size))
    if start[257:262] == b"ustar":
        return read_tar(localize(path))
    if start.startswith(HDF5):
        return _apart("hdf5", path)
    if start.startswith(b"GGUF"):
        return _apart("gguf", path)
    if start[4:8] == b"TFL3":
        return _apart("tflite", path)
    if path.suffix == ".onnx":
        return _apart("onnx", path)
    if path.suffix == ".msgpack":
        return _apart("flax", path)
    if is_pickle(start):
        return read_bare_pickle(file, size)
    raise WeightsearchError(_not_a_checkpoint(start))


def _apart(reader: str, path: Path) -> Content:
    content = read_apart(reader, path)
    assert isinstance(content, Content)
    return content


def _with_adapter(path: Path, content: Content) -> Content:
    """With the configuration that PEFT writes beside an adapter's weights."""
    config = path.with_name("adapter_config.json")
    if not path.name.startswith("adapter_") or not config.is_file() or config.stat().st_size > 2**20:
        return content
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return content
    return replace(content, adapter=read) if isinstance(read, dict) else content


def is_pickle(start: bytes) -> bool:
    """Whether bytes begin as a pickle does: by its protocol's number, or, before that was written, by a container."""
    return (start[:1] == b"\x80" and start[1:2] <= b"\x05" and len(start) > 2) or start[:4] in (
        b"(dp0",
        b"(dp1",
        b"ccol",
    )


def _not_a_checkpoint(start: bytes) -> str:
    formats = "give a .safetensors, .pt, .pth, .ckpt, .bin or .npz file"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.startswith(b"\x93NUMPY"):
        return "it is a single array without layer names; save the named arrays with np.savez"
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        text = start[: error.start].decode() if error.start > len(start) - 4 else ""  # a letter cut in two
    is_text = bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)
    return (
        f"it is a text file, not a checkpoint; {formats}" if is_text else f"it is no known checkpoint format; {formats}"
    )


def _read_zip(path: Path, file: BinaryIO, source: Source, size: int) -> Content:
    in_memory = bytes(source.content) if isinstance(source, MemoryBytes) else None
    if in_memory is not None and (content := TEMPLATES.read(in_memory)) is not None:
        return content
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise WeightsearchError(f"the zip is truncated or damaged ({error}); copy or save it again") from error
    with archive:
        members = archive.infolist()
        # The last 22 bytes count the members. A damaged directory may hide some, and something appended may hide
        # this directory behind another one.
        file.seek(size - 22)
        end = file.read()
        if not end.startswith(b"PK\x05\x06") or int.from_bytes(end[10:12], "little") not in (len(members), 0xFFFF):
            raise WeightsearchError("the zip's directory is damaged or has something appended; copy or save it again")
        inflated = sum(member.file_size for member in members)
        Allowance(size).spend(inflated)
        if len({member.filename.casefold() for member in members}) < len(members):
            raise WeightsearchError("the zip holds two members of one name; save it again")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise WeightsearchError("the zip uses a compression other than deflate; save it again")
        damaged = archive.testzip()
        if damaged is not None:
            raise WeightsearchError(f"the zip's member {shown(damaged)} fails its checksum; copy or save it again")
        if any(member.filename == "model.weights.h5" for member in members):
            return _apart("keras", path)
        if members and all(member.filename.endswith(".npy") for member in members):
            return read_npz(archive)
        content = read_torch_zip(archive, source, size)
        if in_memory is not None:
            TEMPLATES.learn(archive, in_memory)
        return content


__all__ = ["MAX_FILE_BYTES", "ORDER_KEY", "natural", "read_content"]
