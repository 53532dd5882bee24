"""The commands about what checkpoints are to each other, as people call them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import weightsearch
from weightsearch.cli import app
from weightsearch.errors import UsageError, WeightsearchError

EXAMPLES = Path(__file__).parents[2] / "index" / "examples"
GOOD, BAD = EXAMPLES / "good.pt", EXAMPLES / "bad.pt"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """`good.pt` in half precision."""
    state = torch.load(GOOD, weights_only=True)
    state = state.get("state_dict", state)
    path = tmp_path / "half.pt"
    torch.save({name: value.half() for name, value in state.items()}, path)
    return path


@pytest.mark.slow
def test_a_release_that_ships_the_same_weights_fails_where_changed_ones_are_expected(half: Path):
    same = run("diff", GOOD, half, "--expect", "changed")
    assert isinstance(same.exception, WeightsearchError)
    assert f"expected changed weights, but {half} is same-weights to {GOOD}" in str(same.exception)
    assert run("diff", GOOD, BAD, "--expect", "changed").exception is None
    assert run("diff", GOOD, half, "--expect", "same-weights").exception is None
    assert isinstance(run("diff", GOOD, BAD, "--expect", "relative").exception, WeightsearchError)
    assert isinstance(run("diff", GOOD, BAD, "--expect", "newer").exception, UsageError)


def test_diff_prints_what_the_library_says(half: Path):
    printed = json.loads(run("diff", GOOD, half, "--json").stdout)
    assert printed == json.loads(json.dumps(weightsearch.diff(GOOD, half).to_dict()))
    assert (printed["relation"], printed["direction"]) == ("same-weights", "a-to-b")
    text = run("diff", GOOD, half, "--all").stdout
    assert text.startswith("same-weights, a → b: the same weights (at another precision")
    assert all(layer["a"] in text for layer in printed["layers"])


def test_a_folder_from_signatures_to_a_pack(half: Path, tmp_path: Path):
    folder, index = tmp_path / "models", tmp_path / "index"
    folder.mkdir()
    for source, name in ((GOOD, "good.pt"), (GOOD, "again.pt"), (half, "half.pt"), (BAD, "bad.pt")):
        shutil.copy(source, folder / name)
    assert run("add", folder, "--index", index, "--quiet").exception is None
    groups = json.loads(run("duplicates", index, "--json").stdout)["groups"]
    assert [len(group["members"]) for group in groups] == [3]
    graph = json.loads(run("lineage", index, "--json").stdout)
    assert len(graph["nodes"]) == 2
    assert run("lineage", index, "--dot").stdout.startswith("digraph lineage {")
    plan = json.loads(run("tidy", folder, "--json", "--quiet").stdout)
    assert {removal["path"] for removal in plan["removals"]} <= {"again.pt", "good.pt", "half.pt"}
    assert len(plan["removals"]) == 2
    assert run("pack", folder, tmp_path / "pack", "--quiet").exception is None
    assert run("unpack", tmp_path / "pack", tmp_path / "out", "--quiet").exception is None
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_lossy_pack_says_its_cost(tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(GOOD, folder)
    done = run("pack", folder, tmp_path / "pack", "--lossy", 6, "--index", EXAMPLES.parent, "--quiet")
    assert done.exception is None
    assert "weights rounded to 6 bits: off by" in done.stdout
    assert "predicted accuracy of 1 files" in done.stdout
    assert isinstance(run("pack", folder, tmp_path / "other", "--lossy", 1).exception, UsageError)


@pytest.mark.parametrize("command", ["duplicates", "lineage"])
def test_an_index_without_signatures_says_so(command: str):
    done = run(command, EXAMPLES.parent)
    assert isinstance(done.exception, WeightsearchError)
    assert "keeps no signatures" in str(done.exception)
    assert f"`weightsearch add FOLDER --index {EXAMPLES.parent}`" in str(done.exception)


def test_diff_fits_a_terminal(tmp_path: Path):
    """80 columns, whatever the tensors are called, and every name can be read from it."""
    generator = torch.Generator().manual_seed(0)
    names = ["w", "transformer.encoder.layers.11.attention.self.query_key_value.weight" + "_long" * 12]
    for name, other in (("a", 1.0), ("b", 1.01)):
        state = {key: torch.randn(32, 32, generator=generator) for key in names}
        torch.save({key: value * other for key, value in state.items()}, tmp_path / f"{name}.pt")
    printed = run("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--all").stdout
    assert max(map(len, printed.splitlines())) <= 80
    flat = printed.replace("\n", "").replace(" ", "")
    assert all(name in flat for name in names)
