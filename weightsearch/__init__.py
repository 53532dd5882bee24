"""weightsearch: the search engine for neural-network checkpoints. This is the list of public names.

Names are imported when they are first used, so that `import weightsearch` costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AddReport": "weightsearch.search.add",
    "Answer": "weightsearch.search.index",
    "Architecture": "weightsearch.types",
    "Checkpoint": "weightsearch.types",
    "Comparison": "weightsearch.relations",
    "ImportSummary": "weightsearch.zoo.import_zoo",
    "Index": "weightsearch.search.index",
    "Neighbour": "weightsearch.types",
    "Selection": "weightsearch.types",
    "Sources": "weightsearch.checkpoints.discovery",
    "WeightsearchError": "weightsearch.errors",
    "Zoo": "weightsearch.zoo.store",
    "add": "weightsearch.search.add",
    "build_zoo": "weightsearch.zoo.build_zoo",
    "diff": "weightsearch.relations",
    "draw": "weightsearch.viz",
    "draw_map": "weightsearch.viz",
    "duplicates": "weightsearch.relations",
    "evaluate": "weightsearch.evaluation.evaluate",
    "import_zoo": "weightsearch.zoo.import_zoo",
    "lineage": "weightsearch.relations",
    "load_dataset": "weightsearch.datasets.load",
    "query": "weightsearch.search.index",
    "read_checkpoint": "weightsearch.checkpoints.state_dict",
    "relatives": "weightsearch.relations",
    "report": "weightsearch.viz",
    "train": "weightsearch.training.train",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'weightsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
