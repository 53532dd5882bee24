"""weightsearch: the search engine for neural-network checkpoints. This is the list of public names.

Names are imported when they are first used, so that `import weightsearch` costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AddReport": "weightsearch.adding",
    "Answer": "weightsearch.answers",
    "Architecture": "weightsearch.types",
    "Checkpoint": "weightsearch.types",
    "ImportSummary": "weightsearch.zoo.importers",
    "Index": "weightsearch.answers",
    "Neighbour": "weightsearch.types",
    "Selection": "weightsearch.types",
    "Sources": "weightsearch.intake",
    "WeightsearchError": "weightsearch.errors",
    "Zoo": "weightsearch.zoo.store",
    "add": "weightsearch.adding",
    "build_zoo": "weightsearch.zoo.build",
    "draw": "weightsearch.viz",
    "draw_map": "weightsearch.viz",
    "evaluate": "weightsearch.evaluation.run",
    "import_zoo": "weightsearch.zoo.importers",
    "load_dataset": "weightsearch.datasets",
    "query": "weightsearch.answers",
    "read_checkpoint": "weightsearch.checkpoints",
    "report": "weightsearch.viz",
    "train": "weightsearch.training",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'weightsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
