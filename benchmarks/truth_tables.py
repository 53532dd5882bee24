"""The documentation's tables of how true answers are, from benchmarks/results; `documentation.py` writes them."""

from __future__ import annotations

import json
from pathlib import Path

from evaluate import BARS, cleared

from weightsearch.evaluation.scores import THIRDS

RESULTS = Path(__file__).parent / "results"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def tables() -> str:
    """Test R² of each zoo of benchmarks/results/tables-*/tables.json: mean and deviation over seeds, by protocol."""
    parts = []
    for path in sorted(RESULTS.glob("tables-*/tables.json")):
        content = json.loads(path.read_text())
        settings = content["settings"]
        for zoo in content["zoos"]:
            protocols = list(zoo["tables"])
            head = " | ".join(
                f"R², split by {protocol}".replace("by per-run-1", "by run, one each") for protocol in protocols
            )
            lines = [
                f"{zoo['preset']} on {zoo['dataset']}, {zoo['runs']} runs, {zoo['checkpoints']:,} checkpoints: "
                f"{count(settings['seeds'], 'seed')}, at most {settings['epochs']} epochs "
                f"([all figures](benchmarks/results/{path.parent.name}/tables.md)):",
                "",
                f"| method | trials | parameters | {head} | published R² |",
                "|---|---:|---:|" + "---:|" * (len(protocols) + 1),
            ]
            by_method = {protocol: {row["method"]: row for row in rows} for protocol, rows in zoo["tables"].items()}
            for row in zoo["tables"][protocols[0]]:
                scores = [by_method[protocol][row["method"]]["test_r2"] for protocol in protocols]
                texts = [f"{score['mean']:.3f}" for score in scores]
                if settings["seeds"] > 1:
                    texts = [f"{text} ± {score['deviation']:.3f}" for text, score in zip(texts, scores, strict=True)]
                given = f"{row['published']['test_r2']:.3f}" if row["published"] else ""
                lines.append(
                    f"| `{row['method']}` | {row['trials']} | {row['parameters']:,} | {' | '.join(texts)} | {given} |"
                )
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def accuracy() -> str:
    result = json.loads((RESULTS / "zoo_accuracy.json").read_text())
    return (
        f"over {result['recipes']} recipes of `v1` on USPS ({result['epochs']} epochs), population minus one-at-a-time "
        f"training is {result['mean_difference']:+.4f} ± {result['standard_error']:.4f} in mean test accuracy "
        f"(paired t-test: p = {result['paired_t_test_p']:.2f})."
    )


def zoos() -> str:
    result = json.loads((RESULTS / "zoos.json").read_text())
    rows = ["| zoo | runs | failed | checkpoints | test accuracy at the last epoch: quartiles | built in |"]
    rows.append("|---|---|---|---|---|---|")
    for zoo in result:
        quartiles = " / ".join(f"{value:.3f}" for value in zoo["quartiles"][1:4])
        rows.append(
            f"| {zoo['name']} | {zoo['runs']} | {zoo['failed']} | {zoo['checkpoints']:,} | {quartiles} "
            f"| {zoo['seconds'] / 60:.1f} min |"
        )
    return "\n".join(rows)


def evaluation() -> str:
    """The main metrics of benchmarks/results/evaluation*/evaluation.json, a table a zoo: means over seeds."""
    columns = {
        "prediction.r2": "R²",
        "prediction.tau": "tau",
        "precision@10.good": "good @10",
        "precision@10.bad": "bad @10",
        "neighbours.r2": "neighbours' R²",
        "twin.recall": "twins",
        "rescaled.recall": "twins, rescaled",
        "noise.shift": "noise",
        "interval.coverage": "90 % interval",
    }
    parts = []
    for zoo, (values, sources) in evaluated().items():
        links = "; ".join(
            f"{count(seeds, 'seed')} ([all figures](benchmarks/results/{name}/evaluation.md))"
            for name, seeds in sources.items()
        )
        lines = [f"{zoo}, {links}:", ""]
        lines += [f"| method | {' | '.join(columns.values())} | in thirds |", "|---|" + "---:|" * (len(columns) + 1)]
        for method in dict.fromkeys(method for method, metric in values if metric in columns):
            cells = [f"{values[method, m]:.3f}" if (method, m) in values else "–" for m in columns]
            thirds = [values.get((method, f"interval.coverage@{third}")) for third in THIRDS]
            cells.append(
                ", ".join("–" if value is None else f"{value:.2f}" for value in thirds) if any(thirds) else "–"
            )
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def bars() -> str:
    """What `invariant` has to reach on zoos of 350 training runs or more, and where it does; see evaluate.py."""
    columns = []
    for zoo, name in LARGE.items():
        rows = json.loads((RESULTS / name / "evaluation.json").read_text())["rows"]
        columns.append(
            {
                (row["metric"], row["against"]): row
                for row in rows
                if (row["zoo"], row["method"], row["seed"], row["on"]) == (zoo, "invariant", None, None)
            }
        )
    lines = [f"| `invariant` | bar | {' | '.join(LARGE)} |", f"|---|---|{'---|' * len(LARGE)}"]
    for metric, against, kind, bar in BARS:
        cells = []
        for column in columns:
            row = column[metric, against]
            ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
            number = f"{row['value']:.0e}" if 0 < row["value"] < 1e-3 else f"{row['value']:.3f}"
            cells.append(f"{number}{ends}{'' if cleared(row, kind, bar) else ', **missed**'}")
        title = f"{metric}, minus that of `{against}`" if against else metric
        wanted = "surely above 0" if kind == "low above" else f"{kind} {bar:g}"
        lines.append(f"| {title} | {wanted} | {' | '.join(cells)} |")
    return "\n".join(lines)


PATCHES = "invariant, patches"
LARGE = {
    **{zoo: f"evaluation-{zoo}" for zoo in ("usps-v1-large", "usps-v2-large")},
    "svhn-part-v1": "again-svhn-part-v1",
}
WITH_PATCHES = {"evaluation", "evaluation-svhn-part-v1", "evaluation-v2"}  # what `invariant` probed with then


def evaluated() -> dict[str, tuple[dict[tuple[str, str], float], dict[str, int]]]:
    """Of each zoo: means over seeds by method and metric, and the seeds of each directory that they are from.

    Directories `evaluation*`, the oldest of them with patches in `invariant`; `again-*` measure some methods anew.
    """
    zoos: dict[str, tuple[dict[tuple[str, str], float], dict[str, int]]] = {}
    first, again = (sorted(RESULTS.glob(f"{kind}*/evaluation.json")) for kind in ("evaluation", "again-"))
    for path in [*first, *again]:
        content = json.loads(path.read_text())
        rows = [row for row in content["rows"] if row["seed"] is row["on"] is row["against"] is None]
        for zoo in dict.fromkeys(row["zoo"] for row in rows):
            values, sources = zoos.setdefault(zoo, ({}, {}))
            sources[path.parent.name] = content["settings"]["seeds"]
            names = {"invariant": PATCHES} if path.parent.name in WITH_PATCHES else {}
            values |= {
                (names.get(row["method"], row["method"]), row["metric"]): row["value"]
                for row in rows
                if row["zoo"] == zoo
            }
    return zoos


def peers() -> str:
    """benchmarks/results/peers.json: means over the seeds that were run."""
    results = json.loads((RESULTS / "peers.json").read_text())
    lines = [
        "| zoo | method | seeds | R² | tau | parameters | CPU seconds an epoch |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for zoo, method in sorted({(one["zoo"], one["method"]) for one in results}):
        own = [one for one in results if (one["zoo"], one["method"]) == (zoo, method)]
        r2, tau, seconds = (sum(o[key] for o in own) / len(own) for key in ("r2", "tau", "seconds_per_epoch"))
        lines.append(
            f"| {zoo} | `{method}` | {len(own)} | {r2:.3f} | {tau:.3f} | {own[0]['parameters']:,} | {seconds:.2g} |"
        )
    return "\n".join(lines)


def how_true() -> str:
    """What benchmarks/results/evaluation*/evaluation.json says in a line a zoo, beside the strongest baseline."""
    columns = {
        "R² `invariant`": ("invariant", "prediction.r2"),
        "R² trees on statistics": ("statistics-trees", "prediction.r2"),
        "R² the paper's best": ("comvex-conv", "prediction.r2"),
        "good @10": ("invariant", "precision@10.good"),
        "90 % interval": ("invariant", "interval.coverage"),
    }
    lines = [f"| zoo | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for zoo, (values, _) in evaluated().items():
        cells = []
        for method, metric in columns.values():
            if (method, metric) in values:
                cells.append(f"{values[method, metric]:.3f}")
            else:
                patches = method == "invariant" and values.get((PATCHES, metric))
                cells.append(f"{patches:.3f} (patches)" if patches else "–")
        lines.append(f"| {zoo} | {' | '.join(cells)} |")
    return "\n".join(lines)


def novelty() -> str:
    """Which broken networks are said to be unlike everything known, of each zoo."""
    result = json.loads((RESULTS / "novelty.json").read_text())
    lines = [f"| said to be unlike everything known | {' | '.join(result)} |", f"|---|{'---:|' * len(result)}"]
    for kind in next(iter(result.values())):
        name = "new networks as they are" if kind.startswith("none") else kind
        lines.append(f"| {name} | {' | '.join(f'{zoo[kind]:.0%}' for zoo in result.values())} |")
    return "\n".join(lines)


def any_architecture() -> str:
    """What benchmarks/results/universal.json says of the encoder of all architectures."""
    results = json.loads((RESULTS / "universal.json").read_text())
    seeds = [value for name, value in results.items() if name.startswith("by run")]
    zoo = results["zoo"]

    def mean(*path: str) -> float:
        values = []
        for value in seeds:
            for name in path:
                value = value[name]
            values.append(value)
        return sum(values) / len(values)

    held = f"{zoo['runs']:,} runs, {zoo['architectures']:,} architectures"
    lines = [
        f"| on held-out runs of the wild zoo ({held}; {count(len(seeds), 'seed')}) | R² | tau | recipe trees R² / tau |"
    ]
    lines.append("|---|---:|---:|---:|")
    for group in seeds[0]["predicted"]:
        if not all(group in seed["predicted"] for seed in seeds):
            continue
        r2, tau, *trees = (mean(of, group, key) for of in ("predicted", "recipe trees") for key in ("r2", "tau"))
        lines.append(f"| {group} | {r2:.2f} | {tau:.2f} | {trees[0]:.2f} / {trees[1]:.2f} |")
    lines.append(
        f"| mean of the ten nearest, one a run | {mean('ten nearest', 'r2'):.2f} | {mean('ten nearest', 'tau'):.2f} | |"
    )
    good, bad = (mean("ten nearest", f"precision_{name}") for name in ("good", "bad"))
    lines += [
        "",
        f"Of the ten nearest of a good network {good:.0%} are good, of a bad one's {bad:.0%} bad (quartiles).",
        "",
    ]
    lines += ["| fitted without | asked about it, no label: R² | tau | flagged as unknown |", "|---|---:|---:|---:|"]
    for name, value in results.items():
        if name.startswith("without "):
            left_out = name.removeprefix("without ")
            lines.append(f"| {left_out} | {value['r2']:.2f} | {value['tau']:.2f} | {value['flagged']:.0%} |")
    if kinds := results.get("fitted on one kind"):
        lines += ["", "| fitted on one kind alone, asked about another, no label | R² | tau |", "|---|---:|---:|"]
        lines += [
            f"| {name.replace('->', '→')} | {value['r2']:.2f} | {value['tau']:.2f} |" for name, value in kinds.items()
        ]
    lines += [
        "",
        "Sweeps that other frameworks trained; with labels, R² on the other runs in the median of ten draws:",
        "",
    ]
    titles = "sweep | runs | flagged | no label: R² | tau | the epoch's tau | labelled runs | calibrated | mean"
    lines += [f"| {titles} | recipe forest |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, value in results.items():
        if name.startswith("sweep "):
            plain = value["no label"]
            cells = [name.removeprefix("sweep "), value["runs"], f"{value['flagged']:.0%}", f"{plain['r2']:.2f}"]
            cells += [f"{plain['tau']:.2f}", f"{value['epoch alone, tau']:.2f}"]
            few = {key.split()[0]: each for key, each in value.items() if key.endswith("labelled runs")}
            for labels, each in few.items() or [("–", {})]:
                scored = [f"{each[of]:.2f}" if each else "–" for of in ("calibrated", "mean", "recipe")]
                lines.append(f"| {' | '.join(map(str, [*cells, labels, *scored]))} |")
                cells = [""] * len(cells)
    damage = {kind: mean("damage", "all", kind) for kind in seeds[0]["damage"]["all"]}
    learned = {kind: mean("damage", "learned", kind) for kind in damage}
    lines += ["", f"Damage that is noticed, at {mean('damage', 'false alarms'):.0%} false alarms:", ""]
    lines += [f"| | {' | '.join(damage)} |", f"|---|{'---:|' * len(damage)}"]
    for title, shares in (("all networks", damage), ("those a third of the way from a guess to perfection", learned)):
        lines.append(f"| {title} | {' | '.join(f'{share:.0%}' for share in shares.values())} |")
    if curve := results.get("learning curve"):
        counts, scored = ", ".join(curve), ", ".join(f"{value['r2']:.2f}" for value in curve.values())
        lines += ["", f"One member fitted on {counts} runs: R² {scored}."]
    return "\n".join(lines)


def universal_limits() -> str:
    """What benchmarks/results/universal_limits.json says of what a state dict leaves out."""
    results = json.loads((RESULTS / "universal_limits.json").read_text())
    lines = [f"| boosted trees on ({results['runs']:,} runs, five folds by run) | R² | tau |", "|---|---:|---:|"]
    for name, value in results.items():
        if isinstance(value, dict):
            lines.append(f"| {name} | {value['r2']:.2f} | {value['tau']:.2f} |")
    return "\n".join(lines)


def few_labels() -> str:
    """What benchmarks/results/few_labels.json says of the shipped encoder on sweeps with a few labelled runs."""
    results = json.loads((RESULTS / "few_labels.json").read_text())
    lines = [
        "| sweep | shapes | flagged | no label: R² / tau | 3 labelled runs | 5 | 10 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    margins = []
    for name, value in results.items():
        plain = value["no label"]
        cells = [name.replace("-", " "), value["architectures"], f"{value['flagged']:.0%}"]
        cells.append(f"{plain['r2']:.2f} / {plain['tau']:.2f}")
        for labels in (3, 5, 10):
            each = value[f"{labels} labelled runs"]
            cells.append(f"**{each['calibrated']:.2f}** {each['mean']:.2f} {each['recipe']:.2f}")
            margins.append(each["calibrated"] - max(each["mean"], each["recipe"]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    least, middle = min(margins), sum(margins) / len(margins)
    above = f"Least above the better of mean and recipe forest: {least:+.2f}; in the mean {middle:+.2f}."
    return "\n".join([*lines, "", above])


def shift() -> str:
    """Means over seeds; of coverage the least and the most, too."""
    result = json.loads((RESULTS / "shift.json").read_text())
    lines = [
        "| trained with | R² | tau | too high by | 90 % interval holds | its width | one for all holds | its width |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["trainers"].items():
        cells = [name, f"{row['r2']:.3f}", f"{row['tau']:.3f}", f"{row['bias']:+.3f}"]
        for suffix in ("", "_of_one_width"):
            least, most = (end(row[f"coverages{suffix}"]) for end in (min, max))
            cells += [f"{row[f'coverage{suffix}']:.0%} ({least:.0%} to {most:.0%})", f"{row[f'width{suffix}']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
