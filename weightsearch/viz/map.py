"""A map to explore, as one HTML file that works offline: pan, zoom, recipes, neighbours, colours, a filter."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb

from weightsearch.distance import prepare
from weightsearch.html_template import render_html
from weightsearch.search.wording import recipe_text
from weightsearch.types import Checkpoint, Metric
from weightsearch.viz.figures import Options, sample_of
from weightsearch.viz.projection import nearest, place, project
from weightsearch.viz.sources import Sample, Source, networks_in
from weightsearch.viz.style import COLOURS, DARK, LIGHT, MARK

MOST = 100_000  # networks in a map
NEIGHBOURS = 8  # shown of each
LABELS = 50  # a text column with more different values is not offered as a colour
CONTRAST = 3.0  # of every colour to the ground
PALETTE_LIGHT = (  # of categories: no colour looks like more than another
    *("#0b6fb8", "#c2410c", "#15803d", "#a21caf", "#7c5e10"),
    *("#be123c", "#0f766e", "#4338ca", "#4b5563", "#8a5a00"),
)
PALETTE_DARK = (
    *("#56b4e9", "#f0a050", "#4ade80", "#e58ae0", "#e3c34b"),
    *("#fb7185", "#2dd4bf", "#a5a6f6", "#b5bcc6", "#d6a77a"),
)
ID = 12  # letters of an id that are shown
HELP = (
    "Drag to pan, scroll to zoom. Point at a network for its recipe, click it for its nearest neighbours by the "
    "embedding. Choose a column to colour by; filter by histograms, by the legend's names and by a search; list "
    "networks with the lasso (or with shift held down)."
)


def interactive(
    sources: Sequence[Source], options: Options, note: Callable[[str], None], *, dark: bool = False, most: int = MOST
) -> str:
    """The HTML of a map of each source through each of its methods; above `most` networks, a seeded sample."""
    described, maps = [], []
    networks = networks_in(sources, options.networks)
    for number, source in enumerate(sources):
        sample = sample_of(source, options, most)
        described.append(_describe(source, sample))
        for method in source.methods:
            note(f"{source.title}, {method}")
            maps.append(_map(source, method, number, sample, options, networks[number], note))
    data = {
        "sources": described,
        "maps": maps,
        "colours": scale_of(dark),
        "palette": list(PALETTE_DARK if dark else PALETTE_LIGHT),
        "grey": "#6b7280" if dark else "#8a9099",
        "mark": MARK,
        "ground": (DARK if dark else LIGHT)[0],
        "help": HELP,
    }
    return render_html(
        "map.html",
        title="Networks by their weights",
        dark=dark,
        data=data,
        style=read_static("map.css"),
        library=read_static("regl-scatterplot.bundle.js"),
        code=read_static("map.js"),
    )


def scale_of(dark: bool) -> list[str]:
    """256 colours of the part of the scale that stands out from the ground, at a contrast of 3 to 1 or more.

    (WCAG 2.2, https://www.w3.org/TR/WCAG22/#non-text-contrast.)
    """
    ground = (DARK if dark else LIGHT)[0]
    fine = colormaps[COLOURS](np.linspace(0, 1, 1024))
    seen = np.flatnonzero([contrast(to_hex(colour), ground) >= CONTRAST for colour in fine])
    return [to_hex(fine[place]) for place in np.linspace(seen[0], seen[-1], 256).round().astype(int)]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour))
        return float(np.dot((0.2126, 0.7152, 0.0722), tuple(parts)))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def read_static(name: str) -> str:
    """A style or script of a page."""
    return (files("weightsearch.viz") / "static" / name).read_text(encoding="utf-8")


def _describe(source: Source, sample: Sample) -> dict[str, Any]:
    """What the map says of each network; what all networks of a recipe share is written once."""
    texts = source.columns["recipe"][sample.positions].astype(str)
    distinct, recipe = np.unique(texts, return_inverse=True)
    recipes = [json.loads(text) if text.startswith("{") else {} for text in distinct.tolist()]
    columns = [
        _column(name, values[sample.positions], "network")
        for name, values in source.columns.items()
        if name not in ("recipe", "id")
    ]
    keys = dict.fromkeys(key for one in recipes for key in one if key != "seed")
    columns += [_column(key, np.array([one.get(key) for one in recipes], object), "recipe") for key in keys]
    return {
        "target": source.target.column,
        "lower_is_better": source.target.lower_is_better,
        "ids": [str(id)[:ID] for id in source.columns["id"][sample.positions].tolist()],
        "recipe": _encode(recipe, np.int32),
        "recipes": [recipe_text(one) for one in recipes],
        "columns": [column for column in columns if column],
    }


def _column(name: str, values: np.ndarray, by: str) -> dict[str, Any] | None:
    """A column of numbers or of labels, by network or by recipe; None where it says nothing."""
    numbers = _numbers(values)
    if numbers is not None:
        if not np.isfinite(numbers).any():
            return None
        positive = numbers[numbers > 0]
        log = by == "recipe" and len(positive) > 0 and positive.max() > 20 * positive.min() and (numbers >= 0).all()
        return {"name": name, "by": by, "data": _encode(numbers, np.float32), "log": bool(log)}
    texts = np.array(["" if value is None else str(value) for value in values.tolist()])
    labels, codes = np.unique(texts, return_inverse=True)
    if labels[0] == "":
        labels, codes = labels[1:], codes - 1
    if len(labels) == 0 or (len(labels) > LABELS and name != "run"):
        return None
    return {"name": name, "by": by, "data": _encode(codes, np.int32), "labels": labels.tolist()}


def _numbers(values: np.ndarray) -> np.ndarray | None:
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    if all(value is None or isinstance(value, int | float) for value in values.tolist()):
        return np.array([np.nan if value is None else value for value in values.tolist()], np.float64)
    return None


def _map(
    source: Source,
    method: str,
    number: int,
    sample: Sample,
    options: Options,
    networks: Sequence[tuple[Path, Checkpoint]],
    note: Callable[[str], None],
) -> dict[str, Any]:
    def epoch(done: int, total: int) -> None:
        note(f"{source.title}, {method}, UMAP epoch {done} of {total}")

    vectors = source.vectors(method, sample.positions)
    points = project(
        vectors, options.projection, source.metric, seed=options.seed, on_epoch=epoch,
        neighbours=source.neighbours(sample),
    )  # fmt: skip
    near, far = _neighbours(vectors, source.metric)
    stars = []
    for path, network in networks:
        vector = source.embed(method, network)[None]
        points = np.concatenate([points, place(vector, vectors, points[: len(vectors)], source.metric)])
        closest = nearest(prepare(vector, source.metric), prepare(vectors, source.metric), NEIGHBOURS, source.metric)
        near, far = (np.concatenate(pair) for pair in zip((near, far), closest, strict=True))
        stars.append({"name": path.name, "text": "a file that is not one of these; its neighbours are listed"})
    low, size = points.min(axis=0), np.ptp(points, axis=0).clip(1e-12)
    points = ((points - low) / size * 2 - 1) * 0.94  # fills [-1, 1], which the page stretches to the screen
    return {
        "name": f"{source.title}, {method}",
        "stars": stars,
        "source": number,
        "notes": [
            f"{source.title}: {sample.label}.",
            f"{options.projection.label} of {method}, {source.metric} distance.",
        ],
        "x": _encode(points[:, 0], np.float32),
        "y": _encode(points[:, 1], np.float32),
        "near": _encode(near, np.int32),
        "far": _encode(far, np.float32),
    }


def _neighbours(vectors: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Each vector's nearest others `(n, k)` and their distances."""
    prepared = prepare(vectors, metric)
    neighbours, distances = nearest(prepared, prepared, NEIGHBOURS + 1, metric)
    others = neighbours != np.arange(len(neighbours))[:, None]
    others[others.all(axis=1), -1] = False  # more equal vectors than neighbours: itself is not among them
    return neighbours[others].reshape(len(neighbours), -1), distances[others].reshape(len(neighbours), -1)


def _encode(values: np.ndarray, kind: type) -> str:
    """Little-endian bytes in base64, which JavaScript's typed arrays read."""
    return base64.b64encode(np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<")).tobytes()).decode()
