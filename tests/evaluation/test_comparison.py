"""The tables of a small zoo: every method under every protocol, from files that a second call reads back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from weightsearch.errors import UsageError
from weightsearch.evaluation.comparison import (
    PREDICTORS,
    MethodScores,
    ProtocolName,
    Spread,
    ZooTables,
    cells,
    make_tables,
    published,
    render,
    verdict,
)
from weightsearch.types import Baseline, Method
from weightsearch.viz.curves import draw_comparison
from weightsearch.zoo.store import Zoo

PUBLISHED = Path(__file__).parents[2] / "weightsearch" / "published.csv"


def test_the_published_figures_are_the_papers():
    rows = list(csv.DictReader(PUBLISHED.read_text().splitlines()))
    assert len(rows) == 32
    assert published("v2", "usps")["comvex-conv"] == {"parameters": 843887, "test_loss": 0.002792, "test_r2": 0.9693}
    assert set(published("v1", "svhn")) == {"fc", "fc-linear", "comvex-linear", "comvex-conv"}
    assert published("v1", "usps") == {}


def test_spread_and_verdict():
    assert Spread.of([1.0, 3.0]) == Spread(2.0, pytest.approx(np.sqrt(2)))
    assert np.isnan(Spread.of([1.0, None]).mean)
    one = Spread.of([0.5])
    assert one.mean == 0.5 and np.isnan(one.deviation)  # noqa: PT018
    assert cells(MethodScores("fc", 1, one, Spread(0.5, 0.1), one, 0.5, 10, None))[2:5] == (
        "0.50000",
        "0.500 ± 0.100",
        "0.500",
    )
    some = Spread(0.5, 0.1)
    ours = MethodScores("comvex-conv", 1, some, some, some, 0.5, 10, None)
    trees = replace(ours, method="statistics-trees", test_r2=Spread(0.9, 0.0))
    assert verdict([ours, trees]) == (
        "Highest R²: statistics-trees, 0.900; the best of the paper's four is comvex-conv, 0.500."
    )


@pytest.mark.slow
def test_tables_of_a_small_zoo_and_again_from_its_files(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    methods = (Method.STATISTICS, Method.COMVEX_CONV, Baseline.HYPERPARAMETERS, Baseline.MEAN)
    options = {
        "trials": 2, "trials_of": {Method.COMVEX_CONV: 1}, "seeds": 2, "epochs": 3, "methods": methods,
        "root": tmp_path / "fits", "quiet": True,
    }  # fmt: skip
    first = make_tables([zoo.path], tmp_path / "out", **options)
    draw_comparison(first, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "digits-v1-learning-curve.png",
        "digits-v1-parameters.png",
        "tables.json",
        "tables.md",
    ]
    (made,) = first
    assert list(made.tables) == list(ProtocolName)
    for rows in made.tables.values():
        assert [row.method for row in rows] == list(methods)
        assert [row.trials for row in rows] == [2, 1, 2, 1]
        mean = rows[-1]
        assert mean.test_r2.mean <= 0
        assert all(np.isfinite(row.test_r2.mean) for row in rows)
    content = json.loads((tmp_path / "out" / "tables.json").read_text())
    row = content["zoos"][0]["tables"]["run"][1]
    assert row["test_r2"]["mean"] == made.tables[ProtocolName.RUN][1].test_r2.mean
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "looser protocol" in text
    assert "2 trials of a random search a method, or as many as the table says, at most" in text
    assert f"| comvex-conv | {row['parameters']:,} |" in text
    assert {point.per_run for point in made.curve} == {None, 1}

    def refuse(*_: object) -> None:
        raise AssertionError("a finished fit was made again")

    monkeypatch.setattr("weightsearch.training.runner.ProcessPoolExecutor.submit", refuse)
    again = make_tables([zoo.path], tmp_path / "out", **options)
    assert render(again[0]) is not None
    assert (tmp_path / "out" / "tables.md").read_text() == text
    console = Console(width=120, record=True, quiet=False, file=io.StringIO())
    console.print(render(again[0]))
    assert f"{row['parameters']:,}" in console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_narrow_terminals_lose_no_digit(width: int):
    spread = Spread(0.05848, 0.00147)
    row = MethodScores("statistics-trees", 19_369_473, spread, spread, spread, 0.5, 10, published("v2", "usps")["fc"])
    zoo = ZooTables("usps-v2", "usps", "v2", 300, 6000, {ProtocolName.RUN: [row]})
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(zoo))
    assert "\N{HORIZONTAL ELLIPSIS}" not in console.export_text()


def test_wrong_arguments_are_one_line(zoo: Zoo, tmp_path: Path):
    with pytest.raises(UsageError, match="--trials 0"):
        make_tables([zoo.path], tmp_path, trials=0)
    with pytest.raises(UsageError, match="--trials 0"):
        make_tables([zoo.path], tmp_path, trials_of={Method.FC: 0})
    with pytest.raises(UsageError, match="at least one zoo"):
        make_tables([], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        make_tables([zoo.path], tmp_path / "file")
    assert (*Method, *Baseline) == PREDICTORS
