"""What the rules of `weightsearch.relations` say of pairs whose truth is exact: the confusion table.

    python benchmarks/derive.py runs/seed-2 --seed 2 --per-family 6
    python benchmarks/relations.py runs/seed-2

Writes benchmarks/results/relations.json and relations.md. What is judged lies in `parts-*` beside the networks, named
by a hash of the rules: the same command goes on after it was stopped, and other rules judge anew. Results on other sets
are counted in by `--add`. Real files have a benchmark of their own, `relations_real.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import derive
import numpy as np
from derive import Lineage, Tensors

from weightsearch import relations
from weightsearch.relations import Direction, Kind, Signature, compare, sign

FOREIGN_TOGETHER = 250  # pairs of foreign networks in a part
RESULTS = Path(__file__).parent / "results"
FORWARD = Direction.A_TO_B


@dataclass(frozen=True)
class Case:
    kind: str  # the row of the table
    truth: Kind
    a: Tensors
    b: Tensors
    direction: Direction | None = None  # None: there is none to tell
    further: bool = False  # whether b was trained further than a
    where: str = ""


def derived_cases(lineage: Lineage, rng: np.random.Generator) -> Iterator[Case]:
    """Every kind of derivation of one network, with random strengths."""
    spec, states = lineage.spec, lineage.states
    base = states["final"] if rng.random() < 0.7 else states["tuned-hard"]
    groups = derive.hidden_units(spec)
    yield Case("copy", Kind.SAME_WEIGHTS, base, dict(base))
    yield Case("renamed", Kind.SAME_WEIGHTS, base, derive.renamed(base))
    yield Case("layout", Kind.SAME_WEIGHTS, base, derive.transposed(base))
    yield Case("layout, renamed", Kind.SAME_WEIGHTS, base, derive.renamed(derive.transposed(base)))
    half = derive.half_precision(base)
    brain = {name: derive.bfloat16(v) if v.dtype.kind == "f" else v for name, v in base.items()}
    yield Case("precision", Kind.SAME_WEIGHTS, base, half, FORWARD)
    yield Case("precision", Kind.SAME_WEIGHTS, base, brain, FORWARD)
    yield Case("precision, half and bfloat16", Kind.SAME_WEIGHTS, half, brain)
    yield Case("precision, layout, renamed", Kind.SAME_WEIGHTS, base, derive.renamed(derive.transposed(half)), FORWARD)
    if spec.family == "transformer":
        yield Case("split q/k/v", Kind.SAME_WEIGHTS, base, _split(base))
    for name in ("permuted", "permuted, renamed"):
        twin = derive.permuted(base, groups, rng)
        yield Case(name, Kind.SAME_FUNCTION, base, derive.renamed(twin) if "renamed" in name else twin)
    if any(group.scalable for group in groups):
        for name in ("permuted and rescaled", "permuted, rescaled, renamed"):
            twin = derive.permuted(base, groups, rng, rescale=True)
            yield Case(name, Kind.SAME_FUNCTION, base, derive.renamed(twin) if "renamed" in name else twin)
    if spec.family == "lstm":
        yield Case("gates re-ordered", Kind.SAME_FUNCTION, base, derive.with_gates_reordered(base))
    folded = derive.with_batch_norm_folded(spec, base)
    if folded is not None:
        yield Case("batch norm folded", Kind.SAME_FUNCTION, base, folded, FORWARD)
    for bits in (8, 4):
        for scheme in ("tensor", "row", "asymmetric", "group"):
            copy = derive.quantised(base, bits, scheme)
            if scheme == "row" and rng.random() < 0.5:
                copy = derive.half_precision(copy)
            yield Case(f"quantised, {bits} bits, by {scheme}", Kind.QUANTISED, base, copy, FORWARD)
    for scheme in ("magnitude", "global"):
        for share in (float(rng.uniform(0.1, 0.4)), float(rng.uniform(0.5, 0.9))):
            yield Case(f"pruned, {scheme}", Kind.PRUNED, base, derive.pruned(base, share, scheme), FORWARD)
    yield Case("pruned, rows", Kind.PRUNED, base, derive.pruned(base, float(rng.uniform(0.1, 0.5)), "rows"), FORWARD)
    cut = derive.with_units_removed(spec, base, 0.3)
    if any(cut[name].shape != base[name].shape for name in base):
        yield Case("units removed", Kind.PRUNED, base, cut, FORWARD)
    for relative in (1e-3, float(rng.uniform(0.005, 0.05)), 0.1):
        yield Case("noised", Kind.NOISED, base, derive.noised(base, relative, rng), FORWARD)
    for rank in (1, 2, int(rng.integers(3, 5))):
        merged = derive.lora_merged(base, rank, float(rng.uniform(0.02, 0.3)), rng)
        if any((merged[name] != base[name]).any() for name in base):
            yield Case("LoRA merged", Kind.LORA_MERGED, base, merged, FORWARD, True)
    final = states["final"]
    yield Case("new head, tuned", Kind.NEW_HEAD, final, states["head5-tuned"], FORWARD)
    yield Case("new head, frozen body", Kind.NEW_HEAD, final, states["head2-frozen"], FORWARD)
    yield Case("new heads of one body", Kind.NEW_HEAD, states["head5-tuned"], states["head2-frozen"])
    for name in ("tuned-new-data", "tuned-hard", "tuned-other-task", "tuned-frozen"):
        body = [tensor for tensor, value in final.items() if value.ndim > 1 and not tensor.startswith("head")]
        only_head = all(np.array_equal(final[tensor], states[name][tensor]) for tensor in body)
        kind, truth = ("fine-tune of the head", Kind.NEW_HEAD) if only_head else ("fine-tune", Kind.RELATIVE)
        yield Case(kind, truth, final, states[name], FORWARD, True)
    tuned = states["tuned-hard"]
    brain = {name: derive.bfloat16(v) if v.dtype.kind == "f" else v for name, v in tuned.items()}
    half, both_half = derive.half_precision(tuned), "fine-tune, both in half precision"
    yield Case("fine-tune in half precision", Kind.RELATIVE, final, half, None, True)
    yield Case("fine-tune in bfloat16", Kind.RELATIVE, final, brain, None, True)
    yield Case(both_half, Kind.RELATIVE, derive.half_precision(final), half, None, True)
    for one, other in (("epoch1", "epoch3"), ("epoch3", "final"), ("epoch1", "final"), ("epoch6", "final")):
        yield Case("later epoch", Kind.RELATIVE, states[one], states[other], FORWARD, True)
    yield Case("trained from this start", Kind.RELATIVE, states["init"], final, FORWARD, True)
    # of five and of eight epochs; of two at .3 and of three at .5 of the learning rate
    yield Case("same initialisation", Kind.RELATIVE, states["same-init"], final, None, True)
    yield Case("siblings", Kind.RELATIVE, states["tuned-new-data"], states["tuned-other-task"], None, True)
    soup = derive.merged([(0.5, states["tuned-new-data"]), (0.5, states["tuned-hard"])])
    yield Case("soup and its base", Kind.RELATIVE, final, soup, FORWARD, True)
    twin = derive.half_precision(derive.permuted(base, groups, rng))
    yield Case("permuted, half precision", Kind.SAME_FUNCTION, base, twin)
    for name in ("tuned-new-data", "tuned-hard", "epoch6"):
        yield Case("permuted fine-tune", Kind.PERMUTED_RELATIVE, final, derive.permuted(states[name], groups, rng))


def _split(tensors: Tensors) -> Tensors:
    result: Tensors = {}
    for name, value in tensors.items():
        if ".qkv." in name:
            for part, piece in zip("qkv", np.split(value, 3), strict=True):
                result[name.replace("qkv", part)] = piece
        else:
            result[name] = value
    return result


def foreign_cases(lineages: list[Lineage], rng: np.random.Generator, count: int, start: int = 0) -> Iterator[Case]:
    """Networks that have nothing to do with each other: the same architecture from other seeds, and others.

    The former take turns among all pairs, from the one at `start` on.
    """
    by_spec: dict[Any, list[Lineage]] = defaultdict(list)
    for lineage in lineages:
        by_spec[lineage.spec].append(lineage)
    pairs = [pair for group in by_spec.values() for pair in combinations(group, 2)]
    for k in range(start, start + count if pairs else start):
        one, other = pairs[k % len(pairs)]
        a, b = (lineage.states[str(rng.choice(list(lineage.states)))] for lineage in (one, other))
        yield Case("trained apart", Kind.INDEPENDENT, _copy(a, rng), _copy(b, rng), None, False, "foreign")
    for _ in range(count // 4):
        i, j = rng.choice(len(lineages), 2, replace=False)
        if lineages[i].spec == lineages[j].spec:
            continue
        a, b = (lineages[k].states[str(rng.choice(list(lineages[k].states)))] for k in (i, j))
        yield Case("other architecture", Kind.UNRELATED, _copy(a, rng), _copy(b, rng), None, False, "foreign")


def _copy(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    """Mostly as they are; some quantised, pruned or in half precision, as foreign files are, too."""
    chance = rng.random()
    if chance < 0.1:
        return derive.quantised(tensors, 8, "row")
    if chance < 0.2:
        return derive.pruned(tensors, 0.5, "magnitude")
    if chance < 0.3:
        return derive.half_precision(tensors)
    return tensors


def composed_cases(lineages: list[Lineage], rng: np.random.Generator) -> Iterator[Case]:
    """Files that share a component with another, or contain it."""
    for one, other in pairwise(lineages):
        a, b = one.states["final"], other.states["final"]
        both = {f"first.{name}": v for name, v in a.items()} | {f"second.{name}": v for name, v in b.items()}
        yield Case("contains", Kind.CONTAINS, a, both)
        if one.spec == other.spec:
            weights = [name for name, value in a.items() if value.ndim >= 2 and not name.startswith("head")]
            shared = str(rng.choice(weights))
            yield Case("shares a component", Kind.SHARES, a, {**b, shared: a[shared]})
        bank = _fourier(32, 16)
        yield Case("shares a filter bank", Kind.SHARES, {"basis": bank, **a}, {"basis": bank, **b})


def _fourier(width: int, count: int) -> np.ndarray:
    time_ = np.arange(width)
    window = np.hanning(width)
    waves = [f(2 * np.pi * k * time_ / width) * window for k in range(1, count // 2 + 1) for f in (np.cos, np.sin)]
    return np.stack(waves).astype(np.float32)


ACCEPTED = {  # leads that say the same: networks of one architecture may be unrelated to another's
    Kind.INDEPENDENT: {Kind.INDEPENDENT, Kind.UNRELATED, Kind.SHARES},
    Kind.UNRELATED: {Kind.INDEPENDENT, Kind.UNRELATED, Kind.SHARES},
}


class Signatures:
    """Made once for each network, as an index keeps them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensors, Signature]] = {}

    def of(self, tensors: Tensors) -> Signature:
        if id(tensors) not in self._known:
            if len(self._known) > 400:
                self._known.clear()
            self._known[id(tensors)] = tensors, sign(tensors)
        return self._known[id(tensors)][1]


def evaluate(cases: Iterator[Case], rng: np.random.Generator) -> dict[str, Any]:
    """Rows by kind of pair, false claims, and a line for each miss."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    truths: dict[str, Kind] = {}
    right: Counter[str] = Counter()
    named: Counter[str] = Counter()
    directions: dict[str, Counter[str]] = defaultdict(Counter)
    further: dict[str, Counter[str]] = defaultdict(Counter)
    false_claims: list[str] = []
    seconds: dict[str, float] = defaultdict(float)
    numbers: dict[str, int] = defaultdict(int)
    lines = []
    signatures = Signatures()
    for case in cases:
        turned = bool(rng.random() < 0.5)
        a, b = (case.b, case.a) if turned else (case.a, case.b)
        start = time.process_time()
        answer = compare(a, b, signatures.of(a), signatures.of(b))
        seconds[case.kind] += time.process_time() - start
        numbers[case.kind] += sum(v.size for v in a.values())
        table[case.kind][str(answer.relation)] += 1
        truths[case.kind] = case.truth
        fits = answer.relation in ACCEPTED.get(case.truth, {case.truth})
        right[case.kind] += fits
        named[case.kind] += fits or case.truth in answer.also
        told = answer.direction.turned() if turned and answer.direction else answer.direction
        verdict = "untold" if told is None else "right" if told == case.direction else "wrong"
        directions[case.kind][verdict] += 1
        later = answer.evidence.get("trained_further")
        judged = "untold" if later is None else "right" if (later == "b") != turned and case.further else "wrong"
        further[case.kind][judged] += 1
        if case.where == "foreign" and answer.relation.is_related:
            false_claims.append(f"{case.kind}: {answer.summary}")
        if not fits or "wrong" in (verdict, judged):
            lines.append(f"{case.kind} | {case.where} | {answer.relation} {answer.also} | {told} | {answer.summary}")
    result = _result(table, truths, right, named, directions, further, seconds, numbers, false_claims)
    return {**result, "misses": lines}


def _result(
    table: Mapping[str, Counter[str]],
    truths: Mapping[str, Kind],
    right: Mapping[str, int],
    named: Mapping[str, int],
    directions: Mapping[str, Counter[str]],
    further: Mapping[str, Counter[str]],
    seconds: Mapping[str, float],
    numbers: Mapping[str, int],
    false_claims: list[str],
) -> dict[str, Any]:
    rows = {
        kind: {
            "truth": str(truths[kind]),
            "pairs": sum(counts.values()),
            "right": right[kind],
            "named": named[kind],
            "answers": dict(counts.most_common()),
            "directions": dict(directions[kind]),
            "further": dict(further[kind]),
            "ms_per_million_numbers": round(1e9 * seconds[kind] / numbers[kind], 1),
        }
        for kind, counts in table.items()
    }
    return {"rows": rows, "false_claims": false_claims}


Cases = Callable[[np.random.Generator], Iterator[Case]]


def parts_of(lineages: dict[str, Lineage], rounds: int, foreign: int) -> Iterator[tuple[str, Cases]]:
    """The evaluation in parts with names of their own: each network's derivations, composed and foreign pairs."""
    networks = list(lineages.values())
    for name, lineage in lineages.items():
        yield name, partial(different_cases, lineage, rounds=rounds)
    if rounds:
        yield "composed", partial(composed_cases, networks)
    for start in range(0, foreign, FOREIGN_TOGETHER):
        count = min(FOREIGN_TOGETHER, foreign - start)
        yield f"foreign{start}", partial(foreign_cases, networks, count=count, start=start)


def different_cases(lineage: Lineage, rng: np.random.Generator, *, rounds: int) -> Iterator[Case]:
    """A network's derivations by several rounds of strengths; what no strength changes counts once."""
    seen = set()
    for _ in range(rounds):
        for case in derived_cases(lineage, rng):
            content = hashlib.sha256(case.kind.encode())
            for tensors in (case.a, case.b):
                for name, value in tensors.items():
                    content.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
            if content.digest() not in seen:
                seen.add(content.digest())
                yield replace(case, where=f"{lineage.spec.family} {lineage.spec.activation} {lineage.seed}")


def rules(names: list[str]) -> str:
    """Names what judges: the code of relations, and of this evaluation; and what is judged."""
    files = [*sorted(Path(relations.__file__).parent.glob("*.py")), Path(__file__), Path(derive.__file__)]
    content = [json.dumps(names).encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"".join(content)).hexdigest()[:12]


def combined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two parts of one evaluation, counted together."""
    rows = dict(one["rows"])
    for kind, row in other["rows"].items():
        if kind not in rows:
            rows[kind] = row
            continue
        mine = rows[kind]
        pairs = mine["pairs"] + row["pairs"]
        time_ = "ms_per_million_numbers"
        rows[kind] = {
            "truth": row["truth"],
            **{name: mine[name] + row[name] for name in ("pairs", "right", "named")},
            **{name: dict(Counter(mine[name]) + Counter(row[name])) for name in ("answers", "directions", "further")},
            time_: round((mine[time_] * mine["pairs"] + row[time_] * row["pairs"]) / pairs, 1),
        }
    return {
        "rows": rows,
        "false_claims": one["false_claims"] + other["false_claims"],
        "misses": one["misses"] + other["misses"],
        "networks": sorted({*one["networks"], *other["networks"]}),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "| pairs of | n | right | also named | direction right / wrong / untold "
        "| trained further right / wrong / untold | answers otherwise |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, row in result["rows"].items():
        other = {name: n for name, n in row["answers"].items() if name != row["truth"]}
        told = " | ".join(
            " / ".join(str(row[column].get(verdict, 0)) for verdict in ("right", "wrong", "untold"))
            for column in ("directions", "further")
        )
        lines.append(
            f"| {kind} | {row['pairs']} | {row['right'] / row['pairs']:.1%} | {row['named'] / row['pairs']:.1%} | "
            f"{told} | {', '.join(f'{name} {n}' for name, n in other.items())} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--foreign", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=7, help="of strengths and of pairs' choice")
    parser.add_argument("--out", type=Path, default=RESULTS / "relations.json")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="results on other sets, to be counted in")
    options = parser.parse_args()
    paths = [path for path in sorted(options.networks.glob("*.npz")) if ".tmp" not in path.name]
    lineages = {path.stem: derive.load(path) for path in paths}
    names = [f"{options.networks.name}: {name}" for name in lineages]
    folder = options.networks / f"parts-{rules(names)}-{options.seed}"
    folder.mkdir(exist_ok=True)
    result: dict[str, Any] = {"rows": {}, "false_claims": [], "misses": [], "networks": names}
    for name, cases in parts_of(lineages, options.rounds, options.foreign):
        path = folder / f"{name}.json"
        if not path.exists():
            rng = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(evaluate(cases(rng), rng)))
            temporary.rename(path)
            print(path, flush=True)
        result = combined(result, {**json.loads(path.read_text()), "networks": names})
    for path in options.add:
        result = combined(result, json.loads(path.read_text()))
    options.out.write_text(json.dumps(result, indent=1))
    options.out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))
    print(len(result["false_claims"]), "false claims")


if __name__ == "__main__":
    main()
