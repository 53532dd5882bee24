"""Checkpoints into an index: read, embedded by the encoder of their architecture, and added as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.discovery import CheckpointFile, Quarantined, Sources, discover
from weightsearch.checkpoints.folder_layouts import Layout, find, recognise
from weightsearch.checkpoints.remote.paths import RemotePath, located
from weightsearch.checkpoints.remote.reading import fetched_ahead
from weightsearch.checkpoints.walk import Account
from weightsearch.errors import Interrupted
from weightsearch.index import IndexStore
from weightsearch.index.create import create_empty
from weightsearch.index.writer import writing
from weightsearch.index.zoo_rows import zoo_rows, zoo_source
from weightsearch.progress import progress_bar
from weightsearch.relations.store import signed_files
from weightsearch.search.file_records import FileReader
from weightsearch.search.reading_processes import Piece, Signs, reading_processes
from weightsearch.search.record_writer import CHUNK, AddReport, RecordWriter
from weightsearch.search.signatures import sign_zoo
from weightsearch.types import ANY
from weightsearch.zoo.store import Zoo

__all__ = ["AddReport", "add"]


def add(
    paths: Iterable[str | Path],
    index: str | Path,
    *,
    sources: Sources | None = None,
    dataset: str | None = None,
    inventory: str | Path | None = None,
    quiet: bool = False,
) -> AddReport:
    """Adds checkpoint files, all those below folders, what glob patterns match, and whole zoos to an index.

    Files and folders may be URLs (s3://, gs://, az://, hf://, https://).

    An index that is not there is made, without an encoder: every file's signature is kept, whatever its architecture.

    Adding twice adds once: the weights' content is the key. Files that cannot be read, and networks of an architecture
    that the index has no encoder for, are reported and the others added. Unknown accuracies are allowed: such rows
    can be found, and are neither good nor bad.

    Args:
        sources: where metadata and runs' names come from; see `checkpoints.discovery`.
        dataset: what the networks were trained on, where the files do not say.
        inventory: a table (.parquet, .csv) of remote files' path, size and etag, in place of listing their folders.

    Raises:
        WeightsearchError: the index cannot be used, or a metadata table cannot be read.
        Interrupted: after Ctrl-C; what was added stays.

    Example:
        >>> add(['index/examples'], 'index', dataset='usps', quiet=True).added
        4
    """
    given = find_given(paths, inventory)
    store = open_or_create(index)
    sources = sources or Sources()
    sources.expect(given.files)
    reader = FileReader(store, sources, dataset)
    writer = RecordWriter(store, sources.given_name)
    writer.quarantined += given.missing
    try:
        total = len(given.files) + sum(len(zoo.table()) for zoo in given.zoos)
        with (
            progress_bar("adding", total, unit="checkpoints", quiet=quiet) as advance,
            reading_processes(given.files, reader.records) as processes,
        ):
            for start in range(0, len(given.files), CHUNK):
                files = given.files[start : start + CHUNK]
                signed = signed_files(store.path, [str(file.place) for file in files])
                records = []
                for piece in processes.read(files, signed) if processes else _one_by_one(reader, files, signed):
                    advance(len(piece.records))
                    if piece.signed is not None:
                        writer.keep_signatures(piece.signed)
                    records += [writer.sign(reader.take(record)) for record in piece.records]
                reader.embed()
                writer.add_records(records)
            for zoo in given.zoos:
                _add_zoo(zoo, reader, writer, advance)
        zoo_rows_total = sum(len(zoo.table()) for zoo in given.zoos)
        with progress_bar("signing", zoo_rows_total, unit="checkpoints", quiet=quiet or not given.zoos) as advance:
            for zoo in given.zoos:
                writer.signed += sign_zoo(store.path, zoo, advance)
                writer.seen += len(zoo.table())
    except KeyboardInterrupt:
        raise Interrupted(f"stopped: {writer.added:,} were added; run the same command again to go on") from None
    writer.notes += writer.skipped.notes + given.account.notes + sources.notes
    return writer.report()


def _one_by_one(reader: FileReader, files: Sequence[CheckpointFile], signed: Signs) -> Iterator[Piece]:
    """Files read by this process."""
    for file in fetched_ahead(files):
        yield Piece([reader.records.read(file, signed)])


def open_or_create(index: str | Path) -> IndexStore:
    """Opens an index to write to: one of an older format is brought up to date, a missing one made without encoder."""
    if not Path(index).exists():
        create_empty(Path(index))
    with writing(index):  # which gives an index of an older format its identity
        pass
    return IndexStore.open(index)


@dataclass
class Given:
    """What the paths that a user gave mean: files in order, each once, and whole zoos."""

    zoos: list[Zoo] = field(default_factory=list)
    files: list[CheckpointFile] = field(default_factory=list)
    missing: list[Quarantined] = field(default_factory=list)
    account: Account = field(default_factory=Account)


def find_given(paths: Iterable[str | Path], inventory: str | Path | None = None) -> Given:
    """Zoos, and files; a folder in the layout of a public zoo is read as that zoo's project writes it."""
    given = Given()
    files: dict[Path, CheckpointFile] = {}
    for path in located(paths, inventory):
        if (path / "zoo.json").is_file():
            if isinstance(path, RemotePath):
                given.missing.append(
                    Quarantined(str(path), "it is a zoo; copy its folder to this machine and add that")
                )
                continue
            given.zoos.append(Zoo.open(path))
            continue
        layout = recognise(path) if path.is_dir() else Layout.FOLDER
        if layout is Layout.SMALL_CNN_ZOO:
            reason = "it is a Small CNN Zoo; make a zoo of it with `weightsearch import` and add that"
            given.missing.append(Quarantined(str(path), reason))
            continue
        if layout is Layout.COMVEX:  # whose runs are told when all files have been read
            discovered = find(path, layout)
        else:
            discovery = discover([path])
            discovered = discovery.files
            given.missing += discovery.missing
            given.account.add(discovery.account)
        for file in discovered:
            files.setdefault(file.place, file)
    given.files = list(files.values())
    return given


def _add_zoo(zoo: Zoo, reader: FileReader, writer: RecordWriter, advance: Callable[..., object]) -> None:
    from weightsearch.encoders import Encoder
    from weightsearch.training.data import finite_weights
    from weightsearch.training.represent import represent_zoo

    table = zoo.table()
    if zoo.is_mixed or zoo.architecture.fingerprint not in reader.architectures:
        _add_to_all(zoo, reader, writer, advance)
        return
    fingerprint = zoo.architecture.fingerprint
    encoder = reader.encoder(fingerprint)
    assert isinstance(encoder, Encoder)
    for start in range(0, len(table), CHUNK):
        positions = np.arange(start, min(start + CHUNK, len(table)))
        finite = finite_weights(zoo, positions)
        writer.quarantined += _not_finite(zoo, positions[~finite])
        good = positions[finite]
        if len(good):
            represented = represent_zoo(zoo, encoder, good)
            rows = zoo_rows(zoo, good, represented.embedding, represented.predicted, represented.layers)
            writer.write(fingerprint, rows, [zoo_source(zoo, position) for position in good.tolist()])
        advance(len(positions))


def _add_to_all(zoo: Zoo, reader: FileReader, writer: RecordWriter, advance: Callable[..., object]) -> None:
    """Into the space of all architectures."""
    from weightsearch.training.represent import represent

    fingerprints = zoo.fingerprints
    if ANY.fingerprint not in reader.architectures:
        for architecture, places in zoo.groups(np.arange(len(fingerprints))):
            writer.unknown[architecture.describe()] += len(places)
        return
    encoder = reader.encoder(ANY.fingerprint)
    for block, weights in zoo.blocks(np.arange(len(fingerprints))):
        finite = np.isfinite(weights).all(axis=1)
        writer.quarantined += _not_finite(zoo, block[~finite])
        good = block[finite]
        if len(good):
            architecture = zoo.architectures[str(fingerprints[good[0]])]
            represented = represent(encoder, weights[finite], [None] * len(good), architecture=architecture)
            rows = zoo_rows(zoo, good, represented.embedding, represented.predicted, None)
            writer.write(ANY.fingerprint, rows, [zoo_source(zoo, position) for position in good.tolist()])
        advance(len(block))


def _not_finite(zoo: Zoo, positions: np.ndarray) -> list[Quarantined]:
    reason = "its weights hold NaN or infinite values"
    return [Quarantined(zoo_source(zoo, position), reason) for position in positions.tolist()]
