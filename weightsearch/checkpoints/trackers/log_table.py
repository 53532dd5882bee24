"""Tables of metrics by epoch or step, and which of their rows are about a checkpoint."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import number
from weightsearch.checkpoints.trackers import Inside

MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LogTable:
    """Rows of named values as they were logged; `epochs` and `steps` are each row's, None where it has none."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    epochs: Sequence[float | None]
    steps: Sequence[float | None]

    @classmethod
    def of(cls, name: str, rows: Sequence[Mapping[str, Any]]) -> LogTable:
        def column(*names: str) -> list[float | None]:
            return [next((n for key in names if (n := number(row.get(key))) is not None), None) for row in rows]

        return cls(name, rows, column("epoch", "Epoch"), column("step", "global_step", "iteration", "Step"))

    def values(self, inside: Inside, shift: int = 0) -> dict[str, Any]:
        """The last value of each column at the checkpoint's epoch, or, without one, at or before its step.

        Args:
            shift: of the table's epochs against the checkpoints': Keras logs epoch 0 beside the file of epoch 1.
        """
        if inside.epoch is not None and any(epoch is not None for epoch in self.epochs):
            wanted = inside.epoch - shift
            chosen = [i for i, epoch in enumerate(self.epochs) if epoch == wanted]
            if inside.step is not None:
                chosen = [i for i in chosen if (step := self.steps[i]) is None or step <= inside.step] or chosen
        elif inside.step is not None:
            chosen = [i for i, step in enumerate(self.steps) if step is not None and step <= inside.step]
        else:
            return {}
        values: dict[str, Any] = {}
        for i in chosen:
            values |= {key: value for key, value in self.rows[i].items() if value not in ("", None)}
        for key in ("epoch", "Epoch", "step", "Step", "global_step", "iteration"):
            values.pop(key, None)
        return values


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, all as text; [] where it is none, or too large to be a log."""
    if path.stat().st_size > MAX_BYTES:
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        head = file.readline()
        delimiter = max(",;\t", key=head.count)
        file.seek(0)
        try:
            return [
                {key: value for key, value in row.items() if isinstance(key, str) and isinstance(value, str)}
                for row in csv.DictReader(file, delimiter=delimiter)
            ]
        except csv.Error:
            return []
