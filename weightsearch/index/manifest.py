"""The index directory's files: manifest, checksums, and writes that happen as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import sha256, write_whole

FORMAT = 3
OLDER = (1, 2)  # formats that are read, and migrated by whoever writes
MANIFEST = "manifest.json"  # holds only what adding and removing rows leaves as it is
DATABASE = "index.duckdb"
SEAL = "checksum"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the index directory `path`, of this format or of format 1."""
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
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256(path)}


def is_intact(path: Path, expected: dict[str, Any] | None, *, thorough: bool = False) -> bool:
    """Whether a file is as described: by size and time where those agree, else or if `thorough` by checksum."""
    try:
        found = path.stat()
        if expected is None or found.st_size != expected["bytes"]:
            return False
        return (found.st_mtime_ns == expected["mtime_ns"] and not thorough) or sha256(path) == expected["sha256"]
    except OSError:
        return False


def check_target(path: Path, replace: bool) -> None:
    """Refuses a target that holds something; an index gives way only to `replace`."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).exists()):
        raise UsageError(f"{path} exists and is no index; choose another --out")
    if (path / MANIFEST).exists() and not replace:
        raise UsageError(f"{path} already holds an index; choose another --out, or --replace to make it anew")
