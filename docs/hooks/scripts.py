"""The scripts of `benchmarks/` by what their docstrings say first."""

from __future__ import annotations

import ast
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent.parent / "benchmarks"


def table() -> str:
    lines = ["| script | what it does |", "|---|---|"]
    for path in sorted(SCRIPTS.glob("*.py")):
        text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
        lines.append(f"| `{path.name}` | {' '.join(text.split())} |")
    return "\n".join(lines)
