"""The graph of an index's checkpoints: copies, runs, derivations, merges. Directed only where something tells it."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.relations.compare import compare
from weightsearch.relations.groups import Groups, same_weights
from weightsearch.relations.kinds import Certainty, Direction, Kind
from weightsearch.relations.merges import find_merge
from weightsearch.relations.search import LIKE, by_signature, open_source, short_name
from weightsearch.relations.signature import Signature
from weightsearch.relations.store import Known, read_known, read_signatures
from weightsearch.text_table import printable

NEIGHBOURS = 6  # likest checkpoints each is compared with
MOST_COMPARISONS = 20_000
log = logging.getLogger("weightsearch")


@dataclass(frozen=True)
class Node:
    """A checkpoint; `copies` are other sources of the same weights."""

    source: str
    copies: tuple[str, ...]
    run: str | None
    epoch: float | None
    numbers: int
    file_hash: str | None


@dataclass(frozen=True)
class Edge:
    """From `a` to `b` where `directed`; `by` says what tells the relation: `run` (known) or `weights`.

    `further` is the node that was trained further, where that is told of two of which none need come from the other.
    """

    a: int
    b: int
    relation: Kind
    directed: bool
    certainty: Certainty
    by: str
    summary: str
    cosine: float | None = None
    further: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "a": self.a, "b": self.b, "relation": str(self.relation), "directed": self.directed,
            "certainty": str(self.certainty), "by": self.by, "summary": self.summary, "cosine": self.cosine,
            "further": self.further,
        }  # fmt: skip


@dataclass(frozen=True)
class Lineage:
    """Nodes and edges; edges name nodes by their place in `nodes`."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        nodes = [{**node.__dict__, "copies": list(node.copies)} for node in self.nodes]
        return {"nodes": nodes, "edges": [edge.to_dict() for edge in self.edges], "notes": list(self.notes)}

    def to_dot(self) -> str:
        """Graphviz's language."""
        lines = ["digraph lineage {", '  rankdir=LR; node [shape=box, fontname="sans-serif"];']
        for number, node in enumerate(self.nodes):
            label = short_name(node.source) + (f"\\n+ {_copies(node)}" if node.copies else "")
            lines.append(f"  n{number} [label={json.dumps(label)}];")
        for edge in self.edges:
            one, other = (edge.b, edge.a) if edge.further == edge.a else (edge.a, edge.b)
            arrow = "" if edge.directed else ", dir=none" if edge.further is None else ", style=dashed"
            lines.append(f"  n{one} -> n{other} [label={json.dumps(str(edge.relation))}{arrow}];")
        return "\n".join([*lines, "}"]) + "\n"

    def to_text(self) -> str:
        """A tree of each family, for the terminal."""
        return "\n".join(self._lines(printable)) + "\n"

    def to_html(self) -> str:
        """One page without scripts: a tree of each family."""
        body = "\n".join(self._lines(lambda text: escape(printable(text))))
        return (
            '<!doctype html><meta charset="utf-8"><title>Lineage</title>'
            "<style>body{font:14px/1.5 ui-monospace,monospace;margin:2rem;white-space:pre}</style>\n" + body + "\n"
        )

    def to_cyclonedx(self) -> dict[str, Any]:
        """A CycloneDX 1.6 bill of materials: ancestors where a direction is told, variants where none is."""
        components = []
        for number, node in enumerate(self.nodes):
            ancestors, variants, notes = [], [], []
            for edge in self.edges:
                if number not in (edge.a, edge.b):
                    continue
                other = self.nodes[edge.a if edge.b == number else edge.b]
                if edge.directed and edge.b == number:
                    ancestors.append(_component(other))
                elif not edge.directed:
                    variants.append(_component(other))
                notes.append(f"{short_name(other.source)}: {edge.summary} ({edge.certainty}, by {edge.by})")
            pedigree: dict[str, Any] = {}
            if ancestors:
                pedigree["ancestors"] = ancestors
            variants += [_component(node, source) for source in node.copies]
            if variants:
                pedigree["variants"] = variants
            if notes:
                pedigree["notes"] = "; ".join(notes)
            components.append({**_component(node), **({"pedigree": pedigree} if pedigree else {})})
        return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}

    def _lines(self, text: Any) -> list[str]:
        around: dict[int, list[tuple[int, Edge]]] = defaultdict(list)
        for edge in self.edges:
            around[edge.a].append((edge.b, edge))
            around[edge.b].append((edge.a, edge))
        incoming = {edge.b for edge in self.edges if edge.directed}
        order = sorted(range(len(self.nodes)), key=lambda n: (not around[n], n in incoming, -len(around[n]), n))
        seen: set[int] = set()
        lines: list[str] = []

        def visit(start: int) -> None:
            stack: list[tuple[int, int, Edge | None]] = [(start, 0, None)]
            while stack:
                number, depth, edge = stack.pop()
                if number in seen:
                    continue
                seen.add(number)
                node = self.nodes[number]
                lead = "" if edge is None else f"{'  ' * depth}{_arrow(edge, number)} {edge.relation}: "
                names = ", ".join(map(short_name, node.copies))
                copies = f" (and {_copies(node)}: {names})" if names else ""
                later = (
                    ""
                    if edge is None or edge.further is None
                    else f"; {short_name(self.nodes[edge.further].source)} further trained"
                )
                why = "" if edge is None else f"  [{edge.summary}; {edge.certainty}{later}]"
                lines.append(text(f"{lead}{node.source}{copies}{why}"))
                following = sorted(around[number], key=lambda item: -item[0])
                stack.extend((other, depth + 1, edge) for other, edge in following if other not in seen)

        for number in order:
            if number not in seen and (around[number] or self.nodes[number].copies):
                visit(number)
                lines.append("")
        alone = [node for number, node in enumerate(self.nodes) if number not in seen]
        if alone:
            lines.append(
                text(f"{len(alone)} without relatives: " + ", ".join(short_name(node.source) for node in alone))
            )
        return [*lines, *map(text, self.notes)]


def _arrow(edge: Edge, number: int) -> str:
    if not edge.directed:
        return "──"
    return "─►" if edge.b == number else "◄─"


def _copies(node: Node) -> str:
    return "1 copy" if len(node.copies) == 1 else f"{len(node.copies)} copies"


def _component(node: Node, source: str | None = None) -> dict[str, Any]:
    source = source or node.source
    component: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": source, "name": short_name(source)}
    if node.file_hash and source == node.source:
        component["hashes"] = [{"alg": "SHA-256", "content": node.file_hash}]
    return component


def find_lineage(index: str | Path) -> Lineage:
    """The graph of the index at `index`: every checkpoint is compared with those that its sketch is near to.

    What is known of runs goes first: a run's checkpoints are joined in the order of their epochs, uncompared.
    Of the relations found a spanning forest is kept, the closest first, and merges with all their parents.
    """
    signed = read_known(index, required=True)
    groups = same_weights(signed, Path(index))
    members = groups.members()
    first = {row: rows[0] for rows in members for row in rows}
    places = {rows[0]: place for place, rows in enumerate(members)}
    nodes = tuple(_node(signed, rows) for rows in members)
    edges: list[Edge] = []
    joined = Groups(len(nodes))
    for a, b, summary in _runs(signed):
        one, other = places[first[a]], places[first[b]]
        if joined.root(one) != joined.root(other):
            joined.join(one, other)
            edges.append(Edge(one, other, Kind.RELATIVE, True, Certainty.LIKELY, "run", summary))
    rows = [rows[0] for rows in members]
    pairs = _twins(signed, rows) + _near(signed.sketches[rows].astype(np.float32))
    notes = []
    if len(pairs) > MOST_COMPARISONS:
        notes.append(f"only the likest {MOST_COMPARISONS:,} of {len(pairs):,} pairs were compared")
        pairs = pairs[:MOST_COMPARISONS]
    opened: dict[int, Any] = {}
    signatures = _Signatures(Path(index), signed)
    related: dict[int, list[int]] = defaultdict(list)
    for i, j, cosine in pairs:
        a, b = rows[i], rows[j]
        comparison = _compare(signed, signatures, opened, a, b, cosine)
        if not comparison.relation.is_related:
            continue
        related[i].append(j)
        related[j].append(i)
        if joined.root(i) == joined.root(j):
            continue
        joined.join(i, j)
        one, other = (j, i) if comparison.direction is Direction.B_TO_A else (i, j)
        likeness = comparison.evidence.get("cosine_of_changed")
        further = {"a": i, "b": j}.get(comparison.evidence.get("trained_further"))
        edges.append(
            Edge(
                one,
                other,
                comparison.relation,
                comparison.direction is not None,
                comparison.certainty,
                "weights",
                comparison.summary,
                likeness,
                further,
            )
        )
    merges = _merges(signed, signatures, opened, rows, related)
    parents = {frozenset((edge.a, edge.b)) for edge in merges}
    edges = [edge for edge in edges if frozenset((edge.a, edge.b)) not in parents] + merges
    missing = sum(value is None for value in opened.values())
    if missing:
        notes.append(f"{missing} files are not there any more and were judged by their signatures alone")
    return Lineage(nodes, tuple(edges), tuple(notes))


class _Signatures:
    def __init__(self, index: Path, signed: Known) -> None:
        self._index, self._known = index, signed
        self._read: dict[int, Signature] = {}

    def __getitem__(self, row: int) -> Signature:
        if row not in self._read:
            number = int(self._known["number"][row])
            self._read[row] = read_signatures(self._index, [number])[number]
        return self._read[row]


def _node(signed: Known, rows: list[int]) -> Node:
    row = rows[0]
    epoch = signed["epoch"][row]
    return Node(
        str(signed["source"][row]),
        tuple(str(signed["source"][other]) for other in rows[1:]),
        signed["run"][row],
        None if epoch is None or np.isnan(epoch) else float(epoch),
        int(signed["numbers"][row]),
        signed["file_hash"][row],
    )


def _runs(signed: Known) -> list[tuple[int, int, str]]:
    """Neighbouring epochs of each run."""
    runs: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for row in range(len(signed)):
        epoch = signed["epoch"][row]
        if signed["run"][row] is not None and epoch is not None and not np.isnan(epoch):
            runs[str(signed["run"][row])].append((float(epoch), row))
    steps = []
    for run, rows in runs.items():
        rows.sort()
        for (earlier, a), (later, b) in pairwise(rows):
            if signed["shapes"][a] == signed["shapes"][b] and later > earlier:
                steps.append((a, b, f"run {run}, epoch {earlier:g} to {later:g}"))
    return steps


def _twins(signed: Known, rows: list[int]) -> list[tuple[int, int, float]]:
    """Pairs of checkpoints with the same numbers in another order, which sketches do not see."""
    by_content: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_content[str(signed["content"][row])].append(place)
    return [(i, j, 0.0) for places in by_content.values() for i, j in pairwise(places)]


def _near(sketches: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of rows whose sketches are near, the nearest first."""
    cosines: dict[tuple[int, int], float] = {}
    for start in range(0, len(sketches), 1_024):
        cosine = sketches[start : start + 1_024] @ sketches.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -1
        count = min(NEIGHBOURS, len(sketches) - 1)
        if count < 1:
            break
        near = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        for i, others in enumerate(near):
            for j in others.tolist():
                if cosine[i, j] >= LIKE:
                    cosines[min(start + i, j), max(start + i, j)] = float(cosine[i, j])
    return sorted(((i, j, cosine) for (i, j), cosine in cosines.items()), key=lambda pair: -pair[2])


def _compare(signed: Known, signatures: _Signatures, opened: dict[int, Any], a: int, b: int, cosine: float) -> Any:
    files = [_open(signed, opened, row) for row in (a, b)]
    if any(file is None for file in files):
        return by_signature(signatures[a], signatures[b], cosine)
    names = short_name(str(signed["source"][a])), short_name(str(signed["source"][b]))
    return compare(files[0].tensors, files[1].tensors, signatures[a], signatures[b], names=names)


def _open(signed: Known, opened: dict[int, Any], row: int) -> Any:
    if row not in opened:
        if len(opened) > 64:
            for old in [key for key, value in opened.items() if value is not None][:32]:
                del opened[old]
        opened[row] = open_source(str(signed["source"][row]))
    return opened[row]


def _merges(
    signed: Known, signatures: _Signatures, opened: dict[int, Any], rows: list[int], related: dict[int, list[int]]
) -> list[Edge]:
    """Edges from the parents of each merge of two."""
    edges = []
    for child, others in related.items():
        file = _open(signed, opened, rows[child])
        if file is None:
            continue
        for k, one in enumerate(others):
            for other in others[k + 1 :]:
                parents = [_open(signed, opened, rows[place]) for place in (one, other)]
                if any(parent is None for parent in parents):
                    continue
                merge = find_merge(file.tensors, [parent.tensors for parent in parents], signatures[rows[child]])
                if merge is not None:
                    edges += [
                        Edge(place, child, Kind.MERGE, True, Certainty.VERY_LIKELY, "weights", f"share {share:.2f}")
                        for place, share in zip((one, other), merge.shares, strict=True)
                    ]
    return edges
