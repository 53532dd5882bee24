"""The wheel holds what a user needs: built and asked away from the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
