"""What it costs that files are verified when they are opened, and that some are read in a process apart.

python -m benchmarks.checks [--repeats 101] [--out benchmarks/results/checks.json]

Times of the processor, which others on the machine do not change much, and of the clock: shares are medians of the
ratios of two openings after each other. `cold` drops the files from the system's cache before each opening.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from weightsearch.checkpoints import read_checkpoint
from weightsearch.checkpoints.metadata_table import read_table
from weightsearch.checkpoints.readers import guard
from weightsearch.index import IndexStore, checks, manifest, paged, vectors

ROOT = Path(__file__).parent.parent
WHOLE = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from benchmarks.checks import verified
from weightsearch import query
verified(sys.argv[2] == "checked")
query(sys.argv[3], sys.argv[4], k=10)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


def unchecked(path: Path, expected: dict[str, Any] | None, *_: object) -> bool:
    return expected is not None and path.stat().st_size == expected["bytes"]


REAL = (
    manifest.is_intact, vectors.is_intact_around, vectors.verified_distances, paged.PagedVectors.check,
    checks.are_kept, checks.digest,
)  # fmt: skip


def verified(really: bool) -> None:
    """Turns all verification on or off: of encoders, of FAISS's files, and of the database's cells."""
    nothing = unchecked, unchecked, _distances, lambda self, at=None: None, lambda state: False, lambda *columns: 0
    intact, around, distances, check, kept, digest = REAL if really else nothing
    for module in (manifest, vectors):
        module.is_intact = intact
    vectors.is_intact_around, vectors.verified_distances = around, distances
    checks.are_kept, checks.digest = kept, digest
    paged.PagedVectors.check = check


def _distances(query: np.ndarray, pages: paged.PagedVectors, metric: Any) -> np.ndarray:
    pages.checked[:] = True
    return vectors.distances(query, pages.matrix, metric)


def opened(path: Path, fingerprint: str, width: int, *, cold: bool) -> tuple[float, float, float, float]:
    """Milliseconds of the processor for opening, for the first search, and for both; and of the clock for both."""
    if cold:
        for file in path.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
    clock, start = time.perf_counter(), time.process_time()
    index = IndexStore.open(path)
    middle = time.process_time()
    index.search(fingerprint, np.ones(width), 10)
    end = time.process_time()
    return 1e3 * (middle - start), 1e3 * (end - middle), 1e3 * (end - start), 1e3 * (time.perf_counter() - clock)


def compare(path: Path, repeats: int, *, cold: bool) -> dict[str, Any]:
    """Medians with and without verification, in turn."""
    index = IndexStore.open(path)
    fingerprint = next(iter(index.architectures))
    width = index.width(fingerprint) or 1
    times: dict[str, list[tuple[float, float, float, float]]] = {"checked": [], "unchecked": []}
    for _ in range(repeats):
        for kind in ("unchecked", "checked"):
            verified(kind == "checked")
            times[kind].append(opened(path, fingerprint, width, cold=cold))
    checked, bare = np.array(times["checked"]), np.array(times["unchecked"])
    parts = ("opening", "first_search", "both", "clock")
    return {
        "rows": index.count(fingerprint),
        "width": width,
        **{part: _compared(bare[:, i], checked[:, i]) for i, part in enumerate(parts)},
    }


def _compared(bare: np.ndarray, checked: np.ndarray) -> dict[str, float]:
    """Medians of milliseconds `(n,)`, and of how much more the one is than the other beside it."""
    return {
        "unchecked_ms": round(float(np.median(bare)), 3),
        "checked_ms": round(float(np.median(checked)), 3),
        "share": round(float(np.median(checked / bare)) - 1, 3),
    }


def encoder(path: Path, repeats: int) -> dict[str, float]:
    """Milliseconds of the processor for loading an encoder, whose files are verified just before."""
    from weightsearch.training.represent import load_any_encoder

    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(1 + repeats):
        for really, spent in times.items():
            verified(really)
            index = IndexStore.open(path)
            start = time.process_time()
            load_any_encoder(index.encoder_directory(next(iter(index.architectures))))
            if turn:  # the first one imports torch
                spent.append(1e3 * (time.process_time() - start))
    return _compared(np.array(times[False]), np.array(times[True]))


def whole_query(repeats: int) -> dict[str, float]:
    """Seconds of the processor of a process that imports, opens the reference index and answers once."""
    times: dict[str, list[float]] = {"unchecked": [], "checked": []}
    for _ in range(repeats):
        for kind, found in times.items():
            command = [sys.executable, "-c", WHOLE, str(ROOT), kind, "index", "index/examples/good.pt"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            found.append(float(done.stdout))
    least = {kind: min(found) for kind, found in times.items()}
    return {
        **{f"{kind}_seconds": round(value, 3) for kind, value in least.items()},
        "share": round(least["checked"] / least["unchecked"] - 1, 3),
    }


def apart(folder: Path, repeats: int) -> dict[str, Any]:
    """Milliseconds of the clock for the first file, which starts the process, and for the next ones; and in place.

    The least of all repeats: the machine may do other things as well.
    """
    from tests.attack.seeds import seeds

    found = {}
    for path in seeds(folder):
        if path.suffix in (".h5", ".onnx", ".gguf", ".msgpack"):
            read: Callable[[], object] = partial(read_checkpoint, path)
        elif path.suffix == ".parquet":
            read = partial(read_table, path, "path")
        else:
            continue
        guard._end_child()
        guard._child = None
        found[path.name] = {"first_ms": clock(read, 1), "next_ms": clock(read, repeats)}
        guard._is_apart = True
        read()  # loads the library
        found[path.name]["in_place_ms"] = clock(read, repeats)
        guard._is_apart = False
    return found


def clock(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return round(1e3 * min(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--parts", nargs="*", default=["opening", "apart", "query"])
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "checks.json")
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    result |= {"processors": os.cpu_count(), "load": os.getloadavg()[0], "repeats": options.repeats}
    result["threads"] = faiss.omp_get_max_threads()
    with tempfile.TemporaryDirectory() as folder:
        if "opening" in options.parts:
            from tests.index.test_store import make_index, make_rows

            paths = {"reference index": ROOT / "index"}
            for rows in options.rows:
                paths[f"{rows:,} × 256"] = Path(folder) / str(rows)
                make_index(paths[f"{rows:,} × 256"], make_rows(rows, 256))
            for cold in (False, True):
                kind = "cold" if cold else "warm"
                result[kind] = {name: compare(path, options.repeats, cold=cold) for name, path in paths.items()}
            result["encoder"] = encoder(ROOT / "index", options.repeats)
        if "apart" in options.parts:
            (Path(folder) / "seeds").mkdir()
            result["apart"] = apart(Path(folder) / "seeds", options.repeats)
    if "query" in options.parts:
        result["query"] = whole_query(3)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
