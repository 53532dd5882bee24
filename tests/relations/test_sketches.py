"""The files of sketches find what a look at all sketches finds, whatever was replaced, removed, killed or damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weightsearch.index.create import create_empty
from weightsearch.relations import SignatureIndex, sign, sketches
from weightsearch.relations.signature import SKETCH_WIDTH, Signature
from weightsearch.relations.store import Signed, add_signatures, read_known, remove_signatures

pytestmark = pytest.mark.slow
FAMILIES = 30  # of relatives
BASES = np.random.default_rng(5).standard_normal((FAMILIES, SKETCH_WIDTH))


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "FRESH", 40)
    monkeypatch.setattr(sketches, "BLOCK", 16)


def signature(number: int) -> Signature:
    """Of a network of its own whose sketch is near those of its family."""
    rng = np.random.default_rng([9, number])
    sketch = BASES[number % FAMILIES] + 0.8 * rng.standard_normal(SKETCH_WIDTH)
    signed = sign({"a.weight": rng.standard_normal((3, 4)).astype(np.float32)})
    return replace(signed, sketch=(sketch / np.linalg.norm(sketch)).astype(np.float32))


def add(index: Path, numbers: range) -> None:
    add_signatures(index, [Signed(f"/{number}", signature(number)) for number in numbers])


def nearest_of_all(index: Path, asked: Signature, count: int = 12) -> list[int]:
    known = read_known(index)
    cosines = known.sketches.astype(np.float64) @ asked.sketch
    order = np.argsort(-cosines)[:count]
    return [int(known["number"][row]) for row in order if cosines[row] >= 0.18]


def assert_finds_all(index: Path) -> None:
    opened = SignatureIndex(index)
    assert len(opened) == len(read_known(index))
    for number in range(0, FAMILIES, 7):
        asked = signature(10_000 * FAMILIES + number)
        wanted = nearest_of_all(index, asked)
        assert len(wanted) >= 4
        found = opened.candidates(asked)
        assert list(found)[: len(wanted)] == wanted
        assert all(value >= 0.18 for value in list(found.values())[: len(wanted)])


@pytest.fixture
def index(tmp_path: Path) -> Path:
    create_empty(tmp_path / "index")
    add(tmp_path / "index", range(200))
    return tmp_path / "index"


def test_files_are_appended_to_and_find_what_a_look_at_all_finds(index: Path):
    assert_finds_all(index)
    [signs] = index.glob("sketches-*.signs")
    before = signs.read_bytes()
    assert len(before) == 200 * 64
    add(index, range(200, 230))  # too few to be written: readers take them from the database
    assert signs.read_bytes() == before
    assert_finds_all(index)
    add(index, range(230, 260))
    assert signs.read_bytes()[: len(before)] == before
    assert len(signs.read_bytes()) == 260 * 64
    assert_finds_all(index)
    assert len(list(index.glob("sketches*"))) == 5  # two files, their checksums, the description


def test_replaced_and_removed_signatures_are_not_found_and_the_files_numbers_are_given_once(index: Path):
    add(index, range(20))  # again, under new numbers
    remove_signatures(index, [f"/{number}" for number in range(150, 200)])
    assert_finds_all(index)
    remove_signatures(index, [f"/{number}" for number in range(20)])
    assert read_known(index)["number"].max() == 149
    add(index, range(300, 310))
    assert read_known(index)["number"].max() == 209  # 150 to 199 stand in the files for others
    assert_finds_all(index)
    add(index, range(400, 470))  # more than a fifth is dead by now: made anew
    [signs] = index.glob("sketches-*.signs")
    assert len(signs.read_bytes()) == len(read_known(index)) * 64
    assert_finds_all(index)


def test_what_a_killed_writer_left_changes_nothing(index: Path):
    description = (index / "sketches.json").read_bytes()
    add(index, range(200, 260))
    (index / "sketches.json").write_bytes(description)  # killed before it
    assert_finds_all(index)  # the checksums that it names are gone: from the database
    for name in ("signs", "rows"):
        with next(index.glob(f"sketches-*.{name}")).open("ab") as file:
            file.write(b"half a row")
    add(index, range(260, 310))
    assert_finds_all(index)


@pytest.mark.parametrize("name", ["signs", "rows", "signs-pages"])
def test_damage_is_noticed_and_the_database_answers(index: Path, name: str, caplog: pytest.LogCaptureFixture):
    file = next(index.glob(f"sketches-*.{name}"))
    content = bytearray(file.read_bytes())
    for place in range(5, len(content), 500):
        content[place] ^= 0xFF
    file.write_bytes(content)
    assert_finds_all(index)
    assert "damaged" in caplog.text
    add(index, range(200, 260))
    assert_finds_all(index)


def test_files_of_a_later_database_are_not_used(index: Path):
    info = json.loads((index / "sketches.json").read_text())
    assert info["generation"] >= 0
    from weightsearch.index.manifest import write_sealed

    write_sealed(index / "sketches.json", {**info, "generation": info["generation"] + 10**6})
    opened = SignatureIndex(index)
    assert opened._sketches is not None
    assert opened._sketches.files is None
    assert_finds_all(index)
