"""As it trains: every saved checkpoint goes into an index, and a line says where its run stands.

`record` is for loops of one's own, `LightningCallback` and `TransformersCallback` are for those frameworks, which are
imported when these names are used. All do with `Recorder`, which adds to the index as `weightsearch add` does: complete
or not at all, beside readers.

Example:
    >>> from weightsearch.integrations import LightningCallback  # doctest: +SKIP
    >>> trainer = Trainer(callbacks=[LightningCallback("runs/indexes/sweep")])  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsearch.integrations.lightning import LightningCallback as LightningCallback
    from weightsearch.integrations.recorder import Recorder as Recorder
    from weightsearch.integrations.recorder import Standing as Standing
    from weightsearch.integrations.recorder import record as record
    from weightsearch.integrations.transformers import TransformersCallback as TransformersCallback

_PUBLIC = {
    "LightningCallback": "weightsearch.integrations.lightning",
    "Recorder": "weightsearch.integrations.recorder",
    "Standing": "weightsearch.integrations.recorder",
    "TransformersCallback": "weightsearch.integrations.transformers",
    "record": "weightsearch.integrations.recorder",
}

__all__ = sorted(_PUBLIC)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC:
            return getattr(import_module(_PUBLIC[name]), name)
        raise AttributeError(f"module 'weightsearch.integrations' has no attribute {name!r}")
