"""The index: checkpoints' rows in DuckDB, their vectors in FAISS. No torch."""

from weightsearch.index.index import Index, Rows, create_index

__all__ = ["Index", "Rows", "create_index"]
