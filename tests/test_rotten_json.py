"""A JSON file of ours that rotted, or was edited into something else, is named in one line; none is believed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.index.test_store import make_index, make_rows
from weightsearch.errors import WeightsearchError
from weightsearch.index.manifest import read_manifest
from weightsearch.relations.pack import pack, unpack
from weightsearch.relations.tidy import plan, read_plan
from weightsearch.zoo.store import ZooInfo

EXAMPLE = Path(__file__).parents[1] / "index" / "examples" / "good.pt"
WHOLE = (
    b"",
    b"\xff\xfe\0\x01",
    b"[]",
    b"7",
    b"null",
    b"{}",
    b"[" * 100_000,
    b'{"format": 1, "fi',
    b'{"format": "\\ud800"}',
)
ODD = (None, True, -1, 1e999, "x", [], {}, [[]], {"a": 1}, "../x", 2**70)


def zoo_info(folder: Path) -> tuple[Path, Callable[[], Any]]:
    info = ZooInfo("a", "digits", "v1", 0, "float32", None, {}, "0.1.0")
    (folder / "zoo.json").write_text(json.dumps(info.to_dict()))
    return folder / "zoo.json", lambda: ZooInfo.read(folder)


def manifest(folder: Path) -> tuple[Path, Callable[[], Any]]:
    make_index(folder / "index", make_rows(3))
    return folder / "index" / "manifest.json", lambda: read_manifest(folder / "index")


def tidy_plan(folder: Path) -> tuple[Path, Callable[[], Any]]:
    for name in ("a.pt", "b.pt"):
        (folder / name).write_bytes(EXAMPLE.read_bytes())
    plan(folder).write(folder / "plan.json")
    return folder / "plan.json", lambda: read_plan(folder / "plan.json")


def packed(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "in").mkdir()
    (folder / "in" / "a.pt").write_bytes(EXAMPLE.read_bytes())
    pack(folder / "in", folder / "pack")
    return next((folder / "pack").glob("*.json")), lambda: unpack(folder / "pack", folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("make", [zoo_info, manifest, tidy_plan, packed])
def test_a_rotten_file_is_named(make: Callable, tmp_path: Path):
    path, read = make(tmp_path)
    read()
    sound = json.loads(path.read_text())
    for content in WHOLE:
        path.write_bytes(content)
        with pytest.raises(WeightsearchError) as caught:
            read()
        assert path.name in str(caught.value) or str(path.parent) in str(caught.value)
        assert "\n" not in str(caught.value)
    draw = random.Random(0)
    for _ in range(300):  # values of other kinds in their places: read as something, or refused
        changed = json.loads(json.dumps(sound))
        holder: Any = changed
        while True:
            key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not isinstance(holder[key], dict | list) or not holder[key] or draw.random() < 0.3:
                holder[key] = draw.choice(ODD)
                break
            holder = holder[key]
        path.write_text(json.dumps(changed))
        with suppress(WeightsearchError):
            read()


def test_a_plan_moves_nothing_from_outside_of_its_folder(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path, read = tidy_plan(tmp_path / "in")
    content = json.loads(path.read_text())
    assert content["removals"]
    for place in ("../../etc/passwd", "/etc/passwd"):
        content["removals"][0]["path"] = place
        path.write_text(json.dumps(content))
        with pytest.raises(WeightsearchError, match="lies outside of its folder"):
            read()
