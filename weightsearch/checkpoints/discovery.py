"""Files and folders of checkpoints -> records: each file's weights, and what is written of it anywhere.

Of a file `model.pt`, the row of a metadata table that names it counts first, then its sidecar (`model.json` beside it,
or `model.pt.json`), then the keys inside the file itself.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from weightsearch.checkpoints.formats import natural
from weightsearch.checkpoints.metadata import Metadata, interpret, merge
from weightsearch.checkpoints.metadata_table import MetadataTable, read_json
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import clean_text
from weightsearch.types import Checkpoint

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz")
SHARDS = ".safetensors.index.json"
SKIPPED_LISTED = 4
NAMES = ("checkpoints", "checkpoint")  # as Ray Tune's trainables name them, without a suffix
# What trainers leave beside the weights: no networks.
NOT_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|dataset)([._-].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Quarantined:
    """A file that was left out, and the one line that says why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Found:
    """A file to read. `run` is the name that its place below `root` gives its run, `metadata` what is known already."""

    path: Path
    root: Path
    run: str
    metadata: Metadata = field(default_factory=Metadata)


@dataclass(frozen=True)
class Record:
    """A checkpoint with its weights and all that is known of it; the metadata always has a run."""

    checkpoint: Checkpoint
    metadata: Metadata
    path: Path


@dataclass(frozen=True)
class Sources:
    """Where metadata and the names of runs come from.

    A run is told by `run_column`, a name of the metadata, by `run_pattern`, a regular expression searched for in the
    path below the given folder (its first group, or all of it), else by what the file itself says, else by folder.

    Example:
        >>> sources = Sources.make(run_pattern='[a-z-]+')
        >>> add(['index/examples'], 'index', sources=sources, quiet=True).added
        4
    """

    table: MetadataTable | None = None
    run_column: str | None = None
    run_pattern: re.Pattern[str] | None = None

    @classmethod
    def make(
        cls,
        metadata: str | Path | None = None,
        key: str = "path",
        run_column: str | None = None,
        run_pattern: str | None = None,
    ) -> Sources:
        """Raises UsageError for flags that contradict one another or a pattern that is none."""
        if run_column is not None and run_pattern is not None:
            raise UsageError("--run-column and --run-pattern both name runs: give one of them")
        try:
            pattern = None if run_pattern is None else re.compile(run_pattern)
        except re.error as error:
            raise UsageError(f"--run-pattern {run_pattern} is no regular expression: {error}") from None
        return cls(None if metadata is None else MetadataTable.read(metadata, key), run_column, pattern)

    @property
    def name_runs(self) -> bool:
        """Whether the user said how runs are told apart."""
        return self.run_column is not None or self.run_pattern is not None

    def read(self, found: Found) -> Record:
        """Opens the file and merges what is known of it. Raises WeightsearchError, one line, for the quarantine."""
        checkpoint = read_checkpoint(found.path)
        known = [found.metadata, interpret(checkpoint.metadata, "file")]
        if sidecar := _sidecar(found.path):
            known.insert(0, interpret(read_json(sidecar), "sidecar"))
        if self.table is not None and (row := self.table.find(found.path)) is not None:
            known.insert(0, row)
        metadata = merge(known)
        run, place = self._run(found, metadata)
        alone = not self.name_runs and place.parent == Path()
        epoch = _epoch_in(place, alone=alone) if metadata.epoch is None else metadata.epoch
        return Record(checkpoint, replace(metadata, run=run, epoch=epoch), found.path)

    def _run(self, found: Found, metadata: Metadata) -> tuple[str, Path]:
        """The run's name, and the path below the given folder without what the pattern took as the run."""
        place = found.path.relative_to(found.root)
        if self.run_column is not None:
            for values in ({"run": metadata.run}, metadata.extras, metadata.recipe):
                if (value := values.get(self.run_column)) is not None:
                    return str(value), place
            raise WeightsearchError(f"its metadata has no {self.run_column}, which --run-column asks for")
        if self.run_pattern is not None:
            match = self.run_pattern.search(place.as_posix())
            if match is None:
                raise WeightsearchError(f"--run-pattern {self.run_pattern.pattern} does not match its path")
            rest = place.as_posix()[: match.start()] + place.as_posix()[match.end() :]
            return next((group for group in match.groups() if group is not None), match[0]), Path(rest)
        return found.run if metadata.run is None else metadata.run, place


def find_files(paths: Iterable[str | Path]) -> tuple[list[Found], list[Quarantined]]:
    """The checkpoint files that `paths` mean: files, all below folders, and what glob patterns match; each once.

    In a folder, a sub-folder's files are one run, and each file of the folder itself is a run of its own. A run's name
    begins with that of the folder, so that those of several folders differ.
    """
    found: dict[Path, Found] = {}
    missing = []
    for given in map(Path, paths):
        matches = [given] if given.exists() else _glob(given)
        if not matches:
            missing.append(Quarantined(str(given), "there is no such file or folder"))
        for path in matches:
            if path.is_dir():
                files = list(walk(path))
                if not files:
                    missing.append(Quarantined(str(path), f"it holds no {', '.join(SUFFIXES)} file"))
                for file in files:
                    found.setdefault(file.resolve(), Found(file, path, below(path, run_of(file, path))))
            else:
                found.setdefault(path.resolve(), Found(path, path.parent, below(path.parent, stem(path))))
    return list(found.values()), missing


def below(folder: Path, run: str) -> str:
    """A run's name with the folder's before it."""
    return f"{folder.resolve().name}/{run}".lstrip("/")


def _glob(pattern: Path) -> list[Path]:
    try:
        base = Path(pattern.anchor)
        return sorted(base.glob(str(pattern.relative_to(base))), key=lambda path: natural(str(path)))
    except (ValueError, OSError):
        return []


def walk(folder: Path) -> Iterator[Path]:
    """All checkpoint files below a folder, in natural order; a sharded one is its index alone. Hidden ones are not."""
    files = [
        path
        for path in folder.rglob("*")
        if _is_checkpoint(path.name) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    sharded = {path.parent / path.name.removesuffix(SHARDS) for path in files if path.name.endswith(SHARDS)}
    for path in sorted(files, key=lambda path: natural(str(path.relative_to(folder)))):
        is_shard = re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.safetensors", path.name)
        if not (is_shard and path.parent / is_shard[1] in sharded) and path.is_file():
            yield path


def _is_checkpoint(name: str) -> bool:
    named = name.endswith((*SUFFIXES, SHARDS)) or name in NAMES
    return named and NOT_WEIGHTS.fullmatch(name) is None


def run_of(path: Path, root: Path) -> str:
    """The run's name that a file's place below `root` gives it."""
    folder = path.relative_to(root).parent
    return stem(path) if folder == Path() else folder.as_posix()


def stem(path: Path) -> str:
    """A file's name without what says that it is a checkpoint."""
    name = path.name
    for suffix in (SHARDS, *SUFFIXES):
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return name


def _sidecar(path: Path) -> Path | None:
    beside = (path.with_name(f"{path.name}.json"), path.with_name(f"{stem(path)}.json"))
    return next((candidate for candidate in beside if candidate.is_file() and candidate != path), None)


def _epoch_in(place: Path, *, alone: bool) -> int | None:
    """The epoch that a path such as `run-3/epoch=12-step=400.ckpt`, `run-3/model_12.pt` or `checkpoint_12/…` tells.

    Of a file that is a run of its own (`alone`), a bare number is rather the run's.
    """
    for text in (stem(place), place.parent.name):
        if match := re.search(r"epoch[=_-]?(\d{1,9})", text, re.IGNORECASE):
            return int(match[1])
    number = None if alone else re.search(r"(?:^|[=_-])(\d{1,9})$", stem(place))
    number = number or re.fullmatch(r"checkpoint[_-](\d{1,9})", place.parent.name)
    return int(number[1]) if number else None


def write_quarantine(path: Path, quarantined: Sequence[Quarantined]) -> None:
    """A CSV file with the columns path and reason; an older one is replaced, and removed where nothing is left out."""
    if not quarantined:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows([(as_cell(bad.path), as_cell(bad.reason)) for bad in quarantined])


def as_cell(text: str) -> str:
    """A stranger's text as a cell of a CSV file that no spreadsheet computes: a formula gets an apostrophe before it.

    https://owasp.org/www-community/attacks/CSV_Injection

    Example:
        >>> as_cell("=HYPERLINK(...)")
        "'=HYPERLINK(...)"
    """
    text = clean_text(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


class Skipped:
    """What in files was no weight and no plain value, counted by its last name and the reason, for a note."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()

    def count(self, checkpoint: Checkpoint) -> None:
        self._files.update({re.sub(r"^[^:]*\.(?=[^:]*: )", "", text) for text in checkpoint.skipped})

    @property
    def notes(self) -> list[str]:
        if not self._files:
            return []
        listed = [f"{text} (in {count:,} files)" for text, count in self._files.most_common(SKIPPED_LISTED)]
        more = len(self._files) - len(listed)
        return [f"skipped: {'; '.join(listed)}{f'; {more:,} more' if more else ''}"]


def reason_of(error: WeightsearchError, path: Path | str) -> str:
    """An error's line without the file's name at its beginning, which the table has in a column of its own."""
    return str(error).removeprefix(f"{path}: ")
