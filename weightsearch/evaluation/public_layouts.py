"""Public collections of networks as they are published, with the split that the literature compares itself on.

Small CNN Zoo: `weights.npy`, `layout.csv` and `metrics.csv.gz` of Unterthiner et al. 2020, and beside them the order of
rows that the NFN repository publishes (`cifar10_split.csv`, `svhn_split.csv`, `mnist_split.csv`,
`fashion_mnist_split.csv`; one row number a line, no header):
https://github.com/AllanYangZhou/nfn/tree/main/experiments/predict_gen_data_splits. The split is that of
https://github.com/AllanYangZhou/nfn/blob/main/experiments/data_utils.py, which
https://github.com/mkofinas/neural-graphs/blob/main/experiments/data_generalization.py repeats: of the rows in that
order those of step 86; the second half is the test part, and `random.Random(0)` shuffles the first half into 80 %
training and 20 % validation.

CNN Wild Park: https://doi.org/10.5281/zenodo.12797219 (Kofinas et al. 2024), `cnn_park_splits.json` with `path`,
`score` and `step` lists under `train`, `val` and `test`, and `cifar10_zooV2/TRIAL/checkpoint_N/checkpoint.pt`, which
holds `model`. Split by trial:
https://github.com/mkofinas/neural-graphs/blob/main/experiments/cnn_generalization/dataset/generate_cnn_park_splits.py.
All checkpoints of a trial count, not its last alone: the filter by step is a comment in `CNNParkCIFAR10`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.folder_layouts import metrics_file
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture
from weightsearch.zoo.import_rows import RunToWrite
from weightsearch.zoo.small_cnn_zoo import open_small_cnn_zoo

FINAL_STEP = 86
PARTS = ("train", "val", "test")
WILD_PARK_SPLITS = "cnn_park_splits.json"
NFN_SPLITS = "https://github.com/AllanYangZhou/nfn/tree/main/experiments/predict_gen_data_splits"
ZENODO = "https://doi.org/10.5281/zenodo.12797219"
MAX_SPLITS_BYTES = 2**30


@dataclass(frozen=True)
class FinalCheckpoints:
    """A Small CNN Zoo's final checkpoints, one a run.

    parts: the rows of `weights.npy` in each part, in the published order. read: a source's flat weights `(P,)`.
    """

    architecture: Architecture
    dataset: str
    runs: list[RunToWrite]
    parts: dict[str, list[int]]
    read: Callable[[str], np.ndarray]
    notes: list[str]


def row_of(source: str) -> int:
    """The row of `weights.npy` that a checkpoint's source names."""
    return int(source.rpartition("#")[2])


def published_parts(final_rows: Sequence[int]) -> dict[str, list[int]]:
    """The final checkpoints' rows, in the published order, dealt as the published readers deal them.

    Example:
        >>> published_parts(range(10))
        {'train': [2, 1, 0, 4], 'val': [3], 'test': [5, 6, 7, 8, 9]}
    """
    middle = int(0.5 * len(final_rows))
    first_half = list(range(middle))
    random.Random(0).shuffle(first_half)
    validation = int(0.8 * middle)
    places = {"train": first_half[:validation], "val": first_half[validation:], "test": range(middle, len(final_rows))}
    return {part: [final_rows[place] for place in chosen] for part, chosen in places.items()}


def read_small_cnn_zoo(folder: Path) -> FinalCheckpoints:
    """A Small CNN Zoo's final checkpoints with their published parts. Raises WeightsearchError for what is missing."""
    metrics = metrics_file(folder)
    for name in ("weights.npy", "layout.csv"):
        if not (folder / name).is_file():
            raise WeightsearchError(f"{folder} has no {name}: give the folder that the archive unpacks to")
    if metrics is None:
        raise WeightsearchError(f"{folder} has no metrics.csv.gz, which a Small CNN Zoo has beside weights.npy")
    order = _row_order(folder)
    architecture, all_runs, dataset, read, notes = open_small_cnn_zoo(folder, metrics)
    runs = []
    for run in all_runs:
        if last := [checkpoint for checkpoint in run.checkpoints if checkpoint.epoch == FINAL_STEP]:
            runs.append(replace(run, checkpoints=last))
    final = {row_of(checkpoint.source) for run in runs for checkpoint in run.checkpoints}
    if not final:
        raise WeightsearchError(f"{metrics} has no row of step {FINAL_STEP}, which final checkpoints have")
    ordered = [row for row in order if row in final]
    if missing := final - set(ordered):
        raise WeightsearchError(
            f"{_split_file(folder)} leaves out {len(missing):,} of {len(final):,} final checkpoints: it is of another "
            f"zoo; take this zoo's from {NFN_SPLITS}"
        )
    parts = published_parts(ordered)
    if not parts["train"] or not parts["val"]:
        raise WeightsearchError(f"{folder} has {len(final)} final checkpoints, too few to split")
    if len(ordered) > len(final):
        notes = [*notes, f"{len(ordered) - len(final):,} final checkpoints stand twice in the published order"]
    return FinalCheckpoints(architecture, dataset or "unknown", runs, parts, read, notes)


def _split_file(folder: Path) -> Path:
    files = sorted({*folder.glob("*_split.csv"), *folder.glob("split.csv")})
    if len(files) != 1:
        listed = f"{len(files)} of them ({', '.join(file.name for file in files)})" if files else "none"
        raise WeightsearchError(
            f"{folder} needs the one file of the published order of rows, such as cifar10_split.csv, and has {listed}; "
            f"it is at {NFN_SPLITS}"
        )
    return files[0]


def _row_order(folder: Path) -> list[int]:
    """The published order, read as it is read there: every line is a row, the first one, too."""
    path = _split_file(folder)
    try:
        return [int(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise WeightsearchError(f"{path} cannot be read ({error}); it has one row number a line") from None


@dataclass(frozen=True)
class ParkCheckpoints:
    """The files of one part of the CNN Wild Park, their scores `(n,)` in [0, 1] and their trials' names."""

    paths: list[Path]
    scores: np.ndarray
    trials: list[str]


def read_wild_park(folder: Path) -> dict[str, ParkCheckpoints]:
    """The published parts of the CNN Wild Park. Raises WeightsearchError for what is missing or does not fit."""
    path = folder / WILD_PARK_SPLITS
    if not path.is_file():
        raise WeightsearchError(f"{folder} has no {WILD_PARK_SPLITS}: give the folder that {ZENODO} unpacks to")
    try:
        if path.stat().st_size > MAX_SPLITS_BYTES:
            raise ValueError(f"it is over {MAX_SPLITS_BYTES // 2**20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: _park_part(folder, content[part]) for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsearchError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it needs path and score under train, val, test"
        ) from None
    shared = set(parts["test"].trials) & {*parts["train"].trials, *parts["val"].trials}
    if shared:
        raise WeightsearchError(f"{path} has trials of the test part in training, such as {min(shared)}")
    return parts


def _park_part(folder: Path, part: Mapping[str, Any]) -> ParkCheckpoints:
    names, scores = [str(name) for name in part["path"]], np.array(part["score"], np.float64)
    if not names or scores.shape != (len(names),):
        raise ValueError(f"{len(names)} paths and {len(scores)} scores")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores that are no accuracies in [0, 1]")
    if outside := next((name for name in names if ".." in Path(name).parts or Path(name).is_absolute()), None):
        raise ValueError(f"{outside} is outside of the folder")
    return ParkCheckpoints(
        [folder / name for name in names], scores, [Path(name).parent.parent.as_posix() for name in names]
    )
