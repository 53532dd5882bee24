"""Imports go one way only, and `--help` pays for none of the slow ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "weightsearch"

# Left to right as the data goes; a module may import from its own entry and from entries to its left.
ORDER = [
    {"errors"},
    {"types", "progress", "metrics", "conformal", "runs", "processor"},
    {"image_files"},
    {"datasets"},
    {"pickles", "formats", "checkpoints"},
    {"layers"},
    {"metadata", "metadata_files", "intake"},
    {"zoo"},
    {"symmetry"},
    {"encoders"},
    {"splits", "fit", "baselines", "jobs", "tune"},
    {"index"},
    {"calibration"},
    {"card", "adding", "training"},
    {"wording"},
    {"sources"},
    {"answers", "evaluation"},
    {"viz"},
    {"tables"},
    {"render"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
SLOW = ("torch", "faiss", "umap")


def imported(path: Path) -> set[str]:
    """Names of top-level parts of the package that a module imports at run time, wherever in the file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # names for annotations alone are not imported
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "weightsearch" and rest:
                found.add(rest.split(".")[0])
    return found


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_from_right_to_left(path: Path):
    part = part_of(path)
    assert part in RANK, f"{part} has no place in the data's way yet: put it into ORDER"
    wrong = {name for name in imported(path) if RANK[name] > RANK[part]}
    assert not wrong, f"{path.relative_to(PACKAGE)} imports from its right: {', '.join(sorted(wrong))}"


def test_the_index_needs_no_torch():
    code = "import sys, weightsearch.index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [],
        ["build-zoo"],
        ["train"],
        ["query"],
        ["get"],
        ["viz"],
        ["report"],
        ["zoo", "info"],
        ["import"],
        ["add"],
        ["tables"],
        ["evaluate"],
        ["demo"],
        ["remove"],
        ["update"],
        ["rebuild"],
        ["doctor"],
        ["info"],
        ["export"],
    ],
)
def test_help_imports_nothing_slow_and_holds_an_example(command: list[str]):
    code = (
        "import sys; from weightsearch import cli\n"
        "try: cli.main()\n"
        f"finally: print([m for m in {SLOW} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert done.returncode == 0
    assert f"weightsearch {' '.join(command)}".strip() in done.stdout
    if command:
        assert "Example:" in done.stdout


def test_public_names_exist():
    import weightsearch

    for name in weightsearch.__all__:
        assert getattr(weightsearch, name).__name__ == name
