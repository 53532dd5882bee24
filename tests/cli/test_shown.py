"""Strangers' text in every place that prints: shown escaped, never obeyed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table as Grid
from rich.text import Text
from safetensors.numpy import save_file

from weightsearch.checkpoints.discovery import Quarantined
from weightsearch.cli import _Escaping, render
from weightsearch.cli.common import complain, say, show
from weightsearch.index import Finding, State
from weightsearch.index.info import ArchitectureInfo, IndexInfo
from weightsearch.index.info import info as index_info
from weightsearch.search import wording as words
from weightsearch.search.answer import Answer
from weightsearch.text_table import Table, printable
from weightsearch.types import Neighbour, Plan

from .conftest import Run

HOSTILE = "r\x1b]52;c;aGFja2Vk\x1b\\\x1b[2J\nb\r\u202e[/foo][bold]x[/bold]\x9b1m"


def is_fit(shown: str) -> bool:
    return all(line.isprintable() for line in shown.split("\n"))


def answer(text: str) -> Answer:
    row = Neighbour(text, 0.1, 0.5, 3, text, {text: text, "optimizer": text, "learning_rate": text}, 0.5, text)
    return Answer(
        text, text, text, text, 0.5, 50.0, 0.5, 0.5, (row,), (row,), (row,), 0.75, 0.25, Plan("exact", 1, 1, 0.0),
        run=text, notes=(text,), verdict="Unsure.", runs=(row,), recipe={text: text}, activation=text, network=text,
    )  # fmt: skip


def info(text: str) -> IndexInfo:
    part = ArchitectureInfo(
        text, text, text, 1, 1, {text: 1}, 0, 0.1, 0.9, 8, text, None, None, True, 0
    )  # fmt: skip
    return IndexInfo(text, 3, 1, "cosine", text, 10, {text: "text"}, (part,))


@pytest.mark.parametrize("text", [HOSTILE, "\ud800", "a\0b", "[/foo]", "[link=http://x]y[/link]", ":warning:"])
def test_everything_that_prints_is_fit_for_a_terminal(text: str, capfd: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    finding = Finding(text, State.BROKEN, text)
    for shown in (
        render.answer(answer(text), True, layers=True, lists=True),
        render.index_info(info(text)),
        render.findings([finding]),
        Text(text),
    ):
        show(shown)
    grid = Grid.grid()
    grid.add_row(text)
    show(grid)
    show(Table(text, ("a",), ((text,),)).to_rich())
    for line in render.left_out([Quarantined(text, text)], {text: 1}, [text]):
        say(line)
    complain(ValueError(text))
    print(words.as_text(answer(text)))
    print(_Escaping("%(message)s").format(logging.makeLogRecord({"msg": "%s", "args": (text,)})))
    out, err = capfd.readouterr()
    assert is_fit(out), [line for line in out.split("\n") if not line.isprintable()]
    assert is_fit(err)
    if "[" in text or ":" in text:
        assert printable(text) in out  # markup is text
    assert err.count("\n") == 4  # a line each


def test_html_and_markdown_hold_a_strangers_text_as_text():
    table = Table("<b>", ("a",), (("<script>x</script> | y",),))
    assert "<script>" not in table.to_html()
    assert "<script>" not in words.as_html(answer("<script>x</script>"))
    assert r"\| y" in table.to_markdown()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["typer", "duckdb", "numpy"])
def test_ctrl_c_while_libraries_load_shows_no_traceback(module: str, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", "weightsearch", "info", "--index", str(Path(__file__).parents[2] / "index")],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode in (130, -signal.SIGINT)
    assert [line.partition(";")[0] for line in ended.stderr.splitlines()[-1:]] in ([], ["interrupted"])
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_line_break_in_a_files_name_makes_no_line_of_its_own(run: Run, tmp_path: Path):
    (tmp_path / "models").mkdir()
    weights = {"0.weight": np.arange(12, dtype=np.float32).reshape(3, 4)}
    for name in ("a", "b\n0 of 9 files could go", "c\udcff"):
        save_file(weights, tmp_path / "models" / f"{name}.safetensors")
    code, out, err = run("tidy", "models")
    assert code == 0, err
    assert [line for line in out.splitlines() if "could go" in line and not line.startswith(" ")] == [
        line for line in out.splitlines() if line.startswith("2 of 3 files could go")
    ]
    assert "b\\n0 of 9 files could go" in out
    code, out, err = run("add", "models", "--index", "signatures")
    assert "3 signatures" in out, (out, err)
    for command in ("duplicates", "lineage"):
        code, out, err = run(command, "--index", "signatures")
        assert code == 0, err
        assert not [line for line in out.splitlines() if line.startswith("0 of 9")]
        assert "b\\n0 of 9" in out


def test_the_kinds_of_columns_are_said_in_words():
    kinds = index_info(Path(__file__).parents[2] / "index").keys
    assert {kinds["optimizer"], kinds["learning_rate"]} == {"text", "number"}
    assert set(kinds.values()) <= {"text", "number", "integer", "boolean"}
