"""Commands that look after an index: remove, update, rebuild, doctor, info, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import IndexOption, OwnIndexOption, example, say, show
from weightsearch.errors import UsageError, WeightsearchError

app = typer.Typer()


@app.command(
    epilog=example("weightsearch remove 5f0c9e5d1a2b3c4d", "weightsearch remove --where \"run = 'usps-v1/17'\"")
)
def remove(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of checkpoints, as queries show them.")] = None,
    run: Annotated[list[str] | None, typer.Option(help="All checkpoints of this run; repeatable.")] = None,
    where: Annotated[str | None, typer.Option(help="All checkpoints for which this holds.")] = None,
    index: OwnIndexOption = None,
) -> None:
    """Take checkpoints out of an index."""
    if not ids and not run and where is None:
        raise UsageError("name ids, a --run or a --where; nothing was removed")
    path = index or runs.own_index()
    say(f"index: {path}")

    from weightsearch.index import remove_rows

    print(f"{remove_rows(path, ids=ids or (), runs=run or (), where=where):,} checkpoints removed")


@app.command(
    epilog=example(
        "weightsearch update results.csv --key id",
        "weightsearch update --set team=vision --where \"dataset = 'usps'\"",
    )
)
def update(
    table: Annotated[
        Path | None, typer.Argument(help="A .csv, .json or .parquet file: a line per checkpoint, new values by column.")
    ] = None,
    key: Annotated[str, typer.Option(help="The column that says which checkpoints a line is about.")] = "id",
    values: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE; repeatable.")] = None,
    where: Annotated[str | None, typer.Option(help="Which checkpoints get what --set says.")] = None,
    index: OwnIndexOption = None,
) -> None:
    """Change what is known of indexed checkpoints: accuracies, epoch, run, dataset, and columns of your own."""
    if (table is None) == (not values) or (not values) != (where is None):
        raise UsageError("give a table, or --set NAME=VALUE with --where")
    pairs = [value.partition("=") for value in values or ()]
    if any(not sign for _, sign, _ in pairs):
        raise UsageError(f"--set {next(name for name, sign, _ in pairs if not sign)}: write NAME=VALUE")
    path = index or runs.own_index()
    say(f"index: {path}")

    from weightsearch.index import update_table, update_where

    if table is not None:
        count = update_table(path, table, key)
    else:
        count = update_where(path, where or "", {name: _value(text) for name, _, text in pairs})
    print(f"{count:,} checkpoints changed")


@app.command(epilog=example("weightsearch rebuild", "weightsearch rebuild --factory HNSW32"))
def rebuild(
    index: OwnIndexOption = None,
    factory: Annotated[
        str | None, typer.Option(help="FAISS's name for its index's type; auto: by size.", show_default="as it was")
    ] = None,
) -> None:
    """Write an index's FAISS files anew from its database."""
    path = index or runs.own_index()
    say(f"index: {path}")

    from weightsearch.cli import render
    from weightsearch.index import info, rebuild

    rebuild(path, factory)
    show(render.index_info(info(path)))


@app.command(epilog=example("weightsearch doctor --index runs/indexes/usps-v1"))
def doctor(index: IndexOption = None) -> None:
    """Check all that an index promises, and repair what can be repaired. Ends with 1 where something stays broken."""
    path = index or runs.newest_index()
    say(f"index: {path}")

    from weightsearch.cli import render
    from weightsearch.encoders import load_encoder
    from weightsearch.index import State, doctor

    findings = doctor(path, check_encoder=load_encoder)
    show(render.findings(findings))
    broken = [finding.what for finding in findings if finding.state is State.BROKEN]
    if broken:
        raise WeightsearchError(f"{path} stays broken: {', '.join(broken)}")


@app.command(epilog=example("weightsearch info", "weightsearch info --index runs/indexes/usps-v1 --json"))
def info(
    index: IndexOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """What an index holds: architectures, datasets, thresholds, columns to filter on, FAISS's type, size."""
    path = index or runs.newest_index()
    say(f"index: {path}")

    from weightsearch.index import info

    found = info(path)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        from weightsearch.cli import render

        show(render.index_info(found))


@app.command(epilog=example('weightsearch export rows.parquet --where "test_accuracy > 0.9"'))
def export(
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.", metavar="OUT.parquet")],
    where: Annotated[str | None, typer.Option(help="Only checkpoints for which this holds.")] = None,
    index: IndexOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write an index's rows, embeddings included, to a Parquet file."""
    path = index or runs.newest_index()
    say(f"index: {path}")

    from weightsearch.index import export

    print(f"{export(path, out, where=where, overwrite=force):,} rows written to {out}")


def _value(text: str) -> Any:
    """What was meant by VALUE: a number, true or false, nothing (unknown), else text."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
