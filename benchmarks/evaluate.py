"""Evaluates all methods on the benchmark zoos, and says which of the bars a method clears.

    python benchmarks/evaluate.py ZOO [--methods invariant statistics] [--seeds 5] [--of invariant] [--bars-only]

See `weightsearch evaluate`, which this calls and which goes on where it was killed. Writes
benchmarks/results/evaluation-ZOO/ and, of the bars, one line each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from weightsearch import evaluate
from weightsearch.evaluation.scores import THIRDS
from weightsearch.evaluation.tasks import METHODS

RESULTS = Path(__file__).parent / "results"

# Metric, what it is compared with (None: itself), whether at least or at most, and the bar; for zoos of 350 training
# runs or more.
BARS: tuple[tuple[str, str | None, str, float], ...] = (
    ("prediction.r2", None, "at least", 0.97),
    ("prediction.tau", None, "at least", 0.85),
    ("prediction.r2", "statistics-trees", "low above", 0.0),
    ("prediction.tau", "statistics-trees", "low above", 0.0),
    ("prediction.r2", "statistics", "low above", 0.0),
    ("prediction.tau", "statistics", "low above", 0.0),
    ("precision@10.good", None, "at least", 0.90),
    ("precision@10.bad", None, "at least", 0.90),
    ("neighbours.r2", None, "at least", 0.95),
    ("noise.kept", None, "at least", 0.95),
    *((f"interval.coverage@{third}", None, "at least", 0.88) for third in THIRDS),
    *((f"interval.coverage@{third}", None, "at most", 0.92) for third in THIRDS),
    ("twin.recall", None, "at least", 1.0),
    ("rescaled.recall", None, "at least", 1.0),
    ("twin.drift_worst", None, "at most", 1e-4),
    ("rescaled.drift_worst", None, "at most", 1e-4),
)


def cleared(row: dict[str, Any], kind: str, bar: float) -> bool:
    if kind == "low above":
        return row["low"] is not None and row["low"] > bar
    return row["value"] >= bar if kind == "at least" else row["value"] <= bar


def bars(rows: list[dict[str, Any]], method: str) -> list[str]:
    """A line for each zoo and bar."""
    lines = []
    for zoo in dict.fromkeys(row["zoo"] for row in rows):
        own = {
            (row["metric"], row["against"]): row
            for row in rows
            if (row["zoo"], row["method"], row["seed"], row["on"]) == (zoo, method, None, None)
        }
        for metric, against, kind, bar in BARS:
            row = own.get((metric, against))
            if row is not None:
                mark = "cleared" if cleared(row, kind, bar) else "MISSED "
                interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
                minus = f" minus {against}'s" if against else ""
                lines.append(f"{zoo}  {mark}  {metric}{minus} {kind} {bar:g}: {row['value']:.4g}{interval}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--of", default="invariant", metavar="METHOD", help="whose bars are looked at")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bars-only", action="store_true", help="of the results that are there")
    options = parser.parse_args()
    out = RESULTS / f"evaluation-{options.zoo.name}"
    if not options.bars_only:
        evaluate([options.zoo], out, methods=options.methods, seeds=options.seeds, workers=1)
    print("\n".join(bars(json.loads((out / "evaluation.json").read_text())["rows"], options.of)))


if __name__ == "__main__":
    main()
