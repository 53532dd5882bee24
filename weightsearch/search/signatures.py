"""Signatures of the files that are added to an index: they need no encoder, and know every architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.discovery import CheckpointFile, Quarantined, reason_of
from weightsearch.checkpoints.metadata import Metadata
from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.errors import WeightsearchError
from weightsearch.index.zoo_rows import run_name, zoo_source
from weightsearch.relations.open_files import open_file
from weightsearch.relations.signature import sign
from weightsearch.relations.store import Signed, add_signatures, read_known
from weightsearch.zoo.store import Zoo

BATCH = 500  # signatures committed together, so that a kill loses no more than these
ZOO_LIMIT = 20_000  # a zoo's checkpoints that are signed; of a larger one the last of each run


def sign_files(
    index: str | Path,
    files: Sequence[CheckpointFile],
    metadata: Mapping[Path, Metadata],
    advance: Callable[[], object] = lambda: None,
    weights: str | None = None,
) -> tuple[int, list[Quarantined]]:
    """Keeps each file's signature in the index; returns how many are new, and the files that could not be read.

    A file whose size and time are those of its signature is not read again. `known` is what is known of files by path;
    `weights` the key of the network in files that hold several.
    """
    before = read_known(index)
    seen = {
        str(source): (int(size), int(modified))
        for source, size, modified in zip(before["source"], before["file_bytes"], before["modified"], strict=True)
    }
    unread: list[Quarantined] = []

    def signed() -> Iterator[Signed]:
        for file in files:
            advance()
            path = file.path.resolve()
            try:
                status = path.stat()
                if seen.get(str(path)) == (status.st_size, status.st_mtime_ns):
                    continue
                signature = open_file(path, weights).sign()
            except WeightsearchError as error:
                unread.append(Quarantined(str(file.path), reason_of(error, path)))
                continue
            except OSError as error:
                unread.append(Quarantined(str(file.path), error.strerror or str(error)))
                continue
            about = metadata.get(file.path)
            run, epoch = (file.run, None) if about is None else (about.run or file.run, about.epoch)
            yield Signed(str(path), signature, run, epoch, status.st_mtime_ns)

    return _add(index, signed()), unread


def sign_zoo(index: str | Path, zoo: Zoo, advance: Callable[[], object] = lambda: None) -> int:
    """Keeps the signatures of a zoo's checkpoints; returns how many are new."""
    table = zoo.table()
    before = {str(source) for source in read_known(index)["source"]}
    positions = np.arange(len(table))
    if len(positions) > ZOO_LIMIT:
        last = {run: position for position, run in enumerate(table.run.tolist())}
        positions = np.array(sorted(last.values()))

    def signed() -> Iterator[Signed]:
        for position in positions.tolist():
            advance()
            source = zoo_source(zoo, position)
            if source in before:
                continue
            weights = zoo.weights(np.array([position]))[0]
            if np.isfinite(weights).all():
                tensors = to_state_dict(weights, zoo.architecture)
                run = run_name(zoo, int(table.run[position]))
                yield Signed(source, sign(tensors), run, float(table.epoch[position]))

    return _add(index, signed())


def _add(index: str | Path, signed: Iterator[Signed]) -> int:
    count = 0
    batch: list[Signed] = []
    for one in signed:
        batch.append(one)
        if len(batch) == BATCH:
            count += add_signatures(index, batch)
            batch = []
    return count + add_signatures(index, batch)
