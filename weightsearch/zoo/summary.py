"""What is in a zoo: `weightsearch zoo info`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightsearch.text_table import Table
from weightsearch.zoo.store import Zoo, ZooInfo, connect

if TYPE_CHECKING:
    from rich.console import RenderableType

CHOICES = ("optimizer", "activation", "initializer", "train_fraction")


@dataclass(frozen=True)
class ChoiceAccuracy:
    """Test accuracy at their last epoch over the good runs that made one choice."""

    runs: int
    mean: float
    median: float


@dataclass(frozen=True)
class ZooSummary:
    """A zoo in numbers; the accuracies are those of the good runs at their last epoch, where they are known."""

    path: Path
    info: ZooInfo
    runs: int
    failed: int
    checkpoints: int
    size_bytes: int
    last_epoch: int | None  # None where there is no good run yet, or runs end at different epochs
    quartiles: tuple[float, ...]  # minimum, quartiles and maximum, or empty
    choices: dict[str, dict[str, ChoiceAccuracy]]  # e.g. ["optimizer"]["adam"]
    columns: tuple[str, ...] = ()  # the users' own
    architectures: int = 1


def zoo_summary(path: str | Path) -> ZooSummary:
    """Summarise a zoo. Raises WeightsearchError where `path` is none."""
    zoo = Zoo.open(path)
    table = zoo.table()
    with connect(zoo.path, read_only=True) as connection:
        status = dict(connection.execute("SELECT run, status FROM runs").fetchall())
    good = np.array([status.get(int(run)) == "ok" for run in table.run], bool)
    ends = np.append(table.run[1:] != table.run[:-1], True)[: len(table)]  # ordered by run, then epoch
    epochs = np.unique(table.epoch[good & ends])
    final = good & ends & np.isfinite(table.test_accuracy)
    runs, accuracy = table.run[final], table.test_accuracy[final]
    groups: dict[str, dict[str, list[float]]] = {choice: defaultdict(list) for choice in CHOICES}
    for run, value in zip(runs, accuracy, strict=True):
        recipe = table.recipes[int(run)]
        for choice in CHOICES:
            if choice in recipe:  # imported zoos may not know all
                groups[choice][str(recipe[choice])].append(float(value))
    return ZooSummary(
        path=zoo.path,
        info=zoo.info,
        runs=len(status),
        failed=sum(value == "failed" for value in status.values()),
        checkpoints=len(table),
        size_bytes=sum(file.stat().st_size for file in zoo.path.rglob("*") if file.is_file()),
        last_epoch=int(epochs[0]) if len(epochs) == 1 else None,
        quartiles=tuple(map(float, np.quantile(accuracy, [0, 0.25, 0.5, 0.75, 1]))) if len(accuracy) else (),
        choices={
            choice: {
                name: ChoiceAccuracy(len(values), float(np.mean(values)), float(np.median(values)))
                for name, values in sorted(members.items())
            }
            for choice, members in groups.items()
            if members
        },
        columns=tuple(table.extras),
        architectures=len(zoo.architectures),
    )


def render_summary(summary: ZooSummary) -> RenderableType:
    """The summary as rich draws it."""
    from rich.console import Group
    from rich.table import Table as Grid

    info = summary.info
    facts = Grid.grid(padding=(0, 2))
    facts.add_row("zoo", f"{summary.path} ({info.name}, {info.origin}, {info.dtype})")
    kinds = f"{summary.architectures} architectures"
    facts.add_row("network", info.architecture.describe() if info.architecture else kinds)
    facts.add_row("runs", f"{summary.runs:,}" + (f", {summary.failed:,} of them failed" if summary.failed else ""))
    facts.add_row("checkpoints", f"{summary.checkpoints:,}")
    facts.add_row("size", f"{summary.size_bytes / 1e6:,.1f} MB")
    if summary.columns:
        facts.add_row("own columns", ", ".join(summary.columns))
    if not summary.quartiles:
        return facts
    low, lower, median, upper, high = summary.quartiles
    facts.add_row(
        "accuracy at the end" if summary.last_epoch is None else f"accuracy at epoch {summary.last_epoch}",
        f"median {median:.3f}, middle half {lower:.3f} to {upper:.3f}, from {low:.3f} to {high:.3f}",
    )
    rows = []
    for choice, members in summary.choices.items():
        for i, (name, accuracy) in enumerate(members.items()):
            label = choice.replace("_", " ") if i == 0 else ""
            rows.append((label, name, f"{accuracy.runs:,}", f"{accuracy.mean:.3f}", f"{accuracy.median:.3f}"))
    columns = ("choice", "value", "runs", "mean accuracy", "median accuracy")
    return Group(facts, "", Table("", columns, tuple(rows), right=(2, 3, 4)).to_rich())
