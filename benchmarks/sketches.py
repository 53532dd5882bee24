"""Relatives among very many signatures: what the files of sketches find of what a look at all sketches finds.

    OMP_NUM_THREADS=1 python benchmarks/sketches.py --folder SCRATCH [--sizes 100000 1000000]

Sketches are random but for planted relatives, whose cosines with the queries are known; foreign pairs' are normal with
a deviation of 1/sqrt(512), as those of networks are. Recall is told of planted relatives by their cosine and of all
that the search before had as candidates: the 12 nearest with a cosine of .18 or more. Seconds are of one thread's
processor time. --only-memory measures memory and seconds again on files of the same size whose sketches are all 0,
since making the others takes long. Writes benchmarks/results/sketches.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from weightsearch.index import paged
from weightsearch.index.manifest import write_sealed
from weightsearch.relations import sketches
from weightsearch.relations.search import CANDIDATES, LIKE
from weightsearch.relations.signature import SKETCH_WIDTH

RESULT = Path(__file__).parent / "results" / "sketches.json"
SIZES = (100_000, 1_000_000, 10_000_000)
QUERIES, BLOCK = 40, 20_000
COSINES = (0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)
ABOUT = {"scheme": 0, "generation": 0}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def queries() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((QUERIES, SKETCH_WIDTH)))


def relatives() -> np.ndarray:
    """`(QUERIES * len(COSINES), 512)`: of each query one at each cosine."""
    asked = np.repeat(queries(), len(COSINES), axis=0)
    noise = np.random.default_rng(1).standard_normal(asked.shape)
    noise = unit(noise - (noise * asked).sum(1, keepdims=True) * asked)
    cosines = np.tile(COSINES, QUERIES)[:, None]
    return (cosines * asked + np.sqrt(1 - cosines**2) * noise).astype(np.float16)


def blocks(size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and sketches: the relatives first, then foreign ones, columns of a pool in new orders with new signs."""
    rng = np.random.default_rng(2)
    pool = unit(rng.standard_normal((BLOCK, SKETCH_WIDTH))).astype(np.float16)
    yield np.arange(QUERIES * len(COSINES)), relatives()
    for start in range(QUERIES * len(COSINES), size, BLOCK):
        count = min(BLOCK, size - start)
        signs = np.where(rng.random(SKETCH_WIDTH) < 0.5, -1, 1).astype(np.float16)
        yield np.arange(start, start + count), pool[:count, rng.permutation(SKETCH_WIDTH)] * signs


def nearest_of_all(size: int) -> list[np.ndarray]:
    """For each query the numbers of the candidates that a look at all sketches has."""
    asked = queries()
    best: list[list[tuple[float, int]]] = [[] for _ in asked]
    for numbers, matrix in blocks(size):
        cosines = asked @ matrix.astype(np.float32).T
        for query, row in enumerate(cosines):
            near = np.flatnonzero(row >= LIKE)
            best[query] += zip(row[near].tolist(), numbers[near].tolist(), strict=True)
    return [np.array([number for _, number in sorted(one, reverse=True)[:CANDIDATES]]) for one in best]


def memory() -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[field].split()[0]) / 2**20 for name, field in (("own", "RssAnon"), ("all", "VmRSS"))}


def answer(folder: Path, size: int) -> dict[str, Any]:
    """Opens the files and asks: run in a process of its own."""
    before, wall, start = memory(), time.perf_counter(), time.process_time()
    files = sketches.SketchFiles.open(folder, ABOUT["scheme"], ABOUT["generation"])
    opened, opened_wall = time.process_time() - start, time.perf_counter() - wall
    assert files is not None
    seconds, found = [], []
    for query in queries():
        start = time.process_time()
        numbers, cosines = files.nearest(query, sketches.BY_SIGNS)
        seconds.append(time.process_time() - start)
        order = np.argsort(-cosines)[:CANDIDATES]
        found.append(numbers[order][cosines[order] >= LIKE])
    after = memory()
    return {
        "open_cpu_seconds": opened,
        "open_seconds": opened_wall,
        "query_cpu_seconds": float(np.median(seconds)),
        "own_memory_gib": after["own"] - before["own"],
        "with_mapped_files_gib": after["all"],
        "found": [one.tolist() for one in found],
    }


def write_empty(folder: Path, size: int) -> None:
    """Files as `sketches.write` makes them, of random signs and of rows that are 0 and take no room on the disk."""
    parts = {}
    rng = np.random.default_rng(3)
    for name, width in (("signs", SKETCH_WIDTH // 32), ("rows", sketches.WORDS)):
        file, bytes_of = folder / f"sketches-0.{name}", size * width * 4
        with file.open("wb") as handle:
            if name == "signs":
                for start in range(0, bytes_of, 2**24):
                    handle.write(rng.bytes(min(2**24, bytes_of - start)))
            handle.truncate(bytes_of)
        if name == "signs":
            parts[name] = paged.describe(file, size, width, folder / f"sketches-0.{name}-pages", None)
            continue
        pages = np.full(-(-bytes_of // paged.PAGE_BYTES), xxh3_64_intdigest(bytes(paged.PAGE_BYTES)), np.uint64)
        pages[-1] = xxh3_64_intdigest(bytes(bytes_of - (len(pages) - 1) * paged.PAGE_BYTES))
        content = pages.astype("<u8").tobytes()
        (folder / f"sketches-0.{name}-pages").write_bytes(content)
        parts[name] = {
            "file": file.name, "rows": size, "width": width, "checksums": f"sketches-0.{name}-pages",
            "xxh3": xxh3_128_hexdigest(content),
        }  # fmt: skip
    write_sealed(folder / sketches.DESCRIPTION, {**ABOUT, "last": size - 1, "started": 0, **parts})


def asked(folder: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(folder), "--answer", str(size)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(folder: Path, size: int) -> dict[str, Any]:
    start = time.process_time()
    sketches.write(folder, None, size - 1, lambda: blocks(size), ABOUT)
    written = time.process_time() - start
    result = asked(folder, size)
    wanted, found = nearest_of_all(size), result.pop("found")
    planted = len(COSINES) * np.arange(QUERIES)[:, None] + np.arange(len(COSINES))
    result["recall"] = float(
        np.mean([np.isin(all_of, some).mean() for all_of, some in zip(wanted, found, strict=True)])
    )
    for name, lists in (("planted_found", found), ("planted_found_by_all", wanted)):
        shares = np.mean([np.isin(row, one) for row, one in zip(planted, lists, strict=True)], axis=0)
        result[name] = dict(zip(map(str, COSINES), shares.tolist(), strict=True))
    disk = sum(path.stat().st_size for path in folder.glob("sketches*"))
    return {"write_cpu_seconds": written, "disk_gib": disk / 2**30, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the files, 1.1 KB a signature; a temporary one by default")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--only-memory", action="store_true")
    parser.add_argument("--answer", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        print(json.dumps(answer(options.folder, options.answer)))
        return
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for size in options.sizes:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            if options.only_memory:
                write_empty(folder, size)
                result[str(size)] |= {name: value for name, value in asked(folder, size).items() if name != "found"}
            else:
                result[str(size)] = measure(folder, size)
        finally:
            shutil.rmtree(folder)
        print(size, json.dumps(result[str(size)]), flush=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
