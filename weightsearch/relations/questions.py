"""The library's twins of the commands: `diff`, `relatives`, `duplicates`, `lineage`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsearch.relations.compare import compare
from weightsearch.relations.graph import Lineage, find_lineage
from weightsearch.relations.groups import Duplicates, find_duplicates
from weightsearch.relations.kinds import Comparison
from weightsearch.relations.open_files import open_file
from weightsearch.relations.search import Relatives, SignatureIndex


def diff(a: Any, b: Any) -> Comparison:
    """What checkpoint `b` is to checkpoint `a`: files, state dicts or modules.

    Raises WeightsearchError, one line, for a file that cannot be read.

    Example:
        >>> import numpy as np
        >>> weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
        >>> str(diff({"w": weight}, {"w": weight + 0.01 * weight[::-1]}).relation)
        'relative'
    """
    left, right = open_file(a), open_file(b)
    return compare(left.tensors, right.tensors, left.sign(), right.sign())


def relatives(model: Any, index: str | Path) -> Relatives:
    """What a checkpoint is to those of an index: a file, a state dict or a module.

    Example:
        >>> add(['index/examples'], 'index', quiet=True).added
        4
        >>> closest = relatives('index/examples/bad.pt', 'index').relatives[0]
        >>> str(closest.comparison.relation)
        'independent'
    """
    return SignatureIndex(index).relatives(model)


def duplicates(index: str | Path) -> list[Duplicates]:
    """Groups of the same weights in an index, whatever their format; the most bytes to be freed first.

    Raises WeightsearchError where the index keeps no signatures.

    Example:
        >>> add(['index/examples'], 'index', quiet=True).added
        4
        >>> duplicates('index')
        []
    """
    return find_duplicates(index)


def lineage(index: str | Path) -> Lineage:
    """The graph of an index's checkpoints. Raises WeightsearchError where the index keeps no signatures.

    Example:
        >>> add(['index/examples'], 'index', quiet=True).added
        4
        >>> len(lineage('index').nodes)
        4
    """
    return find_lineage(index)
