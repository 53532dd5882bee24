"""Public zoos and anybody's folders of checkpoints -> our zoo format: `import_zoo`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.discovery import Quarantined, Sources
from weightsearch.checkpoints.folder_layouts import Layout, metrics_file, recognise
from weightsearch.checkpoints.remote.paths import RemotePath, located
from weightsearch.checkpoints.state_dict import align, read_checkpoint
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import UNNAMED_DATASET
from weightsearch.zoo.import_rows import RunToWrite
from weightsearch.zoo.import_survey import Survey, SurveyedFile, grouped, put_together, survey_folder
from weightsearch.zoo.import_writer import ImportSummary, Written, write_runs, zoo_info
from weightsearch.zoo.small_cnn_zoo import open_small_cnn_zoo
from weightsearch.zoo.store import ZooInfo, connect
from weightsearch.zoo.trainer.networks import CnnShape


@dataclass(frozen=True)
class ImportOptions:
    """How a folder is imported.

    Args:
        layout: None to recognise it.
        sources: where metadata and runs' names come from; not for the Small CNN Zoo, which has its own table.
        dataset: what the networks were trained on, where the files do not say.
        architecture: the fingerprint of the one to import; None for all. Where all networks are of one architecture,
            the zoo is one of that, else of many.
        runs: import only the first so many.

    Example:
        >>> import_zoo('index/examples', 'imported', ImportOptions(runs=2), quiet=True).checkpoints
        2
    """

    layout: Layout | None = None
    sources: Sources | None = None
    dataset: str | None = None
    architecture: str | None = None
    runs: int | None = None
    inventory: str | Path | None = None  # of remote files: their path, size and etag, in place of a listing

    def __post_init__(self) -> None:
        if self.runs is not None and self.runs < 1:
            raise UsageError(f"--runs {self.runs}: choose at least 1")


def import_zoo(
    path: str | Path, out: str | Path, options: ImportOptions | None = None, *, quiet: bool = False, **changes: Any
) -> ImportSummary:
    """Imports a folder of checkpoints as a zoo in the directory `out`, which `train` takes as it takes our own.

    All but the first files are read twice, one checkpoint at a time: first to learn what there is, then to copy it,
    some runs at a time. A killed import goes on when called again. A later one adds the runs and epochs that are new,
    and gives the checkpoints that are there what is known of them by then. Files that cannot be read, and checkpoints
    that are not finite, are left out and listed in `out/quarantine.csv`.

    Args:
        changes: single options, by name: `import_zoo(folder, out, dataset="svhn")`.

    Raises:
        WeightsearchError: nothing to import, or anything else a user can fix.
        Interrupted: after Ctrl-C; the runs that are in the zoo stay good.

    Example:
        >>> import_zoo('index/examples', 'imported', quiet=True).checkpoints
        4
    """
    options = replace(options or ImportOptions(), **changes)
    (folder,), out = located([path], options.inventory), Path(out)
    _check(folder)
    layout = options.layout or recognise(folder)
    if layout is Layout.SMALL_CNN_ZOO:
        if isinstance(folder, RemotePath):
            raise UsageError(f"{folder} is a Small CNN Zoo; copy its folder to this machine and import that")
        return _import_small_cnn(folder, out, options, quiet)
    sources = options.sources or Sources()
    survey = survey_folder(folder, layout, sources, quiet)
    chosen = survey.chosen(options.architecture)
    files, notes = put_together(survey, chosen, layout, sources)
    runs = grouped(survey, files)[: options.runs]
    dataset = options.dataset or _only_dataset(files) or UNNAMED_DATASET
    info = zoo_info(out, survey.architectures[chosen] if chosen else None, layout, dataset, "imported")
    written = write_runs(out, info, runs, _reader(survey, runs, sources), survey.quarantined, quiet=quiet)
    others = {
        f"{name}: {survey.architectures[name].describe()}": count
        for name, count in survey.counts.most_common()
        if chosen is not None and name != chosen
    }
    return _summary(out, layout, info, written, survey.quarantined, others, [*notes, *sources.notes])


def _check(folder: Path) -> None:
    if not folder.is_dir():
        if folder.exists():
            raise UsageError(f"{folder} is a file; give the folder that it lies in")
        raise WeightsearchError(f"{folder} does not exist")
    if (folder / "zoo.json").is_file():
        raise UsageError(f"{folder} is a zoo already; train on it as it is")


def _only_dataset(files: Sequence[SurveyedFile]) -> str | None:
    datasets = {file.metadata.dataset for file in files} - {None}
    return datasets.pop() if len(datasets) == 1 else None


def _reader(survey: Survey, runs: Sequence[RunToWrite], sources: Sources) -> Callable[[str], np.ndarray]:
    """Reads the flat weights `(P,)` of a source: those that were kept, else from its file again."""
    architectures = {checkpoint.source: checkpoint.architecture for run in runs for checkpoint in run.checkpoints}

    def read(source: str) -> np.ndarray:
        if source in survey.weights:
            return survey.weights.pop(source)
        expected = architectures[source]
        checkpoint = align(read_checkpoint(source, sources.weights), [expected])
        if checkpoint.architecture.fingerprint != expected.fingerprint:
            raise WeightsearchError(f"{source}: it changed while it was imported")
        return checkpoint.weights

    return read


def _import_small_cnn(folder: Path, out: Path, options: ImportOptions, quiet: bool) -> ImportSummary:
    sources = options.sources
    if options.architecture is not None or (sources is not None and (sources.name_runs or sources.table is not None)):
        raise UsageError(
            f"{folder} is a Small CNN Zoo, which has its own table and one architecture: leave out --metadata, "
            "--run-column, --run-pattern and --architecture"
        )
    metrics = metrics_file(folder)
    if metrics is None:
        raise WeightsearchError(f"{folder} has no metrics.csv.gz, which a Small CNN Zoo has beside weights.npy")
    architecture, runs, dataset, read, notes = open_small_cnn_zoo(folder, metrics, options.runs)
    # Where it is the published zoo, the published figures are about it.
    preset = "v1" if architecture.fingerprint == CnnShape().architecture.fingerprint else "imported"
    dataset = options.dataset or dataset or "unknown"
    info = zoo_info(out, architecture, Layout.SMALL_CNN_ZOO, dataset, preset)
    quarantined: list[Quarantined] = []
    written = write_runs(out, info, runs, read, quarantined, quiet=quiet)
    return _summary(out, Layout.SMALL_CNN_ZOO, info, written, quarantined, {}, notes)


def _summary(
    out: Path,
    layout: Layout,
    info: ZooInfo,
    written: Written,
    quarantined: Sequence[Quarantined],
    others: Mapping[str, int],
    notes: Sequence[str],
) -> ImportSummary:
    with connect(out, read_only=True) as connection:
        [(runs, checkpoints, kinds)] = connection.execute(
            "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM checkpoints), "
            "(SELECT count(*) FROM architectures)"
        ).fetchall()
    return ImportSummary(
        path=out,
        layout=layout,
        architecture=info.architecture,
        runs=runs,
        checkpoints=checkpoints,
        added=written.runs,
        quarantined=tuple(quarantined),
        architectures=max(1, kinds),
        others=others,
        notes=(*notes, *written.notes),
        later=written.later,
        changed=written.changed,
    )


__all__ = ["ImportOptions", "ImportSummary", "Layout", "import_zoo"]
