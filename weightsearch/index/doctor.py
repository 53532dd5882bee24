"""Checks every promise of an index and repairs what the database, which is the truth, can repair."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.distance import prepare
from weightsearch.errors import WeightsearchError
from weightsearch.files import lock, replacing
from weightsearch.index import checks, database, vectors
from weightsearch.index.connection import Database
from weightsearch.index.manifest import CARD, DATABASE, FORMAT, MANIFEST, is_intact, listed_files, read_manifest
from weightsearch.index.store import IndexStore
from weightsearch.index.writer import LOCK, Writer, leftovers, publish, writing
from weightsearch.types import Selection

NEAR = 1e-3  # distance of a row from itself, in single precision
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
    try:
        findings += _files(path)
    except WeightsearchError as error:
        return [*findings, Finding(MANIFEST, State.BROKEN, str(error))]
    database_findings = _database(path)
    if any(finding.state is State.BROKEN for finding in database_findings):
        saved = _save_rows(path)
        if saved:
            database_findings = _database(path)
            if all(finding.state is not State.BROKEN for finding in database_findings):
                database_findings = [*saved, *database_findings]
    findings += database_findings
    if any(finding.state is State.BROKEN for finding in findings):
        return findings  # nothing to repair from, or no encoder to search with
    left = leftovers(path)
    with Database(path / DATABASE).open() as connection:
        lacked = not checks.are_kept(database.state(connection)) or checks.signatures_lack(connection)
    try:
        with writing(path) as writer:  # which removes them, and gives rows checksums
            if manifest["format"] != FORMAT:
                brought = f"brought from format {manifest['format']} to {FORMAT}"
                findings.append(Finding("format", State.REPAIRED, brought))
            elif lacked:
                findings.append(Finding("checksums", State.REPAIRED, "of rows that had none, or another DuckDB's"))
            gone = ", ".join(sorted(file.name for file in left if not file.exists()))
            findings.append(
                Finding("leftovers", State.REPAIRED, f"removed {gone}, which a killed writer left")
                if gone
                else Finding("leftovers", State.OK, "none")
            )
            findings += _strangers(writer)
            for fingerprint in IndexStore.open(path).architectures:
                findings += _vectors(writer, fingerprint)
            findings += _writes(writer)
    except WeightsearchError as error:  # in a read-only place, say: what can be read is checked all the same
        findings.append(Finding("changes", State.BROKEN, str(error)))
    findings += _questions(path)
    if check_encoder is not None:
        findings += _encoders(path, check_encoder)
    if "card" in manifest or (path / CARD).exists():
        findings.append(_card(path / CARD, manifest.get("card")))
    return findings


def _files(path: Path) -> Iterator[Finding]:
    """Checksums of the encoders' files, and of what else was written when the index was made."""
    manifest = read_manifest(path)
    for name, expected in listed_files(path, manifest):
        if name.endswith(".faiss") or name == DATABASE:  # of format 1
            continue
        if not is_intact(path / name, expected):
            yield Finding(
                name, State.BROKEN, "missing or damaged (its checksum is not the manifest's); restore it from a copy"
            )
            continue
        yield Finding(name, State.OK, "checksum agrees")


def _card(card: Path, expected: dict[str, Any] | None) -> Finding:
    """Whether it is a text; people may edit it, so that another checksum alone is no fault."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = "\0"
    if not all(letter.isprintable() or letter in "\n\r\t" for letter in text):
        return Finding(CARD, State.BROKEN, "missing or no text any more; restore it from a copy")
    if expected is None or is_intact(card, expected):
        return Finding(CARD, State.OK, "checksum agrees" if expected else "a text")
    return Finding(CARD, State.OK, "a text, but not as it was written: it was edited, or letters of it rotted")


def _database(path: Path) -> list[Finding]:
    """Reads every block of every table, whose checksums DuckDB verifies, and looks at every row."""
    try:
        with Database(path / DATABASE).open() as connection:
            tables = connection.execute(
                "SELECT table_name FROM duckdb_tables() WHERE database_name = 'ix' ORDER BY table_name"
            ).fetchall()
            for (table,) in tables:
                connection.execute(f'SELECT count(*), bit_xor(hash(t)) FROM ix."{table}" t').fetchall()
            database.key_types(connection)
            generation = database.generation(connection)
            rows = database.rows_sql(connection)
            count = connection.execute(f"SELECT count(*), bit_xor(hash(r)) FROM {rows} r").fetchall()[0][0]
            problems = {
                "ids twice": "SELECT architecture, id FROM {rows} GROUP BY ALL HAVING count(*) > 1",
                "numbers twice": "SELECT number FROM {rows} GROUP BY ALL HAVING count(*) > 1",
                **{
                    f"{column} that is no JSON object": f"SELECT id FROM {{rows}} WHERE {column} <> '' AND "
                    f"CASE WHEN json_valid({column}) THEN json_type({column}) <> 'OBJECT' ELSE true END"
                    for column in ("recipe", "metadata")
                },
                "numbers beyond the next one": "SELECT number FROM {rows}, ix.state WHERE number >= next_number",
                "embeddings of another width": "SELECT id FROM (SELECT id, octet_length(embedding) AS width, "
                "max(octet_length(embedding)) OVER (PARTITION BY architecture) AS most FROM {rows}) "
                "WHERE width <> most OR width % 4 <> 0 OR width = 0",
            }
            findings = [Finding(DATABASE, State.BROKEN, words) for words in checks.damage(connection)]
            for what, query in problems.items():
                if "next_number" in query and not database.is_current(connection):
                    continue
                bad = connection.execute(query.format(rows=rows)).fetchall()
                if bad:
                    findings.append(
                        Finding(DATABASE, State.BROKEN, f"{len(bad):,} rows with {what}: {bad[0][-1]}, ...")
                    )
            if not findings:
                for fingerprint in read_manifest(path)["architectures"]:
                    for numbers, embeddings in database.embedding_blocks(connection, fingerprint):
                        findings += _finite(numbers, embeddings)
    except WeightsearchError as error:
        return [Finding(DATABASE, State.BROKEN, str(error))]
    return findings or [Finding(DATABASE, State.OK, f"{count:,} rows at generation {generation}, all blocks readable")]


def _save_rows(path: Path) -> list[Finding]:
    """Writes the database anew from its rows, its state and its signatures, where all of them can be read.

    Nothing is done beside a log, which holds what the file lacks.
    """
    file = path / DATABASE
    beside_log = any(path.glob(f"{DATABASE}.*"))
    if not file.exists() or file.is_symlink() or beside_log or read_manifest(path)["format"] != FORMAT:
        return []
    try:
        busy = f"{path} is being changed by another process (PID {{pid}})"
        with lock(path / LOCK, busy), replacing(file) as new, duckdb.connect(":memory:") as connection:
            for name, place, mode in (("old", file, "READ_ONLY"), ("ix", new, "READ_WRITE")):
                connection.execute(f"ATTACH '{str(place).replace(chr(39), chr(39) * 2)}' AS {name} ({mode})")
            connection.execute(f"{database.SCHEMA}; DELETE FROM ix.state")
            tables = "SELECT table_name, sql FROM duckdb_tables() WHERE database_name = 'old' AND table_name <> 'keys'"
            for table, statement in connection.execute(tables).fetchall():
                if table not in ("checkpoints", "state"):  # of signatures
                    connection.execute(statement.replace("CREATE TABLE ", "CREATE TABLE ix.", 1))
                # Checksums stay as they are: nothing rotten is taken for the truth.
                connection.execute(f"INSERT INTO ix.{table} BY NAME SELECT * FROM old.{table} ORDER BY rowid")
            connection.execute("UPDATE ix.state SET generation = generation + 1")
            database.learn_keys(connection, "ix.checkpoints")
            connection.execute("DETACH ix")
    except (duckdb.Error, WeightsearchError, OSError):
        return []
    return [Finding(DATABASE, State.REPAIRED, "a table of what filters know was damaged; learnt anew from the rows")]


def _writes(writer: Writer) -> Iterator[Finding]:
    """That rows can be changed: takes one out and puts the number back, and then all that back."""
    try:
        with suppress(_UndoneError), writer.transaction() as connection:
            connection.execute("DELETE FROM ix.checkpoints WHERE number = (SELECT max(number) FROM ix.checkpoints)")
            connection.execute("INSERT OR IGNORE INTO ix.keys VALUES ('', 'VARCHAR')")
            raise _UndoneError
    except WeightsearchError as error:
        yield Finding(DATABASE, State.BROKEN, f"it can be read, but not changed ({error})")


class _UndoneError(Exception):
    """Ends a transaction without a trace."""


def _questions(path: Path) -> Iterator[Finding]:
    """Asks as a query would: a search, with a filter, for a row's own embedding, and what is told of its neighbours."""
    index = IndexStore.open(path)
    for fingerprint in index.architectures:
        what = f"{fingerprint}/search"
        try:
            if not index.count(fingerprint):
                continue
            row = index.find(str(index.table(fingerprint, ["id"])["id"][0]), fingerprint)
            index.keys()
            chosen = Selection(where="number >= 0", good="q75", bad="q25")
            neighbours = index.search(fingerprint, row.embedding, 1, chosen).neighbours
            index.descriptions(fingerprint, [neighbour.id for neighbour in neighbours])
            index.finals(fingerprint, [neighbour.run for neighbour in neighbours if neighbour.run is not None])
            itself = neighbours[0].distance < NEAR
            yield Finding(what, State.OK, "a row finds itself" if itself else "a row finds another")
        except WeightsearchError as error:
            yield Finding(what, State.BROKEN, str(error))


def _finite(numbers: np.ndarray, embeddings: np.ndarray) -> list[Finding]:
    bad = numbers[~np.isfinite(embeddings).all(axis=1)]
    return (
        [Finding(DATABASE, State.BROKEN, f"{len(bad):,} embeddings are not finite: row {bad[0]}, ...")]
        if len(bad)
        else []
    )


def _strangers(writer: Writer) -> list[Finding]:
    """Rows of an architecture whose adding was killed before the manifest named it."""
    architectures = list(read_manifest(writer.path)["architectures"])
    marks = ", ".join("?" * len(architectures)) or "''"
    with writer.transaction() as connection:
        removed = checks.forget(connection, f"architecture NOT IN ({marks})", architectures)
    if not removed:
        return []
    detail = f"removed {removed:,} rows of an architecture whose adding was interrupted"
    return [Finding(DATABASE, State.REPAIRED, detail)]


def _vectors(writer: Writer, fingerprint: str) -> list[Finding]:
    """The FAISS file against its checksum and, vector by vector, against the database."""
    index = IndexStore.open(writer.path)
    with writer.database.open() as connection:
        generation = database.generation(connection)
    numbers = index.numbers(fingerprint)
    what = f"{fingerprint}/vectors"
    if not len(numbers):
        return [Finding(what, State.OK, "no rows")]
    listed = vectors.cache_files(writer.path / fingerprint, generation)
    cache = index.newest_cache(fingerprint, generation)
    fault = "there was no sound file of vectors" if cache is None else ""
    if listed and cache is not None and vectors.read_info(listed[0], index.manifest) != cache.info:
        fault = f"{listed[0].name} was damaged"
    if listed and cache is None:
        fault = f"{listed[0].name} was damaged"
    if cache is not None and not fault:
        behind = vectors.behind(cache.numbers, numbers)
        damage = None if cache.paged is None else cache.paged.all_damage()
        differing = np.empty(0, np.int64) if damage else _differing(writer, index, fingerprint, cache)
        if damage:
            fault = f"{damage} in it were damaged"
        elif len(differing) > (len(numbers) + len(cache.numbers) - behind) / 4:  # half: the file of another index
            fault = "its vectors were not the database's"
        elif len(differing):  # a row's vector never changes, and the file's checksum agrees
            detail = (
                f"{len(differing):,} rows' vectors are not those of {listed[0].name}, whose checksum agrees: "
                f"number {differing[0]}, ...; restore {DATABASE} from a copy"
            )
            return [Finding(DATABASE, State.BROKEN, detail)]
        if not fault:
            detail = f"{cache.info.factory}, {len(cache.numbers):,} vectors as in the database"
            return [Finding(what, State.OK, detail + (f", {behind:,} rows behind (within bounds)" if behind else ""))]
    publish(writer, fingerprint, anew=True)
    return [Finding(what, State.REPAIRED, f"{fault}; written anew from {DATABASE} ({len(numbers):,} vectors)")]


def _differing(writer: Writer, index: IndexStore, fingerprint: str, cache: vectors.Cache) -> np.ndarray:
    """Numbers `(m,)` of the rows whose exact vectors, where there are any, are not the database's."""
    differing = [np.empty(0, np.int64)]
    with writer.database.open() as connection:
        blocks = database.embedding_blocks(connection, fingerprint) if cache.matrix is not None else ()
        for numbers, embeddings in blocks:
            common, ours, theirs = np.intersect1d(numbers, cache.numbers, assume_unique=True, return_indices=True)
            if len(common) and cache.matrix is not None:
                difference = np.abs(prepare(embeddings[ours], index.metric) - cache.matrix[theirs]).max(axis=1)
                differing.append(common[~(difference <= TOLERANCE)])
    return np.concatenate(differing)


def _encoders(path: Path, check_encoder: Callable[[Path], object]) -> Iterator[Finding]:
    index = IndexStore.open(path)
    for fingerprint in index.architectures:
        try:
            check_encoder(index.encoder_directory(fingerprint))
            notes = json.loads((index.encoder_directory(fingerprint) / "encoder.json").read_text())
            yield Finding(f"{fingerprint}/encoder", State.OK, f"{notes.get('config', {}).get('method', 'it')} loads")
        except (WeightsearchError, OSError, ValueError, AttributeError) as error:
            yield Finding(f"{fingerprint}/encoder", State.BROKEN, str(error))
