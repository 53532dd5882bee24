"""What searches need of many rows, in a file beside the vectors: an index of ten million opens without reading all."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np

from weightsearch.files import MISREAD, replacing
from weightsearch.index.database import Columns
from weightsearch.index.manifest import describe_file, is_intact, is_sealed, write_sealed
from weightsearch.types import Target

PARTS = {"numbers": np.int64, "values": np.float64, "datasets": np.uint64, "runs": np.uint64}  # of eight bytes each


def save(directory: Path, columns: Columns, target: Target) -> None:
    """Writes `columns-G` and what it is, then removes the older ones, which readers may still map."""
    path = directory / f"columns-{columns.generation}"
    with replacing(path) as temporary, temporary.open("wb") as file:
        for name, kind in PARTS.items():
            file.write(np.ascontiguousarray(getattr(columns, name), kind).data)
    # DuckDB's hashes, of datasets and runs, are those of its version.
    info = {
        "target": target.column, "duckdb": duckdb.__version__, "only_dataset": columns.only_dataset,
        "file": describe_file(path),
    }  # fmt: skip
    write_sealed(path.with_suffix(".json"), info)
    for older in directory.glob("columns-*"):
        if older.stem != path.stem:
            older.unlink(missing_ok=True)


def load(directory: Path, generation: int, target: Target, table: str) -> Columns | None:
    """The columns as of exactly this generation, mapped; None where there is no sound file of them."""
    path = directory / f"columns-{generation}"
    try:
        info = json.loads(path.with_suffix(".json").read_text())
        if not is_sealed(info) or not is_intact(path, info["file"]):
            return None
        if (info["target"], info["duckdb"]) != (target.column, duckdb.__version__):
            return None
        only_dataset = info["only_dataset"]
        words = np.memmap(path, np.int64, "r").view(np.ndarray).reshape(len(PARTS), -1)
    except MISREAD:
        return None
    parts = {name: words[i].view(kind) for i, (name, kind) in enumerate(PARTS.items())}
    return Columns(generation, table=table, only_dataset=only_dataset, **parts)
