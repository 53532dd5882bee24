"""A checkpoint's relatives among an index's signatures: candidates by hash and sketch, then each compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.remote.paths import as_path
from weightsearch.errors import WeightsearchError
from weightsearch.relations.adapters import is_adapter, merged_pair, modules_of, weights_for
from weightsearch.relations.compare import compare
from weightsearch.relations.kinds import Certainty, Comparison, Direction, Kind
from weightsearch.relations.lookups import Head, count, fitting, read_heads, sharing, with_values
from weightsearch.relations.merges import TaskMerge, find_merge, find_task_merge
from weightsearch.relations.open_files import OpenFile, open_file
from weightsearch.relations.signature import Signature
from weightsearch.relations.sketches import Sketches
from weightsearch.relations.store import SCHEME, read_signatures, shapes_of

LIKE = 0.18  # cosine of sketches that foreign pairs rarely reach
CANDIDATES = 12  # compared at most
FITTING = 48  # networks that an adapter is compared with, at most
ALIGNED = 4  # of equal shapes, compared although their sketches say nothing: permuted twins
log = logging.getLogger("weightsearch")


@dataclass(frozen=True)
class Relative:
    """An indexed checkpoint and what it is to the one that was asked about, which is `b`."""

    source: str
    comparison: Comparison
    sketch_cosine: float
    run: str | None = None
    epoch: float | None = None
    opened: bool = True  # whether its file was there to be compared, or only its signature

    def to_dict(self) -> dict[str, Any]:
        about = {"source": self.source, "run": self.run, "epoch": self.epoch, "opened": self.opened}
        return {**about, "sketch_cosine": round(self.sketch_cosine, 4), **self.comparison.to_dict()}


@dataclass(frozen=True)
class Relatives:
    """What an index knows of one checkpoint, the closest relation first; `summary` is one line."""

    path: str
    relatives: tuple[Relative, ...]
    compared: int
    signatures: int
    summary: str
    unseen: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "summary": self.summary,
            "relatives": [relative.to_dict() for relative in self.relatives],
            "compared": self.compared,
            "signatures": self.signatures,
            "unseen": self.unseen,
        }


class SignatureIndex:
    """An index's signatures, for many questions."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._count = count(self.path)
        self._sketches = Sketches(self.path, SCHEME) if self._count else None

    def __len__(self) -> int:
        return self._count

    def candidates(self, signature: Signature, most: int = CANDIDATES) -> dict[int, float]:
        """Numbers of signatures that may be relatives', with the cosine of their sketches, the likeliest first."""
        if self._sketches is None:
            return {}
        contents = signature.rounded_content
        same = {
            "exact": contents, "content": [signature.content], "float16": contents[:1], "bfloat16": contents[:1],
            "file_hash": [] if signature.file_hash is None else [signature.file_hash],
        }  # fmt: skip
        chosen = with_values(self.path, same, most)
        near, cosines = self._sketches.nearest(signature.sketch, most)
        chosen += near[cosines >= LIKE].tolist()
        tensors = sharing(self.path, [tensor.hashes.unordered for tensor in signature.weights])
        chosen += [number for number, _ in sorted(tensors.items(), key=lambda item: -item[1])[:ALIGNED]]
        if is_adapter(signature):
            chosen += fitting(self.path, modules_of(signature))[-FITTING:]
            return self._cosines(signature, list(dict.fromkeys(chosen)))
        chosen = list(dict.fromkeys(chosen))
        contents_of = {head.content for head in read_heads(self.path, chosen[:ALIGNED]).values()}
        chosen += with_values(self.path, {"content": sorted(contents_of)}, ALIGNED, chosen)  # in another order
        chosen += with_values(self.path, {"shapes": [shapes_of(signature)]}, ALIGNED, chosen)
        return self._cosines(signature, list(dict.fromkeys(chosen))[:most])

    def _cosines(self, signature: Signature, numbers: Sequence[int]) -> dict[int, float]:
        heads = read_heads(self.path, numbers)
        return {number: float(head.sketch @ signature.sketch) for number, head in heads.items()}

    def relatives(self, model: Any, *, itself: bool = False, signature: Signature | None = None) -> Relatives:
        """The relatives of a file, a state dict or a module. The file's own row is left out unless `itself`."""
        subject = open_file(model)
        signature = signature or subject.sign()
        place = None if subject.path is None else str(subject.path.resolve())
        cosines = self.candidates(signature)
        heads = {
            number: head for number, head in read_heads(self.path, list(cosines)).items()
            if itself or head.source != place
        }  # fmt: skip
        signatures = read_signatures(self.path, list(heads))
        compared = [
            _compare(subject, signature, head, cosines[number], signatures[number]) for number, head in heads.items()
        ]
        if is_adapter(signature):
            by_source = {head.source: signatures[number] for number, head in heads.items()}
            compared = self._bases(subject, signature, compared, by_source)
        fits = sum(bool(relative.comparison.evidence.get("fits")) for relative in compared)
        told = [relative for relative in compared if relative.comparison.relation is not Kind.UNRELATED]
        if not is_adapter(signature):
            told.sort(key=lambda relative: _closeness(relative.comparison))
            told = self._merges(subject, signature, told)
        summary, unseen = _summary(told, len(self))
        if fits and not told:
            summary = f"an adapter that fits {fits} checkpoints here; which it was made for does not show"
        return Relatives(subject.label, tuple(told), len(heads), len(self), summary, unseen)

    def _bases(
        self, subject: OpenFile, signature: Signature, compared: list[Relative], signatures: Mapping[str, Signature]
    ) -> list[Relative]:
        """An adapter's relatives, those first that it was made for: certain beside what it was merged into."""
        fitting_ones, networks = [], []
        for place, relative in enumerate(compared):
            file = open_source(relative.source) if relative.comparison.evidence.get("fits") else None
            names = weights_for(signature, signatures[relative.source])
            if file is not None and names is not None:
                fitting_ones.append(place)
                networks.append((file.tensors, names))
        pair = merged_pair(subject.tensors, networks) if len(networks) > 1 else None
        if pair is not None:
            base, merged = (compared[fitting_ones[k]] for k in pair)
            for relative, kind, way, summary in (
                (
                    base,
                    Kind.RELATIVE,
                    Direction.A_TO_B,
                    f"the network of this adapter, which makes {merged.source} of it",
                ),
                (merged, Kind.LORA_MERGED, Direction.B_TO_A, f"this adapter merged into {base.source}"),
            ):
                evidence = {**relative.comparison.evidence, "base": base.source, "merged": merged.source}
                comparison = Comparison(kind, (), way, Certainty.CERTAIN, summary, evidence)
                compared[compared.index(relative)] = replace(relative, comparison=comparison)

        def order(relative: Relative) -> tuple[bool, bool, float]:
            comparison = relative.comparison
            certain = comparison.certainty is Certainty.CERTAIN
            return not certain, comparison.relation is Kind.LORA_MERGED, -comparison.evidence.get("score", 0.0)

        return sorted(compared, key=order)

    def _merges(self, subject: OpenFile, signature: Signature, told: list[Relative]) -> list[Relative]:
        """Relatives with those that are parents of a merge marked so."""
        parents = [r for r in told if r.opened and r.comparison.relation is Kind.RELATIVE][:8]
        opened = [open_source(relative.source) for relative in parents]
        for size in (2, 3):
            for chosen in combinations(range(len(parents)), size):
                arrays = [opened[k] for k in chosen]
                if any(one is None for one in arrays):
                    continue
                merge = find_merge(subject.tensors, [one.tensors for one in arrays if one is not None], signature)
                if merge is None:
                    continue
                sources = [parents[k].source for k in chosen]
                marked = {parents[k].source: share for k, share in zip(chosen, merge.shares, strict=True)}
                return _merges_first([_as_merge(r, marked, sources, merge.left_over, merge.how) for r in told])
        return _merges_first(self._task_merge(subject, signature, told, parents, opened))

    def _task_merge(
        self,
        subject: OpenFile,
        signature: Signature,
        told: list[Relative],
        parents: list[Relative],
        opened: list[OpenFile | None],
    ) -> list[Relative]:
        """Relatives with the base and the parents of a merge of sparse changes marked so."""
        files = [(relative, file) for relative, file in zip(parents, opened, strict=True) if file is not None]
        for base, base_file in files:
            if max((layer.equal or 0.0 for layer in base.comparison.layers), default=0.0) < 0.02:
                continue
            others = [pair for pair in files if pair[0] is not base]
            for (one, one_file), (other, other_file) in combinations(others, 2):
                merge = find_task_merge(
                    subject.tensors, base_file.tensors, (one_file.tensors, other_file.tensors), signature
                )
                if merge is not None:
                    sources = [one.source, other.source]
                    return [_as_task_merge(relative, base.source, sources, merge) for relative in told]
        return told


def _compare(subject: OpenFile, signature: Signature, head: Head, cosine: float, other: Signature) -> Relative:
    opened = open_source(head.source)
    if opened is not None:
        names = short_name(head.source), "this one"
        comparison = compare(opened.tensors, subject.tensors, other, signature, names=names)
    else:
        comparison = by_signature(other, signature, cosine)
    return Relative(head.source, comparison, cosine, head.run, head.epoch, opened is not None)


def _as_merge(relative: Relative, shares: dict[str, float], sources: list[str], left_over: float, how: str) -> Relative:
    if relative.source not in shares:
        return relative
    share = shares[relative.source]
    others = ", ".join(source for source in sources if source != relative.source)
    comparison = replace(
        relative.comparison,
        relation=Kind.MERGE,
        also=(relative.comparison.relation, *relative.comparison.also),
        direction=Direction.A_TO_B,
        summary=f"a parent of this merge with share {share:.2f} ({how}), beside {others}",
        evidence={**relative.comparison.evidence, "share": round(share, 4), "left_over": left_over, "parents": sources},
    )
    return replace(relative, comparison=comparison)


def _as_task_merge(relative: Relative, base: str, parents: list[str], merge: TaskMerge) -> Relative:
    if relative.source not in (base, *parents):
        return relative
    role = "the base" if relative.source == base else "a parent"
    summary = (
        f"{role} of this merge: {', '.join(parents)} onto {base}, sparse changes {merge.scale:.3g} times, as TIES and "
        f"DARE make it ({merge.explained:.1%} of the changed numbers are so explained)"
    )
    comparison = replace(
        relative.comparison,
        relation=Kind.MERGE,
        also=(relative.comparison.relation, *relative.comparison.also),
        direction=Direction.A_TO_B,
        summary=summary,
        evidence={
            **relative.comparison.evidence, "base": base, "parents": parents, "scale": round(merge.scale, 4),
            "explained": round(merge.explained, 4),
        },
    )  # fmt: skip
    return replace(relative, comparison=comparison)


def _merges_first(told: list[Relative]) -> list[Relative]:
    return sorted(told, key=lambda r: (not r.comparison.relation.is_copy, r.comparison.relation != Kind.MERGE))


def short_name(source: str) -> str:
    """A file's name and its folder's."""
    return "/".join(Path(source).parts[-2:])


def open_source(source: str) -> OpenFile | None:
    """An indexed checkpoint's tensors, from its file or its zoo; None where that is gone or cannot be read."""
    try:
        path, mark, place = source.rpartition("#")
        is_there = as_path(source).exists()
        if mark and not is_there:
            return _from_zoo(Path(path), place)
        return open_file(source) if is_there else None
    except WeightsearchError as error:
        log.warning("%s", error)
        return None


def _from_zoo(path: Path, place: str) -> OpenFile | None:
    from weightsearch.checkpoints.state_dict import to_state_dict
    from weightsearch.zoo.store import Zoo

    run, _, epoch = place.rpartition("/")
    if not (path / "zoo.json").exists():
        return None
    zoo = Zoo.open(path)
    table = zoo.table()
    position = np.flatnonzero((table.run.astype(str) == run) & (table.epoch == float(epoch)))
    if len(position) != 1:
        return None
    architecture = zoo.architectures[str(zoo.fingerprints[position[0]])]
    return OpenFile(None, to_state_dict(zoo.weights(position)[0], architecture))


def by_signature(a: Signature, b: Signature, cosine: float) -> Comparison:
    """What signatures alone tell, where a file is not at hand."""
    ours, theirs = a.rounded_content, b.rounded_content
    evidence: dict[str, Any] = {"sketch_cosine": round(cosine, 4), "by": "signatures; the file is not there"}
    if a.file_hash is not None and a.file_hash == b.file_hash:
        return Comparison(Kind.IDENTICAL, (), None, Certainty.CERTAIN, "the same file, byte for byte", evidence)
    if ours[0] == theirs[0] or ours[0] in theirs or theirs[0] in ours:
        return Comparison(Kind.SAME_WEIGHTS, (), None, Certainty.CERTAIN, "the same weights", evidence)
    if a.content == b.content:
        summary = "the same numbers in another layout or order"
        return Comparison(Kind.SAME_FUNCTION, (Kind.SAME_WEIGHTS,), None, Certainty.LIKELY, summary, evidence)
    hashes = {tensor.hashes.unordered for tensor in a.weights}
    common = [tensor for tensor in b.weights if tensor.hashes.unordered in hashes]
    if cosine >= 0.5:
        summary = f"like it in place (cosine of sketches {cosine:.2f}); its file is not there to compare"
        return Comparison(Kind.RELATIVE, (), None, Certainty.LIKELY, summary, evidence)
    if common:
        return Comparison(Kind.SHARES, (), None, Certainty.CERTAIN, f"they share {len(common)} weights", evidence)
    return Comparison(Kind.UNRELATED, (), None, Certainty.UNKNOWN, "no relation found in the signatures", evidence)


def _closeness(comparison: Comparison) -> tuple[int, float]:
    likeness = comparison.evidence.get("cosine_of_changed") or comparison.evidence.get("aligned_cosine") or 0.0
    return list(Kind).index(comparison.relation), -float(likeness)


def _summary(told: Sequence[Relative], signatures: int) -> tuple[str, str]:
    close = [relative for relative in told if relative.comparison.relation.is_related]
    if close:
        first = close[0]
        merged = [r for r in close if r.comparison.relation is Kind.MERGE]
        if merged and first in merged:
            if "base" in first.comparison.evidence:
                evidence = first.comparison.evidence
                return f"merge of {' and '.join(evidence['parents'])} onto {evidence['base']} by sparse changes", ""
            parts = " and ".join(f"{r.source} ({r.comparison.evidence['share']:.0%})" for r in merged)
            return f"merge of {parts}", ""
        return f"{first.comparison.relation.to(first.source)}: {first.comparison.summary}", ""
    shares = [relative for relative in told if relative.comparison.relation is Kind.SHARES]
    if shares:
        return f"shares a component with {shares[0].source}: {shares[0].comparison.summary}", shares[
            0
        ].comparison.unseen
    unseen = "distillation, permuted networks that were trained on for long, relatives whose shapes all changed"
    return f"no relation found among {signatures:,} checkpoints", f"not seen by this search: {unseen}"
