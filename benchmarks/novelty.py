"""Which broken networks are said to be unlike everything known: by their layers alone, without an encoder.

    python benchmarks/novelty.py runs/zoos/usps-v1 runs/zoos/usps-v2

Seven in ten runs are known; half of the others set the limit, and the other half are new networks that should pass and
whose weights are broken. Writes benchmarks/results/novelty.json: shares said to be unlike, by kind, over five splits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from weightsearch import Zoo
from weightsearch.training.represent import describe_zoo
from weightsearch.types import Architecture
from weightsearch.uncertainty.novelty import Familiar, describe_layers

RESULT = Path(__file__).parent / "results" / "novelty.json"
NETWORKS, SEEDS = 100, 5


def broken(
    weights: np.ndarray, architecture: Architecture, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Kinds, each with networks `(n, P)`; several items may be of one kind."""
    yield "none (new networks)", weights
    for size in (0.01, 0.1, 1.0, 10.0):
        yield "random weights", rng.normal(0, size, (len(weights) // 4, architecture.size))
    for part in architecture.slices:
        for kind, factor in (
            ("a dead layer", 0),
            ("a layer 10 times too large", 10),
            ("a layer 100 times too large", 100),
        ):
            changed = weights.copy()
            changed[:, part] *= factor
            yield kind, changed
    yield "no negative weights", np.abs(weights)
    shuffled = weights.copy()
    for row in shuffled:
        for part in architecture.slices:
            rng.shuffle(row[part])
    yield "weights shuffled within layers", shuffled


def measure(path: Path) -> dict[str, float]:
    zoo = Zoo.open(path)
    table = zoo.table()
    descriptions = describe_zoo(zoo, np.arange(len(table)))
    found: dict[str, list[bool]] = {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        order = rng.permutation(np.unique(table.run))
        known, limit, new = np.split(order, [round(0.7 * len(order)), round(0.85 * len(order))])
        familiar = Familiar.fit(descriptions[np.isin(table.run, known)], descriptions[np.isin(table.run, limit)])
        positions = rng.permutation(np.flatnonzero(np.isin(table.run, new)))[:NETWORKS]
        for kind, networks in broken(zoo.weights(np.sort(positions)), zoo.architecture, rng):
            described = describe_layers(networks.astype(np.float32), zoo.architecture)
            found.setdefault(kind, []).extend(familiar.distance(row) > familiar.limit for row in described)
    return {kind: float(np.mean(outside)) for kind, outside in found.items()}


if __name__ == "__main__":
    result = {Path(path).name: measure(Path(path)) for path in sys.argv[1:]}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
