"""Evaluates all methods on the benchmark zoos, and says which of the bars a method clears.

    python benchmarks/evaluate.py [ZOO...] [--method invariant] [--seeds 5] [--bars-only]

The zoos default to all in runs/zoos; see `weightsearch evaluate`, which this calls and which goes on where it was
killed. Writes benchmarks/results/evaluation/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from weightsearch import evaluate

RESULTS = Path(__file__).parent / "results" / "evaluation"

# Metric, what it is compared with (None: itself), whether at least or at most, and the bar.
BARS: tuple[tuple[str, str | None, str, float], ...] = (
    ("prediction.r2", "statistics-trees", "low above", 0.0),
    ("prediction.tau", "statistics-trees", "low above", 0.0),
    ("prediction.r2", "statistics", "low above", 0.0),
    ("prediction.tau", "statistics", "low above", 0.0),
    ("prediction.r2", None, "at least", 0.97),
    ("precision@10.good", "statistics", "at least", 0.10),
    ("precision@10.bad", None, "at least", 0.90),
    ("neighbours.r2", None, "at least", 0.95),
    ("twin.recall", None, "at least", 1.0),
    ("twin.drift_worst", None, "at most", 1e-4),
    ("rescaled.recall", None, "at least", 1.0),
    ("rescaled.drift_worst", None, "at most", 1e-4),
    ("noise.shift", None, "at most", 0.1),
    ("noise.kept", None, "at least", 0.9),
    ("interval.coverage", None, "at least", 0.87),
    ("interval.coverage", None, "at most", 0.93),
    ("cost.parameters", None, "at most", 500_000),
    ("cost.per_second", None, "at least", 1000),
    ("cost.fit_seconds", None, "at most", 180),
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
    parser.add_argument("zoos", nargs="*", type=Path)
    parser.add_argument("--method", default="invariant", help="whose bars are looked at")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bars-only", action="store_true", help="of the results that are there")
    options = parser.parse_args()
    if not options.bars_only:
        zoos = options.zoos or sorted(path.parent for path in Path("runs/zoos").glob("*/zoo.json"))
        evaluate(zoos, RESULTS, seeds=options.seeds)
    print("\n".join(bars(json.loads((RESULTS / "evaluation.json").read_text())["rows"], options.method)))


if __name__ == "__main__":
    main()
