"""A zoo's files: `zoo.json`, `zoo.duckdb` and `weights/part-NNNNN.npy`; read by `Zoo`, written by `ZooWriter`.

The parts of a zoo of one architecture are arrays `(rows, P)`. Those of a zoo of many are flat: each checkpoint's row
says where it begins, and its architecture how long it is.

A part is written beside its final name, synced and renamed, and only then are its rows committed, in one transaction.
So rows without weights cannot exist, and weights without rows are leftovers that the next writer removes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.files import DISK_FULL, MISREAD, is_disk_full, lock, sync, when_unlocked, write_whole
from weightsearch.types import Architecture
from weightsearch.zoo import schema as rows
from weightsearch.zoo.schema import CheckpointRow, CheckpointTable, Places, RunRow

FORMAT = 2  # the newest that is read; a zoo of one architecture is still written as format 1, which all versions read
BLOCK_ROWS = 512  # checkpoints whose weights are read together
RELEASE_BYTES = 1 << 28  # mapped files are let go after this much reading, so that they do not fill the memory
LOCK = "build.lock"
LOCK_WAIT_SECONDS = 10.0  # a build of tiny networks commits so often that a reader must try for a while


@dataclass(frozen=True)
class ZooInfo:
    """What `zoo.json` says. `settings` is all else that decides the content (filters, epochs, recipe ranges, ...)."""

    name: str
    dataset: str
    preset: str
    seed: int
    dtype: str  # of the parts: float32 or float16
    architecture: Architecture | None  # None: many, which `zoo.duckdb` lists
    settings: dict[str, Any]
    version: str  # of the package that made the zoo

    @property
    def origin(self) -> str:
        """For people: how the zoo came to be."""
        layout = self.settings.get("layout")
        return f"imported as {layout}" if layout else f"preset {self.preset}, zoo seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        plain = {key: getattr(self, key) for key in ("name", "dataset", "preset", "seed", "dtype", "version")}
        one = self.architecture
        return {
            "format": FORMAT if one is None else 1,
            **plain,
            "fingerprint": None if one is None else one.fingerprint,
            "architecture": None if one is None else one.to_dict(),
            "settings": self.settings,
        }

    @classmethod
    def read(cls, path: Path) -> ZooInfo:
        """Read `zoo.json` of the zoo directory `path`."""
        try:
            content = json.loads((path / "zoo.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            what = "no zoo (it has no zoo.json)" if path.exists() else "missing"
            raise WeightsearchError(
                f"{path} is {what}: make one with `weightsearch build-zoo` or `weightsearch import`"
            ) from None
        except OSError as error:
            raise WeightsearchError(f"cannot read {path / 'zoo.json'}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise WeightsearchError(f"{path / 'zoo.json'} is damaged: build the zoo again elsewhere") from None
        try:
            if content["format"] > FORMAT:
                raise WeightsearchError(
                    f"{path} has zoo format {content['format']}, this version reads up to {FORMAT}: update weightsearch"
                )
            keys = ("name", "dataset", "preset", "seed", "dtype", "settings", "version")
            layers = content["architecture"]
            one = None if layers is None else Architecture.from_dict(layers)
            return cls(architecture=one, **{key: content[key] for key in keys})
        except MISREAD as error:
            raise WeightsearchError(f"{path / 'zoo.json'} is damaged ({error!r}): build the zoo again") from None

    def differences(self, other: ZooInfo) -> list[str]:
        """`name: mine -> other's` for each setting that decides the content and differs."""

        def flat(info: ZooInfo) -> dict[str, Any]:
            named = {key: getattr(info, key) for key in ("dataset", "preset", "seed", "dtype")}
            named["architecture"] = "many" if info.architecture is None else info.architecture.fingerprint
            return {**named, **json.loads(json.dumps(info.settings))}

        mine, others = flat(self), flat(other)
        keys = [*mine, *(key for key in others if key not in mine)]
        return [f"{key}: {mine.get(key)} -> {others.get(key)}" for key in keys if mine.get(key) != others.get(key)]


def half_made(path: Path, why: str) -> WeightsearchError:
    return WeightsearchError(f"{path} is half made ({why}): run the build-zoo or import again that made it")


class Zoo:
    """A zoo opened for reading. It never loads the weights as a whole, and holds no lock between calls.

    It shows the zoo as it was at the first call of `table` or `weights`; open again to see what a build has added.

    Example:
        >>> zoo = Zoo.open('zoo')
        >>> zoo.weights([0, 1]).shape == (2, zoo.architecture.size)
        True
    """

    def __init__(self, path: Path, info: ZooInfo) -> None:
        self.path = path
        self.info = info
        self._table: CheckpointTable | None = None
        self._places: Places | None = None
        self._architectures: dict[str, Architecture] | None = None
        self._maps: dict[int, np.ndarray] = {}
        self._read = 0  # bytes since mapped files were last let go

    @classmethod
    def open(cls, path: str | Path) -> Zoo:
        """Raises WeightsearchError where `path` is no zoo, half made, or of a newer format."""
        path = Path(path)
        info = ZooInfo.read(path)
        if not (path / "zoo.duckdb").is_file():
            raise half_made(path, "it has no zoo.duckdb")
        return cls(path, info)

    @property
    def is_mixed(self) -> bool:
        """Whether it is made for networks of many architectures, however many there are."""
        return self.info.architecture is None

    @property
    def architecture(self) -> Architecture:
        """The one architecture of the zoo. Raises WeightsearchError in a zoo of many."""
        if self.info.architecture is None:
            raise WeightsearchError(
                f"{self.path} holds networks of {len(self.architectures)} architectures, and this needs a zoo of one; "
                "`weightsearch train` makes one index of all, which `viz --index` draws"
            )
        return self.info.architecture

    @property
    def architectures(self) -> dict[str, Architecture]:
        """All of them by fingerprint."""
        if self.info.architecture is not None:
            return {self.info.architecture.fingerprint: self.info.architecture}
        self.table()
        return self._architectures or {}

    @property
    def fingerprints(self) -> np.ndarray:
        """Of each checkpoint of `table()`, `(n,)` str."""
        places, table = self._placed(), self.table()
        if self.info.architecture is not None:
            return np.full(len(table), self.info.architecture.fingerprint)
        return places.fingerprint

    def groups(self, positions: np.ndarray | Sequence[int]) -> Iterator[tuple[Architecture, np.ndarray]]:
        """The positions `(n,)` of `table()` by architecture: pairs of one and `(m,)` places in `positions`."""
        chosen = self.fingerprints[np.asarray(positions, int)]
        architectures = self.architectures
        for fingerprint in np.unique(chosen):
            yield architectures[str(fingerprint)], np.flatnonzero(chosen == fingerprint)

    def table(self) -> CheckpointTable:
        if self._table is None:
            try:
                with connect(self.path, read_only=True) as connection:
                    self._table, self._places = rows.read(connection)
                    if self.is_mixed:
                        self._architectures = rows.read_architectures(connection)
            except duckdb.CatalogException:  # its maker was killed before the first commit
                raise half_made(self.path, "its zoo.duckdb has no tables") from None
        return self._table

    def _placed(self) -> Places:
        self.table()
        assert self._places is not None
        return self._places

    def weights(self, positions: np.ndarray | Sequence[int] | slice) -> np.ndarray:
        """Flat weights `(len(positions), P)` float32 of the checkpoints at `positions` of `table()`, in any order.

        In a zoo of many architectures they must be of one; `groups` sorts them.
        """
        places = self._placed()
        chosen = np.arange(len(self.table()))[positions]
        if self.is_mixed:
            return self._flat_weights(places, chosen)
        part, row = places.part[chosen], places.row[chosen]
        weights = np.empty((len(chosen), self.architecture.size), np.float32)
        for number in np.unique(part):
            here = part == number
            weights[here] = self._map(int(number))[row[here]]
        self._count(weights)
        return weights

    def blocks(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions `(b,)` and their weights `(b, P)`, block by block: never more of a zoo than that is in memory.

        In the order of `positions`, in a zoo of many architectures those of each together.
        """
        if self.is_mixed:
            positions = np.asarray(positions, int)
            for architecture, places in self.groups(positions):
                size = max(1, min(BLOCK_ROWS, RELEASE_BYTES // 4 // (4 * architecture.size)))
                for start in range(0, len(places), size):
                    block = positions[places[start : start + size]]
                    yield block, self.weights(block)
            return
        size = max(1, min(BLOCK_ROWS, RELEASE_BYTES // 4 // (4 * self.architecture.size)))
        for start in range(0, len(positions), size):
            block = positions[start : start + size]
            yield block, self.weights(block)

    def _flat_weights(self, places: Places, chosen: np.ndarray) -> np.ndarray:
        kinds = np.unique(places.fingerprint[chosen])
        if len(kinds) != 1:
            raise WeightsearchError(f"{self.path}: asked for weights of {len(kinds)} architectures at once")
        size = self.architectures[str(kinds[0])].size
        weights = np.empty((len(chosen), size), np.float32)
        for i, position in enumerate(chosen):
            start = int(places.start[position])
            weights[i] = self._map(int(places.part[position]))[start : start + size]
        self._count(weights)
        return weights

    def _count(self, weights: np.ndarray) -> None:
        self._read += weights.nbytes
        if self._read > RELEASE_BYTES:
            self.release()

    def release(self) -> None:
        """Unmap what `weights` has mapped, so that pages once read no longer count as this process's memory."""
        self._maps.clear()
        self._read = 0

    def _map(self, number: int) -> np.ndarray:
        mapped = self._maps.get(number)  # once: another thread may let it go meanwhile
        if mapped is None:
            path = part_path(self.path, number)
            mapped = map_part(path, flat=self.is_mixed)
            places = self._placed()
            here = places.part == number
            if self.is_mixed:
                sizes = [self.architectures[str(name)].size for name in places.fingerprint[here]]
                expected: tuple[int, ...] = (int((places.start[here] + sizes).max()),)
            else:
                if mapped is not None and mapped.shape[1] != self.architecture.size:
                    raise WeightsearchError(
                        f"{path} holds networks of {mapped.shape[1]:,} parameters, but the zoo's architecture has "
                        f"{self.architecture.size:,}: two architectures are mixed; keep them in zoos of their own"
                    )
                expected = (int(places.row[here].max()) + 1, self.architecture.size)
            if mapped is None or mapped.shape != expected:
                raise WeightsearchError(f"{path} is missing or damaged: run the build-zoo or import again that made it")
            self._maps[number] = mapped
        return mapped


class ZooWriter:
    """The one writer of a zoo. Use `open_writer`, which holds the zoo's lock meanwhile."""

    def __init__(self, path: Path, *, flat: bool = False) -> None:
        self.path = path
        self.flat = flat  # whether the zoo is one of many architectures
        (path / "weights").mkdir(exist_ok=True)
        with connect(path) as connection:
            rows.create(connection)
            self._tidy(connection)
            self.runs = {run for (run,) in connection.execute("SELECT run FROM runs").fetchall()}

    def _tidy(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Remove a killed build's leftovers, and the rows of parts that somebody removed or truncated."""
        parts = dict(
            connection.execute(
                "SELECT part, coalesce(max(start + size), max(row) + 1) FROM checkpoints "
                "LEFT JOIN architectures ON architecture = fingerprint GROUP BY part"
            ).fetchall()
        )
        for part, count in parts.items():
            mapped = map_part(part_path(self.path, part), flat=self.flat)
            if mapped is None or len(mapped) != count:
                connection.execute("BEGIN")
                connection.execute("DELETE FROM runs WHERE run IN (SELECT run FROM checkpoints WHERE part = ?)", [part])
                connection.execute("DELETE FROM checkpoints WHERE part = ?", [part])
                connection.execute("COMMIT")
        part_files = {part_path(self.path, part) for part, _ in parts.items()}
        for leftover in (self.path / "weights").iterdir():
            if leftover not in part_files and re.fullmatch(r"part-\d+\.npy|\.part-.*\.tmp", leftover.name):
                leftover.unlink()

    def publish(
        self,
        part: int,
        temporary: Path | None,
        runs: Iterable[RunRow],
        checkpoints: Sequence[CheckpointRow],
        architectures: Iterable[Architecture] = (),
    ) -> None:
        """Make a synced file from `write_part` the zoo's part `part`, then commit its rows.

        Args:
            temporary: None where no checkpoint was good, so that there is no part.
            checkpoints: in the order of the part's rows.
            architectures: in a zoo of many, all that the checkpoints name.
        """
        final = part_path(self.path, part)
        if temporary is not None:
            temporary.replace(final)
            sync(final.parent)
        with connect(self.path) as connection:
            self.runs.update(rows.insert(connection, part, runs, checkpoints, architectures))

    def free_part(self) -> int:
        """A number that no part has, nor had: runs' numbers go with those of their first parts."""
        with connect(self.path, read_only=True) as connection:
            [(part, run)] = connection.execute(
                "SELECT (SELECT max(part) FROM checkpoints), (SELECT max(run) FROM runs)"
            ).fetchall()
        return max(-1 if part is None else part, -1 if run is None else run) + 1

    def temporary(self, part: int) -> Path:
        """Where a worker writes the future part `part`; a killed build's leftovers of this name are removed."""
        return self.path / "weights" / f".{part_path(self.path, part).name}.{os.getpid()}.tmp"


@contextmanager
def open_writer(path: Path, info: ZooInfo) -> Iterator[ZooWriter]:
    """Create the zoo `path`, or open it to add to it, and hold its lock.

    Raises WeightsearchError where another build holds the lock, where the zoo was built with other settings, and
    where `path` is something else than a zoo.
    """
    if path.exists() and not path.is_dir():
        raise WeightsearchError(f"{path} is a file: choose another --out")
    try:
        if not (path / "zoo.json").exists():
            if path.is_dir() and any(not _ours(file.name) for file in path.iterdir()):
                raise WeightsearchError(f"{path} is not empty and holds no zoo: choose another --out")
            path.mkdir(parents=True, exist_ok=True)
        busy = f"another build (PID {{pid}}) is writing to {path}: wait for it or stop it"
        with lock(path / LOCK, busy):
            if (path / "zoo.json").exists():
                held = ZooInfo.read(path)
                if "unknown" in (held.dataset, info.dataset):  # who imports again may know it by then, or not say it
                    dataset = next((name for name in (info.dataset, held.dataset) if name != "unknown"), "unknown")
                    named, info = replace(held, dataset=dataset), replace(info, dataset=dataset)
                    if named != held:
                        write_whole(path / "zoo.json", json.dumps(named.to_dict(), indent=1))
                        held = named
                differences = held.differences(info)
                if differences:
                    raise WeightsearchError(
                        f"{path} was made with other settings ({'; '.join(differences)}): "
                        "use the same ones to add to it, or choose another --out"
                    )
            else:
                write_whole(path / "zoo.json", json.dumps(info.to_dict(), indent=1))
            yield ZooWriter(path, flat=info.architecture is None)
    except OSError as error:
        reason = DISK_FULL if is_disk_full(error) else error.strerror or error
        raise WeightsearchError(f"cannot write the zoo {path}: {reason}") from error
    except duckdb.Error as error:
        reason = DISK_FULL if is_disk_full(error) else str(error).splitlines()[0]
        raise WeightsearchError(f"cannot write {path / 'zoo.duckdb'}: {reason}") from error


def _ours(name: str) -> bool:
    """Whether a build that was killed before it wrote `zoo.json` left this file."""
    return name.startswith((LOCK, ".zoo.json."))


def part_path(zoo: Path, part: int) -> Path:
    return zoo / "weights" / f"part-{part:05d}.npy"


def map_part(path: Path, *, flat: bool = False) -> np.ndarray | None:
    """Memory-map a part `(rows, P)`, or `(values,)` of a zoo of many; None where it is missing or damaged."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.ndim == (1 if flat else 2) else None


def write_part(path: Path, weights: np.ndarray) -> None:
    """Write weights `(rows, P)`, or flat ones `(values,)`, to `path` and sync them; `ZooWriter.publish` names them."""
    weights = np.ascontiguousarray(weights)
    with path.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(weights))
        handle.write(weights.data)  # not `tofile`, which hides the error number of a full disk
    sync(path)


def stream_part(path: Path, weights: Iterable[np.ndarray], most: int, size: int | None) -> int:
    """Like `write_part` for up to `most` rows `(size,)` float32, one at a time; returns how many there were.

    Where `size` is None they are flat: rows of any length, `most` values in all, and values are what is counted.
    """
    count = 0
    with path.open("wb") as handle:

        def header(rows: int) -> None:  # NumPy leaves room in it for the number of rows to change
            shape = (rows,) if size is None else (rows, size)
            np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})

        header(most)
        start = handle.tell()
        for row in weights:
            handle.write(np.ascontiguousarray(row, "<f4").data)
            count += len(row) if size is None else 1
        handle.seek(0)
        header(count)
        assert handle.tell() == start
    sync(path)
    return count


@contextmanager
def connect(zoo: Path, *, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A short-lived connection to `zoo.duckdb`, waiting up to ten seconds while another process holds it."""
    path = zoo / "zoo.duckdb"
    try:
        connection = when_unlocked(lambda: duckdb.connect(str(path), read_only=read_only), path, LOCK_WAIT_SECONDS)
    except duckdb.Error as error:
        raise WeightsearchError(f"cannot open {path}: {str(error).splitlines()[0]}") from error
    try:
        yield connection
    finally:
        connection.close()
