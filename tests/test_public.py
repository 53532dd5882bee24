"""The public face: every name has a docstring and an example that runs, and type checkers see what they are."""

from __future__ import annotations

import doctest
import inspect
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import weightsearch
from weightsearch.paths import REFERENCE_INDEX
from weightsearch.zoo.store import Zoo

NAMES = [name for name in weightsearch.__all__ if name != "__version__"]
# That fit, build or draw for a second or more.
SLOW = {"BuildSummary", "Evaluation", "TrainSummary", "build_zoo", "draw", "draw_map", "evaluate", "report"}


def test_type_checkers_and_python_see_the_same_names():
    source = inspect.getsource(weightsearch)
    for name, module in weightsearch._PUBLIC.items():
        assert f"    from {module} import {name} as {name}\n" in source
        assert getattr(weightsearch, name).__name__ == name
    assert weightsearch.__version__.count(".") == 2
    assert (Path(weightsearch.__file__).parent / "py.typed").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where examples run: a copy of the reference index lies there."""
    shutil.copytree(REFERENCE_INDEX, tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(name: str) -> None:
    tests = doctest.DocTestFinder(recurse=False).find(getattr(weightsearch, name), name)
    assert any(test.examples for test in tests), f"{name} has no example"
    public = {other: getattr(weightsearch, other) for other in NAMES} | {"Path": Path}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for test in tests:
        test.globs.update(public)
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW])
def test_examples_run(name: str, folder: Path, request: pytest.FixtureRequest):
    if "'zoo'" in (getattr(weightsearch, name).__doc__ or ""):
        (folder / "zoo").symlink_to(request.getfixturevalue("zoo").path)
    run_example(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW & set(NAMES)))
def test_slow_examples_run(name: str, folder: Path, zoo: Zoo):
    (folder / "zoo").symlink_to(zoo.path)
    run_example(name)


SCRIPT = """
import weightsearch
from weightsearch import Index, TrainOptions, query

index = Index.open("index")
answer = index.query("model.pt", k=3)
accuracy: float = query(index, "model.pt", where="epoch > 3").predicted
options = TrainOptions(trials=3)
{wrong}
"""


@pytest.mark.slow
def test_a_type_checker_finds_a_users_mistakes(tmp_path: Path):
    pytest.importorskip("mypy")
    wrong = {
        "": "",
        'Index.opne("x")': 'has no attribute "opne"',
        'query(index, "model.pt", whree="x")': 'Unexpected keyword argument "whree"',
        "text: int = answer.verdict": "Incompatible types in assignment",
        "weightsearch.ad([])": 'Module has no attribute "ad"',
    }
    for number, line in enumerate(wrong):
        (tmp_path / f"script{number}.py").write_text(SCRIPT.format(wrong=line))
    root = str(Path(weightsearch.__file__).parents[1])
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "--follow-imports=silent",
            "--no-site-packages",  # which would take a minute to read, and are not asked about
            "--cache-dir", str(tmp_path / "cache"),
            *(str(tmp_path / f"script{number}.py") for number in range(len(wrong))),
        ],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    for number, said in enumerate(wrong.values()):
        errors = [line for line in lines if f"script{number}.py:" in line and " error: " in line]
        assert [said in line for line in errors] == ([True] if said else []), done.stdout


def test_query_has_its_real_signature():
    ours, methods = (inspect.signature(f).parameters for f in (weightsearch.query, weightsearch.Index.query))
    assert [name for name in ours if name != "index"] == [name for name in methods if name != "self"]
    assert typing.get_type_hints(weightsearch.query)["return"] is weightsearch.Answer


def test_an_index_says_what_it_is(folder: Path):
    os.utime(folder / "index" / "index.duckdb")
    index = weightsearch.Index.open("index")
    says = f"index: {len(index):,} checkpoints in 2 spaces, changed less than a minute ago"
    assert repr(index) == f"<weightsearch.Index {says}>"
    assert says in index._repr_html_()
