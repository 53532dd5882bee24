"""The index: checkpoints' rows in DuckDB, their vectors in FAISS. No torch."""

from weightsearch.index.catalogue import Rows
from weightsearch.index.files import check_target
from weightsearch.index.index import Index, Neighbourhood, Row
from weightsearch.index.writing import create_index

__all__ = ["Index", "Neighbourhood", "Row", "Rows", "check_target", "create_index"]
