"""The tables of the page on relations, from its benchmarks' results; `documentation.py` puts them into the page."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def relations() -> str:
    """The confusion table of benchmarks/results/relations.json."""
    result = json.loads((RESULTS / "relations.json").read_text())
    lines = [
        "| pairs | n | right | direction told: right, wrong | trained further told: right, wrong | otherwise |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for kind, row in result["rows"].items():
        told = (row[column] for column in ("directions", "further"))
        counts = [(one.get("right", 0), one.get("wrong", 0)) for one in told]
        way = " | ".join(f"{right}, {wrong}" if right or wrong else "" for right, wrong in counts)
        accepted = {row["truth"]} | ({"independent", "unrelated"} if "apart" in kind or "other" in kind else set())
        others = ", ".join(f"{name} {n}" for name, n in row["answers"].items() if name not in accepted)
        lines.append(f"| {kind} | {row['pairs']:,} | {row['right'] / row['pairs']:.1%} | {way} | {others} |")
    foreign = sum(row["pairs"] for row in result["rows"].values() if row["truth"] in ("independent", "unrelated"))
    derived = sum(row["pairs"] for row in result["rows"].values()) - foreign
    wrong, told = (
        sum(sum(row["directions"].get(verdict, 0) for verdict in verdicts) for row in result["rows"].values())
        for verdicts in (("wrong",), ("right", "wrong"))
    )
    lines += [
        "",
        f"{derived:,} related pairs, {foreign:,} unrelated ones; {len(result['false_claims'])} false claims of a "
        f"relation among the latter. Directions told: {told:,}, wrong: {wrong}.",
    ]
    return "\n".join(lines)


def relations_cost() -> str:
    """benchmarks/results/relations_cost.json, in seconds but for the one ratio."""
    result = json.loads((RESULTS / "relations_cost.json").read_text())
    rows = [f"| {name} | {value:.2f} |" for name, value in result.items() if name != "numbers"]
    return "\n".join(["| | seconds, or times |", "|---|---:|", *rows])


def relations_told() -> str:
    """What is told of pairs beside the confusion table, from benchmarks/results/relations_limits.json."""
    told = json.loads((RESULTS / "relations_limits.json").read_text())["told"]
    lines = ["| asked | n | told |", "|---|---:|---|"]
    for asked, answers in sorted(told.items()):
        counts = ", ".join(f"{answer} {count}" for answer, count in answers.items())
        lines.append(f"| {asked.removeprefix('merge: ')} | {sum(answers.values())} | {counts} |")
    return "\n".join(lines)


def relations_large() -> str:
    """Large networks of random numbers, from benchmarks/results/relations_limits.json."""
    rows = json.loads((RESULTS / "relations_limits.json").read_text())["large"]
    lines = ["| numbers | pair | told | score | seconds to sign | to compare |", "|---:|---|---|---:|---:|---:|"]
    for row in rows:
        score = "" if row["score"] is None else f"{row['score']:.0f}"
        lines.append(
            f"| {row['numbers']:,} | {row['pair']} | {row['told']} | {score} | {row['sign_seconds']:.2f} | "
            f"{row['compare_seconds']:.2f} |"
        )
    return "\n".join(lines)


def relations_memory() -> str:
    """Commands on networks of 100 and 500 million numbers, from benchmarks/results/relations_large.json."""
    rows = json.loads((RESULTS / "relations_large.json").read_text())
    titles = "numbers | file | command | told | seconds of a core | by the clock | memory of its own"
    lines = [f"| {titles} |", "|---:|---:|---|---|---:|---:|---:|"]
    for row in rows:
        file, memory = f"{row['file_mb'] / 1e3:.1f} GB", f"{row['memory_mb'] / 1e3:.2f} GB"
        lines.append(
            f"| {row['numbers']:,} | {file} | {row['command']} | {row['told']} | {row['seconds']:.1f} "
            f"| {row['clock']:.1f} | {memory} |"
        )
    return "\n".join(lines)


def relations_many() -> str:
    """Commands on very many signatures, from benchmarks/results/relations_many.json."""
    rows = json.loads((RESULTS / "relations_many.json").read_text())
    lines = ["| signatures | command | told | seconds | memory of its own |", "|---:|---|---|---:|---:|"]
    for row in rows:
        told = f"{row['told']:,} {'groups' if row['command'] == 'duplicates' else 'edges'}"
        memory = f"{row['memory_mb'] / 1e3:.2f} GB"
        lines.append(f"| {row['signatures']:,} | {row['command']} | {told} | {row['seconds']:.0f} | {memory} |")
    return "\n".join(lines)


def relations_search() -> str:
    """Recall of the sketches, from benchmarks/results/relations_limits.json."""
    result = json.loads((RESULTS / "relations_limits.json").read_text())["search"]
    by_recall: dict[float, list[str]] = {}
    for kind, recall in result["recall_at_10"].items():
        by_recall.setdefault(recall, []).append(kind)
    lines = [f"| recall@10 among {result['networks']} networks | of |", "|---:|---|"]
    lines += [f"| {recall:.2f} | {', '.join(kinds)} |" for recall, kinds in sorted(by_recall.items(), reverse=True)]
    share = f"{result['foreign_under_like']:.1%} of {result['foreign_pairs']:,} foreign pairs"
    return "\n".join([*lines, "", f"{share} have a cosine under the threshold from which pairs are compared."])


def relations_packs() -> str:
    """What packs save, from benchmarks/results/relations_packs.json."""
    result = json.loads((RESULTS / "relations_packs.json").read_text())
    lines = [
        "| left of the bytes | files | zstd alone | float16 | pack | pack --lossy 8 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    costs = []
    for name, row in result.items():
        if name == "tidy":
            continue
        columns = ("zstd", "float16", "pack", "pack --lossy 8")
        shares = " | ".join(f"{row[column]:.0%}" if column in row else "" for column in columns)
        lines.append(f"| {name} ({row['bytes'] / 1e6:.1f} MB) | {row['files']} | {shares} |")
        if "rounding" in row:
            changes = ", ".join(
                f"{bits} {change['mean_change']:+.4f} on average and {change['worst_change']:+.4f} at worst"
                for bits, change in row["rounding"].items() if isinstance(change, dict)
            )  # fmt: skip
            costs.append(f"{name.split(',')[0]}, measured accuracy {row['rounding']['accuracy']:.3f}: {changes}.")
    return "\n".join([*lines, "", *costs])


def relations_tidy() -> str:
    """The plan for a folder of real files, from benchmarks/results/relations_packs.json."""
    plan = json.loads((RESULTS / "relations_packs.json").read_text())["tidy"]
    lines = ["| could go | MB | its weights stay in | lost |", "|---|---:|---|---|"]
    lines += [f"| {path} | {size / 1e6:.2f} | {keep} | {lost} |" for size, path, keep, lost in plan["removals"]]
    free = f"{len(plan['removals'])} of {plan['files']} files could go: {plan['freed'] / 1e6:.1f} of"
    return "\n".join([*lines, "", f"{free} {plan['bytes'] / 1e6:.1f} MB."])


BLOCKS = {
    "relations": relations,
    "relations-cost": relations_cost,
    "relations-told": relations_told,
    "relations-large": relations_large,
    "relations-memory": relations_memory,
    "relations-many": relations_many,
    "relations-search": relations_search,
    "relations-packs": relations_packs,
    "relations-tidy": relations_tidy,
}
