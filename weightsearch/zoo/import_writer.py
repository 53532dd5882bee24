"""Imported runs into a zoo's parts, and what an import has to tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.discovery import Quarantined, reason_of, write_quarantine
from weightsearch.checkpoints.folder_layouts import Layout
from weightsearch.errors import Interrupted, WeightsearchError
from weightsearch.progress import progress_bar
from weightsearch.text_table import counted
from weightsearch.types import Architecture, content_hash
from weightsearch.zoo.import_rows import RunToWrite
from weightsearch.zoo.import_update import Held, apply, note_of, plan_import
from weightsearch.zoo.schema import METRICS, CheckpointRow, RunRow
from weightsearch.zoo.store import ZooInfo, connect, open_writer, stream_part

PART_BYTES = 64 * 2**20  # of weights; a part holds whole runs, at least one
QUARANTINE = "quarantine.csv"


@dataclass(frozen=True)
class ImportSummary:
    """What a zoo holds after an import; `added` runs are this import's own.

    Example:
        >>> import_zoo('index/examples', 'imported', quiet=True).runs
        4
    """

    path: Path
    layout: Layout
    architecture: Architecture | None  # None in a zoo of many
    runs: int
    checkpoints: int
    added: int
    quarantined: tuple[Quarantined, ...]  # also in the zoo's `quarantine.csv`
    architectures: int
    others: Mapping[str, int]  # architectures that were left out, for people -> how many files have them
    notes: tuple[str, ...]  # what was assumed
    later: int = 0  # checkpoints that joined runs that were there
    changed: int = 0  # cells of checkpoints that were there


@dataclass(frozen=True)
class Written:
    """What an import did: new runs, checkpoints of runs that were there, changed cells, and what to tell of it."""

    runs: int
    later: int
    changed: int
    notes: tuple[str, ...] = ()


def zoo_info(out: Path, architecture: Architecture | None, layout: Layout, dataset: str, preset: str) -> ZooInfo:
    """What `zoo.json` says of an imported zoo."""
    return ZooInfo(
        name=out.resolve().name,
        dataset=dataset,
        preset=preset,
        seed=0,
        dtype="float32",
        architecture=architecture,
        settings={"layout": layout.value},
        version=version("weightsearch"),
    )


def write_runs(
    out: Path,
    info: ZooInfo,
    runs: Sequence[RunToWrite],
    read: Callable[[str], np.ndarray],
    quarantined: list[Quarantined],
    *,
    quiet: bool = False,
) -> Written:
    """Adds to the zoo `out` what it does not have yet, and gives what it has the values that are known by now.

    A part of whole runs is published at a time, one checkpoint in memory, so that a kill loses no more than a part.

    Args:
        read: flat weights `(P,)` of a checkpoint's source. Those that it raises WeightsearchError for, or that are
            not finite, are left out and put into `quarantined`; their run is kept without them.
    """
    size = None if info.architecture is None else info.architecture.size
    with open_writer(out, info) as writer:
        with connect(out) as connection:
            by_runs = all(checkpoint.id is None for run in runs for checkpoint in run.checkpoints)
            plan = plan_import(Held.read(connection, only_runs=by_runs), runs, quarantined)
            apply(connection, plan)
        first = max([*writer.runs, *plan.names, -1]) + 1
        numbered = [*plan.later.items(), *enumerate(plan.new, first)]
        total = sum(len(run.checkpoints) for _, run in numbered)
        with progress_bar("importing", total, unit="checkpoints", quiet=quiet) as advance:
            try:
                for group in _groups(numbered, PART_BYTES // 4):
                    part = _Part(group, writer.free_part(), quarantined, set(plan.later), mixed=size is None)
                    temporary = writer.temporary(part.number)
                    if not stream_part(temporary, part.weights(read, advance), part.most, size):
                        temporary.unlink()
                    kinds = part.architectures.values()
                    writer.publish(part.number, temporary if part.rows else None, part.run_rows, part.rows, kinds)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped: {len(writer.runs)} runs are kept in {out}; run the same command again to go on"
                ) from None
        write_quarantine(out / QUARANTINE, quarantined)
    later = sum(len(run.checkpoints) for run in plan.later.values())
    notes = [f"{counted(later, 'checkpoint')} joined runs that were there"] if later else []
    return Written(len(plan.new), later, plan.changed.cells, (*notes, *note_of(plan.changed, out)))


@dataclass(frozen=True)
class _Part:
    """Runs that are written together, by number, and what is known of them after `weights` has run."""

    runs: Sequence[tuple[int, RunToWrite]]
    number: int
    quarantined: list[Quarantined]
    held: Collection[int]  # runs that have a row already
    mixed: bool  # whether the zoo is one of many architectures
    rows: list[CheckpointRow] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    architectures: dict[str, Architecture] = field(default_factory=dict)  # of a zoo of many, by fingerprint

    @property
    def most(self) -> int:
        """Rows, or in a zoo of many the values of all."""
        return sum(
            checkpoint.architecture.size if self.mixed else 1 for _, run in self.runs for checkpoint in run.checkpoints
        )

    @property
    def run_rows(self) -> list[RunRow]:
        return [
            RunRow(number, run.recipe, self.reasons.get(number), name=run.name)
            for number, run in self.runs
            if number not in self.held
        ]

    def weights(self, read: Callable[[str], np.ndarray], advance: Callable[[], None]) -> Iterator[np.ndarray]:
        """The good checkpoints' weights `(P,)`, as their rows are made; the others are quarantined."""
        start = 0
        for number, run in self.runs:
            for checkpoint in run.checkpoints:
                advance()
                source = checkpoint.source
                try:
                    weights = read(source)
                    if not np.isfinite(weights).all():
                        raise WeightsearchError("its weights hold NaN or infinite values")
                except WeightsearchError as error:
                    reason = reason_of(error, source)
                    self.quarantined.append(Quarantined(source, reason))
                    self.reasons.setdefault(number, f"epoch {checkpoint.epoch:g}: {reason}")
                    continue
                metrics: dict[str, Any] = {key: checkpoint.metrics.get(key, float("nan")) for key in METRICS}
                row = CheckpointRow(content_hash(weights), number, checkpoint.epoch, **metrics)
                row = replace(row, source=source, extras=checkpoint.extras)
                if self.mixed:
                    fingerprint = checkpoint.architecture.fingerprint
                    self.architectures.setdefault(fingerprint, checkpoint.architecture)
                    row = replace(row, architecture=fingerprint, start=start)
                    start += len(weights)
                self.rows.append(row)
                yield weights


def _groups(runs: Sequence[tuple[int, RunToWrite]], most: int) -> Iterator[list[tuple[int, RunToWrite]]]:
    """Runs in groups of up to `most` values of weights, a longer run alone."""
    group: list[tuple[int, RunToWrite]] = []
    held = 0
    for number, run in runs:
        values = sum(checkpoint.architecture.size for checkpoint in run.checkpoints)
        if group and held + values > most:
            yield group
            group, held = [], 0
        group.append((number, run))
        held += values
    if group:
        yield group
