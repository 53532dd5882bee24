"""The command that fills an index: add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import (
    FileOptions,
    OwnIndexOption,
    Quiet,
    example,
    say,
    show,
    with_file_options,
)
from weightsearch.errors import WeightsearchError

app = typer.Typer()


@app.command(
    epilog=example(
        "weightsearch add sweep/ 'more/**/*.ckpt' --index runs/indexes/usps-v1",
        "weightsearch add sweep/ --metadata runs.csv --key file --run-column run_id",
        "weightsearch add s3://bucket/sweeps/ --inventory inventory.parquet",
        "weightsearch add runs/zoos/usps-v2",
    )
)
@with_file_options
def add(
    paths: Annotated[
        list[str], typer.Argument(help="Files, folders, glob patterns, zoos; on this machine or URLs.", metavar="PATH")
    ],
    files: FileOptions,
    index: OwnIndexOption = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write the files left out and why to this .csv.", show_default="none")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if anything was left out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Add checkpoints to an index, which is made where there is none, with what is known of them.

    Adding twice adds once.
    """
    path = index or runs.own_or_new_index(Path(paths[0]))
    say(f"index: {path}")

    from weightsearch.checkpoints.discovery import write_quarantine
    from weightsearch.search.add import add as run

    report = run(paths, path, sources=files.sources, dataset=files.dataset, inventory=files.inventory, quiet=quiet)
    from weightsearch.cli import render

    for line in render.left_out(report.quarantined, report.unknown, report.notes):
        say(line)
    if quarantine is not None:
        write_quarantine(quarantine, report.quarantined)
    show(render.add_report(report))
    left_out = len(report.quarantined) + sum(report.unknown.values())
    if left_out and (strict or report.added + report.already + report.signed + report.signed_already == 0):
        raise WeightsearchError(
            f"{left_out:,} of {left_out + report.added + report.already:,} checkpoints were left out; see above"
        )
