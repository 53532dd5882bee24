"""An index's rows for Embedding Atlas: places in two dimensions, nearest neighbours, labels, recipes as columns."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import numpy as np

from weightsearch.distance import prepare
from weightsearch.files import cannot_write, refuse_to_overwrite, replacing
from weightsearch.index import IndexStore, export
from weightsearch.viz.projection import Projection, nearest, project

NEIGHBOURS = 10
PLACE, BETWEEN = 10.0, 2.0  # of one architecture, in width and height, and the gap to the next
LABEL = (
    "concat_ws(' ', coalesce(run, id[:8]), 'epoch ' || printf('%g', epoch), "
    "CASE WHEN isfinite(test_accuracy) THEN round(test_accuracy, 3)::VARCHAR END)"
)


def export_atlas(
    path: str | Path,
    out: str | Path,
    *,
    where: str | None = None,
    projection: Projection = Projection.UMAP,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Writes rows to a Parquet file that Embedding Atlas opens; returns how many.

    Beside what `export` writes, but for the embeddings, there are `projection_x`, `projection_y`, `neighbors` (a
    struct of `ids`, which are row numbers of the file, and `distances`) and `label`, as
    https://apple.github.io/embedding-atlas/tool.html asks for. Each architecture is placed on its own, one beside the
    other.

    Raises UsageError where `out` exists, unless `overwrite`, and where no row passes.
    """
    index, out = IndexStore.open(path), Path(out)
    refuse_to_overwrite(out, overwrite)
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(":memory:") as connection:
        rows = Path(folder) / "rows.parquet"
        count = export(path, rows, where=where)
        connection.execute(
            "CREATE TABLE rows AS SELECT row_number() OVER () - 1 AS place, * FROM read_parquet(?)", [str(rows)]
        )
        architectures = connection.execute("SELECT DISTINCT architecture FROM rows ORDER BY 1").fetchall()
        for number, (fingerprint,) in enumerate(architectures):
            fetched = connection.execute(
                "SELECT place, embedding FROM rows WHERE architecture = ? ORDER BY place", [fingerprint]
            ).fetchnumpy()
            vectors = prepare(np.array(fetched["embedding"].tolist(), np.float32), index.metric)
            points = project(vectors, projection, index.metric, seed=seed)
            points = (points - points.min(axis=0)) / np.ptp(points, axis=0).clip(1e-12) * PLACE
            points[:, 0] += number * (PLACE + BETWEEN)  # side by side: places of two spaces mean nothing to each other
            near, distances = nearest(vectors, vectors, NEIGHBOURS + 1, index.metric)
            places = fetched["place"][near]  # (n, k) of the whole file
            in_space = places == fetched["place"][:, None]
            values = {"place": fetched["place"], "x": points[:, 0], "y": points[:, 1]}
            values |= {f"near_{j}": places[:, j] for j in range(places.shape[1])}
            values |= {f"far_{j}": distances[:, j].astype(np.float64) for j in range(places.shape[1])}
            values |= {f"own_{j}": in_space[:, j] for j in range(places.shape[1])}
            connection.register("part", {name: np.ascontiguousarray(column) for name, column in values.items()})
            others = range(places.shape[1])
            pairs = ", ".join(
                f"CASE WHEN own_{j} THEN NULL ELSE {{'id': near_{j}, 'far': far_{j}}} END" for j in others
            )
            statement = f"SELECT place, x, y, list_filter([{pairs}], lambda pair: pair IS NOT NULL) AS pairs FROM part"
            connection.execute(f"{'INSERT INTO placed' if number else 'CREATE TABLE placed AS'} {statement}")
            connection.unregister("part")
        chosen = (
            "SELECT rows.* EXCLUDE (place, embedding, recipe, metadata), x AS projection_x, y AS projection_y, "
            "{'ids': list_transform(pairs, lambda pair: pair.id), "
            "'distances': list_transform(pairs, lambda pair: pair.far)} AS neighbors, "
            f"{LABEL} AS label FROM rows JOIN placed USING (place) ORDER BY place"
        )
        try:
            with replacing(out) as temporary:
                connection.execute(
                    f"COPY ({chosen}) TO '{str(temporary).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)"
                )
        except (duckdb.Error, OSError) as error:
            raise cannot_write(out, error) from error
    return count
