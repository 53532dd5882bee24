"""Where an indexed checkpoint's weights are: in a file, or in a zoo as `path#run/epoch`; and how to get them back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.formats import read_content
from weightsearch.checkpoints.named_tensors import one_line
from weightsearch.checkpoints.networks import network_keys
from weightsearch.checkpoints.remote.paths import RemotePath, as_path
from weightsearch.checkpoints.state_dict import align, read_checkpoint
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, Checkpoint

MAX_NETWORKS = 20  # of a file that are looked into


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
    places = [path] if isinstance(path, RemotePath) else [p / path for p in (Path(), *index.resolve().parents)]
    place_of_file = next((place for place in places if place.exists()), None)
    if place_of_file is None:
        where = f"{path} (run {run}, epoch {epoch})" if run else str(path)
        raise WeightsearchError(f"{id}: its weights should be in {where}, which is not here; put it back there")
    # The id is of the weights in the order of layers that the index knows.
    architectures = [] if architecture is None else [architecture]
    checkpoint = (
        _from_zoo(place_of_file, id, run, epoch) if run is not None else _from_file(place_of_file, id, architectures)
    )
    if checkpoint.id != id:
        raise WeightsearchError(
            f"{id}: {place_of_file} holds other weights by now; the index was made from an earlier state"
        )
    return checkpoint


def _from_file(path: Path, id: str, architectures: Sequence[Architecture]) -> Checkpoint:
    """The file's network; of several the one with this id, which `add --weights` may have chosen."""
    checkpoint = align(read_checkpoint(path), architectures)
    if checkpoint.id == id:
        return checkpoint
    with one_line(str(path)):
        keys = list(islice(network_keys(read_content(path).tree), MAX_NETWORKS))
    for key in keys:
        with suppress(WeightsearchError):  # some key leads to no network by itself
            other = align(read_checkpoint(path, key), architectures)
            if other.id == id:
                return other
    return checkpoint


def _parse(source: str) -> tuple[Path, str | None, str | None]:
    path, mark, place = source.rpartition("#")
    run, slash, epoch = place.rpartition("/")
    if mark and slash and re.fullmatch(r"-?\d+(\.\d+)?", epoch) and not as_path(source).exists():
        return Path(path), run, epoch
    return as_path(source), None, None


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
