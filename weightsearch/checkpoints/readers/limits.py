"""What a file may ask for, and the checks that every reader begins with."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from weightsearch.errors import WeightsearchError

MAX_FILE_BYTES = 8 * 2**30  # one file, all members of a zip inflated, or all shards of a checkpoint together
MAX_INFLATION = 100  # a zip's inflated bytes per byte of the file; trained weights stay below 2
FREE_INFLATION = 2**28  # inflated bytes beyond which a tenth of `MAX_INFLATION` is allowed
MAX_INDEX_BYTES = 64 * 2**20  # the `*.index.json` of a sharded checkpoint
MAX_JSON_VALUES = 2_000_000  # commas and brackets: a value of two bytes becomes an object of sixty


def file_size(path: Path) -> int:
    """The size of a regular file that may be read; raises WeightsearchError for all else."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise WeightsearchError("there is no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise WeightsearchError("it is a folder; give one of the files in it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise WeightsearchError("it is no regular file; give a checkpoint file")
    if status.st_size == 0:
        raise WeightsearchError("the file is empty; copy or save it again")
    if status.st_size > MAX_FILE_BYTES:
        raise WeightsearchError(
            f"{in_gib(status.st_size)} is over the limit of {in_gib(MAX_FILE_BYTES)} for a checkpoint"
        )
    return status.st_size


class Allowance:
    """How many bytes a file of `size` may inflate to, in all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._inflated = 0

    def spend(self, count: int) -> None:
        """Raises WeightsearchError where the file would inflate beyond what it may."""
        self._inflated += count
        factor = MAX_INFLATION if self._inflated <= FREE_INFLATION else MAX_INFLATION // 10
        if self._inflated > min(MAX_FILE_BYTES, factor * self.size):
            raise WeightsearchError(
                f"it would inflate from {self.size:,} to over {self._inflated - 1:,} bytes, over the limits of "
                f"{factor} times and {in_gib(MAX_FILE_BYTES)}; save it uncompressed"
            )


def parse_json(content: bytes, what: str) -> Any:
    """JSON that cannot ask for much more memory than it is long. Raises WeightsearchError, or what `json` does."""
    values = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_JSON_VALUES:
        raise WeightsearchError(f"its {what} holds over {MAX_JSON_VALUES:,} values; it describes no checkpoint")
    return json.loads(content)


def in_gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `features.2` before `features.10`, as a network's modules come."""
    return [(int(part), 0, "") if part.isdecimal() else (0, 1, part) for part in re.split(r"(\d+)", name)]


def plain_member(folder: Path, name: str, what: str) -> Path:
    """The path of a file that another file names; raises WeightsearchError unless it lies in the same folder."""
    if Path(name).name != name or name in ("", "..") or "\0" in name or "\\" in name:
        from weightsearch.checkpoints.pickle_scanner import shown

        raise WeightsearchError(f"its {what} {shown(name)} is no plain file name in the same folder")
    return folder / name
