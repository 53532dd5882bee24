"""The first steps of an import: every file read once, and what is known of each put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.discovery import CheckpointFile, Quarantined, Skipped, Sources, reason_of
from weightsearch.checkpoints.folder_layouts import Layout, comvex_runs, find
from weightsearch.checkpoints.formats import natural
from weightsearch.checkpoints.metadata import Metadata, as_fractions, stand_ins, told, unread, vary
from weightsearch.checkpoints.remote.reading import fetched_ahead
from weightsearch.checkpoints.runs import in_one_unit, one_run, sketch, without_copies
from weightsearch.checkpoints.state_dict import align
from weightsearch.checkpoints.walk import Account
from weightsearch.errors import Interrupted, UsageError, WeightsearchError
from weightsearch.files import clean_text
from weightsearch.progress import progress_bar
from weightsearch.text_table import counted
from weightsearch.types import Architecture
from weightsearch.zoo.import_rows import CheckpointToWrite, RunToWrite

KEPT_BYTES = 128 * 2**20  # of weights from the first reading


@dataclass(frozen=True)
class SurveyedFile:
    """A file that was read, without its weights. `id` is the hash of these."""

    file: CheckpointFile
    metadata: Metadata
    fingerprint: str
    id: str


@dataclass(frozen=True)
class Survey:
    """What a folder holds. `weights` are those of the first files, by source, which need not be read again."""

    folder: Path
    files: list[SurveyedFile] = field(default_factory=list)
    architectures: dict[str, Architecture] = field(default_factory=dict)  # by fingerprint
    quarantined: list[Quarantined] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    sketches: dict[Path, np.ndarray] = field(default_factory=dict)  # of the weights, by file: alike where these are
    account: Account = field(default_factory=Account)

    @property
    def counts(self) -> Counter[str]:
        """How many files each architecture has, by fingerprint."""
        return Counter(file.fingerprint for file in self.files)

    def chosen(self, wanted: str | None) -> str | None:
        """The one architecture to import; None for all of several. Raises UsageError where `wanted` is not there."""
        if wanted is None:
            return next(iter(self.counts)) if len(self.counts) == 1 else None
        if wanted not in self.counts:
            listed = ", ".join(f"{name} ({counted(count, 'file')})" for name, count in self.counts.most_common())
            raise UsageError(f"--architecture {wanted}: {self.folder} has {listed}")
        return wanted


def survey_folder(folder: Path, layout: Layout, sources: Sources, quiet: bool = False) -> Survey:
    """Opens every file once, keeping all but the weights, and those of the first `KEPT_BYTES`.

    Raises WeightsearchError where no file can be read, Interrupted after Ctrl-C.
    """
    survey = Survey(folder)
    files = find(folder, layout, survey.account)
    sources.expect(files)
    kept = 0
    with progress_bar("reading", len(files), unit="files", quiet=quiet) as advance:
        try:
            for file in fetched_ahead(files):
                advance()
                try:
                    described = sources.read(file)
                except WeightsearchError as error:
                    survey.quarantined.append(Quarantined(str(file.path), reason_of(error, file.path)))
                    continue
                checkpoint = align(described.checkpoint, survey.architectures.values())
                fingerprint = checkpoint.architecture.fingerprint
                survey.architectures.setdefault(fingerprint, checkpoint.architecture)
                survey.skipped.count(checkpoint)
                kept += checkpoint.weights.nbytes
                if kept <= KEPT_BYTES:
                    survey.weights[str(file.path.resolve())] = checkpoint.weights
                survey.sketches[file.path] = sketch(checkpoint.weights)
                survey.files.append(SurveyedFile(file, described.metadata, fingerprint, checkpoint.id))
        except KeyboardInterrupt:
            raise Interrupted("stopped while reading; nothing was imported, run the same command again") from None
    if not survey.files:
        bad = survey.quarantined
        first = f"; {len(bad):,} cannot be read, such as {bad[0].path}: {bad[0].reason}" if bad else ""
        seen = "".join(f"; {note}" for note in survey.account.notes)
        raise WeightsearchError(f"{folder} holds no checkpoints to import{first}{seen}")
    return survey


def put_together(
    survey: Survey, chosen: str | None, layout: Layout, sources: Sources
) -> tuple[list[SurveyedFile], list[str]]:
    """The files to import, each network once, with runs, epochs in one unit, accuracies in [0, 1]; and notes."""
    files = [file for file in survey.files if chosen in (None, file.fingerprint)]
    files, copies = without_copies(files, lambda file: file.id, lambda file: file.metadata)
    metadata, notes = as_fractions([file.metadata for file in files])
    if layout is Layout.COMVEX and not sources.name_runs:
        names = comvex_runs([file.file.path.name for file in files], metadata)
        metadata = [replace(one, run=name) for one, name in zip(metadata, names, strict=True)]
    elif not sources.name_runs:
        metadata, joined = one_run(metadata, [file.file for file in files], survey.sketches)
        notes += joined
    runs = [one.run or file.file.run for file, one in zip(files, metadata, strict=True)]
    metadata = in_one_unit(vary(metadata, runs), runs)
    notes = [*copies, *told(metadata), *notes, *stand_ins(metadata), *unread(metadata), *survey.skipped.notes]
    files = [replace(file, metadata=one) for file, one in zip(files, metadata, strict=True)]
    return files, notes + survey.account.notes


def grouped(survey: Survey, files: Sequence[SurveyedFile]) -> list[RunToWrite]:
    """Files by run and epoch; of one epoch the first is kept, and the others are quarantined.

    Where none of a run's files tells an epoch they are counted; one that does not, among others that do, comes last.
    """
    members: dict[str, list[SurveyedFile]] = {}
    for file in files:
        members.setdefault(file.metadata.run or file.file.run, []).append(file)
    runs = []
    for name in sorted(members, key=natural):
        epochs = [file.metadata.epoch for file in members[name] if file.metadata.epoch is not None]
        following = 1 + int(max(epochs, default=-1))
        checkpoints: dict[float, CheckpointToWrite] = {}
        recipe: dict[str, object] = {}
        for file in members[name]:
            recipe |= file.metadata.recipe
            epoch = file.metadata.epoch
            if epoch is None:
                epoch, following = following, following + 1
            if epoch in checkpoints:
                reason = f"its run {name} has another checkpoint of epoch {epoch:g}, {checkpoints[epoch].source}"
                survey.quarantined.append(Quarantined(str(file.file.path), reason))
                continue
            checkpoints[epoch] = CheckpointToWrite(
                epoch,
                str(file.file.path.resolve()),
                {column: measured.value for column, measured in file.metadata.metrics.items()},
                file.metadata.extras,
                survey.architectures[file.fingerprint],
                file.id,
            )
        runs.append(RunToWrite(clean_text(name), recipe, [checkpoints[epoch] for epoch in sorted(checkpoints)]))
    return runs
