"""What relations tell beyond the confusion table, and where they abstain: merges, adapters, distillation, large files.

    python benchmarks/derive.py runs/derived-held-out --seed 2 --per-family 6
    python benchmarks/relations_limits.py runs/derived-held-out

Writes benchmarks/results/relations_limits.json. The networks are those of the confusion table; the large ones are
random numbers, since training them is out of reach here: they show sizes, not training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import derive
import numpy as np
import small_networks
import torch
from small_networks import Lineage, Tensors
from torch.nn import functional

from weightsearch.relations import compare, sign
from weightsearch.relations.adapters import RELATED, Agreement, agreement, weights_for
from weightsearch.relations.merges import find_merge, find_task_merge
from weightsearch.relations.search import LIKE

RESULT = Path(__file__).parent / "results" / "relations_limits.json"
Row = tuple[str, str]  # what was asked, what was told


def merges(lineage: Lineage, rng: np.random.Generator) -> Iterator[Row]:
    """Merges of two fine-tunes of one base: whether both parents are named; and what is no merge."""
    states = lineage.states
    base, one, other = states["final"], states["tuned-new-data"], states["tuned-other-task"]
    share = float(rng.uniform(0.2, 0.8))
    linear = derive.merged([(share, one), (1 - share, other)])
    children = {
        "linear": linear,
        "linear, half precision": derive.half_precision(linear),
        "task arithmetic": derive.merged([(share, one), (0.9 - share, other), (0.1, base)]),
        "SLERP": derive.slerp(one, other, share),
        "TIES": derive.ties(base, [one, other], float(rng.uniform(0.1, 0.4))),
        "DARE": derive.dare(base, [one, other], float(rng.uniform(0.3, 0.9)), rng),
        "no merge: a fine-tune": states["tuned-hard"],
        "no merge: an epoch between": states["epoch6"],
        "no merge: merge with noise": derive.noised(linear, 0.01, rng),
    }
    for kind, child in children.items():
        signature = sign(child)
        parents = [base, one, other] if kind == "task arithmetic" else [one, other]
        merge = find_merge(child, parents, signature)
        sparse = find_task_merge(child, base, (one, other), signature)
        told = "merge, linear" if merge and merge.how == "linear" else "merge, by tensor" if merge else None
        yield f"merge: {kind}", told or ("merge of sparse changes" if sparse else "no merge")
        if kind in ("TIES", "DARE"):
            yield f"{kind} and its base", str(compare(base, child).relation)


def adapters(lineages: list[Lineage]) -> Iterator[Row]:
    """Trained LoRA adapters against their own network and against others of the same architecture."""
    own = lineages[0]
    factors = small_networks.trained_adapter(own.spec, own.states["final"], rank=4, epochs=3, seed=own.seed)
    changes = {f"{name}.lora_delta": np.tensordot(b.reshape(len(b), -1), a, 1) for name, (a, b) in factors.items()}
    signature = sign(changes)
    for k, lineage in enumerate(lineages):
        names = weights_for(signature, sign(lineage.states["final"]))
        told: Agreement | None = None if names is None else agreement(changes, lineage.states["final"], names)
        kind = "adapter and its base" if k == 0 else "adapter and another network of its architecture"
        yield kind, "its base" if told is not None and told.score >= RELATED else "not told"


def distilled(lineage: Lineage) -> Iterator[Row]:
    """A student of another initialisation, trained on the teacher's logits."""
    teacher = small_networks.FAMILIES[lineage.spec.family](lineage.spec)
    teacher.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in lineage.states["final"].items()})
    torch.manual_seed(lineage.seed + 99)
    student = small_networks.FAMILIES[lineage.spec.family](lineage.spec)
    images = torch.from_numpy(small_networks.digits()[0])
    with torch.no_grad():
        targets = teacher.eval()(images).softmax(1)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for _ in range(3):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(student(images[batch]), targets[batch]).backward()
            optimizer.step()
    yield "distilled", str(compare(lineage.states["final"], small_networks.tensors_of(student)).relation)


def large(numbers: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Pairs of `numbers` random numbers in square matrices of up to 4,096: what is told, and processor seconds."""
    width = 4_096 if numbers >= 5e7 else 1_024
    count = max(2, round(numbers / width**2))

    def network(seed: int) -> Tensors:
        own = np.random.default_rng(seed)
        return {f"layers.{k}.weight": own.standard_normal((width, width), np.float32) for k in range(count)}

    base = network(1)
    base_signature = sign(base)

    def like(cosine: float) -> Tensors:
        other = network(2)
        for name, value in other.items():
            value *= np.float32((1 - cosine**2) ** 0.5)
            value += np.float32(cosine) * base[name]
        return other

    def low_rank() -> Tensors:
        pairs = {n: rng.standard_normal((2, width, 8), np.float32) for n in base}
        return {n: v + np.float32(0.01) * (pairs[n][0] @ pairs[n][1].T) for n, v in base.items()}

    kinds = {
        "apart": lambda: network(2), "cosine .05": lambda: like(0.05), "cosine .9": lambda: like(0.9),
        "half precision": lambda: {n: v.astype(np.float16) for n, v in base.items()}, "LoRA merged": low_rank,
        "quantised, 8 bits by row": lambda: derive.quantised(base, 8, "row"),
        "pruned": lambda: {n: np.where(np.abs(v) < 0.5, np.float32(0), v) for n, v in base.items()},
    }  # fmt: skip
    for kind, make in kinds.items():
        other = make()
        start = time.process_time()
        signature = sign(other)
        signed = time.process_time()
        answer = compare(base, other, base_signature, signature)
        yield {
            "numbers": count * width**2, "pair": kind, "told": str(answer.relation),
            "score": answer.evidence.get("score"), "sign_seconds": round(signed - start, 2),
            "compare_seconds": round(time.process_time() - signed, 2),
        }  # fmt: skip


def recall(lineages: list[Lineage], rng: np.random.Generator) -> dict[str, Any]:
    """Whether a derivation's sketch finds its own `final` among all lineages' within the first ten."""
    finals = np.stack([sign(lineage.states["final"]).sketch for lineage in lineages])
    hits: dict[str, list[bool]] = defaultdict(list)
    foreign: list[float] = []
    for row, lineage in enumerate(lineages):
        base, states = lineage.states["final"], lineage.states
        queries = {
            **{f"fine-tune ({n.removeprefix('tuned-')})": states[n] for n in states if n.startswith("tuned-")},
            **{n: states[n] for n in ("epoch1", "epoch3", "epoch6", "same-init", "init", "head5-tuned")},
            "half precision": derive.half_precision(base),
            "quantised, 4 bits": derive.quantised(base, 4, "row"), "pruned, 80 %": derive.pruned(base, 0.8, "global"),
            "LoRA merged": derive.lora_merged(base, 2, 0.2, rng), "layout": derive.transposed(base),
            "merge with a stranger": _half_of_a_stranger(lineages, row),
            "permuted": derive.permuted(base, derive.hidden_units(lineage.spec), rng),
        }  # fmt: skip
        for kind, tensors in queries.items():
            if tensors is None:
                continue
            cosine = finals @ sign(tensors).sketch
            hits[kind].append(bool(row in np.argsort(-cosine)[:10]))
            if kind == "epoch6":
                foreign += np.delete(cosine, row).tolist()
    return {
        "networks": len(lineages),
        "recall_at_10": {kind: round(float(np.mean(own)), 4) for kind, own in hits.items()},
        "foreign_under_like": round(float(np.mean(np.array(foreign) < LIKE)), 4),
        "foreign_pairs": len(foreign),
    }


def _half_of_a_stranger(lineages: list[Lineage], row: int) -> Tensors | None:
    for k, other in enumerate(lineages):
        if k != row and other.spec == lineages[row].spec:
            return derive.merged([(0.5, lineages[row].states["final"]), (0.5, other.states["final"])])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path)
    parser.add_argument("--numbers", type=float, nargs="*", default=[1e7, 1e8], help="of the large networks")
    parser.add_argument("--only", nargs="*", default=["recall", "merges", "adapters", "distilled", "large"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(3)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    paths = [path for path in sorted(options.networks.glob("*.npz")) if ".tmp" not in path.name]
    lineages = [derive.load(path) for path in paths] if {*options.only} != {"large"} else []

    def keep() -> None:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")

    if "recall" in options.only:
        result["search"] = recall(lineages, rng)
        keep()
    by_spec: dict[Any, list[Lineage]] = defaultdict(list)
    for lineage in lineages:
        by_spec[lineage.spec].append(lineage)
    stages: dict[str, Callable[[], Iterator[Row]]] = {
        "merges": lambda: (row for lineage in lineages for row in merges(lineage, rng)),
        "adapters": lambda: (row for g in by_spec.values() if g[0].spec.family != "lstm" for row in adapters(g)),
        "distilled": lambda: (row for group in by_spec.values() for row in distilled(group[0])),
    }
    for stage in stages.keys() & {*options.only}:
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for asked, told in stages[stage]():
            table[asked][told] += 1
        result.setdefault("told", {}).update({asked: dict(told.most_common()) for asked, told in table.items()})
        keep()
    if "large" in options.only:
        result["large"] = []
        for numbers in options.numbers:
            for row in large(int(numbers), rng):
                print(row, flush=True)
                result["large"].append(row)
                keep()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
