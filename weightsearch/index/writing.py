"""Changing an index. Rows are committed to DuckDB first; FAISS files follow, and readers can do without them.

Killed at any moment, an index holds every row whose adding was reported, and readers see it as of its last commit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.index import catalogue, vectors
from weightsearch.index.catalogue import SCHEMA, Catalogue, Rows
from weightsearch.index.files import (
    DATABASE,
    FORMAT,
    check_target,
    describe,
    sync,
    write_manifest,
)
from weightsearch.index.index import Index
from weightsearch.types import Architecture, Metric

LOCK = ".write.lock"
WRITER_WAIT_SECONDS = 10.0  # for another writer
BATCH = 10_000  # rows a transaction, so that readers wait less than a second
STALE_ROWS, STALE_SHARE = 500, 0.05  # more rows than both of these behind the catalogue, and FAISS's file is written


@dataclass(frozen=True)
class AddSummary:
    added: int
    already: int  # rows whose weights the index held before
    generation: int


def create_index(
    path: Path,
    architecture: Architecture,
    rows: Rows,
    *,
    write_extras: Callable[[Path, Path], None],
    metric: Metric = Metric.COSINE,
    replace: bool = False,
    notes: dict[str, Any] | None = None,
    factory: str | None = None,
) -> Index:
    """Writes a new index directory with one architecture, complete or not at all.

    `write_extras(directory, encoder_directory)` adds the encoder's files (and a card, examples) before publication.
    An existing directory is only replaced when it is an index and `replace` is set. `factory` is FAISS's name for the
    type of its index (None: by size).
    """
    check_target(path, replace)
    check_rows(rows, None)
    fingerprint = architecture.fingerprint
    rows = rows.distinct()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.parent / f".{path.name}.{os.getpid()}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        (staging / fingerprint).mkdir(parents=True)
        with Catalogue(staging / DATABASE).open(read_only=False) as connection:
            connection.execute(SCHEMA)
            for start in range(0, len(rows), BATCH):
                catalogue.insert(connection, fingerprint, rows.take(np.arange(start, min(start + BATCH, len(rows)))))
            connection.execute("UPDATE ix.state SET generation = 1")
        built = vectors.build(np.arange(len(rows)), rows.embedding, metric, factory)
        vectors.save(built, staging / fingerprint / "vectors-1.faiss")
        write_extras(staging, staging / fingerprint)
        manifest = {
            "format": FORMAT,
            "metric": metric.value,
            "architectures": {fingerprint: {"layers": architecture.to_dict(), "factory": factory}},
            **(notes or {}),
            "files": describe_encoder(staging / fingerprint),
        }
        write_manifest(staging, manifest)
        for file in staging.rglob("*"):
            sync(file)
        _publish(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Index.open(path)


def describe_encoder(directory: Path) -> dict[str, Any]:
    """Of all files in an encoder's sub-directory but the vectors, by their name in the index directory."""
    files = sorted(file for file in directory.iterdir() if not file.name.startswith(("vectors-", ".")))
    return {f"{directory.name}/{file.name}": describe(file) for file in files}


def check_rows(rows: Rows, width: int | None) -> None:
    """Refuses embeddings that are not finite or not `width` wide."""
    shape = rows.embedding.shape
    if len(shape) != 2 or shape[0] != len(rows) or (width is not None and shape[1] != width):
        wanted = f"({len(rows)}, {width or 'D'})"
        raise WeightsearchError(f"expected embeddings of shape {wanted}, got {shape}")
    if not np.isfinite(rows.embedding).all():
        bad = rows.id[~np.isfinite(rows.embedding).all(axis=1)][0]
        raise WeightsearchError(f"the embedding of {bad} is not finite; leave that checkpoint out")


def _publish(staging: Path, path: Path) -> None:
    """Renames `staging` to `path`, moving an older directory aside first so that one of them is always whole."""
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    if path.exists():
        path.rename(old)
    staging.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
