"""`python -m tests.attack --minutes 2 --seed 0 --out runs/attack`: exit 1 where something was found."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before faiss: a fork has no use for its threads

from tests.attack import damages, files, kills, waits, web
from tests.attack.common import Report, peak_mib

PARTS: dict[str, tuple[float, Callable[[Report, Path, random.Random, float], None]]] = {  # shares of the time
    "kills": (0.25, kills.attack),
    "damages": (0.3, damages.attack),
    "waits": (0.05, waits.attack),
    "files": (0.3, files.attack),
    "web": (0.1, web.attack),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/attack"), help="figures and minimal inputs go here")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; repeatable")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    report = Report(options.out)
    chosen = options.part or list(PARTS)
    whole = sum(PARTS[name][0] for name in chosen)
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        for name in chosen:
            share, attack = PARTS[name]
            until = time.monotonic() + 60 * options.minutes * share / whole
            attack(report, Path(folder) / name, random.Random(f"{options.seed} {name}"), until)
            print(f"{name}: {json.dumps(report.counts)}", file=sys.stderr, flush=True)
    report.most("MiB of the attack itself", peak_mib())
    options.out.mkdir(parents=True, exist_ok=True)
    figures = {"minutes": options.minutes, "seed": options.seed, **report.to_dict()}
    (options.out / "attack.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
