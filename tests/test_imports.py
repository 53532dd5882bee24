"""Imports go one way only, and `--help` pays for none of the slow ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "weightsearch"

# From the command line down; a module may import from its own line and from the lines below.
ORDER = (
    "__main__",
    "cli",
    "server",
    "viz",
    "scale",
    "evaluation",
    "integrations",
    "search",
    "training",
    "relations",
    "index",
    "uncertainty",
    "zoo",
    "encoders",
    "checkpoints",
    "datasets",
    "devices optimizers",
    "files",
    "distance",
    "metrics progress ray_tasks text_table types paths",
    "html_template",
    "errors",
)
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line.split()}
SLOW = ("torch", "faiss", "umap")
POSIX_ONLY = {"crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}


def imported(path: Path) -> set[str]:
    """Parts of the package that a module imports: anywhere in the file, and for annotations alone as well."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("weightsearch.")}
    return parts


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.slow
def test_imports_go_down_the_list():
    wrong = []
    for path in modules():
        part = part_of(path)
        assert part in RANK, f"{part} has no place in the data's way yet: put it into ORDER"
        above = {name for name in imported(path) if RANK[name] < RANK[part]}
        wrong += [f"{path.relative_to(PACKAGE)} imports from above: {name}" for name in sorted(above)]
    assert not wrong


@pytest.mark.slow
def test_windows_can_import_every_module():
    wrong = []
    for path in modules():
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
        wrong += [f"{path.relative_to(PACKAGE)}: {name}" for name in sorted(names & POSIX_ONLY)]
    assert not wrong


def test_no_module_or_test_is_longer_than_a_few_screens():
    files = [*modules(), *Path(__file__).parent.rglob("*.py")]
    long = {str(path): lines for path in files if (lines := len(path.read_text().splitlines())) > 500}
    assert not long


@pytest.mark.slow
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
