"""YAML files of settings, read without making any object that they name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import number
from weightsearch.checkpoints.metadata_table import read_text
from weightsearch.errors import WeightsearchError

MOST_VALUES = 100_000  # of a file, aliases unfolded: some of aliases, of aliases, would be without end
MOST_KEYS = 10_000  # of one of its mappings


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain values: tags of Python objects are left out, and `1e-3`, a text to YAML, is a number.

    Raises WeightsearchError naming the file's problem.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Values under a tag that is not YAML's own are taken for what they look like."""

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > MOST_KEYS:  # mappings merged into mappings, each several times
                raise ValueError(f"a mapping of over {MOST_KEYS:,} keys")

    def unknown(loader: Any, _: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    Loader.add_multi_constructor("", unknown)
    text = read_text(path)
    if text.count("&") + text.count("*") > 1000:  # a few aliases of aliases unfold without end
        raise WeightsearchError(f"{path.name} has too many aliases")
    try:
        content = yaml.load(text, Loader)
        if not isinstance(content, dict):
            return {}
        values = itertools.count(1)
        return {str(key): _typed(value, values) for key, value in content.items()}
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise WeightsearchError(f"{path.name} is no YAML ({str(error).splitlines()[0]})") from None


def _typed(value: Any, values: Iterator[int]) -> Any:
    """The value with its numbers, and aliases unfolded; `values` counts these."""
    if next(values) > MOST_VALUES:
        raise ValueError(f"it unfolds to over {MOST_VALUES:,} values")
    if isinstance(value, dict):
        return {str(key): _typed(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item, values) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        parsed = number(value)
        return value if parsed is None else parsed
    return value
