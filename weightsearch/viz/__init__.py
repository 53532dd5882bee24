"""Figures of an index."""

from weightsearch.viz.figures import FIGURES, draw

__all__ = ["FIGURES", "draw"]
