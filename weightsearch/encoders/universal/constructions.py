"""What an architecture is built of, in words: each layer with its norm and with what reads it.

An encoder that has never seen a construction knows nothing of networks that have it, however ordinary their numbers.
"""

from __future__ import annotations

import re
from functools import lru_cache

from weightsearch.encoders.universal.graph import CONVOLUTIONS, PROJECTIONS, RECURRENT, TABLES, Graph, Node, graph
from weightsearch.types import Architecture, LayerKind

ATTENTION = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention|mha)(\.|$)", re.I)


@lru_cache(maxsize=4096)
def constructions(architecture: Architecture) -> frozenset[str]:
    """The distinct constructions of an architecture; sizes, numbers and names of layers have no part in it.

    Example:
        >>> from weightsearch.checkpoints.state_dict import from_state_dict
        >>> arrays = {'0.weight': np.ones((4, 9)), '0.bias': np.ones(4), '2.weight': np.ones((3, 4))}
        >>> sorted(constructions(from_state_dict(arrays).architecture))
        ['dense, biased, first, read by the next', 'dense, head']
    """
    structure = graph(architecture)
    if structure is None:
        return frozenset()
    words = {_node(architecture, structure, i) for i in range(len(structure.nodes))}
    places = {node.layer for node in structure.nodes}
    for i, layer in enumerate(architecture.layers):
        if i not in places and layer.kind is not LayerKind.NORM and len(layer.shape) > 1:
            table = TABLES.search(layer.name)
            words.add(f"table of {table[1].lower()}" if table else f"{layer.kind} beside")
    return frozenset(words)


def _node(architecture: Architecture, structure: Graph, i: int) -> str:
    node = structure.nodes[i]
    layer = architecture.layers[node.layer]
    words = [_kind(layer.name, node, i)]
    if "bias" in layer.extras:
        words.append("biased")
    after = architecture.layers[node.layer + 1] if node.layer + 1 < len(architecture.layers) else None
    if node.norm is not None:
        words.append("batch norm")
    elif after is not None and after.kind is LayerKind.NORM and after.rows == layer.rows:
        words.append("norm")
    if i == 0:
        words.append("first")
    if i == structure.head:
        words.append("head")
    elif node.next is not None:
        words.append("read at all positions" if node.spread > 1 else "read by the next")
    return ", ".join(words)


def _kind(name: str, node: Node, i: int) -> str:
    if RECURRENT.search(name):
        return "recurrent"
    if PROJECTIONS.search(name) or ATTENTION.search(name):
        return "attention"
    if node.kind not in CONVOLUTIONS:
        return str(node.kind)
    single = "" if max(node.kernel) > 1 else " of one pixel"
    return f"{'depthwise ' if node.inputs == 1 and i else ''}{node.kind}{single}"
