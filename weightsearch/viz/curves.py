"""Figures of many fits: parameters against R² (the paper's Figure 7), and R² by number of training runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from weightsearch import paths as runs
from weightsearch.errors import WeightsearchError
from weightsearch.evaluation.comparison import TOP, Point, ZooTables, top_trials
from weightsearch.files import MISREAD
from weightsearch.types import Baseline, Method, SplitBy
from weightsearch.viz.style import rows_of, save, theme
from weightsearch.zoo.store import Zoo

COLOURS = dict(  # Okabe and Ito's, told apart by colour-blind readers, and two more
    zip(
        (*Method, *Baseline),
        ("#E69F00", "#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#999999", "#7A5195", "#8C6D31", "#4D4D4D"),
        strict=False,
    )
)
LOWEST = -0.2  # R² below this is drawn at the edge


def efficiency(groups: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> Figure:
    """Parameters, on a logarithmic axis, against validation R² of each method's best trials (the paper's Figure 7).

    A picture for each group of `(heading, trials)`; a trial says its method, parameters and validation_r2.
    """
    figure, rows = rows_of(f"The best trials of each method, up to {TOP}", [heading for heading, _ in groups], 7.4, 3.6)
    for row, (_, trials) in zip(rows, groups, strict=True):
        axes = row.subplots()
        for method in (*Method, *Baseline):
            of_method = [trial for trial in trials if trial["method"] == method]
            if of_method:
                marker = "o" if isinstance(method, Method) else "^"
                x, y = [t["parameters"] for t in of_method], [max(t["validation_r2"], LOWEST) for t in of_method]
                axes.scatter(
                    x, y, s=24, marker=marker, color=COLOURS[method], label=method.value, alpha=0.85, linewidths=0
                )
        lowest = min((trial["validation_r2"] for trial in trials), default=0.0)
        label = f"validation R² (lower ones at {LOWEST})" if lowest < LOWEST else "validation R²"
        low = LOWEST if lowest < 0 else 0.0
        axes.set(xscale="log", xlabel="parameters", ylabel=label, ylim=(low - 0.03, 1.03))
        axes.grid(alpha=0.5, linewidth=0.5)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def parameters(trials: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """`efficiency` of one zoo, written to `path`."""
    with theme(dark=False):
        save(efficiency([(title, trials)]), path)


def is_tables(path: Path) -> bool:
    """Whether `path` is a `tables.json`, or a directory with one."""
    return path.suffix == ".json" or (path / "tables.json").is_file()


def trials_in(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The groups of a `tables.json` (or of the directory that holds it), for `efficiency`."""
    path = path / "tables.json" if path.is_dir() else path
    try:
        zoos = json.loads(path.read_text())["zoos"]
        return [(f"{zoo['dataset']} {zoo['preset']}: {zoo['runs']:,} runs", zoo["top_trials"]) for zoo in zoos]
    except MISREAD as error:
        raise WeightsearchError(f"{path} cannot be read ({error}); make it with `weightsearch tables`") from None


def trials_on(zoo: Zoo, *, seed: int = 0, root: Path | None = None) -> tuple[str, list[dict[str, Any]]] | None:
    """The trials of searches on `zoo` that `train --trials` or `tables` left in `root`, for `efficiency`; None: none.

    Of the first of the ways to split that has any, by run before by checkpoint.
    """
    from weightsearch.training.random_search import search_directory
    from weightsearch.training.runner import SplitSpec, read_result

    root = root or runs.RUNS / "searches"
    for split in SplitBy:
        protocol = SplitSpec(str(zoo.path), split, None, seed)
        for directory in sorted(root.glob(f"{zoo.path.name}-by-{split}-*")):
            by_zoo = {
                method: [result for file in sorted(directory.glob(f"{method}/trial-*.json"))
                         if (result := read_result(file))]
                for method in (*Method, *Baseline)
            }  # fmt: skip
            epochs = {result["settings"].get("epochs") for results in by_zoo.values() for result in results} - {None}
            ours = any(search_directory(protocol, Method.FC, n, root).parent == directory for n in epochs)
            trials = [trial for results in by_zoo.values() for trial in top_trials(results)]
            if ours and trials:  # another zoo may have had the same name
                return f"{zoo.info.dataset} {zoo.info.preset}, split by {split}", trials
    return None


def learning_curve(points: Sequence[Point], title: str, path: Path) -> None:
    """Test R² split by run against the number of training runs: all checkpoints of a run, or one of each."""
    panels = sorted({point.per_run for point in points}, key=lambda per_run: per_run or 0)
    methods = [method for method in (*Method, *Baseline) if any(point.method == method for point in points)]
    with theme(dark=False):
        figure, (row,) = rows_of("How many runs it takes to predict a new one", [title], 4.4 * len(panels) + 1.4, 3.8)
        drawn = row.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, per_run in zip(drawn, panels, strict=True):
            for number, method in enumerate(methods):
                of_method = sorted(
                    (p for p in points if (p.method, p.per_run) == (method, per_run)), key=lambda p: p.runs
                )
                # A little apart, so that spreads do not hide one another; of one seed there is none.
                x = [p.runs * 1.012 ** (number - len(methods) / 2) for p in of_method]
                y = [max(p.test_r2.mean, LOWEST) for p in of_method]
                spread = [0.0 if math.isnan(p.test_r2.deviation) else p.test_r2.deviation for p in of_method]
                axes.errorbar(
                    x, y, spread, fmt="-o" if isinstance(method, Method) else "--^", label=method.value,
                    color=COLOURS[method], markersize=4, linewidth=1.2, elinewidth=0.8,
                )  # fmt: skip
            heading = f"{per_run} random checkpoint of each run" if per_run else "all checkpoints of each run"
            axes.set(xscale="log", xlabel="training runs", ylim=(LOWEST - 0.03, 1.03), title=heading)
            counts = sorted({p.runs for p in points if p.per_run == per_run})
            # All runs are often hardly more than the last round number: only one of the two has room for its name.
            following = [*counts[1:], math.inf]
            names = ["" if more < 1.2 * count else str(count) for count, more in zip(counts, following, strict=True)]
            axes.set_xticks(counts, names, minor=False)
            axes.minorticks_off()
            axes.grid(alpha=0.5, linewidth=0.5)
        drawn[0].set_ylabel(f"test R², split by run (lower ones at {LOWEST})")
        drawn[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        save(figure, path)


def draw_comparison(zoos: Sequence[ZooTables], out: Path) -> list[Path]:
    """The pictures of `make_tables`' result, written beside its tables in `out`: their paths."""
    paths = []
    for zoo in zoos:
        title = f"{zoo.preset} on {zoo.dataset}"
        paths.append(out / f"{zoo.name}-parameters.png")
        parameters(zoo.top_trials, title, paths[-1])
        if zoo.curve:
            paths.append(out / f"{zoo.name}-learning-curve.png")
            learning_curve(zoo.curve, title, paths[-1])
    return paths
