"""A new index directory, or one more architecture in an index that is there: complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.files import exchange, runs_elsewhere, sync
from weightsearch.index import checks, database, reranked, snapshot, vectors
from weightsearch.index.connection import Database
from weightsearch.index.database import SCHEMA, Rows
from weightsearch.index.manifest import (
    CARD,
    DATABASE,
    FORMAT,
    MANIFEST,
    check_target,
    describe_file,
    read_manifest,
    write_manifest,
)
from weightsearch.index.store import IndexStore
from weightsearch.index.writer import BATCH, check_rows, publish, writing
from weightsearch.types import Architecture, Metric, Target


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
) -> IndexStore:
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
    _clear(path)
    try:
        (staging / fingerprint).mkdir(parents=True)
        with Database(staging / DATABASE).open(read_only=False) as connection:
            connection.execute(SCHEMA)
            _insert(connection, fingerprint, rows)
            connection.execute("UPDATE ix.state SET generation = 1")
            identity = database.state(connection).identity
            if len(rows) > vectors.EXACT_LIMIT:
                target = Target(**(notes or {}).get("target", {}))
                snapshot.save(staging / fingerprint, database.columns(connection, fingerprint, target), target)
        kind = factory or vectors.default_factory(len(rows))
        numbers = np.arange(len(rows))
        if reranked.is_reranked(kind):
            blocks = reranked.blocks_of(numbers, rows.embedding)
            reranked.write(staging / fingerprint, 1, blocks, metric, kind)
        else:
            built = vectors.build(numbers, rows.embedding, metric, kind)
            vectors.save(built, staging / fingerprint / "vectors-1.faiss")
        write_extras(staging, staging / fingerprint)
        manifest = {
            "format": FORMAT,
            "identity": identity,
            "metric": metric.value,
            "architectures": {fingerprint: {"layers": architecture.to_dict(), "factory": factory, **(notes or {})}},
            **(notes or {}),
            "files": describe_encoder(staging / fingerprint),
            **({"card": describe_file(staging / CARD)} if (staging / CARD).is_file() else {}),
        }
        write_manifest(staging, manifest)
        for file in staging.rglob("*"):
            sync(file)
        _publish(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return IndexStore.open(path)


def create_empty(path: Path, metric: Metric = Metric.COSINE) -> IndexStore:
    """Writes a new index directory without an encoder, complete or not at all: it holds signatures alone."""
    check_target(path, replace=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.parent / f".{path.name}.{os.getpid()}.partial"
    _clear(path)
    try:
        staging.mkdir()
        with Database(staging / DATABASE).open(read_only=False) as connection:
            connection.execute(SCHEMA)
            identity = database.state(connection).identity
        manifest: dict[str, Any] = {
            "format": FORMAT, "identity": identity, "metric": metric.value, "architectures": {}, "files": {}
        }  # fmt: skip
        write_manifest(staging, manifest)
        for file in staging.iterdir():
            sync(file)
        _publish(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return IndexStore.open(path)


def add_architecture(
    path: Path,
    architecture: Architecture,
    rows: Rows,
    *,
    write_extras: Callable[[Path, Path], None],
    metric: Metric = Metric.COSINE,
    notes: dict[str, Any] | None = None,
    factory: str | None = None,
) -> IndexStore:
    """Adds an architecture with its encoder and rows to the index at `path`, complete or not at all.

    As `create_index`, but all that `write_extras` writes goes into the architecture's own sub-directory. The manifest,
    written last, decides whether the index has the architecture.
    """
    check_addition(path, architecture, Target(**(notes or {}).get("target", {})), metric)
    check_rows(rows, None)
    fingerprint, rows = architecture.fingerprint, rows.distinct()
    staging = path / f".{fingerprint}.{os.getpid()}.partial"
    with writing(path) as writer:
        check_addition(path, architecture, Target(**(notes or {}).get("target", {})), metric)
        try:
            staging.mkdir()
            write_extras(staging, staging)
            for file in [*staging.rglob("*"), staging]:
                sync(file)
            shutil.rmtree(path / fingerprint, ignore_errors=True)  # of an earlier attempt that was killed
            staging.rename(path / fingerprint)
            sync(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        with writer.transaction() as connection:
            checks.forget(connection, "architecture = ?", [fingerprint])  # as above
        for start in range(0, len(rows), BATCH):
            with writer.transaction() as connection:
                database.insert(connection, fingerprint, rows.take(np.arange(start, min(start + BATCH, len(rows)))))
        manifest = read_manifest(path)
        manifest["architectures"][fingerprint] = {
            "layers": architecture.to_dict(), "factory": factory, **(notes or {})
        }  # fmt: skip
        manifest["files"] |= describe_encoder(path / fingerprint)
        write_manifest(path, manifest)
        publish(writer, fingerprint)
    return IndexStore.open(path)


def check_addition(path: Path, architecture: Architecture, target: Target, metric: Metric) -> None:
    """Refuses an architecture that the index holds, and another target or metric than the index's."""
    index = IndexStore.open(path)
    if architecture.fingerprint in index.architectures:
        raise UsageError(
            f"{path} already holds {architecture.describe()}; `weightsearch add` adds checkpoints of it, "
            "another --out trains another encoder"
        )
    if (index.target, index.metric) != (target, metric):
        raise UsageError(
            f"{path} judges by {index.target.column} and measures by {index.metric}; "
            "train with the same --target and --metric, or choose another --out"
        )


def describe_encoder(directory: Path) -> dict[str, Any]:
    """Of all files in an encoder's sub-directory but the vectors, by their name in the index directory."""
    files = sorted(
        file for file in directory.iterdir() if file.is_file() and not file.name.startswith(("vectors-", "columns-"))
    )
    return {f"{directory.name}/{file.name}": describe_file(file) for file in files}


def _insert(connection: Any, fingerprint: str, rows: Rows) -> None:
    for start in range(0, len(rows), BATCH):
        database.insert(connection, fingerprint, rows.take(np.arange(start, min(start + BATCH, len(rows)))))


def _clear(path: Path) -> None:
    """Removes what processes that were killed while they made or replaced this index left beside it.

    An older index stays as long as no other has taken its place.
    """
    for left in path.parent.glob(f".{path.name}.*"):
        pid, _, kind = left.name.removeprefix(f".{path.name}.").partition(".")
        if kind not in ("partial", "old") or not pid.isdecimal() or (kind == "old" and not (path / MANIFEST).exists()):
            continue
        if not runs_elsewhere(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _publish(staging: Path, path: Path) -> None:
    """Gives `staging` the name `path`; an older index there is exchanged for it in one step where the system can.

    Elsewhere the older one is moved aside first, so that one of them is always whole.
    """
    if path.exists() and exchange(staging, path):
        sync(path.parent)
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    if path.exists():
        path.rename(old)
    staging.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
