"""YAML files of settings, read without making any object that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import number
from weightsearch.checkpoints.metadata_table import read_text
from weightsearch.errors import WeightsearchError


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain values: tags of Python objects are left out, and `1e-3`, a text to YAML, is a number.

    Raises WeightsearchError naming the file's problem.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Values under a tag that is not YAML's own are taken for what they look like."""

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
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise WeightsearchError(f"{path.name} is no YAML ({str(error).splitlines()[0]})") from None
    return {str(key): _typed(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        parsed = number(value)
        return value if parsed is None else parsed
    return value
