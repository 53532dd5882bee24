"""How much memory a fit on many checkpoints takes, and that it does not grow with them: peaks of a process of its own.

    python benchmarks/fit_memory.py [--checkpoints 5000 20000] [--method comvex-conv invariant] [--epochs 2]

The networks are random V2 ones (75,146 float32 weights, 6 GB for 20,000), written to a temporary directory: memory does
not depend on their values. Resident memory holds pages of the mapped files, which the system takes back when it needs
them; private memory is the process's own. Writes benchmarks/results/fit_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.types import Activation, Method, content_hash
from weightsearch.zoo.recipes import Initializer, Optimizer, Recipe
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import CheckpointRow, RunRow, Zoo, ZooInfo, open_writer, write_part
from weightsearch.zoo.trainer.networks import CnnShape

RESULT = Path(__file__).parent / "results" / "fit_memory.json"
RECIPE = Recipe(Optimizer.ADAM, 1e-3, 0.0, 0.0, Initializer.HE_NORMAL, None, Activation.RELU, 1.0, 0)
EPOCHS, RUNS_A_PART = 20, 25  # checkpoints of a run; runs written at a time
GIB = 2**30


def make_zoo(path: Path, count: int) -> None:
    architecture, generator = CnnShape(filters=64).architecture, np.random.default_rng(0)
    info = ZooInfo("random", "random", "v2", 0, "float32", architecture, {}, "0")
    with open_writer(path, info) as writer:
        for part in range(count // (EPOCHS * RUNS_A_PART)):
            weights = generator.standard_normal((EPOCHS * RUNS_A_PART, architecture.size), np.float32)
            write_part(writer.temporary(part), weights)
            runs = [RunRow(part * RUNS_A_PART + i, RECIPE.to_dict(), None, 0.0) for i in range(RUNS_A_PART)]
            rows = [
                CheckpointRow(content_hash(one), runs[i // EPOCHS].run, i % EPOCHS, 0.0, 0.0, 0.0, generator.random())
                for i, one in enumerate(weights)
            ]
            writer.publish(part, writer.temporary(part), runs, rows)


def measure(zoo: str, method: str, epochs: int) -> dict[str, Any]:
    """Fits in this process while a thread looks at its memory."""
    process, stop = psutil.Process(), threading.Event()
    peak = {"resident_gib": 0.0, "private_gib": 0.0}

    def watch() -> None:
        while not stop.wait(0.2):
            now = process.memory_full_info()
            peak["resident_gib"] = max(peak["resident_gib"], now.rss / GIB)
            peak["private_gib"] = max(peak["private_gib"], now.uss / GIB)

    threading.Thread(target=watch, daemon=True).start()
    opened = Zoo.open(zoo)
    config, settings = DEFAULTS[Method(method)]
    started = time.perf_counter()
    split = make_split(opened.table())
    fit(opened, split, config, replace(settings, epochs=epochs))
    stop.set()
    return {**{key: round(value, 2) for key, value in peak.items()}, "seconds": round(time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", type=int, default=[5000, 20_000])
    parser.add_argument("--method", nargs="+", default=["comvex-conv", "invariant"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--measure", nargs=2, metavar=("ZOO", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.epochs)))
        return
    result: dict[str, Any] = {"weights": CnnShape(filters=64).architecture.size, "epochs": options.epochs, "fits": []}
    for count in options.checkpoints:
        with tempfile.TemporaryDirectory() as directory:
            zoo = Path(directory) / "zoo"
            make_zoo(zoo, count)
            size = sum(file.stat().st_size for file in zoo.rglob("*") if file.is_file()) / GIB
            for method in options.method:
                command = [sys.executable, __file__, "--measure", str(zoo), method, "--epochs", str(options.epochs)]
                found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
                result["fits"].append(
                    {"method": method, "checkpoints": count, "zoo_gib": round(size, 2), **json.loads(found.stdout)}
                )
                print(result["fits"][-1], flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
