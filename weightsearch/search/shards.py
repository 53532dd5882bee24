"""Reading in shards: any number of workers read, sign and embed their shares into parts, which one process collects.

Workers know nothing of one another. A file's share follows from its path alone, a part appears whole, and what finished
parts hold is not read again: so a worker may be killed, restarted or run twice.
"""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from weightsearch.checkpoints.discovery import Quarantined, Skipped, Sources
from weightsearch.checkpoints.remote.paths import located
from weightsearch.checkpoints.remote.reading import fetched_ahead
from weightsearch.errors import Interrupted, UsageError, WeightsearchError
from weightsearch.files import sha256
from weightsearch.index import IndexStore
from weightsearch.progress import progress_bar
from weightsearch.ray_tasks import cluster, in_order_of_ending
from weightsearch.relations.store import signed_files
from weightsearch.search.add import find_given, open_or_create
from weightsearch.search.file_records import FileReader, FileRecord
from weightsearch.search.parts import Listed, finished, read_records, remove_leftovers, summarise, write_part
from weightsearch.search.record_writer import CHUNK, SIGNED_TOGETHER, AddReport, RecordWriter

PART_FILES = 5_000  # of a part at most
TASK_FILES = 1_000  # of a task on a cluster, which writes a part of its own
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
    ray: str | None = None,
    quiet: bool = False,
) -> EmbedReport:
    """Reads, signs and embeds one share of what `add` would read into Parquet parts in the folder `out`.

    Args:
        index: whose encoders embed; without one files are signed alone.
        inventory: a table of remote files' path, size and etag, in place of listing their folders, as for `add`.
        shard: `i/n`, the share `i` of `n`, counted from 0.
        sources: where metadata and runs' names come from, as for `add`.
        dataset: what the networks were trained on, where the files do not say.
        ray: a Ray cluster's address, on which the share is read in tasks (see `ray_tasks.cluster`).

    Raises:
        UsageError: a shard that is none, a zoo among `paths`, or no Ray.
        WeightsearchError: the index cannot be read or a part not be written.
        Interrupted: after Ctrl-C; finished parts stay.

    Example:
        >>> reports = [embed(['index/examples'], 'parts', index='index', shard=f'{i}/2', quiet=True) for i in range(2)]
        >>> sum(report.files for report in reports)
        4
    """
    number, of = parse_shard(shard)
    listed, missing, notes = list_files(paths, inventory)
    sources = sources or Sources()
    sources.expect([one.file for one in listed])  # of all shards: a row may be about files of two
    listed = [one for one in listed if one.share % of == number]
    place = None if index is None else Path(index).absolute()
    work = ShardWork(Path(out).absolute(), place, sources, dataset)
    reader = ShardReader(work)
    remove_leftovers(work.out)
    before = finished(work.out, (number, of), reader.settings)
    wanted = [one for one in listed if (one.key, *one.stat) not in before]
    done: list[ShardDone] = []
    try:
        with progress_bar(f"shard {shard}", len(wanted), unit="checkpoints", quiet=quiet) as advance:
            if ray is None:
                done.append(reader.read(wanted, advance))
            else:
                tasks = [wanted[start : start + TASK_FILES] for start in range(0, len(wanted), TASK_FILES)]
                with cluster(ray) as executor:
                    for files, result in in_order_of_ending(executor, read_task, tasks, work, reader.settings):
                        done.append(result)
                        advance(len(files))
    except KeyboardInterrupt:
        parts = sum(len(one.parts) for one in done) or len(reader.done.parts)
        raise Interrupted(f"stopped: {parts:,} parts were written; run the same command again to go on") from None
    whole = ShardDone.joined(done)
    return EmbedReport(
        Path(out), len(listed), len(wanted), len(listed) - len(wanted), tuple(whole.parts), dict(whole.unknown),
        tuple([*missing, *whole.quarantined]), tuple(dict.fromkeys([*notes, *whole.skipped.notes, *whole.notes])),
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


@dataclass(frozen=True)
class ShardWork:
    """How files are read into parts, the same for all workers."""

    out: Path
    index: Path | None
    sources: Sources
    dataset: str | None


@dataclass
class ShardDone:
    """What became of files that were read into parts."""

    parts: list[Path] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def joined(cls, several: Sequence[ShardDone]) -> ShardDone:
        whole = cls()
        for one in several:
            whole.parts += one.parts
            whole.unknown.update(one.unknown)
            whole.quarantined += one.quarantined
            whole.skipped.add(one.skipped)
            whole.notes += one.notes
        return whole


class ShardReader:
    """Reads files into parts."""

    def __init__(self, work: ShardWork) -> None:
        store = None if work.index is None else IndexStore.open(work.index)
        self.out = work.out
        self.reader = FileReader(store, work.sources, work.dataset)
        self.encoders = {} if store is None else encoders_of(store)
        self.settings = _settings(work.sources, work.dataset, self.encoders)
        self.done = ShardDone()

    def read(self, files: Sequence[Listed], advance: Callable[[], object] = lambda: None) -> ShardDone:
        """Reads, signs and embeds files, and writes a part whenever there is enough for one."""
        self.done = ShardDone()
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
        self.done.notes = self.reader.sources.notes
        return self.done

    def _write(self, waiting: Sequence[tuple[FileRecord, Listed]]) -> None:
        self.reader.embed()
        records, listed = zip(*waiting, strict=True)
        self.done.parts.append(write_part(self.out, records, listed, self.settings, self.encoders))
        for record in records:
            if (reason := record.refusal or record.unsigned) is not None:
                self.done.quarantined.append(Quarantined(str(record.file.path), reason))
            elif record.space is None:
                self.done.unknown[record.described] += 1
            self.done.skipped.count(record)


_readers: dict[str, ShardReader] = {}  # of this process, by settings, so that tasks load the encoder once


def read_task(files: Sequence[Listed], work: ShardWork, settings: str) -> ShardDone:
    """What a worker on a cluster does: `ShardReader.read`, with the reader of these settings kept for its next task."""
    if settings not in _readers:
        reader = ShardReader(work)
        if reader.settings != settings:
            raise WeightsearchError(
                f"{work.index} is another index on {platform.node()}; put it where all nodes see it"
            )
        _readers.clear()
        _readers[settings] = reader
    return _readers[settings].read(files)


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
