"""Commands that look after an index: remove, update, rebuild, doctor, info, export."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import (
    Force,
    IndexArgument,
    IndexOption,
    Json,
    OwnIndexOption,
    chosen_index,
    example,
    say,
    show,
)
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from weightsearch.index import IndexStore

app = typer.Typer()
FEW_ROWS, FEW_SHARE = 10, 0.01  # that are removed or changed without a question

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command(
    epilog=example("weightsearch remove 5f0c9e5d1a2b3c4d", "weightsearch remove --where \"run = 'usps-v1/17'\"")
)
def remove(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of checkpoints, as queries show them.", metavar="ID")
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="All checkpoints of this run; repeatable.")] = None,
    where: Annotated[str | None, typer.Option(help="All checkpoints for which this holds.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    index: OwnIndexOption = None,
) -> None:
    """Take checkpoints out of an index. Asks first where that is more than ten or a hundredth of them."""
    if not ids and not run and where is None:
        raise UsageError("name ids, a --run or a --where; nothing was removed")
    path = index or runs.own_index()
    say(f"index: {path}")

    from weightsearch.index import IndexStore, matching, remove_rows

    opened = IndexStore.open(path)
    whole = [opened.find(id).columns["id"] for id in ids or ()]
    before = _thresholds(opened)
    if _agreed(opened, lambda: len(matching(path, ids=whole, runs=run or (), where=where)), dry_run, yes, "removed"):
        print(f"{_count(remove_rows(path, ids=whole, runs=run or (), where=where))} removed")
        _say_moved(before, _thresholds(IndexStore.open(path)))


@app.command(
    epilog=example(
        "weightsearch update results.csv --key id",
        "weightsearch update --set team=vision --where \"dataset = 'usps'\"",
    )
)
def update(
    table: Annotated[
        Path | None,
        typer.Argument(
            help="A .csv, .json or .parquet file: a line per checkpoint, new values by column.", metavar="TABLE"
        ),
    ] = None,
    key: Annotated[
        str, typer.Option(help="The column that says whose a line is: id (or its beginning), run, path, ...")
    ] = "id",
    values: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE; repeatable.")] = None,
    where: Annotated[str | None, typer.Option(help="Which checkpoints get what --set says.")] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="A checkpoint that gets what --set says; repeatable.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    index: OwnIndexOption = None,
) -> None:
    """Change what is known of indexed checkpoints: accuracies, epoch, run, dataset, and columns of your own."""
    if (table is None) == (not values) or (not values) != (where is None and not ids):
        raise UsageError("give a table, or --set NAME=VALUE with --where or --id")
    pairs = [value.partition("=") for value in values or ()]
    if any(not sign for _, sign, _ in pairs):
        raise UsageError(f"--set {next(name for name, sign, _ in pairs if not sign)}: write NAME=VALUE")
    path = index or runs.own_index()
    say(f"index: {path}")

    from weightsearch.index import IndexStore, matching, table_changes, update_values

    opened = IndexStore.open(path)
    before, columns = _thresholds(opened), set(opened.keys())
    if table is not None:
        changes = table_changes(opened, table, key)
    else:
        whole = [opened.find(id).columns["id"] for id in ids or ()]
        named = {name: _value(text) for name, _, text in pairs}
        changes = dict.fromkeys(matching(path, ids=whole, where=where), named)
    if not _agreed(opened, lambda: len(changes), dry_run, yes, "changed"):
        return
    updated = update_values(path, changes, "--set" if table is None else table.name)
    for note in updated.notes:
        say(f"note: {note}")
    print(f"{_count(updated.checkpoints)} changed, {updated.cells:,} cell{'s' * (updated.cells != 1)}")
    changed = IndexStore.open(path)
    _say_new_columns(changed, columns)
    _say_moved(before, _thresholds(changed))


@app.command(epilog=example("weightsearch rebuild", "weightsearch rebuild runs/indexes/usps --factory HNSW32"))
def rebuild(
    given: IndexArgument = None,
    index: OwnIndexOption = None,
    factory: Annotated[
        str | None, typer.Option(help="FAISS's name for its index's type; auto: by size.", show_default="as it was")
    ] = None,
) -> None:
    """Write an index's FAISS files anew from its database."""
    path = chosen_index(given, index, runs.own_index)

    from weightsearch.cli import render
    from weightsearch.index import info, rebuild

    rebuild(path, factory)
    show(render.index_info(info(path)))


@app.command(epilog=example("weightsearch doctor runs/indexes/usps-v1"))
def doctor(given: IndexArgument = None, index: IndexOption = None, as_json: Json = False) -> None:
    """Check all that an index promises, and repair what can be repaired. Ends with 1 where something stays broken."""
    path = chosen_index(given, index)

    from weightsearch.cli import render
    from weightsearch.index import State, doctor
    from weightsearch.training.represent import load_any_encoder

    findings = doctor(path, check_encoder=load_any_encoder)
    if as_json:
        print(json.dumps({"index": str(path), "findings": [asdict(finding) for finding in findings]}))
    else:
        show(render.findings(findings))
    broken = [finding.what for finding in findings if finding.state is State.BROKEN]
    if broken:
        raise WeightsearchError(f"{path} stays broken: {', '.join(broken)}")


@app.command(epilog=example("weightsearch info", "weightsearch info runs/indexes/usps-v1 --json"))
def info(given: IndexArgument = None, index: IndexOption = None, as_json: Json = False) -> None:
    """What an index holds: architectures, datasets, thresholds, columns to filter on, FAISS's type, size."""
    path = chosen_index(given, index)

    from weightsearch.index import info

    about = info(path)
    if as_json:
        print(json.dumps(about.to_dict()))
    else:
        from weightsearch.cli import render

        show(render.index_info(about))


@app.command(
    epilog=example(
        'weightsearch export rows.parquet --where "test_accuracy > 0.9"', "weightsearch export atlas.parquet --atlas"
    )
)
def export(
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.", metavar="OUT.parquet")],
    given: IndexArgument = None,
    where: Annotated[str | None, typer.Option(help="Only checkpoints for which this holds.")] = None,
    atlas: Annotated[
        bool, typer.Option("--atlas", help="For Embedding Atlas: places, neighbours and labels instead of embeddings.")
    ] = False,
    projection: Annotated[str, typer.Option(help="umap, tsne or pca, of --atlas.")] = "umap",
    index: IndexOption = None,
    force: Force = False,
) -> None:
    """Write an index's rows, embeddings included, to a Parquet file."""
    if projection != "umap" and not atlas:
        raise UsageError("--projection does nothing without --atlas; leave it out")
    path = chosen_index(given, index)
    if atlas:
        from weightsearch.viz.atlas import export_atlas
        from weightsearch.viz.projection import Projection

        count = export_atlas(
            path, out, where=where, projection=choose(Projection, projection, "--projection"), overwrite=force
        )
        say(f"next: embedding-atlas {out} --x projection_x --y projection_y --neighbors neighbors --text label")
    else:
        from weightsearch.index import export

        count = export(path, out, where=where, overwrite=force)
    print(f"{count:,} rows written to {out}")


def _value(text: str) -> Any:
    """What was meant by VALUE: a number, true or false, nothing (unknown), else text."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def _count(number: int) -> str:
    return "1 checkpoint" if number == 1 else f"{number:,} checkpoints"


def _agreed(index: IndexStore, count_rows: Callable[[], int], dry_run: bool, yes: bool, what: str) -> bool:
    """Whether to go on: says how many rows are meant, and asks at a terminal where they are many."""
    if not dry_run and (yes or not sys.stdin.isatty()):
        return True
    count = count_rows()
    if dry_run:
        print(f"{_count(count)} of {len(index):,} would be {what}")
        return False
    few = count <= FEW_ROWS or count <= FEW_SHARE * len(index)
    return few or typer.confirm(f"{_count(count)} of {len(index):,} will be {what}; go on?", err=True)


def _thresholds(index: IndexStore) -> dict[str, tuple[float, float]]:
    return {fingerprint: index.thresholds(fingerprint) for fingerprint in index.architectures}


def _say_moved(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> None:
    for fingerprint, (bad, good) in after.items():
        old_bad, old_good = before.get(fingerprint, (bad, good))
        if math.isnan(good) and not math.isnan(old_good):
            say(f"{fingerprint}: no row is left to tell good and bad by (good was {old_good:.3f}, bad {old_bad:.3f})")
        elif f"{old_bad:.3f} {old_good:.3f}" != f"{bad:.3f} {good:.3f}":
            say(
                f"{fingerprint}: good is now {good:.3f} or better (was {old_good:.3f}), "
                f"bad {bad:.3f} or worse (was {old_bad:.3f})"
            )


def _say_new_columns(index: IndexStore, before: set[str]) -> None:
    from weightsearch.index.filter_faults import suggestion

    for name in sorted(set(index.keys()) - before):
        say(f"new column: {name}{suggestion(name, [*before])}")
