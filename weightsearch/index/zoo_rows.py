"""A zoo's checkpoints as rows of an index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from weightsearch.index import Rows
from weightsearch.types import Architecture
from weightsearch.zoo.store import Zoo


def run_name(zoo: Zoo, run: int) -> str:
    """A run's name in an index, unique among zoos: `usps-v1/17`, or `sweep/lr-0.1` where its maker named it."""
    return f"{zoo.info.name}/{zoo.table().names.get(run, run)}"


def zoo_source(zoo: Zoo, position: int) -> str:
    """Where an index says that a zoo's checkpoint can be found again."""
    table = zoo.table()
    return f"{zoo.path}#{table.run[position]}/{table.epoch[position]}"


def zoo_rows(
    zoo: Zoo,
    positions: np.ndarray,
    embedding: np.ndarray,
    predicted: np.ndarray,
    descriptions: np.ndarray | None,
    split: np.ndarray | None = None,
) -> Rows:
    """Index rows of a zoo's checkpoints at `positions (n,)`; all other arrays `(n, ...)` are about these."""
    table = zoo.table()
    runs = table.run[positions].tolist()
    recipes = {run: json.dumps(table.recipes[run]) for run in set(runs)}
    return Rows(
        id=table.id[positions],
        run=_objects(run_name(zoo, run) for run in runs),
        epoch=table.epoch[positions],
        train_loss=table.train_loss[positions],
        train_accuracy=table.train_accuracy[positions],
        test_loss=table.test_loss[positions],
        test_accuracy=table.test_accuracy[positions],
        predicted_accuracy=predicted,
        split=_objects([None] * len(runs)) if split is None else split,
        recipe=_objects(recipes[run] for run in runs),
        embedding=embedding,
        dataset=_objects(table.recipes[run].get("dataset") or zoo.info.dataset for run in runs)
        if zoo.is_mixed
        else zoo.info.dataset,
        description=descriptions,
        source=_objects(zoo_source(zoo, position) for position in positions.tolist()),
        metadata=_objects(json.dumps(_metadata(zoo, position)) for position in positions.tolist()),
    )


def network_columns(architecture: Architecture) -> dict[str, Any]:
    """What rows of a space of many architectures say of their own, for filters such as `parameters < 10000`."""
    return {"network": architecture.fingerprint, "parameters": architecture.size, "layers": len(architecture.layers)}


def _metadata(zoo: Zoo, position: int) -> dict[str, Any]:
    user_columns = zoo.table().user_columns(position)
    if not zoo.is_mixed:
        return user_columns
    return {**network_columns(zoo.architectures[str(zoo.fingerprints[position])]), **user_columns}


def _objects(values: Iterable[Any]) -> np.ndarray:
    listed = list(values)
    column = np.empty(len(listed), object)
    column[:] = listed
    return column
