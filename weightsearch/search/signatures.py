"""Signatures of the zoos that are added to an index: they need no encoder, and know every architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.index.zoo_rows import run_name, zoo_source
from weightsearch.relations.signature import sign
from weightsearch.relations.store import Signed, add_signatures, signed_files
from weightsearch.zoo.store import Zoo

BATCH = 500  # signatures committed together, so that a kill loses no more than these
ZOO_LIMIT = 20_000  # a zoo's checkpoints that are signed; of a larger one the last of each run


def sign_zoo(index: str | Path, zoo: Zoo, advance: Callable[[], object] = lambda: None) -> int:
    """Keeps the signatures of a zoo's checkpoints; returns how many are new."""
    table = zoo.table()
    positions, fingerprints = np.arange(len(table)), zoo.fingerprints
    if len(positions) > ZOO_LIMIT:
        last = {run: position for position, run in enumerate(table.run.tolist())}
        positions = np.array(sorted(last.values()))
    before = signed_files(index, [zoo_source(zoo, position) for position in positions.tolist()])

    def signed() -> Iterator[Signed]:
        for position in positions.tolist():
            advance()
            source = zoo_source(zoo, position)
            if source in before:
                continue
            weights = zoo.weights(np.array([position]))[0]
            if np.isfinite(weights).all():
                tensors = to_state_dict(weights, zoo.architectures[str(fingerprints[position])])
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
