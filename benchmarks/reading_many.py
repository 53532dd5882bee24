"""Many small checkpoints added to an index, against reading their bytes and the encoder alone.

    OMP_NUM_THREADS=1 python benchmarks/reading_many.py --files 5000 20000

Files are of the reference index's architecture (4,970 weights, 20 to 23 kB), as torch.save and as safetensors write
them, a run of ten epochs a folder. Writes benchmarks/results/reading_many.json. Each count runs in a process of its
own: its memory is the most that it and the processes that read for it held. Seconds are processors', so that a busy
machine counts less; the wall's are beside them. The limit is what one process needs to read all bytes and to embed as
many networks on one thread. What `add` needs on two cores is computed: what it does alone, and while others read for it
half of what all do, or its own part where that is more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint
from weightsearch.index import IndexStore
from weightsearch.search.add import add
from weightsearch.search.reading_processes import ReadingProcesses
from weightsearch.training.represent import load_any_encoder, represent

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "reading_many.json"
SUFFIXES = (".pt", ".safetensors")
BATCH = 256  # networks that are embedded together, as `add` does


def write_files(folder: Path, count: int, suffix: str = ".pt") -> None:
    """Noisy copies of the reference index's examples, ten epochs a run."""
    examples = [read_checkpoint(path) for path in sorted((ROOT / "index" / "examples").glob("*.pt"))]
    rng = np.random.default_rng(0)
    for number in range(count):
        example = examples[number % len(examples)]
        weights = example.weights + rng.normal(scale=1e-2, size=example.weights.shape).astype(np.float32)
        path = folder / f"run-{number // 10:06d}" / f"epoch={number % 10}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"epoch": number % 10, "test_acc": float(rng.random()), "hparams": {"lr": float(rng.random())}}
        write_checkpoint(path, weights, example.architecture, metadata)


def timed(call: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"seconds": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def peak_megabytes(process: int | str = "self") -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def parts(folder: Path, index: Path) -> dict[str, Any]:
    """Reading all bytes, and the encoder on as many networks, each alone."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    reading = timed(lambda: [path.read_bytes() for path in paths])
    checkpoint = read_checkpoint(paths[0])
    encoder = load_any_encoder(IndexStore.open(index).encoder_directory(checkpoint.architecture.fingerprint))
    weights = np.repeat(checkpoint.weights[None], BATCH, axis=0)
    represent(encoder, weights, [None] * BATCH)
    batches = max(1, min(len(paths), 5_000) // BATCH)
    encoding = timed(lambda: [represent(encoder, weights, [None] * BATCH) for _ in range(batches)])
    share = len(paths) / (batches * BATCH)
    return {"reading": reading, "encoder": {name: value * share for name, value in encoding.items()}}


def one(task: str, folder: Path, index: Path) -> dict[str, Any]:
    """What the process of its own does."""
    if task == "parts":
        return parts(folder, index)
    base = peak_megabytes()
    beside = 0.0  # seconds of this process while others read for it
    read = ReadingProcesses.read

    def timed_read(*arguments: Any) -> Iterator[Any]:
        nonlocal beside
        start = time.process_time()
        yield from read(*arguments)
        beside += time.process_time() - start

    readers_megabytes: list[float] = []
    end = ReadingProcesses.end

    def measured_end(processes: ReadingProcesses) -> None:
        readers_megabytes.extend(peak_megabytes(one._process.pid) for one in processes._processes)
        end(processes)

    ReadingProcesses.read, ReadingProcesses.end = timed_read, measured_end  # type: ignore[method-assign]
    result: dict[str, Any] = timed(lambda: add([folder], index, quiet=True))
    of_readers = resource.getrusage(resource.RUSAGE_CHILDREN)
    readers = of_readers.ru_utime + of_readers.ru_stime
    alone = result["seconds"] - beside
    return {
        **result,
        "seconds of readers": readers,
        "seconds on two cores": alone + max(beside, (beside + readers) / 2),
        "megabytes": peak_megabytes() + sum(readers_megabytes),
        "megabytes of readers": readers_megabytes,
        "megabytes before": base,
    }


def apart(task: str, folder: Path, index: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", task, str(folder), str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--formats", nargs="+", default=SUFFIXES, choices=SUFFIXES)
    parser.add_argument("--more", action="store_true", help="keep the results of other formats and counts")
    parser.add_argument("--one", nargs=3)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], *map(Path, arguments.one[1:]))))
        return
    asked = list(itertools.product(arguments.formats, arguments.files))
    results = json.loads(RESULT.read_text())["results"] if arguments.more else []
    results = [row for row in results if (row["format"], row["files"]) not in asked]
    with tempfile.TemporaryDirectory() as place:
        for suffix, count in asked:
            folder, index = Path(place) / "files", Path(place) / "index"
            write_files(folder, count, suffix)
            shutil.copytree(ROOT / "index", index)
            before, added, after = (apart(task, folder, index) for task in ("parts", "add", "parts"))
            # On a busy machine a second holds less: the faster of both, so that the limit is not flattered.
            alone = {name: min(before[name], after[name], key=lambda part: part["seconds"]) for name in before}
            limit = alone["reading"]["seconds"] + alone["encoder"]["seconds"]
            results.append({
                "format": suffix,
                "files": count,
                "bytes": sum(path.stat().st_size for path in folder.rglob("*.*")),
                "alone": alone,
                "add": added,
                "files a second": count / added["seconds on two cores"],
                "share of the limit": limit / added["seconds on two cores"],
                "share by all processors' seconds": limit / (added["seconds"] + added["seconds of readers"]),
            })  # fmt: skip
            print(json.dumps(results[-1], indent=1), file=sys.stderr)
            RESULT.write_text(json.dumps({"cores": 2, "load": os.getloadavg()[0], "results": results}, indent=1) + "\n")
            shutil.rmtree(folder)
            shutil.rmtree(index)


if __name__ == "__main__":
    main()
