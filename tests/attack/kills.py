"""Processes killed at random moments of whatever changes an index; what was acknowledged is compared with an oracle."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from tests.attack.common import Report, in_child
from tests.index.test_store import DENSE, make_index, make_rows, more_rows
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore, add_rows, create, doctor, rebuild, remove_rows, update_rows
from weightsearch.index import writer as writing
from weightsearch.index.create import create_index
from weightsearch.index.manifest import DATABASE, MANIFEST, read_manifest, write_manifest

FINGERPRINT = DENSE.fingerprint
ACTIONS = ("add", "add", "remove", "update", "rebuild", "doctor", "migrate", "replace", "replace by two renames")
BEYOND = 1.2  # times what an action took last: until then it is killed
Rows = dict[str, tuple[bytes, str | None]]  # by id: the embedding, and the dataset


def held(path: Path) -> Rows:
    """All rows, by DuckDB alone: the oracle shares no code with the index."""
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"ATTACH '{path / DATABASE}' AS ix (READ_ONLY)")
        rows = connection.execute("SELECT id, embedding, dataset FROM ix.checkpoints").fetchall()
    return {id: (bytes(embedding), dataset) for id, embedding, dataset in rows}


def make_old(path: Path) -> None:
    """Turns an index of this format into one of format 2, which has no identity."""
    with duckdb.connect(str(path / DATABASE)) as connection:
        connection.execute("ALTER TABLE state DROP COLUMN identity")
    manifest = read_manifest(path)
    manifest.pop("identity", None)
    write_manifest(path, manifest | {"format": 2})


def _extras(directory: Path, encoder: Path) -> None:
    for name in ("encoder.json", "encoder.safetensors"):
        (encoder / name).write_text("stands for an encoder")


def _act(action: str, path: Path, first: int, chosen: list[str], say: Callable[[Any], None]) -> None:
    writing.STALE_ROWS = 10  # so that FAISS files are written all the time
    writing.BATCH = 8  # and changes take several transactions
    writing.READERS_SECONDS = 0.0
    say(["begins"])
    if action == "add":
        add_rows(path, FINGERPRINT, more_rows(20, first, seed=first))
    elif action == "remove":
        remove_rows(path, ids=chosen)
    elif action == "update":
        update_rows(path, {id: {"dataset": f"d{first}", "team": first} for id in chosen})
    elif action == "rebuild":
        rebuild(path)
    elif action.startswith("replace"):
        if action != "replace":
            create.exchange = lambda one, other: False  # as on other systems than Linux
        rows = make_rows(60, seed=first)
        create_index(path, DENSE, rows, write_extras=_extras, replace=True)
    else:  # migrate: by whatever writes first
        doctor(path)
    say(["done"])


def _expected(action: str, before: Rows, first: int, chosen: list[str]) -> Rows:
    """After the whole action."""
    if action == "add":
        rows = more_rows(20, first, seed=first)
        return before | _by_id(rows)
    if action == "remove":
        return {id: row for id, row in before.items() if id not in chosen}
    if action == "update":
        return before | {id: (before[id][0], f"d{first}") for id in chosen}
    return _by_id(make_rows(60, seed=first)) if action.startswith("replace") else before


def _by_id(rows: Any) -> Rows:
    return {
        id: (vector.astype("<f4").tobytes(), rows.dataset)
        for id, vector in zip(rows.id.tolist(), rows.embedding, strict=True)
    }


def put_back(path: Path, report: Report) -> None:
    """What the error says is to be done after a kill between two renames."""
    olds = [*path.parent.glob(f".{path.name}.*.old")]
    try:
        IndexStore.open(path)
    except WeightsearchError as error:
        if len(olds) == 1 and f"rename {olds[0]} to {path}" in str(error):  # those of earlier kills are cleared
            report.counts["kills between two renames"] += 1
            olds[0].rename(path)
            return
    report.finding("kills", f"after a kill of a replacement the index is gone; beside it: {olds}")


def check(path: Path, say: Callable[[Any], None]) -> None:
    """In a child: the index opens, and finds by cosine distance what NumPy finds among the rows that DuckDB holds."""
    rows = held(path)
    index = IndexStore.open(path)
    ids = list(rows)
    vectors = np.stack([np.frombuffer(rows[id][0], "<f4") for id in ids]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    generator = np.random.default_rng(len(ids))
    for _ in range(3):
        query = generator.standard_normal(vectors.shape[1])
        distances = np.sort(1 - vectors @ query / np.linalg.norm(query))[:10]
        neighbours = index.search(FINGERPRINT, query.astype(np.float32), min(10, len(ids))).neighbours
        if not np.allclose([row.distance for row in neighbours], distances, atol=1e-5):
            say(["wrong", "a search finds others than brute force"])
            return
    index.table(FINGERPRINT, ["id", "dataset", "recipe", "metadata"])
    left = [file.name for file in path.parent.glob(f".{path.name}.*")]
    say(["sound", {id: [row[0].hex(), row[1]] for id, row in rows.items()}, left])


def attack(report: Report, folder: Path, draw: random.Random, until: float) -> None:
    """Each kill goes on with the index that the one before left."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index"
    in_child(lambda say: make_index(path, make_rows(60)))
    rows, first = _by_id(make_rows(60)), 1000
    took: dict[str, float] = {}  # seconds of an action that nobody killed, from its first word on
    report.counts["rows lost"] += 0
    while time.monotonic() < until:
        action = draw.choice(ACTIONS)
        first += 100
        chosen = draw.sample(sorted(rows), min(len(rows) - 15, 20)) if len(rows) > 30 else sorted(rows)[:2]
        before, after = rows, _expected(action, rows, first, chosen)
        if action == "migrate":
            in_child(lambda say: make_old(path))
        ended = in_child(
            lambda say, action=action, first=first, chosen=chosen: _act(action, path, first, chosen, say),
            kill_after=draw.uniform(0, BEYOND * took[action]) if action in took else None,
        )
        done = ["done"] in ended.said
        if done:
            took[action] = ended.seconds
        report.counts["kills" if ended.signal else "actions that ended before the kill"] += 1
        report.counts[f"kills of {action}"] += bool(ended.signal)
        errors = [said for said in ended.said if said[0] == "error"]
        for error in errors:
            report.finding("kills", f"{action} after earlier kills: {error[1]}: {error[2][:200]}")
        if not path.exists():
            put_back(path, report)
        checked = in_child(lambda say: check(path, say))
        verdict = checked.said[-1] if checked.said else ["died", checked.signal]
        if verdict[0] != "sound":
            report.finding("kills", f"after a kill of {action}: {verdict[:4]}")
            shutil.rmtree(folder)
            return attack(report, folder, draw, until)
        rows = {id: (bytes.fromhex(row[0]), row[1]) for id, row in verdict[1].items()}
        lost = _lost(rows, before, after, done)
        if lost:
            report.counts["rows lost"] += len(lost)
            report.finding("kills", f"{action}{' was acknowledged, but' if done else ' was killed:'} rows are wrong")
        report.counts["rows checked"] += len(rows)
    return None


def _lost(rows: Rows, before: Rows, after: Rows, done: bool) -> list[str]:
    """Rows that are neither as they were nor as they should become; where it was acknowledged, only as they should."""
    if done:
        return [id for id in {*rows, *after} if rows.get(id) != after.get(id)]
    if not set(before) & set(after):  # another index took its place, or not
        return [] if rows in (before, after) else list(rows)
    return [id for id in {*rows, *before, *after} if rows.get(id) not in (before.get(id), after.get(id))]


__all__ = ["MANIFEST", "attack", "check", "held", "make_old"]
