"""PyTorch's distributed checkpoints: a folder of `.distcp` files, and `.metadata`, a pickle of where each tensor lies.

https://pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import PickleReader, Placeholder, shown
from weightsearch.checkpoints.pickle_values import PickleValues, plain
from weightsearch.checkpoints.readers.limits import MAX_FILE_BYTES, MAX_INDEX_BYTES, file_size, plain_member
from weightsearch.checkpoints.readers.torch_files import read_torch_bytes
from weightsearch.checkpoints.tensors import Content, StoredTensor
from weightsearch.errors import WeightsearchError


def read_distributed(folder: Path) -> Content:
    """The whole tensors of a distributed checkpoint, put together from their parts."""
    index = folder / ".metadata"
    if file_size(index) > MAX_INDEX_BYTES:
        raise WeightsearchError("its .metadata is too large; save it again")
    tree = plain(PickleReader(PickleValues()).read(BytesIO(index.read_bytes())))
    if not isinstance(tree, Mapping) or not isinstance(tree.get("storage_data"), Mapping):
        raise WeightsearchError("its .metadata is no index of a distributed checkpoint; save it again")
    shapes = {}
    for name, about in tree["state_dict_metadata"].items():
        stated = plain(about)
        if isinstance(stated, Mapping) and "chunks" in stated:
            shapes[str(name)] = tuple(int(length) for length in stated["size"])
    arrays: dict[str, Any] = {}
    filled: dict[str, int] = {}
    total = 0
    for key, place in tree["storage_data"].items():
        at = plain(key.arguments if isinstance(key, Placeholder) and not key.state else key)
        about, where = _fields(at), plain(place)
        name = str(about.get("fqn"))
        if name not in shapes or _is_state(name) or not isinstance(where, Mapping):
            continue
        part = _part(folder, where)
        if part is None:
            continue
        if name not in arrays:
            total += 4 * math.prod(shapes[name])
            if total > MAX_FILE_BYTES:
                raise WeightsearchError("its tensors are over the limit of 8 GiB together")
            arrays[name] = np.zeros(shapes[name], part.dtype)
            filled[name] = 0
        offset = tuple(about.get("offset") or (0,) * part.ndim)
        place_of = tuple(slice(start, start + length) for start, length in zip(offset, part.shape, strict=True))
        arrays[name][place_of] = part
        filled[name] += part.size
    missing = next((name for name, array in arrays.items() if filled[name] != array.size), None)
    if missing is not None:
        raise WeightsearchError(f"tensor '{shown(missing)}' is not whole in its .distcp files; copy them all")
    return Content(_nested(arrays))


def _fields(key: Any) -> Mapping[str, Any]:
    if isinstance(key, Mapping):
        return key
    if isinstance(key, tuple):
        return dict(zip(("fqn", "offset", "index"), key, strict=False))
    return {}


def _is_state(name: str) -> bool:
    return name.split(".", 1)[0].lower() in ("optim", "optimizer", "optimizer_state", "lr_scheduler", "rng_state")


def _part(folder: Path, where: Mapping[str, Any]) -> np.ndarray | None:
    path = plain_member(folder, str(where.get("relative_path")), "part")
    start, length = int(where["offset"]), int(where["length"])
    size = file_size(path)
    if start < 0 or length <= 0 or start + length > size:
        raise WeightsearchError(f"its part {shown(path.name)} is shorter than its index says; copy it again")
    with path.open("rb") as file:
        file.seek(start)
        content = read_torch_bytes(file.read(length), 1).tree
    if not isinstance(content, StoredTensor):
        return None
    return content.array()


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`model.0.weight` as a wrapper `model` where all have one, as a state dict of states is flattened."""
    heads = {name.split(".", 1)[0] for name in arrays}
    if len(heads) == 1 and all("." in name for name in arrays):
        head = heads.pop()
        return {head: {name.removeprefix(f"{head}."): array for name, array in arrays.items()}}
    return {"state_dict": dict(arrays)}
