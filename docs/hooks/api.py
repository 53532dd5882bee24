"""The Python reference: the public names of the package by what they are, each from its docstring."""

from __future__ import annotations

import inspect
from typing import Any

INTRODUCTION = """# Python

Every command is one call of a public function with the same words. All of these names are imported from
`weightsearch` itself: `from weightsearch import Index, train`. `import weightsearch` costs nothing; what a name needs
is imported when it is first used.
"""


def page() -> str:
    import weightsearch

    groups: dict[str, list[str]] = {"The index": [], "Functions": [], "Types": [], "Errors": []}
    for name in weightsearch.__all__:
        if not name.startswith("__"):
            thing = getattr(weightsearch, name)
            groups[group(name, thing)].append(f"::: {place(name, thing)}")
    parts = ["\n\n".join([f"## {title}", *names]) for title, names in groups.items() if names]
    return "\n\n".join([INTRODUCTION, *parts]) + "\n"


def place(name: str, thing: Any) -> str:
    """Where a public name's definition is, which is where its docstring is read."""
    module = getattr(thing, "__module__", "")
    return f"{module if module.startswith('weightsearch.') else 'weightsearch'}.{name}"


def group(name: str, thing: Any) -> str:
    if name == "Index":
        return "The index"
    if not inspect.isclass(thing):
        return "Functions"
    return "Errors" if issubclass(thing, BaseException) else "Types"
