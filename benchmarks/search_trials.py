"""How long a random search takes: `weightsearch train --method comvex-conv --trials 100` on 5,004 V1 checkpoints.

    python benchmarks/zoos.py usps-v1-large           # once: 556 runs
    python benchmarks/search_trials.py [--trials 100] [--method comvex-conv]

Runs the command from the start, in a directory of its own, on all cores. Writes benchmarks/results/search_trials.json
with the seconds of the whole command and of its processes, and how many trials were stopped as below_median.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "search_trials.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=ROOT / "runs" / "zoos" / "usps-v1-large")
    parser.add_argument("--method", default="comvex-conv")
    parser.add_argument("--trials", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "weightsearch", "train", str(arguments.zoo.resolve())]
        command += ["--method", arguments.method, "--trials", str(arguments.trials), "--quiet"]
        load, started, before = os.getloadavg()[0], time.perf_counter(), os.times()
        subprocess.run([*command, "--out", f"{directory}/index"], cwd=directory, check=True)
        seconds, after = time.perf_counter() - started, os.times()
        processor = after.children_user + after.children_system - before.children_user - before.children_system
        results = [json.loads(path.read_text()) for path in Path(directory).glob("runs/searches/*/*/trial-*.json")]
    scores = sorted((found["validation"]["r2"] for found in results if found.get("validation")), reverse=True)
    result = {
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
        "torch": torch.__version__,
        "method": arguments.method,
        "trials": len(results),
        "stopped_early": sum(bool(found.get("stopped")) for found in results),
        "diverged": sum(not found.get("validation") for found in results),
        "epochs": sum(len(found.get("losses", ())) for found in results),
        "command_seconds": round(seconds),
        "processor_seconds": round(processor),
        "trial_seconds_median": round(float(np.median([found["seconds"] for found in results])), 1),
        "best_validation_r2": [round(score, 4) for score in scores[:5]],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
