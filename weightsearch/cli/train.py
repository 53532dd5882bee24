"""The command that makes an index of a zoo: train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import (
    Device,
    Quiet,
    Ray,
    Workers,
    example,
    say,
    show,
)
from weightsearch.errors import UsageError
from weightsearch.types import Method, Metric, SplitBy, Target, choose

app = typer.Typer()

UNIVERSAL = "universal"


@app.command(
    epilog=example("weightsearch train", "weightsearch train runs/zoos/usps-v1 --method comvex-conv --trials 100")
)
def train(
    zoo: Annotated[
        Path | None, typer.Argument(help="Zoo directory.", metavar="ZOO", show_default="newest in runs/zoos")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help=f"auto (the best on validation runs), {', '.join(Method)}, or {UNIVERSAL}: for any architectures, "
            "calibrated to the zoo's labels. auto takes it where a zoo has several architectures or few runs."
        ),
    ] = "auto",
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help=f"Fit {UNIVERSAL} on this zoo alone, not from the shipped encoder.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Index directory to make.", show_default="a new one in runs/indexes")
    ] = None,
    target: Annotated[
        str, typer.Option(help="Column to predict and judge by: test_loss, train_accuracy, ...", metavar="COLUMN")
    ] = "test_accuracy",
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="As with a loss.")] = False,
    trials: Annotated[
        int,
        typer.Option(help="Search settings at random, this many of each method; resumes.", show_default="no search"),
    ] = 0,
    workers: Workers = None,
    device: Device = "cpu",
    ray: Ray = None,
    examples: Annotated[
        int, typer.Option(help="Keep this many test runs out of the index; write a checkpoint of each.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seeds the split and the fits.")] = 0,
    split: Annotated[
        str, typer.Option(help="run, or checkpoint: looser, as if other epochs were new networks.")
    ] = "run",
    per_run: Annotated[
        int | None, typer.Option(help="Fit on this many random checkpoints of each run.", show_default="all")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the index at --out.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Add the zoo's architecture to the index at --out.")] = False,
    metric: Annotated[str, typer.Option(help="cosine or l2, the distance between embeddings.")] = Metric.COSINE.value,
    factory: Annotated[
        str | None, typer.Option(help="FAISS's name for its index's type.", show_default="by size")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Fit encoders on a zoo, keep the one that predicts validation runs best, and index every checkpoint."""
    if add and (out is None or replace):
        raise UsageError("--add: name the index to add to with --out, without --replace")
    from weightsearch.training.options import TrainOptions

    options = TrainOptions(
        method=None if method in ("auto", UNIVERSAL) else choose(Method, method, "--method", f"auto, {UNIVERSAL} or "),
        seed=seed,
        split_by=choose(SplitBy, split, "--split"),
        per_run=per_run,
        target=Target(target, lower_is_better),
        trials=trials,
        workers=workers,
        device=device,
        ray=ray,
        examples=examples,
        replace=replace,
        add=add,
        metric=choose(Metric, metric, "--metric"),
        factory=factory,
    )
    path = zoo or runs.newest_zoo()
    if zoo is None:
        say(f"zoo: {path}")

    from weightsearch.cli import render
    from weightsearch.training.train import train as run
    from weightsearch.training.train_universal import suits, train_universal

    if from_scratch and options.method is not None:
        raise UsageError(f"--from-scratch fits {UNIVERSAL}; leave out --method {method}")
    out = out or runs.new_index(path)
    if options.method is None and (method == UNIVERSAL or from_scratch or suits(path, options.target)):
        if ray is not None:
            raise UsageError(f"--ray runs trials of one method, and {UNIVERSAL} has none: name another --method")
        universal = train_universal(path, out, options, from_scratch=from_scratch, quiet=quiet)
        show(render.universal_summary(universal))
        held_out = universal.examples
    else:
        summary = run(path, out, options, quiet=quiet)
        show(render.train_summary(summary))
        held_out = summary.examples
    model = held_out[0].path if held_out else "MODEL.pt"
    say(f"next: weightsearch query {shlex.quote(str(model))} --index {shlex.quote(str(out))}")
