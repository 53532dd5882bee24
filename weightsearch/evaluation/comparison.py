"""Every method and baseline side by side, as the paper's Tables 2 to 9 do, with its published figures beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.files import plain, write_whole
from weightsearch.progress import progress_bar
from weightsearch.text_table import Table
from weightsearch.training.random_search import Search, collect, keeping_best, search_jobs
from weightsearch.training.runner import FitJob, SplitSpec, load_protocol, read_result, run_jobs, worker_pool
from weightsearch.types import Baseline, Method, SplitBy
from weightsearch.zoo.store import Zoo

if TYPE_CHECKING:
    from rich.console import RenderableType

PREDICTORS: tuple[Method | Baseline, ...] = (*Method, *Baseline)
CURVE_FOLDS = 3


Follower = Callable[[FitJob, dict[str, Any]], None]


class ProtocolName(StrEnum):
    RUN = "run"
    CHECKPOINT = "checkpoint"
    PER_RUN_1 = "per-run-1"


TITLES = {
    ProtocolName.RUN: "split by run: test networks come from runs that training never saw",
    ProtocolName.CHECKPOINT: "split by checkpoint, the looser protocol: other epochs of a test network's run train it",
    ProtocolName.PER_RUN_1: "one random checkpoint of each run (the V1 protocol), split by run",
}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; NaN where a score is undefined, and for the deviation of one seed."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
        return cls(float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else np.nan)


@dataclass(frozen=True)
class MethodScores:
    """One method under one protocol, its chosen trial fitted anew with each seed and judged on the test part."""

    method: str
    parameters: int
    test_loss: Spread
    test_r2: Spread
    tau: Spread
    validation_r2: float  # of the chosen trial
    trials: int
    published: dict[str, float] | None


@dataclass(frozen=True)
class Point:
    """One point of the learning curve."""

    method: str
    per_run: int | None
    runs: int
    test_r2: Spread


@dataclass(frozen=True)
class ZooTables:
    name: str
    dataset: str
    preset: str
    runs: int
    checkpoints: int
    tables: dict[ProtocolName, list[MethodScores]] = field(default_factory=dict)
    top_trials: list[dict[str, Any]] = field(default_factory=list)  # of the first protocol: method, parameters, r2
    curve: list[Point] = field(default_factory=list)


def published(preset: str, dataset: str) -> dict[str, dict[str, float]]:
    """The paper's figures for a zoo of this preset and dataset by method: parameters, test_loss, test_r2."""
    text = (files("weightsearch") / "published.csv").read_text(encoding="utf-8")
    return {
        row["method"]: {key: float(row[key]) for key in ("parameters", "test_loss", "test_r2")}
        for row in csv.DictReader(text.splitlines())
        if (row["zoo"], row["dataset"]) == (preset, dataset)
    }


def make_tables(
    zoos: Sequence[str | Path],
    out: str | Path,
    *,
    trials: int = 10,
    trials_of: Mapping[Method | Baseline, int] | None = None,
    seeds: int = 5,
    epochs: int = 300,
    methods: Sequence[Method | Baseline] = PREDICTORS,
    protocols: Sequence[ProtocolName] = tuple(ProtocolName),
    curve: bool = True,
    seed: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    root: Path | None = None,
    quiet: bool = False,
) -> list[ZooTables]:
    """Searches `trials` settings of each method, judges the best with `seeds` seeds, and writes the tables to `out`.

    `trials_of` gives some methods another number. The mean has nothing to search for.

    The seeds share the test part and deal the rest into training and validation anew. Every finished fit is a file
    under `root` (None: `runs/searches`), so that the same call goes on where it was killed, and more trials, seeds,
    methods or zoos only cost what is new. Writes `tables.json`, `tables.md` and two PNGs per zoo after each zoo.
    """
    numbers = {method: (trials_of or {}).get(method, trials) for method in methods} | {Baseline.MEAN: 1}
    flags = [("--trials", trials), *(("--trials", value) for value in numbers.values()), ("--seeds", seeds)]
    for flag, value in (*flags, ("--epochs", epochs)):
        if value < 1:
            raise UsageError(f"{flag} {value}: choose at least 1")
    if not zoos or not methods or not protocols:
        raise UsageError("name at least one zoo, one method and one protocol")
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; --out takes a directory")
    opened = [Zoo.open(zoo) for zoo in zoos]
    settings = {"trials": trials, "seeds": seeds, "epochs": epochs, "seed": seed}
    total = len(zoos) * len(protocols) * sum(numbers[method] + seeds for method in methods)
    tables: list[ZooTables] = []
    bar = progress_bar("fits", None if curve else total, unit="fits", quiet=quiet)
    with worker_pool(workers, device) as pool, bar as advance:

        def run(jobs: list[FitJob], note: str, then: Follower | None = None) -> None:
            def finished(job: FitJob, result: dict[str, Any]) -> None:
                if then:
                    then(job, result)
                advance(note=f"{note}, {job.method}")

            run_jobs(jobs, pool, finished)

        for zoo in opened:
            tables.append(_one_zoo(zoo, run, settings, numbers, methods, protocols, curve, root))
            _write(target, tables, settings)
    return tables


def _one_zoo(
    zoo: Zoo,
    run: Callable[..., None],
    settings: dict[str, int],
    trials_of: Mapping[Method | Baseline, int],
    methods: Sequence[Method | Baseline],
    protocols: Sequence[ProtocolName],
    curve: bool,
    root: Path | None,
) -> ZooTables:
    from weightsearch.evaluation.comparison import top_trials

    table = zoo.table()
    result = ZooTables(zoo.path.name, zoo.info.dataset, zoo.info.preset, len(np.unique(table.run)), len(table))
    figures = published(zoo.info.preset, zoo.info.dataset)
    for name in protocols:
        protocol = SplitSpec(
            str(zoo.path),
            SplitBy.CHECKPOINT if name is ProtocolName.CHECKPOINT else SplitBy.RUN,
            1 if name is ProtocolName.PER_RUN_1 else None,
            settings["seed"],
        )
        jobs = {
            method: search_jobs(protocol, method, trials_of[method], epochs=settings["epochs"], keep=True, root=root)
            for method in methods
        }
        trials = [job for one in jobs.values() for job in one]
        run(trials, f"{zoo.path.name} by {name}: searching", keeping_best(trials))
        searches = {method: collect(one) for method, one in jobs.items()}
        judged = {
            method: [_judged(jobs[method], searches[method], fold) for fold in range(settings["seeds"])]
            for method in methods
        }
        run([job for one in judged.values() for job in one], f"{zoo.path.name} by {name}: judging")
        result.tables[name] = [_row(searches[m], judged[m], len(jobs[m]), figures.get(m)) for m in methods]
        if not result.top_trials:
            result.top_trials.extend(top for method in methods for top in top_trials(searches[method].trials))
        if curve and name is not ProtocolName.CHECKPOINT:
            points = {
                (method, count): [
                    _judged(jobs[method], searches[method], fold, runs=count)
                    for fold in range(min(CURVE_FOLDS, settings["seeds"]))
                ]
                for method in methods
                if method is not Baseline.MEAN
                for count in _curve_runs(protocol)
            }
            run([job for one in points.values() for job in one], f"{zoo.path.name} by {name}: learning curve")
            result.curve.extend(
                Point(method.value, protocol.per_run, count, _spread(one, "r2"))
                for (method, count), one in points.items()
            )
    return result


def _judged(jobs: list[FitJob], searched: Search, fold: int, runs: int | None = None) -> FitJob:
    """The chosen trial, fitted on another deal of training and validation, and judged on the test part."""
    job = jobs[searched.best]
    part = f"runs-{runs}" if runs else "judged"
    return replace(
        job,
        out=str(searched.directory / f"{part}-{searched.best:05d}-{fold}.json"),
        protocol=replace(job.protocol, fold=fold, runs=runs),
        seed=job.seed + 1000 * fold,
        compared_with=(),
        score_test=True,
        repeats="" if fold or runs else job.out,
    )


def _curve_runs(protocol: SplitSpec) -> list[int]:
    """25, 50, 100, ... training runs, and all of them."""
    zoo, split = load_protocol(protocol)
    most = split.runs(zoo.table())["train"]
    counts = [25 * 2**power for power in range(20) if 25 * 2**power < most]
    return [*counts, most]


def _spread(jobs: list[FitJob], score: str) -> Spread:
    tests = [(read_result(job.out) or {}).get("test") or {} for job in jobs]  # a refit may diverge: no score
    return Spread.of([test.get(score) for test in tests])


def _row(searched: Search, judged: list[FitJob], trials: int, figures: dict[str, float] | None) -> MethodScores:
    best = searched.trials[searched.best]
    scores = {score: _spread(judged, score) for score in ("mse", "r2", "tau")}
    return MethodScores(
        best["method"], best["parameters"], scores["mse"], scores["r2"], scores["tau"], best["validation"]["r2"],
        trials, figures,
    )  # fmt: skip


def verdict(rows: Sequence[MethodScores]) -> str:
    """One sentence: which method wins, and by how much over the best of the paper's four."""
    papers = {Method.FC.value, Method.FC_LINEAR.value, Method.COMVEX_LINEAR.value, Method.COMVEX_CONV.value}
    ranked = sorted((row for row in rows if np.isfinite(row.test_r2.mean)), key=lambda row: -row.test_r2.mean)
    ours = [row for row in ranked if row.method in papers]
    if not ranked:
        return "No method could be judged."
    text = f"Highest R²: {ranked[0].method}, {ranked[0].test_r2.mean:.3f}"
    if ours and ours[0] is not ranked[0]:
        return f"{text}; the best of the paper's four is {ours[0].method}, {ours[0].test_r2.mean:.3f}."
    return f"{text}." if len(ranked) == 1 else f"{text}; next is {ranked[1].method}, {ranked[1].test_r2.mean:.3f}."


COLUMNS = ("method", "parameters", "test loss", "test R²", "tau", "trials")
PAPER_COLUMNS = ("paper's parameters", "its loss", "its R²")


def columns(rows: Sequence[MethodScores]) -> tuple[str, ...]:
    """The paper's only where it has a table of such a zoo."""
    return COLUMNS + PAPER_COLUMNS if any(row.published for row in rows) else COLUMNS


def cells(row: MethodScores) -> tuple[str, ...]:
    """A row's texts, in the order of `COLUMNS` and `PAPER_COLUMNS`."""

    def spread(value: Spread, digits: int) -> str:
        if not np.isfinite(value.mean):
            return "–"
        deviation = f" ± {value.deviation:.{digits}f}" if np.isfinite(value.deviation) else ""
        return f"{value.mean:.{digits}f}{deviation}"

    given = row.published
    paper = ("",) * 3
    if given:
        paper = (f"{given['parameters']:,.0f}", f"{given['test_loss']:.6f}", f"{given['test_r2']:.4f}")
    return (
        row.method, f"{row.parameters:,}", spread(row.test_loss, 5), spread(row.test_r2, 3), spread(row.tau, 3),
        str(row.trials), *paper,
    )  # fmt: skip


def _trials(number: int) -> str:
    return "one trial, the default settings," if number == 1 else f"{number} trials of a random search"


def _other_trials(zoos: Sequence[ZooTables], settings: dict[str, int]) -> bool:
    rows = [row for zoo in zoos for table in zoo.tables.values() for row in table]
    return any(row.trials != settings["trials"] for row in rows if row.method != Baseline.MEAN)


def markdown(zoos: Sequence[ZooTables], settings: dict[str, int]) -> str:
    """All tables as Markdown."""
    lines = [
        "# Predicting accuracy from weights",
        "",
        f"Made by `weightsearch tables` {version('weightsearch')}: {_trials(settings['trials'])} a "
        f"method{', or as many as the table says' if _other_trials(zoos, settings) else ''}, at most "
        f"{settings['epochs']} epochs each; the best by validation loss, fitted with "
        + (
            "one seed and judged on the test part."
            if settings["seeds"] == 1
            else f"{settings['seeds']} seeds and judged on the test part: mean ± standard deviation. The seeds share "
            "the test part and deal the rest into training and validation anew."
        ),
    ]
    for zoo in zoos:
        lines += [
            "",
            f"## {zoo.name}: {zoo.preset} on {zoo.dataset}, {zoo.runs:,} runs, {zoo.checkpoints:,} checkpoints",
        ]
        for name, rows in zoo.tables.items():
            title = TITLES[name]
            lines += ["", _table(f"{title[0].upper()}{title[1:]}", rows).to_markdown()]
        if zoo.curve:
            lines += ["", _curve_table(zoo).to_markdown(), "", f"![Learning curve]({zoo.name}-learning-curve.png)"]
        lines += ["", f"![Parameters against validation R²]({zoo.name}-parameters.png)"]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Sequence[MethodScores]) -> Table:
    shown = columns(rows)
    texts = tuple(cells(row)[: len(shown)] for row in rows)
    return Table(title, shown, texts, right=tuple(range(1, len(shown))), caption=verdict(rows))


def _curve_table(zoo: ZooTables) -> Table:
    """Test R² by number of training runs, split by run."""
    counts = sorted({point.runs for point in zoo.curve})
    rows = []
    for method, per_run in dict.fromkeys((point.method, point.per_run) for point in zoo.curve):
        by_runs = {p.runs: p.test_r2.mean for p in zoo.curve if (p.method, p.per_run) == (method, per_run)}
        texts = [f"{by_runs[count]:.3f}" if np.isfinite(by_runs.get(count, np.nan)) else "–" for count in counts]
        rows.append((method, str(per_run or "all"), *texts))
    return Table(
        "Learning curve: test R², split by run, by number of training runs",
        ("method", "checkpoints of a run", *map(str, counts)),
        tuple(rows),
        right=tuple(range(2, 2 + len(counts))),
    )


def _write(out: Path, zoos: Sequence[ZooTables], settings: dict[str, int]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {"version": version("weightsearch"), "settings": settings, "zoos": [asdict(zoo) for zoo in zoos]}
    write_whole(out / "tables.json", json.dumps(plain(content), indent=1) + "\n")
    write_whole(out / "tables.md", markdown(zoos, settings))


def render(zoo: ZooTables) -> RenderableType:
    """One zoo's tables for the terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for name, rows in zoo.tables.items():
        parts += [_table(f"{zoo.name}, {TITLES[name]}", rows).to_rich(), Text()]
    return Group(*parts)


TOP = 20  # trials of each method in the figure of parameters


def top_trials(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of one method's results by validation R², as `efficiency` takes them."""
    scored = [result for result in results if (result.get("validation") or {}).get("r2") is not None]
    scored.sort(key=lambda result: -result["validation"]["r2"])
    return [
        {"method": result["method"], "parameters": result["parameters"], "validation_r2": result["validation"]["r2"]}
        for result in scored[:TOP]
        if result["method"] != Baseline.MEAN
    ]
