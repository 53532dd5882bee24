"""How public zoos and people's own folders lay out checkpoint files: what there is to read, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.discovery import CheckpointFile, run_of
from weightsearch.checkpoints.metadata import Metadata
from weightsearch.checkpoints.readers.limits import natural
from weightsearch.checkpoints.walk import Account, has_model, walk

COMVEX_NAME = re.compile(r"(\d{8,})_(\d{1,9})\.pt")


class Layout(StrEnum):
    """The layouts of folders that are recognised.

    Example:
        >>> Layout('folder')
        <Layout.FOLDER: 'folder'>
    """

    SMALL_CNN_ZOO = "small-cnn-zoo"
    RAY_TUNE = "ray-tune"
    COMVEX = "comvex"
    HUGGINGFACE = "huggingface"
    FOLDER = "folder"


def recognise(folder: Path) -> Layout:
    """The layout of a folder; `FOLDER` is anybody's."""
    if all((folder / name).is_file() for name in ("weights.npy", "layout.csv")) and metrics_file(folder):
        return Layout.SMALL_CNN_ZOO
    if next(_trials(folder), None):
        return Layout.RAY_TUNE
    names = [path.name for path in folder.glob("*.pt")]
    if names and all(COMVEX_NAME.fullmatch(name) for name in names):
        return Layout.COMVEX
    if any(has_model(path.parent) for path in folder.rglob("config.json")):
        return Layout.HUGGINGFACE
    return Layout.FOLDER


def metrics_file(folder: Path) -> Path | None:
    """The Small CNN Zoo's table of metrics."""
    return next((path for name in ("metrics.csv.gz", "metrics.csv") if (path := folder / name).is_file()), None)


def find(folder: Path, layout: Layout, account: Account | None = None) -> list[CheckpointFile]:
    """The checkpoint files of a folder; what they are is told by `discovery.Sources` when they are read."""
    if layout is Layout.COMVEX:
        return list(_comvex(folder))
    return [CheckpointFile(path, folder, run_of(path, folder)) for path in walk(folder, account)]


def _trials(folder: Path) -> Iterator[Path]:
    """Ray Tune's trials: folders with `checkpoint_*` folders beside their settings or results."""
    for described in (*folder.rglob("params.json"), *folder.rglob("result.json")):
        if next(described.parent.glob("checkpoint_*/"), None):
            yield described.parent


def _comvex(folder: Path) -> Iterator[CheckpointFile]:
    """The files of https://github.com/chrisliu298/comvex: `<timestamp>_<epoch>.pt`, by the time of saving.

    Their runs are told by `comvex_runs` when all have been read.
    """
    for path in sorted(folder.glob("*.pt"), key=lambda path: natural(path.name)):
        if match := COMVEX_NAME.fullmatch(path.name):
            yield CheckpointFile(path, folder, "", Metadata(epoch=int(match[2])))


def comvex_runs(names: Sequence[str], metadata: Sequence[Metadata]) -> list[str]:
    """Each file's run. The files name none: those of one seed are one run, in order of time while the epoch goes up."""
    runs = [""] * len(names)
    latest: dict[Any, tuple[str, float]] = {}  # seed -> the run that goes on, and its epoch
    for i in sorted(range(len(names)), key=lambda i: natural(names[i])):
        seed, epoch = metadata[i].recipe.get("seed"), metadata[i].epoch or 0
        run, before = latest.get(seed, ("", epoch))
        if epoch <= before:
            started = names[i].partition("_")[0]
            run = started if seed is None else f"seed-{seed}-{started}"
        runs[i] = run
        latest[seed] = run, epoch
    return runs
