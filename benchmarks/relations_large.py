"""What `diff`, `add` and `query` take on networks of 100 and 500 million numbers: seconds of a core, and memory.

    OMP_NUM_THREADS=1 python benchmarks/relations_large.py [--numbers 1e8 5e8] [--folder PLACE] [--only SHA add query]

Writes benchmarks/results/relations_large.json; of what is not measured anew it keeps what it has. The files are
`.safetensors` of random numbers in matrices of 4,096 × 4,096, written to a temporary directory, or kept in PLACE (three
of them, 5 GB for 500 million numbers): a base, its copy in half precision, and the base with a matrix of rank 8 added
to every weight. Each command is a process of its own. Seconds are processor time, the start of Python included; memory
is the most that was the process's own (anonymous pages, not those of mapped files, which the system takes back when it
needs them).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

RESULT = Path(__file__).parent / "results" / "relations_large.json"
WIDTH = 4_096
HASH = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest()[:8])"


def matrices(count: int, *, rank: int) -> Iterator[np.ndarray]:
    """`count` of a network's weights, with a matrix of `rank` added; made one at a time."""
    for k in range(count):
        rng = np.random.default_rng([1, k])
        weight = rng.random((WIDTH, WIDTH), np.float32) - np.float32(0.5)
        if rank:
            left, right = rng.standard_normal((2, WIDTH, rank), np.float32)
            weight += np.float32(0.005) * (left @ right.T)
        yield weight


def write(path: Path, count: int, dtype: str, rank: int = 0) -> None:
    """A `.safetensors` file, streamed: a header of its length in eight bytes and JSON, then the tensors."""
    kind = np.dtype(dtype)
    size = WIDTH**2 * kind.itemsize
    if path.exists() and path.stat().st_size > count * size:
        return
    header = {
        f"layers.{k}.weight": {
            "dtype": {4: "F32", 2: "F16"}[kind.itemsize], "shape": [WIDTH, WIDTH],
            "data_offsets": [k * size, (k + 1) * size],
        }
        for k in range(count)
    }  # fmt: skip
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in matrices(count, rank=rank):
            file.write(weight.astype(kind).data)


def measured(*command: str) -> tuple[str, float, float, float]:
    """A command's output, its seconds of the processor and by the clock, and the most memory of its own in MB."""
    before = os.times()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        one = psutil.Process(process.pid)
        while not ended.wait(0.02):
            try:
                memory = one.memory_info()
            except psutil.NoSuchProcess:
                return
            peak = max(peak, memory.rss - memory.shared)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    ended.set()
    watcher.join()
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return output, round(seconds, 2), round(after.elapsed - before.elapsed, 2), round(peak / 1e6, 1)


def measure(numbers: float, folder: Path, only: list[str]) -> Iterator[dict[str, Any]]:
    count = round(numbers / WIDTH**2)
    base, half, merged = (folder / f"{name}-{count}.safetensors" for name in ("base", "half", "merged"))
    index = folder / "index"
    program = (sys.executable, "-m", "weightsearch")
    jobs = {
        "SHA-256 of the file": (sys.executable, "-c", HASH, str(base)),
        "diff with its copy in half precision": (*program, "diff", str(base), str(half)),
        "diff with LoRA merged": (*program, "diff", str(base), str(merged)),
        "add": (*program, "add", str(base), "--index", str(index), "--quiet"),
        "query of the one with LoRA merged": (*program, "query", str(merged), "--index", str(index)),
    }
    for name, command in jobs.items():
        if not name.startswith(tuple(only)):
            continue
        write(base, count, "float32")
        if str(half) in command:
            write(half, count, "float16")
        if str(merged) in command:
            write(merged, count, "float32", rank=8)
        output, seconds, clock, memory = measured(*command)
        told = output.split(":")[0].strip() if name.startswith("diff") else ""
        if name.startswith("query"):
            told = output.split(": ")[1].partition(" of ")[0]
        yield {
            "numbers": count * WIDTH**2, "file_mb": round(base.stat().st_size / 1e6), "command": name, "told": told,
            "seconds": seconds, "clock": clock, "memory_mb": memory,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=float, nargs="+", default=[1e8, 5e8])
    parser.add_argument("--folder", type=Path, help="where the files are kept; a temporary directory by default")
    parser.add_argument("--only", nargs="+", default=[""], help="how the measured commands begin")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    before = json.loads(options.out.read_text()) if options.out.exists() else []
    rows = {(row["numbers"], row["command"]): row for row in before}
    for numbers in options.numbers:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            shutil.rmtree(folder / "index", ignore_errors=True)
            for row in measure(numbers, folder, options.only):
                print(row, flush=True)
                rows[row["numbers"], row["command"]] = row
                options.out.write_text(json.dumps(list(rows.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
