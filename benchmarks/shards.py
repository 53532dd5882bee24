"""Two workers against one, what an engine adds, and what more workers would do: computed from the measured parts.

    OMP_NUM_THREADS=1 python benchmarks/shards.py            # a few minutes on an idle machine with two cores
    OMP_NUM_THREADS=1 python benchmarks/shards.py --no-ray

Writes benchmarks/results/shards.json. Workers are processes of `weightsearch embed --shard i/n` that start together; a
worker's start (Python and its libraries, the encoder) is measured on a few files and told apart, since a long job pays
it once. All is measured turn by turn, and medians of turns' ratios are told: by the clock, and by the processor
seconds of the busiest worker, which other work on the machine does not change. The engine's overhead is Ray's: files of
a megabyte as tasks on a local cluster of one processor, less the same files by one process without Ray, both without
their starts. The table of many workers takes what was measured of the parts, as processor seconds: listing and
collecting, which one process does, and reading, which is shared; its files' bytes come from a store that gives all
workers together a given rate. Nothing of it was run on more than this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))
from reading_many import ROOT, write_files

from weightsearch.search.add import find_given
from weightsearch.search.shards import collect, embed

RESULT = ROOT / "benchmarks" / "results" / "shards.json"
FILES, BIG_FILES, FEW, REPEATS = 4_000, 300, 20, 3
STORE_BYTES_A_SECOND = 5e9  # what a store gives all workers together, in the table
TABLE_FILES, TABLE_WORKERS = 10_000_000, (1, 2, 8, 64, 512)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def workers(folder: Path, place: Path, count: int) -> dict[str, float]:
    """`count` processes that share the files: seconds until the last one ends, and processor seconds of the busiest."""
    shutil.rmtree(place / "parts", ignore_errors=True)
    command = [sys.executable, "-m", "weightsearch", "embed", str(folder), "--out", str(place / "parts")]
    command += ["--index", str(ROOT / "index"), "--quiet", "--shard"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    running = [
        subprocess.Popen([*command, f"{i}/{count}"], env=environment, stdout=subprocess.DEVNULL) for i in range(count)
    ]
    busy = []
    for one in running:
        _, status, usage = os.wait4(one.pid, 0)
        one.returncode = status
        if status:
            raise SystemExit("a worker failed")
        busy.append(usage.ru_utime + usage.ru_stime)
    return {"seconds": time.perf_counter() - start, "busiest": max(busy), "all": sum(busy)}


def long_job(files: int, start: dict[str, float], one: dict[str, float], two: dict[str, float], measure: str) -> float:
    """Two workers against one where the start counts for nothing: twice a file's cost alone by that beside another.

    What is called the start has read `FEW` files, and each of two workers reads half of all.
    """
    alone = (one[measure] - start[measure]) / (files - FEW)
    beside = (two[measure] - start[measure]) / (files / 2 - FEW)
    return 2 * alone / beside


def write_big(folder: Path, count: int) -> None:
    """Files of a megabyte, of no known architecture: they are read and signed."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        tensors = {f"layers.{k}.weight": rng.standard_normal((256, 256), np.float32) for k in range(4)}
        save_file(tensors, folder / f"{number:05d}.safetensors")


def engine(folder: Path, place: Path) -> dict[str, float]:
    """The same files by one process and by tasks on a Ray cluster of one processor that has started, turn by turn."""
    os.environ |= {"RAY_worker_niceness": "0"}  # as the process that it is compared with
    import ray

    from weightsearch.ray_tasks import connect

    embed([folder], place / "warm", quiet=True)  # compiles, and fills the system's cache of files
    connect(ray, "local", 1)
    embed([folder], place / "warm-ray", ray="local", quiet=True)
    turns: dict[str, list[float]] = {name: [] for name in ("alone", "alone, busy", "ray", "ray, busy")}
    for number in range(REPEATS):
        for name, address in (("alone", None), ("ray", "local")):
            before = busy_seconds()
            out = place / f"{name}-{number}"
            turns[name].append(seconds(lambda out=out, address=address: embed([folder], out, ray=address, quiet=True)))
            turns[f"{name}, busy"].append(busy_seconds() - before)
    ray.shutdown()
    result = {name: float(np.median(values)) for name, values in turns.items()}
    for measure in ("", ", busy"):
        ratios = np.array(turns[f"ray{measure}"]) / turns[f"alone{measure}"]
        result[f"overhead{measure}"] = float(np.median(ratios)) - 1
    return result


def busy_seconds() -> float:
    """Of processors, by this process and by the workers of a Ray cluster that it has started."""
    import psutil

    me = psutil.Process()
    workers_of_ray = [one for one in me.children(recursive=True) if one.name().startswith("ray::")]
    return sum(sum(one.cpu_times()[:2]) for one in [me, *workers_of_ray])


def table(listing: float, reading: float, collecting: float, bytes_a_file: float) -> list[dict[str, Any]]:
    """What `TABLE_FILES` files would take, from seconds a file of each part; reads wait for a store that is shared."""
    rows = []
    for count in TABLE_WORKERS:
        store = TABLE_FILES * bytes_a_file / STORE_BYTES_A_SECOND
        shared = {"reading and embedding": TABLE_FILES * reading / count, "the store": store}
        hours = {
            "listing, by every worker": TABLE_FILES * listing / 3600,
            "reading and embedding": max(shared.values()) / 3600,
            "collecting, by one": TABLE_FILES * collecting / 3600,
        }
        limit = max(hours, key=lambda name: hours[name])
        if limit == "reading and embedding" and shared["the store"] > shared["reading and embedding"]:
            limit = "the store"
        rows.append({"workers": count, "hours": sum(hours.values()), **hours, "limit": limit})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--big-files", type=int, default=BIG_FILES)
    parser.add_argument("--no-ray", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_files(place / "files", arguments.files)
        write_files(place / "few", FEW)
        size = sum(path.stat().st_size for path in (place / "files").rglob("*.pt")) / arguments.files
        turns = [
            [workers(place / folder, place, count) for folder, count in (("few", 1), ("files", 1), ("files", 2))]
            for _ in range(REPEATS)
        ]
        start, one, two = (
            {name: float(np.median([turn[k][name] for turn in turns])) for name in turns[0][k]} for k in range(3)
        )
        shutil.copytree(ROOT / "index", place / "index")
        before = time.process_time()
        find_given([place / "files"])
        listing = time.process_time() - before
        before = time.process_time()
        collect(place / "parts", place / "index", quiet=True)
        collecting = time.process_time() - before
        result: dict[str, Any] = {
            "files": arguments.files,
            "bytes a file": size,
            "start of a worker": start,
            "one worker": one,
            "two workers": two,
            "speed-up": float(np.median([turn[1]["seconds"] / turn[2]["seconds"] for turn in turns])),
            "speed-up by processor": float(np.median([turn[1]["busiest"] / turn[2]["busiest"] for turn in turns])),
            "speed-up without the start": {
                name: long_job(arguments.files, start, one, two, name) for name in ("seconds", "busiest")
            },
            "listing": listing,
            "collecting": collecting,
            "load": [round(load, 1) for load in os.getloadavg()],
        }
        reading = (one["busiest"] - start["busiest"] - listing) / (arguments.files - FEW)
        result["table"] = table(listing / arguments.files, reading, collecting / arguments.files, size)
        result["table's files"], result["table's store"] = TABLE_FILES, STORE_BYTES_A_SECOND
        if arguments.no_ray and RESULT.exists():
            result |= {name: value for name, value in json.loads(RESULT.read_text()).items() if name not in result}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        if not arguments.no_ray:
            write_big(place / "big", arguments.big_files)
            result["a megabyte a file"] = engine(place / "big", place)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
