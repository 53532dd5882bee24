"""Commands that make and fill an index: train, add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import (
    Device,
    Key,
    Metadata,
    OwnIndexOption,
    Quiet,
    RunColumn,
    RunPattern,
    Weights,
    Workers,
    example,
    say,
    show,
)
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import Method, Metric, SplitBy, Target, choose

app = typer.Typer()

UNIVERSAL = "universal"


@app.command(
    epilog=example("weightsearch train", "weightsearch train runs/zoos/usps-v1 --method comvex-conv --trials 100")
)
def train(
    zoo: Annotated[Path | None, typer.Argument(help="Zoo directory.", show_default="newest in runs/zoos")] = None,
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
        universal = train_universal(path, out, options, from_scratch=from_scratch, quiet=quiet)
        show(render.universal_summary(universal))
        return
    summary = run(path, out, options, quiet=quiet)
    show(render.train_summary(summary))


@app.command(
    epilog=example(
        "weightsearch add sweep/ 'more/**/*.ckpt' --index runs/indexes/usps-v1",
        "weightsearch add sweep/ --metadata runs.csv --key file --run-column run_id",
        "weightsearch add runs/zoos/usps-v2",
    )
)
def add(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders, glob patterns, zoos.", metavar="PATH...")],
    index: OwnIndexOption = None,
    metadata: Metadata = None,
    key: Key = "path",
    run_column: RunColumn = None,
    run_pattern: RunPattern = None,
    weights: Weights = None,
    dataset: Annotated[
        str | None, typer.Option(help="What the networks were trained on.", show_default="what the files say")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write the files left out and why to this .csv.", show_default="none")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if anything was left out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Add checkpoints to an index, which is made where there is none, with what is known of them.

    Adding twice adds once.
    """
    path = index or runs.own_or_new_index(paths[0])
    say(f"index: {path}")

    from weightsearch.checkpoints.discovery import Sources, write_quarantine
    from weightsearch.search.add import add as run

    sources = Sources.make(metadata, key, run_column, run_pattern, weights)
    report = run(paths, path, sources=sources, dataset=dataset, quiet=quiet)
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
