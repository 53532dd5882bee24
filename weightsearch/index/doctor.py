"""Checks every promise of an index and repairs what the database, which is the truth, can repair."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from weightsearch.distance import prepare
from weightsearch.errors import WeightsearchError
from weightsearch.index import database, vectors
from weightsearch.index.manifest import DATABASE, FORMAT, MANIFEST, is_intact, read_manifest
from weightsearch.index.store import IndexStore
from weightsearch.index.writer import Writer, leftovers, publish, writing

TOLERANCE = 1e-4  # of a vector in the FAISS file against the database's


class State(StrEnum):
    OK = "ok"
    REPAIRED = "repaired"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One promise: whether it holds, and what was found or done."""

    what: str
    state: State
    detail: str


def doctor(path: str | Path, *, check_encoder: Callable[[Path], object] | None = None) -> list[Finding]:
    """Checks the index at `path`, repairs what can be repaired, and says for each promise how it stands.

    `check_encoder(directory)` loads an encoder and raises `WeightsearchError` where that fails (None: checksums only,
    so that no torch is needed).
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except WeightsearchError as error:
        return [Finding(MANIFEST, State.BROKEN, str(error))]
    findings = [Finding(MANIFEST, State.OK, f"format {manifest['format']}")]
    findings += _files(path)
    findings += _database(path)
    if any(finding.state is State.BROKEN for finding in findings):
        return findings  # nothing to repair from, or no encoder to search with
    if manifest["format"] != FORMAT:
        findings.append(Finding("format", State.REPAIRED, f"brought from format {manifest['format']} to {FORMAT}"))
    left = leftovers(path)
    with writing(path) as writer:  # which removes them
        gone = ", ".join(sorted(file.name for file in left if not file.exists()))
        findings.append(
            Finding("leftovers", State.REPAIRED, f"removed {gone}, which a killed writer left")
            if gone
            else Finding("leftovers", State.OK, "none")
        )
        findings += _strangers(writer)
        for fingerprint in IndexStore.open(path).architectures:
            findings += _vectors(writer, fingerprint)
    if check_encoder is not None:
        findings += _encoders(path, check_encoder)
    return findings


def _files(path: Path) -> Iterator[Finding]:
    """Checksums of the encoders' files. A copied file gets the manifest's time again, so that opening trusts it."""
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        if name.endswith(".faiss") or name == DATABASE:  # of format 1
            continue
        if not is_intact(path / name, expected, thorough=True):
            yield Finding(
                name, State.BROKEN, "missing or damaged (its checksum is not the manifest's); restore it from a copy"
            )
            continue
        yield Finding(name, State.OK, "checksum agrees")
        with suppress(OSError):  # somebody else's file, or a read-only disk: opening then takes a little longer
            os.utime(path / name, ns=((path / name).stat().st_atime_ns, expected["mtime_ns"]))


def _database(path: Path) -> list[Finding]:
    """Reads every block, whose checksums DuckDB verifies, and looks at every row."""
    try:
        index = IndexStore.open(path)
        with index.database.open() as connection:
            generation = database.generation(connection)
            rows = database.rows_sql(connection)
            count = connection.execute(f"SELECT count(*), bit_xor(hash(r)) FROM {rows} r").fetchall()[0][0]
            problems = {
                "ids twice": "SELECT architecture, id FROM {rows} GROUP BY ALL HAVING count(*) > 1",
                "numbers twice": "SELECT number FROM {rows} GROUP BY ALL HAVING count(*) > 1",
                "unreadable recipes": "SELECT id FROM {rows} WHERE recipe IS NOT NULL AND NOT json_valid(recipe)",
                "unreadable metadata": "SELECT id FROM {rows} WHERE metadata IS NOT NULL AND NOT json_valid(metadata)",
                "numbers beyond the next one": "SELECT number FROM {rows}, ix.state WHERE number >= next_number",
                "embeddings of another width": "SELECT id FROM (SELECT id, octet_length(embedding) AS width, "
                "max(octet_length(embedding)) OVER (PARTITION BY architecture) AS most FROM {rows}) "
                "WHERE width <> most OR width % 4 <> 0 OR width = 0",
            }
            findings = []
            for what, query in problems.items():
                if "next_number" in query and not database.is_current(connection):
                    continue
                bad = connection.execute(query.format(rows=rows)).fetchall()
                if bad:
                    findings.append(
                        Finding(DATABASE, State.BROKEN, f"{len(bad):,} rows with {what}: {bad[0][-1]}, ...")
                    )
            if not findings:
                for fingerprint in index.architectures:
                    findings += _finite(*database.embeddings(connection, fingerprint))
    except WeightsearchError as error:
        return [Finding(DATABASE, State.BROKEN, str(error))]
    return findings or [Finding(DATABASE, State.OK, f"{count:,} rows at generation {generation}, all blocks readable")]


def _finite(numbers: np.ndarray, embeddings: np.ndarray) -> list[Finding]:
    bad = numbers[~np.isfinite(embeddings).all(axis=1)]
    return (
        [Finding(DATABASE, State.BROKEN, f"{len(bad):,} embeddings are not finite: row {bad[0]}, ...")]
        if len(bad)
        else []
    )


def _strangers(writer: Writer) -> list[Finding]:
    """Rows of an architecture whose adding was killed before the manifest named it."""
    known = list(read_manifest(writer.path)["architectures"])
    marks = ", ".join("?" * len(known))
    with writer.transaction() as connection:
        found = connection.execute(
            f"DELETE FROM ix.checkpoints WHERE architecture NOT IN ({marks}) RETURNING id", known
        ).fetchall()
    if not found:
        return []
    detail = f"removed {len(found):,} rows of an architecture whose adding was interrupted"
    return [Finding(DATABASE, State.REPAIRED, detail)]


def _vectors(writer: Writer, fingerprint: str) -> list[Finding]:
    """The FAISS file against its checksum and, vector by vector, against the database."""
    index = IndexStore.open(writer.path)
    with writer.database.open() as connection:
        generation = database.generation(connection)
        numbers, embeddings = database.embeddings(connection, fingerprint)
    what = f"{fingerprint}/vectors"
    if not len(numbers):
        return [Finding(what, State.OK, "no rows")]
    listed = vectors.cache_files(writer.path / fingerprint, generation)
    cache = index.newest_cache(fingerprint, generation, thorough=True)
    fault = "there was no sound file of vectors" if cache is None else ""
    if listed and cache is not None and vectors.read_info(listed[0], index.manifest) != cache.info:
        fault = f"{listed[0].name} was damaged"
    if listed and cache is None:
        fault = f"{listed[0].name} was damaged"
    if cache is not None and not fault:
        behind = len(np.setxor1d(numbers, cache.numbers, assume_unique=True))
        common, ours, theirs = np.intersect1d(numbers, cache.numbers, assume_unique=True, return_indices=True)
        if cache.matrix is not None and len(common):
            away = np.abs(prepare(embeddings[ours], index.metric) - cache.matrix[theirs]).max()
            if not away <= TOLERANCE:
                fault = "its vectors were not the database's"
        if not fault:
            detail = f"{cache.info.factory}, {len(cache.numbers):,} vectors as in the database"
            return [Finding(what, State.OK, detail + (f", {behind:,} rows behind (within bounds)" if behind else ""))]
    publish(writer, fingerprint, anew=True)
    return [Finding(what, State.REPAIRED, f"{fault}; written anew from {DATABASE} ({len(numbers):,} vectors)")]


def _encoders(path: Path, check_encoder: Callable[[Path], object]) -> Iterator[Finding]:
    index = IndexStore.open(path)
    for fingerprint in index.architectures:
        try:
            check_encoder(index.encoder_directory(fingerprint))
            notes = json.loads((index.encoder_directory(fingerprint) / "encoder.json").read_text())
            yield Finding(f"{fingerprint}/encoder", State.OK, f"{notes.get('config', {}).get('method', 'it')} loads")
        except WeightsearchError as error:
            yield Finding(f"{fingerprint}/encoder", State.BROKEN, str(error))
