"""Checkpoint files -> nested dicts of arrays, tensors and plain values. The only place that opens strangers' files.

The format is told by a file's first bytes, not by its name. Before anything is loaded, sizes, compression and
checksums are checked against the limits below, so that a small file cannot ask for much memory. Afterwards
`weightsearch.checkpoints.state_dict` checks the tensors.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weightsearch.checkpoints.pickle_scanner import PickleInspector, shown
from weightsearch.errors import WeightsearchError

MAX_FILE_BYTES = 8 * 2**30  # one file, all members of a zip inflated, or all shards of a checkpoint together
MAX_INFLATION = 100  # a zip's inflated bytes per byte of the file; trained weights stay below 2
MAX_INDEX_BYTES = 64 * 2**20  # the `*.safetensors.index.json` of a sharded checkpoint

# How `torch.save` began before it wrote zips: a magic number, then its protocol version (both pickled).
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "U64": "<u8",
    "I32": "<i4",
    "U32": "<u4",
    "I16": "<i2",
    "U16": "<u2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
ORDER_KEY = "weightsearch.order"  # safetensors sorts its tensors; this keeps the order of the layers


def read_tree(path: Path) -> Mapping[Any, Any]:
    """What the file holds, as a nested dict: arrays, torch tensors and plain values, all unchecked.

    Whatever the parsers raise comes through; `checkpoints.read_checkpoint` turns it into one line.
    """
    size = _file_size(path)
    with path.open("rb") as file:
        start = file.read(4096)
        file.seek(0)
        if path.name.endswith(".index.json"):
            return _read_shards(path, file, size)
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(file, size)
        if start.startswith(_LEGACY_TORCH):
            return _read_legacy_torch(file.read())
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return _read_safetensors(file.read())
        if start.startswith(b"\x80"):
            PickleInspector().inspect(BytesIO(file.read()))  # names what it would have called
            raise WeightsearchError("it is a bare pickle; save a state dict with torch.save")
    raise WeightsearchError(_not_a_checkpoint(start))


def _file_size(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise WeightsearchError("there is no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise WeightsearchError("it is a folder; give one of the files in it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise WeightsearchError("it is no regular file; give a checkpoint file")
    if status.st_size == 0:
        raise WeightsearchError("the file is empty; copy or save it again")
    if status.st_size > MAX_FILE_BYTES:
        raise WeightsearchError(
            f"{_bytes(status.st_size)} is over the limit of {_bytes(MAX_FILE_BYTES)} for a checkpoint"
        )
    return status.st_size


def _bytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


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


def _read_zip(file: BinaryIO, size: int) -> Mapping[Any, Any]:
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
        if inflated > min(MAX_FILE_BYTES, MAX_INFLATION * size):
            raise WeightsearchError(
                f"the zip would inflate from {size:,} to {inflated:,} bytes, over the limits of {MAX_INFLATION} times "
                f"and {_bytes(MAX_FILE_BYTES)}; save it uncompressed"
            )
        if len({member.filename.casefold() for member in members}) < len(members):
            raise WeightsearchError("the zip holds two members of one name; save it again")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise WeightsearchError("the zip uses a compression other than deflate; save it again")
        damaged = archive.testzip()
        if damaged is not None:
            raise WeightsearchError(f"the zip's member {shown(damaged)} fails its checksum; copy or save it again")
        if all(member.filename.endswith(".npy") for member in members):
            return _read_npz(archive)
        return _read_torch_zip(archive, file, size)


def _read_npz(archive: zipfile.ZipFile) -> Mapping[Any, Any]:
    tree: dict[str, Any] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        content = BytesIO(archive.read(member))
        version = np.lib.format.read_magic(content)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if header is None:
            raise WeightsearchError(f"array '{shown(name)}' has an unknown .npy version; save it with np.savez")
        shape, _, dtype = header(content)
        if dtype.hasobject:
            raise WeightsearchError(
                f"array '{shown(name)}' holds Python objects, which could run code; save numbers only"
            )
        held = member.file_size - content.tell()
        if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != held:
            raise WeightsearchError(
                f"array '{shown(name)}' claims a shape that its {held:,} bytes do not fit; save it again"
            )
        content.seek(0)
        array = np.lib.format.read_array(content, allow_pickle=False)
        # A lone number is metadata (`test_acc`), unless it is named like a module's parameter (`norm.scale`).
        tree[name] = array if array.ndim or "." in name else array.item()
    return tree


def _read_torch_zip(archive: zipfile.ZipFile, file: BinaryIO, size: int) -> Mapping[Any, Any]:
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    roots = {name.split("/", 1)[0] for name in sizes}
    root = roots.pop()
    if roots or f"{root}/data.pkl" not in sizes:
        raise WeightsearchError("it is a zip, but neither a PyTorch checkpoint nor an .npz; save a state dict")
    if f"{root}/constants.pkl" in sizes:
        raise WeightsearchError("it is a TorchScript program; load it with torch.jit.load and save its state_dict()")
    is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    if not is_stored or sum(sizes.values()) > size:
        raise WeightsearchError("the zip's members are compressed or overlap; save it again with torch.save")
    inspector = PickleInspector()
    inspector.inspect(BytesIO(archive.read(f"{root}/data.pkl")))
    for key, storage in inspector.storages.items():
        if sizes.get(f"{root}/data/{key}") != storage.nbytes:
            raise WeightsearchError(
                f"its storage {shown(key)} is not the {storage.nbytes:,} bytes it claims; save it again"
            )
    file.seek(0)
    return _torch_load(file)


def _read_legacy_torch(content: bytes) -> Mapping[Any, Any]:
    stream = BytesIO(content)
    inspector = PickleInspector()
    for _ in ("magic number", "protocol", "system", "the checkpoint"):
        inspector.inspect(stream)
    keys = inspector.inspect(stream)
    # Behind the pickles: for each storage, its number of values in eight bytes, then the values.
    if not isinstance(keys, list) or len(keys) != len(inspector.storages) or set(keys) != set(inspector.storages):
        raise WeightsearchError("its list of storages is damaged; save it again")
    for key in keys:
        storage = inspector.storages[key]
        if stream.read(8) != struct.pack("<q", storage.numel) or len(content) - stream.tell() < storage.nbytes:
            raise WeightsearchError(
                f"its storage {shown(key)} is not the {storage.nbytes:,} bytes it claims; copy or save it again"
            )
        stream.seek(storage.nbytes, os.SEEK_CUR)
    stream.seek(0)
    return _torch_load(stream)


def _torch_load(file: BinaryIO) -> Mapping[Any, Any]:
    import torch

    loaded = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping):
        raise WeightsearchError(f"it holds a {type(loaded).__name__}, not a state dict; save model.state_dict()")
    return loaded


def _read_safetensors(content: bytes) -> Mapping[Any, Any]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(content))
    except SafetensorError as error:
        raise WeightsearchError(
            f"it is no sound safetensors file ({shown(str(error))}); copy or save it again"
        ) from error
    arrays = {name: _safetensors_array(name, **tensor) for name, tensor in tensors.items()}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = {key: _from_json(value) for key, value in (header.get("__metadata__") or {}).items()}
    order = metadata.pop(ORDER_KEY, None)
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(arrays):
        order = sorted(arrays, key=natural)
    return {"state_dict": {name: arrays[name] for name in order}} | {
        key: value for key, value in metadata.items() if key != "state_dict"
    }


def _safetensors_array(name: str, dtype: str, shape: list[int], data: bytearray) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in _SAFETENSORS_TYPES:
        raise WeightsearchError(
            f"tensor '{shown(name)}' is of type {shown(dtype)}; save it as an ordinary float tensor"
        )
    return np.frombuffer(data, _SAFETENSORS_TYPES[dtype]).reshape(shape)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `features.2` before `features.10`, as a network's modules come."""
    return [(int(part), 0, "") if part.isdecimal() else (0, 1, part) for part in re.split(r"(\d+)", name)]


def _from_json(text: str) -> Any:
    """Safetensors' metadata are strings; numbers and dicts come as JSON, other programs' words stay as they are."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_shards(path: Path, file: BinaryIO, size: int) -> Mapping[Any, Any]:
    if size > MAX_INDEX_BYTES:
        raise WeightsearchError(f"an index of shards over {MAX_INDEX_BYTES:,} bytes; give the checkpoint's own index")
    index = json.loads(file.read())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise WeightsearchError("it holds no `weight_map` from tensor names to files; give the checkpoint's own index")
    shards = {shard: path.parent / shard for shard in sorted(set(weight_map.values()))}
    arrays: dict[str, Any] = {}
    total = 0
    for shard, shard_path in shards.items():
        if Path(shard).name != shard or shard in ("", "..") or shard.endswith(".index.json") or "\0" in shard:
            raise WeightsearchError(f"its shard {shown(shard)} is no plain file name in the same folder")
        try:
            total += _file_size(shard_path)
            if total > MAX_FILE_BYTES:
                raise WeightsearchError(f"the shards together are over the limit of {_bytes(MAX_FILE_BYTES)}")
            tree = read_tree(shard_path)
        except WeightsearchError as error:
            raise WeightsearchError(f"shard {shown(shard)}: {error}") from error
        arrays |= tree.get("state_dict", tree)
    missing = next((name for name in weight_map if name not in arrays), None)
    if missing is not None:
        raise WeightsearchError(f"tensor '{shown(missing)}' is in none of its shards; copy all shards again")
    return {"state_dict": {name: arrays[name] for name in sorted(weight_map, key=natural)}}
