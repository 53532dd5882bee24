"""The command that shows the whole path, timed by step: demo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import Quiet, example, show

app = typer.Typer()
NAME = "demo"


@app.command(epilog=example("weightsearch demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Directory for all that is made.")] = runs.RUNS,
    runs_: Annotated[int, typer.Option("--runs", help="Networks to train.")] = 150,
    quiet: Quiet = False,
) -> None:
    """The whole path on scikit-learn's digits: build a zoo, train, query two held-out networks, draw."""
    run_demo(out, runs=runs_, quiet=quiet)


def run_demo(out: Path, *, runs: int, quiet: bool) -> None:
    """Builds, trains, queries and draws into `out`, and shows every step's result.

    Run again, it keeps the zoo that is there and makes the index and the pictures anew.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from weightsearch.cli import render
    from weightsearch.search.index import Index
    from weightsearch.training.train import train
    from weightsearch.viz import draw
    from weightsearch.zoo.build_zoo import build_zoo

    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, explanation: str) -> Iterator[None]:
        show(Text(f"\n{name}: {explanation}", style="bold cyan"))
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    zoo, index, figures = out / "zoos" / NAME, out / "indexes" / NAME, out / "figures" / NAME
    with step("build-zoo", f"{runs} small CNNs on scikit-learn's digits, each by a random recipe"):
        show(render.build_summary(build_zoo(out=zoo, dataset="digits", preset="v1", runs=runs, quiet=quiet)))
    with step("train", "fit the encoders, keep the one that predicts validation runs best, index every checkpoint"):
        trained = train(zoo, index, examples=2, replace=True, quiet=quiet)
        show(render.train_summary(trained))
    with step("query", "a good and a bad network of runs that the index does not hold"):
        opened = Index.open(index)
        for example in trained.examples:
            show(Text())
            show(render.answer(opened.query(example.path, k=5)))
    with step("viz", "UMAP, similarity and accuracies"):
        drawn = draw(opened, figures, quiet=quiet)

    summary = Table.grid(padding=(0, 2))
    summary.add_row("zoo", str(zoo), f"{seconds['build-zoo']:.0f} s")
    summary.add_row("index", str(index), f"{seconds['train']:.0f} s")
    summary.add_row("answers", f"for {len(trained.examples)} networks, above", f"{seconds['query']:.1f} s")
    summary.add_row("pictures", ", ".join(map(str, drawn)), f"{seconds['viz']:.0f} s")
    good = next((example for example in trained.examples if "bad" not in example.path.name), trained.examples[0])
    show(
        Group(
            Text("\nMade", style="bold"),
            summary,
            Text("\nTry next", style="bold"),
            Text(f"  weightsearch query {good.path} --index {index} --k 10"),
            Text("  weightsearch query index/examples/good.pt --index index   # real USPS networks, indexed already"),
            Text(f"  weightsearch zoo info {zoo}"),
        )
    )
