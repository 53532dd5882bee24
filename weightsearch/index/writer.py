"""Changing an index. Rows are committed to DuckDB first; FAISS files follow, and readers can do without them.

Killed at any moment, an index holds every row whose adding was reported, and readers see it as of its last commit.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.plain_values import PlainValues
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import DISK_FULL, is_disk_full, lock
from weightsearch.index import checks, database, filters, migration, reranked, snapshot, vectors
from weightsearch.index.connection import Database, decoded
from weightsearch.index.database import Rows
from weightsearch.index.manifest import DATABASE, read_manifest, write_manifest
from weightsearch.index.paged import DamagedVectorsError
from weightsearch.index.store import IndexStore

LOCK = ".write.lock"
WRITER_WAIT_SECONDS = 10.0  # for another writer, and for readers to let go
BATCH = 10_000  # rows a transaction, so that readers wait less than a second
BATCH_OF_MANY = 100_000  # where rows come in parts: DuckDB's checkpoint after each transaction takes as long for few
READERS_SECONDS = 0.05  # between two transactions, in which those who wait for the lock try again
STALE_ROWS, STALE_SHARE = 500, 0.05  # more rows than both of these behind the database, and FAISS's file is written
STALE_AT_MOST = 20_000  # rows, however many there are: each reader fetches them
CHANGEABLE = (
    "dataset", "run", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "source",
)  # fmt: skip

log = logging.getLogger("weightsearch")


@dataclass(frozen=True)
class AddSummary:
    added: int
    already: int  # rows whose weights the index held before
    generation: int


@dataclass(frozen=True)
class Writer:
    """Who holds the index's write lock."""

    path: Path
    database: Database

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One commit, and one short hold of the database's lock."""
        with self.database.transaction(WRITER_WAIT_SECONDS) as connection:
            yield connection


@contextmanager
def writing(path: str | Path) -> Iterator[Writer]:
    """Holds the index's write lock, waiting up to ten seconds for another writer, who is then named by PID.

    Brings an index of format 1 up to date, and removes what killed writers left.
    """
    path = Path(path)
    IndexStore.open(path)
    try:
        busy = f"{path} is being changed by another process (PID {{pid}}); try again when it is done"
        with lock(path / LOCK, busy, WRITER_WAIT_SECONDS):
            writer = Writer(path, Database(path / DATABASE))
            for leftover in leftovers(path):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
            migration.migrate(path, writer.database, WRITER_WAIT_SECONDS)
            yield writer
    except OSError as error:
        if is_disk_full(error):
            reason = DISK_FULL
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "the directory is read-only; copy the index elsewhere to change it"
        else:
            reason = str(error)
        raise WeightsearchError(f"cannot write {path}: {reason}") from error


def add_rows(
    path: str | Path, fingerprint: str, rows: Rows | Iterable[Rows], *, identity: str | None = None
) -> AddSummary:
    """Adds the rows whose id the architecture lacks; adding twice adds once. When it returns, they are on the disk.

    More rows than fit in memory come as parts. `identity` is that of the index whose encoder embedded them: rows for
    another one are refused.
    """
    with writing(path) as writer:
        index = IndexStore.open(path)
        if identity not in (None, index.identity):
            raise WeightsearchError(f"{path} was replaced by another index meanwhile; add to it again")
        width = index.width(fingerprint)
        with writer.database.open() as connection:
            before = database.generation(connection)
        added = given = 0
        for part in (rows,) if isinstance(rows, Rows) else rows:
            check_rows(part, width)
            part = part.distinct()
            given += len(part)
            for batch in _batches(np.arange(len(part)), BATCH if isinstance(rows, Rows) else BATCH_OF_MANY):
                with writer.transaction() as connection:
                    added += database.insert(connection, fingerprint, part.take(batch))
        follow_with_snapshots(writer, before)
        publish_if_stale(writer, fingerprint)
        with writer.database.open() as connection:
            return AddSummary(added, given - added, database.generation(connection))


def check_rows(rows: Rows, width: int | None) -> None:
    """Refuses embeddings that are not finite or not `width` wide."""
    shape = rows.embedding.shape
    if len(shape) != 2 or shape[0] != len(rows) or (width is not None and shape[1] != width):
        raise WeightsearchError(f"expected embeddings of shape ({len(rows)}, {width or 'D'}), got {shape}")
    finite = np.isfinite(rows.embedding).all(axis=1)
    if not finite.all():
        raise WeightsearchError(f"the embedding of {rows.id[~finite][0]} is not finite; leave that checkpoint out")


def remove_rows(
    path: str | Path, *, ids: Sequence[str] = (), runs: Sequence[str] = (), where: str | None = None
) -> int:
    """Removes the rows with these ids, of these runs, or that pass the filter; returns how many those were.

    Their files' signatures go with them.
    """
    with writing(path) as writer:
        with writer.database.open() as connection:  # read-only: a filter is the user's own SQL
            before = database.generation(connection)
            numbers = _numbers(connection, IndexStore.open(path), ids, runs, where)
        for batch in _batches(numbers):
            with writer.transaction() as connection:
                connection.register("gone", {"number": batch})
                _forget_signatures(connection)
                with checks.following(connection, "number IN (SELECT number FROM gone)"):
                    connection.execute("DELETE FROM ix.checkpoints WHERE number IN (SELECT number FROM gone)")
                connection.unregister("gone")
                connection.execute("UPDATE ix.state SET generation = generation + 1")
        follow_with_snapshots(writer, before, numbers)
        for fingerprint in IndexStore.open(path).architectures:
            publish_if_stale(writer, fingerprint)
        return len(numbers)


def _forget_signatures(connection: duckdb.DuckDBPyConnection) -> None:
    """Removes the signatures of the sources of the rows in `gone`, but for those that another row has as well."""
    tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'ix'").fetchall()
    if ("signatures",) not in tables:
        return
    sources = """
        SELECT source FROM ix.checkpoints WHERE number IN (SELECT number FROM gone) EXCEPT
        SELECT source FROM ix.checkpoints WHERE number NOT IN (SELECT number FROM gone)
    """
    numbers = f"(SELECT number FROM ix.signatures WHERE source IN ({sources}))"
    connection.execute(f"DELETE FROM ix.tensors WHERE signature IN {numbers}")
    connection.execute(f"DELETE FROM ix.signatures WHERE number IN {numbers}")


def _batches(items: Any, size: int = BATCH) -> Iterator[Any]:
    """Up to `size` items a transaction, and a moment for readers between two."""
    for start in range(0, len(items), size):
        if start:
            time.sleep(READERS_SECONDS)
        yield items[start : start + size]


def _numbers(
    connection: duckdb.DuckDBPyConnection, index: IndexStore, ids: Sequence[str], runs: Sequence[str], where: str | None
) -> np.ndarray:
    """Of the rows chosen; raises UsageError for an id or run that no row has."""
    numbers: list[np.ndarray] = []
    for column, wanted in (("id", ids), ("run", runs)):
        for value in wanted:
            rows = connection.execute(f"SELECT number FROM ix.checkpoints WHERE {column} = ?", [value]).fetchall()
            if not rows:
                raise UsageError(f"{index.path} holds no checkpoint with {column} {value}")
            numbers.append(np.array(rows, np.int64).ravel())
    if where is not None:
        numbers += [filters.passing(connection, fingerprint, where) for fingerprint in index.architectures]
    return np.unique(np.concatenate(numbers)) if numbers else np.empty(0, np.int64)


def update_rows(path: str | Path, changes: Mapping[str, Mapping[str, Any]]) -> int:
    """Sets columns of rows by id: those in `CHANGEABLE`, and any name as the user's own. None means unknown.

    Returns how many rows were changed; raises UsageError for an unknown id, a column that cannot be changed, and text
    where a number belongs: then nothing was. Many rows are changed in several steps, between which readers answer; a
    kill leaves the later ones out, and the same call again makes up for them.
    """
    return _update_rows(path, changes, all_of_them=True)


def _update_rows(path: str | Path, changes: Mapping[str, Mapping[str, Any]], *, all_of_them: bool) -> int:
    """As `update_rows`; ids that no row has (any more) are passed over unless `all_of_them` have to be there."""
    checked = {id: dict(checked_value(name, value) for name, value in values.items()) for id, values in changes.items()}
    if not checked:
        return 0
    with writing(path) as writer:
        with writer.database.open() as connection:
            wanted = np.empty(len(checked), object)
            wanted[:] = list(checked)
            connection.register("wanted", {"id": wanted})
            query = "SELECT id, number FROM ix.checkpoints WHERE id IN (SELECT id FROM wanted)"
            rows = connection.execute(query).fetchall()
            connection.unregister("wanted")
            before = database.generation(connection)
        held = {id for id, _ in rows}
        unknown = [id for id in checked if id not in held]
        if unknown and all_of_them:
            raise UsageError(f"{path} holds no checkpoint with id {unknown[0]} ({len(unknown):,} unknown)")
        there = [id for id in checked if id in held]
        for batch in _batches(there):
            with writer.transaction() as connection:
                _update(connection, {id: checked[id] for id in batch})
        follow_with_snapshots(writer, before, np.array([number for _, number in rows], np.int64))
        index = IndexStore.open(path)
        for fingerprint in index.architectures:
            save_snapshot(index, fingerprint)
        return len(there)


def _update(connection: duckdb.DuckDBPyConnection, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """One generation more, with checked values."""
    wanted = np.empty(len(changes), object)
    wanted[:] = list(changes)
    connection.register("wanted", {"id": wanted})
    those = "(SELECT id, recipe, metadata FROM ix.checkpoints WHERE id IN (SELECT id FROM wanted))"
    with_own_columns = {id for id, values in changes.items() if any(name not in CHANGEABLE for name in values)}
    rows = connection.execute(f"SELECT id, metadata FROM {those}").fetchall() if with_own_columns else ()
    metadata = {id: decoded(text, dict) for id, text in rows}
    columns: dict[str, dict[str, Any]] = {}
    for id, values in changes.items():
        for name, value in values.items():
            if name in CHANGEABLE:
                columns.setdefault(name, {})[id] = value
            elif value is None:
                metadata[id].pop(name, None)
            else:
                metadata[id][name] = value
    if with_own_columns:
        columns["metadata"] = {id: json.dumps(metadata[id]) for id in with_own_columns}
    with checks.following(connection, "id IN (SELECT id FROM wanted)"):
        for name, by_id in columns.items():
            _set_column(connection, name, by_id)
    if with_own_columns:
        database.learn_keys(connection, those)
    connection.unregister("wanted")
    connection.execute("UPDATE ix.state SET generation = generation + 1")


def update_where(path: str | Path, where: str, values: Mapping[str, Any]) -> int:
    """Sets the same values in all rows that pass the filter; returns how many those were.

    Rows that another writer removes meanwhile are none of them.
    """
    return _update_rows(path, dict.fromkeys(matching(path, where=where), values), all_of_them=False)


def matching(
    path: str | Path, *, ids: Sequence[str] = (), runs: Sequence[str] = (), where: str | None = None
) -> list[str]:
    """Ids of the rows with these ids, of these runs, or that pass the filter, as `remove_rows` would take them."""
    index = IndexStore.open(path)
    with index.database.open() as connection:
        connection.register("wanted", {"number": _numbers(connection, index, ids, runs, where)})
        result = connection.execute("SELECT id FROM ix.checkpoints WHERE number IN (SELECT number FROM wanted)")
        rows = [id for (id,) in result.fetchall()]
        connection.unregister("wanted")
    return rows


def checked_value(name: str, value: Any) -> tuple[str, Any]:
    """A column's name and value, as they can be kept."""
    if name in (*database.COLUMNS, database.ARCHITECTURE, "embedding") and name not in CHANGEABLE:
        raise UsageError(f"{name} cannot be changed; {', '.join(CHANGEABLE)} and columns of your own can")
    if not name or '"' in name:
        raise UsageError(f"{name!r} cannot be a column's name")
    if isinstance(value, np.generic):
        value = value.item()
    try:
        name, value = PlainValues().clean(name, value)
    except WeightsearchError as error:
        raise UsageError(f"{shown(name)} cannot be set: {error}") from None
    if isinstance(value, float) and not math.isfinite(value):
        return name, None
    if value is None or name not in CHANGEABLE:
        return name, value
    if name in database.NUMBERS:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"{name} = {value!r}: give a number") from None
        return name, number if math.isfinite(number) else None
    return name, str(value)


def _set_column(connection: duckdb.DuckDBPyConnection, name: str, by_id: dict[str, Any]) -> None:
    ids, values = np.empty(len(by_id), object), np.empty(len(by_id), object)
    ids[:], values[:] = list(by_id), list(by_id.values())
    if name in database.NUMBERS:
        values = np.array([np.nan if value is None else value for value in values])
    connection.register("changes", {"id": ids, "value": values})
    value = "if(isnan(value), NULL, value)" if name in database.NUMBERS else "value"
    connection.execute(f"UPDATE ix.checkpoints SET {name} = {value} FROM changes WHERE checkpoints.id = changes.id")
    connection.unregister("changes")


def rebuild(path: str | Path, factory: str | None = None) -> None:
    """Writes every architecture's FAISS file anew from the database, of the type `factory` or as before.

    `factory` is FAISS's name for the type, kept for later; "auto" goes back to the choice by size.
    """
    with writing(path) as writer:
        manifest = read_manifest(writer.path)
        if factory is not None:
            for entry in manifest["architectures"].values():
                entry["factory"] = None if factory == "auto" else factory
            if factory != "auto":  # an unknown one is refused before anything is written
                index = IndexStore.open(path)
                for fingerprint in index.architectures:
                    vectors.make_inner(factory, index.width(fingerprint) or 1, index.metric)
            write_manifest(writer.path, manifest)
        with writer.transaction() as connection:
            connection.execute("DELETE FROM ix.keys")
            database.learn_keys(connection, "ix.checkpoints")
        for fingerprint in manifest["architectures"]:
            publish(writer, fingerprint, anew=True)


def publish_if_stale(writer: Writer, fingerprint: str) -> None:
    """Writes the FAISS file where readers would have to add or leave out many rows by themselves."""
    index = IndexStore.open(writer.path)
    numbers = index.numbers(fingerprint)
    with writer.database.open() as connection:
        generation = database.generation(connection)
    cache = index.newest_cache(fingerprint, generation)
    bound = max(STALE_ROWS, min(STALE_SHARE * len(numbers), STALE_AT_MOST))
    try:
        if cache is None or vectors.behind(cache.numbers, numbers) > bound:
            publish(writer, fingerprint)
        else:
            save_snapshot(index, fingerprint)
    except OSError as error:  # the rows are on the disk, and readers do without this file
        log.warning(
            "the rows are saved, but not the file of vectors (%s): searches open slower until `weightsearch rebuild`",
            error.strerror,
        )


def save_snapshot(index: IndexStore, fingerprint: str) -> None:
    """Writes the columns that searches need beside the vectors, where there are many rows, unless they are there."""
    columns = index.columns(fingerprint)
    if len(columns) > vectors.EXACT_LIMIT and not columns.saved:
        snapshot.save(index.path / fingerprint, columns, index.target)


def follow_with_snapshots(writer: Writer, generation: int, changed: np.ndarray | None = None) -> None:
    """Brings the files of columns, of every architecture, up to date after a change since `generation`.

    Alone the rows with numbers `changed (m,)` may have been changed or removed; where None, alone others been added.
    """
    index = IndexStore.open(writer.path)
    for fingerprint in index.architectures:
        with contextlib.suppress(OSError), writer.database.open() as connection:  # readers do without these files
            directory = writer.path / fingerprint
            fresh = partial(database.columns, connection, fingerprint, index.target)
            if changed is None:
                snapshot.extend(directory, generation, index.target, fresh)
            else:
                connection.register("changed", {"number": changed})
                fresh = partial(fresh, "number IN (SELECT number FROM changed)")
                snapshot.patch(directory, generation, index.target, changed, fresh)
                connection.unregister("changed")


def publish(writer: Writer, fingerprint: str, *, anew: bool = False) -> None:
    """Writes the architecture's FAISS file under a new name, then removes the older ones, which readers may still map.

    What an older exact file holds is copied from it, unless `anew`.
    """
    index = IndexStore.open(writer.path)
    directory = writer.path / fingerprint
    with writer.transaction() as connection:
        generation = database.generation(connection)
        if anew or (directory / f"vectors-{generation}.faiss").exists():
            connection.execute("UPDATE ix.state SET generation = generation + 1")
            generation += 1
    count = index.count(fingerprint)
    if not count:
        return
    factory = index.manifest["architectures"][fingerprint].get("factory") or vectors.default_factory(count)
    path = directory / f"vectors-{generation}.faiss"
    needed = {path.stem}
    if reranked.is_reranked(factory):
        info = _publish_reranked(writer, index, fingerprint, generation, factory, anew=anew)
        needed.add(Path(info.exact["file"]).stem if info.exact else path.stem)
    else:
        numbers, prepared = index.prepared(fingerprint, from_cache=not anew)
        vectors.save(vectors.build(numbers, prepared, index.metric, factory), path)
    for older in directory.glob("vectors-*"):
        if older.stem not in needed or (older.suffix != ".float32" and older.stem != path.stem):
            older.unlink(missing_ok=True)
    save_snapshot(index, fingerprint)


def _publish_reranked(
    writer: Writer, index: IndexStore, fingerprint: str, generation: int, factory: str, *, anew: bool
) -> vectors.CacheInfo:
    """Appends what the newest file lacks, where that can be; writes all anew otherwise, or where that is damaged."""
    directory = writer.path / fingerprint
    numbers = index.numbers(fingerprint)
    cache = None if anew else index.newest_cache(fingerprint, generation)
    if cache is None or cache.paged is None or not reranked.can_grow(cache, numbers):
        cache = before = None
    else:
        before = vectors.cache_files(directory, generation)[0]
        factory = cache.info.factory
    after = -1 if cache is None else int(cache.numbers[-1])
    with writer.database.open() as connection:
        blocks = database.embedding_blocks(connection, fingerprint, after)
        try:
            return reranked.write(directory, generation, blocks, index.metric, factory, before, cache)
        except DamagedVectorsError:
            blocks = database.embedding_blocks(connection, fingerprint)
            return reranked.write(directory, generation, blocks, index.metric, factory)


def leftovers(path: Path) -> list[Path]:
    """Of killed writers: temporary files, FAISS files without their description and the other way round."""
    left = [*path.glob(".*.tmp"), *path.glob("*/.*.tmp"), *path.glob(".*.partial")]
    if read_manifest(path)["format"] != 1:
        ends = {".faiss": ".json", ".json": ".faiss"}
        left += [
            file for file in path.glob("*/vectors-*")
            if file.suffix in ends and not file.with_suffix(ends[file.suffix]).exists()
        ]  # fmt: skip
        for directory in {file.parent for file in path.glob("*/columns-*")}:
            left += snapshot.leftovers(directory)
        left += [file for file in path.glob("*/vectors-*.pages") if not file.with_suffix(".json").exists()]
        for directory in {file.parent for file in path.glob("*/vectors-*.float32")}:
            infos = [vectors.read_info(file, read_manifest(path)) for file in directory.glob("vectors-*.faiss")]
            needed = {info.exact["file"] for info in infos if info is not None and info.exact is not None}
            left += [file for file in directory.glob("vectors-*.float32") if file.name not in needed]
    return left
