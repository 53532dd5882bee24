"""The commands by which many workers fill an index: embed, collect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import (
    FileOptions,
    OwnIndexOption,
    Quiet,
    Ray,
    example,
    say,
    show,
    with_file_options,
)

app = typer.Typer()


@app.command(
    epilog=example(
        "weightsearch embed sweep/ --out parts --index runs/indexes/usps-v1 --shard 0/8",
        "seq 0 7 | xargs -P 8 -I{} weightsearch embed sweep/ --out parts --shard {}/8",
    )
)
@with_file_options
def embed(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, glob patterns, URLs, as for add.", metavar="SRC")],
    files: FileOptions,
    out: Annotated[Path, typer.Option(help="Folder of the parts, which shards share.", metavar="PARTS")],
    index: Annotated[
        Path | None,
        typer.Option("--index", help="Index whose encoders embed.", show_default="none: signatures alone"),
    ] = None,
    shard: Annotated[str, typer.Option(help="Share i of n, from 0.", metavar="I/N")] = "0/1",
    ray: Ray = None,
    quiet: Quiet = False,
) -> None:
    """Read, sign and embed a share of many checkpoints into Parquet parts, for collect.

    What finished parts hold is not read again.
    """
    from weightsearch.cli import render
    from weightsearch.search.shards import embed as run

    report = run(
        paths, out,
        index=index, inventory=files.inventory, shard=shard, sources=files.sources, dataset=files.dataset, ray=ray,
        quiet=quiet,
    )  # fmt: skip
    for line in render.left_out(report.quarantined, report.unknown, report.notes):
        say(line)
    show(render.embed_report(report))


@app.command(epilog=example("weightsearch collect parts --index runs/indexes/usps-v1"))
def collect(
    parts: Annotated[Path, typer.Argument(help="Folder of the parts that embed wrote.", metavar="PARTS")],
    index: OwnIndexOption = None,
    quiet: Quiet = False,
) -> None:
    """Make or extend an index from the parts of all shards: as if add had read their files."""
    path = index or runs.own_or_new_index(parts)
    say(f"index: {path}")

    from weightsearch.cli import render
    from weightsearch.search.shards import collect as run

    report = run(parts, path, quiet=quiet)
    for line in render.left_out(report.quarantined, report.unknown, report.notes):
        say(line)
    show(render.add_report(report))
