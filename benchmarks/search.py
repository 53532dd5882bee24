"""Searching, side by side in one run: FAISS's IndexFlat alone, DuckDB's array_cosine_distance alone, and our index.

    python benchmarks/search.py                      # 10 thousand, 100 thousand and a million vectors: half an hour
    python benchmarks/search.py --sizes 10000 --queries 20
    python benchmarks/search.py --sizes --inverted 1000000
    python benchmarks/search.py --cold-index runs/indexes/usps-v2 --cold-model model.pt

Vectors are 256 wide and made like checkpoints' embeddings: runs of 20 epochs that move through a space of few true
dimensions. Writes benchmarks/results/search.json and search.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import faiss
import numpy as np

from weightsearch.index import IndexStore, Rows, add_rows, create_index, info, rebuild
from weightsearch.types import Architecture, Layer, LayerKind, Selection

RESULTS = Path(__file__).parent / "results"
SIZES = (10_000, 100_000, 1_000_000)
WIDTH, TRUE_WIDTH, EPOCHS, K = 256, 24, 20, 10
SHARES = {"none": None, "50 %": 0.5, "10 %": 0.1, "1 %": 0.01, "0.1 %": 0.001}
ARCHITECTURE = Architecture((Layer("dense", LayerKind.DENSE, (2, 3)),))
FINGERPRINT = ARCHITECTURE.fingerprint


def embeddings(runs: int, generator: np.random.Generator, mixing: np.ndarray) -> np.ndarray:
    """`(runs * EPOCHS, WIDTH)` float32: each run drifts from a start of its own."""
    start = generator.standard_normal((runs, 1, TRUE_WIDTH))
    drift = generator.standard_normal((runs, 1, TRUE_WIDTH)) * np.linspace(0, 1, EPOCHS)[:, None]
    path = start + 0.7 * drift + 0.1 * generator.standard_normal((runs, EPOCHS, TRUE_WIDTH))
    flat = path.reshape(-1, TRUE_WIDTH).astype(np.float32) @ mixing
    return flat + 0.05 * generator.standard_normal(flat.shape).astype(np.float32)


def make_rows(vectors: np.ndarray, start: int, generator: np.random.Generator) -> Rows:
    n = len(vectors)
    recipes = np.array(
        [json.dumps({"optimizer": ["adam", "sgd"][i % 2], "lr": round(10 ** -(1 + i % 30 / 10), 5)}) for i in range(n)]
    )
    nothing = np.full(n, np.nan)
    return Rows(
        id=np.array([f"{start + i:016x}" for i in range(n)]),
        run=np.array([f"zoo/{(start + i) // EPOCHS}" for i in range(n)]),
        epoch=np.arange(n) % EPOCHS, train_loss=nothing, train_accuracy=nothing, test_loss=nothing,
        test_accuracy=generator.random(n), predicted_accuracy=nothing, split=np.full(n, "train"),
        recipe=recipes, embedding=vectors, dataset="made",
    )  # fmt: skip


def write_extras(directory: Path, encoder_directory: Path) -> None:
    for name in ("encoder.json", "encoder.safetensors"):
        (encoder_directory / name).write_text("{}")


class Bare:
    """FAISS's exact index alone, in memory. It cannot filter: DuckDB says which ids pass."""

    def __init__(self, path: Path, database: Path) -> None:
        self.index = faiss.read_index(str(path))
        self.connection = duckdb.connect(str(database), read_only=True)
        self.ids: dict[float, np.ndarray] = {}

    def __call__(self, vector: np.ndarray, share: float | None) -> np.ndarray:
        unit = (vector / np.linalg.norm(vector))[None]
        parameters = None
        if share is not None:
            if share not in self.ids:
                found = self.connection.execute("SELECT number FROM rows WHERE test_accuracy < ?", [share]).fetchnumpy()
                self.ids[share] = np.asarray(found["number"], np.int64)
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBatch(self.ids[share]))
        return self.index.search(unit, K, params=parameters)[1][0]

    def forget(self) -> None:
        self.ids.clear()


class Sql:
    """DuckDB's array_cosine_distance alone."""

    def __init__(self, database: Path) -> None:
        self.connection = duckdb.connect(str(database), read_only=True)

    def __call__(self, vector: np.ndarray, share: float | None) -> np.ndarray:
        where = "" if share is None else f"WHERE test_accuracy < {share}"
        found = self.connection.execute(
            f"SELECT number FROM rows {where} ORDER BY array_cosine_distance(embedding, ?::FLOAT[{WIDTH}]) LIMIT {K}",
            [vector],
        ).fetchnumpy()
        return np.asarray(found["number"])

    def forget(self) -> None:
        pass


class Ours:
    """`IndexStore.search`: three lists of neighbours with all that is known of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = IndexStore.open(path)
        self.seconds: list[float] = []  # until ids and distances of all three lists are there

    def __call__(self, vector: np.ndarray, share: float | None) -> np.ndarray:
        where = None if share is None else f"test_accuracy < {share}"
        found = self.index.search(FINGERPRINT, vector, K, Selection(where=where))
        self.seconds.append(found.plan.seconds)
        return np.array([int(row.id, 16) for row in found.neighbours])

    def forget(self) -> None:
        self.index._kept.masks.clear()


def make(directory: Path, size: int, *, index_alone: bool = False) -> np.ndarray:
    """The three stores of the same rows; returns queries `(200, WIDTH)` from runs that none of them holds."""
    generator = np.random.default_rng(size)
    mixing = generator.standard_normal((TRUE_WIDTH, WIDTH)).astype(np.float32) / TRUE_WIDTH**0.5
    vectors = embeddings(size // EPOCHS, generator, mixing)
    rows = make_rows(vectors, 0, generator)
    create_index(directory / "index", ARCHITECTURE, rows, write_extras=write_extras)
    queries = embeddings(10, generator, mixing)
    np.save(directory / "added.npy", embeddings(500, generator, mixing))
    if index_alone:
        return queries
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    faiss.write_index(flat, str(directory / "flat.faiss"))
    with duckdb.connect(str(directory / "rows.duckdb")) as connection:
        connection.execute(f"CREATE TABLE rows (number BIGINT, test_accuracy DOUBLE, embedding FLOAT[{WIDTH}])")
        for start in range(0, size, 50_000):
            part = vectors[start : start + 50_000]
            columns = {f"c{j}": np.ascontiguousarray(part[:, j]) for j in range(WIDTH)}
            columns |= {
                "number": np.arange(start, start + len(part)),
                "accuracy": rows.test_accuracy[start : start + 50_000],
            }
            connection.register("part", columns)
            array = ", ".join(f"c{j}" for j in range(WIDTH))
            connection.execute(f"INSERT INTO rows SELECT number, accuracy, array_value({array}) FROM part")
            connection.unregister("part")
    return queries


def measure(systems: dict[str, Any], queries: np.ndarray) -> dict[str, Any]:
    """Milliseconds of each system with each filter, taking turns so that a busy moment hits all of them."""
    results: dict[str, Any] = {}
    for name, share in SHARES.items():
        times: dict[str, list[float]] = {system: [] for system in systems}
        first: dict[str, float] = {}
        hits = 0
        for system, search in systems.items():
            search.forget()
            first[system] = timed(partial(search, queries[0], share))
            search(queries[0], share)
        ours = systems["index"]
        ours.seconds.clear()
        for query in queries:
            found = {}
            for system, search in systems.items():
                start = time.perf_counter()
                found[system] = search(query, share)
                times[system].append(1000 * (time.perf_counter() - start))
            hits += len(np.intersect1d(found["index"], found["faiss"]))
        results[name] = {
            system: {
                "least_ms": round(min(values), 3),
                "p50_ms": round(float(np.percentile(values, 50)), 3),
                "p99_ms": round(float(np.percentile(values, 99)), 3),
                "queries_per_second": round(1000 / float(np.mean(values)), 1),
                "first_ms": round(1000 * first[system], 2),
            }
            for system, values in times.items()
        }
        ids = 1000 * np.array(ours.seconds)
        results[name]["index"] |= {
            "ids_least_ms": round(float(ids.min()), 3),
            "ids_p50_ms": round(float(np.percentile(ids, 50)), 3),
            "recall": round(hits / (K * len(queries)), 4),
        }
    return results


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def used_memory(directory: Path, system: str) -> dict[str, float]:
    """MiB that a process of its own needs to open the store and answer ten queries, over importing."""
    command = [sys.executable, __file__, "--memory", system, str(directory)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_used_memory(system: str, directory: Path) -> None:
    before = memory()
    make = {
        "faiss": lambda: Bare(directory / "flat.faiss", directory / "rows.duckdb"),
        "duckdb": lambda: Sql(directory / "rows.duckdb"),
        "index": lambda: Ours(directory / "index"),
    }
    search = make[system]()
    for vector in np.random.default_rng(0).standard_normal((10, WIDTH)).astype(np.float32):
        search(vector, None)
    print(json.dumps({name: round(value - before[name], 1) for name, value in memory().items()}))


def memory() -> dict[str, float]:
    """MiB that are this process's own, and those with the pages of files that it maps and others share."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[field].split()[0]) / 1024 for name, field in (("own", "RssAnon"), ("mapped too", "VmRSS"))}


def opening(path: Path) -> dict[str, float]:
    """Milliseconds, the least of five, with files in the page cache: open, and open to the first answer."""
    vector = np.ones(WIDTH, np.float32)

    def answer() -> None:
        IndexStore.open(path).search(FINGERPRINT, vector, K)

    return {
        "open_ms": round(1000 * min(timed(lambda: IndexStore.open(path).load(FINGERPRINT)) for _ in range(5)), 2),
        "first_answer_ms": round(1000 * min(timed(answer) for _ in range(5)), 2),
    }


def one_size(size: int, queries: int) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="search-", dir=os.environ.get("SCRATCH")))
    try:
        vectors = make(directory, size)[:queries]
        systems = {
            "faiss": Bare(directory / "flat.faiss", directory / "rows.duckdb"),
            "duckdb": Sql(directory / "rows.duckdb"),
            "index": Ours(directory / "index"),
        }
        result: dict[str, Any] = {"filters": measure(systems, vectors)}
        result["memory_mib"] = {name: used_memory(directory, name) for name in systems}
        result["opening"] = opening(directory / "index")
        result["faiss_read_ms"] = round(1000 * timed(lambda: faiss.read_index(str(directory / "flat.faiss"))), 2)
        result["size_mib"] = round(info(directory / "index").size / 2**20, 1)
        more = make_rows(np.load(directory / "added.npy"), 10**9, np.random.default_rng(1))
        result["add_10_thousand_seconds"] = round(timed(lambda: add_rows(directory / "index", FINGERPRINT, more)), 3)
        return result
    finally:
        shutil.rmtree(directory)


def inverted_alone(size: int, queries: int) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="search-", dir=os.environ.get("SCRATCH")))
    try:
        vectors = make(directory, size, index_alone=True)[:queries]
        return {"vectors": size, **inverted(directory / "index", vectors), "load": os.getloadavg()[0]}
    finally:
        shutil.rmtree(directory)


def inverted(path: Path, queries: np.ndarray) -> dict[str, Any]:
    """The inverted file that is chosen by itself beyond a million, beside exact search of the same rows."""
    exact = IndexStore.open(path)
    truth = [(timed(lambda q=q: exact.search(FINGERPRINT, q, K)), exact.search(FINGERPRINT, q, K)) for q in queries]
    seconds = timed(lambda: rebuild(path, "IVF4096,Flat"))
    index = IndexStore.open(path)
    index.search(FINGERPRINT, queries[0], K)
    found = [(timed(lambda q=q: index.search(FINGERPRINT, q, K)), index.search(FINGERPRINT, q, K)) for q in queries]
    hits = [
        len({row.id for row in ours.neighbours} & {row.id for row in theirs.neighbours})
        for (_, ours), (_, theirs) in zip(found, truth, strict=True)
    ]
    entry = info(path).architectures[0]
    return {
        "type": entry.faiss, "nprobe": entry.nprobe, "build_seconds": round(seconds, 1),
        "recall": round(sum(hits) / K / len(queries), 4),
        "p50_ms": round(1000 * float(np.median([t for t, _ in found])), 3),
        "ids_p50_ms": round(1000 * float(np.median([f.plan.seconds for _, f in found])), 3),
        "exact_p50_ms": round(1000 * float(np.median([t for t, _ in truth])), 3),
        "exact_ids_p50_ms": round(1000 * float(np.median([f.plan.seconds for _, f in truth])), 3),
    }  # fmt: skip


def cold(index: Path, model: Path) -> dict[str, float]:
    """Seconds of whole processes, the least of seven: a query by file and by id, and importing alone.

    CPU seconds beside them say how much of it was waiting for a busy machine. Compiled modules are kept, as usual.
    """
    opened = IndexStore.open(index)
    id = opened.table(next(iter(opened.architectures)), ["id"])["id"][0]
    main = [sys.executable, "-c", "from weightsearch.cli import main; main()", "query", "--index", str(index)]
    commands = {
        "query_file": [*main, str(model)],
        "import_torch_faiss_duckdb": [sys.executable, "-c", "import torch, faiss, duckdb"],
        "query_id": [*main, "--id", id],
        "import_faiss_duckdb_typer": [sys.executable, "-c", "import faiss, duckdb, typer"],
    }
    with tempfile.TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(7):
            for name, command in commands.items():
                before, start = os.times(), time.perf_counter()
                subprocess.run(command, capture_output=True, check=True, env=environment)
                after = os.times()
                used = after.children_user - before.children_user + after.children_system - before.children_system
                times[name].append((time.perf_counter() - start, used))
    result = {}
    for kind, column in (("", 0), ("_cpu", 1)):
        least = {name: min(value[column] for value in values) for name, values in times.items()}
        result |= {f"{name}{kind}_seconds": round(value, 3) for name, value in least.items()}
        result[f"file{kind}_ratio"] = round(least["query_file"] / least["import_torch_faiss_duckdb"], 2)
        result[f"id{kind}_ratio"] = round(least["query_id"] / least["import_faiss_duckdb_typer"], 2)
    return result


def markdown(result: dict[str, Any]) -> str:
    """Medians, and in brackets the least time, which other work on the machine disturbs least."""
    head = "| vectors | filter passes | FAISS alone | DuckDB alone | index: ids and distances | index: whole answer "
    lines = [head + "| p99 | queries/s | recall@10 |", "|---|---|---|---|---|---|---|---|---|"]
    for size, found in result["sizes"].items():
        for name, systems in found["filters"].items():
            ours = systems["index"]
            cells = [
                f"{systems[system]['p50_ms']:.2f} ({systems[system]['least_ms']:.2f})" for system in ("faiss", "duckdb")
            ]
            cells.append(f"{ours['ids_p50_ms']:.2f} ({ours['ids_least_ms']:.2f})")
            cells.append(f"{ours['p50_ms']:.2f} ({ours['least_ms']:.2f})")
            lines.append(
                f"| {int(size):,} | {'all' if name == 'none' else name} | {' ms | '.join(cells)} ms "
                f"| {ours['p99_ms']:.2f} ms | {ours['queries_per_second']:,.0f} | {ours['recall']:.3f} |"
            )
    head = "| vectors | open | to the first answer | MiB of FAISS, DuckDB, index (with mapped files) "
    lines += ["", head + "| add 10,000 | load average |", "|---|---|---|---|---|---|"]
    for size, found in result["sizes"].items():
        used = (found["memory_mib"] or {}).values()
        memory = ", ".join(f"{value['own']:,.0f} ({value['mapped too']:,.0f})" for value in used) or "not measured"
        lines.append(
            f"| {int(size):,} | {found['opening']['open_ms']:.1f} ms | {found['opening']['first_answer_ms']:.1f} ms "
            f"| {memory} | {found['add_10_thousand_seconds']:.2f} s | {found['load'][0]:.1f} |"
        )
    if "inverted" in result:
        file = result["inverted"]
        lines += [
            "",
            f"{file['type']} of {file['vectors']:,} vectors, nprobe {file['nprobe']}, made in "
            f"{file['build_seconds']:.0f} s: recall@10 {file['recall']:.3f}, "
            f"ids and distances in {file['ids_p50_ms']:.1f} ms against {file['exact_ids_p50_ms']:.1f} ms exactly.",
        ]
    if "cold" in result:
        cold = result["cold"]
        lines += [
            "",
            f"Whole processes: a query of a file {cold['query_file_seconds']:.2f} s against "
            f"{cold['import_torch_faiss_duckdb_seconds']:.2f} s for importing torch, faiss and duckdb alone; by id "
            f"{cold['query_id_seconds']:.2f} s against {cold['import_faiss_duckdb_typer_seconds']:.2f} s for importing "
            "faiss, duckdb and typer alone. "
            f"In CPU time the ratios are {cold['file_cpu_ratio']:.2f} and {cold['id_cpu_ratio']:.2f}.",
        ]
    if "remark" in result:
        lines += ["", result["remark"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--inverted", type=int, help="measure an inverted file of this many vectors", metavar="SIZE")
    parser.add_argument("--cold-index", type=Path)
    parser.add_argument("--cold-model", type=Path)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_used_memory(arguments.memory[0], Path(arguments.memory[1]))
        return
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"faiss": faiss.__version__, "duckdb": duckdb.__version__, "numpy": np.__version__},
        "sizes": {},
    }
    known = arguments.out / "search.json"
    if known.exists():  # sizes that are not measured now stay as they were
        result = {**json.loads(known.read_text()), "machine": result["machine"], "versions": result["versions"]}
    if arguments.inverted:
        result["inverted"] = inverted_alone(arguments.inverted, arguments.queries)
    for size in arguments.sizes:
        load = os.getloadavg()[0]
        result["sizes"][str(size)] = one_size(size, arguments.queries) | {"load": [load, os.getloadavg()[0]]}
        print(f"{size:,} done", file=sys.stderr)
    if arguments.cold_index:
        result["cold"] = cold(arguments.cold_index, arguments.cold_model)
    result["sizes"] = {size: result["sizes"][size] for size in sorted(result["sizes"], key=int)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "search.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "search.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
