"""What an import is about to write into a zoo: runs, their checkpoints, and what changes of those that are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsearch.types import Architecture


@dataclass(frozen=True)
class CheckpointToWrite:
    """One checkpoint to write. `source` says where its weights are."""

    epoch: float
    source: str
    metrics: Mapping[str, float]  # of `rows.METRICS`, those that are known
    extras: Mapping[str, Any]
    architecture: Architecture
    id: str | None = None  # the weights' hash, where they have been read


@dataclass
class Changed:
    """What is different about checkpoints that were there: how many cells, and columns that none had before."""

    cells: int = 0
    columns: list[str] = field(default_factory=list)

    def count(self, names: Collection[str]) -> None:
        self.cells += len(names)


@dataclass(frozen=True)
class RunToWrite:
    """One run to write: its maker's name for it, unique in the zoo, and its checkpoints by epoch."""

    name: str
    recipe: Mapping[str, Any]
    checkpoints: Sequence[CheckpointToWrite]
