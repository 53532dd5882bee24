"""An index of an older format brought to the present one, in steps that may be interrupted anywhere."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from weightsearch.index import checks, database, vectors
from weightsearch.index.connection import Database
from weightsearch.index.database import SCHEMA
from weightsearch.index.manifest import FORMAT, read_manifest, write_manifest


def migrate(path: Path, rows: Database, wait_seconds: float) -> None:
    """Does nothing to an index of this format.

    Format 1 kept the rows' count, the database's checksum and the FAISS file's in the manifest, which every change of
    rows would have made wrong. Format 2 had no identity, epochs without fractions, and cut a split's name short. At
    first format 3 had no checksums of rows, and then none of signatures.
    Readers take the database in its old forms and in its new one.
    """
    manifest = read_manifest(path)
    if manifest["format"] == 1:
        _from_format_1(path, manifest)
    if manifest["format"] != FORMAT:
        manifest |= {"format": FORMAT, "identity": uuid.uuid4().hex}
        write_manifest(path, manifest)
    with rows.open() as connection:
        state = database.state(connection)
        signatures_lack = checks.signatures_lack(connection)
    if checks.are_kept(state):
        if signatures_lack:
            with rows.transaction(wait_seconds) as connection:
                checks.renew_signatures(connection)
        return
    if state.identity is not None:
        with rows.transaction(wait_seconds) as connection:
            checks.renew(connection)
        return
    with rows.transaction(wait_seconds) as connection:
        connection.execute("CREATE TEMP TABLE old_rows AS SELECT * FROM ix.checkpoints")
        connection.execute("CREATE TEMP TABLE old_state AS SELECT * FROM ix.state")
        connection.execute("DROP TABLE ix.checkpoints; DROP TABLE ix.state; DROP TABLE IF EXISTS ix.keys")
        connection.execute(SCHEMA)
        connection.execute("INSERT INTO ix.checkpoints BY NAME SELECT * FROM old_rows ORDER BY number")
        connection.execute("UPDATE ix.checkpoints SET split = 'calibration' WHERE split = 'calibratio'")
        connection.execute(
            "UPDATE ix.state SET generation = (SELECT generation FROM old_state), "
            "next_number = greatest(?, (SELECT coalesce(max(number) + 1, 0) FROM old_rows)), identity = ?",
            [_next_number(path, manifest), manifest["identity"]],
        )
        database.learn_keys(connection, "ix.checkpoints")
        checks.renew(connection)
        connection.execute("DROP TABLE temp.old_rows; DROP TABLE temp.old_state")


def _next_number(path: Path, manifest: dict[str, Any]) -> int:
    """Behind all numbers in FAISS's files, which may still have those of rows that were removed."""
    numbers = [0]
    for file in path.glob("*/vectors-*.faiss"):
        cache = vectors.load(file, vectors.read_info(file, manifest))
        if cache is not None and len(cache.numbers):
            numbers.append(int(cache.numbers[-1]) + 1)
    return max(numbers)


def _from_format_1(path: Path, manifest: dict[str, Any]) -> None:
    """Changes `manifest` in place, and gives FAISS's files descriptions of their own."""
    for fingerprint in manifest["architectures"]:
        file = path / fingerprint / "vectors-1.faiss"
        info = vectors.read_info(file, manifest)
        if info is not None:
            vectors.write_info(file, info)
    notes = {name: manifest[name] for name in ("dataset", "method", "version", "target") if name in manifest}
    manifest["architectures"] = {
        fingerprint: {"layers": entry["layers"], "factory": None, **notes}
        for fingerprint, entry in manifest["architectures"].items()
    }
    manifest["files"] = {name: file for name, file in manifest["files"].items() if "/encoder." in name}
    manifest.pop("generation", None)
