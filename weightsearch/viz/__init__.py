"""Figures of zoos and indexes."""

from weightsearch.viz.drawing import FIGURES, draw, draw_map, report
from weightsearch.viz.projection import Projection
from weightsearch.viz.sources import Part
from weightsearch.viz.style import Format

__all__ = ["FIGURES", "Format", "Part", "Projection", "draw", "draw_map", "report"]
