"""Checksums of cells. DuckDB's own, of a block, is the same where words of the block change places.

All are made of values together with their row's number, so that a value in another row's place is seen:

- a row has four, by DuckDB's `hash`: of what a neighbour shows, of its other columns, of its embedding and of its
  description, for questions that read a few rows;
- an architecture has one for each column, the exclusive or of all rows' cells, for questions that read a whole column;
- a signature (see `relations.store`) has two: of what names it and its sketch, and of all else, its tensors included.

Whoever changes rows changes both in the same transaction, from what the rows were to what they are: a cell that rotted
meanwhile is never taken for the truth. An index without checksums is read as it is, and gets them when it is next
written; so it is with checksums of a DuckDB that hashes in another way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import duckdb
import numpy as np

from weightsearch.index.connection import DamagedCell, decoded
from weightsearch.index.schema import ARCHITECTURE, COLUMNS, HASHING, NUMBERS, DatabaseState, first, state
from weightsearch.types import Target

SHOWN = ("number", ARCHITECTURE, "id", "test_accuracy", "epoch", "run", "recipe", "dataset", "metadata", "source")
ROW_HASHES = {
    "shown_hash": f"hash({', '.join(SHOWN)})",
    "other_hash": f"hash(number, {', '.join(name for name in COLUMNS if name not in SHOWN)})",
    "embedding_hash": "hash(number, embedding)",
    "description_hash": "hash(number, description)",
}
SIGNATURE_HASHES = ("head_hash", "rest_hash")
HEAD_HASH = (
    "hash(number, scheme, source, content, exact, float16, bfloat16, shapes, file_hash, file_bytes, modified, numbers, "
    "run, epoch, sketch)"
)
RAW_HASH = "hash(number, raw_sketch)"  # with its tensors' hashes by exclusive or: a signature's `rest_hash`
TENSOR_HASH = (
    "hash(signature, place, name, shape, dtype, role, exact, float16, bfloat16, unordered, norm, mean, kurtosis, "
    "largest, zeros)"
)
CHECKED = (*COLUMNS[1:], "embedding", "description")  # columns with a checksum over all rows
ALWAYS = "true"  # as `row_sql` where there is nothing to compare with
ROWS_AT_A_TIME = 2**20
MIXED_AT_A_TIME = 2**14
ODD = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # splitmix64's


@cache
def _hashing() -> int:
    with duckdb.connect(":memory:") as connection:
        return int(first(connection, f"SELECT {HASHING}")[0])


def are_kept(state: DatabaseState) -> bool:
    """Whether a database in this state has checksums that can be compared."""
    return state.identity is not None and state.hashing is not None and state.hashing == _hashing()


def row_sql(connection: duckdb.DuckDBPyConnection, *kinds: str) -> str:
    """An SQL expression over a row of `ix.checkpoints`: whether its checksums of these kinds agree."""
    if not are_kept(state(connection)):
        return ALWAYS
    return " AND ".join(f"{kind} IS NOT DISTINCT FROM {ROW_HASHES[kind]}" for kind in kinds)


def expect(are_sound: Iterable[bool]) -> None:
    """Raises DamagedCell where a row that was read is not as it was written."""
    if not all(are_sound):
        raise DamagedCell("a row of its tables is not as it was written")


def cell_sql(name: str) -> str:
    """What stands for a column's cell in the column's checksum: a number with NaN for none, or the hash of a text."""
    if name in NUMBERS:
        return f"coalesce({name}, 'NaN')"
    return "hash(coalesce(run, id))" if name == "run" else f"hash({name})"


def digest(numbers: np.ndarray, cells: np.ndarray) -> int:
    """A column's checksum, of some rows: the exclusive or of each row's number mixed with its cell, both `(n,)`."""
    numbers, cells = np.asarray(numbers, np.int64).view(np.uint64), np.ascontiguousarray(cells).view(np.uint64)
    mixed, shifted = np.empty((2, min(len(cells), MIXED_AT_A_TIME)), np.uint64)
    value = 0
    for start in range(0, len(cells), MIXED_AT_A_TIME):  # in a processor's cache, where it takes a third of the time
        some = slice(start, start + MIXED_AT_A_TIME)
        out = mixed[: len(cells[some])]
        np.multiply(numbers[some], ODD[0], out=out)
        out ^= cells[some]
        out *= ODD[1]
        out ^= np.right_shift(out, np.uint64(29), out=shifted[: len(out)])
        out *= ODD[2]
        value ^= int(np.bitwise_xor.reduce(out))
    return value


def compare(connection: duckdb.DuckDBPyConnection, fingerprint: str, found: Mapping[str, int]) -> None:
    """Raises DamagedCell where a column's checksum, of all rows of an architecture, is not the one that was written."""
    kept = _kept(connection).get(fingerprint, {}) if are_kept(state(connection)) else found
    for name, value in found.items():
        if value != kept.get(name, 0):
            raise DamagedCell(f"its column {name} is not as it was written")


def verify(connection: duckdb.DuckDBPyConnection, fingerprint: str, names: Iterable[str]) -> None:
    """Reads these columns of an architecture, and raises DamagedCell where one is not as it was written."""
    names = [name for name in dict.fromkeys(names) if name in CHECKED]
    if names and are_kept(state(connection)):
        compare(connection, fingerprint, _whole(connection, names, fingerprint))


def verify_target(connection: duckdb.DuckDBPyConnection, fingerprint: str, target: Target) -> None:
    """As `verify`, where the target is read from the user's columns."""
    verify(connection, fingerprint, () if target.column in NUMBERS else ("recipe", "metadata"))


def _kept(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    """The checksums of columns by architecture; one without rows may lack them."""
    return decoded(state(connection).digests, dict)


def _keep(connection: duckdb.DuckDBPyConnection, sums: dict[str, dict[str, int]]) -> None:
    connection.execute("UPDATE ix.state SET digests = ?", [json.dumps(sums)])


def _whole(connection: duckdb.DuckDBPyConnection, names: Sequence[str], fingerprint: str) -> dict[str, int]:
    """The checksums of columns over all rows of an architecture, some rows at a time."""
    sums = dict.fromkeys(names, 0)
    last = first(connection, "SELECT coalesce(max(number), -1) FROM ix.checkpoints")[0]
    for start in range(0, last + 1, ROWS_AT_A_TIME):
        some = f"number >= {start} AND number < {start + ROWS_AT_A_TIME}"
        for name, value in _of_rows(connection, names, some, fingerprint).items():
            sums[name] ^= value
    return sums


def _of_rows(
    connection: duckdb.DuckDBPyConnection, names: Sequence[str], condition: str, fingerprint: str
) -> dict[str, int]:
    """The checksums of columns over the rows of an architecture under a condition."""
    selected = ", ".join(f"{cell_sql(name)} AS check_{name}" for name in names)
    rows = connection.execute(
        f"SELECT number, {selected} FROM ix.checkpoints WHERE architecture = ? AND ({condition})", [fingerprint]
    ).fetchnumpy()
    return {name: digest(rows["number"], rows[f"check_{name}"]) for name in names}


def _by_architecture(connection: duckdb.DuckDBPyConnection, condition: str) -> dict[str, dict[str, int]]:
    """The checksums of all columns over the rows under a condition."""
    found = connection.execute(f"SELECT DISTINCT architecture FROM ix.checkpoints WHERE {condition}").fetchall()
    return {fingerprint: _of_rows(connection, CHECKED, condition, fingerprint) for (fingerprint,) in found}


@contextmanager
def following(connection: duckdb.DuckDBPyConnection, condition: str) -> Iterator[None]:
    """Brings the checksums after a change, within the block, of the rows that `condition` names before it and after.

    Raises DamagedCell, before anything is changed, where one of those rows is not as it was written.
    """
    sound = row_sql(connection, *ROW_HASHES)
    if sound != ALWAYS:
        rows = connection.execute(f"SELECT DISTINCT {sound} FROM ix.checkpoints WHERE {condition}").fetchall()
        expect(is_sound for (is_sound,) in rows)
    before = _by_architecture(connection, condition)
    yield
    connection.execute(f"UPDATE ix.checkpoints SET {_row_hashes()} WHERE {condition}")
    _move(connection, before, _by_architecture(connection, condition))


def added(connection: duckdb.DuckDBPyConnection, first_number: int) -> None:
    """Brings the columns' checksums after rows from `first_number` on were added with their own."""
    _move(connection, {}, _by_architecture(connection, f"number >= {first_number}"))


def _move(
    connection: duckdb.DuckDBPyConnection, before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]
) -> None:
    kept = _kept(connection)
    for fingerprint in {*before, *after}:
        old, gone, new = (part.get(fingerprint, {}) for part in (kept, before, after))
        kept[fingerprint] = {name: old.get(name, 0) ^ gone.get(name, 0) ^ new.get(name, 0) for name in CHECKED}
    _keep(connection, kept)


def _row_hashes() -> str:
    return ", ".join(f"{name} = {expression}" for name, expression in ROW_HASHES.items())


def renew(connection: duckdb.DuckDBPyConnection) -> None:
    """Gives all rows checksums as they are, whatever they had: where there are none, or none that can be compared."""
    for column in ROW_HASHES:
        connection.execute(f"ALTER TABLE ix.checkpoints ADD COLUMN IF NOT EXISTS {column} UBIGINT")
    connection.execute("ALTER TABLE ix.state ADD COLUMN IF NOT EXISTS hashing UBIGINT")
    connection.execute("ALTER TABLE ix.state ADD COLUMN IF NOT EXISTS digests VARCHAR")
    connection.execute(f"UPDATE ix.checkpoints SET {_row_hashes()}")
    found = connection.execute("SELECT DISTINCT architecture FROM ix.checkpoints").fetchall()
    _keep(connection, {fingerprint: _whole(connection, CHECKED, fingerprint) for (fingerprint,) in found})
    if "scheme" in _columns_of_signatures(connection):
        renew_signatures(connection)
    connection.execute(f"UPDATE ix.state SET hashing = {HASHING}")


def _columns_of_signatures(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """None where there is no such table."""
    columns = "SELECT column_name FROM duckdb_columns() WHERE database_name = 'ix' AND table_name = 'signatures'"
    return [name for (name,) in connection.execute(columns).fetchall()]


def signatures_lack(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether there are signatures in tables of before, which have no room for checksums."""
    columns = _columns_of_signatures(connection)
    return "scheme" in columns and not {*SIGNATURE_HASHES} <= {*columns}


def renew_signatures(connection: duckdb.DuckDBPyConnection, first_number: int = 0) -> None:
    """Gives signatures, from a number on, checksums as they are; adds the columns to tables of before."""
    if signatures_lack(connection):
        first_number = 0
        for column in SIGNATURE_HASHES:
            connection.execute(f"ALTER TABLE ix.signatures ADD COLUMN IF NOT EXISTS {column} UBIGINT")
    connection.execute(
        f"UPDATE ix.signatures SET head_hash = {HEAD_HASH}, rest_hash = {RAW_HASH} WHERE number >= {first_number}"
    )
    connection.execute(
        f"UPDATE ix.signatures SET rest_hash = xor(rest_hash, of_tensors) FROM (SELECT signature, "
        f"bit_xor({TENSOR_HASH}) AS of_tensors FROM ix.tensors WHERE signature >= {first_number} GROUP BY signature) t "
        "WHERE t.signature = signatures.number"
    )


def signature_sql(connection: duckdb.DuckDBPyConnection) -> tuple[str, str]:
    """SQL over a row of `ix.signatures`: whether its head is sound, and what its tensors' hashes have to come to.

    The second is NULL where the row has no checksum that can be compared.
    """
    if not are_kept(state(connection)) or not {*SIGNATURE_HASHES} <= {*_columns_of_signatures(connection)}:
        return ALWAYS, "NULL"
    return f"(head_hash IS NULL OR head_hash = {HEAD_HASH})", f"xor(rest_hash, {RAW_HASH})"


def _damaged_signatures(connection: duckdb.DuckDBPyConnection) -> list[int]:
    """Numbers of those that are not as they were written."""
    head, rest = signature_sql(connection)
    if head == ALWAYS:
        return []
    rows = connection.execute(
        f"WITH told AS (SELECT number, {head} AS is_sound, {rest} AS rest FROM ix.signatures), "
        f"seen AS (SELECT signature, bit_xor({TENSOR_HASH}) AS rest FROM ix.tensors GROUP BY signature) "
        "SELECT number FROM told LEFT JOIN seen ON number = signature "
        "WHERE NOT is_sound OR told.rest <> coalesce(seen.rest, 0) ORDER BY number"
    ).fetchall()
    return [number for (number,) in rows]


def forget(connection: duckdb.DuckDBPyConnection, condition: str, fingerprints: Sequence[str]) -> int:
    """Removes all rows of the architectures that `condition` names, with their checksums; returns how many rows."""
    statement = f"DELETE FROM ix.checkpoints WHERE {condition} RETURNING architecture"
    removed = connection.execute(statement, fingerprints).fetchall()
    gone = {fingerprint for (fingerprint,) in removed}
    _keep(connection, {name: sums for name, sums in _kept(connection).items() if name not in gone})
    return len(removed)


def damage(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What is not as it was written, in the table of rows, in words."""
    if not are_kept(state(connection)):
        return []
    sound = row_sql(connection, *ROW_HASHES)
    rows = connection.execute(f"SELECT number FROM ix.checkpoints WHERE NOT ({sound}) ORDER BY number").fetchall()
    words = [f"{len(rows):,} rows that are not as they were written: number {rows[0][0]}, ..."] if rows else []
    kept = _kept(connection)
    there = {name for (name,) in connection.execute("SELECT DISTINCT architecture FROM ix.checkpoints").fetchall()}
    for fingerprint in {*kept, *there}:
        sums = _whole(connection, CHECKED, fingerprint)
        names = [name for name in CHECKED if sums[name] != kept.get(fingerprint, {}).get(name, 0)]
        if names:
            words.append(f"{fingerprint}: columns that are not as they were written: {', '.join(names)}")
    if signatures := _damaged_signatures(connection):
        words.append(
            f"{len(signatures):,} signatures that are not as they were written: number {signatures[0]}, ...; "
            "add their files again"
        )
    return words
