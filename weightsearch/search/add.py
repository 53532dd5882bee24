"""Checkpoints into an index: read, embedded by the encoder of their architecture, and added as rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.discovery import (
    CheckpointFile,
    Quarantined,
    Skipped,
    Sources,
    below,
    by_time,
    discover,
    reason_of,
)
from weightsearch.checkpoints.folder_layouts import Layout, comvex_runs, find, recognise
from weightsearch.checkpoints.metadata import Metadata, as_fractions, stand_ins, told, unread, vary
from weightsearch.checkpoints.runs import in_one_unit, one_run, sketch, without_copies
from weightsearch.checkpoints.state_dict import align
from weightsearch.checkpoints.walk import Account
from weightsearch.encoders import Encoder
from weightsearch.encoders.universal.encoder import UniversalEncoder
from weightsearch.errors import Interrupted, WeightsearchError
from weightsearch.index import IndexStore, Rows, add_rows, update_values
from weightsearch.index.create import create_empty
from weightsearch.index.writer import writing
from weightsearch.index.zoo_rows import _objects, network_columns, zoo_rows, zoo_source
from weightsearch.progress import progress_bar
from weightsearch.search.signatures import sign_files, sign_zoo
from weightsearch.training.data import finite_weights
from weightsearch.training.represent import AnyEncoder, Representation, load_any_encoder, represent, represent_zoo
from weightsearch.types import ANY, Architecture, content_hash
from weightsearch.zoo.store import Zoo

CHUNK = 20_000  # files or checkpoints whose rows are added together, so that a kill loses no more than these
BATCH_BYTES = 64 * 2**20  # of weights that are embedded together
BATCH_ROWS = 256


@dataclass(frozen=True)
class AddReport:
    """What became of what was given: every file is counted once.

    Example:
        >>> report = add(['index/examples/good.pt', 'index/README.md'], 'index', quiet=True)
        >>> report.added
        1
    """

    index: Path
    added: int
    already: int  # held before, or given twice
    unknown: dict[str, int]  # architectures that the index has no encoder for, for people -> how many files
    quarantined: tuple[Quarantined, ...]
    notes: tuple[str, ...]  # what was assumed
    signed: int = 0  # checkpoints whose signature is new: what they are to others can be asked for
    signed_already: int = 0


def add(
    paths: Iterable[str | Path],
    index: str | Path,
    *,
    sources: Sources | None = None,
    dataset: str | None = None,
    quiet: bool = False,
) -> AddReport:
    """Adds checkpoint files, all those below folders, what glob patterns match, and whole zoos to an index.

    An index that is not there is made, without an encoder: every file's signature is kept, whatever its architecture.

    Adding twice adds once: the weights' content is the key. Files that cannot be read, and networks of an architecture
    that the index has no encoder for, are reported and the others added. Unknown accuracies are allowed: such rows
    can be found, and are neither good nor bad.

    Args:
        sources: where metadata and runs' names come from; see `checkpoints.discovery`.
        dataset: what the networks were trained on, where the files do not say.

    Raises:
        WeightsearchError: the index cannot be used, or a metadata table cannot be read.
        Interrupted: after Ctrl-C; what was added stays.

    Example:
        >>> add(['index/examples'], 'index', dataset='usps', quiet=True).added
        4
    """
    if not Path(index).exists():
        create_empty(Path(index))
    with writing(index):  # an index of an older format is brought up to date, which gives it its identity
        pass
    adder = _Adder(IndexStore.open(index), sources or Sources(), dataset)
    zoos, files = _split(paths, adder.quarantined, adder.account)
    total = len(files) + sum(len(zoo.table()) for zoo in zoos)
    try:
        with progress_bar("adding", total, unit="checkpoints", quiet=quiet) as advance:
            for start in range(0, len(files), CHUNK):
                adder.add_files(files[start : start + CHUNK], advance)
            for zoo in zoos:
                adder.add_zoo(zoo, advance)
        with progress_bar("signing", total, unit="checkpoints", quiet=quiet) as advance:
            adder.sign(files, zoos, advance)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped: {adder.added:,} were added; run the same command again to go on") from None
    return adder.report()


def _split(
    paths: Iterable[str | Path], quarantined: list[Quarantined], account: Account
) -> tuple[list[Zoo], list[CheckpointFile]]:
    """Zoos, and files; a folder in the layout of a public zoo is read as that zoo's project writes it."""
    zoos: list[Zoo] = []
    files: dict[Path, CheckpointFile] = {}
    for path in map(Path, paths):
        if (path / "zoo.json").is_file():
            zoos.append(Zoo.open(path))
            continue
        layout = recognise(path) if path.is_dir() else Layout.FOLDER
        if layout is Layout.SMALL_CNN_ZOO:
            reason = "it is a Small CNN Zoo; make a zoo of it with `weightsearch import` and add that"
            quarantined.append(Quarantined(str(path), reason))
            continue
        if layout is Layout.COMVEX:  # whose runs are told when all files have been read
            discovered = find(path, layout)
        else:
            discovery = discover([path])
            discovered = discovery.files
            quarantined += discovery.missing
            account.add(discovery.account)
        for file in discovered:
            files.setdefault(file.path.resolve(), file)
    return zoos, list(files.values())


@dataclass
class _Batch:
    """Rows of one architecture, embedded as soon as there are enough of them: only then are weights in memory."""

    architecture: Architecture
    encoder: AnyEncoder
    weights: list[np.ndarray] = field(default_factory=list)
    represented: list[Representation] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    files: list[CheckpointFile] = field(default_factory=list)
    metadata: list[Metadata] = field(default_factory=list)
    sketches: dict[Path, np.ndarray] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        return [file.path for file in self.files]

    def add(self, weights: np.ndarray, file: CheckpointFile, metadata: Metadata) -> None:
        self.ids.append(content_hash(weights))
        self.files.append(file)
        self.sketches[file.path] = sketch(weights)
        self.metadata.append(metadata)
        self.weights.append(weights)
        if len(self.weights) >= min(BATCH_ROWS, max(1, BATCH_BYTES // weights.nbytes)):
            self.embed()

    def name_runs(self) -> None:
        """Tells the runs of files in the ComVeX layout, whose names do not."""
        nameless = [i for i, metadata in enumerate(self.metadata) if not metadata.run]
        runs = comvex_runs([self.paths[i].name for i in nameless], [self.metadata[i] for i in nameless])
        for i, run in zip(nameless, runs, strict=True):
            self.metadata[i] = replace(self.metadata[i], run=below(self.paths[i].parent, run))

    def without_copies(self) -> tuple[np.ndarray, list[str]]:
        """The positions of the files to add, each network once, and a note on the others."""
        rows = list(zip(self.ids, self.metadata, range(len(self.ids)), strict=True))
        kept, notes = without_copies(rows, lambda row: row[0], lambda row: row[1])
        return np.array([position for _, _, position in kept], np.int64), notes

    def embed(self) -> None:
        if self.weights:
            activations = [metadata.recipe.get("activation") for metadata in self.metadata[-len(self.weights) :]]
            weights = np.stack(self.weights)
            self.represented.append(represent(self.encoder, weights, activations, architecture=self.architecture))
            self.weights.clear()


class _Adder:
    def __init__(self, index: IndexStore, sources: Sources, dataset: str | None) -> None:
        self.index = index
        self.identity = index.identity  # rows are embedded for this index, and for no other one that takes its place
        self.sources = sources
        self.dataset = dataset
        self.added = self.already = self.signed = self.signed_already = 0
        self.metadata: dict[Path, Metadata] = {}  # by file
        self.unknown: Counter[str] = Counter()
        self.quarantined: list[Quarantined] = []
        self.notes: list[str] = []
        self.skipped = Skipped()
        self.account = Account()
        self._encoders: dict[str, AnyEncoder] = {}

    def add_files(self, files: Sequence[CheckpointFile], advance: Any) -> None:
        batches: dict[str, _Batch] = {}
        for file in files:
            advance()
            try:
                record = self.sources.read(file)
            except WeightsearchError as error:
                self.quarantined.append(Quarantined(str(file.path), reason_of(error, file.path)))
                continue
            self.metadata[file.path] = record.metadata
            checkpoint = align(record.checkpoint, self.index.architectures.values())
            architecture = checkpoint.architecture
            fingerprint = architecture.fingerprint
            space = self._space(fingerprint)
            if space is None:
                self.unknown[architecture.describe()] += 1
                continue
            batch = batches.get(fingerprint)
            if batch is None:
                batch = batches[fingerprint] = _Batch(architecture, self._encoder(space))
            self.skipped.count(checkpoint)
            batch.add(checkpoint.weights, file, record.metadata)
        for batch in batches.values():
            batch.name_runs()
            if not self.sources.name_runs:
                batch.metadata = self._in_held_runs(batch.architecture.fingerprint, batch)
                batch.metadata, joined = one_run(batch.metadata, batch.files, batch.sketches)
                self.notes += joined
        metadata_of_all, notes = as_fractions([metadata for batch in batches.values() for metadata in batch.metadata])
        runs = [metadata.run for metadata in metadata_of_all]
        metadata_of_all = in_one_unit(vary(metadata_of_all, [run or "" for run in runs]), runs)
        self.notes += [*told(metadata_of_all), *notes, *stand_ins(metadata_of_all), *unread(metadata_of_all)]
        position = 0
        for fingerprint, batch in batches.items():
            batch.embed()
            metadata_of_batch = metadata_of_all[position : position + len(batch.metadata)]
            position += len(batch.metadata)
            kept, copies = batch.without_copies()
            self.notes += copies
            self.already += len(metadata_of_batch) - len(kept)
            places = [batch.paths[i] for i in kept.tolist()]
            space = self._space(fingerprint) or fingerprint
            self._repair(
                space, [batch.ids[i] for i in kept.tolist()], places, [metadata_of_batch[i] for i in kept.tolist()]
            )
            self._write(space, self._rows(batch, metadata_of_batch).take(kept), places)

    def _space(self, fingerprint: str) -> str | None:
        """Where networks of an architecture belong: in their own space, else in that of all, if there is one."""
        return next((space for space in (fingerprint, ANY.fingerprint) if space in self.index.architectures), None)

    def _rows(self, batch: _Batch, of_files: Sequence[Metadata]) -> Rows:
        nan = float("nan")
        shared = isinstance(batch.encoder, UniversalEncoder)
        network = network_columns(batch.architecture) if shared else {}
        represented = Representation.concatenate(batch.represented)
        metrics = {
            name: np.array([metadata.value(name) for metadata in of_files])
            for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        }
        return Rows(
            id=np.array(batch.ids),
            run=_objects(metadata.run for metadata in of_files),
            epoch=np.array([nan if metadata.epoch is None else metadata.epoch for metadata in of_files]),
            **metrics,
            predicted_accuracy=represented.predicted,
            split=_objects(None for _ in of_files),
            recipe=_objects(json.dumps(metadata.recipe) for metadata in of_files),
            embedding=represented.embedding,
            dataset=_objects(metadata.dataset or self.dataset for metadata in of_files),
            source=_objects(str(path.resolve()) for path in batch.paths),
            metadata=_objects(json.dumps({**network, **metadata.extras}) for metadata in of_files),
            description=represented.layers,
        )

    def add_zoo(self, zoo: Zoo, advance: Any) -> None:
        table = zoo.table()
        if zoo.is_mixed or zoo.architecture.fingerprint not in self.index.architectures:
            self._add_to_all(zoo, advance)
            return
        fingerprint = zoo.architecture.fingerprint
        encoder = self._encoder(fingerprint)
        assert isinstance(encoder, Encoder)
        for start in range(0, len(table), CHUNK):
            positions = np.arange(start, min(start + CHUNK, len(table)))
            finite = finite_weights(zoo, positions)
            for position in positions[~finite].tolist():
                self.quarantined.append(
                    Quarantined(zoo_source(zoo, position), "its weights hold NaN or infinite values")
                )
            good = positions[finite]
            if len(good):
                represented = represent_zoo(zoo, encoder, good)
                rows = zoo_rows(zoo, good, represented.embedding, represented.predicted, represented.layers)
                self._write(fingerprint, rows, [zoo_source(zoo, position) for position in good.tolist()])
            advance(len(positions))

    def _add_to_all(self, zoo: Zoo, advance: Any) -> None:
        """Into the space of all architectures."""
        fingerprints = zoo.fingerprints
        if ANY.fingerprint not in self.index.architectures:
            for architecture, places in zoo.groups(np.arange(len(fingerprints))):
                self.unknown[architecture.describe()] += len(places)
            return
        encoder = self._encoder(ANY.fingerprint)
        for block, weights in zoo.blocks(np.arange(len(fingerprints))):
            finite = np.isfinite(weights).all(axis=1)
            for position in block[~finite].tolist():
                self.quarantined.append(
                    Quarantined(zoo_source(zoo, position), "its weights hold NaN or infinite values")
                )
            good = block[finite]
            if len(good):
                architecture = zoo.architectures[str(fingerprints[good[0]])]
                represented = represent(encoder, weights[finite], [None] * len(good), architecture=architecture)
                rows = zoo_rows(zoo, good, represented.embedding, represented.predicted, None)
                self._write(ANY.fingerprint, rows, [zoo_source(zoo, position) for position in good.tolist()])
            advance(len(block))

    def _encoder(self, fingerprint: str) -> AnyEncoder:
        if fingerprint not in self._encoders:
            self._encoders[fingerprint] = load_any_encoder(self.index.encoder_directory(fingerprint))
        return self._encoders[fingerprint]

    def _in_held_runs(self, fingerprint: str, batch: _Batch) -> list[Metadata]:
        """What is known of a batch, its later epochs in the run that the index holds of the same folder."""
        space = self._space(fingerprint) or fingerprint
        late = [i for i, file in enumerate(batch.files) if by_time(file.path) and batch.metadata[i].run == file.run]
        if not late or space not in self.index.architectures:
            return batch.metadata
        held = self.index.table(space, ["source", "run"])
        runs: dict[str, set[str]] = {}
        for source, run in zip(held["source"], held["run"], strict=True):
            if isinstance(source, str) and run is not None:
                runs.setdefault(source.rpartition("/")[0], set()).add(run)
        metadata = list(batch.metadata)
        for i in late:
            runs_of_folder = runs.get(str(batch.files[i].path.resolve().parent), set())
            if len(runs_of_folder) == 1:
                metadata[i] = replace(metadata[i], run=next(iter(runs_of_folder)))
        return metadata

    def _repair(self, space: str, ids: Sequence[str], places: Sequence[Path], of_files: Sequence[Metadata]) -> None:
        """Gives checkpoints that are held already the values that the given table or study has of them."""
        if (self.sources.table is None and self.sources.study is None) or space not in self.index.architectures:
            return
        held = set(self.index.table(space, ["id"])["id"])
        changes: dict[str, dict[str, Any]] = {}
        for id, path, metadata in zip(ids, places, of_files, strict=True):
            row = self.sources.given(path, metadata) if id in held else None
            if row is not None:
                told = {name: getattr(row, name) for name in ("epoch", "run", "dataset")}
                values = {name: metadata.value(name) for name in row.metrics} | told | dict(row.extras)
                changes[id] = {name: value for name, value in values.items() if value is not None}
        if changes:
            columns = set(self.index.keys())
            updated = update_values(self.index.path, changes)
            checkpoints = f"{updated.checkpoints:,} checkpoints that were there"
            self.notes.append(f"{updated.cells:,} cells of {checkpoints} were set from {self.sources.given_name}")
            self.notes += [f"new column: {name}" for name in sorted(set(self.index.keys()) - columns)]

    def _write(self, fingerprint: str, rows: Rows, places: Sequence[Path | str]) -> None:
        finite = np.isfinite(rows.embedding).all(axis=1)
        for i in np.flatnonzero(~finite).tolist():
            reason = "its weights are so large that its embedding is not finite"
            self.quarantined.append(Quarantined(str(places[i]), reason))
        rows = rows.take(np.flatnonzero(finite))
        if len(rows):
            summary = add_rows(self.index.path, fingerprint, rows, identity=self.identity)
            self.added += summary.added
            self.already += len(rows) - summary.added

    def sign(self, files: Sequence[CheckpointFile], zoos: Sequence[Zoo], advance: Any) -> None:
        """Keeps signatures, which need no encoder and take files that no encoder could."""
        total = len(files) + sum(len(zoo.table()) for zoo in zoos)
        self.signed, unread = sign_files(self.index.path, files, self.metadata, advance, self.sources.weights)
        refused = {bad.path for bad in self.quarantined}
        self.quarantined += [bad for bad in unread if bad.path not in refused]
        self.signed += sum(sign_zoo(self.index.path, zoo, advance) for zoo in zoos)
        self.signed_already = total - self.signed - len(unread)

    def report(self) -> AddReport:
        self.notes += [*self.skipped.notes, *self.account.notes, *self.sources.notes]
        return AddReport(
            self.index.path,
            self.added,
            self.already,
            dict(self.unknown),
            tuple(self.quarantined),
            tuple(self.notes),
            self.signed,
            self.signed_already,
        )
