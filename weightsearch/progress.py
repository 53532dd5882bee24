"""Progress bars for long work: on stderr, silent when it is no terminal or when asked to be quiet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    description: str, total: int | None, *, unit: str, quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """Yields `advance(steps=1, note="")`; the bar shows done/total, the rate in `unit`/s, and the time left.

    It stays in one line, and what ends early was all that there was to do.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda steps=1, note="": None
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {unit}/s" if speed else "")

    in_one_line = Column(no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.description}", markup=False, table_column=in_one_line),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=in_one_line.copy()),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(steps: float = 1, note: str = "") -> None:
            progress.update(task, advance=steps, note=note)

        yield advance
        if total is not None:
            progress.update(task, total=progress.tasks[0].completed)
