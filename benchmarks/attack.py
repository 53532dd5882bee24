"""The figures of one or more runs of the attack as one result.

make attack MINUTES=60; python benchmarks/attack.py runs/attack/attack.json [...] [--out benchmarks/results/attack.json]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts added, the greatest of what was measured, all findings."""
    counts: Counter[str] = Counter()
    greatest: dict[str, float] = {}
    for run in runs:
        counts.update(run["counts"])
        for name, value in run["greatest"].items():
            greatest[name] = max(greatest.get(name, 0.0), value)
    return {
        "runs": [{"minutes": run["minutes"], "seed": run["seed"]} for run in runs],
        "counts": dict(sorted(counts.items())),
        "greatest": greatest,
        "findings": [finding for run in runs for finding in run["findings"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "attack.json")
    options = parser.parse_args()
    content = merged([json.loads(path.read_text()) for path in options.runs])
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
