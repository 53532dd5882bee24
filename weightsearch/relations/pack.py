"""Checkpoints of a folder stored as their differences, and each recovered bit for bit on demand.

A file is cut into its tensors' bytes and the rest. Each piece is kept once; a tensor that has a relative's tensor to
start from is kept as the bitwise difference, its bytes by place value, compressed by Zstandard.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors.numpy import load

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import MISREAD, refuse_to_overwrite, replacing, sha256, write_whole
from weightsearch.relations.open_files import open_file
from weightsearch.relations.rounding import FEWEST, MOST, Rounded, decode, rounded_file
from weightsearch.relations.signature import Signature

MANIFEST = "pack.json"
PIECES = "pieces"
FORMAT = 1
LEVEL = 9
DEEPEST = 12  # differences of differences that one tensor is rebuilt from
ALIKE = 0.5  # cosine of sketches from which a relative's tensors are worth starting from
SMALL = 64  # bytes; shorter tensors stay in the rest
log = logging.getLogger("weightsearch")


@dataclass(frozen=True)
class Piece:
    """Where a tensor's bytes lie in its file."""

    name: str
    start: int
    length: int
    item: int


@dataclass(frozen=True)
class PackSummary:
    out: Path
    files: int
    bytes: int
    packed_bytes: int
    left_out: tuple[str, ...]  # files that are kept whole, with why
    errors: dict[str, float] = field(default_factory=dict)  # of rounded files' weights, relative, by path

    @property
    def ratio(self) -> float:
        """Packed bytes per byte; smaller is better."""
        return self.packed_bytes / self.bytes if self.bytes else 1.0


def pack(
    folder: str | Path, out: str | Path, advance: Callable[[], None] = lambda: None, lossy_bits: int | None = None
) -> PackSummary:
    """Packs every checkpoint below a folder into the directory `out`. The folder is left as it is.

    With `lossy_bits` weights are rounded to that many bits, and each file that can be read is kept as its tensors
    alone: it comes back as .safetensors.

    Each piece appears whole under the hash of its content, and the manifest last: killed at any moment, the same
    command goes on, and a pack without a manifest is none. Raises WeightsearchError where `out` holds something else.
    """
    from weightsearch.checkpoints.remote.paths import local
    from weightsearch.checkpoints.walk import walk

    folder, out = local(folder, "pack keeps files"), local(out, "a pack lies")
    if not folder.is_dir():
        raise WeightsearchError(f"{folder}: there is no such folder")
    if lossy_bits is not None and not FEWEST <= lossy_bits <= MOST:
        raise UsageError(f"{lossy_bits} bits: choose from {FEWEST} to {MOST}")
    if (out / MANIFEST).exists() or (out.exists() and any(p.name != PIECES for p in out.iterdir())):
        raise WeightsearchError(f"{out} exists already; choose another place for the pack")
    (out / PIECES).mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []
    already: list[tuple[Signature, dict[str, str], Path]] = []
    depth: dict[str, int] = {}
    left_out = []
    errors: dict[str, float] = {}
    total = 0
    for path in walk(folder):
        size = path.stat().st_size
        total += size
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        pieces: Sequence[Piece] = ()
        base: dict[str, str] = {}
        signature = None
        grids: dict[str, Rounded] = {}
        name = str(path.relative_to(folder))
        about: dict[str, Any] = {}
        try:
            opened = open_file(path)
            signature = opened.sign()
            if lossy_bits is not None:
                content, grids, errors[name] = rounded_file(opened.tensors, signature, lossy_bits)
                about = {"rounded_to_bits": lossy_bits, "original": name, "original_sha256": digest}
                name += "" if path.suffix == ".safetensors" else ".safetensors"
                digest = hashlib.sha256(content).hexdigest()
                pieces = _locate(content, _in_safetensors(content))
            else:
                pieces = _locate(content, opened.tensors)
            if not pieces:
                left_out.append(f"{path.relative_to(folder)}: its tensors are compressed or converted")
            base = _nearest(signature, already)
        except WeightsearchError as error:
            left_out.append(str(error))
        stored, tensors = _store(content, pieces, base, depth, out / PIECES, grids)
        files.append({"path": name, "sha256": digest, "bytes": len(content), "pieces": stored, **about})
        if signature is not None:
            already.append((signature, tensors, path))
        advance()
    write_whole(out / MANIFEST, json.dumps({"format": FORMAT, "files": files}, indent=0) + "\n")
    packed = sum(piece.stat().st_size for piece in (out / PIECES).iterdir()) + (out / MANIFEST).stat().st_size
    return PackSummary(out, len(files), total, packed, tuple(left_out), errors)


def _in_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file in the order in which they lie there."""
    size = int.from_bytes(content[:8], "little")
    head = {name: about for name, about in json.loads(content[8 : 8 + size]).items() if name != "__metadata__"}
    tensors = load(content)
    return {name: tensors[name] for name in sorted(head, key=lambda name: head[name]["data_offsets"])}


def _locate(content: bytes, tensors: Any) -> list[Piece]:
    """Where the tensors' bytes lie in the file, where they lie there as they are."""
    pieces = []
    last = 0
    for name in tensors:
        values = np.ascontiguousarray(tensors[name])
        forms = [(values.tobytes(), values.itemsize)]
        if values.dtype == np.float32:  # readers widen bfloat16 and float16
            forms.append(((values.view(np.uint32) >> 16).astype("<u2").tobytes(), 2))
            with np.errstate(over="ignore"):
                forms.append((values.astype("<f2").tobytes(), 2))
        for raw, item in forms:
            if len(raw) < SMALL:
                continue
            start = content.find(raw, last)
            start = content.find(raw) if start < 0 else start
            if start >= 0:
                pieces.append(Piece(name, start, len(raw), item))
                last = start + len(raw)
                break
    pieces.sort(key=lambda piece: piece.start)
    apart: list[Piece] = []
    for piece in pieces:
        if not apart or piece.start >= apart[-1].start + apart[-1].length:
            apart.append(piece)
    return apart


def _nearest(signature: Signature, packed: list[tuple[Signature, dict[str, str], Path]]) -> dict[str, str]:
    """The pieces by tensor name of the likest checkpoint packed before."""
    best, likeness = {}, ALIKE
    for other, tensors, _ in packed:
        cosine = float(signature.sketch @ other.sketch)
        if cosine >= likeness:
            best, likeness = tensors, cosine
    return best


def _store(
    content: bytes,
    pieces: Sequence[Piece],
    base: dict[str, str],
    depth: dict[str, int],
    store: Path,
    grids: Mapping[str, Rounded],
) -> tuple[list[str], dict[str, str]]:
    """Writes a file's pieces in turn; returns their names, and those of tensors by tensor name."""
    stored: list[str] = []
    tensors: dict[str, str] = {}
    end = 0
    for piece in pieces:
        if piece.start > end:
            stored.append(_keep(content[end : piece.start], 1, None, depth, store))
        raw = content[piece.start : piece.start + piece.length]
        end = piece.start + piece.length
        name = _keep(raw, piece.item, base.get(piece.name), depth, store, grids.get(piece.name))
        stored.append(name)
        tensors[piece.name] = name
    if end < len(content):
        stored.append(_keep(content[end:], 1, None, depth, store))
    return stored, tensors


def _keep(
    raw: bytes, item: int, base: str | None, depth: dict[str, int], store: Path, grid: Rounded | None = None
) -> str:
    """Keeps bytes under their hash, as a difference from `base` where that is shorter; returns the name."""
    name = hashlib.sha256(raw).hexdigest()[:40]
    path = store / name
    if path.exists():
        depth.setdefault(name, _depth(path))
        return name
    best = _encode(raw, item, b"", "")
    depth[name] = 0
    if grid is not None and len(other := _encode_rounded(grid, len(raw))) < len(best):
        best = other
    if base is not None and base != name and depth.get(base, 0) < DEEPEST:
        before = _load(store, base)
        if len(before) == len(raw):
            for operation in ("xor", "difference"):
                other = _encode(raw, item, before, operation, base)
                if len(other) < len(best):
                    best, depth[name] = other, depth.get(base, 0) + 1
    with replacing(path) as temporary:
        temporary.write_bytes(best)
    return name


def _encode(raw: bytes, item: int, before: bytes, operation: str, base: str = "") -> bytes:
    values = _combined(raw, before, item, operation) if operation else raw
    if item > 1 and len(raw) % item == 0:
        values = np.frombuffer(values, np.uint8).reshape(-1, item).T.tobytes()  # bytes by place value
    else:
        item = 1
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(values)
    head = json.dumps({"item": item, "operation": operation, "base": base, "bytes": len(raw)}).encode()
    return len(head).to_bytes(4, "little") + head + packed


def _encode_rounded(grid: Rounded, length: int) -> bytes:
    rows, columns = grid.levels.shape
    about = {"rows": rows, "columns": columns, "level_bytes": grid.levels.itemsize, "dtype": grid.dtype}
    head = json.dumps({"item": 1, "operation": "rounded", "base": "", "bytes": length, **about}).encode()
    return len(head).to_bytes(4, "little") + head + grid.encode(LEVEL)


def _combined(raw: bytes, before: bytes, item: int, operation: str) -> bytes:
    """`raw` relative to `before`, by item: exclusive or, or the difference of the values' ranks, small ones first."""
    kind = np.dtype(f"<u{item}") if item in (1, 2, 4, 8) else np.dtype("u1")
    new, old = np.frombuffer(raw, kind), np.frombuffer(before, kind)
    if operation == "xor":
        return (new ^ old).tobytes()
    change = _rank(new) - _rank(old)
    return ((change << kind.type(1)) ^ _all_ones_if_negative(change)).tobytes()


def _restored(values: bytes, before: bytes, item: int, operation: str) -> bytes:
    kind = np.dtype(f"<u{item}") if item in (1, 2, 4, 8) else np.dtype("u1")
    change, old = np.frombuffer(values, kind), np.frombuffer(before, kind)
    if operation == "xor":
        return (change ^ old).tobytes()
    one = kind.type(1)
    change = (change >> one) ^ (kind.type(0) - (change & one))
    return _unrank(_rank(old) + change).tobytes()


def _all_ones_if_negative(change: np.ndarray) -> np.ndarray:
    top = change.dtype.type(8 * change.itemsize - 1)
    return change.dtype.type(0) - (change >> top)


def _rank(bits: np.ndarray) -> np.ndarray:
    """Floats' bits as integers in the order of the values."""
    top = bits.dtype.type(1) << bits.dtype.type(8 * bits.itemsize - 1)
    return np.where(bits & top, ~bits, bits | top)


def _unrank(ranks: np.ndarray) -> np.ndarray:
    top = ranks.dtype.type(1) << ranks.dtype.type(8 * ranks.itemsize - 1)
    return np.where(ranks & top, ranks ^ top, ~ranks)


def _head(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(4), "little")
            head: dict[str, Any] = json.loads(file.read(size))
            return {"base": head["base"], **head}
    except MISREAD as error:
        raise WeightsearchError(f"{path} is damaged ({error}); remove it, and pack again") from None


def _depth(path: Path) -> int:
    depth = 0
    while base := _head(path)["base"]:
        path, depth = path.parent / base, depth + 1
    return depth


def _load(store: Path, name: str) -> bytes:
    """A piece's bytes, checked against its name."""
    try:
        content = (store / name).read_bytes()
        size = int.from_bytes(content[:4], "little")
        head = json.loads(content[4 : 4 + size])
        if head["operation"] == "rounded":
            shape = head["rows"], head["columns"], head["level_bytes"]
            return _checked(decode(content[4 + size :], *shape, head["dtype"]).values().tobytes(), name, store)
        values = zstandard.ZstdDecompressor().decompress(content[4 + size :], max_output_size=head["bytes"])
        item = head["item"]
        if item > 1:
            values = np.frombuffer(values, np.uint8).reshape(item, -1).T.tobytes()
        if head["operation"]:
            values = _restored(values, _load(store, head["base"]), item, head["operation"])
    except (*MISREAD, zstandard.ZstdError) as error:
        raise WeightsearchError(
            f"{store / name} is missing or damaged ({error}); restore the pack from a copy"
        ) from None
    return _checked(values, name, store)


def _checked(values: bytes, name: str, store: Path) -> bytes:
    if hashlib.sha256(values).hexdigest()[:40] != name:
        raise WeightsearchError(f"{store / name} is damaged (its checksum is another); restore the pack from a copy")
    return values


def unpack(
    packed: str | Path,
    out: str | Path,
    only: str | None = None,
    advance: Callable[[], None] = lambda: None,
    *,
    overwrite: bool = False,
) -> int:
    """Writes a pack's files below `out`, or `only` one of them, bit for bit as they were; returns how many.

    Each is checked against its SHA-256 and appears whole. A file that is there already with the right content is left;
    where one has another, UsageError is raised before anything is written, unless `overwrite`.
    """
    packed, out = Path(packed), Path(out)
    try:
        manifest = json.loads((packed / MANIFEST).read_text())
        files = manifest["files"]
        sound = all(isinstance(part, str) for file in files for part in (file["path"], file["sha256"], *file["pieces"]))
        if not sound or any("\0" in file["path"] for file in files):
            raise ValueError("what it says of a file")
    except FileNotFoundError:
        raise WeightsearchError(
            f"{packed} is no finished pack (no {MANIFEST}); run `weightsearch pack` again"
        ) from None
    except MISREAD as error:
        raise WeightsearchError(f"{packed / MANIFEST} is damaged ({error}); restore the pack from a copy") from None
    chosen = [file for file in files if only is None or file["path"] == only]
    if only is not None and not chosen:
        raise WeightsearchError(f"{packed} holds no {only}; it holds {', '.join(f['path'] for f in files[:5])} …")
    there = set()
    for file in chosen:
        target = out / file["path"]
        if not target.resolve().is_relative_to(out.resolve()):
            raise WeightsearchError(f"{packed} names the file {file['path']}, which lies outside {out}")
        if target.is_file() and sha256(target) == file["sha256"]:
            there.add(file["path"])
        else:
            refuse_to_overwrite(target, overwrite)
    for file in chosen:
        target = out / file["path"]
        if file["path"] in there:
            advance()
            continue
        content = b"".join(_load(packed / PIECES, name) for name in file["pieces"])
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise WeightsearchError(f"{packed}: {file['path']} cannot be rebuilt (its checksum is another)")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, content)
        advance()
    return len(chosen)
