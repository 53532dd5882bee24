"""Parquet parts: what shards read of files, one row a file, until they are collected into an index.

A part is written whole and never changed. Its rows say of which file they are, as it was when it was read, and by
which encoder and settings, so that parts of any number of shards, runs and machines lie in one folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.checkpoints.discovery import CheckpointFile
from weightsearch.checkpoints.metadata import Measured, Metadata
from weightsearch.checkpoints.remote.paths import as_path
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import DISK_FULL, clean_text, is_disk_full, replacing
from weightsearch.relations.hashes import ValueHashes
from weightsearch.relations.roles import Role
from weightsearch.relations.signature import Signature, TensorSignature
from weightsearch.relations.store import SCHEME, Signed
from weightsearch.search.file_records import FileRecord

FORMAT = 1
FETCHED = 500  # rows that are taken from DuckDB together
PATTERN = "part-*.parquet"
LEFTOVER_SECONDS = 86_400.0
MEMORY = "512MB"  # for DuckDB while parts are put in order; what is more goes to its temporary folder
_TEXTS = (
    "file", "path", "root", "run", "prefix", "source", "listing", "metadata", "refusal", "described", "network",
    "space", "id", "given", "run_told", "skipped", "notes", "file_hash", "tensors", "signed_run", "unsigned",
    "settings", "encoder",
)  # fmt: skip
_INTEGERS = ("format", "scheme", "share", "rank", "bytes", "modified", "written", "file_bytes")
_NUMBERS = ("predicted", "signed_epoch")
_BLOBS = {"embedding": "<f4", "layers": "<f4", "neighbour_sketch": "<f4", "sketch": "<f2", "raw_sketch": "<f4"}


@dataclass(frozen=True)
class Listed:
    """A file's place in a listing: the listing's name, and the file's rank in it."""

    file: CheckpointFile
    listing: str
    rank: int

    @property
    def path(self) -> Path:
        return self.file.path

    @functools.cached_property
    def stat(self) -> tuple[int, int]:
        """Bytes, and time of change in nanoseconds, when this was first asked for; -1 of a file that is gone."""
        try:
            status = self.file.path.stat()
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    @property
    def key(self) -> str:
        """Names the file wherever it is listed."""
        return hashlib.blake2b(os.fsencode(self.file.path.resolve()), digest_size=16).hexdigest()

    @property
    def share(self) -> int:
        """A number that its path below the given folder alone decides, the same on every machine."""
        place = os.fsencode(self.file.path.relative_to(self.file.root))
        return int.from_bytes(hashlib.blake2b(place, digest_size=7).digest(), "big")


def write_part(
    folder: Path, records: Sequence[FileRecord], listed: Sequence[Listed], settings: str, encoders: Mapping[str, str]
) -> Path:
    """Writes one part, whole or not at all; returns its path.

    Args:
        settings: names how files were read: by which encoders, and where metadata and runs' names come from.
        encoders: what names the encoder of each space that the files were embedded in.
    """
    rows = [_row(record, place, settings, encoders) for record, place in zip(records, listed, strict=True)]
    columns: dict[str, np.ndarray] = {}
    for name in (*_TEXTS, *_BLOBS):
        columns[name] = np.empty(len(rows), object)
        columns[name][:] = [row[name] for row in rows]
    columns |= {name: np.array([row[name] for row in rows], np.int64) for name in _INTEGERS}
    columns |= {name: np.array([row[name] for row in rows], np.float64) for name in _NUMBERS}
    content = repr([(row["file"], row["bytes"], row["modified"], settings) for row in rows])
    path = folder / f"part-{hashlib.blake2b(content.encode(), digest_size=12).hexdigest()}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, duckdb.connect() as connection:
            connection.register("fresh", columns)
            blobs = ", ".join(f"{name}::BLOB AS {name}" for name in _BLOBS)
            texts = ", ".join(f"{name}::VARCHAR AS {name}" for name in _TEXTS)
            numbers = ", ".join((*_INTEGERS, *_NUMBERS))
            connection.execute(
                f"COPY (SELECT {texts}, {numbers}, {blobs} FROM fresh) TO {_quoted(temporary)} "
                "(FORMAT parquet, COMPRESSION zstd)"
            )
    except (OSError, duckdb.Error) as error:
        reason = DISK_FULL if is_disk_full(error) else getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise WeightsearchError(f"cannot write {path}: {reason}") from error
    return path


def _row(record: FileRecord, listed: Listed, settings: str, encoders: Mapping[str, str]) -> dict[str, Any]:
    file, signed = record.file, record.signed
    signature = None if signed is None else signed.signature
    return {
        "format": FORMAT,
        "scheme": SCHEME,
        "settings": settings,
        "encoder": encoders.get(record.space or "", ""),
        "listing": listed.listing,
        "rank": listed.rank,
        "share": listed.share,
        "file": listed.key,
        "bytes": listed.stat[0],
        "modified": listed.stat[1],
        "written": time.time_ns(),
        **{name: clean_text(str(value)) for name, value in {
            "path": file.path.absolute(), "root": file.root.absolute(), "source": record.source,
        }.items()},
        "run": json.dumps(file.run),
        "prefix": json.dumps(file.prefix),
        "metadata": _metadata_text(record.metadata),
        "given": _metadata_text(record.given),
        "run_told": json.dumps(record.run_told),
        "refusal": json.dumps(record.refusal),
        "unsigned": json.dumps(record.unsigned),
        "described": record.described,
        "network": json.dumps(dict(record.network)),
        "space": record.space,
        "id": record.id,
        "embedding": _blob(record.embedding, "embedding"),
        "predicted": record.predicted,
        "layers": _blob(record.layers, "layers"),
        "neighbour_sketch": _blob(record.sketch, "neighbour_sketch"),
        "skipped": json.dumps(record.skipped),
        "notes": json.dumps(record.notes),
        "file_hash": None if signature is None else signature.file_hash,
        "file_bytes": 0 if signature is None else signature.file_bytes or 0,
        "tensors": None if signature is None else json.dumps([_tensor_values(one) for one in signature.tensors]),
        "sketch": None if signature is None else _blob(signature.sketch, "sketch"),
        "raw_sketch": None if signature is None else _blob(signature.raw_sketch, "raw_sketch"),
        "signed_run": None if signed is None else json.dumps(signed.run),
        "signed_epoch": float("nan") if signed is None or signed.epoch is None else signed.epoch,
    }  # fmt: skip


def _record(row: Mapping[str, Any]) -> FileRecord:
    metadata, given = _metadata(row["metadata"]), _metadata(row["given"])
    path, root = as_path(row["path"]), as_path(row["root"])
    signed = None
    if row["tensors"] is not None:
        tensors = tuple(_tensor(values) for values in json.loads(row["tensors"]))
        sketch, raw = (np.frombuffer(row[name], _BLOBS[name]).astype(np.float32) for name in ("sketch", "raw_sketch"))
        epoch = row["signed_epoch"]
        signed = Signed(
            row["source"], Signature(tensors, sketch, raw, row["file_hash"], row["file_bytes"]),
            json.loads(row["signed_run"]), None if epoch is None or epoch != epoch else epoch, row["modified"],
        )  # fmt: skip
    return FileRecord(
        CheckpointFile(path, root, json.loads(row["run"]), prefix=json.loads(row["prefix"])),
        row["source"], metadata, json.loads(row["refusal"]), row["described"], json.loads(row["network"]),
        row["space"], row["id"], _array(row, "embedding"), row["predicted"], _array(row, "layers"),
        _array(row, "neighbour_sketch"), json.loads(row["run_told"]), given,
        tuple(json.loads(row["skipped"])), tuple(json.loads(row["notes"])), signed, json.loads(row["unsigned"]),
    )  # fmt: skip


def _blob(array: np.ndarray | None, name: str) -> bytes | None:
    return None if array is None else array.astype(_BLOBS[name]).tobytes()


def _array(row: Mapping[str, Any], name: str) -> np.ndarray | None:
    return None if row[name] is None else np.frombuffer(row[name], _BLOBS[name])


def _metadata_text(metadata: Metadata | None) -> str | None:
    return None if metadata is None else json.dumps(asdict(metadata), default=str)


def _metadata(text: str | None) -> Metadata | None:
    if text is None:
        return None
    values = json.loads(text)
    values["metrics"] = {name: Measured(**measured) for name, measured in values["metrics"].items()}
    values["left_out"] = tuple(values["left_out"])
    return Metadata(**values)


def _tensor_values(tensor: TensorSignature) -> list[Any]:
    hashes = [tensor.hashes.exact, tensor.hashes.float16, tensor.hashes.bfloat16, tensor.hashes.unordered]
    moments = [tensor.norm, tensor.mean, tensor.kurtosis, tensor.largest]
    return [tensor.name, list(tensor.shape), tensor.dtype, hashes, *moments, tensor.zeros, str(tensor.role)]


def _tensor(values: Sequence[Any]) -> TensorSignature:
    name, shape, dtype, hashes, norm, mean, kurtosis, largest, zeros, role = values
    return TensorSignature(
        name, tuple(shape), dtype, ValueHashes(*hashes), norm, mean, kurtosis, largest, zeros, Role(role)
    )


def remove_leftovers(folder: Path) -> None:
    """Removes what workers that were killed while they wrote a part left, once no worker can be writing it still."""
    for left in folder.glob(".part-*.tmp"):
        with contextlib.suppress(OSError):  # another worker was faster
            if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
                left.unlink()


def finished(folder: Path, share: tuple[int, int], settings: str) -> set[tuple[str, int, int]]:
    """Files (key, bytes, time) of a shard `(i, n)` that parts in `folder` hold as these settings would read them."""
    if not any(folder.glob(PATTERN)):
        return set()
    with _reading(folder) as connection:
        rows = connection.execute(
            f"SELECT file, bytes, modified FROM {_parts(folder)} "
            "WHERE share % ? = ? AND settings = ? AND format = ? AND scheme = ?",
            [share[1], share[0], settings, FORMAT, SCHEME],
        ).fetchall()
    return set(rows)


@dataclass(frozen=True)
class PartsSummary:
    """What lies in a folder of parts: files, each once, and by what they were embedded and read."""

    files: int
    encoders: dict[str, str]  # by space


def read_records(folder: Path) -> Iterator[FileRecord]:
    """All files' records in the order of their listing, each file as it was last.

    Memory is bounded by what DuckDB is given; the rest is sorted on the disk.
    """
    with _reading(folder) as connection:
        source = f"{_parts(folder, 'filename = true, file_row_number = true')}"
        connection.execute(f"""
            CREATE TEMP TABLE wanted AS
            SELECT filename, file_row_number, row_number() OVER (ORDER BY listing, rank, file) AS place FROM {source}
            QUALIFY row_number() OVER (
                PARTITION BY file -- a URL's `modified` stands for its ETag, and tells no time
                ORDER BY CASE WHEN contains(source, '://') THEN 0 ELSE modified END DESC, written DESC, filename
            ) = 1
        """)
        result = connection.execute(
            f"SELECT p.* FROM {source} p JOIN wanted USING (filename, file_row_number) ORDER BY place"
        )
        names = [name for name, *_ in result.description or ()]
        while rows := result.fetchmany(FETCHED):
            for row in rows:
                yield _record(dict(zip(names, row, strict=True)))


def summarise(folder: Path) -> PartsSummary:
    """Raises UsageError where there is no part, and WeightsearchError for parts that this version cannot take."""
    if not any(folder.glob(PATTERN)):
        raise UsageError(f"{folder} holds no parts; make some with `weightsearch embed SRC --out {folder}`")
    with _reading(folder) as connection:
        source = _parts(folder)
        kinds = connection.execute(f"SELECT DISTINCT format, scheme FROM {source}").fetchall()
        if kinds != [(FORMAT, SCHEME)]:
            raise WeightsearchError(
                f"{folder} holds parts of another version of weightsearch; remove them and run `embed` again"
            )
        [(files,)] = connection.execute(f"SELECT count(DISTINCT file) FROM {source}").fetchall()
        spaces = connection.execute(
            f"SELECT DISTINCT space, encoder FROM {source} WHERE space IS NOT NULL ORDER BY ALL"
        ).fetchall()
    if len({space for space, _ in spaces}) < len(spaces):
        raise WeightsearchError(
            f"{folder} holds parts by several encoders of one architecture; give each encoder a folder of its own"
        )
    return PartsSummary(files, dict(spaces))


@contextmanager
def _reading(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="weightsearch-", ignore_cleanup_errors=True) as spill:
        try:
            with duckdb.connect() as connection:
                connection.execute(f"SET memory_limit = '{MEMORY}'")
                connection.execute(f"SET temp_directory = {_quoted(Path(spill))}")
                connection.execute("SET preserve_insertion_order = false")
                yield connection
        except duckdb.Error as error:
            reason = DISK_FULL if is_disk_full(error) else str(error).splitlines()[0]
            raise WeightsearchError(
                f"the parts in {folder} cannot be read ({reason}); remove a damaged one and run its shard again"
            ) from error


def _parts(folder: Path, options: str = "") -> str:
    return f"read_parquet({_quoted(folder / PATTERN)}{', ' + options if options else ''})"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
