"""A folder of runs as one table: which is best, which should go on, which could go, and which settings matter."""

from __future__ import annotations

import csv
import io
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.discovery import CheckpointFile, Sources, find_files, reason_of
from weightsearch.checkpoints.metadata import Metadata, as_fractions, vary
from weightsearch.checkpoints.remote.reading import fetched_ahead
from weightsearch.checkpoints.runs import without_copies
from weightsearch.errors import WeightsearchError
from weightsearch.files import plain
from weightsearch.search.answer import SCHEMA, Answer
from weightsearch.search.index import Index
from weightsearch.search.wording import grade, recipe_text

TARGET = "test_accuracy"
STILL_BETTER = 0.01  # accuracy that the last step has to have brought for a run to be called improving
FEWEST_RUNS = 20  # of known accuracy, that settings are compared from: among fewer, chance looks like a cause
FOLDS, REPEATS, TREES = 4, 5, 100
SHORTEST_PATH = 8  # letters of a path that are worth showing
NO_SETTINGS = ("seed", "run", "name", "id", "path")


@dataclass(frozen=True)
class Run:
    """A run by its latest checkpoint. Accuracies are in [0, 1]; what is not known is None.

    `accuracy` is what its files say, `predicted` and `interval` what the index says, `forecast` how the indexed runs
    ended that were most like it. `advice` is keep, continue, stop, could go, or unknown; `why` says why.
    """

    run: str
    path: str
    id: str
    checkpoints: int
    epoch: int | float | None = None
    accuracy: float | None = None
    best: float | None = None
    predicted: float | None = None
    interval: tuple[float, float] | None = None
    forecast: float | None = None
    promising: bool = False  # whether the forecast is good, by the index
    label: str = "unknown"
    same_as: str | None = None  # another run of the sweep, or an indexed checkpoint, with the same weights
    relation: str | None = None  # to an indexed checkpoint, where the index keeps signatures
    advice: str = "unknown"
    why: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """What it is ranked by."""
        return self.predicted if self.accuracy is None else self.accuracy


@dataclass(frozen=True)
class Setting:
    """How much worse runs' accuracies are told, in mean absolute error, when a recipe's key is shuffled among them."""

    key: str
    importance: float
    deviation: float  # over repeats of the cross-validation


@dataclass(frozen=True)
class Sweep:
    """Runs, the best first; files that could not be read; settings, the one that matters most first."""

    folder: str
    index: str | None
    runs: tuple[Run, ...]
    failures: tuple[tuple[str, str], ...]  # path and reason
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    def summary(self) -> str:
        """One line on top."""
        checkpoints = sum(run.checkpoints for run in self.runs)
        counts = {name: sum(run.advice == name for run in self.runs) for name in ADVICE}
        said = [f"{number} {name}" for name, number in counts.items() if number]
        count = len(self.failures)
        failed = f"; {count} file{'s' * (count > 1)} could not be read" if count else ""
        runs = "1 run" if len(self.runs) == 1 else f"{len(self.runs):,} runs"
        return f"{runs}, {checkpoints:,} checkpoints: {', '.join(said)}{failed}"

    def to_csv(self) -> str:
        """A line a run, recipes as columns."""
        keys = list(dict.fromkeys(key for run in self.runs for key in run.recipe))
        columns = [name for name in Run.__dataclass_fields__ if name not in ("recipe", "interval")]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*columns, "interval_low", "interval_high", *(f"recipe.{key}" for key in keys)])
        for run in self.runs:
            low, high = run.interval or (None, None)
            writer.writerow([*(getattr(run, name) for name in columns), low, high, *(run.recipe.get(k) for k in keys)])
        return out.getvalue()


ADVICE = ("keep", "continue", "stop", "could go", "unknown")


@dataclass(eq=False)
class Seen:
    """What is kept of a file when its weights are let go. `folder_run` is the run that its place speaks of."""

    path: str
    folder_run: str
    id: str
    metadata: Metadata


def sweep(
    paths: Sequence[str | Path],
    index: Index | None = None,
    *,
    sources: Sources | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Sweep:
    """Reads the checkpoints below `paths` one after another and ranks their runs by accuracy.

    Where files do not say how accurate a run's latest checkpoint is, the index is asked, if it knows the architecture.
    Only one network's weights are in memory at a time. `advance` is called after each file.

    Raises WeightsearchError where there is no checkpoint at all.

    Example:
        >>> [run.advice for run in sweep(["index/examples"], Index.open("index")).runs]  # doctest: +SKIP
    """
    files, failures = _files(paths)
    sources = sources or Sources()
    sources.expect(files)
    seen: list[Seen] = []
    for file in fetched_ahead(files):
        try:
            record = sources.read(file)
        except WeightsearchError as error:
            failures.append((str(file.path), reason_of(error, file.path)))
        else:
            seen.append(Seen(str(file.path), file.run, record.checkpoint.id, record.metadata))
        advance()
    if not seen:
        if len(failures) == 1:
            raise WeightsearchError(": ".join(failures[0]))
        if failures:
            raise WeightsearchError(f"none of {len(failures)} files could be read; {failures[0][0]}: {failures[0][1]}")
        raise WeightsearchError(f"no checkpoints in {', '.join(map(str, paths))}")
    ask = None if index is None else partial(_asked, index=index)
    place = None if index is None else str(index.path)
    return ranked(seen, ask, folder=", ".join(map(str, paths)), index=place, failures=failures)


def ranked(
    seen: Sequence[Seen],
    ask: Callable[[Run], Run] | None,
    *,
    folder: str,
    index: str | None = None,
    failures: Sequence[tuple[str, str]] = (),
) -> Sweep:
    """The table of files that have been read. `ask` adds what an index says of a run's latest checkpoint."""
    metadata_of, notes = as_fractions([one.metadata for one in seen])
    names = [metadata.run or one.folder_run for one, metadata in zip(seen, metadata_of, strict=True)]
    groups: dict[str, list[tuple[Seen, Metadata]]] = {}
    for name, one, metadata in zip(names, seen, vary(metadata_of, names), strict=True):
        groups.setdefault(name, []).append((one, metadata))
    for name, of_run in groups.items():
        groups[name], _ = without_copies(of_run, lambda member: member[0].id, lambda member: member[1])
    runs, unknown = [], set()
    for name, members in groups.items():
        members.sort(key=lambda member: -1.0 if member[1].epoch is None else member[1].epoch)
        run = _run(name, members)
        if ask is not None:
            try:
                run = ask(run)
            except WeightsearchError as error:
                unknown.add(reason_of(error, run.path))
        runs.append(run)
    if unknown:
        notes = [*notes, f"the index does not know some of them: {sorted(unknown)[0][:160]}"]
    runs = _advised(_ranked(_same(runs, groups)), groups)
    return Sweep(
        folder=folder,
        index=index,
        runs=tuple(runs),
        failures=tuple(failures),
        settings=settings(runs),
        notes=tuple(notes),
    )


def _files(paths: Sequence[str | Path]) -> tuple[list[CheckpointFile], list[tuple[str, str]]]:
    discovered, missing = find_files(paths)
    return discovered, [(one.path, one.reason) for one in missing]


def _run(name: str, members: list[tuple[Seen, Metadata]]) -> Run:
    latest, metadata = members[-1]
    values = [value for _, one in members if (value := one.value(TARGET)) == value]
    stated = metadata.value(TARGET)
    return Run(
        run=name,
        path=latest.path,
        id=latest.id,
        checkpoints=len(members),
        epoch=metadata.epoch,
        accuracy=None if stated != stated else stated,
        best=max(values, default=None),
        recipe={key: value for key, value in metadata.recipe.items() if value is not None},
    )


def _asked(run: Run, index: Index) -> Run:
    """With what the index says of the latest checkpoint."""
    from weightsearch.relations import SignatureIndex

    signatures = SignatureIndex(index.path)
    if len(signatures):
        relatives = signatures.relatives(run.path).relatives
        if relatives:
            relation = relatives[0].comparison.relation.to(relatives[0].source)
            run = replace(run, relation=relation)
    return told(run, index.query(run.path, k=5, run=run.run, epoch=run.epoch))


def told(run: Run, answer: Answer) -> Run:
    """With what an answer says of the run's latest checkpoint."""
    outside = answer.label == "unlike"
    return replace(
        run,
        predicted=None if outside else answer.predicted,
        interval=answer.interval,
        forecast=None if answer.forecast is None or outside else answer.forecast.median,
        promising=answer.forecast is not None and not outside and grade(answer.forecast.median, answer) == "good",
        label=answer.label,
        same_as=None if answer.copy_of is None else f"indexed {answer.copy_of}",
    )


def _same(runs: list[Run], groups: dict[str, list[tuple[Seen, Metadata]]]) -> list[Run]:
    """With the run of the sweep that a run's latest checkpoint has the weights of."""
    first: dict[str, str] = {}
    for name, members in groups.items():
        for one, _ in members:
            first.setdefault(one.id, name)
    return [run if first[run.id] == run.run else replace(run, same_as=first[run.id]) for run in runs]


def _ranked(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.value is None, -(run.value or 0), run.run))


def _advised(runs: list[Run], groups: dict[str, list[tuple[Seen, Metadata]]]) -> list[Run]:
    """By the quarters of the sweep, and by whether a run still gets better or others like it did."""
    values = [run.value for run in runs if run.value is not None]
    if not values:
        return runs
    low, high = np.quantile(values, [0.25, 0.75])
    advised = []
    for run in runs:
        value = run.value
        curve = [one.value(TARGET) for _, one in groups[run.run] if one.value(TARGET) == one.value(TARGET)]
        step = curve[-1] - curve[-2] if len(curve) > 1 else 0.0
        better = run.forecast is not None and value is not None and run.forecast > value + STILL_BETTER
        ended = f"runs like it ended at {run.forecast:.2f}" if better else ""
        if run.same_as is not None and not run.same_as.startswith("indexed"):
            advice, why = "could go", f"same weights as {run.same_as}"
        elif value is None:
            advice, why = "unknown", "no accuracy known"
        elif better and run.forecast is not None and (run.promising or run.forecast >= high):
            advice, why = "continue", ended
        elif step > STILL_BETTER and value > low:
            advice, why = "continue", f"its last step brought {step:+.3f}"
        elif value >= high:
            advice, why = "keep", "best quarter"
        elif value <= low:
            advice, why = "stop", f"worst quarter, {ended}" if ended else "worst quarter"
        else:
            advice, why = "could go", ended or "neither best nor improving"
        advised.append(replace(run, advice=advice, why=why))
    return advised


def settings(runs: Sequence[Run]) -> tuple[Setting, ...]:
    """Permutation importance of the recipe's keys for the runs' accuracies, on runs held out by cross-validation.

    (Breiman 2001, https://doi.org/10.1023/A:1010933404324.) Empty where fewer than twenty runs are known.
    """
    rated = [run for run in runs if run.value is not None]
    keys = [
        key
        for key in dict.fromkeys(key for run in rated for key in run.recipe)
        if key not in NO_SETTINGS and len({repr(run.recipe.get(key)) for run in rated}) > 1
    ]
    if len(rated) < FEWEST_RUNS or not keys:
        return ()
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    table = np.stack([_column([run.recipe.get(key) for run in rated]) for key in keys], axis=1)  # (runs, keys)
    truth = np.array([run.value for run in rated], float)
    importance = np.zeros((REPEATS, len(keys)))
    for repeat in range(REPEATS):
        generator = np.random.default_rng(repeat)
        for train, test in KFold(FOLDS, shuffle=True, random_state=repeat).split(table):
            forest = RandomForestRegressor(TREES, random_state=repeat, n_jobs=1).fit(table[train], truth[train])
            error = np.abs(forest.predict(table[test]) - truth[test]).sum()
            for column in range(len(keys)):
                shuffled = table[test].copy()
                shuffled[:, column] = generator.permutation(table[:, column])[: len(test)]
                worse = np.abs(forest.predict(shuffled) - truth[test]).sum() - error
                importance[repeat, column] += worse / len(rated)
    means, deviations = importance.mean(axis=0), importance.std(axis=0, ddof=1)
    order = np.argsort(-means, kind="stable")
    return tuple(Setting(keys[i], float(means[i]), float(deviations[i])) for i in order)


def _column(values: list[Any]) -> np.ndarray:
    """A recipe key's values as numbers: logarithms where they are wide apart, codes of what is no number."""
    if all(isinstance(value, int | float) for value in values):
        numbers = np.array(values, float)
        return np.log(numbers) if numbers.min() > 0 and numbers.max() > 20 * numbers.min() else numbers
    codes = {text: code for code, text in enumerate(sorted({repr(value) for value in values}))}
    return np.array([codes[repr(value)] for value in values], float)


def _common_folder(names: Sequence[str]) -> str:
    """The folders that all names begin with, with a slash behind; none of a single name."""
    try:
        shared = os.path.commonpath(list(names)) if len(names) > 1 else ""
    except ValueError:  # some are absolute
        return ""
    return f"{shared}/" if shared and shared not in names else ""


def _without_middle(left: str, why: str, width: int) -> str:
    """The line cut where its file's folders are: the reason and the file's own name are what is looked for."""
    reason, _, path = why.rpartition(" · ")
    room = width - len(left) - 2 - len(reason) - 3
    if not reason or room < SHORTEST_PATH:
        return f"{left}  {why}"[: width - 1] + "…"
    return f"{left}  {reason} · …{path[1 - room :]}"


def lines(given: Sweep, width: int = 80, most: int | None = 20) -> list[str]:
    """The table: a summary, a line a run, settings that matter. `most` runs at most are shown; None: all."""
    shown = given.runs if most is None else given.runs[:most]
    common = _common_folder([run.run for run in given.runs])
    place = _common_folder([run.path for run in given.runs])
    said = textwrap.wrap(given.summary() + (f"; runs below {common}" if common else ""), width)
    header = ("run", "epoch", "accuracy", "forecast", "do", "why · file")
    cells = [header]
    for run in shown:
        kept = f"{run.accuracy:.3f}" if run.accuracy is not None else ""
        if run.accuracy is None and run.predicted is not None:
            kept = f"~{run.predicted:.2f}"
            if run.interval is not None:
                kept += f" ({run.interval[0]:.2f}–{run.interval[1]:.2f})"
        forecast = "" if run.forecast is None else f"{run.forecast:.2f}"
        epoch = "" if run.epoch is None else f"{run.epoch:g}"
        why = " · ".join(filter(None, (run.why, run.relation, run.path.removeprefix(place))))
        cells.append((run.run.removeprefix(common), epoch, kept, forecast, run.advice, why))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = min(widths[0], max(14, width - sum(widths[1:5]) - 12 - 22))
    for cell in cells:
        name = cell[0] if len(cell[0]) <= widths[0] else f"…{cell[0][1 - widths[0] :]}"
        left = "  ".join(
            (
                name.ljust(widths[0]), cell[1].rjust(widths[1]), cell[2].ljust(widths[2]), cell[3].rjust(widths[3]),
                cell[4].ljust(widths[4]),
            )
        )  # fmt: skip
        line = f"{left}  {cell[5]}".rstrip()
        said.append(line if len(line) <= width else _without_middle(left, cell[5], width))
    if len(shown) < len(given.runs):
        said.append(f"… {len(given.runs) - len(shown):,} more: --all, or --csv FILE")
    if given.settings:
        matter = [one for one in given.settings if one.importance > 2 * one.deviation]
        text = ", ".join(f"{one.key} {one.importance:.3f} ± {one.deviation:.3f}" for one in matter[:5])
        said.append(
            f"Settings that go with accuracy: {text}"
            if matter
            else "No setting stands out beyond chance among the runs."
        )
    best = given.runs[0]
    if best.recipe and best.value is not None:
        said += textwrap.wrap(f"Best recipe: {recipe_text(best.recipe)}", width, subsequent_indent="  ")
    return [*said, *(f"note: {note}" for note in given.notes)]
