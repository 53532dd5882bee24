"""PyTorch's own files: zips by torch.save, TorchScript and torch.export, and what torch.save wrote before zips."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from weightsearch.checkpoints.pickle_scanner import Bounded, Named, PickleReader, Placeholder, shown
from weightsearch.checkpoints.pickle_values import STORAGE_TYPES, PickleValues, is_size
from weightsearch.checkpoints.readers.limits import MAX_INDEX_BYTES, parse_json
from weightsearch.checkpoints.tensors import (
    ITEM_BYTES,
    Content,
    FileBytes,
    MemoryBytes,
    Source,
    Storage,
    StoredTensor,
    within,
)
from weightsearch.errors import WeightsearchError

# How `torch.save` began before it wrote zips: a magic number, then its protocol version (both pickled).
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
MAX_NESTING = 3  # of a storage's own file within a pickle
# torch._export.serde.schema.ScalarType
_EXPORT_TYPES = {
    **{1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64"},
    **{9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16"},
    **{29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz"},
}


def read_torch_zip(archive: zipfile.ZipFile, source: Source, size: int, depth: int = 0) -> Content:
    """A zip by torch.save, torch.jit.save or torch.export.save. `source` are the bytes of the whole zip."""
    members = {member.filename: member for member in archive.infolist()}
    root = next(iter(members)).split("/", 1)[0] if members else ""
    names = {name.removeprefix(f"{root}/") for name in members}
    if "serialized_exported_program.json" in members or f"{root}/serialized_exported_program.json" in members:
        name = next(name for name in members if name.endswith("serialized_state_dict.pt"))
        return read_torch_bytes(archive.read(name), depth + 1)
    if {"archive_format", "data/weights/model_weights_config.json"} <= names:
        return _read_export(archive, members, root, source, size)
    if len({name.split("/", 1)[0] for name in members}) != 1 or "data.pkl" not in names:
        raise WeightsearchError("it is a zip, but neither a PyTorch checkpoint nor an .npz; save a state dict")
    needed = [member for name, member in members.items() if not name.startswith(f"{root}/code/")]
    is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in needed)
    if not is_stored or sum(member.compress_size for member in members.values()) > size:
        raise WeightsearchError("the zip's members are compressed or overlap; save it again with torch.save")
    big = f"{root}/byteorder" in members and archive.read(f"{root}/byteorder").strip() == b"big"
    values = PickleValues(lambda content: _nested_storage(content, depth), ">" if big else "<")
    reader = PickleReader(values)
    tree = reader.read(BytesIO(archive.read(f"{root}/data.pkl")))
    for key, (_, storage) in values.storages.items():
        member = members.get(f"{root}/data/{key}")
        if member is None or member.file_size != storage.nbytes:
            raise WeightsearchError(
                f"its storage {shown(key)} is not the {storage.nbytes:,} bytes it claims; save it again"
            )
        storage.source = part_of(source, member)
    is_script = "constants.pkl" in names or any(name.startswith("code/") for name in names)
    notes = ("it is a TorchScript program: its weights were read, its code was not",) if is_script else ()
    met = () if is_script else tuple(reader.names)
    return Content(tree, notes, globals=met)


def part_of(source: Source, member: zipfile.ZipInfo) -> Source:
    """The bytes of a stored member within those of its zip."""
    head = bytes(source.read(member.header_offset, 30))
    if len(head) != 30 or not head.startswith(b"PK\x03\x04"):
        raise WeightsearchError(f"the zip's member {shown(member.filename)} is damaged; copy or save it again")
    start = member.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
    if isinstance(source, FileBytes):
        return FileBytes(source.path, source.start + start)
    return MemoryBytes(source.read(start, member.file_size))


def _read_export(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], root: str, source: Source, size: int
) -> Content:
    """torch.export's archive: a table of weights, each a file of raw values."""
    place = f"{root}/data/weights/"
    if members[f"{place}model_weights_config.json"].file_size > MAX_INDEX_BYTES:
        raise WeightsearchError("its table of weights is too large; export it again")
    config = parse_json(archive.read(f"{place}model_weights_config.json"), "table of weights").get("config")
    if not isinstance(config, dict):
        raise WeightsearchError("its table of weights is damaged; export it again")
    storages: dict[str, Storage] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, entry in config.items():
        about, path = entry["tensor_meta"], place + entry["path_name"]
        shape, stride = (tuple(int(length["as_int"]) for length in about[key]) for key in ("sizes", "strides"))
        offset = int(about["storage_offset"]["as_int"])
        member, dtype = members.get(path), _EXPORT_TYPES.get(about["dtype"])
        if member is None or member.compress_type != zipfile.ZIP_STORED or not is_size((*shape, *stride, offset)):
            raise WeightsearchError(f"its weight {shown(name)} is missing or damaged; export it again")
        if dtype is None or entry.get("use_pickle"):
            tensors[name] = StoredTensor("?", shape, problem=f"is of an unknown type ({shown(str(about['dtype']))})")
            continue
        storage = storages.setdefault(path, Storage(member.file_size, part_of(source, member)))
        tensor = StoredTensor(dtype, shape, storage, offset, stride)
        if (offset + tensor.extent) * tensor.item_bytes > member.file_size:
            raise WeightsearchError(f"tensor '{shown(name)}' claims more values than are stored; export it again")
        tensors[name] = tensor
    return Content(
        {"state_dict": tensors}, ("it is a program by torch.export: its weights were read, its code was not",)
    )


def read_torch_bytes(content: bytes, depth: int) -> Content:
    """A torch file that lies within another file."""
    if depth > MAX_NESTING:
        raise WeightsearchError("it holds files within files too deeply; save model.state_dict()")
    if content.startswith(LEGACY_START):
        return read_legacy(BytesIO(content), MemoryBytes(content), len(content), depth)
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return read_torch_zip(archive, MemoryBytes(content), len(content), depth)


def _nested_storage(content: bytes, depth: int) -> Any:
    """The storage that a pickle by another program than torch.save holds as a file of torch.save."""
    return read_torch_bytes(content, depth + 1).tree


def read_legacy(file: BinaryIO, source: Source, size: int, depth: int = 0) -> Content:
    """Four pickles, the keys of the storages, and for each its number of values in eight bytes, then the values."""
    values = PickleValues(lambda content: _nested_storage(content, depth))
    reader = PickleReader(values)
    bounded = Bounded(file, size)
    for _ in ("magic number", "protocol"):
        reader.read(bounded)
    system = reader.read(bounded)
    if isinstance(system, Mapping) and system.get("little_endian") is False:
        values.byteorder = ">"
    tree = reader.read(bounded)
    keys = reader.read(bounded)
    if not isinstance(keys, list) or len(keys) != len(values.storages) or set(map(str, keys)) != set(values.storages):
        raise WeightsearchError("its list of storages is damaged; save it again")
    for key in keys:
        dtype, storage = values.storages[key]
        count = struct.pack("<q", storage.nbytes // ITEM_BYTES[dtype])
        at = file.tell() + 8
        if file.read(8) != count or size - at < storage.nbytes:
            raise WeightsearchError(
                f"its storage {shown(key)} is not the {storage.nbytes:,} bytes it claims; copy or save it again"
            )
        storage.source = within(source, at, storage.nbytes)
        file.seek(storage.nbytes, os.SEEK_CUR)
    return Content(tree, globals=tuple(reader.names))


def read_bare_pickle(file: BinaryIO, size: int, depth: int = 0) -> Content:
    """A pickle by Python itself, such as a dictionary of NumPy arrays."""
    values = PickleValues(lambda content: _nested_storage(content, depth))
    reader = PickleReader(values)
    tree = reader.read(Bounded(file, size))
    if values.storages:
        raise WeightsearchError("its pickle refers to storages that are not in it; save it again with torch.save")
    return Content(tree, globals=tuple(reader.names))


class _TarValues(PickleValues):
    """The pickle of a tar refers to tensors by number."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def storage(self, identifier: Any) -> Any:
        if isinstance(identifier, tuple):  # a container without sources
            return identifier[0]
        return self.tensors[str(int(identifier))]


def read_tar(path: Path) -> Content:
    """What torch.save wrote until 2017: a tar of `storages`, `tensors` and `pickle`.

    https://github.com/pytorch/pytorch/blob/main/torch/serialization.py, `legacy_load`.
    """
    with tarfile.open(path, "r:") as archive:
        members = {member.name.removeprefix("./"): member for member in archive if member.isreg()}
        if not {"storages", "tensors", "pickle"} <= set(members):
            raise WeightsearchError("it is a tar, but not one by torch.save; unpack it and give the files in it")
        storages = _tar_storages(archive, members["storages"], path)
        tensors = _tar_tensors(archive, members["tensors"], storages)
        stream = archive.extractfile(members["pickle"])
        assert stream is not None
        reader = PickleReader(_TarValues(tensors))
        return Content(reader.read(stream), globals=tuple(reader.names))


def _tar_storages(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> dict[str, tuple[str, Storage]]:
    stream = archive.extractfile(member)
    assert stream is not None  # a regular member
    reader = PickleReader(PickleValues())
    storages: dict[str, tuple[str, Storage]] = {}
    for _ in range(_count(reader.read(stream))):
        key, _, kind = reader.read(stream)
        dtype = STORAGE_TYPES[kind.rpartition(".")[2] if isinstance(kind, Named) else ""]
        (numel,) = struct.unpack("<q", stream.read(8))
        nbytes = numel * ITEM_BYTES[dtype]
        at = stream.tell()
        if numel < 0 or at + nbytes > member.size:
            raise WeightsearchError(f"its storage {shown(str(key))} is larger than the file; copy or save it again")
        storages[str(key)] = dtype, Storage(nbytes, FileBytes(path, member.offset_data + at))
        stream.seek(nbytes, os.SEEK_CUR)
    for target, base, offset, numel in reader.read(stream):
        dtype, storage = storages[str(base)]
        start, nbytes = offset * ITEM_BYTES[dtype], numel * ITEM_BYTES[dtype]
        if not is_size((offset, numel)) or start + nbytes > storage.nbytes or storage.source is None:
            raise WeightsearchError("a view of a storage is larger than the storage; save it again")
        storages[str(target)] = dtype, Storage(nbytes, within(storage.source, start, nbytes))
    return storages


def _tar_tensors(
    archive: tarfile.TarFile, member: tarfile.TarInfo, storages: Mapping[str, tuple[str, Storage]]
) -> dict[str, StoredTensor]:
    stream = archive.extractfile(member)
    assert stream is not None  # a regular member
    reader = PickleReader(PickleValues())
    tensors: dict[str, StoredTensor] = {}
    for _ in range(_count(reader.read(stream))):
        key, storage_key, _ = reader.read(stream)
        dtype, storage = storages[str(storage_key)]
        dimensions, _ = struct.unpack("<ii", stream.read(8))
        if not 0 <= dimensions <= 64:
            raise WeightsearchError("a tensor's shape is damaged; copy or save it again")
        size = struct.unpack(f"<{dimensions}q", stream.read(8 * dimensions))
        stride = struct.unpack(f"<{dimensions}q", stream.read(8 * dimensions))
        (offset,) = struct.unpack("<q", stream.read(8))
        tensor = StoredTensor(dtype, size, storage, offset, stride)
        if not is_size((offset, *size, *stride)) or (offset + tensor.extent) * tensor.item_bytes > storage.nbytes:
            raise WeightsearchError(
                f"tensor {shown(str(key))} claims more values than its storage holds; save it again"
            )
        tensors[str(key)] = tensor
    return tensors


def _count(value: Any) -> int:
    if not is_size((value,)) or value > 1_000_000:
        raise WeightsearchError("its list of tensors is damaged; copy or save it again")
    return int(value)


__all__ = [
    "LEGACY_START",
    "Placeholder",
    "read_bare_pickle",
    "read_legacy",
    "read_tar",
    "read_torch_bytes",
    "read_torch_zip",
]
