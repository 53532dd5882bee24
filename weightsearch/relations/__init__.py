"""What two checkpoints are to each other, told from their numbers alone. Knows neither torch nor encoders."""

from weightsearch.relations.compare import compare
from weightsearch.relations.graph import Edge, Lineage, Node
from weightsearch.relations.groups import Duplicates
from weightsearch.relations.kinds import Certainty, Comparison, Direction, Kind, LayerChange, State
from weightsearch.relations.questions import diff, duplicates, lineage, relatives
from weightsearch.relations.search import Relative, Relatives, SignatureIndex
from weightsearch.relations.signature import Signature, TensorSignature, sign

__all__ = [
    "Certainty",
    "Comparison",
    "Direction",
    "Duplicates",
    "Edge",
    "Kind",
    "LayerChange",
    "Lineage",
    "Node",
    "Relative",
    "Relatives",
    "Signature",
    "SignatureIndex",
    "State",
    "TensorSignature",
    "compare",
    "diff",
    "duplicates",
    "lineage",
    "relatives",
    "sign",
]
