"""What two checkpoints are to each other: rules over the facts of their tensors, the most specific first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weightsearch.relations import direction as directions
from weightsearch.relations.adapters import compare_adapter, is_adapter
from weightsearch.relations.alignment import align
from weightsearch.relations.case import LIMITS, Arrays, Case, Limits, mean_cosine, names_of, values_of
from weightsearch.relations.facts import FLOAT32, SHUFFLED, Fact, looks_rescaled, measure
from weightsearch.relations.kinds import Certainty, Comparison, Direction, Kind, LayerChange, State
from weightsearch.relations.measures import stouffer
from weightsearch.relations.pairing import pair_tensors
from weightsearch.relations.roles import HEAD, Role
from weightsearch.relations.signature import Signature, sign

SPARSE = 0.1  # share of numbers left as they were, from which a change is no noise: noise changes all


def compare(
    a: Arrays,
    b: Arrays,
    signature_a: Signature | None = None,
    signature_b: Signature | None = None,
    limits: Limits = LIMITS,
    names: tuple[str, str] = ("a", "b"),
) -> Comparison:
    """What `b` is to `a`, from their named tensors; signatures are made where they are not given.

    The summary calls the two by `names`.

    Tensors are asked of the mappings one pair at a time, so that they may be read from disk as they are needed.

    >>> weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    >>> str(compare({"w": weight}, {"w": weight.astype(np.float16)}).relation)
    'same-weights'
    """
    signature_a = signature_a or sign(a)
    signature_b = signature_b or sign(b)
    if signature_a.file_hash is not None and signature_a.file_hash == signature_b.file_hash:
        layers = tuple(
            LayerChange(t.name, t.name, t.shape, State.UNTOUCHED, "", 1.0, 1.0, 0.0) for t in signature_a.tensors
        )
        evidence = {"sha256": signature_a.file_hash, "share_identical": 1.0}
        return Comparison(Kind.IDENTICAL, (), None, Certainty.CERTAIN, "the same file, byte for byte", evidence, layers)
    adapters = is_adapter(signature_a), is_adapter(signature_b)
    if adapters == (False, True):
        return compare_adapter(a, b, signature_a, signature_b)
    if adapters == (True, False):
        return compare_adapter(b, a, signature_b, signature_a, adapter_first=True)
    pairing = pair_tensors(signature_a, signature_b, a, b)
    facts = [measure(pair, a, b) for pair in pairing.pairs]
    return _Judge(a, b, signature_a, signature_b, pairing, facts, limits, names).judge()


class _Judge(Case):
    """The rules over one comparison's facts."""

    def judge(self) -> Comparison:
        if not self.changed:
            return self._nothing_changed()
        reordered = [fact for fact in self.changed if fact.state is State.REORDERED]
        if reordered and len(reordered) == len(self.changed) and not self._left_weights():
            reordering = self._reordered(reordered)
            if reordering is not None:
                return reordering
        body, heads = self._body_and_heads()
        if not body and self.proof:  # nothing but heads differ
            return self._answer(
                Kind.NEW_HEAD, (), Certainty.VERY_LIKELY, f"the same body; its head differs ({names_of(heads)})"
            )
        related = self._related(body)
        if related is not None:
            return self._describe_relatives(body, heads)
        permuted = self._permuted(body) if not self._left_weights() or self._few_left() else None
        if permuted is not None:
            return permuted
        removed = self._units_removed() if self._left_weights() else None
        if removed is not None:
            return removed
        return self._shares() if self.same else self._apart()

    def _nothing_changed(self) -> Comparison:
        left_a, left_b = self._left(self.only_a), self._left(self.only_b)
        if not self.same:
            return self._no_weights()
        moved = [fact for fact in self.vectors if not fact.state.is_same]
        if not left_a and not left_b:
            if moved and not (self.repacked and not moved):
                n = sum(fact.numbers for fact in moved)
                summary = f"all weights are the same; {len(moved)} vectors of {n:,} numbers moved ({names_of(moved)})"
                return self._answer(Kind.RELATIVE, (), Certainty.CERTAIN, summary)
            return self._answer(Kind.SAME_WEIGHTS, (), Certainty.CERTAIN, f"the same weights{self._how_same()}")
        if not self.proof:
            return self._shares()
        if left_a and left_b:
            if self._are_heads(left_a) and self._are_heads(left_b):
                return self._answer(
                    Kind.NEW_HEAD,
                    (),
                    Certainty.CERTAIN,
                    f"the same body{self._how_same()}; the head is new ({left_b[0].name})",
                )
            return self._units_removed() or self._shares()
        holder, left = ("a", left_a) if left_a else ("b", left_b)
        outer, inner = self.names if left_a else self.names[::-1]
        n = sum(tensor.numbers for tensor in left)
        summary = f"{outer} contains all of {inner}{self._how_same()}, and {n:,} numbers more ({left[0].name} …)"
        if self._are_heads(left) and not moved:
            summary += "; what it has more looks like a head"
        return self._answer(Kind.CONTAINS, (), Certainty.CERTAIN, summary, {"container": holder})

    def _no_weights(self) -> Comparison:
        """Networks of vectors alone, or without a tensor in common."""
        matched = [fact for fact in self.vectors if fact.state.is_same and fact.numbers > 8]
        if self.vectors and len(matched) == len(self.vectors) and not self.only_a and not self.only_b:
            return self._answer(Kind.SAME_WEIGHTS, (), Certainty.CERTAIN, "the same weights")
        if self.repacked and not self.only_a and not self.only_b:
            return self._answer(Kind.SAME_WEIGHTS, (), Certainty.CERTAIN, "the same numbers in tensors cut otherwise")
        removed = self._units_removed()
        if removed is not None:
            return removed
        return self._apart()

    def _reordered(self, reordered: list[Fact]) -> Comparison | None:
        if not all(map(_units_reordered, reordered)):
            return None
        ways = sorted({fact.detail for fact in reordered})
        rest = [fact for fact in self.vectors if fact.state in (State.MOVED, State.DIFFERENT)]
        what = " and ".join(ways)
        summary = f"the same numbers with re-ordered {what} in {len(reordered)} of {len(self.weights)} weights"
        if rest:
            summary += f"; {len(rest)} vectors differ"
        return self._answer(Kind.SAME_FUNCTION, (), Certainty.VERY_LIKELY, summary, {"reordered": ways})

    def _body_and_heads(self) -> tuple[list[Fact], list[Fact]]:
        """Changed weights that judge a relation, and those of a head, which cannot."""
        last = self.weights[-1] if len(self.weights) > 1 else None
        heads = [
            fact for fact in self.changed
            if len(self.weights) > 1
            and (HEAD.search(fact.pair.b.name) or HEAD.search(fact.pair.a.name) or fact is last)
        ]  # fmt: skip
        if len(heads) > max(1, len(self.weights) // 2):
            heads = heads[-1:]
        if heads and sum(fact.numbers for fact in heads) > 0.5 * sum(fact.numbers for fact in self.weights):
            heads = []
        return [fact for fact in self.changed if fact not in heads], heads

    def _related(self, body: list[Fact]) -> float | None:
        judged = [fact for fact in body if not fact.fixed] or []
        score = stouffer([fact.score for fact in judged])
        self.score = score
        if not math.isnan(score) and score >= self.limits.related:
            return score
        numbers = sum(fact.numbers for fact in judged)
        exact = sum(fact.equal * fact.numbers for fact in judged if not math.isnan(fact.equal))
        telling = all(fact.zeros_a < 0.5 and fact.zeros_b < 0.5 for fact in judged)
        if judged and telling and numbers >= 64 and exact > 0.3 * numbers:  # numbers are not equal by chance
            return score
        kept = [fact for fact in judged if fact.kept_equal > 0.3]
        if judged and len(kept) == len(judged) and numbers >= 64:
            return score
        return None

    def _describe_relatives(self, body: list[Fact], heads: list[Fact]) -> Comparison:
        """The relation is proven; which one it is."""
        kinds: list[Kind] = []
        told: list[Direction] = []
        words: list[str] = []
        numbers = sum(fact.numbers for fact in body)

        def share(chosen: Sequence[Fact]) -> float:
            return sum(fact.numbers for fact in chosen) / numbers

        rescaled = self._rescaled_in_place(body)
        if rescaled:
            return self._answer(
                Kind.SAME_FUNCTION, (), Certainty.VERY_LIKELY, "the same weights with hidden units rescaled",
                {"rescaled": True},
            )  # fmt: skip
        judged = [fact for fact in (*body, *heads) if fact.state is not State.DIFFERENT] or body
        for derived, one, way in (("b", "grid_b", Direction.A_TO_B), ("a", "grid_a", Direction.B_TO_A)):
            other = "grid_a" if one == "grid_b" else "grid_b"
            gridded = [f for f in judged if getattr(f, one) is not None and getattr(f, other) is None]
            if sum(f.numbers for f in gridded) > 0.5 * sum(f.numbers for f in judged):
                near = [f for f in gridded if f.spread <= getattr(f, one).step]
                if sum(f.numbers for f in near) > 0.5 * sum(f.numbers for f in gridded):  # rounding moves less
                    kinds.append(Kind.QUANTISED)
                    told.append(way)
                grids = sorted({str(getattr(fact, one)) for fact in gridded})
                words.append(f"{self._named(derived)} is quantised ({', '.join(grids[:3])})")
        for derived, sign_of, way in (("b", 1, Direction.A_TO_B), ("a", -1, Direction.B_TO_A)):
            emptied = [
                f for f in judged
                if sign_of * (f.zeros_b - f.zeros_a) > max(self.limits.more_zeros, 2.5 / f.numbers)
            ]  # fmt: skip
            if Kind.QUANTISED not in kinds and sum(f.numbers for f in emptied) > 0.3 * sum(f.numbers for f in judged):
                kinds.append(Kind.PRUNED)
                told.append(way)
                total = sum(f.numbers for f in judged)
                before = sum((f.zeros_a if derived == "b" else f.zeros_b) * f.numbers for f in judged) / total
                after = sum((f.zeros_b if derived == "b" else f.zeros_a) * f.numbers for f in judged) / total
                words.append(f"{self._named(derived)} is pruned ({before:.0%} zeros to {after:.0%})")
        if not kinds:
            self._noise_or_low_rank(judged, kinds, told, words)
        new = self._new_heads(heads)
        if new:
            kinds.append(Kind.NEW_HEAD)
            words.append(f"the head is new ({new})")
        left = [tensor for tensor in (*self._left(self.only_a), *self._left(self.only_b)) if tensor.role is Role.WEIGHT]
        if left and not new:
            words.append(f"{len(left)} weights are in one of them only")
        kinds.append(Kind.RELATIVE)
        cosine = mean_cosine([fact for fact in (*body, *heads) if fact.state is not State.DIFFERENT] or body)
        kept = [fact for fact in body if fact.state is State.DIFFERENT]
        where = (
            "all weights"
            if not kept and not self.proof
            else f"{len(body) - len(kept)} of {len(self.weights)} weights moved"
        )
        words.append(f"related in place ({where}, cosine {cosine:.3f})")
        kinds.sort(key=list(Kind).index)
        certainty = Certainty.VERY_LIKELY
        answer = self._answer(kinds[0], tuple(kinds[1:]), certainty, "; ".join(words))
        if told and len(set(told)) == 1:
            return replace(answer, direction=told[0])
        if not told and Kind.NOISED not in kinds:
            by, further = directions.trained_further(
                [fact for fact in self.facts if fact not in heads], Kind.NEW_HEAD in kinds
            )
            if (
                further is not None
            ):  # which says nothing of which was made from which: two children of one parent differ so
                side = "b" if further is Direction.A_TO_B else "a"
                return replace(answer, evidence={**answer.evidence, "trained_further": side, "trained_further_by": by})
        return answer

    def _noise_or_low_rank(
        self, judged: list[Fact], kinds: list[Kind], told: list[Direction], words: list[str]
    ) -> None:
        ranked = [f for f in judged if f.rank is not None and f.rank[1] >= 12 and f.rank[0] > 0]
        low = [f for f in ranked if f.rank is not None and f.rank[0] <= self.limits.low_rank * f.rank[1]]
        if ranked and sum(f.numbers for f in low) > 0.8 * sum(f.numbers for f in ranked):
            kinds.append(Kind.LORA_MERGED)
            ranks = sorted({f.rank[0] for f in low if f.rank is not None})
            span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
            words.append(f"they differ by matrices of rank {span} in {len(low)} of {len(judged)} changed weights")
            return
        large = [f for f in judged if f.numbers >= 64 and f.spread_a > 0]
        sizes = np.array([f.spread / f.spread_a for f in large])
        dense = all(f.equal < SPARSE or max(f.precision_a, f.precision_b) > FLOAT32 for f in large)
        if len(large) >= 2 and dense and all(f.white < self.limits.white for f in large):
            spread = float(sizes.std() / sizes.mean())
            absolute = np.array([f.spread for f in large])
            if min(spread, float(absolute.std() / absolute.mean())) < 0.12:
                kinds.append(Kind.NOISED)
                words.append(f"they differ by white noise of {sizes.mean():.2g} of the weights' size")
                way = directions.of_noise(large)
                if way is not None:
                    told.append(way)

    def _new_heads(self, heads: list[Fact]) -> str | None:
        """Names of the head's tensors that are new, or None."""
        left_a = [t for t in self._left(self.only_a) if t.role in (Role.WEIGHT, Role.VECTOR)]
        left_b = [t for t in self._left(self.only_b) if t.role in (Role.WEIGHT, Role.VECTOR)]
        if left_a and left_b and self._are_heads(left_a) and self._are_heads(left_b):
            return left_b[0].name
        fresh = [f for f in heads if f.state is State.DIFFERENT]
        if fresh and len(fresh) == len([f for f in heads if f.is_weight]):
            return names_of(fresh)
        return None

    def _rescaled_in_place(self, body: list[Fact]) -> bool:
        changed = [fact for fact in self.changed if not fact.fixed]
        for fact in changed:
            x, y = self._arrays(fact)
            if x.shape != y.shape or not looks_rescaled(x, y):
                return False
        return all(self._twins(fact, in_place=True) for fact in changed)

    def _permuted(self, body: list[Fact]) -> Comparison | None:
        changed = [fact for fact in self.changed if not fact.fixed]
        if len({fact.pair.a.shape for fact in changed}) < 1 or any(max(self._shape(f)[:2]) < 4 for f in changed):
            changed = [f for f in changed if max(self._shape(f)[:2]) >= 4]
        if not changed:
            return None
        if all(_units_reordered(fact) or self._twins(fact, in_place=False) for fact in changed):
            return self._answer(
                Kind.SAME_FUNCTION, (), Certainty.VERY_LIKELY,
                "the same weights with hidden units permuted and rescaled", {"rescaled": True, "reordered": True},
            )  # fmt: skip
        alignment = align([self._arrays(fact) for fact in changed])
        self.alignment = alignment
        if not alignment.cosine > self.limits.aligned:
            return None
        coarse = max(max(fact.precision_a, fact.precision_b) for fact in changed)
        if coarse > FLOAT32 and 1 - alignment.cosine < coarse**2:
            return self._answer(
                Kind.SAME_FUNCTION, (), Certainty.VERY_LIKELY,
                f"the same weights, rounded, with hidden units permuted (cosine {alignment.cosine:.6f} once aligned)",
                {"reordered": True},
            )  # fmt: skip
        kinds, told, words = [Kind.PERMUTED_RELATIVE], [], []
        for derived, one, way in (("b", "b", Direction.A_TO_B), ("a", "a", Direction.B_TO_A)):
            grid = self._one_sided_grid(changed, one)
            if grid:
                kinds.insert(0, Kind.QUANTISED)
                told.append(way)
                words.append(f"{self._named(derived)} is quantised ({grid})")
            else:
                more = self._one_sided_zeros(changed, one)
                if more:
                    kinds.insert(0, Kind.PRUNED)
                    told.append(way)
                    words.append(f"{self._named(derived)} is pruned ({more})")
        words.append(f"related once hidden units are aligned (cosine {alignment.cosine:.3f})")
        answer = self._answer(
            kinds[0],
            tuple(kinds[1:]),
            Certainty.LIKELY,
            "; ".join(words),
            {"aligned_cosine": round(alignment.cosine, 4)},
        )
        return replace(answer, direction=told[0]) if len(told) == 1 else answer

    def _one_sided_grid(self, changed: list[Fact], side: str) -> str | None:
        from weightsearch.relations.measures import find_grid

        on_grid, total = 0, 0
        text = ""
        for fact in changed:
            x, y = self._arrays(fact)
            values, other = (x, y) if side == "a" else (y, x)
            total += values.size
            grid = find_grid(values, fact.precision_a if side == "a" else fact.precision_b)
            if grid is not None and find_grid(other, fact.precision_b if side == "a" else fact.precision_a) is None:
                on_grid, text = on_grid + values.size, str(grid)
        return text if on_grid > 0.5 * total else None

    def _one_sided_zeros(self, changed: list[Fact], side: str) -> str | None:
        total = sum(f.numbers for f in changed)
        after = sum((f.zeros_a if side == "a" else f.zeros_b) * f.numbers for f in changed) / total
        other = sum((f.zeros_b if side == "a" else f.zeros_a) * f.numbers for f in changed) / total
        return f"{other:.0%} zeros to {after:.0%}" if after - other > 0.05 else None

    def _shares(self) -> Comparison:
        parts = self.proof or self.same
        n = sum(fact.numbers for fact in parts)
        total = min(self.signature_a.numbers, self.signature_b.numbers)
        fixed = [fact for fact in self.same if fact.fixed]
        what = "a fixed filter bank" if fixed and not self.proof else f"{len(parts)} weights"
        also = (Kind.INDEPENDENT,) if self._same_shapes() else ()
        summary = f"they share {what} ({names_of(parts)}; {n / total:.0%} of the smaller); the rest shows no relation"
        certainty = Certainty.CERTAIN if parts else Certainty.UNKNOWN
        return self._answer(Kind.SHARES, also, certainty, summary)

    def _apart(self) -> Comparison:
        if self._same_shapes():
            summary = "the same shapes, and no relation found: trained independently, or apart for long"
            return self._answer(Kind.INDEPENDENT, (), Certainty.LIKELY, summary)
        removed = self._units_removed()
        if removed is not None:
            return removed
        return self._answer(Kind.UNRELATED, (), Certainty.LIKELY, "no relation found")

    def _units_removed(self) -> Comparison | None:
        """Whether one's weights are cut from the other's: all values of the smaller are among the larger's."""
        small_first = self.signature_a.numbers < self.signature_b.numbers
        smaller, larger = (self.signature_a, self.signature_b) if small_first else (self.signature_b, self.signature_a)
        from_smaller, from_larger = (self.a, self.b) if small_first else (self.b, self.a)
        small, large = values_of(smaller.weights, from_smaller), values_of(larger.weights, from_larger)
        if len(small) < 64 or len(large) > 50_000_000:
            return None
        contained = float(np.mean(np.isin(small, large)))
        if contained < 0.98 or len(np.unique(large)) < 0.5 * len(large):
            return None
        cut = "a" if small_first else "b"
        way = Direction.B_TO_A if small_first else Direction.A_TO_B
        share = f"{contained:.1%} of its numbers, in smaller tensors"
        summary = f"{self._named(cut)} is cut from the other: {share} (units removed)"
        answer = self._answer(Kind.PRUNED, (), Certainty.VERY_LIKELY, summary, {"share_found": round(contained, 4)})
        return replace(answer, direction=way)


def _units_reordered(fact: Fact) -> bool:
    return fact.state is State.REORDERED and fact.detail != SHUFFLED
