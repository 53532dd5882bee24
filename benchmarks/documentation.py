"""Writes the documentation's generated blocks, between `<!-- name -->` and `<!-- /name -->`, from committed results.

python benchmarks/documentation.py           # rewrite README.md and docs/*.md
python benchmarks/documentation.py --check   # end with 1 where one is out of date

A block of your own: a function that gives Markdown, its name in BLOCKS, and the two comments in a page. Links in a
block are written as from the project's root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests load this file by its path

import relations_tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def query() -> str:
    """The answer of the committed index for its best example, as a terminal of 80 columns shows it in the root."""
    from weightsearch import query as run

    return f"```\n{run('index', 'index/examples/very-good.pt', k=10)}\n```"


def reference() -> str:
    result = json.loads((RESULTS / "reference_index.json").read_text())
    found = result["recomputed"]
    return (
        "| checkpoints of held-out runs | R² | Kendall's tau | mean absolute error |\n|---|---|---|---|\n"
        f"| {result['checkpoints']:,} | {found['r2']:.3f} | {found['tau']:.3f} | {found['mae']:.3f} |"
    )


def throughput() -> str:
    result = json.loads((RESULTS / "zoo_throughput.json").read_text())
    rows = ["| | one at a time, as first written | tight loop, one at a time | `build-zoo` | ratios | share of peak |"]
    rows.append("|---|---|---|---|---|---|")
    for preset in ("v1", "v2"):
        part = result[preset]
        rows.append(
            f"| {preset} on USPS | {part['naive']:,.1f} | {part['tight']:,.1f} | {part['build_zoo']:,.1f} "
            f"| {part['build_zoo'] / part['naive']:.1f} ×, {part['build_zoo'] / part['tight']:.1f} × "
            f"| {part['share_of_peak']:.0%} |"
        )
    return "\n".join(rows)


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


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


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
        lines += [f"| method | {' | '.join(columns.values())} |", "|---|" + "---:|" * len(columns)]
        for method in dict.fromkeys(method for method, metric in values if metric in columns):
            cells = [f"{values[method, m]:.3f}" if (method, m) in values else "–" for m in columns]
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


PATCHES = "invariant, patches"


def evaluated() -> dict[str, tuple[dict[tuple[str, str], float], dict[str, int]]]:
    """Of each zoo: means over seeds by method and metric, and the seeds of each directory that they are from.

    Directories `evaluation*` have all methods, `invariant` with the patches that it probed with then; later ones,
    `again-*`, measure some methods anew.
    """
    zoos: dict[str, tuple[dict[tuple[str, str], float], dict[str, int]]] = {}
    first, again = (sorted(RESULTS.glob(f"{kind}*/evaluation.json")) for kind in ("evaluation", "again-"))
    for path in [*first, *again]:
        content = json.loads(path.read_text())
        rows = [row for row in content["rows"] if row["seed"] is row["on"] is row["against"] is None]
        for zoo in dict.fromkeys(row["zoo"] for row in rows):
            values, sources = zoos.setdefault(zoo, ({}, {}))
            sources[path.parent.name] = content["settings"]["seeds"]
            names = {} if path in again else {"invariant": PATCHES}
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
        cells = [
            f"{values[column]:.3f}" if column in values else f"{values[PATCHES, column[1]]:.3f} (patches)"
            for column in columns.values()
        ]
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


def search() -> str:
    """Medians of benchmarks/results/search.json, in milliseconds."""
    result = json.loads((RESULTS / "search.json").read_text())
    lines = [
        "| vectors | filter passes | FAISS alone | DuckDB alone | ids and distances | with the rows' metadata |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for size, found in result["sizes"].items():
        for share in ("none", "10 %", "1 %"):
            part = found["filters"][share]
            times = [part["faiss"]["p50_ms"], part["duckdb"]["p50_ms"], part["index"]["ids_p50_ms"]]
            cells = " | ".join(f"{time:.3g} ms" for time in (*times, part["index"]["p50_ms"]))
            lines.append(f"| {int(size):,} | {'all' if share == 'none' else share} | {cells} |")
    file, cold, middle = result["inverted"], result["cold"], result["sizes"]["100000"]
    return "\n".join(lines) + (
        f"\n\nOpening takes {middle['opening']['open_ms']:.0f} ms at 100,000 vectors, adding 10,000 to them "
        f"{middle['add_10_thousand_seconds']:.1f} s. An inverted file of {file['vectors']:,} answers in "
        f"{file['ids_p50_ms'] / file['exact_ids_p50_ms']:.0%} of exact search's time at recall@10 "
        f"{file['recall']:.3f}. The whole command `weightsearch query` takes {cold['file_ratio']:.2f} times as long as "
        f"importing torch, faiss and duckdb, with `--id` {cold['id_ratio']:.2f} times as long as importing faiss, "
        "duckdb and typer ([all figures](benchmarks/results/search.md))."
    )


def scale() -> str:
    """How an index grows beside other stores, from benchmarks/results/scale.json."""
    result = json.loads((RESULTS / "scale.json").read_text())
    names = {"index": "weightsearch", "faiss": "FAISS, exact", "lancedb": "LanceDB", "usearch": "usearch"}
    lines = [
        "| rows | | recall@10: all, 10 %, 1 %, 0.1 % pass | p50 | p99 | 10 % pass | open "
        "| own memory, with mapped files | disk | build | add |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size, measured in result["sizes"].items():
        for system, one in measured["systems"].items():
            filters, memory = one["filters"], one["memory_mib"]
            recalls = ", ".join(f"{filters[share]['recall']:.3f}" for share in filters)
            own, mapped = (memory["after"][name] - memory["before"][name] for name in ("own", "with mapped files"))
            tenth = f"{filters['0.1']['p50_ms']:.3g} ms" if "0.1" in filters else ""
            added = f"{one['added_rows']:,} in {one['add_seconds']:.0f} s" if "add_seconds" in one else ""
            lines.append(
                f"| {int(size):,} | {names[system]} | {recalls} | {filters['1.0']['p50_ms']:.3g} ms "
                f"| {filters['1.0']['p99_ms']:.3g} ms | {tenth} | {one['open_seconds']:.2f} s "
                f"| {own / 1024:.2f}, {mapped / 1024:.2f} GiB | {one['disk_bytes'] / 2**30:.2f} GiB "
                f"| {one['build_seconds']:.0f} s | {added} |"
            )
    loads = [load for measured in result["sizes"].values() for load in measured["load"]]
    lines += ["", f"Load averages of the {result['machine']['cores']} cores meanwhile: {min(loads)} to {max(loads)}."]
    if "hundred_million" in result:
        more = result["hundred_million"]
        lines[-1] += (
            f" A hundred million rows would need, computed from {more['from']:,}: {more['disk_gib']:,.0f} GiB of disk, "
            f"{more['mapped_codes_gib']:.1f} GiB of codes and {more['mapped_vectors_gib']:.0f} GiB of vectors mapped, "
            f"{more['own_memory_gib']:.0f} GiB of memory beside them, {more['p50_ms']:,.0f} ms a query, and up to "
            f"{more['build_hours_at_most']:.0f} hours to make."
        )
    return "\n".join(lines)


def scale_peers() -> str:
    """The same at 100,000 rows beside two other stores, from benchmarks/results/scale_peers.json."""
    result = json.loads((RESULTS / "scale_peers.json").read_text())
    names = {"index": "weightsearch", "faiss": "FAISS, exact", "lancedb": "LanceDB", "usearch": "usearch"}
    lines = [
        "| rows | | recall@10: all, 10 %, 1 %, 0.1 % pass | processor time of a query: all, 10 %, 1 %, 0.1 % "
        "| own memory, with mapped files | disk |",
        "|---:|---|---|---|---:|---:|",
    ]
    for size, measured in result["sizes"].items():
        for system, one in measured["systems"].items():
            filters, memory = one["filters"], one["memory_mib"]
            recalls = ", ".join(f"{filters[share]['recall']:.3f}" for share in filters)
            busy = ", ".join(f"{filters[share]['cpu_p50_ms']:.3g}" for share in filters)
            own, mapped = (memory["after"][name] - memory["before"][name] for name in ("own", "with mapped files"))
            lines.append(
                f"| {int(size):,} | {names[system]} | {recalls} | {busy} ms "
                f"| {own / 1024:.2f}, {mapped / 1024:.2f} GiB | {one['disk_bytes'] / 2**30:.2f} GiB |"
            )
    return "\n".join(lines)


def sketches() -> str:
    """Relatives among very many signatures, from benchmarks/results/sketches.json."""
    lines = [
        "| signatures | relatives found whose sketches' cosine is 0.2 | 0.25 | 0.3 | 0.4 or more | open | a query "
        "| own memory | with mapped files | disk |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size, one in json.loads((RESULTS / "sketches.json").read_text()).items():
        planted = one["planted_found"]
        most = min(share for cosine, share in planted.items() if float(cosine) >= 0.4)
        shares = " | ".join(f"{share:.1%}" for share in (planted["0.2"], planted["0.25"], planted["0.3"], most))
        lines.append(
            f"| {int(size):,} | {shares} | {one['open_cpu_seconds']:.2f} s | {one['query_cpu_seconds']:.3f} s "
            f"| {one['own_memory_gib']:.2f} GiB | {one['with_mapped_files_gib']:.1f} GiB | {one['disk_gib']:.1f} GiB |"
        )
    return "\n".join(lines)


def shards() -> str:
    """What workers share and an engine adds, from benchmarks/results/shards.json."""
    result = json.loads((RESULTS / "shards.json").read_text())
    load, files = result["load"][0], result["table's files"]
    speedup, start = result["speed-up without the start"], result["start of a worker"]["busiest"]
    text = (
        f"Two workers read {result['files']:,} small files {speedup['seconds']:.2f} × as fast as one by the clock and "
        f"{speedup['busiest']:.2f} × by the processor time of the busiest, without a worker's start of {start:.1f} s"
    )
    if "a megabyte a file" in result:
        engine = result["a megabyte a file"]
        text += (
            f". Files of a megabyte as Ray tasks take {engine['overhead']:+.1%} by the clock and "
            f"{engine['overhead, busy']:+.1%} of processor time against one process without Ray"
        )
    lines = [
        f"{text} (medians of turns; load average {load:.0f}).",
        "",
        "| workers | listing, by every worker | reading and embedding | collecting, by one "
        f"| hours for {files:,} files | limit |",
        "|---:|---:|---:|---:|---:|---|",
    ]
    for row in result["table"]:
        parts = [row[name] for name in ("listing, by every worker", "reading and embedding", "collecting, by one")]
        hours = " | ".join(f"{value:.2f}" for value in (*parts, row["hours"]))
        lines.append(f"| {row['workers']} | {hours} | {row['limit']} |")
    return "\n".join(lines)


def fits() -> str:
    """What fits cost, from the results of fit_throughput, fit_memory, search_trials and encoder_cost."""
    epochs, memory, trials, cost = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("fit_throughput", "fit_memory", "search_trials", "encoder_cost")
    )
    speedups = " and ".join(f"{part['speedup']:.1f} × ({name})" for name, part in epochs["presets"].items())
    gains = "; ".join(
        f"{name} "
        + ", ".join(
            f"`{method}` {seconds['without'] / seconds['with']:.1f} ×"
            for method, seconds in part["epoch_seconds_by_settings"].items()
        )
        for name, part in epochs["presets"].items()
    )
    largest = max(memory["fits"], key=lambda fit: (fit["checkpoints"], fit["private_gib"]))
    rates = cost["embedded_per_second"]
    return "\n".join(
        [
            f"- An epoch of `comvex-conv` is {speedups} as fast as `nn.Conv2d` behind a `DataLoader`, on one thread.",
            "- oneDNN's products, and large blocks of memory used again, make an epoch of each method so many times as "
            f"fast on this processor ({epochs['cpu']}): {gains}.",
            f"- A fit on {largest['checkpoints']:,} V2 checkpoints ({largest['zoo_gib']} GiB) takes at most "
            f"{largest['private_gib']:.1f} GiB of memory.",
            f"- `train --method {trials['method']} --trials {trials['trials']}` on 5,004 V1 checkpoints took "
            f"{trials['command_seconds'] / 60:.0f} minutes on {trials['cores']} cores; {trials['stopped_early']} "
            "trials were stopped early, below the median.",
            f"- `invariant` embeds {rates['invariant']:,.0f} V2 checkpoints a second from memory and fits "
            f"{cost['fit']['checkpoints']:,} of them in {cost['fit']['seconds']:.0f} s. Reading them from the disk "
            f"would allow {rates['reading the weights from disk']:,.0f} a second, the products of its probes alone "
            f"{rates[PRODUCTS]:,.0f}.",
        ]
    )


def reading_many() -> str:
    """Many small files into an index, from benchmarks/results/reading_many.json."""
    lines = ["| files | | `add` | share of the limit | memory |", "|---:|---|---:|---:|---:|"]
    for row in json.loads((RESULTS / "reading_many.json").read_text())["results"]:
        speed, memory = f"{row['files a second']:,.0f} a second", f"{row['add']['megabytes']:,.0f} MB"
        lines.append(f"| {row['files']:,} | {row['format']} | {speed} | {row['share of the limit']:.0%} | {memory} |")
    return "\n".join(lines)


def map_frames() -> str:
    """How fast the interactive map draws, from benchmarks/results/map_frames.json."""
    result = json.loads((RESULTS / "map_frames.json").read_text())
    many, few, plotly = (result[name] for name in ("map", "map of 1,000", "plotly scattergl"))
    return (
        f"Panned over {result['points']:,} networks without a graphics card, drawn by {result['cores']} cores alone, "
        f"the map makes {1000 / many['median_ms']:.0f} frames a second (the median frame takes "
        f"{many['median_ms']:.0f} ms, with 1,000 networks {few['median_ms']:.0f} ms, in Plotly's WebGL scatter "
        f"{plotly['median_ms']:.0f} ms); its file is {many['megabytes']:.0f} MB "
        "(`python benchmarks/map_frames.py`)."
    )


def serve() -> str:
    """How quickly a page answers, and what hostile uploads leave, from benchmarks/results/serve.json."""
    result = json.loads((RESULTS / "serve.json").read_text())
    asked, hostile = result["questions"], result["hostile"]
    left = [hostile[name] for name in ("children_left", "descriptors_left", "files_left")]
    busy = asked["load_average_before"] > asked["cores"]
    return (
        f"A warm question about a file that was never seen takes {asked['server_processor_ms']:.1f} ms of the server's "
        f"processor and {asked['readers_processor_ms']:.1f} ms of the process that reads the file. {asked['clients']} "
        f"clients that ask at once, each for {asked['clients_processor_ms']:.1f} ms, wait "
        f"{1e3 * asked['p50_seconds']:.0f} ms in the median and {1e3 * asked['p99_seconds']:.0f} ms in the 99th "
        f"percentile, {asked['each_second']:.0f} answers a second on {asked['cores']} cores"
        f"{' that {:.0f} other processes used, too'.format(asked['load_average_before']) if busy else ''}. "
        f"{hostile['uploads']:,} hostile uploads in {hostile['minutes']:.1f} minutes (cut, of bits turned over, "
        f"endless, slow, of code, with a header that promises too much, with HTML in their names) left "
        f"{'nothing' if not any(left) else f'{left}'} behind: at most {hostile['peak_mib']:.0f} MiB with all "
        f"processes, {hostile['mib_after']:.0f} afterwards (`python benchmarks/serve.py`)."
    )


def umap() -> str:
    """How long the picture of many embeddings takes, from benchmarks/results/umap_time.json."""
    result = json.loads((RESULTS / "umap_time.json").read_text())
    ways = result["by_width"]
    lines = [
        f"| UMAP of {result['count']:,} embeddings, on {result['cores']} cores | 64 wide | 256 wide |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {way} | {widths['64']['seconds']:.0f} s | {widths['256']['seconds']:.0f} s |"
        for way, widths in ways.items()
    ]
    return "\n".join(lines) + (
        "\n\nCompiling is included (`python benchmarks/umap_time.py`). Seeded, a picture is the same for the same seed."
    )


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


def universal_cost() -> str:
    """What benchmarks/results/universal_cost.json and one_architecture.json say of the encoder of all architectures."""
    cost = json.loads((RESULTS / "universal_cost.json").read_text())
    lines = [
        f"A network of {cost[size]['parameters']:,} parameters takes {cost[size]['milliseconds']:.3g} ms of one core"
        for size in ("small", "large")
    ]
    lines[0] += f", which is {cost['a second on two cores']} a second on two"
    cold = cost["cold"]
    lines.append(
        f"A query from a cold start takes {cold['ratio']:.2f} times what importing torch, faiss and duckdb does "
        f"({cold['query']:.2f} s of the processor for {cold['imports']:.2f} s)"
    )
    for name, value in json.loads((RESULTS / "one_architecture.json").read_text()).items():
        ours, other = value["universal"], value["invariant"]
        lines.append(
            f"Fitted from scratch on the {value['runs']['fitted']} runs of {name} that `invariant` was fitted on, it "
            f"predicts {value['runs']['judged']} others with R² {ours['r2']:.3f} and tau {ours['tau']:.3f}; "
            f"`invariant` with {other['r2']:.3f} and {other['tau']:.3f}"
        )
    return "\n".join(f"- {line}." for line in lines)


PRODUCTS = "products of invariant's probes alone"


def shift() -> str:
    """Means over seeds; of coverage the least and the most, too."""
    result = json.loads((RESULTS / "shift.json").read_text())
    lines = [
        "| trained with | R² | tau | too high by | 90 % interval holds | its width |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["trainers"].items():
        least, most = min(row["coverages"]), max(row["coverages"])
        lines.append(
            f"| {name} | {row['r2']:.3f} | {row['tau']:.3f} | {row['bias']:+.3f} "
            f"| {row['coverage']:.0%} ({least:.0%} to {most:.0%}) | {row['width']:.2f} |"
        )
    return "\n".join(lines)


def attack() -> str:
    """What came of the attack's kept runs."""
    result = json.loads((RESULTS / "attack.json").read_text())
    counts, greatest = result["counts"], result["greatest"]
    minutes = sum(run["minutes"] for run in result["runs"])
    rows = {
        "hostile files and metadata": f"{counts['files']:,}",
        "requests to `weightsearch serve`": f"{counts['requests']:,}",
        "processes killed while they changed an index": f"{counts['kills']:,}",
        "rows compared with an oracle after kills": f"{counts['rows checked']:,}",
        "rows lost": f"{counts['rows lost']:,}",
        "damaged files of an index": f"{counts['damages']:,}",
        "... refused in a line": f"{counts['damages refused in a line']:,}",
        "... without consequence for an answer": f"{counts['damages without consequence']:,}",
        "longest wait of a reader beside writers": f"{greatest['longest wait of a reader in seconds']:.1f} s",
        "longest wait of a writer beside readers": f"{greatest['longest wait of a writer in seconds']:.1f} s",
        "most memory that a file took": f"{greatest['MiB of a file']:.0f} MiB",
        "longest time of the processor that a file took": f"{greatest['seconds of a file']:.2f} s",
        "findings": f"{len(result['findings'])}",
    }
    head = f"| in {minutes:.0f} minutes, on two cores that were busy with other work | |\n|---|---:|"
    return "\n".join([head, *(f"| {name} | {value} |" for name, value in rows.items())])


def checks() -> str:
    """What verification costs whoever opens an index and searches it once."""
    result = json.loads((RESULTS / "checks.json").read_text())
    lines = [
        "| index | from memory, of the processor | verified | | from a cold disk, by the clock | verified | |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in result["warm"]:
        cells = [
            cell
            for part in (result["warm"][name]["both"], result["cold"][name]["clock"])
            for cell in (f"{part['unchecked_ms']:.1f} ms", f"{part['checked_ms']:.1f} ms", f"{part['share']:+.0%}")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    query, apart = result["query"], result["apart"].values()
    first = [reader["first_ms"] / 1e3 for reader in apart]
    more = max(reader["next_ms"] - reader["in_place_ms"] for reader in apart)
    return "\n".join(lines) + (
        f"\n\nOf the processor's time of a command that asks the reference index once: {query['share']:+.1%} "
        f"({query['unchecked_seconds']:.2f} s without). A process apart takes {min(first):.1f} to {max(first):.1f} s "
        f"to start with the first file, and reads each further small one in at most {more:.1f} ms more than this "
        "process would."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "reading-many": reading_many,
    "attack": attack,
    "checks": checks,
    "shift": shift,
    **relations_tables.BLOCKS,
    "query": query,
    "how-true": how_true,
    "novelty": novelty,
    "reference": reference,
    "throughput": throughput,
    "tables": tables,
    "accuracy": accuracy,
    "zoos": zoos,
    "evaluation": evaluation,
    "peers": peers,
    "search": search,
    "scale": scale,
    "scale-peers": scale_peers,
    "sketches": sketches,
    "shards": shards,
    "fits": fits,
    "map": map_frames,
    "serve": serve,
    "umap": umap,
    "any-architecture": any_architecture,
    "few-labels": few_labels,
    "universal-cost": universal_cost,
}


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", re.DOTALL)


def block(name: str, page: Path) -> str:
    """A block as it stands in a page: with links from the page's folder."""
    root = os.path.relpath(ROOT, page.parent)
    text = BLOCKS[name]()
    return text if root == "." else text.replace("](benchmarks/", f"]({root}/benchmarks/")


def generate(page: Path) -> str:
    """A page's text with each of its blocks as the results have it."""
    text = page.read_text()
    for name in BLOCKS:
        if pattern(name).search(text):
            new = f"<!-- {name} -->\n{block(name, page)}\n<!-- /{name} -->"
            text = pattern(name).sub(lambda _, new=new: new, text)  # type: ignore[misc]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    texts = {page: page.read_text() for page in pages()}
    if lost := [name for name in BLOCKS if not any(pattern(name).search(text) for text in texts.values())]:
        sys.exit(f"no page has a block called {', '.join(lost)}: put <!-- NAME --> and <!-- /NAME --> into one")
    stale = [page for page, text in texts.items() if generate(page) != text]
    if arguments.check:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"{names}: out of date; run python benchmarks/documentation.py" if stale else 0)
    for page in stale:
        page.write_text(generate(page))
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
