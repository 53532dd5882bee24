"""Public zoos and anybody's folders of checkpoints -> our zoo format: `import_zoo`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.discovery import Found, Quarantined, Skipped, Sources, reason_of
from weightsearch.checkpoints.folder_layouts import Layout, comvex_runs, find, metrics_file, recognise
from weightsearch.checkpoints.formats import natural
from weightsearch.checkpoints.metadata import Metadata, as_fractions, stand_ins, told, unread, vary
from weightsearch.checkpoints.runs import in_one_unit, one_run, sketch, without_copies
from weightsearch.checkpoints.state_dict import align, read_checkpoint
from weightsearch.checkpoints.walk import Account
from weightsearch.errors import Interrupted, UsageError, WeightsearchError
from weightsearch.files import clean_text
from weightsearch.progress import progress_bar
from weightsearch.types import Architecture
from weightsearch.zoo.import_writer import Checkpoint, ImportSummary, Run, write_runs, zoo_info
from weightsearch.zoo.small_cnn_zoo import open_small_cnn_zoo
from weightsearch.zoo.store import ZooInfo, connect
from weightsearch.zoo.trainer.networks import CnnShape

KEPT_BYTES = 128 * 2**20  # of weights from the first reading


def import_zoo(
    path: str | Path,
    out: str | Path,
    *,
    layout: Layout | None = None,
    sources: Sources | None = None,
    dataset: str | None = None,
    architecture: str | None = None,
    runs: int | None = None,
    quiet: bool = False,
) -> ImportSummary:
    """Imports a folder of checkpoints as a zoo in the directory `out`, which `train` takes as it takes our own.

    All but the first files are read twice, one checkpoint at a time: first to learn what there is, then to copy it,
    some runs at a time. A killed import goes on when called again, and a later one adds the runs that are new. Files
    that cannot be read, and checkpoints that are not finite, are left out and listed in `out/quarantine.csv`.

    Args:
        layout: None to recognise it.
        sources: where metadata and runs' names come from; not for the Small CNN Zoo, which has its own table.
        dataset: what the networks were trained on, where the files do not say.
        architecture: the fingerprint of the one to import; None for all. Where all networks are of one architecture,
            the zoo is one of that, else of many.
        runs: import only the first so many.

    Raises:
        WeightsearchError: nothing to import, or anything else a user can fix.
        Interrupted: after Ctrl-C; the runs that are in the zoo stay good.

    Example:
        >>> import_zoo('index/examples', 'imported', quiet=True).checkpoints
        4
    """
    folder, out = Path(path), Path(out)
    if not folder.is_dir():
        what = "is a file; give the folder that it lies in" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}")
    if (folder / "zoo.json").is_file():
        raise UsageError(f"{folder} is a zoo already; train on it as it is")
    if runs is not None and runs < 1:
        raise UsageError(f"--runs {runs}: choose at least 1")
    layout = layout or recognise(folder)
    if layout is Layout.SMALL_CNN_ZOO:
        if architecture is not None or (sources is not None and (sources.name_runs or sources.table is not None)):
            raise UsageError(
                f"{folder} is a Small CNN Zoo, which has its own table and one architecture: leave out --metadata, "
                "--run-column, --run-pattern and --architecture"
            )
        return _import_small_cnn(folder, out, dataset, runs, quiet)
    sources = sources or Sources()
    survey = _survey(folder, layout, sources, quiet)
    chosen = _choose(survey, architecture, folder)
    seen = [file for file in survey.files if chosen in (None, file.fingerprint)]
    seen, copies = without_copies(seen, lambda file: file.id, lambda file: file.metadata)
    known, notes = as_fractions([file.metadata for file in seen])
    if layout is Layout.COMVEX and not sources.name_runs:
        names = comvex_runs([file.found.path.name for file in seen], known)
        known = [replace(metadata, run=name) for metadata, name in zip(known, names, strict=True)]
    elif not sources.name_runs:
        known, joined = one_run(known, [file.found for file in seen], survey.sketches)
        notes += joined
    runs_of = [metadata.run or file.found.run for file, metadata in zip(seen, known, strict=True)]
    known = in_one_unit(vary(known, runs_of), runs_of)
    notes = [*copies, *told(known), *notes, *stand_ins(known), *unread(known), *survey.skipped.notes]
    notes += survey.account.notes
    quarantined = survey.quarantined
    kinds = [survey.architectures[file.fingerprint] for file in seen]
    listed = _runs([file.found for file in seen], known, kinds, quarantined)[:runs]
    by_source = {checkpoint.source: checkpoint.architecture for run in listed for checkpoint in run.checkpoints}
    datasets = {metadata.dataset for metadata in known} - {None}
    dataset = dataset or (datasets.pop() if len(datasets) == 1 else None) or "unknown"
    notes += sources.notes
    info = zoo_info(out, survey.architectures[chosen] if chosen else None, layout, dataset, "imported")

    def read(source: str) -> np.ndarray:
        if source in survey.weights:
            return survey.weights.pop(source)
        expected = by_source[source]
        checkpoint = align(read_checkpoint(source, sources.weights), [expected])
        if checkpoint.architecture.fingerprint != expected.fingerprint:
            raise WeightsearchError(f"{source}: it changed while it was imported")
        return checkpoint.weights

    added = write_runs(out, info, listed, read, quarantined, quiet=quiet)
    counts = Counter(file.fingerprint for file in survey.files)
    others = {
        f"{name}: {survey.architectures[name].describe()}": count
        for name, count in counts.most_common()
        if chosen is not None and name != chosen
    }
    return _summary(out, layout, info, added, quarantined, others, notes)


def _import_small_cnn(folder: Path, out: Path, dataset: str | None, limit: int | None, quiet: bool) -> ImportSummary:
    metrics = metrics_file(folder)
    if metrics is None:
        raise WeightsearchError(f"{folder} has no metrics.csv.gz, which a Small CNN Zoo has beside weights.npy")
    architecture, runs, told, read, notes = open_small_cnn_zoo(folder, metrics, limit)
    # Where it is the published zoo, the published figures are about it.
    preset = "v1" if architecture.fingerprint == CnnShape().architecture.fingerprint else "imported"
    info = zoo_info(out, architecture, Layout.SMALL_CNN_ZOO, dataset or told or "unknown", preset)
    quarantined: list[Quarantined] = []
    added = write_runs(out, info, runs, read, quarantined, quiet=quiet)
    return _summary(out, Layout.SMALL_CNN_ZOO, info, added, quarantined, {}, notes)


@dataclass(frozen=True)
class _Seen:
    found: Found
    metadata: Metadata
    fingerprint: str
    id: str


@dataclass(frozen=True)
class _Survey:
    files: list[_Seen]
    architectures: dict[str, Architecture]
    quarantined: list[Quarantined]
    skipped: Skipped
    weights: dict[str, np.ndarray]  # by source, of the first files, which need not be read again
    sketches: dict[Path, np.ndarray]  # of the weights, by file: alike where the weights are
    account: Account


def _survey(folder: Path, layout: Layout, sources: Sources, quiet: bool) -> _Survey:
    """Opens every file once, keeping all but the weights, and those of the first `KEPT_BYTES`."""
    account = Account()
    found = find(folder, layout, account)
    quarantined: list[Quarantined] = []
    sketches: dict[Path, np.ndarray] = {}
    skipped = Skipped()
    weights: dict[str, np.ndarray] = {}
    kept = 0
    files: list[_Seen] = []
    architectures: dict[str, Architecture] = {}
    with progress_bar("reading", len(found), unit="files", quiet=quiet) as advance:
        try:
            for file in found:
                advance()
                try:
                    record = sources.read(file)
                except WeightsearchError as error:
                    quarantined.append(Quarantined(str(file.path), reason_of(error, file.path)))
                    continue
                checkpoint = align(record.checkpoint, architectures.values())
                fingerprint = checkpoint.architecture.fingerprint
                architectures.setdefault(fingerprint, checkpoint.architecture)
                skipped.count(checkpoint)
                kept += checkpoint.weights.nbytes
                if kept <= KEPT_BYTES:
                    weights[str(file.path.resolve())] = checkpoint.weights
                sketches[file.path] = sketch(checkpoint.weights)
                files.append(_Seen(file, record.metadata, fingerprint, checkpoint.id))
        except KeyboardInterrupt:
            raise Interrupted("stopped while reading; nothing was imported, run the same command again") from None
    if not files:
        first = f"; {len(quarantined):,} cannot be read, such as {_told(quarantined[0])}" if quarantined else ""
        seen = "".join(f"; {note}" for note in account.notes)
        raise WeightsearchError(f"{folder} holds no checkpoints to import{first}{seen}")
    return _Survey(files, architectures, quarantined, skipped, weights, sketches, account)


def _told(bad: Quarantined) -> str:
    return f"{bad.path}: {bad.reason}"


def _choose(survey: _Survey, wanted: str | None, folder: Path) -> str | None:
    """The one architecture to import; None for all of several."""
    counts = Counter(file.fingerprint for file in survey.files)
    if wanted is None:
        return next(iter(counts)) if len(counts) == 1 else None
    if wanted not in counts:
        known = ", ".join(f"{name} ({count:,} files)" for name, count in counts.most_common())
        raise UsageError(f"--architecture {wanted}: {folder} has {known}")
    return wanted


def _runs(
    found: Sequence[Found],
    known: Sequence[Metadata],
    architectures: Sequence[Architecture],
    quarantined: list[Quarantined],
) -> list[Run]:
    """Files by run and epoch; of one epoch the first is kept.

    Where none of a run's files tells an epoch they are counted; one that does not, among others that do, comes last.
    """
    members: dict[str, list[tuple[Found, Metadata, Architecture]]] = {}
    for file, metadata, architecture in zip(found, known, architectures, strict=True):
        members.setdefault(metadata.run or file.run, []).append((file, metadata, architecture))
    runs = []
    for name in sorted(members, key=natural):
        own = members[name]
        following = 1 + int(max((metadata.epoch for _, metadata, _ in own if metadata.epoch is not None), default=-1))
        checkpoints: dict[float, Checkpoint] = {}
        for file, metadata, architecture in own:
            epoch = metadata.epoch
            if epoch is None:
                epoch, following = following, following + 1
            if epoch in checkpoints:
                reason = f"its run {name} has another checkpoint of epoch {epoch:g}, {checkpoints[epoch].source}"
                quarantined.append(Quarantined(str(file.path), reason))
                continue
            metrics = {column: measured.value for column, measured in metadata.metrics.items()}
            checkpoints[epoch] = Checkpoint(epoch, str(file.path.resolve()), metrics, metadata.extras, architecture)
        recipe: dict[str, object] = {}
        for _, metadata, _ in own:
            recipe |= metadata.recipe
        runs.append(Run(clean_text(name), recipe, [checkpoints[epoch] for epoch in sorted(checkpoints)]))
    return runs


def _summary(
    out: Path,
    layout: Layout,
    info: ZooInfo,
    added: int,
    quarantined: Sequence[Quarantined],
    others: dict[str, int],
    notes: Sequence[str],
) -> ImportSummary:
    with connect(out, read_only=True) as connection:
        [(runs, checkpoints, kinds)] = connection.execute(
            "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM checkpoints), "
            "(SELECT count(*) FROM architectures)"
        ).fetchall()
    kinds = max(1, kinds)
    quarantined = tuple(quarantined)
    return ImportSummary(
        out, layout, info.architecture, runs, checkpoints, added, quarantined, kinds, others, tuple(notes)
    )


__all__ = ["ImportSummary", "Layout", "import_zoo"]
