"""The name that version 0.1.0 had for `weightsearch.index.writer`, for scripts that were written for it."""

from weightsearch.index.writer import add_rows, matching, rebuild, remove_rows, update_rows, update_where

__all__ = ["add_rows", "matching", "rebuild", "remove_rows", "update_rows", "update_where"]
