"""How an index grows: ours beside FAISS's exact index, LanceDB and usearch, at 100 thousand, a million and ten million.

    python benchmarks/scale.py --keep SCRATCH                     # all sizes, all systems
    python benchmarks/scale.py --keep SCRATCH --only-timings      # asks what is kept there again: minutes
    python benchmarks/scale.py --keep SCRATCH --sizes 10000000 --systems index faiss

Vectors are 64 wide and made like checkpoints' embeddings (see benchmarks/search.py), and filters let 10 %, 1 % and
0.1 % of the rows pass. Queries are of runs that nothing holds; other ones choose the peers' parameters. Each system
answers in a process of its own. LanceDB and usearch come from another environment: --peers VENV/bin/python with
`pip install lancedb usearch`. What takes longer to be made than --hours is given up, and the result says so. Writes
benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "scale.json"
SIZES = (100_000, 1_000_000, 10_000_000)
SYSTEMS = ("index", "faiss", "lancedb", "usearch")
MAKING_HOURS = 6.0  # for one system of one size
WIDTH, TRUE_WIDTH, EPOCHS, K = 64, 24, 20, 10
SHARES = (1.0, 0.1, 0.01, 0.001)  # of the rows that pass the filter
PART = 200_000
QUERIES, TUNING = 200, 100
EXACT_QUERIES = 30  # that FAISS's exact index is timed with


# What is asked -------------------------------------------------------------------------------------------------------


def vectors_of(size: int, part: int, mixing: np.ndarray) -> np.ndarray:
    """One of a size's parts, `(PART, WIDTH)` or what is left of the size."""
    from search import embeddings

    count = min(PART, size - part * PART)
    return embeddings(count // EPOCHS, np.random.default_rng([size, part]), mixing)


def make_data(directory: Path, size: int) -> None:
    """vectors.npy, passing.npy (a number in [0, 1) of each row, for filters), queries.npy and truth.npz."""
    import faiss
    from search import embeddings

    mixing = np.random.default_rng(0).standard_normal((TRUE_WIDTH, WIDTH)).astype(np.float32) / TRUE_WIDTH**0.5
    vectors = np.lib.format.open_memmap(directory / "making.npy", "w+", np.float32, (size, WIDTH))
    queries = embeddings(QUERIES + TUNING, np.random.default_rng(1), mixing)[EPOCHS // 2 :: EPOCHS]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    passing = np.random.default_rng(2).random(size)
    nearest = {share: faiss.ResultHeap(len(queries), K, keep_max=True) for share in SHARES}
    for part in range(-(-size // PART)):
        block = vectors_of(size, part, mixing)
        start = part * PART
        vectors[start : start + len(block)] = block
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        for share, heap in nearest.items():
            rows = np.flatnonzero(passing[start : start + len(block)] < share)
            if len(rows):
                found = faiss.knn(queries, block[rows], min(K, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
                if found[0].shape[1] == K:
                    heap.add_result(found[0], (rows + start)[found[1]])
    for heap in nearest.values():
        heap.finalize()
    vectors.flush()
    np.save(directory / "queries.npy", queries)
    np.save(directory / "passing.npy", passing)
    np.savez(directory / "truth.npz", **{str(share): heap.I for share, heap in nearest.items()})
    (directory / "making.npy").rename(directory / "vectors.npy")


# The systems: `make` once, `open` in a process of its own; what that returns is called with a vector and a share -----


def rows_of(directory: Path, start: int, end: int) -> Any:
    from search import make_rows

    vectors = np.load(directory / "vectors.npy", mmap_mode="r")[start:end]
    rows = make_rows(np.array(vectors), start, np.random.default_rng(0))
    rows.test_accuracy[:] = np.load(directory / "passing.npy", mmap_mode="r")[start:end]
    return rows


def make_index(directory: Path, size: int) -> dict[str, float]:
    from search import ARCHITECTURE, FINGERPRINT, write_extras

    from weightsearch.index import add_rows, create_index

    last = size - min(100_000, size // 10)
    path = directory / "index"

    def parts() -> Iterator[Any]:
        for start in range(EPOCHS, last, PART):
            yield rows_of(directory, start, min(start + PART, last))

    start = time.perf_counter()
    create_index(path, ARCHITECTURE, rows_of(directory, 0, EPOCHS), write_extras=write_extras)
    add_rows(path, FINGERPRINT, parts())
    built = time.perf_counter() - start
    start = time.perf_counter()
    add_rows(path, FINGERPRINT, rows_of(directory, last, size))
    return {"build_seconds": built, "added_rows": size - last, "add_seconds": time.perf_counter() - start}


def open_index(directory: Path) -> Callable[[np.ndarray, float], np.ndarray]:
    from search import FINGERPRINT

    from weightsearch.index import IndexStore
    from weightsearch.types import Selection

    index = IndexStore.open(directory / "index")
    index.load(FINGERPRINT)

    def ask(vector: np.ndarray, share: float) -> np.ndarray:
        where = None if share == 1 else f"test_accuracy < {share}"
        neighbours = index.search(FINGERPRINT, vector, K, Selection(where=where)).neighbours
        return np.array([int(row.id, 16) for row in neighbours])

    return ask


def make_faiss(directory: Path, size: int) -> dict[str, float]:
    import faiss

    start = time.perf_counter()
    flat = faiss.IndexFlatIP(WIDTH)
    vectors = np.load(directory / "vectors.npy", mmap_mode="r")
    for first in range(0, size, PART):
        block = np.array(vectors[first : first + PART])
        flat.add(block / np.linalg.norm(block, axis=1, keepdims=True))
    faiss.write_index(flat, str(directory / "faiss"))
    return {"build_seconds": time.perf_counter() - start}


def open_faiss(directory: Path) -> Callable[[np.ndarray, float], np.ndarray]:
    """It cannot filter by columns: which rows pass is given to it."""
    import faiss

    flat = faiss.read_index(str(directory / "faiss"))
    passing = np.load(directory / "passing.npy")
    selectors = {share: faiss.IDSelectorBatch(np.flatnonzero(passing < share)) for share in SHARES if share < 1}

    def ask(vector: np.ndarray, share: float) -> np.ndarray:
        parameters = None if share == 1 else faiss.SearchParameters(sel=selectors[share])
        return flat.search(vector[None], K, params=parameters)[1][0]

    return ask


def make_lancedb(directory: Path, size: int) -> dict[str, float]:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    start = time.perf_counter()
    vectors = np.load(directory / "vectors.npy", mmap_mode="r")
    passing = np.load(directory / "passing.npy")

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, size, PART):
            block = np.array(vectors[first : first + PART])
            lists = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), WIDTH)
            numbers = pa.array(np.arange(first, first + len(block)))
            columns = [numbers, pa.array(passing[first : first + PART]), lists]
            yield pa.RecordBatch.from_arrays(columns, names=["number", "accuracy", "vector"])

    schema = pa.schema(
        [
            ("number", pa.int64()),
            ("accuracy", pa.float64()),
            ("vector", pa.list_(pa.field("item", pa.float32()), WIDTH)),
        ]
    )
    table = lancedb.connect(str(directory / "lancedb")).create_table("rows", data=batches(), schema=schema)
    config = IvfPq(distance_type="cosine", num_partitions=int(size**0.5), num_sub_vectors=WIDTH // 4)
    table.create_index("vector", config=config)
    table.create_scalar_index("accuracy")
    return {"build_seconds": time.perf_counter() - start}


def open_lancedb(directory: Path, effort: int = 1) -> Callable[[np.ndarray, float], np.ndarray]:
    import lancedb

    table = lancedb.connect(str(directory / "lancedb")).open_table("rows")

    def ask(vector: np.ndarray, share: float) -> np.ndarray:
        query = table.search(vector).metric("cosine").nprobes(16 * effort).refine_factor(20).limit(K)
        if share < 1:
            query = query.where(f"accuracy < {share}", prefilter=True)
        return query.select(["number", "_distance"]).to_arrow()["number"].to_numpy()

    return ask


def make_usearch(directory: Path, size: int) -> dict[str, float]:
    from usearch.index import Index

    start = time.perf_counter()
    index = Index(ndim=WIDTH, metric="cos", dtype="f16")
    vectors = np.load(directory / "vectors.npy", mmap_mode="r")
    for first in range(0, size, PART):
        block = np.array(vectors[first : first + PART])
        index.add(np.arange(first, first + len(block)), block)
    index.save(str(directory / "usearch"))
    return {"build_seconds": time.perf_counter() - start}


def open_usearch(directory: Path, effort: int = 1) -> Callable[[np.ndarray, float], np.ndarray]:
    """From Python it has no filters."""
    from usearch.index import Index

    index = Index.restore(str(directory / "usearch"), view=True)
    index.expansion_search = 64 * effort
    return lambda vector, share: index.search(vector, K).keys


MAKE: dict[str, Any] = {"index": make_index, "faiss": make_faiss, "lancedb": make_lancedb, "usearch": make_usearch}
OPEN: dict[str, Any] = {"index": open_index, "faiss": open_faiss, "lancedb": open_lancedb, "usearch": open_usearch}
MODULES = {"index": "weightsearch.index", "faiss": "faiss", "lancedb": "lancedb", "usearch": "usearch.index"}
TUNED = ("lancedb", "usearch")  # to a recall of .99 of the tuning queries, by powers of two


# Measuring -----------------------------------------------------------------------------------------------------------


def memory() -> dict[str, float]:
    """MiB that are this process's own, with the pages of files that it maps, and at most."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"own": "RssAnon", "with mapped files": "VmRSS", "peak": "VmHWM"}
    return {name: round(int(status[field].split()[0]) / 1024, 1) for name, field in fields.items()}


def recall(found: list[np.ndarray], truth: np.ndarray) -> float:
    return float(np.mean([np.isin(true, rows).mean() for rows, true in zip(found, truth, strict=True)]))


def answer(directory: Path, system: str) -> dict[str, Any]:
    """Opens a system and asks it everything: run in a process of its own."""
    queries, truths = np.load(directory / "queries.npy"), np.load(directory / "truth.npz")
    tuning, queries = queries[:TUNING], queries[TUNING:]
    importlib.import_module(MODULES[system])
    before, start = memory(), time.perf_counter()
    ask = OPEN[system](directory)
    opened = time.perf_counter()
    ask(queries[0], 1.0)
    result: dict[str, Any] = {
        "open_seconds": round(opened - start, 3), "first_answer_seconds": round(time.perf_counter() - start, 3)
    }  # fmt: skip
    effort = 1
    if system in TUNED:
        while effort < 1024 and recall([ask(query, 1.0) for query in tuning], truths["1.0"][:TUNING]) < 0.99:
            effort *= 2
            ask = OPEN[system](directory, effort)
        result["effort"] = effort
    result["filters"] = {}
    for share in SHARES:
        if share < 1 and system == "usearch":
            continue
        count = EXACT_QUERIES if system == "faiss" else len(queries)
        start = time.perf_counter()
        ask(queries[0], share)
        first = time.perf_counter() - start
        seconds, busy, found = [], [], []
        for query in queries[:count]:
            start, start_busy = time.perf_counter(), time.process_time()
            found.append(ask(query, share))
            busy.append(time.process_time() - start_busy)
            seconds.append(time.perf_counter() - start)
        result["filters"][str(share)] = {
            "recall": round(recall(found, truths[str(share)][TUNING : TUNING + count]), 4),
            "p50_ms": round(1000 * float(np.percentile(seconds, 50)), 2),
            "p99_ms": round(1000 * float(np.percentile(seconds, 99)), 2),
            "cpu_p50_ms": round(1000 * float(np.percentile(busy, 50)), 2),
            "first_ms": round(1000 * first, 1),
        }
    result["memory_mib"] = {"before": before, "after": memory()}
    return result


def disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def child(python: str, *arguments: str, seconds: float | None = None) -> Any:
    """What a process of its own prints last; raises subprocess.TimeoutExpired, and ends it, after so many seconds."""
    command = [python, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=seconds)
    return json.loads(done.stdout.splitlines()[-1])


def make_anew(python: str, directory: Path, system: str, size: int, hours: float) -> dict[str, Any]:
    """Makes a system's files in place of older ones; {"unfinished_seconds": ...} where that took too long."""
    made = directory / system
    remove(made)
    try:
        return child(python, "--child", "make", str(directory), system, str(size), seconds=3600 * hours)
    except subprocess.TimeoutExpired:
        remove(made)
        return {"unfinished_seconds": 3600 * hours}


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def hundred_million(result: dict[str, Any]) -> dict[str, Any]:
    """What 1e8 rows would need, from the largest size measured.

    What is kept and what is scanned grow with the rows; the making of the lists, of which there are as many as the root
    of the rows, with rows times lists.
    """
    size = max(int(size) for size, one in result["sizes"].items() if "index" in one["systems"])
    measured = result["sizes"][str(size)]["systems"]["index"]
    times = 1e8 / size
    return {
        "from": size,
        "disk_gib": round(measured["disk_bytes"] * times / 2**30, 1),
        "mapped_codes_gib": round(measured["files"].get(".faiss", 0) * times / 2**30, 2),
        "mapped_vectors_gib": round(measured["files"].get(".float32", 0) * times / 2**30, 1),
        "own_memory_gib": round(
            (measured["memory_mib"]["after"]["own"] - measured["memory_mib"]["before"]["own"]) * times / 1024, 1
        ),
        "p50_ms": round(measured["filters"]["1.0"]["p50_ms"] * times, 0),
        "build_hours_at_most": round(measured["build_seconds"] * times**1.5 / 3600, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/scale"), help="directory for the data and what is made of it"
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--systems", nargs="*", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has lancedb and usearch")
    parser.add_argument("--only-timings", action="store_true", help="make nothing; ask what is kept")
    parser.add_argument("--hours", type=float, default=MAKING_HOURS, help="that making one system may take")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task, directory, system, size = arguments.child
        directory = Path(directory)
        if task == "make":
            outcome = MAKE[system](directory, int(size)) | {"build_cpu_seconds": time.process_time()}
        else:
            outcome = answer(directory, system)
        print(json.dumps(outcome))
        return
    result: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"sizes": {}}
    result["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    for size in arguments.sizes:
        directory = arguments.keep / str(size)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "vectors.npy").exists() and not arguments.only_timings:
            make_data(directory, size)
            print(f"{size:,}: data", file=sys.stderr)
        entry = result["sizes"].setdefault(str(size), {"systems": {}})
        entry["load"] = [round(os.getloadavg()[0], 1)]
        for system in arguments.systems:
            python = arguments.peers if system in TUNED else sys.executable
            made = directory / system
            ours = entry["systems"].setdefault(system, {})
            if not arguments.only_timings:
                ours.clear()
                ours |= make_anew(python, directory, system, size, arguments.hours)
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")
            if not made.exists():
                continue
            ours["disk_bytes"] = disk(made)
            if made.is_dir():
                ours["files"] = {}
                for file in made.rglob("*"):
                    if file.is_file():
                        ours["files"][file.suffix] = ours["files"].get(file.suffix, 0) + file.stat().st_size
            ours |= child(python, "--child", "answer", str(directory), system, str(size))
            print(f"{size:,} {system}: {json.dumps(ours)}", file=sys.stderr)
            if system == "index" and size > 1_000_000 and "build_seconds" in ours:
                result["hundred_million"] = hundred_million(result)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        entry["load"].append(round(os.getloadavg()[0], 1))
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
