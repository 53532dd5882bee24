"""Signatures in an index's DuckDB, and the search among them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.files import clean_text
from weightsearch.index import checks
from weightsearch.index.connection import Database, decoded
from weightsearch.index.manifest import DATABASE
from weightsearch.index.writer import Writer, writing
from weightsearch.relations import sketches
from weightsearch.relations.hashes import ValueHashes
from weightsearch.relations.roles import Role
from weightsearch.relations.signature import SKETCH_WIDTH, Signature, TensorSignature

log = logging.getLogger("weightsearch")

SCHEME = 2  # of hashes and sketches: signatures by another one cannot be compared, and are made anew
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS ix.signatures (
    number BIGINT PRIMARY KEY,
    scheme INTEGER NOT NULL DEFAULT {SCHEME},
    source VARCHAR NOT NULL UNIQUE, -- a file, or zoo-path#run/epoch
    content VARCHAR NOT NULL,       -- names equal weights, whatever their names, layout and order
    exact VARCHAR NOT NULL,         -- the same with order, as stored, as float16 and as bfloat16
    float16 VARCHAR NOT NULL,
    bfloat16 VARCHAR NOT NULL,
    shapes VARCHAR NOT NULL,        -- names equal shapes of weights
    file_hash VARCHAR,              -- SHA-256
    file_bytes BIGINT,
    modified BIGINT,                -- of the file, in nanoseconds
    numbers BIGINT NOT NULL,
    run VARCHAR,
    epoch DOUBLE,
    sketch BLOB NOT NULL,           -- float16
    raw_sketch BLOB NOT NULL,       -- float32
    head_hash UBIGINT,              -- checksums (see `index.checks`)
    rest_hash UBIGINT
);
CREATE TABLE IF NOT EXISTS ix.tensors (
    signature BIGINT NOT NULL, place INTEGER NOT NULL, name VARCHAR NOT NULL, shape VARCHAR NOT NULL,
    dtype VARCHAR NOT NULL, role VARCHAR NOT NULL, exact UBIGINT NOT NULL, float16 UBIGINT NOT NULL,
    bfloat16 UBIGINT NOT NULL, unordered UBIGINT NOT NULL, norm DOUBLE, mean DOUBLE, kurtosis DOUBLE, largest DOUBLE,
    zeros BIGINT
);
"""
COLUMNS = (
    "number", "source", "content", "exact", "float16", "bfloat16", "shapes", "file_hash", "file_bytes", "modified",
    "numbers", "run", "epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Signed:
    """A signature and where it is of."""

    source: str
    signature: Signature
    run: str | None = None
    epoch: float | None = None
    modified: int | None = None


@dataclass(frozen=True)
class SignedColumns:
    """Signatures as columns of the tables: arrays, which travel between processes at little cost.

    `signatures` has all but their numbers, `tensors` as `signature` the place of each one's signature.
    """

    signatures: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]

    @classmethod
    def of(cls, signed: Sequence[Signed]) -> SignedColumns:
        """Columns of signatures; of several of one source the last."""
        signed = list({one.source: one for one in signed}.values())
        return cls(_rows(signed), _tensors(signed))

    @classmethod
    def joined(cls, blocks: Sequence[SignedColumns]) -> SignedColumns:
        """Blocks one behind the other; of several signatures of one source the last."""
        if len(blocks) == 1:
            return blocks[0]
        starts = np.cumsum([0, *map(len, blocks)])
        signatures = {
            name: np.concatenate([block.signatures[name] for block in blocks]) for name in blocks[0].signatures
        }
        tensors = {name: np.concatenate([block.tensors[name] for block in blocks]) for name in blocks[0].tensors}
        tensors["signature"] += np.repeat(starts[:-1], [len(block.tensors["signature"]) for block in blocks])
        kept = sorted({source: place for place, source in enumerate(signatures["source"])}.values())
        if len(kept) < starts[-1]:
            of_kept = np.isin(tensors["signature"], kept)
            signatures = {name: column[kept] for name, column in signatures.items()}
            tensors = {name: column[of_kept] for name, column in tensors.items()}
            tensors["signature"] = np.searchsorted(kept, tensors["signature"])
        return cls(signatures, tensors)

    def __len__(self) -> int:
        return len(self.signatures["source"])


@dataclass(frozen=True)
class Known:
    """An index's signatures without their tensors, by rising number: columns `(n,)`, sketches `(n, 512)` float16."""

    columns: dict[str, np.ndarray]
    sketches: np.ndarray

    def __len__(self) -> int:
        return len(self.sketches)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]


def shapes_of(signature: Signature) -> str:
    import hashlib

    shapes = sorted(tensor.sorted_shape for tensor in signature.weights)
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def add_signatures(path: str | Path, signed: Sequence[Signed]) -> int:
    """Keeps signatures in the index at `path`, in one transaction; those of a source that is known are replaced."""
    return add_columns(path, [SignedColumns.of(signed)])


def add_columns(path: str | Path, blocks: Sequence[SignedColumns]) -> int:
    """As `add_signatures`, of columns."""
    blocks = [block for block in blocks if len(block)]
    if not blocks:
        return 0
    signed = SignedColumns.joined(blocks)
    with writing(path) as writer:
        _add(writer, signed)
        publish_sketches(writer)
    return len(signed)


def _add(writer: Writer, signed: SignedColumns) -> None:
    with writer.transaction() as connection:
        _make_tables(connection)
        connection.register("given", {"source": signed.signatures["source"]})
        old = "(SELECT number FROM ix.signatures WHERE source IN (SELECT source FROM given))"
        connection.execute(f"DELETE FROM ix.tensors WHERE signature IN {old}")
        connection.execute("DELETE FROM ix.signatures WHERE source IN (SELECT source FROM given)")
        connection.unregister("given")
        last = connection.execute("SELECT coalesce(max(number), -1) FROM ix.signatures").fetchall()[0][0]
        numbers = max(last, sketches.last_number(writer.path)) + 1 + np.arange(len(signed))
        _insert(connection, "signatures", signed.signatures | {"number": numbers})
        _insert(connection, "tensors", signed.tensors | {"signature": numbers[signed.tensors["signature"]]})
        if len(numbers):
            checks.renew_signatures(connection, int(numbers[0]))


def publish_sketches(writer: Writer) -> None:
    """Writes what the files of sketches lack, where that is much."""
    try:
        with writer.database.open() as connection:
            sketches.publish_if_stale(writer.path, connection, SCHEME)
    except OSError as error:  # readers do without these files
        log.warning("the signatures are saved, but not the files of their sketches (%s): questions take longer", error)


def remove_signatures(path: str | Path, sources: Iterable[str]) -> int:
    """Forgets the signatures of these sources; returns how many those were."""
    with writing(path) as writer, writer.transaction() as connection:
        _make_tables(connection)
        connection.register("given", {"source": objects(sources)})
        old = "(SELECT number FROM ix.signatures WHERE source IN (SELECT source FROM given))"
        count = int(connection.execute(f"SELECT count(*) FROM {old}").fetchall()[0][0])
        connection.execute(f"DELETE FROM ix.tensors WHERE signature IN {old}")
        connection.execute("DELETE FROM ix.signatures WHERE source IN (SELECT source FROM given)")
        connection.unregister("given")
    return count


def read_known(path: str | Path) -> Known:
    """The signatures of the index at `path`, without their tensors; none where it has none."""
    with Database(Path(path) / DATABASE).open() as connection:
        columns = None
        if has_tables(connection):
            columns = _sound_columns(connection, (*COLUMNS, "sketch"))
    if columns is None or not len(columns["number"]):
        return Known({name: np.empty(0, object) for name in COLUMNS}, np.empty((0, SKETCH_WIDTH), np.float16))
    matrix = np.frombuffer(b"".join(columns["sketch"]), "<f2").reshape(-1, SKETCH_WIDTH)
    return Known({name: _plain(columns[name]) for name in COLUMNS}, matrix)


def _sound_columns(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of all signatures by number, after the signatures were compared with their checksums."""
    is_sound = checks.signature_sql(connection)[0]
    columns = connection.execute(
        f"SELECT {', '.join(names)}, {is_sound} AS is_sound FROM ix.signatures ORDER BY number"
    ).fetchnumpy()
    checks.expect([bool(np.all(columns.pop("is_sound")))])
    return columns


def read_numbers(connection: duckdb.DuckDBPyConnection, path: str | Path) -> np.ndarray:
    """Numbers `(n,)` int64 of all signatures, rising. Raises WeightsearchError, where the index at `path` has none.

    All are compared with their checksums.
    """
    numbers = np.empty(0, np.int64)
    if has_tables(connection):
        numbers = _sound_columns(connection, ["number"])["number"]
    if not len(numbers):
        raise WeightsearchError(
            f"{path} keeps no signatures, which this is told from: "
            f"add the files with `weightsearch add FOLDER --index {path}`"
        )
    return numbers


def read_columns(path: str | Path, columns: Sequence[str], numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Columns `(n,)` of these signatures, by rising number; what is gone is left out."""
    with Database(Path(path) / DATABASE).open() as connection:
        connection.register("given", {"number": np.asarray(numbers, np.int64)})
        found = connection.execute(
            f"SELECT {', '.join(columns)} FROM ix.signatures WHERE number IN (SELECT number FROM given) ORDER BY number"
        ).fetchnumpy()
        connection.unregister("given")
    return {name: _plain(column) for name, column in found.items()}


def signed_files(path: str | Path, sources: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Bytes and time in nanoseconds of those of these files that the index at `path` has signatures of."""
    with Database(Path(path) / DATABASE).open() as connection:
        if not has_tables(connection):
            return {}
        connection.register("given", {"source": objects(sources)})
        rows = connection.execute(
            "SELECT source, file_bytes, modified FROM ix.signatures WHERE source IN (SELECT source FROM given)"
        ).fetchall()
        connection.unregister("given")
    return {source: (size, modified) for source, size, modified in rows}


def read_signatures(path: str | Path, numbers: Sequence[int]) -> dict[int, Signature]:
    """Whole signatures by number."""
    if not len(numbers):
        return {}
    among = ",".join(str(int(number)) for number in numbers)
    with Database(Path(path) / DATABASE).open() as connection:
        is_sound, rest = checks.signature_sql(connection)
        heads = connection.execute(
            f"SELECT number, sketch, raw_sketch, file_hash, file_bytes, {is_sound}, {rest} FROM ix.signatures "
            f"WHERE number IN ({among})"
        ).fetchall()
        rows = connection.execute(
            "SELECT signature, name, shape, dtype, role, exact, float16, bfloat16, unordered, norm, mean, kurtosis, "
            f"largest, zeros, {checks.TENSOR_HASH} FROM ix.tensors WHERE signature IN ({among}) "
            "ORDER BY signature, place"
        ).fetchall()
        hashes: Counter[int] = Counter()
        for number, *_, cells in rows:
            hashes[number] ^= cells
        checks.expect(agrees and told in (None, hashes[number]) for number, *_, agrees, told in heads)
    tensors: dict[int, list[TensorSignature]] = {}
    for number, name, shape, dtype, role, exact, half, brain, unordered, *numbers_of, _ in rows:
        norm, mean, kurtosis, largest, zeros = numbers_of
        tensors.setdefault(number, []).append(
            TensorSignature(
                name,
                tuple(decoded(shape, list)),
                dtype,
                ValueHashes(exact, half, brain, unordered),
                norm,
                mean,
                kurtosis,
                largest,
                zeros,
                Role(role),
            )
        )
    return {
        number: Signature(
            tuple(tensors.get(number, ())),
            np.frombuffer(sketch, "<f2").astype(np.float32),
            np.frombuffer(raw, "<f4"),
            file_hash,
            file_bytes,
        )
        for number, sketch, raw, file_hash, file_bytes, *_ in heads
    }


def read_raw_sketches(path: str | Path) -> np.ndarray:
    """Unnormalised sketches `(n, 512)` of all signatures, in the order of `read_known`."""
    with Database(Path(path) / DATABASE).open() as connection:
        blobs = connection.execute("SELECT raw_sketch FROM ix.signatures ORDER BY number").fetchnumpy()["raw_sketch"]
    return np.frombuffer(b"".join(blobs), "<f4").reshape(-1, SKETCH_WIDTH)


def _make_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the tables where they are not there, or hold signatures by another scheme."""
    if not has_tables(connection):
        connection.execute("DROP TABLE IF EXISTS ix.signatures; DROP TABLE IF EXISTS ix.tensors")
    connection.execute(SCHEMA)


def has_tables(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether there are signatures' tables, by this scheme."""
    columns = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE database_name = 'ix' AND table_name = 'signatures'"
    ).fetchall()
    if ("scheme",) not in columns:
        return False
    return connection.execute("SELECT scheme FROM ix.signatures LIMIT 1").fetchall() in ([], [(SCHEME,)])


def _rows(signed: Sequence[Signed]) -> dict[str, np.ndarray]:
    rounded = [one.signature.rounded_content for one in signed]
    nan = float("nan")
    return {
        "source": objects(one.source for one in signed),
        "content": _column([one.signature.content for one in signed]),
        **{name: _column([row[k] for row in rounded]) for k, name in enumerate(("exact", "float16", "bfloat16"))},
        "shapes": _column([shapes_of(one.signature) for one in signed]),
        "file_hash": _column([one.signature.file_hash for one in signed]),
        "file_bytes": np.array([one.signature.file_bytes or 0 for one in signed], np.int64),
        "modified": np.array([one.modified or 0 for one in signed], np.int64),
        "numbers": np.array([one.signature.numbers for one in signed], np.int64),
        "run": objects(one.run for one in signed),
        "epoch": np.array([nan if one.epoch is None else float(one.epoch) for one in signed]),
        "sketch": _column([one.signature.sketch.astype("<f2").tobytes() for one in signed]),
        "raw_sketch": _column([one.signature.raw_sketch.astype("<f4").tobytes() for one in signed]),
    }


def _tensors(signed: Sequence[Signed]) -> dict[str, np.ndarray]:
    counts = [len(one.signature.tensors) for one in signed]
    tensors = [tensor for one in signed for tensor in one.signature.tensors]

    def integers(name: str) -> np.ndarray:
        return np.fromiter(map(attrgetter(f"hashes.{name}"), tensors), np.uint64, len(tensors))

    def floats(name: str) -> np.ndarray:
        return np.fromiter(map(attrgetter(name), tensors), np.float64, len(tensors))

    return {
        "signature": np.repeat(np.arange(len(signed)), counts),
        "place": np.concatenate([np.arange(count, dtype=np.int32) for count in (0, *counts)]),
        "name": _column([_name_text(tensor.name) for tensor in tensors]),
        "shape": _column([_shape_text(tensor.shape) for tensor in tensors]),
        "dtype": _column([tensor.dtype for tensor in tensors]),
        "role": _column([tensor.role.value for tensor in tensors]),
        **{name: integers(name) for name in ("exact", "float16", "bfloat16", "unordered")},
        **{name: floats(name) for name in ("norm", "mean", "kurtosis", "largest")},
        "zeros": np.array([tensor.zeros for tensor in tensors], np.int64),
    }


def _insert(connection: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, np.ndarray]) -> None:
    connection.register("fresh", dict(columns))
    connection.execute(f"INSERT INTO ix.{table} BY NAME SELECT * FROM fresh")
    connection.unregister("fresh")


def objects(values: Iterable[Any]) -> np.ndarray:
    """A column for DuckDB, whose texts it can hold."""
    return _column([clean_text(value) if isinstance(value, str) else value for value in values])


def _column(values: Sequence[Any]) -> np.ndarray:
    """As `objects`, of texts of our own."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


_name_text = lru_cache(maxsize=4096)(lambda name: clean_text(name.encode("utf-8", "replace").decode()))
_shape_text = lru_cache(maxsize=4096)(json.dumps)


def _plain(column: Any) -> np.ndarray:
    if isinstance(column, np.ma.MaskedArray):
        if column.dtype == object:
            values = np.array(np.ma.getdata(column))
            values[np.ma.getmaskarray(column)] = None
            return values
        return np.ma.filled(column.astype(np.float64), np.nan)
    return np.asarray(column)
