"""Where an indexed checkpoint's weights are: in a file, or in a zoo as `path#run/epoch`; and how to get them back."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.state_dict import align, read_checkpoint
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, Checkpoint


def read_source(id: str, source: str | None, index: Path, architecture: Architecture | None) -> Checkpoint:
    """The checkpoint with this id, with the names that its tensors had there.

    `architecture` is the one that the index knows; None where its space is that of all. A relative source is looked
    for below the working directory, then below each directory that `index` lies in.
    Raises WeightsearchError saying where the weights should be, or that other weights are there now.
    """
    if not source:
        raise WeightsearchError(
            f"{id}: the index does not say where its weights came from, so they cannot be found again"
        )
    path, run, epoch = _parse(source)
    found = next((place / path for place in (Path(), *index.resolve().parents) if (place / path).exists()), None)
    if found is None:
        where = f"{path} (run {run}, epoch {epoch})" if run else str(path)
        raise WeightsearchError(f"{id}: its weights should be in {where}, which is not here; put it back there")
    # The id is of the weights in the order of layers that the index knows.
    known = [] if architecture is None else [architecture]
    checkpoint = align(read_checkpoint(found), known) if run is None else _from_zoo(found, id, run, epoch)
    if checkpoint.id != id:
        raise WeightsearchError(f"{id}: {found} holds other weights by now; the index was made from an earlier state")
    return checkpoint


def _parse(source: str) -> tuple[Path, str | None, str | None]:
    path, mark, place = source.rpartition("#")
    run, slash, epoch = place.rpartition("/")
    if mark and slash and re.fullmatch(r"-?\d+(\.\d+)?", epoch) and not Path(source).exists():
        return Path(path), run, epoch
    return Path(source), None, None


def _from_zoo(path: Path, id: str, run: str, epoch: str | None) -> Checkpoint:
    from weightsearch.zoo.store import Zoo

    zoo = Zoo.open(path)
    table = zoo.table()
    position = np.flatnonzero((table.run.astype(str) == run) & (table.epoch == float(epoch or 0)))
    if len(position) != 1:
        raise WeightsearchError(f"{id}: its weights should be in {path}, but that has no run {run}, epoch {epoch}")
    architecture = zoo.architectures[str(zoo.fingerprints[position[0]])]
    checkpoint = Checkpoint(f"{path}#{run}/{epoch}", architecture, zoo.weights(position)[0])
    return replace(checkpoint, metadata=table.recipes.get(int(run), {})) if run.isdigit() else checkpoint
