"""Libraries that only some formats need: imported when a file asks for one, and named where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from weightsearch.errors import WeightsearchError


def library(name: str, what: str) -> Any:
    """The module `name`; raises WeightsearchError with the command that installs it."""
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise WeightsearchError(
            f"{what} are read with the package {package}, which is not installed: pip install 'weightsearch[formats]'"
        ) from None
