"""Which layers a network has that count, in which order, and how they hang together, from names and shapes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from weightsearch.types import Architecture, Layer, LayerKind

CONVOLUTIONS = (LayerKind.CONV1D, LayerKind.CONV2D, LayerKind.CONV3D)
HEAD_NAMES = re.compile(
    r"(^|\.)(classifier|head|fc|out|output|logits|score|lm_head|linear|last_linear)(\.\d+|\.out_proj)?$"
)
PROJECTIONS = re.compile(r"(^|\.)(q|k|query|key|q_proj|k_proj|qkv|c_attn|in_proj_weight)$")
FUSED = re.compile(r"(^|\.)(qkv|c_attn|in_proj_weight|Wqkv)$")
RECURRENT = re.compile(r"^(.*)weight_(?:ih|hh)_l(\d+)(_reverse)?$")
TABLES = re.compile(r"(pos|position|token_type|cls|class|dist|mask)_?(embed|embedding|embeddings|token|_emb)", re.I)


@dataclass(frozen=True)
class Node:
    """A layer with weights, as the encoder sees it: a matrix `(rows, inputs * kernel)` and what belongs to it.

    `layer` and `norm` are places in the architecture; `first` and `rows` say which of the layer's rows it is, as the
    three projections of attention are often stored as one. `next` is the node that reads its rows, where it is known,
    and `spread` how many of that node's columns read one row (positions of a flattened image).
    """

    layer: int
    first: int
    rows: int
    inputs: int
    kernel: tuple[int, ...]
    kind: LayerKind
    norm: int | None = None
    next: int | None = None
    spread: int = 1

    @property
    def columns(self) -> int:
        size = self.inputs
        for length in self.kernel:
            size *= length
        return size


@dataclass(frozen=True)
class Graph:
    """A network's nodes in order, and which of them is the head that gives the logits."""

    nodes: tuple[Node, ...]
    head: int
    norms: tuple[int, ...]  # places of all norms in the architecture

    @property
    def classes(self) -> int:
        return self.nodes[self.head].rows


@lru_cache(maxsize=4096)
def graph(architecture: Architecture) -> Graph | None:
    """The graph of an architecture; None where it has no layer with weights of two dimensions or more."""
    layers = architecture.layers
    nodes: list[Node] = []
    place: dict[int, int] = {}  # layer -> its last node
    for i, layer in enumerate(layers):
        if not _has_matrix(layer):
            continue
        kernel = layer.shape[2:]
        parts = 3 if FUSED.search(layer.name) and layer.rows % 3 == 0 else 1
        for part in range(parts):
            size = layer.rows // parts
            nodes.append(Node(i, part * size, size, layer.shape[1], kernel, layer.kind))
        place[i] = len(nodes) - 1
    if not nodes:
        return None
    head = _head(layers, nodes)
    norms = tuple(i for i, layer in enumerate(layers) if layer.kind is LayerKind.NORM)
    owners = [(norm, _normed(layers, place, nodes, norm)) for norm in reversed(norms)]
    with_norm = {owner: norm for norm, owner in owners if owner is not None}
    linked = []
    for i, node in enumerate(nodes):
        after, spread = _reader(layers, nodes, i, head)
        linked.append(
            Node(
                node.layer, node.first, node.rows, node.inputs, node.kernel, node.kind, with_norm.get(i), after, spread
            )
        )
    return Graph(tuple(linked), head, norms)


def _has_matrix(layer: Layer) -> bool:
    """Whether it maps inputs to outputs: no embedding of positions, no class token, no vector."""
    if layer.kind is LayerKind.OTHER:
        return len(layer.shape) == 2 and min(layer.shape) > 1 and TABLES.search(layer.name) is None
    if layer.kind is LayerKind.NORM or TABLES.search(layer.name):
        return False
    return len(layer.shape) >= 2


def _head(layers: tuple[Layer, ...], nodes: list[Node]) -> int:
    """The last dense layer, unless another one, which no layer reads, is called a head (names may be sorted)."""
    dense = [i for i, node in enumerate(nodes) if node.kind is LayerKind.DENSE] or [len(nodes) - 1]
    named = [i for i in dense if HEAD_NAMES.search(layers[nodes[i].layer].name)]
    last = dense[-1]
    if last in named or not named:
        return last
    top = [i for i in named if "." not in layers[nodes[i].layer].name] or named
    return top[-1]


def _normed(layers: tuple[Layer, ...], place: dict[int, int], nodes: list[Node], norm: int) -> int | None:
    """The node that a batch norm follows: the layer just before it, or one with its number under the same module."""
    layer = layers[norm]
    if "running_var" not in layer.extras:
        return None
    before = place.get(norm - 1)
    if before is not None and nodes[before].rows == layer.rows:
        return before
    parent, _, leaf = layer.name.rpartition(".")
    number = re.sub(r"\D", "", leaf)
    for i, other in enumerate(layers):
        above, _, name = other.name.rpartition(".")
        if i in place and above == parent and re.sub(r"\D", "", name) == number and other.rows == layer.rows:
            return place[i]
    return None


def _reader(layers: tuple[Layer, ...], nodes: list[Node], i: int, head: int) -> tuple[int | None, int]:
    """The next node, where its inputs are this one's rows, or positions of them."""
    node = nodes[i]
    if i == head or i + 1 >= len(nodes) or PROJECTIONS.search(layers[node.layer].name):
        return None, 1
    after = nodes[i + 1]
    if after.inputs == node.rows:
        return i + 1, 1
    flattened = node.kind in CONVOLUTIONS and after.kind is LayerKind.DENSE and after.inputs % node.rows == 0
    return (i + 1, after.inputs // node.rows) if flattened else (None, 1)
