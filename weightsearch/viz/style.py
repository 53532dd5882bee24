"""How all figures look: light and dark, sizes, colours, and the files they are written to."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure, SubFigure

from weightsearch.files import replacing
from weightsearch.types import Target

COLOURS = "viridis"  # perceptually uniform, and legible to colour-blind readers
DIVERGING = "RdBu_r"  # of -1 to 1: white at 0
DPI = 150
MARK = "#E8590C"  # what a picture is to point out: apart from all of viridis, in dark and in light
LIGHT = ("#ffffff", "#24292f", "#d5d9de")  # ground, ink, lines
DARK = ("#14171c", "#d7dce2", "#3a414b")
ROW_HEADING = 0.36  # inches, of one line
LINE = 0.17  # inches, of each further line
LETTERS = 13  # of a heading in an inch


class Format(StrEnum):
    """The files that figures are written to.

    Example:
        >>> Format('svg')
        <Format.SVG: 'svg'>
    """

    PNG = "png"
    SVG = "svg"


@contextmanager
def theme(dark: bool) -> Iterator[None]:
    """Colours and sizes of everything drawn inside."""
    ground, ink, faint = DARK if dark else LIGHT
    settings: dict[Any, Any] = {
        "figure.facecolor": ground, "axes.facecolor": ground, "savefig.facecolor": ground, "text.color": ink,
        "axes.edgecolor": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "grid.color": faint,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "legend.frameon": False,
        "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8, "svg.hashsalt": "weightsearch", "svg.fonttype": "none",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def save(figure: Figure, path: Path) -> None:
    """Writes the figure without a date, so that the same figure is the same file."""
    metadata = {"Software": "weightsearch"} if path.suffix == ".png" else {"Date": None, "Creator": "weightsearch"}
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=DPI, metadata=metadata)


def rows_of(title: str, headings: Sequence[str], width: float, height: float) -> tuple[Figure, list[SubFigure]]:
    """A figure with a title and one headed row per source; each row is `height` inches high without its heading."""
    wrapped = [textwrap.fill(heading, int(width * LETTERS)) for heading in headings]
    heights = [height + ROW_HEADING + LINE * heading.count("\n") for heading in wrapped]
    figure = Figure(figsize=(width, 0.34 + sum(heights)), layout="constrained")
    figure.suptitle(title, x=0.008, ha="left", fontsize=13, fontweight="bold")
    rows = np.atleast_1d(np.asarray(figure.subfigures(len(headings), 1, height_ratios=heights), object)).tolist()
    for row, heading in zip(rows, wrapped, strict=True):
        row.suptitle(heading, x=0.008, ha="left", fontsize=10)
    return figure, rows


def limits(target: Target, values: np.ndarray) -> tuple[float, float]:
    """[0, 1] for accuracies, else all values but the outermost 1 %, which are drawn at the edge."""
    if target.is_accuracy:
        return 0.0, 1.0
    low, high = np.nanquantile(values, [0.01, 0.99])
    return float(low), float(high) if high > low else float(low) + 1.0


def label_of(target: Target) -> str:
    return target.column.replace("_", " ")


def bare(axes: Any) -> None:
    """No ticks: the directions of such a picture mean nothing."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.5)
        spine.set_alpha(0.4)
