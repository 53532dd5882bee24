"""What of a folder could go, and what would be lost: a plan first, then moves to a trash folder, never a deletion."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from weightsearch.errors import WeightsearchError
from weightsearch.files import MISREAD, sync, write_whole
from weightsearch.relations.compare import compare
from weightsearch.relations.groups import Groups
from weightsearch.relations.kinds import Kind
from weightsearch.relations.open_files import hash_of_file, open_file
from weightsearch.relations.signature import Signature

TRASH = ".weightsearch-trash"
MORE_BYTES = 0.05  # beyond its numbers that a file may have for its header


@dataclass(frozen=True)
class Removal:
    """A file that could go, the one that keeps its weights, and what only it holds."""

    path: str
    bytes: int
    sha256: str
    keep: str
    keep_sha256: str
    relation: Kind
    lost: str

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "relation": str(self.relation)}


@dataclass(frozen=True)
class Plan:
    """Of one folder; paths are relative to it."""

    folder: Path
    removals: tuple[Removal, ...]
    files: int
    bytes: int
    unread: tuple[tuple[str, str], ...]

    @property
    def freed(self) -> int:
        return sum(removal.bytes for removal in self.removals)

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "files": self.files,
            "bytes": self.bytes,
            "freed_bytes": self.freed,
            "removals": [removal.to_dict() for removal in self.removals],
            "unread": [list(entry) for entry in self.unread],
        }

    def write(self, path: str | Path) -> None:
        write_whole(path, json.dumps(self.to_dict(), indent=1) + "\n")


def plan(folder: str | Path, advance: Callable[[], None] = lambda: None) -> Plan:
    """Reads every checkpoint below a folder and says which hold the weights of another.

    Only files whose weights are all in one that stays could go: the same bytes, or the same weights in another format,
    layout or precision. Of each group the most precise stays. Nothing is moved.
    """
    from weightsearch.checkpoints.remote.paths import local
    from weightsearch.checkpoints.walk import walk

    folder = local(folder, "tidy moves files")
    if not folder.is_dir():
        raise WeightsearchError(f"{folder}: there is no such folder")
    files: list[_File] = []
    unread = []
    for path in walk(folder):
        try:
            files.append(_File.of(str(path.relative_to(folder)), open_file(path).sign()))
        except WeightsearchError as error:
            unread.append((str(path.relative_to(folder)), str(error)))
        advance()
    removals = []
    for rows in _groups(folder, files):
        kept = min(rows, key=lambda row: files[row].worth)
        removals += [_removal(files[kept], files[row]) for row in rows if row != kept]
    return Plan(folder, tuple(removals), len(files), sum(file.size for file in files), tuple(unread))


@dataclass(frozen=True, slots=True)
class _File:
    """What a plan needs of a file's signature, in half a kilobyte. `path` is relative to the folder."""

    path: str
    size: int
    weight_bytes: int
    types: str
    file_hash: bytes
    content: bytes
    exact: bytes
    rounded: tuple[bytes, bytes]

    @classmethod
    def of(cls, path: str, signature: Signature) -> _File:
        exact, *rounded = map(bytes.fromhex, signature.rounded_content)
        assert signature.file_hash is not None
        return cls(
            path, signature.file_bytes or 0, _weight_bytes(signature), sys.intern(_types(signature)),
            bytes.fromhex(signature.file_hash), bytes.fromhex(signature.content), exact, (rounded[0], rounded[1]),
        )  # fmt: skip

    @property
    def worth(self) -> tuple[bool, int, int, str]:
        """The smallest is kept: full precision, then what holds most, then the shortest path."""
        return self.exact in self.rounded, -self.size, len(Path(self.path).parts), self.path


def _groups(folder: Path, files: list[_File]) -> list[list[int]]:
    groups = Groups(len(files))
    where: dict[bytes, int] = {}
    content: dict[bytes, list[int]] = {}
    for row, file in enumerate(files):
        groups.join(where.setdefault(file.exact, row), row)
        content.setdefault(file.content, []).append(row)
    for row, file in enumerate(files):
        for rounded in file.rounded:
            if rounded in where:
                groups.join(row, where[rounded])
    for rows in content.values():
        for one, other in pairwise(rows):
            if groups.root(one) != groups.root(other) and _same(folder / files[one].path, folder / files[other].path):
                groups.join(one, other)
    return [rows for rows in groups.members() if len(rows) > 1]


def _same(one: Path, other: Path) -> bool:
    return compare(open_file(one).tensors, open_file(other).tensors).relation.is_copy


def _removal(kept: _File, gone: _File) -> Removal:
    if kept.file_hash == gone.file_hash:
        kind, lost = Kind.IDENTICAL, "nothing: the same bytes stay"
    else:
        kind = Kind.SAME_WEIGHTS
        extra = gone.size - gone.weight_bytes * (1 + MORE_BYTES)
        lost = (
            f"its form ({Path(gone.path).suffix or 'no suffix'}, {gone.types}); its weights can be made from what stays"
        )
        if extra > 4096:
            lost = f"{extra:,.0f} bytes that are no weights (training state or metadata); {lost}"
        if gone.exact != kept.exact:
            lost += ", rounded"
    return Removal(
        gone.path,
        gone.size,
        gone.file_hash.hex(),
        kept.path,
        kept.file_hash.hex(),
        kind,
        lost,
    )


def _weight_bytes(signature: Signature) -> int:
    sizes = {"float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "int8": 1, "uint8": 1}
    return sum(tensor.numbers * sizes.get(tensor.dtype, 4) for tensor in signature.tensors)


def _types(signature: Signature) -> str:
    return ", ".join(sorted({tensor.dtype for tensor in signature.weights}))


def read_plan(path: str | Path) -> Plan:
    """A plan as `Plan.write` wrote it. Raises WeightsearchError for what is none."""
    try:
        content = json.loads(Path(path).read_text())
        removals = tuple(Removal(**{**row, "relation": Kind(row["relation"])}) for row in content["removals"])
        for place in (name for removal in removals for name in (removal.path, removal.keep)):
            if Path(place).is_absolute() or ".." in Path(place).parts:
                raise ValueError(f"{place} lies outside of its folder")
        if not all(type(removal.bytes) is int and isinstance(removal.lost, str) for removal in removals):
            raise ValueError("what it says of a file")
        return Plan(
            Path(content["folder"]), removals, content["files"], content["bytes"], tuple(map(tuple, content["unread"]))
        )
    except FileNotFoundError:
        raise WeightsearchError(
            f"{path}: there is no such plan; make one with `weightsearch tidy FOLDER --plan`"
        ) from None
    except MISREAD as error:
        raise WeightsearchError(f"{path} is no plan of `weightsearch tidy` ({error})") from None


def apply(wanted: Plan, advance: Callable[[], None] = lambda: None) -> tuple[Path, int]:
    """Moves a plan's files into `.weightsearch-trash` of its folder, each under its own path; returns it and how many.

    Each file and the one that stays in its place are hashed again first, and what changed since the plan is left alone
    and named. Moves are renames on one disk: killed at any moment, each file is in one place or the other, and the
    same command goes on.
    """
    trash = wanted.folder / TRASH
    moved = 0
    changed = []
    for removal in wanted.removals:
        path, kept = wanted.folder / removal.path, wanted.folder / removal.keep
        target = trash / removal.path
        if not path.exists() and target.exists():
            moved += 1
            continue
        if not _holds(path, removal.sha256) or not _holds(kept, removal.keep_sha256) or path.samefile(kept):
            changed.append(removal.path)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        sync(target.parent)
        moved += 1
        advance()
    if changed:
        raise WeightsearchError(
            f"{len(changed)} files changed since the plan and were left alone ({', '.join(changed[:3])}); "
            f"{moved} were moved to {trash}; make a new plan for the rest"
        )
    return trash, moved


def _holds(path: Path, expected: str) -> bool:
    try:
        return hash_of_file(path) == expected
    except OSError:
        return False
