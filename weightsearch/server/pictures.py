"""What the pages draw, as numbers for SVG: where an answer lies among accuracies, on the map, and among relatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsearch.index.manifest import DATABASE
from weightsearch.search.answer import Answer
from weightsearch.search.index import Index
from weightsearch.types import Neighbour

BARS = 40
WIDTH, HEIGHT, MARGIN = 400.0, 300.0, 14.0  # of the map and of the graph
SHADES = 6  # of accuracies on the map: classes v0 to v5 in serve.css
DOTS = 3_000  # drawn on the map
PLACED_BY = 5  # neighbours that a new network is placed among, as `viz.projection.place` does
RELATIVES_DRAWN = 6
LETTERS = 24  # of a relative's name


def histogram(index: Index, answer: Answer) -> dict[str, Any]:
    """The index's accuracies as bars, with where the answer lies among them, in a picture of 400 × 80."""
    values = index.accuracies(answer.fingerprint)
    values = values[~np.isnan(values)]
    if not len(values):
        return {}
    low, high = (0.0, 1.0) if index.target.is_accuracy else (float(values.min()), float(values.max()))
    counts, _ = np.histogram(values, BARS, (low, max(high, low + 1e-9)))
    tall = counts.max() or 1

    def place(value: float) -> float:
        return round(WIDTH * (min(max(value, low), high) - low) / max(high - low, 1e-9), 1)

    return {
        "bars": [
            (WIDTH / BARS * i, 70 - 66 * count / tall, 66 * count / tall) for i, count in enumerate(counts.tolist())
        ],
        "width": WIDTH / BARS - 1,
        "at": None if answer.label == "unlike" else place(answer.predicted),
        "interval": answer.interval and (place(answer.interval[0]), place(answer.interval[1])),
        "low": f"{low:g}",
        "high": f"{high:g}",
    }


@dataclass(frozen=True, eq=False)
class Landscape:
    """One architecture's rows in two dimensions. `points (n, 2)` lie within the picture; `shades` has a path each."""

    points: np.ndarray
    row_of: Mapping[str, int]  # by id
    shades: tuple[str, ...]


class Maps:
    """Maps of an index's architectures, kept until the index changes."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._drawn: dict[str, tuple[object, Landscape]] = {}

    def of(self, fingerprint: str) -> Landscape:
        state = (self.index.store.identity, (self.index.path / DATABASE).stat().st_mtime_ns)
        if fingerprint not in self._drawn or self._drawn[fingerprint][0] != state:
            self._drawn[fingerprint] = (state, self._draw(fingerprint))
        return self._drawn[fingerprint][1]

    def _draw(self, fingerprint: str) -> Landscape:
        from weightsearch.viz.projection import Projection, project

        points = project(self.index.embeddings(fingerprint), Projection.PCA, self.index.metric).astype(np.float64)
        low, size = points.min(axis=0), np.ptp(points, axis=0).clip(1e-12)
        points = MARGIN + (points - low) / size * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)
        points[:, 1] = HEIGHT - points[:, 1]
        values = self.index.accuracies(fingerprint)
        ids = self.index.table(fingerprint, ["id"])["id"].tolist()
        rows = np.arange(len(points))
        if len(rows) > DOTS:
            rows = np.random.default_rng(0).choice(rows, DOTS, replace=False)
        rows = rows[~np.isnan(values[rows])]
        quality = self.index.target.quality(values[rows])
        low, high = (0.0, 1.0) if self.index.target.is_accuracy else (quality.min(initial=0), quality.max(initial=1))
        shade = np.clip((quality - low) / max(high - low, 1e-12) * SHADES, 0, SHADES - 1).astype(int)
        paths = tuple(
            "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points[rows[shade == number]]) for number in range(SHADES)
        )
        return Landscape(points, {id: row for row, id in enumerate(ids)}, paths)

    def around(self, answer: Answer) -> dict[str, Any]:
        """The map with the answer's network among its neighbours; empty where none of them is on it."""
        landscape = self.of(answer.fingerprint)
        near = [(row, landscape.points[landscape.row_of[row.id]]) for row in answer.neighbours
                if row.id in landscape.row_of]  # fmt: skip
        if not near:
            return {}
        own_row = landscape.row_of.get(answer.id)
        where = landscape.points[own_row] if own_row is not None else _placed(near[:PLACED_BY])
        return {
            "shades": landscape.shades,
            "star": star(*where),
            "x": round(float(where[0]), 1),
            "y": round(float(where[1]), 1),
            "near": [(row, round(float(x), 1), round(float(y), 1)) for row, (x, y) in near],
        }


def _placed(near: Sequence[tuple[Neighbour, np.ndarray]]) -> np.ndarray:
    """The mean of the nearest rows' points, weighted as in UMAP's graph (McInnes et al. 2018, section 3.1)."""
    distances = np.array([row.distance for row, _ in near])
    beyond = distances - distances.min()
    weights = np.exp(-beyond / max(float(beyond.mean()), 1e-12))
    return weights @ np.array([point for _, point in near]) / weights.sum()


def star(x: float, y: float, outer: float = 9.0, inner: float = 4.0) -> str:
    """The corners of a five-pointed star, for a polygon."""
    corners = []
    for corner in range(10):
        radius, angle = (outer, inner)[corner % 2], math.pi * (corner / 5 - 0.5)
        corners.append(f"{x + radius * math.cos(angle):.1f},{y + radius * math.sin(angle):.1f}")
    return " ".join(corners)


def graph(relations: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The closest relatives around a file in the middle of the picture: where, what they are to it, and who."""
    drawn = (relations or {}).get("relatives", ())[:RELATIVES_DRAWN]
    nodes = []
    for number, relative in enumerate(drawn):
        angle = math.pi * (2 * number / len(drawn) - 0.5)
        x, y = WIDTH / 2 + 125 * math.cos(angle), HEIGHT / 2 + 105 * math.sin(angle)
        name = relative["run"] or relative["source"]
        nodes.append(
            {
                "x": round(x, 1),
                "y": round(y, 1),
                "kind": relative["relation"],
                "name": name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}",
                "source": relative["source"],
                "summary": relative["summary"],
            }
        )
    return nodes
