"""The index directory: manifest, catalogue and, per architecture, the encoder and its vectors."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import catalogue, vectors
from weightsearch.index.catalogue import Rows
from weightsearch.types import Architecture, Metric, Neighbour, Target

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "index.duckdb"
GOOD_SHARE = 0.25  # good are the top quarter by accuracy, bad the bottom quarter

log = logging.getLogger("weightsearch")


@dataclass(frozen=True)
class Neighbourhood:
    """What the index says of one vector: its nearest rows, its nearest good and bad rows, each nearest first."""

    neighbours: tuple[Neighbour, ...]
    good: tuple[Neighbour, ...]
    bad: tuple[Neighbour, ...]


class Index:
    """An index opened for reading. Holds no connection between calls."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.metric = Metric(manifest["metric"])
        self.target = Target(**manifest.get("target", {}))
        self.architectures = {
            fingerprint: Architecture.from_dict(entry["layers"])
            for fingerprint, entry in manifest["architectures"].items()
        }

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Opens the index directory at `path`; verifies files that changed since the manifest was written."""
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except FileNotFoundError:
            half = path.is_dir() and ((path / DATABASE).exists() or path.name.startswith("."))
            what = "was only half written" if half else "is no index" if path.exists() else "does not exist"
            raise WeightsearchError(
                f"{path}: the index {what} (no {MANIFEST}); make one with `weightsearch train`"
            ) from None
        except NotADirectoryError:
            raise WeightsearchError(f"{path} is a file; --index takes an index directory") from None
        except (OSError, ValueError) as error:
            raise WeightsearchError(f"{path / MANIFEST} cannot be read ({error})") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise WeightsearchError(
                f"{path / MANIFEST} is of another format than {FORMAT}, which this version reads; "
                "upgrade weightsearch or make the index again with `weightsearch train`"
            )
        index = cls(path, manifest)
        for name in manifest["files"]:
            if not name.endswith(".faiss") and not index._intact(name):
                raise WeightsearchError(
                    f"{path / name} is missing or damaged (its checksum is not the manifest's); "
                    "make the index again with `weightsearch train`"
                )
        return index

    def __len__(self) -> int:
        return sum(entry["count"] for entry in self.manifest["architectures"].values())

    def encoder_directory(self, fingerprint: str) -> Path:
        return self.path / fingerprint

    def count(self, fingerprint: str) -> int:
        return self.manifest["architectures"][fingerprint]["count"]

    def accuracies(self, fingerprint: str) -> np.ndarray:
        """Test accuracies, or the index's other target, of one architecture's rows, by number."""
        return self._accuracies[fingerprint][1]

    def thresholds(self, fingerprint: str) -> tuple[float, float]:
        """Bad at or worse than the first, good at or better than the second: quartiles of the index's accuracies."""
        low, high = np.quantile(self.accuracies(fingerprint), [GOOD_SHARE, 1 - GOOD_SHARE])
        return (float(high), float(low)) if self.target.lower_is_better else (float(low), float(high))

    def embeddings(self, fingerprint: str) -> np.ndarray:
        """All embeddings `(n, D)` of one architecture, in the order of `accuracies`."""
        with catalogue.connect(self.path / DATABASE, read_only=True) as connection:
            return catalogue.embeddings(connection, fingerprint)[1]

    def search(self, fingerprint: str, vector: np.ndarray, k: int = 10) -> Neighbourhood:
        """The `k` nearest, nearest good and nearest bad rows of `vector (D,)`."""
        if not 1 <= k <= self.count(fingerprint):
            raise UsageError(
                f"k = {k}: the index holds {self.count(fingerprint):,} checkpoints of this architecture; "
                f"choose --k between 1 and {self.count(fingerprint)}"
            )
        numbers, values = self._accuracies[fingerprint]
        quality = self.target.quality(values)
        low, high = (self.target.quality(threshold) for threshold in self.thresholds(fingerprint))
        searched = self._vectors(fingerprint)
        subsets = (None, numbers[quality >= high], numbers[quality <= low])
        with catalogue.connect(self.path / DATABASE, read_only=True) as connection:
            lists = [
                catalogue.neighbours(connection, *vectors.search(searched, vector, k, self.metric, subset), self.target)
                for subset in subsets
            ]
        return Neighbourhood(*lists)

    @cached_property
    def _accuracies(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        with catalogue.connect(self.path / DATABASE, read_only=True) as connection:
            return {
                fingerprint: catalogue.values(connection, fingerprint, self.target)
                for fingerprint in self.architectures
            }

    def _vectors(self, fingerprint: str) -> Any:
        """The FAISS index; made anew from the catalogue, in memory, where its file is missing or damaged."""
        name = f"{fingerprint}/vectors-{self.manifest['generation']}.faiss"
        if self._intact(name):
            return vectors.load(self.path / name)
        log.warning("%s is missing or damaged; its vectors are taken from %s instead", self.path / name, DATABASE)
        with catalogue.connect(self.path / DATABASE, read_only=True) as connection:
            return vectors.build(*catalogue.embeddings(connection, fingerprint), self.metric)

    def _intact(self, name: str) -> bool:
        """Whether a file is as the manifest says: by size and time, else by checksum."""
        expected = self.manifest["files"].get(name)
        try:
            found = (self.path / name).stat()
        except OSError:
            return False
        if expected is None or found.st_size != expected["bytes"]:
            return False
        return found.st_mtime_ns == expected["mtime_ns"] or _sha256(self.path / name) == expected["sha256"]


def create_index(
    path: Path,
    architecture: Architecture,
    rows: Rows,
    *,
    write_extras: Callable[[Path, Path], None],
    metric: Metric = Metric.COSINE,
    replace: bool = False,
    notes: dict[str, Any] | None = None,
) -> Index:
    """Writes a new index directory with one architecture, complete or not at all.

    `write_extras(directory, encoder_directory)` adds the encoder's files (and a card, examples) before publication.
    An existing directory is only replaced when it is an index and `replace` is set.
    """
    check_target(path, replace)
    fingerprint = architecture.fingerprint
    rows = rows.distinct()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.parent / f".{path.name}.{os.getpid()}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        (staging / fingerprint).mkdir(parents=True)
        catalogue.create(staging / DATABASE, fingerprint, rows)
        built = vectors.build(np.arange(len(rows)), rows.embedding, metric)
        vectors.save(built, staging / fingerprint / "vectors-1.faiss")
        write_extras(staging, staging / fingerprint)
        manifest = {
            "format": FORMAT,
            "generation": 1,
            "metric": metric.value,
            "architectures": {fingerprint: {"count": len(rows), "layers": architecture.to_dict()}},
            **(notes or {}),
            "files": {
                name: _describe(staging / name)
                for name in (DATABASE, *(f"{fingerprint}/{file.name}" for file in (staging / fingerprint).iterdir()))
            },
        }
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for file in staging.rglob("*"):
            _sync(file)
        _publish(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Index.open(path)


def check_target(path: Path, replace: bool) -> None:
    """Refuses a target that holds something; an index gives way only to `replace`."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).exists()):
        raise UsageError(f"{path} exists and is no index; choose another --out")
    if (path / MANIFEST).exists() and not replace:
        raise UsageError(f"{path} already holds an index; choose another --out, or --replace to make it anew")


def _publish(staging: Path, path: Path) -> None:
    """Renames `staging` to `path`, moving an older directory aside first so that one of them is always whole."""
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    if path.exists():
        path.rename(old)
    staging.rename(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _describe(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["Index", "Neighbourhood", "Rows", "check_target", "create_index"]
