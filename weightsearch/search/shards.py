"""Reading in shards: any number of workers read, sign and embed their shares into parts, which one process collects.

Workers know nothing of one another. A file's share follows from its path alone, a part appears whole, and what finished
parts hold is not read again: so a worker may be killed, restarted or run twice.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from weightsearch.checkpoints.discovery import Quarantined, Skipped, Sources
from weightsearch.checkpoints.remote.paths import located
from weightsearch.checkpoints.remote.reading import fetched_ahead
from weightsearch.errors import Interrupted, UsageError
from weightsearch.files import sha256
from weightsearch.index import IndexStore
from weightsearch.progress import progress_bar
from weightsearch.relations.store import signed_files
from weightsearch.search.add import find_given, open_or_create
from weightsearch.search.file_records import FileReader, FileRecord
from weightsearch.search.parts import Listed, finished, read_records, summarise, write_part
from weightsearch.search.record_writer import CHUNK, SIGNED_TOGETHER, AddReport, RecordWriter

PART_FILES = 5_000  # of a part at most
PART_SECONDS = 60.0  # a part is written after as long, so that a kill loses no more work


@dataclass(frozen=True)
class EmbedReport:
    """What became of one shard: every file of it is counted once.

    Example:
        >>> report = embed(['index/examples'], 'parts', index='index', shard='0/2', quiet=True)
        >>> report.files == report.read + report.already
        True
    """

    out: Path
    files: int  # of this shard
    read: int  # now
    already: int  # in parts that were there
    parts: tuple[Path, ...]  # written now
    unknown: dict[str, int]  # architectures that the index has no encoder for, for people -> how many files
    quarantined: tuple[Quarantined, ...]
    notes: tuple[str, ...]


def embed(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    index: str | Path | None = None,
    inventory: str | Path | None = None,
    shard: str = "0/1",
    sources: Sources | None = None,
    dataset: str | None = None,
    quiet: bool = False,
) -> EmbedReport:
    """Reads, signs and embeds one share of what `add` would read into Parquet parts in the folder `out`.

    Args:
        index: whose encoders embed; without one files are signed alone.
        inventory: a table of remote files' path, size and etag, in place of listing their folders, as for `add`.
        shard: `i/n`, the share `i` of `n`, counted from 0.
        sources: where metadata and runs' names come from, as for `add`.
        dataset: what the networks were trained on, where the files do not say.

    Raises:
        UsageError: a shard that is none, or a zoo among `paths`.
        WeightsearchError: the index cannot be read or a part not be written.
        Interrupted: after Ctrl-C; finished parts stay.

    Example:
        >>> reports = [embed(['index/examples'], 'parts', index='index', shard=f'{i}/2', quiet=True) for i in range(2)]
        >>> sum(report.files for report in reports)
        4
    """
    number, of = parse_shard(shard)
    listed, missing, notes = list_files(paths, inventory)
    listed = [one for one in listed if one.share % of == number]
    shard_of = ShardReader(out, index, sources or Sources(), dataset)
    before = finished(shard_of.out, (number, of), shard_of.settings)
    wanted = [one for one in listed if (one.key, *one.stat) not in before]
    try:
        with progress_bar(f"shard {shard}", len(wanted), unit="checkpoints", quiet=quiet) as advance:
            shard_of.read(wanted, advance)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped: {len(shard_of.parts):,} parts were written; run the same command again to go on"
        ) from None
    return EmbedReport(
        shard_of.out, len(listed), len(wanted), len(listed) - len(wanted), tuple(shard_of.parts),
        dict(shard_of.unknown), tuple([*missing, *shard_of.quarantined]),
        (*notes, *shard_of.skipped.notes, *shard_of.reader.sources.notes),
    )  # fmt: skip


def parse_shard(text: str) -> tuple[int, int]:
    """`3/8` as (3, 8).

    Example:
        >>> parse_shard("3/8")
        (3, 8)
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UsageError(f"--shard {text}: give i/n with i from 0 to n - 1, such as 0/8 to 7/8")
    return int(match[1]), int(match[2])


def list_files(
    paths: Iterable[str | Path], inventory: str | Path | None = None
) -> tuple[list[Listed], list[Quarantined], list[str]]:
    """The files that `add` would read in its order, what is missing, and notes on what was passed over."""
    places = located(paths, inventory)
    given = find_given(places)
    if given.zoos:
        raise UsageError(f"{given.zoos[0].path} is a zoo, whose weights lie together: add it with `weightsearch add`")
    name = hashlib.blake2b(repr([str(path.absolute()) for path in places]).encode(), digest_size=8).hexdigest()
    return [Listed(file, name, rank) for rank, file in enumerate(given.files)], given.missing, given.account.notes


class ShardReader:
    """Reads files into parts."""

    def __init__(self, out: str | Path, index: str | Path | None, sources: Sources, dataset: str | None) -> None:
        store = None if index is None else IndexStore.open(index)
        self.out = Path(out)
        self.reader = FileReader(store, sources, dataset)
        self.encoders = {} if store is None else encoders_of(store)
        self.settings = _settings(sources, dataset, self.encoders)
        self.parts: list[Path] = []
        self.unknown: Counter[str] = Counter()
        self.quarantined: list[Quarantined] = []
        self.skipped = Skipped()

    def read(self, files: Sequence[Listed], advance: Callable[[], object] = lambda: None) -> None:
        """Reads, signs and embeds files, and writes a part whenever there is enough for one."""
        waiting: list[tuple[FileRecord, Listed]] = []
        started = time.monotonic()
        for listed in fetched_ahead(files):
            advance()
            waiting.append((self.reader.read(listed.file), listed))
            if len(waiting) >= PART_FILES or time.monotonic() - started > PART_SECONDS:
                self._write(waiting)
                waiting, started = [], time.monotonic()
        if waiting:
            self._write(waiting)

    def _write(self, waiting: Sequence[tuple[FileRecord, Listed]]) -> None:
        self.reader.embed()
        records, listed = zip(*waiting, strict=True)
        self.parts.append(write_part(self.out, records, listed, self.settings, self.encoders))
        for record in records:
            if (reason := record.refusal or record.unsigned) is not None:
                self.quarantined.append(Quarantined(str(record.file.path), reason))
            elif record.space is None:
                self.unknown[record.described] += 1
            self.skipped.count(record)


def encoders_of(store: IndexStore) -> dict[str, str]:
    """What names the encoder of each space of an index: a hash of its files."""
    return {
        space: hashlib.sha256(
            "".join(map(sha256, sorted(store.encoder_directory(space).glob("encoder.*")))).encode()
        ).hexdigest()[:16]
        for space in store.architectures
    }


def _settings(sources: Sources, dataset: str | None, encoders: dict[str, str]) -> str:
    """Names how files are read: what was read otherwise is read again."""
    table = None if sources.given_path is None else sha256(sources.given_path)
    pattern = None if sources.run_pattern is None else sources.run_pattern.pattern
    values = (table, sources.run_column, pattern, sources.weights, dataset, sorted(encoders.items()))
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def collect(parts: str | Path, index: str | Path, *, quiet: bool = False) -> AddReport:
    """Makes or extends an index from the parts in a folder: the same rows as if `add` had read the files.

    Memory is bounded, whatever the number of parts. Parts stay; collecting them again adds nothing.

    Raises:
        UsageError: there are no parts, or they were embedded by other encoders than the index's.
        WeightsearchError: a part is damaged, or the index cannot be used.
        Interrupted: after Ctrl-C; what was collected stays.

    Example:
        >>> _ = embed(['index/examples'], 'parts', index='index', quiet=True)
        >>> collect('parts', 'index', quiet=True).added
        4
    """
    folder = Path(parts)
    summary = summarise(folder)
    if summary.encoders and not Path(index).exists():
        raise UsageError(
            f"{index} is not there, and these parts were embedded by an index's encoder: "
            f"start with a copy of that index, `cp -r INDEX {index}`"
        )
    store = open_or_create(index)
    _check_encoders(folder, store, summary.encoders)
    writer = RecordWriter(store)
    try:
        with progress_bar("collecting", summary.files, unit="checkpoints", quiet=quiet) as advance:
            chunk: list[FileRecord] = []
            records = read_records(folder)
            while some := list(islice(records, SIGNED_TOGETHER)):
                signed = signed_files(store.path, [record.source for record in some])
                chunk += [writer.sign(_unsigned(record, signed)) for record in some]
                if len(chunk) >= CHUNK:
                    writer.add_records(chunk)
                    chunk = []
                advance(len(some))
            writer.add_records(chunk)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped: {writer.added:,} were added; run the same command again to go on") from None
    writer.notes += writer.skipped.notes
    return writer.report()


def _unsigned(record: FileRecord, signed: Mapping[str, tuple[int, int]]) -> FileRecord:
    """The record without its signature where the index has that of the same bytes and time."""
    if record.signed is not None:
        about = (record.signed.signature.file_bytes, record.signed.modified)
        if signed.get(record.source) == about:
            record.signed = None
    return record


def _check_encoders(folder: Path, store: IndexStore, encoders: Mapping[str, str]) -> None:
    """Refuses what was embedded by others than the index's encoders: distances would mean nothing."""
    of_index = encoders_of(store)
    for space, encoder in encoders.items():
        if of_index.get(space) != encoder:
            raise UsageError(
                f"the parts in {folder} were embedded by another encoder than that of {store.path}: collect them into "
                f"the index that `embed` was given, or run `embed --index {store.path}` into another folder"
            )
