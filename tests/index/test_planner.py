"""Which rows are nearest: against a stable sort of all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.index.test_store import DENSE, make_index, make_rows, write_encoder_files
from weightsearch.index import IndexStore, create_index
from weightsearch.index.planner import BLOCK, smallest
from weightsearch.types import Selection


@pytest.mark.parametrize(
    ("count", "k"), [(1, 1), (63, 5), (64, 5), (5_000, 10), (300 * BLOCK, 10), (300 * BLOCK + 17, 70)]
)
@pytest.mark.parametrize("distinct", [1, 3, 50, None])
def test_smallest_is_a_stable_sort(count: int, k: int, distinct: int | None):
    for seed in range(20):
        rng = np.random.default_rng([count, k, seed])
        values = rng.random(count).astype(np.float32) if distinct is None else rng.integers(distinct, size=count) / 7
        values = values.astype(np.float32)
        values[rng.random(count) < 0.05] = np.inf  # as rows are that do not pass a filter
        assert smallest(values, k).tolist() == np.argsort(values, kind="stable")[:k].tolist()


def test_thirty_duplicates_among_many_come_by_position():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        values = rng.random(20_000).astype(np.float32) + 1
        copies = np.sort(rng.choice(20_000, 30, replace=False))
        values[copies] = 0.5
        assert smallest(values, 10).tolist() == copies[:10].tolist()


def test_none_of_none():
    assert smallest(np.empty(0, np.float32), 0).tolist() == []


@pytest.fixture
def clustered(tmp_path: Path) -> IndexStore:
    """An approximate index, of 2,000 rows whose epochs are 0 to 99."""
    rows = make_rows(2_000)
    rows = replace(rows, epoch=np.arange(2_000) % 100)
    return create_index(tmp_path / "index", DENSE, rows, write_extras=write_encoder_files, factory="IVF4,Flat")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "plan"),
    [(None, "IVF4,Flat"), ("epoch < 50", "IVF4,Flat with a selector"), ("epoch < 9", "exact, passing rows")],
)
def test_an_approximate_index_is_left_aside_where_few_rows_pass(clustered: IndexStore, where: str | None, plan: str):
    answer = clustered.search(DENSE.fingerprint, np.ones(8), 5, Selection(where=where))
    assert answer.plan.name == plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "plan"),
    [(None, "exact, all rows"), ("number % 2 = 0", "exact, all rows"), ("number % 4 = 0", "exact, passing rows")],
)
def test_an_exact_search_looks_at_passing_rows_alone_where_some_pass(tmp_path: Path, where: str | None, plan: str):
    index = make_index(tmp_path / "index", make_rows(400))
    answer = index.search(DENSE.fingerprint, np.ones(8), 5, Selection(where=where))
    assert answer.plan.name == plan
