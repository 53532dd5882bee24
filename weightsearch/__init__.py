"""weightsearch: the search engine for neural-network checkpoints. This is the list of public names.

Names are imported when they are first used, so that `import weightsearch` costs nothing; type checkers see them all.

Example:
    >>> import weightsearch
    >>> index = weightsearch.Index.open("index")
    >>> answer = index.query("index/examples/good.pt", k=3)
    >>> 0.8 < answer.predicted < 0.9
    True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsearch.checkpoints.discovery import Sources as Sources
    from weightsearch.checkpoints.folder_layouts import Layout as Layout
    from weightsearch.checkpoints.state_dict import read_checkpoint as read_checkpoint
    from weightsearch.datasets.load import load_dataset as load_dataset
    from weightsearch.errors import Interrupted as Interrupted
    from weightsearch.errors import UsageError as UsageError
    from weightsearch.errors import WeightsearchError as WeightsearchError
    from weightsearch.evaluation.evaluate import Evaluation as Evaluation
    from weightsearch.evaluation.evaluate import evaluate as evaluate
    from weightsearch.integrations.recorder import Standing as Standing
    from weightsearch.integrations.recorder import record as record
    from weightsearch.relations import Comparison as Comparison
    from weightsearch.relations import diff as diff
    from weightsearch.relations import duplicates as duplicates
    from weightsearch.relations import lineage as lineage
    from weightsearch.relations import relatives as relatives
    from weightsearch.search.add import AddReport as AddReport
    from weightsearch.search.add import add as add
    from weightsearch.search.answer import Answer as Answer
    from weightsearch.search.answer import Forecast as Forecast
    from weightsearch.search.answer import Novelty as Novelty
    from weightsearch.search.index import Index as Index
    from weightsearch.search.index import query as query
    from weightsearch.search.shards import EmbedReport as EmbedReport
    from weightsearch.search.shards import collect as collect
    from weightsearch.search.shards import embed as embed
    from weightsearch.training.options import TrainOptions as TrainOptions
    from weightsearch.training.summary import TrainSummary as TrainSummary
    from weightsearch.training.train import train as train
    from weightsearch.types import Activation as Activation
    from weightsearch.types import Architecture as Architecture
    from weightsearch.types import Baseline as Baseline
    from weightsearch.types import Checkpoint as Checkpoint
    from weightsearch.types import Layer as Layer
    from weightsearch.types import LayerKind as LayerKind
    from weightsearch.types import Method as Method
    from weightsearch.types import Metric as Metric
    from weightsearch.types import Neighbour as Neighbour
    from weightsearch.types import Selection as Selection
    from weightsearch.types import SplitBy as SplitBy
    from weightsearch.types import Target as Target
    from weightsearch.viz.drawing import draw as draw
    from weightsearch.viz.drawing import draw_map as draw_map
    from weightsearch.viz.drawing import report as report
    from weightsearch.viz.projection import Projection as Projection
    from weightsearch.viz.sources import Part as Part
    from weightsearch.viz.style import Format as Format
    from weightsearch.zoo.build_zoo import BuildSummary as BuildSummary
    from weightsearch.zoo.build_zoo import build_zoo as build_zoo
    from weightsearch.zoo.derive import DeriveSummary as DeriveSummary
    from weightsearch.zoo.derive import derive_zoo as derive_zoo
    from weightsearch.zoo.import_zoo import ImportOptions as ImportOptions
    from weightsearch.zoo.import_zoo import ImportSummary as ImportSummary
    from weightsearch.zoo.import_zoo import import_zoo as import_zoo
    from weightsearch.zoo.options import BuildOptions as BuildOptions
    from weightsearch.zoo.store import Zoo as Zoo

    __version__: str

_PUBLIC = {
    "Activation": "weightsearch.types",
    "add": "weightsearch.search.add",
    "AddReport": "weightsearch.search.add",
    "EmbedReport": "weightsearch.search.shards",
    "collect": "weightsearch.search.shards",
    "embed": "weightsearch.search.shards",
    "Answer": "weightsearch.search.answer",
    "Architecture": "weightsearch.types",
    "Baseline": "weightsearch.types",
    "build_zoo": "weightsearch.zoo.build_zoo",
    "BuildOptions": "weightsearch.zoo.options",
    "BuildSummary": "weightsearch.zoo.build_zoo",
    "Checkpoint": "weightsearch.types",
    "Comparison": "weightsearch.relations",
    "derive_zoo": "weightsearch.zoo.derive",
    "DeriveSummary": "weightsearch.zoo.derive",
    "diff": "weightsearch.relations",
    "draw": "weightsearch.viz.drawing",
    "draw_map": "weightsearch.viz.drawing",
    "duplicates": "weightsearch.relations",
    "evaluate": "weightsearch.evaluation.evaluate",
    "Evaluation": "weightsearch.evaluation.evaluate",
    "Forecast": "weightsearch.search.answer",
    "Format": "weightsearch.viz.style",
    "import_zoo": "weightsearch.zoo.import_zoo",
    "ImportOptions": "weightsearch.zoo.import_zoo",
    "ImportSummary": "weightsearch.zoo.import_zoo",
    "Index": "weightsearch.search.index",
    "Interrupted": "weightsearch.errors",
    "Layer": "weightsearch.types",
    "LayerKind": "weightsearch.types",
    "Layout": "weightsearch.checkpoints.folder_layouts",
    "lineage": "weightsearch.relations",
    "load_dataset": "weightsearch.datasets.load",
    "Method": "weightsearch.types",
    "Metric": "weightsearch.types",
    "Neighbour": "weightsearch.types",
    "Novelty": "weightsearch.search.answer",
    "Part": "weightsearch.viz.sources",
    "Projection": "weightsearch.viz.projection",
    "query": "weightsearch.search.index",
    "read_checkpoint": "weightsearch.checkpoints.state_dict",
    "record": "weightsearch.integrations.recorder",
    "relatives": "weightsearch.relations",
    "report": "weightsearch.viz.drawing",
    "Selection": "weightsearch.types",
    "Sources": "weightsearch.checkpoints.discovery",
    "Standing": "weightsearch.integrations.recorder",
    "SplitBy": "weightsearch.types",
    "Target": "weightsearch.types",
    "train": "weightsearch.training.train",
    "TrainOptions": "weightsearch.training.options",
    "TrainSummary": "weightsearch.training.summary",
    "UsageError": "weightsearch.errors",
    "WeightsearchError": "weightsearch.errors",
    "Zoo": "weightsearch.zoo.store",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


if not TYPE_CHECKING:  # which would take any name for granted

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC:
            value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
            return value
        if name == "__version__":
            from importlib.metadata import version

            return version("weightsearch")
        raise AttributeError(f"module 'weightsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
