"""The index: checkpoints' rows in DuckDB, their vectors in FAISS. No torch."""

from weightsearch.index.catalogue import Rows
from weightsearch.index.create import add_architecture, create_index
from weightsearch.index.files import check_target
from weightsearch.index.index import Index, Neighbourhood, Row
from weightsearch.index.writing import AddSummary, add_rows, rebuild, remove_rows, update_rows, update_where

__all__ = [
    "AddSummary",
    "Index",
    "Neighbourhood",
    "Row",
    "Rows",
    "add_architecture",
    "add_rows",
    "check_target",
    "create_index",
    "rebuild",
    "remove_rows",
    "update_rows",
    "update_where",
]
