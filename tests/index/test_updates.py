"""New values as people write them: per cent, beginnings of ids, paths and names of files; what differs is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from tests.index.test_store import FINGERPRINT, make_index, make_rows
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import IndexStore, export, matching, update_table, update_values


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rows = make_rows(6)
    sources = np.array([f"/data/run-{i // 3}/model_{i}.pt" for i in range(6)], object)
    make_index(tmp_path / "index", replace(rows, source=sources))
    return tmp_path / "index"


def column(index: Path, name: str) -> list:
    return IndexStore.open(index).table(FINGERPRINT, [name])[name].tolist()


@pytest.mark.slow
def test_by_path_by_name_and_by_the_beginning_of_an_id(index: Path, tmp_path: Path):
    ids = column(index, "id")
    lines = [
        "/data/run-0/model_0.pt,red", "run-0/model_1.pt,blue", "model_2.pt,green", "model_3,red",
        r"C:\elsewhere\run-1\model_4.pt,blue",
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["path,team", *lines]))
    updated = update_table(index, tmp_path / "t.csv", "path")
    assert (updated.checkpoints, updated.cells) == (5, 5)
    assert column(index, "team") == ["red", "blue", "green", "red", "blue", None]
    assert update_table(index, tmp_path / "t.csv", "path").cells == 0
    beginnings = [next(id[:n] for n in range(4, 17) if sum(o.startswith(id[:n]) for o in ids) == 1) for id in ids]
    (tmp_path / "i.csv").write_text("\n".join(["id,team", f"{beginnings[5]},red", f"{ids[0]},grey"]))
    assert update_table(index, tmp_path / "i.csv").checkpoints == 2
    assert column(index, "team") == ["grey", "blue", "green", "red", "blue", "red"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "key", "says"),
    [
        ("path,team\nmodel_9.pt,red", "path", "no checkpoint with path model_9.pt"),
        ("path,team\nmodel_1.pt,red\nmodel_1.pt,blue", "path", "two rows for model_1.pt"),
        ("id,team\nffffff,red", "id", "no checkpoint with id ffffff"),
        ("id,team\n,red\nabc,blue", "id", "no checkpoint with id abc"),
        ("name,test_accuracy\nmodel_1,high", "name", "test_accuracy = 'high': give a number"),
        ("name,test_accuracy\nmodel_1,-3", "name", "no accuracy"),
        ("name,test_accuracy\nmodel_1,930", "name", "no accuracy"),
    ],
)
def test_a_line_that_says_nothing_changes_nothing(table: str, key: str, says: str, index: Path, tmp_path: Path):
    before = column(index, "test_accuracy")
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(WeightsearchError, match=says):
        update_table(index, tmp_path / "t.csv", key)
    assert column(index, "test_accuracy") == before
    assert "team" not in IndexStore.open(index).keys()  # noqa: SIM118 - a method of its own


@pytest.mark.slow
def test_accuracies_are_scaled_as_add_scales_them(index: Path, tmp_path: Path):
    (tmp_path / "t.csv").write_text('name,test_accuracy\nmodel_0,55\nmodel_1,0.9\nmodel_2,"80,5"\n')
    updated = update_table(index, tmp_path / "t.csv", "name")
    assert column(index, "test_accuracy")[:3] == pytest.approx([0.55, 0.009, 0.805])
    assert any("goes up to 80.5: taken as per cent" in note for note in updated.notes)
    (tmp_path / "t.csv").write_text("name,test_accuracy\nmodel_0,93.1%\nmodel_1,0.9\n")
    assert not update_table(index, tmp_path / "t.csv", "name").notes
    assert column(index, "test_accuracy")[:2] == pytest.approx([0.931, 0.9])
    ids = column(index, "id")
    assert update_values(index, {ids[0]: {"test_accuracy": "12 %"}, ids[1]: {"test_accuracy": None}}).cells == 2
    values = column(index, "test_accuracy")
    assert values[0] == pytest.approx(0.12)
    assert np.isnan(values[1])


@pytest.mark.slow
def test_several_checkpoints_of_one_beginning(tmp_path: Path):
    rows = make_rows(3)
    ids = np.array(["abcd000000000000", "abcd111111111111", "ffff000000000000"])
    make_index(tmp_path / "index", replace(rows, id=ids))
    (tmp_path / "t.csv").write_text("id,team\nabcd,red\n")
    with pytest.raises(UsageError, match="2 checkpoints whose id begins with abcd"):
        update_table(tmp_path / "index", tmp_path / "t.csv")


@pytest.mark.slow
def test_whole_numbers_are_compared_exactly(index: Path):
    """Beyond 2**53 neighbours are one float64; with a fraction among them a column is of those."""
    ids = column(index, "id")
    jobs = [9007199254740992, 9007199254740993, 9007199254740994]
    update_values(index, {id: {"job": job, "part": job} for id, job in zip(ids[:3], jobs, strict=True)})
    assert matching(index, where=f"job = {jobs[1]}") == [ids[1]]
    assert column(index, "job") == [*jobs, None, None, None]
    export(index, index.parent / "rows.parquet")
    exported = duckdb.connect().sql(f"SELECT job FROM '{index.parent / 'rows.parquet'}' ORDER BY number").fetchall()
    assert exported == [(job,) for job in (*jobs, None, None, None)]
    assert matching(index, where=f"job > {jobs[1]} or job < 0.5") == [ids[2]]
    assert update_values(index, {ids[0]: {"job": jobs[0] + 7}}).cells == 1
    update_values(index, {ids[4]: {"part": 0.5}})
    assert matching(index, where="part < 1") == [ids[4]]
    update_values(index, {id: {"small": i} for i, id in enumerate(ids)})
    assert IndexStore.open(index).table(FINGERPRINT, ["small"])["small"].dtype == np.float64
    update_values(index, {id: {"job": 2**62 + i} for i, id in enumerate(ids)})
    assert column(index, "job") == [2**62 + i for i in range(6)]
