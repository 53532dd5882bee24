"""The README says what the committed results say, and its commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BLOCKS


def written(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, re.DOTALL)
    assert found, f"README.md has no block called {name}"
    return found[1]


@pytest.mark.parametrize("name", [name for name in blocks() if name != "query"])
def test_tables_are_generated_from_the_committed_results(name: str):
    assert written(name) == blocks()[name](), "run python benchmarks/readme.py"


def test_the_shown_answer_is_the_committed_indexs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)

    def words(text: str) -> str:  # another processor may round the last digit of a distance the other way
        return re.sub(r"\d\.\d{3,4}", "#", text)

    assert words(written("query")) == words(blocks()["query"]())


def test_every_command_in_the_readme_exists():
    from typer.main import get_command

    from weightsearch.cli import app

    commands = get_command(app).commands
    for line in re.findall(r"(?:`|bin/)weightsearch ([a-z-]+)", README):
        assert line in commands, line
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE):
        assert target in targets, target
    for script in re.findall(r"python (benchmarks/\S+?\.py)", README):
        assert (ROOT / shlex.split(script)[0]).exists()
