"""The index: checkpoints' rows in DuckDB, their vectors in FAISS. No torch."""

from weightsearch.index.create import add_architecture, check_addition, create_index
from weightsearch.index.database import Rows
from weightsearch.index.doctor import Finding, State, doctor
from weightsearch.index.info import IndexInfo, export, info
from weightsearch.index.manifest import check_target
from weightsearch.index.store import IndexStore, Neighbourhood, Row
from weightsearch.index.updates import Updated, table_changes, update_table, update_values
from weightsearch.index.writer import (
    AddSummary,
    add_rows,
    matching,
    rebuild,
    remove_rows,
    update_rows,
    update_where,
)

Index = IndexStore  # its name in version 0.1.0; `weightsearch.Index` is the one that knows networks

__all__ = [
    "AddSummary",
    "Finding",
    "Index",
    "IndexInfo",
    "IndexStore",
    "Neighbourhood",
    "Row",
    "Rows",
    "State",
    "Updated",
    "add_architecture",
    "add_rows",
    "check_addition",
    "check_target",
    "create_index",
    "doctor",
    "export",
    "info",
    "matching",
    "rebuild",
    "remove_rows",
    "table_changes",
    "update_rows",
    "update_table",
    "update_values",
    "update_where",
]
