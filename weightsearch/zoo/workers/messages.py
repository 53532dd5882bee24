"""What `build_zoo` and its worker processes say to each other, as JSON. No torch, as the builder needs none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from weightsearch.types import Architecture
from weightsearch.zoo.schema import CheckpointRow, RunRow

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Setup:
    """What all jobs share, as JSON."""

    dataset: str
    classes: int
    data: str  # a directory with the dataset's four arrays (`wild`: each dataset's), gone once every worker is ready
    shape: dict[str, Any]
    plan: dict[str, Any]  # `wild`: empty
    device: str
    dtype: str

    @property
    def compiles(self) -> bool:
        """Whether training is in Numba's code."""
        return self.dataset != "wild" and self.device == "cpu"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class TrainingJob:
    """Runs that train together, and the file for their weights."""

    part: int
    runs: list[int]
    recipes: list[dict[str, Any]]
    path: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Group:
    """A trained group: its good checkpoints' weights `(rows, P)` are in the job's file where there are any."""

    runs: list[RunRow]
    checkpoints: list[CheckpointRow]
    architectures: list[Architecture] = field(default_factory=list)  # of a zoo of many

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": [[row.run, row.recipe, row.reason, row.seconds] for row in self.runs],
            "checkpoints": [[getattr(row, column.name) for column in fields(row)] for row in self.checkpoints],
            "architectures": [architecture.to_dict() for architecture in self.architectures],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        runs = [RunRow(*row) for row in content["runs"]]
        architectures = [Architecture.from_dict(layers) for layers in content["architectures"]]
        return cls(runs, [CheckpointRow(*row) for row in content["checkpoints"]], architectures)
