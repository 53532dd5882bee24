"""The documentation's tables of time, memory and promises, from benchmarks/results; `documentation.py` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


SYSTEMS = {"index": "weightsearch", "faiss": "FAISS, exact", "lancedb": "LanceDB", "usearch": "usearch"}


def systems(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of each size and store of `scale.py`: cells of rows, store and recalls, of memory and disk, and all else."""
    for size, measured in result["sizes"].items():
        for system, one in measured["systems"].items():
            if "filters" not in one:  # not made in time, which `given_up` tells
                continue
            memory = one["memory_mib"]
            recalls = ", ".join(f"{share['recall']:.3f}" for share in one["filters"].values())
            own, mapped = (memory["after"][name] - memory["before"][name] for name in ("own", "with mapped files"))
            room = f"{own / 1024:.2f}, {mapped / 1024:.2f} GiB | {one['disk_bytes'] / 2**30:.2f} GiB"
            yield f"{int(size):,} | {SYSTEMS[system]} | {recalls}", room, one


def given_up(result: dict[str, Any]) -> str:
    """A sentence for each store that was not made in the time that it had."""
    return "".join(
        f" {SYSTEMS[system]} was not made of {int(size):,} rows in {one['unfinished_seconds'] / 3600:.3g} hours."
        for size, measured in result["sizes"].items()
        for system, one in measured["systems"].items()
        if "unfinished_seconds" in one
    )


def scale() -> str:
    """How an index grows beside other stores, from benchmarks/results/scale.json."""
    result = json.loads((RESULTS / "scale.json").read_text())
    lines = [
        "| rows | | recall@10: all, 10 %, 1 %, 0.1 % pass | p50 | p99 | 10 % pass | open "
        "| own memory, with mapped files | disk | build | add |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for start, room, one in systems(result):
        filters = one["filters"]
        tenth = f"{filters['0.1']['p50_ms']:.3g} ms" if "0.1" in filters else ""
        added = f"{one['added_rows']:,} in {one['add_seconds']:.0f} s" if "add_seconds" in one else ""
        lines.append(
            f"| {start} | {filters['1.0']['p50_ms']:.3g} ms | {filters['1.0']['p99_ms']:.3g} ms | {tenth} "
            f"| {one['open_seconds']:.2f} s | {room} | {one['build_seconds']:.0f} s | {added} |"
        )
    loads = [load for measured in result["sizes"].values() for load in measured["load"]]
    lines += ["", f"Load averages of the {result['machine']['cores']} cores meanwhile: {min(loads)} to {max(loads)}."]
    lines[-1] += given_up(result)
    if "hundred_million" in result:
        more = result["hundred_million"]
        lines[-1] += (
            f" A hundred million rows would need, computed from {more['from']:,}: {more['disk_gib']:,.0f} GiB of disk, "
            f"{more['mapped_codes_gib']:.1f} GiB of codes and {more['mapped_vectors_gib']:.0f} GiB of vectors mapped, "
            f"{more['own_memory_gib']:.0f} GiB of memory beside them, {more['p50_ms']:,.0f} ms a query, and up to "
            f"{more['build_hours_at_most']:.0f} hours to make."
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
            f"- `invariant` embeds {rates['invariant']:,.0f} V2 checkpoints a second from memory; an epoch of its fit, "
            f"of thirty, takes {cost['fit']['seconds'] / cost['fit']['epochs']:.0f} s for "
            f"{cost['fit']['checkpoints']:,} of them (on cores that did other work, too). Reading them from the disk "
            f"would allow {rates['reading the weights from disk']:,.0f} a second, its probes alone "
            f"{rates[PROBES]:,.0f}.",
        ]
    )


def reading_many() -> str:
    """Many small files into an index, from benchmarks/results/reading_many.json."""
    lines = [
        "| files | | `add` on two cores | share of the limit | by all processors' seconds | memory, with readers |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for row in json.loads((RESULTS / "reading_many.json").read_text())["results"]:
        speed, memory = f"{row['files a second']:,.0f} a second", f"{row['add']['megabytes']:,.0f} MB"
        share, of_all = row["share of the limit"], row["share by all processors' seconds"]
        lines.append(f"| {row['files']:,} | {row['format']} | {speed} | {share:.0%} | {of_all:.0%} | {memory} |")
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


PROBES = "invariant's probes alone"


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
        "| index | from memory, of the processor | verified | | by the clock | from a cold disk, by the clock |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in result["warm"]:
        processor, clock, cold = (
            *(result["warm"][name][part] for part in ("both", "clock")),
            result["cold"][name]["clock"],
        )
        cells = [f"{processor['unchecked_ms']:.1f} ms", f"{processor['checked_ms']:.1f} ms"]
        cells += [f"{part['share']:+.0%}" for part in (processor, clock, cold)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    encoder = result["encoder"]
    query, apart = result["query"], result["apart"].values()
    first = [reader["first_ms"] / 1e3 for reader in apart]
    more = max(reader["next_ms"] - reader["in_place_ms"] for reader in apart)
    return "\n".join(lines) + (
        f"\n\nOf the processor's time of a command that asks the reference index once: {query['share']:+.1%} "
        f"({query['unchecked_seconds']:.2f} s without); of loading its encoder: {encoder['share']:+.0%} "
        f"({encoder['unchecked_ms']:.1f} ms without). A process apart takes {min(first):.1f} to {max(first):.1f} s "
        f"to start with the first file, and reads each further small one in at most {more:.1f} ms more than this "
        "process would."
    )
