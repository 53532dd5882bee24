"""Importing again: which checkpoints a zoo has already, what is known of them by now, and what is new.

A checkpoint is known again by its weights' hash, and by the file or the run that it came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.checkpoints.discovery import Quarantined
from weightsearch.text_table import counted
from weightsearch.zoo import schema
from weightsearch.zoo.import_rows import Changed, CheckpointToWrite, RunToWrite
from weightsearch.zoo.schema import METRICS


@dataclass
class HeldRow:
    """A checkpoint of a zoo. `part` and `row` say which."""

    part: int
    row: int
    id: str
    run: int
    epoch: float
    metrics: dict[str, float]  # those that are known
    source: str | None
    extras: dict[str, Any]


@dataclass
class Held:
    """A zoo's rows before an import, and its runs' recipes and names by number."""

    rows: list[HeldRow]
    recipes: dict[int, dict[str, Any]]
    names: dict[int, str]

    @classmethod
    def read(cls, connection: duckdb.DuckDBPyConnection, *, only_runs: bool = False) -> Held:
        columns = ", ".join(("part", "row", "id", "run", "epoch", "source", "extras", *METRICS))
        rows = [
            HeldRow(
                part, row, id, run, epoch,
                {name: v for name, v in zip(METRICS, values, strict=True) if v is not None and v == v},
                source, json.loads(extras or "{}"),
            )
            for part, row, id, run, epoch, source, extras, *values in connection.execute(
                f"SELECT {columns} FROM checkpoints {'LIMIT 0' if only_runs else ''}"
            ).fetchall()
        ]  # fmt: skip
        runs = connection.execute("SELECT run, recipe, name FROM runs").fetchall()
        return cls(
            rows,
            {run: json.loads(recipe) for run, recipe, _ in runs},
            {run: name for run, _, name in runs if name is not None},
        )


@dataclass
class Plan:
    """What an import does to a zoo: `new` runs, `later` checkpoints of runs that it has, and changes of its rows."""

    new: list[RunToWrite] = field(default_factory=list)
    later: dict[int, RunToWrite] = field(default_factory=dict)  # by the run's number
    rows: list[HeldRow] = field(default_factory=list)  # as they are to be, those that differ
    recipes: dict[int, dict[str, Any]] = field(default_factory=dict)  # of runs whose recipe differs
    names: dict[int, str] = field(default_factory=dict)  # of runs that rows move into
    changed: Changed = field(default_factory=Changed)


def plan_import(held: Held, runs: Sequence[RunToWrite], quarantined: list[Quarantined]) -> Plan:
    """Sorts what is to be imported by what a zoo holds; checkpoints of an epoch that is taken are quarantined."""
    plan = Plan()
    numbers = {name: number for number, name in held.names.items()}
    free = max([*held.recipes, -1]) + 1
    by_source: dict[tuple[str | None, str | None], HeldRow] = {(row.source, row.id): row for row in held.rows}
    by_run: dict[tuple[str | None, str | None], HeldRow] = {(held.names.get(row.run), row.id): row for row in held.rows}
    matched: dict[int, tuple[HeldRow, CheckpointToWrite, str]] = {}  # by id() of the row
    fresh: dict[str, list[CheckpointToWrite]] = {}
    joins: set[str] = set()  # runs that are the zoo's own of that name, and not another folder's
    for run in runs:
        if run.name in numbers and all(checkpoint.id is None for checkpoint in run.checkpoints):
            continue  # of a layout that is imported by whole runs
        for checkpoint in run.checkpoints:
            row = by_source.get((checkpoint.source, checkpoint.id)) or by_run.get((run.name, checkpoint.id))
            if row is None or id(row) in matched:
                fresh.setdefault(run.name, []).append(checkpoint)
            else:
                matched[id(row)] = row, checkpoint, run.name
                joins.add(run.name)
    places = {(held.names.get(row.run), str(Path(row.source).parent)) for row in held.rows if row.source}
    staying: dict[int, set[float]] = {}
    for row in held.rows:
        if id(row) not in matched:
            staying.setdefault(row.run, set()).add(row.epoch)
    for row, checkpoint, name in matched.values():
        if name not in numbers:  # its run has another name by now
            numbers[name], free = free, free + 1
            plan.names[numbers[name]] = name
        changed = _changed(row, checkpoint, numbers[name], staying.setdefault(numbers[name], set()))
        cells = _cells(row, changed)
        if cells or changed.source != row.source:
            plan.rows.append(changed)
            plan.changed.count(cells)
    for run in runs:
        number = numbers.get(run.name)
        if number is None:
            plan.new.append(run)
            continue
        recipe = held.recipes.get(number, {})
        if (merged := {**recipe, **run.recipe}) != recipe and run.name in joins:
            plan.recipes[number] = merged
            plan.changed.count({key for key in merged if key not in recipe or recipe[key] != merged[key]})
        later = []
        for checkpoint in fresh.get(run.name, ()):
            reason = None
            if run.name not in joins and (run.name, str(Path(checkpoint.source).parent)) not in places:
                reason = f"the zoo has a run {run.name} from another folder; give another --out, or --run-pattern"
            elif checkpoint.epoch in staying.get(number, ()):
                reason = f"the zoo's run {run.name} has other weights of epoch {checkpoint.epoch:g}; give another --out"
            if reason is not None:
                quarantined.append(Quarantined(checkpoint.source, reason))
            else:
                later.append(checkpoint)
        if later:
            plan.later[number] = replace(run, checkpoints=later)
    columns = {key for row in held.rows for key in row.extras}
    plan.changed.columns = sorted({key for row in plan.rows for key in row.extras} - columns)
    return plan


def _changed(row: HeldRow, checkpoint: CheckpointToWrite, run: int, taken: set[float]) -> HeldRow:
    """A row with what is known now; what nobody tells now stays. `taken` are its run's epochs, in the end its own."""
    epoch = checkpoint.epoch
    if epoch in taken:
        epoch = row.epoch if run == row.run and row.epoch not in taken else max(taken) + 1
    taken.add(epoch)
    measured = {name: value for name, value in checkpoint.metrics.items() if name in METRICS and math.isfinite(value)}
    extras = json.loads(json.dumps({**row.extras, **checkpoint.extras}))
    return replace(
        row, run=run, epoch=epoch, metrics={**row.metrics, **measured}, source=checkpoint.source, extras=extras
    )


def _cells(before: HeldRow, after: HeldRow) -> set[str]:
    """The names of what differs."""
    cells = {name for name in ("run", "epoch") if getattr(before, name) != getattr(after, name)}
    cells |= {name for name, value in after.metrics.items() if before.metrics.get(name) != value}
    return cells | {name for name, value in after.extras.items() if before.extras.get(name) != value}


def apply(connection: duckdb.DuckDBPyConnection, plan: Plan) -> None:
    """Changes a zoo's rows, all in one transaction."""
    if not (plan.rows or plan.recipes or plan.names):
        return
    columns: dict[str, np.ndarray] = {
        "part": np.array([row.part for row in plan.rows], np.int64),
        "row": np.array([row.row for row in plan.rows], np.int64),
        "run": np.array([row.run for row in plan.rows], np.int64),
        "epoch": np.array([row.epoch for row in plan.rows], np.float64),
        **{name: np.array([row.metrics.get(name, math.nan) for row in plan.rows]) for name in METRICS},
        "source": _texts([row.source for row in plan.rows]),
        "extras": _texts([json.dumps(row.extras) if row.extras else None for row in plan.rows]),
    }
    schema.replace_rows(connection, columns, plan.recipes, plan.names)


def _texts(values: Sequence[str | None]) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def note_of(changed: Changed, zoo: Path) -> list[str]:
    """What to tell people of it."""
    if not changed.cells:
        return []
    columns = f"; new: {', '.join(changed.columns)}" if changed.columns else ""
    return [f"changed: {counted(changed.cells, 'cell')} of what {zoo} had already{columns}"]
