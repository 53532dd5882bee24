"""The committed Markdown is what the commands write today of the committed figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from weightsearch.evaluation import comparison, report
from weightsearch.evaluation.scores import MetricRow

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def without_version(text: str) -> str:
    return re.sub(r"\d+\.\d+\.\d+", "VERSION", text, count=1)


def spread(values: dict[str, float | None]) -> comparison.Spread:
    return comparison.Spread(**{name: float("nan") if value is None else value for name, value in values.items()})


@pytest.mark.parametrize("path", sorted(RESULTS.glob("evaluation*/evaluation.json")), ids=lambda path: path.parent.name)
def test_evaluations(path: Path):
    content = json.loads(path.read_text())
    made = report.markdown([MetricRow(**row) for row in content["rows"]], content["settings"])
    assert without_version(made) == without_version(path.with_suffix(".md").read_text())


def zoo_tables(zoo: dict[str, Any]) -> comparison.ZooTables:
    spreads = ("test_loss", "test_r2", "tau")
    tables = {
        comparison.ProtocolName(name): [
            comparison.MethodScores(**{key: spread(value) if key in spreads else value for key, value in row.items()})
            for row in rows
        ]
        for name, rows in zoo["tables"].items()
    }
    curve = [comparison.Point(**{**point, "test_r2": spread(point["test_r2"])}) for point in zoo["curve"]]
    return comparison.ZooTables(**{**zoo, "tables": tables, "curve": curve})


@pytest.mark.parametrize("path", sorted(RESULTS.glob("tables-*/tables.json")), ids=lambda path: path.parent.name)
def test_comparisons(path: Path):
    content = json.loads(path.read_text())
    made = comparison.markdown([zoo_tables(zoo) for zoo in content["zoos"]], content["settings"])
    assert without_version(made) == without_version(path.with_suffix(".md").read_text())
