"""DeepSpeed's ZeRO-3 checkpoints: the model's states name the weights, and each rank's optimizer states hold a part.

https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/utils/zero_to_fp32.py
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.pickle_values import is_size, plain
from weightsearch.checkpoints.readers.limits import MAX_FILE_BYTES, natural
from weightsearch.checkpoints.tensors import Content, StoredTensor
from weightsearch.errors import WeightsearchError

MODEL_STATES = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")


def is_later_part(path: Path) -> bool:
    """Whether a file is read with that of rank 0."""
    match = MODEL_STATES.fullmatch(path.name)
    return match is not None and int(match[1]) > 0


def joined(path: Path, content: Content, read: Callable[[Path], Content]) -> Content:
    """The same with the weights that ZeRO-3 left in the ranks' optimizer states, which `read` opens.

    Where those are not there, it stays as it is: placeholders without values.
    """
    match = MODEL_STATES.fullmatch(path.name)
    if match is None or not isinstance(content.tree, Mapping):
        return content
    if is_later_part(path):
        first = f"zero_pp_rank_0_mp_rank_{match[2]}_model_states.pt"
        raise WeightsearchError(f"it is a part of a ZeRO-3 checkpoint; give {first}, which the others are read with")
    pattern = re.compile(rf"(bf16_)?zero_pp_rank_(\d+)_mp_rank_{match[2]}_optim_states\.pt")
    files = sorted(
        (file for file in path.parent.iterdir() if pattern.fullmatch(file.name)), key=lambda f: natural(f.name)
    )
    shapes = _shapes(plain(content.tree.get("param_shapes")))
    if not files or not shapes:
        return content
    flats = [_flat(read(file).tree, file.name, len(files)) for file in files]
    arrays: dict[str, Any] = {}
    start = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        share = -(-size // len(flats))  # of a rank, the last ones filled up
        parts = [flat[start : start + share] for flat in flats]
        start += share
        if any(len(part) != share for part in parts):
            raise WeightsearchError(f"tensor '{shown(name)}' is not whole in the ranks' states; copy them all")
        arrays[name] = np.concatenate(parts)[:size].reshape(shape)
    module = plain(content.tree.get("module"))
    named = {str(name): value for name, value in module.items()} if isinstance(module, Mapping) else {}
    whole = {**{name: arrays.get(name, value) for name, value in named.items()}, **arrays}
    note = f"its weights were joined from the states of {len(files)} ranks (ZeRO-3)"
    others = {key: value for key, value in content.tree.items() if key not in ("module", "param_shapes")}
    return replace(content, tree={"module": whole, **others}, notes=(*content.notes, note), form=None)


def _shapes(groups: Any) -> dict[str, tuple[int, ...]]:
    """Of all groups of parameters, in the order in which they lie in the flat states."""
    shapes: dict[str, tuple[int, ...]] = {}
    for group in groups if isinstance(groups, list | tuple) else [groups]:
        for name, shape in group.items() if isinstance(group, Mapping) else ():
            sizes = tuple(plain(shape))
            if not is_size(sizes):
                raise WeightsearchError(f"the shape of '{shown(str(name))}' is damaged; copy it again")
            shapes[str(name)] = sizes
    if 4 * sum(map(math.prod, shapes.values())) > MAX_FILE_BYTES:
        raise WeightsearchError("its tensors are over the limit of 8 GiB together")
    return shapes


def _flat(tree: Any, name: str, ranks: int) -> np.ndarray:
    """A rank's part of all weights, one after the other."""
    states = plain(tree.get("optimizer_state_dict")) if isinstance(tree, Mapping) else None
    groups = plain(states.get("fp32_flat_groups")) if isinstance(states, Mapping) else None
    if not isinstance(groups, list | tuple) or not all(isinstance(group, StoredTensor) for group in groups):
        raise WeightsearchError(f"{shown(name)} beside it holds no part of the weights; copy it again")
    count = states.get("partition_count") if isinstance(states, Mapping) else None
    if isinstance(count, int) and count != ranks:
        raise WeightsearchError(f"it was saved by {count:,} ranks, and {ranks} of their states are here; copy them all")
    return np.concatenate([group.array().ravel() for group in groups])
