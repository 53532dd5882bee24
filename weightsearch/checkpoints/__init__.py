"""Anyone's checkpoint files and what is known of them: the only place that opens strangers' files.

Example:
    >>> from weightsearch.checkpoints import read_tensors
    >>> sorted(read_tensors("model.pt").arrays)
    ['0.bias', '0.weight']
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "NamedTensors": "weightsearch.checkpoints.named_tensors",
    "from_state_dict": "weightsearch.checkpoints.state_dict",
    "read_checkpoint": "weightsearch.checkpoints.state_dict",
    "read_tensors": "weightsearch.checkpoints.named_tensors",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'weightsearch.checkpoints' has no attribute {name!r}")
