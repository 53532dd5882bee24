"""The index directory's files: manifest, checksums, and writes that happen as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from xxhash import xxh3_128, xxh3_128_hexdigest

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import clean_text, sha256, write_whole

FORMAT = 3
OLDER = (1, 2)  # formats that are read, and migrated by whoever writes
MANIFEST = "manifest.json"  # holds only what adding and removing rows leaves as it is
DATABASE = "index.duckdb"
CARD = "README.md"  # for people, who may edit it
SEAL = "checksum"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the index directory `path`, of this format or of format 1."""
    try:
        if (path / MANIFEST).is_fifo():  # which would be waited for
            raise OSError("it is no file")
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        for old in path.parent.glob(f".{path.name}.*.old"):
            if (old / MANIFEST).exists():
                raise WeightsearchError(
                    f"{path} is missing: its replacement was interrupted; rename {old} to {path} and try again"
                ) from None
        half = path.is_dir() and ((path / DATABASE).exists() or path.name.startswith("."))
        what = "was only half written" if half else "is no index" if path.exists() else "does not exist"
        raise WeightsearchError(
            f"{path}: the index {what} (no {MANIFEST}); make one with `weightsearch train`"
        ) from None
    except NotADirectoryError:
        raise WeightsearchError(f"{path} is a file; --index takes an index directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsearchError(f"{path / MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in (*OLDER, FORMAT):
        raise WeightsearchError(
            f"{path / MANIFEST} is of another format than {FORMAT}, which this version reads; "
            "upgrade weightsearch or make the index again with `weightsearch train`"
        )
    sound = {"metric", "architectures", "files"} <= manifest.keys()
    if not sound or (manifest["format"] != 1 and not is_sealed(manifest)):
        raise WeightsearchError(
            f"{path / MANIFEST} is damaged (its checksum is another); restore it from a copy or make the index again"
        )
    return manifest


Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """Changes whenever the manifest of the index `path` is written; None while there is none, between two renames."""
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def verified(path: Path) -> tuple[dict[str, Any], Stamp | None]:
    """The manifest of the index `path`, after a look at the files that it lists, and when it was written.

    Those in an architecture's directory are only looked for: `verify_encoder` reads them, when they are needed.
    """
    stamp = stamp_of(path)
    manifest = read_manifest(path)
    for name, expected in listed_files(path, manifest):
        if not name.endswith(".faiss"):
            of_encoder = Path(name).parts[0] in manifest["architectures"]
            _expect(path / name, has_size(path / name, expected) if of_encoder else is_intact(path / name, expected))
    if not (path / DATABASE).is_file():
        raise WeightsearchError(f"{path / DATABASE} is missing; restore it from a copy or make the index again")
    return manifest, stamp


def verify_encoder(path: Path, manifest: dict[str, Any], fingerprint: str) -> None:
    """Reads the files of an architecture's encoder; raises WeightsearchError where one is not as it was written."""
    for name, expected in listed_files(path, manifest):
        if Path(name).parts[0] == fingerprint and not name.endswith(".faiss"):
            _expect(path / name, is_intact(path / name, expected))


def _expect(file: Path, is_sound: bool) -> None:
    if not is_sound:
        raise WeightsearchError(
            f"{file} is missing or damaged (its checksum is not the manifest's); "
            "restore it from a copy or make the index again with `weightsearch train`"
        )


def listed_files(path: Path, manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names and descriptions of the files that a manifest lists; raises WeightsearchError for one outside of it."""
    root = path.resolve()
    files = manifest["files"]
    if not isinstance(files, dict) or not all(isinstance(expected, dict) for expected in files.values()):
        raise WeightsearchError(f"{path / MANIFEST} is damaged (its list of files); restore it from a copy")
    for name in [*files, *manifest["architectures"]]:
        if not Path(name).parts or clean_text(name) != name:  # the index itself, or what no file can be called
            raise WeightsearchError(f"{path / MANIFEST} is damaged (it names {name!r}); restore it from a copy")
        if not (path / name).resolve().is_relative_to(root):
            raise WeightsearchError(
                f"{path / MANIFEST} names {name!r}, which lies outside of the index; nothing was read: "
                "do not trust this index, or copy the file in"
            )
    return list(files.items())


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    write_sealed(path / MANIFEST, manifest)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with a checksum of itself, for `is_sealed`."""
    content = {name: value for name, value in content.items() if name != SEAL}
    write_whole(path, (json.dumps({**content, SEAL: _seal(content)}, indent=1) + "\n").encode())


def is_sealed(content: dict[str, Any]) -> bool:
    """Whether JSON that was read is as `write_sealed` wrote it."""
    return content.get(SEAL) == _seal({name: value for name, value in content.items() if name != SEAL})


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def describe_file(path: Path) -> dict[str, Any]:
    """What `is_intact` compares with."""
    return {"bytes": path.stat().st_size, "xxh3": checksum(path)}


def has_size(path: Path, expected: dict[str, Any]) -> bool:
    """Whether a file is there and as long as it was, which alone proves nothing."""
    try:
        return path.stat().st_size == expected["bytes"]
    except OSError:
        return False


def is_intact(path: Path, expected: dict[str, Any] | None) -> bool:
    """Whether a file's content is as described. Size and time prove nothing: rotten blocks keep both.

    Files that version 0.1.0 described are compared by their SHA-256.
    """
    try:
        if expected is None or path.stat().st_size != expected["bytes"]:
            return False
        return checksum(path) == expected["xxh3"] if "xxh3" in expected else sha256(path) == expected["sha256"]
    except OSError:
        return False


def checksum(path: Path) -> str:
    """A file's XXH3 of 128 bits (https://xxhash.com), which is computed as fast as memory is read.

    Finds what disks and copies do (flipped bits, zeroed, lost and exchanged blocks), not what somebody does on purpose.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return xxh3_128_hexdigest(b"")
        with _mapped(file) as content:
            return xxh3_128_hexdigest(content)


def _mapped(file: BinaryIO) -> mmap.mmap:
    """A file's content to be read once: all of its pages are mapped by one call where the system can (Linux)."""
    if sys.platform == "linux":
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def is_intact_around(path: Path, expected: dict[str, Any], start: int, end: int) -> bool:
    """Whether a file is as it was described but for the bytes from `start` to `end`, which are not looked at."""
    try:
        with path.open("rb") as file:
            around = xxh3_128(file.read(start))
            file.seek(end)
            around.update(file.read())
            return file.tell() == expected["bytes"] and around.hexdigest() == expected["around"]
    except OSError:
        return False


def check_target(path: Path, replace: bool) -> None:
    """Refuses a target that holds something; an index gives way only to `replace`."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).exists()):
        raise UsageError(f"{path} exists and is no index; choose another --out")
    if (path / MANIFEST).exists() and not replace:
        raise UsageError(f"{path} already holds an index; choose another --out, or --replace to make it anew")
