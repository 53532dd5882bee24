"""Figures of many fits: parameters against R² (the paper's Figure 7), and R² by number of training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from weightsearch.types import Baseline, Method

if TYPE_CHECKING:
    from weightsearch.tables import Point

COLOURS = dict(  # Okabe and Ito's, told apart by colour-blind readers
    zip(
        (*Method, *Baseline),
        ("#E69F00", "#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#999999", "#000000"),
        strict=True,
    )
)
LOWEST = -0.2  # R² below this is drawn at the edge


def parameters(trials: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Scatter of each method's best trials: parameters, on a logarithmic axis, against validation R²."""
    figure = Figure(figsize=(7.0, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for method in (*Method, *Baseline):
        own = [trial for trial in trials if trial["method"] == method]
        if own:
            marker = "o" if isinstance(method, Method) else "^"
            x, y = [t["parameters"] for t in own], [max(t["validation_r2"], LOWEST) for t in own]
            axes.scatter(x, y, s=22, marker=marker, color=COLOURS[method], label=method.value, alpha=0.8, linewidths=0)
    axes.set(xscale="log", xlabel="parameters", ylabel="validation R²", title=f"Best trials of each method, {title}")
    _finish(figure, axes, path)


def learning_curve(points: Sequence[Point], title: str, path: Path) -> None:
    """Test R² split by run against the number of training runs: all checkpoints of a run, or one of each."""
    panels = sorted({point.per_run for point in points}, key=lambda per_run: per_run or 0)
    figure = Figure(figsize=(5.2 * len(panels), 4.4), dpi=150, layout="constrained")
    for axes, per_run in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for method in (*Method, *Baseline):
            own = sorted((p for p in points if (p.method, p.per_run) == (method, per_run)), key=lambda p: p.runs)
            if own:
                x, y = [p.runs for p in own], [max(p.test_r2.mean, LOWEST) for p in own]
                style = "-o" if isinstance(method, Method) else "--^"
                spread = [p.test_r2.deviation for p in own]
                axes.errorbar(
                    x, y, spread, fmt=style, markersize=4, linewidth=1.2, color=COLOURS[method], label=method.value
                )
        drawn = f"{per_run} random checkpoint of each run" if per_run else "all checkpoints of each run"
        axes.set(xscale="log", xlabel="training runs", ylim=(LOWEST - 0.05, 1.02), title=f"{title}, {drawn}")
        counts = sorted({p.runs for p in points if p.per_run == per_run})
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.minorticks_off()
        axes.set_ylabel("test R², split by run" if axes is figure.axes[0] else "")
    _finish(figure, figure.axes[-1], path)


def _finish(figure: Figure, axes: Any, path: Path) -> None:
    for each in figure.axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25, linewidth=0.5)
        each.title.set_fontsize(10)
    axes.legend(fontsize=7, frameon=False)
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": "weightsearch"})
