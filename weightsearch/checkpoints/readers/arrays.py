"""Files of named arrays without code: safetensors, one file or shards by their index, and NumPy's .npz."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.readers.limits import (
    MAX_FILE_BYTES,
    MAX_INDEX_BYTES,
    file_size,
    in_gib,
    natural,
    parse_json,
    plain_member,
)
from weightsearch.checkpoints.tensors import Content, Source, Storage, StoredTensor, within
from weightsearch.errors import WeightsearchError

ORDER_KEY = "weightsearch.order"  # safetensors sorts its tensors; this keeps the order of the layers
MAX_HEADER_BYTES = 100_000_000  # what the safetensors library itself accepts
MAX_TEXT = 2**20  # characters of one JSON value in the metadata
_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "U64": "uint64",
    "I32": "int32",
    "U32": "uint32",
    "I16": "int16",
    "U16": "uint16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(file: BinaryIO, source: Source, size: int) -> Content:
    """The format of https://huggingface.co/docs/safetensors: a JSON header, then the values without gaps."""
    try:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError("its header is longer than the file")
        header = parse_json(file.read(header_bytes), "header")
        metadata = header.pop("__metadata__", None) or {}
        tensors = {name: _safetensor(source, 8 + header_bytes, entry) for name, entry in header.items()}
        _check_gapless([entry["data_offsets"] for entry in header.values()], size - 8 - header_bytes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsearchError(
            f"it is no sound safetensors file ({shown(str(error))}); copy or save it again"
        ) from None
    stated = {key: _from_json(value) for key, value in metadata.items() if isinstance(value, str)}
    order = stated.pop(ORDER_KEY, None)
    ordered = isinstance(order, list) and sorted(map(str, order)) == sorted(tensors)
    if not ordered:
        order = sorted(tensors, key=natural)
    tree: dict[str, Any] = {"state_dict": {name: tensors[name] for name in order or ()}}
    # safetensors' own note of a tied tensor that it left out: {"lm_head.weight": "embed.weight"}
    tied = {key for key, value in stated.items() if isinstance(value, str) and value in tensors and key not in tensors}
    tree |= {key: value for key, value in stated.items() if key != "state_dict" and key not in tied}
    is_ordered = ordered or len(tensors) < 2
    named = tuple((name, tensor.dtype, tensor.shape) for name, tensor in tree["state_dict"].items())
    return Content(tree, ordered=is_ordered, form=("safetensors", is_ordered, named, tuple(tree)))


def _safetensor(source: Source, start: int, entry: dict[str, Any]) -> StoredTensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, begin, end)) or end < begin:
        raise ValueError("a tensor's place is impossible")
    dtype = _TYPES.get(entry["dtype"])
    if dtype is None:
        return StoredTensor(str(entry["dtype"]), shape, problem=f"is of type {shown(str(entry['dtype']))}")
    tensor = StoredTensor(dtype, shape, Storage(end - begin, within(source, start + begin, end - begin)))
    if tensor.size * tensor.item_bytes != end - begin:
        raise ValueError("a tensor's shape does not fit its place")
    return tensor


def _check_gapless(offsets: list[list[int]], size: int) -> None:
    at = 0
    for begin, end in sorted(map(tuple, offsets)):
        if begin != at:
            raise ValueError("its tensors overlap or leave gaps")
        at = end
    if at != size:
        raise ValueError("its tensors do not end where the file does")


def _from_json(text: str) -> Any:
    """Safetensors' metadata are strings; numbers and dicts come as JSON, other programs' words stay as they are."""
    if len(text) > MAX_TEXT:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_shards(path: Path, file: BinaryIO, size: int, read: Callable[[Path], Content]) -> Content:
    """All shards that a `*.safetensors.index.json` or `*.bin.index.json` names, as one state dict."""
    if size > MAX_INDEX_BYTES:
        raise WeightsearchError(f"an index of shards over {MAX_INDEX_BYTES:,} bytes; give the checkpoint's own index")
    index = parse_json(file.read(), "index of shards")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise WeightsearchError("it holds no `weight_map` from tensor names to files; give the checkpoint's own index")
    arrays: dict[str, Any] = {}
    total = 0
    in_order = not path.name.endswith(".safetensors.index.json")
    for shard in sorted(set(weight_map.values())):
        if shard.endswith(".index.json"):
            raise WeightsearchError(f"its shard {shown(shard)} is no plain file name in the same folder")
        shard_path = plain_member(path.parent, shard, "shard")
        try:
            total += file_size(shard_path)
            if total > MAX_FILE_BYTES:
                raise WeightsearchError(f"the shards together are over the limit of {in_gib(MAX_FILE_BYTES)}")
            tree = read(shard_path).tree
        except WeightsearchError as error:
            raise WeightsearchError(f"shard {shown(shard)}: {error}") from error
        if not isinstance(tree, dict):
            raise WeightsearchError(f"shard {shown(shard)} holds no state dict")
        inner = tree.get("state_dict", tree)
        arrays |= inner if isinstance(inner, dict) else {}
    missing = next((name for name in weight_map if name not in arrays), None)
    if missing is not None:
        raise WeightsearchError(f"tensor '{shown(missing)}' is in none of its shards; copy all shards again")
    names = [name for name in arrays if name in weight_map] if in_order else sorted(weight_map, key=natural)
    return Content({"state_dict": {name: arrays[name] for name in names}}, ordered=in_order)


def read_npz(archive: zipfile.ZipFile) -> Content:
    """NumPy's arrays by name; those that hold objects would be pickles and are refused."""
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
        if array.dtype == np.dtype("V2"):  # how NumPy stores ml_dtypes' bfloat16
            array = (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        # A lone number is metadata (`test_acc`), unless it is named like a module's parameter (`norm.scale`).
        tree[name] = array if array.ndim or "." in name else array.item()
    return Content(tree)
