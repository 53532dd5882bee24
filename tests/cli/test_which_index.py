"""Which index a command takes, and what it says before and after it changes one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from weightsearch import paths
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import IndexStore

REFERENCE = Path(__file__).parents[2] / "index"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(paths.VARIABLE, raising=False)
    folder = tmp_path / "project" / "below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def made(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    return path


def test_the_first_place_that_names_an_index_counts(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert paths.newest_index() == paths.REFERENCE_INDEX
    newest = made(here / "runs" / "indexes" / "a")
    assert paths.newest_index().resolve() == newest
    (here.parent / "pyproject.toml").write_text('[tool.other]\n[tool.weightsearch]\nindex = "shared"\n')
    assert paths.newest_index() == here.parent / "shared"
    (here / "weightsearch.toml").write_text('index = "near"\n')
    assert paths.newest_index() == Path("near")
    monkeypatch.setenv(paths.VARIABLE, "elsewhere")
    assert paths.newest_index() == paths.own_index() == Path("elsewhere")


def test_a_broken_configuration_is_one_line_and_somebody_elses_is_not_ours(here: Path):
    (here / "pyproject.toml").write_text("[tool")
    assert paths.configured_index() is None
    (here / "weightsearch.toml").write_text("index =")
    with pytest.raises(WeightsearchError, match=r"weightsearch\.toml: "):
        paths.newest_index()


def test_writers_never_guess_among_several(here: Path, monkeypatch: pytest.MonkeyPatch):
    made(here / "runs" / "indexes" / "a")
    assert paths.own_index() == Path("runs/indexes/a")
    made(here / "runs" / "indexes" / "b")
    for find in (paths.own_index, lambda: paths.own_or_new_index(Path("sweep"))):
        with pytest.raises(UsageError, match=r"there are 2 indexes .*runs/indexes/a, runs/indexes/b.*--index"):
            find()
    monkeypatch.setenv(paths.VARIABLE, "runs/indexes/b")
    assert paths.own_or_new_index(Path("sweep")) == paths.own_index() == Path("runs/indexes/b")


def test_an_index_stands_behind_the_command_or_its_option(command: Run):
    code, out, _ = command("info", REFERENCE, "--json")
    assert code == 0
    assert json.loads(out)["path"] == str(REFERENCE)
    assert command("info", REFERENCE, "--index", "other")[0] == 2


@pytest.mark.slow
def test_removing_and_updating_by_ids_as_they_are_shown(command: Run, here: Path):
    index = Path(shutil.copytree(REFERENCE, here / "index"))
    opened = IndexStore.open(index)
    rows, fingerprint = len(opened), next(iter(opened.architectures))
    first, second = opened.table(fingerprint, ["id"])["id"][:2]
    code, out, _ = command("remove", first[:8], "--dry-run", "--index", index)
    assert (code, out) == (0, f"1 checkpoint of {rows:,} would be removed\n")
    assert len(opened) == rows
    code, out, _ = command("remove", first[:8], "--index", index)
    assert (code, out, len(opened)) == (0, "1 checkpoint removed\n", rows - 1)
    code, out, err = command("update", "--set", "tst_accuracy=0.5", "--id", second[:8], "--index", index)
    assert (code, out) == (0, "1 checkpoint changed, 1 cell\n")
    assert "new column: tst_accuracy; did you mean test_accuracy?" in err
    code, _, err = command("remove", "--where", "epoch < 2", "--index", index, "--yes")
    assert code == 0
    assert "good is now" in err
    code, _, err = command("remove", "--where", "test_acuracy < 2", "--index", index)
    assert code == 2
    assert "there is no column test_acuracy; did you mean test_accuracy?" in err
    assert "Binder" not in err
    assert "candidate" not in err.lower()


def test_help_is_in_groups_and_flags_have_no_type(command: Run):
    _, out, _ = command("--help")
    groups = [
        out.index(f" {group} ─") for group in ("Search", "Your checkpoints", "Keep an index", "Pictures", "Research")
    ]
    assert groups == sorted(groups)
    assert out.index(" query ") < out.index(" sweep ") < out.index(" import ") < out.index(" add ")
    assert "Other" not in out
    for name in ("viz", "embed"):  # with arguments and options of several values
        assert "list[" not in command(name, "--help")[1]
    _, out, _ = command("query", "--help")
    assert "<bool>" not in out
    assert "-k" in out
