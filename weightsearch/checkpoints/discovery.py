"""Files and folders of checkpoints -> records: each file's weights, and what is written of it anywhere.

Of a file `model.pt`, the row of a metadata table that names it counts first, then its sidecar (`model.json` beside it,
or `model.pt.json`), then what a training framework wrote beside it (`checkpoints.trackers`), the keys inside the file
itself, and last the numbers in its name.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from weightsearch.checkpoints.metadata import Metadata, interpret, merge, number
from weightsearch.checkpoints.metadata_table import MetadataTable, read_json
from weightsearch.checkpoints.readers.limits import natural
from weightsearch.checkpoints.remote.paths import RemotePath, as_path, located
from weightsearch.checkpoints.remote.reading import localize
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Trackers
from weightsearch.checkpoints.walk import HOLDERS, KERAS, STEP_FOLDER, Account, is_distributed, stem, walk_places
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import clean_text, write_whole
from weightsearch.text_table import counted
from weightsearch.types import Architecture, Checkpoint

SKIPPED_LISTED = 4
_METRIC = re.compile(  # in a file's name; a number without a point may be anything
    r"(?:^|(?<=[^a-z]))((?:(?:val|valid|validation|test|train|eval|dev)[_-])?(?:acc|accuracy|acc1|top1|loss))[_:-]?"
    r"(\d+\.\d+)(?![\d.])",
    re.IGNORECASE,
)
# As Keras' ModelCheckpoint is told to name files: {epoch:02d}-{val_loss:.2f}.keras, weights.{epoch:02d}-{…}.h5
_KERAS_EPOCH = re.compile(r"(?:.*[._-])?(\d{1,9})-\d+\.\d+")
_BY_TIME = re.compile(r"(?:^|[^a-z])(epochs?|ep|e|steps?|iter(ation)?|ckpt|checkpoint)[=_-]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Quarantined:
    """A file that was left out, and the one line that says why."""

    path: str
    reason: str


@dataclass(frozen=True)
class CheckpointFile:
    """A file to read. `run` is the name that its place below `root` gives its run, `metadata` what is known already.

    `prefix` is what runs' names begin with, so that those of several folders differ.
    """

    path: Path
    root: Path
    run: str
    metadata: Metadata = Metadata()  # noqa: RUF009 - frozen, and one for all saves much of a long list
    prefix: str = ""
    resolved: Path | None = None

    @property
    def place(self) -> Path:
        """The path with links followed."""
        return self.path.resolve() if self.resolved is None else self.resolved


@dataclass(frozen=True)
class DescribedCheckpoint:
    """A checkpoint with its weights and all that is known of it; the metadata always has a run."""

    checkpoint: Checkpoint
    metadata: Metadata
    path: Path


@dataclass(frozen=True)
class Sources:
    """Where metadata and the names of runs come from.

    A run is told by `run_column`, a name of the metadata, by `run_pattern`, a regular expression searched for in the
    path below the given folder (its first group, or all of it), else by what the file itself says, else by folder.
    `weights` is the key of the network in files that hold several.

    Example:
        >>> sources = Sources.make(run_pattern='[a-z-]+')
        >>> add(['index/examples'], 'index', sources=sources, quiet=True).added
        4
    """

    table: MetadataTable | None = None
    run_column: str | None = None
    run_pattern: re.Pattern[str] | None = None
    weights: str | None = None
    given_path: Path | None = None  # of that table, or of the study
    study: Finder | None = None  # of an Optuna study that was given as the table
    trackers: Trackers = field(default_factory=Trackers)
    unread: dict[str, str] = field(default_factory=dict)  # sidecars that cannot be read, and why

    @classmethod
    def make(
        cls,
        metadata: str | Path | None = None,
        key: str = "path",
        run_column: str | None = None,
        run_pattern: str | None = None,
        weights: str | None = None,
    ) -> Sources:
        """Raises UsageError for flags that contradict one another or a pattern that is none."""
        if run_column is not None and run_pattern is not None:
            raise UsageError("--run-column and --run-pattern both name runs: give one of them")
        try:
            pattern = None if run_pattern is None else re.compile(run_pattern)
        except re.error as error:
            raise UsageError(f"--run-pattern {run_pattern} is no regular expression: {error}") from None
        given = None if metadata is None else localize(as_path(metadata))
        study = None if given is None else _study(given)
        table = None if given is None or study is not None else MetadataTable.read(given, key)
        return cls(table, run_column, pattern, weights, given, study)

    @property
    def name_runs(self) -> bool:
        """Whether the user said how runs are told apart."""
        return self.run_column is not None or self.run_pattern is not None

    def expect(self, files: Iterable[CheckpointFile]) -> None:
        """Prepares for all `files` that will be read, so that a row of the table that two of them match is noticed."""
        if self.table is not None:
            self.table.expect((file.path, file.root) for file in files)

    def read(
        self, file: CheckpointFile, needed: Callable[[Architecture], bool] = lambda architecture: True
    ) -> DescribedCheckpoint:
        """Opens the file and merges what is known of it. Raises WeightsearchError, one line, for the quarantine.

        Weights of an architecture that is not `needed` are checked, and not kept.
        """
        checkpoint = read_checkpoint(file.path, self.weights, needed)
        metadata = self.describe(file, checkpoint.metadata)
        return DescribedCheckpoint(checkpoint, metadata, file.path)

    def describe(self, file: CheckpointFile, values: Mapping[str, Any]) -> Metadata:
        """What is known of a file, given the plain `values` in it. Raises WeightsearchError where no run is told."""
        inside = interpret(values, "file")
        in_name = _in_name(file.path)
        named = interpret(in_name, "file name") if in_name else Metadata()
        parts = [file.metadata]
        if sidecar := _sidecar(file.path):
            try:
                parts.insert(0, interpret(read_json(sidecar), "sidecar"))
            except WeightsearchError as error:
                self.unread[str(sidecar)] = str(error)
        if self.table is not None and (row := self.table.find(file.path)) is not None:
            parts.insert(0, row)
        told = merge([*parts, inside])
        below_root = file.path.relative_to(file.root)
        alone = not self.name_runs and len(below_root.parts) == 1
        epoch = told.epoch if told.epoch is not None else _epoch_in(below_root, alone=alone)
        asked = Inside(epoch, _step(told, file.path), values)
        labels = self.trackers.labels(file.path, file.root, asked)
        if self.study is not None and (label := self.study(file.path, asked)) is not None:
            labels.insert(0, label)
        metadata = merge([*parts, *(label.metadata for label in labels), inside, named])
        run, place = self._run(file, below_root, metadata, labels)
        if metadata.epoch is None:
            metadata = replace(metadata, epoch=_epoch_in(place, alone=alone and place.parent == Path()))
        return replace(metadata, run=run)

    def given(self, path: Path, metadata: Metadata) -> Metadata | None:
        """What the table or the study that the user gave says of a file; `metadata` is all that is known of it."""
        if self.table is not None:
            return self.table.find(path)
        label = None if self.study is None else self.study(path, Inside(metadata.epoch, _step(metadata, path)))
        return None if label is None else replace(label.metadata, run=None)

    @property
    def given_name(self) -> str:
        """The name of that table or study."""
        return "the study" if self.table is None else self.table.path.name

    def _run(self, file: CheckpointFile, place: Path, metadata: Metadata, labels: Sequence[Label]) -> tuple[str, Path]:
        """The run's name, and the path below the given folder, `place`, without what the pattern took as the run."""
        if self.run_column is not None:
            for values in ({"run": metadata.run}, metadata.extras, metadata.recipe, metadata.config):
                if (value := values.get(self.run_column)) is not None:
                    return str(value), place
            raise WeightsearchError(f"its metadata has no {self.run_column}, which --run-column asks for")
        if self.run_pattern is not None:
            match = self.run_pattern.search(place.as_posix())
            if match is None:
                raise WeightsearchError(f"--run-pattern {self.run_pattern.pattern} does not match its path")
            rest = place.as_posix()[: match.start()] + place.as_posix()[match.end() :]
            return next((group for group in match.groups() if group is not None), match[0]), Path(rest)
        if metadata.run is not None:
            return metadata.run, place
        if not file.run:  # told later, or not asked for
            return "", place
        folder = next((label.run for label in labels if label.run is not None), None)
        return (file.run if folder is None else _run_named(file, folder)), place

    @property
    def notes(self) -> list[str]:
        """What of the metadata could not be read or matched."""
        notes = [
            f"{path} cannot be read ({reason}); its checkpoint goes in without it"
            for path, reason in self.unread.items()
        ]
        return notes[:SKIPPED_LISTED] + self.trackers.notes[:SKIPPED_LISTED] + (self.table.notes if self.table else [])


def _study(path: Path) -> Finder | None:
    from weightsearch.checkpoints.trackers import optuna

    if path.suffix not in optuna.SUFFIXES or not path.is_file():
        return None
    studies = optuna.read_studies(path)
    if not studies:
        raise WeightsearchError(
            f"{path} holds no Optuna study; give a .csv, .json or .parquet file, or a study's database"
        )
    return optuna.finder(studies, path.parent)


def _run_named(file: CheckpointFile, folder: Path) -> str:
    """The name of a run whose folder a tracker knows."""
    root = file.root.absolute()
    if not folder.is_relative_to(root):
        return below(folder.absolute().parent, folder.name) if file.prefix else folder.name
    place = folder.relative_to(root).as_posix()
    if place == ".":
        return below(file.root.absolute().parent, file.root.resolve().name) if file.prefix else file.root.resolve().name
    return f"{file.prefix}/{place}".lstrip("/")


def _step(told: Metadata, path: Path) -> float | None:
    for key in ("global_step", "step", "iteration", "steps"):
        if (step := number(told.extras.get(key))) is not None:
            return step
    match = re.search(r"(?:step|iter)[=_-]?(\d{1,12})", stem(path), re.IGNORECASE)
    return float(match[1]) if match else None


def _in_name(path: Path) -> dict[str, str]:
    """Metrics in a name such as `epoch=3-val_acc=0.391.ckpt`, or `best_acc_91.5.pt`, which is the best one itself."""
    pairs = re.findall(r"([A-Za-z][A-Za-z0-9_/]*)=(-?\d+(?:\.\d+)?(?:e-?\d+)?)", stem(path)) + _METRIC.findall(
        stem(path)
    )
    named = {name.strip("_").replace("-", "_"): value for name, value in pairs if name not in ("epoch", "step")}
    return {name.removeprefix("best_"): value for name, value in named.items()}


@dataclass(frozen=True)
class Discovery:
    """The files to read below what was given, what is missing, and an account of all files that were seen."""

    files: list[CheckpointFile]
    missing: list[Quarantined]
    account: Account


def discover(paths: Iterable[str | Path], inventory: str | Path | None = None) -> Discovery:
    """The checkpoint files that `paths` mean: files, all below folders, and what glob patterns match; each once.

    In a folder, a sub-folder's files are one run, and each file of the folder itself is a run of its own. A run's name
    begins with that of the folder, so that those of several folders differ. Remote folders are listed, or taken from an
    `inventory`: a table of their files' path, size and etag.
    """
    discovered: dict[Path, CheckpointFile] = {}
    missing: list[Quarantined] = []
    account = Account()
    for given in located(paths, inventory):
        matches = [given] if given.exists() else _glob(given)
        if not matches:
            missing.append(Quarantined(str(given), "there is no such file or folder"))
        for path in matches:
            if path.is_dir() and not is_distributed(path, [file.name for file in path.iterdir()]):
                account_of_folder = Account()
                files = list(walk_places(path, account_of_folder))
                account.add(account_of_folder)
                if not files:
                    others = ", ".join(f"{count:,} {kind}" for kind, count in account_of_folder.others.most_common(4))
                    missing.append(
                        Quarantined(str(path), "it holds no file of weights" + (f" (but {others})" if others else ""))
                    )
                prefix = path.resolve().name
                runs: dict[Path, str] = {}  # of folders, which are fewer than files
                for file, place in files:
                    if file.parent == path or file.parent not in runs:
                        runs[file.parent] = f"{prefix}/{run_of(file, path)}".lstrip("/")
                    run = runs[file.parent]
                    discovered.setdefault(place, CheckpointFile(file, path, run, prefix=prefix, resolved=place))
            else:
                account.seen += 1
                account.weights += 1
                discovered.setdefault(
                    path.resolve(),
                    CheckpointFile(path, path.parent, _own_run(path), prefix=path.absolute().parent.name),
                )
    return Discovery(list(discovered.values()), missing, account)


def find_files(paths: Iterable[str | Path]) -> tuple[list[CheckpointFile], list[Quarantined]]:
    """The files of `discover`, and what is missing."""
    discovery = discover(paths)
    return discovery.files, discovery.missing


def _own_run(path: Path) -> str:
    """The run of a file that is given by its path: named by epoch or step it is one of its folder's run, else its own.

    So a later epoch that is added alone joins the epochs that were added with their folder.
    """
    if by_time(path):
        place = run_of(path.absolute(), path.absolute().parent.parent)
        return below(path.absolute().parent.parent, place)
    return below(path.parent, stem(path))


def by_time(path: Path) -> bool:
    """Whether a file's name, or its folder's, tells an epoch or step: `epoch=3.ckpt`, `model_step_500.pt`."""
    named = _BY_TIME.search(stem(path)) or STEP_FOLDER.fullmatch(path.parent.name) or _keras_epoch(path) is not None
    return bool(named)


def _keras_epoch(path: Path) -> int | None:
    """The epoch, counted from 1, before a metric in the name of a Keras file: `07-0.91.keras`."""
    if not path.name.endswith(KERAS):
        return None
    match = _KERAS_EPOCH.fullmatch(stem(path).removesuffix(".weights"))
    return int(match[1]) if match else None


def below(folder: Path, run: str) -> str:
    """A run's name with the folder's before it."""
    return f"{folder.resolve().name}/{run}".lstrip("/")


def _glob(pattern: Path) -> list[Path]:
    if isinstance(pattern, RemotePath):
        return list(pattern.matching())
    try:
        base = Path(pattern.anchor)
        return sorted(base.glob(str(pattern.relative_to(base))), key=lambda path: natural(str(path)))
    except (ValueError, OSError):
        return []


def run_of(path: Path, root: Path) -> str:
    """The run's name that a file's place below `root` gives it: its folder's, or that above `checkpoints`."""
    folder = path.relative_to(root).parent
    while folder != Path() and (HOLDERS.fullmatch(folder.name) or STEP_FOLDER.fullmatch(folder.name)):
        if folder.parent == Path():
            return folder.name if HOLDERS.fullmatch(folder.name) else root.resolve().name
        folder = folder.parent
    return stem(path) if folder == Path() else folder.as_posix()


def _sidecar(path: Path) -> Path | None:
    if isinstance(path, RemotePath):
        beside: tuple[Path, ...] = (path.with_name(f"{path.name}.json"), path.with_name(f"{stem(path)}.json"))
        return next((candidate for candidate in beside if candidate.is_file() and candidate != path), None)
    whole = str(path)  # texts, since most files have none and paths take long to make
    for name in (f"{whole}.json", f"{whole[: len(whole) - len(path.name)]}{stem(path)}.json"):
        if os.path.isfile(name) and name != whole:  # noqa: PTH113
            return Path(name)
    return None


def _epoch_in(place: Path, *, alone: bool) -> float | None:
    """The epoch that a path such as `run-3/epoch=12-step=400.ckpt`, `run-3/model_12.pt` or `checkpoint_12/…` tells.

    Of a file that is a run of its own (`alone`), a bare number is rather the run's.
    """
    for text in (stem(place), place.parent.name):
        if match := re.search(r"(?:epoch|(?:^|[^a-z])ep)[=_-]?(\d{1,9}(?:\.\d+)?)", text, re.IGNORECASE):
            return float(match[1]) if "." in match[1] else int(match[1])
    if (epoch := _keras_epoch(place)) is not None:
        return epoch
    matched = None if alone else re.search(r"(?:^|[=_-])(\d{1,9})$", stem(place).removesuffix(".weights"))
    matched = matched or re.fullmatch(r"checkpoint[_-](\d{1,9})", place.parent.name)
    return int(matched[1]) if matched else None


def write_quarantine(path: Path, quarantined: Sequence[Quarantined]) -> None:
    """A CSV file with the columns path and reason; an older one is replaced, and removed where nothing is left out."""
    if not quarantined:
        path.unlink(missing_ok=True)
        return
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "reason"])
    writer.writerows([(as_cell(bad.path), as_cell(bad.reason)) for bad in quarantined])
    write_whole(path, text.getvalue())


def as_cell(text: str) -> str:
    """A stranger's text as a cell of a CSV file that no spreadsheet computes: a formula gets an apostrophe before it.

    https://owasp.org/www-community/attacks/CSV_Injection

    Example:
        >>> as_cell("=HYPERLINK(...)")
        "'=HYPERLINK(...)"
    """
    text = clean_text(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


class _Read(Protocol):
    """Whatever says what of a file was skipped and assumed."""

    @property
    def skipped(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...


class Skipped:
    """What in files was no weight and no plain value, and what was assumed, counted for a few lines at the end."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()

    def count(self, checkpoint: _Read) -> None:
        self._files.update({re.sub(r"^[^:]*\.(?=[^:]*: )", "", text) for text in checkpoint.skipped})
        self._notes.update(set(checkpoint.notes))

    def add(self, other: Skipped) -> None:
        self._files.update(other._files)
        self._notes.update(other._notes)

    @property
    def notes(self) -> list[str]:
        notes = [f"{text} (in {counted(count, 'file')})" for text, count in self._notes.most_common(SKIPPED_LISTED)]
        if len(self._notes) > SKIPPED_LISTED:
            notes.append(f"{len(self._notes) - SKIPPED_LISTED:,} more such notes; query a file to see its own")
        if not self._files:
            return notes
        listed = [f"{text} (in {counted(count, 'file')})" for text, count in self._files.most_common(SKIPPED_LISTED)]
        more = len(self._files) - len(listed)
        return [*notes, f"skipped: {'; '.join(listed)}{f'; {more:,} more' if more else ''}"]


def reason_of(error: WeightsearchError, path: Path | str) -> str:
    """An error's line without the file's name at its beginning, which the table has in a column of its own."""
    return str(error).removeprefix(f"{path}: ")
