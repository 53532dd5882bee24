"""Which files are one run, which are copies of one another, and a run's epochs in one unit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from weightsearch.checkpoints.discovery import CheckpointFile, by_time
from weightsearch.checkpoints.metadata import Metadata
from weightsearch.checkpoints.metadata import number as as_number
from weightsearch.checkpoints.walk import stem

Item = TypeVar("Item")
SKETCH = 4096  # values by which weights are compared
ALIKE = 0.5  # least correlation of two epochs of one run; networks of different seeds have about none


def without_copies(
    items: Sequence[Item], id_of: Callable[[Item], str], metadata_of: Callable[[Item], Metadata]
) -> tuple[list[Item], list[str]]:
    """Each network once, and a note on the others: of files of one run and epoch, or of none told, the best known.

    A run that stopped moving has the same weights at several epochs, which all stay.
    """
    groups: dict[tuple[str, str | None], list[Item]] = {}
    for item in items:
        groups.setdefault((id_of(item), metadata_of(item).run), []).append(item)
    kept: set[int] = set()
    for group in groups.values():
        best: dict[float | None, Item] = {}
        for item in group:
            epoch = metadata_of(item).epoch
            if epoch not in best or _known(metadata_of(item)) > _known(metadata_of(best[epoch])):
                best[epoch] = item
        if len(best) > 1:
            best.pop(None, None)
        kept |= {id(item) for item in best.values()}
    chosen = [item for item in items if id(item) in kept]
    left = len(items) - len(chosen)
    copies = "1 file is a copy of another" if left == 1 else f"{left:,} files are copies of others"
    copies += f" (the last, the best) and count{'s' if left == 1 else ''} once"
    return chosen, [copies] if left else []


def _known(metadata: Metadata) -> tuple[bool, int]:
    return metadata.epoch is not None, len(metadata.metrics)


def sketch(weights: np.ndarray) -> np.ndarray:
    """Up to `SKETCH` of a network's weights `(P,)`, evenly spread, which stand for all when two are compared."""
    return weights[:: max(1, len(weights) // SKETCH)][:SKETCH].copy()


def one_run(
    of_files: Sequence[Metadata], files: Sequence[CheckpointFile], sketches: Mapping[Path, np.ndarray]
) -> tuple[list[Metadata], list[str]]:
    """The same with files of one folder that are alike in weights and named by epoch or step as one run.

    They would each be a run of their own by accident, and near-copies of one run would lie in training and test.
    """
    groups: dict[tuple[Path, str], list[int]] = {}
    for i, (metadata, file) in enumerate(zip(of_files, files, strict=True)):
        if metadata.run == file.run and by_time(file.path) and file.path.parent == file.root:
            groups.setdefault((file.path.parent, re.sub(r"\d+(\.\d+)?", "", stem(file.path))), []).append(i)
    joined = list(of_files)
    notes = []
    for (folder, _), members in groups.items():
        vectors = [sketches[files[i].path] for i in members]
        if len(members) < 2 or not all(map(_alike, vectors, vectors[1:])):
            continue
        name = folder.resolve().name
        run = f"{folder.resolve().parent.name}/{name}" if files[members[0]].prefix else name
        for i in members:
            joined[i] = replace(of_files[i], run=run)
        notes.append(
            f"{len(members):,} files in {folder} are named by epoch or step and alike: taken as one run, {run}"
        )
    return joined, notes


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    a, b = (vector.astype(np.float64) - vector.mean(dtype=np.float64) for vector in (one, other))
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return bool(length > 0 and a @ b / length > ALIKE)


def in_one_unit(metadata: Sequence[Metadata], runs: Sequence[str | None]) -> list[Metadata]:
    """The same with epochs of one unit within a run: where a file's epoch is its step, those of others are, too.

    A folder `checkpoint-500` tells a step where its trainer's state is missing, beside others of epochs 1 and 2.
    """
    result = list(metadata)
    by_run: dict[str | None, list[int]] = {}
    for i, run in enumerate(runs):
        by_run.setdefault(run, []).append(i)
    for members in by_run.values():
        steps = {i: as_number(metadata[i].extras.get("step", metadata[i].extras.get("global_step"))) for i in members}
        told = [i for i in members if steps[i] is not None and metadata[i].epoch is not None]
        rest = [i for i in members if steps[i] is None and metadata[i].epoch is not None]
        if not told or not rest:
            continue
        highest = max(float(metadata[i].epoch or 0) for i in told)
        if any(float(metadata[i].epoch or 0) > 10 * max(highest, 1) for i in rest):
            for i in told:
                result[i] = replace(metadata[i], epoch=steps[i])
    return result
