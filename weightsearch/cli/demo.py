"""The command that shows the whole path: demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import Quiet, example, show

app = typer.Typer()


@app.command(epilog=example("weightsearch demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Directory for all that is made.")] = runs.RUNS,
    runs_: Annotated[int, typer.Option("--runs", help="Networks to train.")] = 150,
    quiet: Quiet = False,
) -> None:
    """The whole path on scikit-learn's digits: build a zoo, train, query two held-out networks, draw."""
    from weightsearch.demo import demo as run

    run(out, runs=runs_, quiet=quiet, show=show)
