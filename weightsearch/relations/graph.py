"""The graph of an index's checkpoints: copies, runs, derivations, merges. Directed only where something tells it."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.index.connection import Database
from weightsearch.index.manifest import DATABASE
from weightsearch.relations.compare import compare
from weightsearch.relations.groups import SAME_NUMBERS, Groups, batches, same_weights
from weightsearch.relations.kinds import Certainty, Comparison, Direction, Kind
from weightsearch.relations.merges import find_merge
from weightsearch.relations.neighbours import ALL_PAIRS, near_pairs, read_sketches
from weightsearch.relations.open_files import OpenFile
from weightsearch.relations.search import LIKE, by_signature, open_source, short_name
from weightsearch.relations.signature import Signature
from weightsearch.relations.store import read_columns, read_signatures
from weightsearch.text_table import printable

NEIGHBOURS = 6  # likest checkpoints each is compared with
MOST_COMPARISONS = 20_000
TOGETHER = 200  # comparisons whose signatures are read together
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
        around = self._around()
        for number, node in enumerate(self.nodes):
            ancestors, variants, notes = [], [], []
            for place, edge in around[number]:
                other = self.nodes[place]
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

    def _around(self) -> dict[int, list[tuple[int, Edge]]]:
        """Of each node the others that edges join it with."""
        around: dict[int, list[tuple[int, Edge]]] = defaultdict(list)
        for edge in self.edges:
            around[edge.a].append((edge.b, edge))
            around[edge.b].append((edge.a, edge))
        return around

    def _lines(self, text: Any) -> list[str]:
        around = self._around()
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
    path = Path(index)
    numbers, groups = same_weights(path)
    members = [numbers[rows].tolist() for rows in groups.members()]
    nodes = tuple(_nodes(path, members))
    place_of = {number: place for place, group in enumerate(members) for number in group}
    edges: list[Edge] = []
    joined = Groups(len(nodes))
    for a, b, summary in _runs(path):
        one, other = place_of[a], place_of[b]
        if joined.root(one) != joined.root(other):
            joined.join(one, other)
            edges.append(Edge(one, other, Kind.RELATIVE, True, Certainty.LIKELY, "run", summary))
    firsts = [group[0] for group in members]  # rising, as groups are in the order of their first members
    twins = _twins(path, {number: place for place, number in enumerate(firsts)})
    with read_sketches(path, np.array(firsts)) as sketches:
        near, count = near_pairs(sketches, NEIGHBOURS, LIKE, MOST_COMPARISONS)
    pairs, count = [*twins, *near][:MOST_COMPARISONS], len(twins) + count
    notes = []
    if len(nodes) > ALL_PAIRS:
        notes.append(
            "of so many checkpoints those that are near each other were compared; some distant relatives were not"
        )
    if count > len(pairs):
        notes.append(f"only the likest {len(pairs):,} of {count:,} pairs were compared")
    files = _Files(path, [node.source for node in nodes], firsts)
    related: dict[int, list[int]] = defaultdict(list)
    for number, (i, j, cosine) in enumerate(pairs):
        if number % TOGETHER == 0:
            files.read_ahead(place for pair in pairs[number : number + TOGETHER] for place in pair[:2])
        comparison = files.compare(i, j, cosine)
        if not comparison.relation.is_related:
            continue
        related[i].append(j)
        related[j].append(i)
        if joined.root(i) == joined.root(j):
            continue
        joined.join(i, j)
        one, other = (j, i) if comparison.direction is Direction.B_TO_A else (i, j)
        likeness = comparison.evidence.get("cosine_of_changed")
        further = {"a": i, "b": j}.get(str(comparison.evidence.get("trained_further")))
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
    merges = _merges(files, related)
    parents = {frozenset((edge.a, edge.b)) for edge in merges}
    edges = [edge for edge in edges if frozenset((edge.a, edge.b)) not in parents] + merges
    if files.missing:
        notes.append(f"{len(files.missing)} files are not there any more and were judged by their signatures alone")
    return Lineage(nodes, tuple(edges), tuple(notes))


class _Files:
    """What nodes are of, and their signatures, some of which are kept open and in memory."""

    def __init__(self, index: Path, sources: list[str], numbers: list[int]) -> None:
        self._index, self._sources, self._numbers = index, sources, numbers
        self.missing: set[int] = set()
        self.open = lru_cache(maxsize=64)(self._open)
        self._signatures: dict[int, Signature] = {}

    def signature(self, node: int) -> Signature:
        if node not in self._signatures:
            self.read_ahead([node])
        return self._signatures[node]

    def read_ahead(self, nodes: Iterable[int]) -> None:
        """Reads signatures together, in place of those before."""
        numbers = {self._numbers[node]: node for node in nodes}
        read = read_signatures(self._index, list(numbers))
        self._signatures = {node: read[number] for number, node in numbers.items()}

    def _open(self, node: int) -> OpenFile | None:
        file = None if node in self.missing else open_source(self._sources[node])
        if file is None:
            self.missing.add(node)
        return file

    def compare(self, a: int, b: int, cosine: float) -> Comparison:
        one, other = self.open(a), self.open(b)
        if one is None or other is None:
            return by_signature(self.signature(a), self.signature(b), cosine)
        names = short_name(self._sources[a]), short_name(self._sources[b])
        return compare(one.tensors, other.tensors, self.signature(a), self.signature(b), names=names)


def _nodes(index: Path, members: list[list[int]]) -> Iterator[Node]:
    for some in batches(members):
        columns = read_columns(
            index,
            ("number", "source", "run", "epoch", "numbers", "file_hash"),
            [number for group in some for number in group],
        )
        row_of = {number: row for row, number in enumerate(columns["number"].tolist())}
        for group in some:
            row = row_of[group[0]]
            epoch = columns["epoch"][row]
            yield Node(
                str(columns["source"][row]),
                tuple(str(columns["source"][row_of[number]]) for number in group[1:]),
                columns["run"][row],
                None if epoch is None or np.isnan(epoch) else float(epoch),
                int(columns["numbers"][row]),
                columns["file_hash"][row],
            )


STEPS = (
    "SELECT * FROM (SELECT lag(number) OVER w AS a, number AS b, run, lag(epoch) OVER w AS earlier, epoch AS later, "
    "lag(shapes) OVER w AS before, shapes, min(number) OVER (PARTITION BY run) AS first FROM ix.signatures "
    "WHERE run IS NOT NULL AND epoch IS NOT NULL AND NOT isnan(epoch) "
    "WINDOW w AS (PARTITION BY run ORDER BY epoch, number)) "
    "WHERE before = shapes AND later > earlier ORDER BY first, later, b"
)


def _runs(index: Path) -> Iterator[tuple[int, int, str]]:
    """Numbers of neighbouring epochs of each run."""
    with Database(index / DATABASE).open() as connection:
        steps = connection.execute(STEPS)
        while some := steps.fetchmany(10_000):
            for a, b, run, earlier, later, *_ in some:
                yield a, b, f"run {run}, epoch {earlier:g} to {later:g}"


def _twins(index: Path, place_of: dict[int, int]) -> list[tuple[int, int, float]]:
    """Pairs of nodes with the same numbers in another order, which sketches do not see."""
    with Database(index / DATABASE).open() as connection:
        contents = connection.execute(SAME_NUMBERS).fetchnumpy()
    by_content: dict[int, list[int]] = defaultdict(list)
    for number, first in zip(contents["number"].tolist(), contents["first"].tolist(), strict=True):
        if number in place_of:
            by_content[first].append(place_of[number])
    return [(i, j, 0.0) for places in by_content.values() for i, j in pairwise(places)]


def _merges(files: _Files, related: dict[int, list[int]]) -> list[Edge]:
    """Edges from the parents of each merge of two."""
    edges = []
    for child, others in related.items():
        file = files.open(child)
        if file is None:
            continue
        for one, other in combinations(others, 2):
            parents = [files.open(place) for place in (one, other)]
            tensors = [parent.tensors for parent in parents if parent is not None]
            merge = find_merge(file.tensors, tensors, files.signature(child)) if len(tensors) == 2 else None
            if merge is not None:
                edges += [
                    Edge(place, child, Kind.MERGE, True, Certainty.VERY_LIKELY, "weights", f"share {share:.2f}")
                    for place, share in zip((one, other), merge.shares, strict=True)
                ]
    return edges
