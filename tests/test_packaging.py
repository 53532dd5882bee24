"""The wheel holds what a user needs: built and asked away from the clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from weightsearch import paths

ROOT = Path(__file__).parent.parent


def test_a_clone_finds_its_own_reference_index():
    assert paths.reference_index() == ROOT / "index"


@pytest.mark.slow
def test_an_installed_wheel_answers_from_its_reference_index(tmp_path: Path):
    source, away, installed = tmp_path / "source", tmp_path / "away", tmp_path / "installed"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("weightsearch", "index"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    away.mkdir()
    shutil.copy(ROOT / "index" / "examples" / "good.pt", away)

    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(away), str(source)], check=True)
    (wheel,) = away.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    shutil.rmtree(source)

    environment = {**os.environ, "PYTHONPATH": str(installed)}
    query = [sys.executable, "-m", "weightsearch", "query", "good.pt", "--k", "1"]
    done = subprocess.run(query, cwd=away, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"index: {installed / 'weightsearch' / 'reference_index'}" in done.stderr
    assert "usps-v1/" in done.stdout

    def files(folder: Path) -> set[str]:
        paths = (path for path in folder.rglob("[!.]*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(folder).as_posix() for path in paths}

    assert files(installed / "weightsearch" / "reference_index") == files(ROOT / "index")
    assert files(ROOT / "weightsearch") <= files(installed / "weightsearch")


def test_the_lowest_versions_are_those_that_pyproject_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["dev"], *extras["formats"], *extras["serve"]]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in required:
        name, bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
        assert [int(part) for part in lowest[name].split(".")][: bound.count(".") + 1] == [
            int(part) for part in bound.split(".")
        ], requirement
