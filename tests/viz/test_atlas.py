"""What Embedding Atlas opens, against brute force over the index's own embeddings."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from weightsearch.index import IndexStore, export
from weightsearch.viz.atlas import export_atlas

REFERENCE = Path(__file__).parents[2] / "index"


@pytest.mark.slow
def test_rows_have_places_neighbours_labels_and_recipes(tmp_path: Path):
    out = tmp_path / "atlas.parquet"
    index = IndexStore.open(REFERENCE)
    assert export_atlas(REFERENCE, out, projection="pca") == len(index)
    rows = (
        duckdb.connect()
        .sql(
            f"SELECT id, architecture, projection_x, projection_y, neighbors.ids AS near, neighbors.distances AS far, "
            f"label, optimizer, family FROM '{out}'"
        )
        .fetchnumpy()
    )
    assert np.isfinite(rows["projection_x"]).all()
    assert np.isfinite(rows["projection_y"]).all()
    for fingerprint in index.architectures:
        own = {id: place for place, id in enumerate(index.table(fingerprint, ["id"])["id"].tolist())}
        vectors = index.embeddings(fingerprint).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        here = np.flatnonzero(rows["architecture"] == fingerprint)
        for place in here[:: len(here) // 20]:
            row = own[rows["id"][place]]
            distances = 1 - vectors @ vectors[row]
            distances[row] = np.inf
            assert np.sort(distances)[:10] == pytest.approx(rows["far"][place], abs=1e-5)
            others = [own[rows["id"][other]] for other in rows["near"][place]]
            assert row not in others
            assert distances[others] == pytest.approx(rows["far"][place], abs=1e-5)
    # As `embedding-atlas --help` of 0.26 has it: {"ids": [n1, n2, ...], "distances": [d1, d2, ...]}, of zero-based row
    # indices. A column of JSON it would show as a wall of text.
    types = dict(duckdb.connect().sql(f"SELECT column_name, column_type FROM (DESCRIBE FROM '{out}')").fetchall())
    assert types["projection_x"] in ("FLOAT", "DOUBLE")
    assert types["projection_y"] in ("FLOAT", "DOUBLE")
    assert types["neighbors"] == "STRUCT(ids BIGINT[], distances DOUBLE[])"
    assert types["label"] == "VARCHAR"
    assert not {"recipe", "metadata", "embedding"} & set(types)
    assert all(0 <= other < len(index) for near in rows["near"] for other in near)
    spans = duckdb.connect().sql(
        f"SELECT min(projection_x), max(projection_x) FROM '{out}' GROUP BY architecture ORDER BY 1"
    )
    (_, end), (start, _) = spans.fetchall()  # of the two spaces, side by side
    assert end < start
    (label,) = duckdb.connect().sql(f"SELECT label FROM '{out}' WHERE run = 'usps-v1/35' AND epoch = 80").fetchall()[0]
    assert label == "usps-v1/35 epoch 80 0.945"


@pytest.mark.slow
def test_columns_that_one_space_knows_nothing_of_are_texts_of_the_others(tmp_path: Path):
    out = tmp_path / "rows.parquet"
    assert export(REFERENCE, out) == len(IndexStore.open(REFERENCE))
    families = duckdb.connect().sql(f"SELECT architecture, count(family) FROM '{out}' GROUP BY 1 ORDER BY 2").fetchall()
    assert [count > 0 for _, count in families] == [False, True]
