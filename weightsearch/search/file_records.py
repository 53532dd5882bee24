"""Files read once each, signed and embedded: what an index keeps of a file, whichever process read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from weightsearch.checkpoints.discovery import CheckpointFile, Sources, by_time, reason_of
from weightsearch.checkpoints.formats import read_content
from weightsearch.checkpoints.metadata import Metadata
from weightsearch.checkpoints.named_tensors import find_tensors, one_line
from weightsearch.checkpoints.runs import sketch
from weightsearch.checkpoints.state_dict import align, assemble
from weightsearch.errors import WeightsearchError
from weightsearch.files import clean_text
from weightsearch.index import IndexStore
from weightsearch.index.zoo_rows import network_columns
from weightsearch.relations.open_files import OpenFile, signed_tensors
from weightsearch.relations.store import Signed
from weightsearch.search.subject import may_embed
from weightsearch.types import ANY, Architecture, Checkpoint, content_hash

if TYPE_CHECKING:  # an index without encoders has no use for PyTorch
    from weightsearch.training.represent import AnyEncoder

BATCH_BYTES = 64 * 2**20  # of weights that are embedded together
BATCH_ROWS = 256


@dataclass
class FileRecord:
    """What was read of one file, its weights aside. It does not depend on any other file.

    A file may have a row, a signature, both or neither: `refusal` and `unsigned` say why not.
    """

    file: CheckpointFile
    source: str  # where the file is, with links followed
    metadata: Metadata | None = None
    refusal: str | None = None  # why it can have no row
    described: str = ""  # its architecture, for people
    network: Mapping[str, object] = field(default_factory=dict)  # its architecture's fingerprint and size
    space: str | None = None  # the sub-directory whose encoder embedded it; None: the index has no encoder for it
    id: str = ""
    embedding: np.ndarray | None = None  # (D,) float32
    predicted: float = float("nan")
    layers: np.ndarray | None = None  # (F,) float32, what its layers are like
    sketch: np.ndarray | None = None  # of a file that may be one run with its neighbours (see `checkpoints.runs`)
    run_told: bool = False  # whether the user said how runs are told apart
    given: Metadata | None = None  # what the user's own table or study says of it
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    signed: Signed | None = None
    unsigned: str | None = None
    architecture: Architecture | None = None  # this and the weights `(P,)` are kept until it is embedded
    weights: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        return str(self.network.get("network", ""))


class RecordReader:
    """Opens and signs files for an index of these architectures. It needs neither the index itself nor PyTorch."""

    def __init__(self, architectures: Mapping[str, Architecture], sources: Sources, dataset: str | None = None) -> None:
        self.architectures = architectures
        self.sources = sources
        self.dataset = dataset  # what the networks were trained on, where the files do not say
        self._needed = partial(may_embed, architectures=architectures)

    def read(self, file: CheckpointFile, signed: Mapping[str, tuple[int, int]] = MappingProxyType({})) -> FileRecord:
        """Opens and signs one file; its record has its weights where an encoder of the index is to embed them.

        Args:
            signed: bytes and time in nanoseconds of files when they were signed before, by `FileRecord.source`: they
                are not signed again while these are the same.
        """
        source = file.place
        record = FileRecord(file, clean_text(str(source)), run_told=self.sources.name_runs)
        try:
            with one_line(str(file.path)):
                status = source.stat()
                content = read_content(file.path)
                network = find_tensors(content, self.sources.weights)
        except WeightsearchError as error:
            record.refusal = record.unsigned = reason_of(error, file.path)
            return record
        signature = None
        if signed.get(record.source) != (status.st_size, status.st_mtime_ns):
            try:
                with one_line(str(file.path)):
                    signature = OpenFile(file.path, signed_tensors(network), content.whole).sign()
            except WeightsearchError as error:
                record.unsigned = reason_of(error, file.path)
        not_finite = None if signature is None else {tensor.name: tensor.not_finite for tensor in signature.tensors}
        try:
            with one_line(str(file.path)):
                checkpoint = assemble(network, str(file.path), self._needed, not_finite)
                checkpoint = align(checkpoint, self.architectures.values())
            metadata = self.sources.describe(file, checkpoint.metadata)
            record.metadata = replace(metadata, dataset=metadata.dataset or self.dataset)
            self._take(record, checkpoint)
        except WeightsearchError as error:
            record.refusal = reason_of(error, file.path)
        if signature is not None:
            about = record.metadata
            run, epoch = (file.run, None) if about is None else (about.run or file.run, about.epoch)
            record.signed = Signed(record.source, signature, run, epoch, status.st_mtime_ns)
        return record

    def _take(self, record: FileRecord, checkpoint: Checkpoint) -> None:
        """Keeps of a checkpoint what a row needs, and its weights until they are embedded."""
        assert record.metadata is not None
        file, architecture = record.file, checkpoint.architecture
        record.described, record.network = architecture.describe(), network_columns(architecture)
        record.space = self.space_of(architecture.fingerprint)
        if record.space is None:
            return
        record.id = content_hash(checkpoint.weights)
        record.skipped, record.notes = checkpoint.skipped, checkpoint.notes
        record.given = self.sources.given(file.path, record.metadata)
        if record.metadata.run == file.run and by_time(file.path) and file.path.parent == file.root:
            record.sketch = sketch(checkpoint.weights)
        record.architecture, record.weights = architecture, checkpoint.weights

    def space_of(self, fingerprint: str) -> str | None:
        """Where networks of an architecture belong: in their own space, else in that of all, if there is one."""
        return next((space for space in (fingerprint, ANY.fingerprint) if space in self.architectures), None)


class FileReader:
    """Reads files for an index; without one, or without an encoder for them, it signs them alone.

    No more weights than a batch of them are in memory.
    """

    def __init__(self, index: IndexStore | None, sources: Sources, dataset: str | None = None) -> None:
        self.index = index
        self.sources = sources
        self.architectures = {} if index is None else index.architectures
        self.records = RecordReader(self.architectures, sources, dataset)
        self._encoders: dict[str, AnyEncoder] = {}
        self._pending: dict[str, list[FileRecord]] = {}  # by architecture, until there are enough of them
        self._bytes = 0

    def read(self, file: CheckpointFile, signed: Mapping[str, tuple[int, int]] = MappingProxyType({})) -> FileRecord:
        """As `RecordReader.read`; `embed` completes what was read so far."""
        return self.take(self.records.read(file, signed))

    def take(self, record: FileRecord) -> FileRecord:
        """Takes a record that was read, maybe by another process, to be embedded with others of its architecture."""
        if record.architecture is None or record.weights is None:
            return record
        fingerprint = record.architecture.fingerprint
        pending = self._pending.setdefault(fingerprint, [])
        pending.append(record)
        self._bytes += record.weights.nbytes
        if self._bytes >= BATCH_BYTES:
            self.embed()
        elif len(pending) >= BATCH_ROWS:
            self._embed(fingerprint)
        return record

    def embed(self) -> None:
        """Completes all records that were read."""
        for fingerprint in list(self._pending):
            self._embed(fingerprint)

    def _embed(self, fingerprint: str) -> None:
        from weightsearch.training.represent import represent

        pending = self._pending.pop(fingerprint)
        space, architecture = pending[0].space, pending[0].architecture
        assert space is not None
        weights = np.stack([record.weights for record in pending if record.weights is not None])
        self._bytes -= weights.nbytes
        activations = [record.metadata.recipe.get("activation") for record in pending if record.metadata]
        represented = represent(self.encoder(space), weights, activations, architecture=architecture)
        for i, record in enumerate(pending):
            record.embedding, record.predicted = represented.embedding[i], float(represented.predicted[i])
            record.layers = None if represented.layers is None else represented.layers[i]
            record.weights = record.architecture = None

    def encoder(self, space: str) -> AnyEncoder:
        assert self.index is not None
        from weightsearch.training.represent import load_any_encoder

        if space not in self._encoders:
            self._encoders[space] = load_any_encoder(self.index.encoder_directory(space))
        return self._encoders[space]
