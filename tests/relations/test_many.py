"""What is told of many signatures is what a look at all of them at once tells."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from weightsearch.index.create import create_empty
from weightsearch.relations import duplicates, lineage, neighbours, sign
from weightsearch.relations.neighbours import near_pairs
from weightsearch.relations.signature import SKETCH_WIDTH, Signature
from weightsearch.relations.store import Signed, add_signatures


def bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def some_signatures(rng: np.random.Generator) -> list[Signature]:
    """Of networks of which several files are the same, in three precisions, some under one file hash."""
    signatures = []
    for k in range(60):
        weight = np.random.default_rng([3, k % 20]).standard_normal((8, 6)).astype(np.float32)
        kind = rng.integers(4)
        if kind == 1:
            weight = weight.astype(np.float16)
        elif kind == 2:
            weight = bfloat16(weight)
        elif kind == 3:
            weight = weight + np.float32(k)
        file_hash = f"{k % 20}{kind}" if rng.random() < 0.5 else None
        signatures.append(
            sign({"w.weight": weight, "v.weight": weight.T[:4].copy()}, file_hash=file_hash, file_bytes=k)
        )
    return signatures


def are_same(one: Signature, other: Signature) -> bool:
    (exact, *rounded), (other_exact, *other_rounded) = one.rounded_content, other.rounded_content
    same_file = one.file_hash is not None and one.file_hash == other.file_hash
    return same_file or exact == other_exact or exact in other_rounded or other_exact in rounded


@pytest.mark.slow
def test_duplicates_are_those_of_a_look_at_every_pair(tmp_path: Path, rng: np.random.Generator):
    signatures = some_signatures(rng)
    expected = [{k} for k in range(len(signatures))]
    for i, j in combinations(range(len(signatures)), 2):
        if are_same(signatures[i], signatures[j]):
            one, other = (next(group for group in expected if k in group) for k in (i, j))
            if one is not other:
                expected.remove(other)
                one |= other
    create_empty(tmp_path / "index")
    add_signatures(tmp_path / "index", [Signed(f"/{k}", signature) for k, signature in enumerate(signatures)])
    told = duplicates(tmp_path / "index")
    assert {frozenset(group.sources) for group in told} == {
        frozenset(f"/{k}" for k in group) for group in expected if len(group) > 1
    }
    assert len(told) > 10
    assert [group.freed for group in told] == sorted((group.freed for group in told), reverse=True)
    for group in told:
        first = signatures[int(group.sources[0][1:])]
        halves = [signatures[int(source[1:])].rounded_content for source in group.sources]
        assert first.rounded_content[0] not in first.rounded_content[1:] or all(one in rest for one, *rest in halves)


@pytest.fixture
def families(rng: np.random.Generator) -> np.ndarray:
    """Sketches `(600, 512)`, most of them near five others, none like another family's."""
    bases = rng.standard_normal((100, SKETCH_WIDTH))
    sketches = np.repeat(bases, 6, axis=0) + rng.uniform(0, 1.5, (600, 1)) * rng.standard_normal((600, SKETCH_WIDTH))
    sketches /= np.linalg.norm(sketches, axis=1, keepdims=True)
    return rng.permutation(sketches).astype(np.float16)


def test_near_pairs_are_those_of_the_whole_matrix(families: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    """In blocks that do not fit together, and at the edges."""
    monkeypatch.setattr(neighbours, "ROWS", 70)
    monkeypatch.setattr(neighbours, "COLUMNS", 90)
    wide = families.astype(np.float64)
    cosines = wide @ wide.T
    np.fill_diagonal(cosines, -2)
    expected = {
        (min(i, j), max(i, j))
        for i in range(len(wide)) for j in np.argsort(-cosines[i])[:4].tolist() if cosines[i, j] >= 0.3
    }  # fmt: skip
    pairs, count = near_pairs(families, 4, 0.3, 10_000)
    assert {(i, j) for i, j, _ in pairs} == expected
    assert [cosine for *_, cosine in pairs] == sorted((cosine for *_, cosine in pairs), reverse=True)
    np.testing.assert_allclose([cosine for *_, cosine in pairs], [cosines[i, j] for i, j, _ in pairs], atol=1e-5)
    assert count == len(pairs)
    assert near_pairs(families, 4, 0.3, 7) == (pairs[:7], count)
    assert near_pairs(families[:1], 4, 0.3, 7) == ([], 0)
    assert len(near_pairs(families[:3], 4, -1, 7)[0]) == 3


def test_signs_find_what_is_near(families: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "PROBED", 32)  # of 97 cells
    exact = {(i, j): cosine for i, j, cosine in near_pairs(families, 6, 0.18, 10_000)[0]}
    monkeypatch.setattr(neighbours, "ALL_PAIRS", 0)
    pairs = {(i, j): cosine for i, j, cosine in near_pairs(families, 6, 0.18, 10_000)[0]}
    near = [pair for pair, cosine in exact.items() if cosine >= 0.6]
    assert sum(pair in pairs for pair in near) >= 0.97 * len(near) > 100
    assert all(cosine == pytest.approx(exact[pair], abs=1e-5) for pair, cosine in pairs.items() if pair in exact)


@pytest.mark.slow
def test_lineage_joins_runs_and_families_by_signatures_alone(tmp_path: Path, families: np.ndarray):
    signed = []
    for k in range(40):
        one = sign({"w.weight": np.random.default_rng([8, k]).standard_normal((8, 6)).astype(np.float32)})
        run, epoch = (f"run{k % 2}", float(k // 2 % 5)) if k < 10 else (None, None)
        signed.append(Signed(f"/{k}", replace(one, sketch=families[k].astype(np.float32)), run, epoch))
    create_empty(tmp_path / "index")
    add_signatures(tmp_path / "index", signed)
    graph = lineage(tmp_path / "index")
    assert [node.source for node in graph.nodes] == [one.source for one in signed]
    steps = [(edge.a, edge.b) for edge in graph.edges if edge.by == "run"]
    assert steps == [(k, k + 2) for start in (0, 1) for k in range(start, 8, 2)]
    wide = families[:40].astype(np.float64)
    for edge in graph.edges:
        assert edge.by == "run" or wide[edge.a] @ wide[edge.b] > 0.4
    assert any("not there any more" in note for note in graph.notes)
