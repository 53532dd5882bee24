"""Copies of plain values from a stranger's file, together of limited size and depth."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from weightsearch.checkpoints.networks import is_tensor
from weightsearch.checkpoints.pickle_scanner import Named, Placeholder, shown
from weightsearch.checkpoints.pickle_values import plain
from weightsearch.checkpoints.tensors import StoredTensor
from weightsearch.errors import WeightsearchError
from weightsearch.files import clean_text

MAX_METADATA_SIZE = 200_000  # values and characters kept beside the weights, in all
MAX_METADATA_DEPTH = 20
MAX_LISTED = 100  # values of an array that is kept
MAX_NAME = 256  # characters of a key
MAX_INTEGER = 2**63  # what a database holds as a number; larger ones become text
_STATE = ("optim", "sched", "scaler", "callbacks", "loops")


class PlainValues:
    """None, bool, int, float, str, list and dict, and what stands for one of them, by name in `values`."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._left = MAX_METADATA_SIZE

    def keep(self, name: str, value: Any) -> str | None:
        """Put a plain value into `values`, or say why not."""
        value = plain(value)
        if any(word in name.lower() for word in _STATE) and not isinstance(value, str | int | float | None):
            return "training state"
        try:
            self.values.setdefault(self._name(name), self._plain(value, 0))
        except WeightsearchError as error:
            return str(error)
        return None

    def clean(self, name: Any, value: Any) -> tuple[str, Any]:
        """A sidecar's or a table's cell as `keep` would have it, whatever its name. Raises WeightsearchError."""
        return self._name(str(name)), self._plain(value, 0)

    def _name(self, name: str) -> str:
        if len(name) > MAX_NAME:
            raise WeightsearchError(f"its name has over {MAX_NAME} characters")
        return self._text(name)

    def _spend(self, size: int) -> None:
        if size > self._left:
            raise WeightsearchError(f"over {MAX_METADATA_SIZE:,} values and characters beside the weights")
        self._left -= size

    def _text(self, text: str) -> str:
        """Without lone surrogates, which no database or terminal can encode, and NUL, where C's strings end."""
        self._spend(len(text))
        return clean_text(text)

    def _plain(self, value: Any, depth: int) -> Any:
        self._spend(1)
        if depth > MAX_METADATA_DEPTH:
            raise WeightsearchError(f"nested over {MAX_METADATA_DEPTH} deep")
        value = plain(value)
        if isinstance(value, np.generic) or (is_tensor(value) and tuple(value.shape) in ((), (1,))):
            value = value.array().item() if isinstance(value, StoredTensor) else value.item()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiubU" and value.size <= MAX_LISTED:
            self._spend(value.size)
            value = value.tolist()
        match value:
            case None | bool() | float():
                return value
            case int():
                return (
                    value
                    if abs(value) < MAX_INTEGER
                    else self._text(hex(value) if value.bit_length() > 4096 else str(value))
                )
            case Decimal():
                return float(value) if value.is_finite() else None
            case date() | time() | timedelta() | UUID():  # a table's
                return self._text(str(value))
            case str() if not isinstance(value, Named):
                return self._text(value)
            case Mapping() if all(isinstance(key, str | int | float | None) for key in value):
                return {self._name(str(key)): self._plain(item, depth + 1) for key, item in value.items()}
            case list() | tuple():
                return [self._plain(item, depth + 1) for item in value]
        raise WeightsearchError(f"not a plain value ({_kind(value)})")


def _kind(value: Any) -> str:
    if isinstance(value, Named):
        return shown(value)
    if isinstance(value, Placeholder):
        return shown(value.name)
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__
