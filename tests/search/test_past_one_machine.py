"""The examples of docs/past-one-machine.md, run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weightsearch.index import IndexStore

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "past-one-machine.md"


def example(name: str, language: str = "sh") -> str:
    match = re.search(rf"<!-- run: {name} -->\n```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None, name
    return match[1]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as the page has it: a sweep, the index, and the program on the search path."""
    shutil.copytree(ROOT / "index" / "examples", tmp_path / "sweep")
    shutil.copytree(ROOT / "index", tmp_path / "runs" / "indexes" / "usps-v1")
    program = tmp_path / "bin" / "weightsearch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m weightsearch "$@"\n')
    program.chmod(0o755)
    return tmp_path


def sh(script: str, place: Path, **environment: object) -> None:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **{k: str(v) for k, v in environment.items()}}
    done = subprocess.run(["sh", "-ec", script], cwd=place, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def added(place: Path) -> int:
    """How many rows the index holds more than the reference index."""
    index, before = IndexStore.open(place / "runs" / "indexes" / "usps-v1"), IndexStore.open(ROOT / "index")
    return len(index) - len(before)


@pytest.mark.slow
def test_xargs_on_one_machine(place: Path):
    script = example("xargs")
    assert script.startswith("n=8\n")
    sh(script.replace("n=8\n", "n=2\n"), place)
    assert added(place) == 4


@pytest.mark.slow
def test_a_slurm_array(place: Path):
    """The job's script, run as each of two tasks; the collecting line without its `sbatch`."""
    for task in (1, 0):
        sh(example("slurm"), place, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT=2, SLURM_CPUS_PER_TASK=1)
    assert added(place) == 0
    collecting = re.search(r"^sbatch --wait embed\.sh && (.*)$", PAGE.read_text(), re.MULTILINE)
    assert collecting is not None
    sh(collecting[1], place)
    assert added(place) == 4


@pytest.mark.slow
def test_spark(place: Path):
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    script = example("spark", "python")
    assert "\nn = 64\n" in script
    (place / "embed_spark.py").write_text(script.replace("n = 64", "n = 2"))
    sh(f"{sys.executable} embed_spark.py && weightsearch collect parts --index runs/indexes/usps-v1", place)
    assert added(place) == 4
