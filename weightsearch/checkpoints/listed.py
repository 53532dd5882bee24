"""What is to be read, as plain rows: for those who share files out among processes and machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from weightsearch.checkpoints.discovery import CheckpointFile, Discovery, Quarantined, discover


@dataclass(frozen=True)
class ListedFile:
    """A file to read, and what tells one version of it from another: equal size and etag are equal contents."""

    file: CheckpointFile
    size: int
    etag: str

    @property
    def path(self) -> Path:
        return self.file.path


def list_files(
    sources: Iterable[str | Path], inventory: str | Path | None = None
) -> tuple[list[ListedFile], list[Quarantined]]:
    """The checkpoint files that `sources`, files, folders, patterns and URLs, mean, and what is missing.

    They are those of `discovery.discover`, in its order. A file of this machine's disk has its time of change for an
    etag; a checkpoint of several files (shards, a distributed one) that of its index alone.

    Raises WeightsearchError, one line, for a store that cannot be read.

    Example:
        >>> files, missing = list_files(["index/examples"])
        >>> len(files), files[0].size > 1000
        (4, True)
    """
    discovery: Discovery = discover(sources, inventory)
    files = []
    missing = list(discovery.missing)
    for file in discovery.files:
        place = file.path / ".metadata" if file.path.is_dir() else file.path
        try:
            status = place.stat()
        except OSError as error:
            missing.append(Quarantined(str(file.path), error.strerror or str(error)))
            continue
        files.append(ListedFile(file, status.st_size, f"{status.st_mtime_ns:x}"))
    return files, missing
