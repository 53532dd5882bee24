"""What was read of files -> rows and signatures of an index: runs, units and copies told among many files at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.discovery import Quarantined, Skipped, below, by_time
from weightsearch.checkpoints.folder_layouts import comvex_runs
from weightsearch.checkpoints.metadata import Metadata, as_fractions, stand_ins, told, unread, vary
from weightsearch.checkpoints.runs import in_one_unit, one_run, without_copies
from weightsearch.index import IndexStore, Rows, add_rows, update_values
from weightsearch.index.zoo_rows import _objects
from weightsearch.relations.store import Signed, SignedColumns, add_columns
from weightsearch.search.file_records import FileRecord
from weightsearch.text_table import counted
from weightsearch.types import ANY

# Signatures committed together, so that a kill loses no more than these: readers' pieces of 64, and four such commits
# almost fill one of the database's row groups, which is then left as it is.
SIGNED_TOGETHER = 1_920
TENSORS_TOGETHER = 50_000  # that these have, so that memory is bounded
CHUNK = 10 * SIGNED_TOGETHER  # files or checkpoints whose rows are added together; a kill loses no more than these


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


class RecordWriter:
    """Makes rows of what was read of files and of zoos, and writes them. Each call of `add_records` is one chunk."""

    def __init__(self, index: IndexStore, given_name: str = "the table") -> None:
        self.index = index
        self.identity = index.identity  # rows are embedded for this index, and for no other one that takes its place
        self.given_name = given_name  # of the table or study that the user gave
        self.added = self.already = self.signed = self.unsigned = self.seen = 0
        self.unknown: Counter[str] = Counter()
        self.quarantined: list[Quarantined] = []
        self.notes: list[str] = []
        self.skipped = Skipped()
        self._signed: list[Signed] = []
        self._columns: list[SignedColumns] = []  # of signatures that another process made
        self._waiting = self._waiting_tensors = 0  # signatures and their tensors that are not committed yet

    def sign(self, record: FileRecord) -> FileRecord:
        """Keeps a record's signature, which needs no encoder; it is committed with others."""
        self.seen += 1
        if record.unsigned is not None:
            self.unsigned += 1
        if record.signed is not None:
            self._signed.append(record.signed)
            self._count(1, len(record.signed.signature.tensors))
            record.signed = None  # the record is kept until its chunk is complete, its signature not that long
        return record

    def keep_signatures(self, signed: SignedColumns) -> None:
        """As `sign`, of signatures that came without their records."""
        self._columns.append(signed)
        self._count(len(signed), len(signed.tensors["name"]))

    def _count(self, signatures: int, tensors: int) -> None:
        self._waiting += signatures
        self._waiting_tensors += tensors
        if self._waiting >= SIGNED_TOGETHER or self._waiting_tensors >= TENSORS_TOGETHER:
            self.commit_signatures()

    def commit_signatures(self) -> None:
        self.signed += add_columns(self.index.path, [*self._columns, SignedColumns.of(self._signed)])
        self._columns.clear()
        self._signed.clear()
        self._waiting = self._waiting_tensors = 0

    def add_records(self, records: Iterable[FileRecord]) -> None:
        """Rows of files that were read and embedded, named and judged together."""
        groups: dict[str, list[FileRecord]] = {}
        for record in records:
            place = str(record.file.path)
            if record.refusal is not None:
                self.quarantined.append(Quarantined(place, record.refusal))
                continue
            if record.space is None and self._has_encoder(record):
                reason = "it was read before the index had an encoder for it; run `embed` again with this index"
                self.quarantined.append(Quarantined(place, reason))
            elif record.space is None:
                self.unknown[record.described] += 1
            else:
                groups.setdefault(record.fingerprint, []).append(record)
                self.skipped.count(record)
            if record.unsigned is not None:
                self.quarantined.append(Quarantined(place, record.unsigned))
        self.commit_signatures()
        for group in groups.values():
            self._name_runs(group)
        everything = [record for group in groups.values() for record in group]
        metadata, notes = as_fractions([known(record) for record in everything])
        runs = [of_file.run for of_file in metadata]
        metadata = in_one_unit(vary(metadata, [run or "" for run in runs]), runs)
        self.notes += [*told(metadata), *notes, *stand_ins(metadata), *unread(metadata)]
        for record, of_file in zip(everything, metadata, strict=True):
            record.metadata = of_file
        for group in groups.values():
            kept, copies = without_copies(group, lambda record: record.id, known)
            self.notes += copies
            self.already += len(group) - len(kept)
            space = kept[0].space
            assert space is not None
            self._repair(space, kept)
            self.write(space, self._rows(space, kept), [record.file.path for record in kept])

    def _has_encoder(self, record: FileRecord) -> bool:
        return not {record.fingerprint, ANY.fingerprint}.isdisjoint(self.index.architectures)

    def _name_runs(self, group: Sequence[FileRecord]) -> None:
        """Tells the runs of files of one architecture where each file by itself does not."""
        nameless = [record for record in group if not known(record).run]  # in the ComVeX layout
        names = comvex_runs([record.file.path.name for record in nameless], [known(record) for record in nameless])
        for record, run in zip(nameless, names, strict=True):
            record.metadata = replace(known(record), run=below(record.file.path.parent, run))
        group = [record for record in group if not record.run_told]
        self._join_held_runs(group)
        sketches = {record.file.path: record.sketch for record in group if record.sketch is not None}
        metadata, joined = one_run([known(record) for record in group], [record.file for record in group], sketches)
        self.notes += joined
        for record, of_file in zip(group, metadata, strict=True):
            record.metadata, record.sketch = of_file, None

    def _join_held_runs(self, group: Sequence[FileRecord]) -> None:
        """Later epochs of a folder are of the run that the index holds of it."""
        space = group[0].space if group else None
        late = [record for record in group if by_time(record.file.path) and known(record).run == record.file.run]
        if not late or space is None or space not in self.index.architectures:
            return
        held = self.index.table(space, ["source", "run"])
        runs: dict[str, set[str]] = {}
        for source, run in zip(held["source"], held["run"], strict=True):
            if isinstance(source, str) and run is not None:
                runs.setdefault(source.rpartition("/")[0], set()).add(run)
        for record in late:
            runs_of_folder = runs.get(record.source.rpartition("/")[0], set())
            if len(runs_of_folder) == 1:
                record.metadata = replace(known(record), run=next(iter(runs_of_folder)))

    def _rows(self, space: str, records: Sequence[FileRecord]) -> Rows:
        nan = float("nan")
        of_files = [known(record) for record in records]
        layers = [record.layers for record in records if record.layers is not None]
        metrics = {
            name: np.array([metadata.value(name) for metadata in of_files])
            for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        }
        return Rows(
            id=np.array([record.id for record in records]),
            run=_objects(metadata.run for metadata in of_files),
            epoch=np.array([nan if metadata.epoch is None else metadata.epoch for metadata in of_files]),
            **metrics,
            predicted_accuracy=np.array([record.predicted for record in records]),
            split=_objects(None for _ in records),
            recipe=_objects(json.dumps(metadata.recipe) for metadata in of_files),
            embedding=np.stack([record.embedding for record in records if record.embedding is not None]),
            dataset=_objects(metadata.dataset for metadata in of_files),
            source=_objects(record.source for record in records),
            metadata=_objects(
                json.dumps({**(record.network if space == ANY.fingerprint else {}), **known(record).extras})
                for record in records
            ),
            description=np.stack(layers) if layers else None,
        )

    def _repair(self, space: str, records: Sequence[FileRecord]) -> None:
        """Gives checkpoints that are held already the values that the given table or study has of them."""
        told_of = [record for record in records if record.given is not None]
        if not told_of:
            return
        held = set(self.index.table(space, ["id"])["id"])
        changes: dict[str, dict[str, Any]] = {}
        for record in told_of:
            row, metadata = record.given, known(record)
            if row is not None and record.id in held:
                told = {name: getattr(row, name) for name in ("epoch", "run", "dataset")}
                values = {name: metadata.value(name) for name in row.metrics} | told | dict(row.extras)
                changes[record.id] = {name: value for name, value in values.items() if value is not None}
        if changes:
            columns = set(self.index.keys())
            updated = update_values(self.index.path, changes)
            cells, checkpoints = counted(updated.cells, "cell"), counted(updated.checkpoints, "checkpoint")
            self.notes.append(f"set from {self.given_name}: {cells} of {checkpoints} held before")
            self.notes += [f"new column: {name}" for name in sorted(set(self.index.keys()) - columns)]

    def write(self, fingerprint: str, rows: Rows, places: Sequence[Path | str]) -> None:
        finite = np.isfinite(rows.embedding).all(axis=1)
        for i in np.flatnonzero(~finite).tolist():
            reason = "its weights are so large that its embedding is not finite"
            self.quarantined.append(Quarantined(str(places[i]), reason))
        rows = rows.take(np.flatnonzero(finite))
        if len(rows):
            summary = add_rows(self.index.path, fingerprint, rows, identity=self.identity)
            self.added += summary.added
            self.already += len(rows) - summary.added

    def report(self) -> AddReport:
        self.notes += self.skipped.notes
        return AddReport(
            self.index.path,
            self.added,
            self.already,
            dict(self.unknown),
            tuple(self.quarantined),
            tuple(self.notes),
            self.signed,
            self.seen - self.signed - self.unsigned,
        )


def known(record: FileRecord) -> Metadata:
    """What is known of a file that can have a row."""
    assert record.metadata is not None
    return record.metadata
