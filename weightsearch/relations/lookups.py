"""What is asked of an index's signatures by their values, names and shapes: by DuckDB, without reading them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weightsearch.index import checks
from weightsearch.index.connection import Database
from weightsearch.index.manifest import DATABASE
from weightsearch.relations.store import has_tables, objects


@dataclass(frozen=True)
class Head:
    """What stands beside a signature."""

    source: str
    content: str
    run: str | None
    epoch: float | None
    sketch: np.ndarray  # float32 (512,)


def count(path: str | Path) -> int:
    """How many signatures the index at `path` has."""
    with Database(Path(path) / DATABASE).open() as connection:
        if not has_tables(connection):
            return 0
        return int(connection.execute("SELECT count(*) FROM ix.signatures").fetchall()[0][0])


def newest(path: str | Path, most: int) -> list[tuple[str, str | None]]:
    """Sources and runs of the `most` signatures that were added last, in the order in which they were."""
    with Database(Path(path) / DATABASE).open() as connection:
        if not has_tables(connection):
            return []
        rows = connection.execute(
            f"SELECT source, run FROM ix.signatures ORDER BY number DESC LIMIT {int(most)}"
        ).fetchall()
    return rows[::-1]


def read_heads(path: str | Path, numbers: Sequence[int]) -> dict[int, Head]:
    """By number, in the given order; those that are gone are left out."""
    if not len(numbers):
        return {}
    among = ",".join(str(int(number)) for number in numbers)
    with Database(Path(path) / DATABASE).open() as connection:
        rows = connection.execute(
            f"SELECT number, source, content, run, epoch, sketch, {checks.signature_sql(connection)[0]} "
            f"FROM ix.signatures WHERE number IN ({among})"
        ).fetchall()
        checks.expect(is_sound for *_, is_sound in rows)
    heads = {
        number: Head(
            source, content, run, None if epoch is None or epoch != epoch else epoch,
            np.frombuffer(sketch, "<f2").astype(np.float32),
        )
        for number, source, content, run, epoch, sketch, _ in rows
    }  # fmt: skip
    return {number: heads[number] for number in map(int, numbers) if number in heads}


def with_values(
    path: str | Path, columns: Mapping[str, Sequence[str]], most: int, without: Sequence[int] = ()
) -> list[int]:
    """Numbers of the first `most` signatures that have one of the values in one of these columns."""
    terms, values = [], []
    for column, wanted in columns.items():
        if wanted:
            terms.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += list(wanted)
    if not terms:
        return []
    but = f" AND number NOT IN ({','.join(str(int(number)) for number in without)})" if len(without) else ""
    with Database(Path(path) / DATABASE).open() as connection:
        rows = connection.execute(
            f"SELECT number FROM ix.signatures WHERE ({' OR '.join(terms)}){but} ORDER BY number LIMIT {int(most)}",
            values,
        ).fetchall()
    return [number for (number,) in rows]


def sharing(path: str | Path, hashes: Iterable[int]) -> dict[int, int]:
    """How many of these tensors (by hash of their values without order) each signature has; those that have any."""
    with Database(Path(path) / DATABASE).open() as connection:
        if not has_tables(connection):
            return {}
        connection.register("given", {"unordered": np.array(sorted(set(hashes)), np.uint64)})
        rows = connection.execute(
            "SELECT signature, count(DISTINCT unordered) FROM ix.tensors WHERE role = 'weight' AND unordered IN "
            "(SELECT unordered FROM given) GROUP BY signature"
        ).fetchall()
        connection.unregister("given")
    return dict(rows)


def fitting(path: str | Path, modules: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Numbers of the signatures with a weight of the given shape for each module, by the ends of names.

    Three of the modules are looked for, which leaves the rest to be compared.
    """
    names = sorted(modules)
    chosen = [names[k] for k in sorted({0, len(names) // 2, len(names) - 1})]
    with Database(Path(path) / DATABASE).open() as connection:
        if not names or not has_tables(connection):
            return []
        shapes = objects(json.dumps(modules[name]) for name in chosen)
        connection.register("given", {"module": objects(f"{name}.weight" for name in chosen), "shape": shapes})
        rows = connection.execute(
            "SELECT t.signature FROM ix.tensors t JOIN given g ON t.shape = g.shape "
            "AND (t.name = g.module OR ends_with(t.name, '.' || g.module)) "
            "GROUP BY t.signature HAVING count(DISTINCT g.module) = ? ORDER BY t.signature",
            [len(chosen)],
        ).fetchall()
        connection.unregister("given")
    return [number for (number,) in rows]
