"""Commands that measure methods: tables, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import Device, Quiet, Workers, example, say, show
from weightsearch.errors import UsageError
from weightsearch.types import Baseline, Method, choose

app = typer.Typer()


@app.command(
    epilog=example(
        "weightsearch tables runs/zoos/usps-v1 runs/zoos/usps-v2",
        "weightsearch tables runs/zoos/usps-v2 --split run --method comvex-conv --method statistics-trees --trials 30",
        "weightsearch tables runs/zoos/usps-v2 --trials 10 --trials fc=2 --trials fc-linear=2",
    )
)
def tables(
    zoos: Annotated[list[Path], typer.Argument(help="Zoo directories.", metavar="ZOO")],
    out: Annotated[Path, typer.Option(help="Directory for tables.md, tables.json and PNGs.")] = runs.RUNS / "tables",
    trials: Annotated[
        list[str] | None,
        typer.Option(
            help="Settings to search at random, of each method; METHOD=N for one of them; repeatable.",
            show_default="10",
            metavar="N",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of the best setting that the table's mean and spread are of.")] = 5,
    epochs: Annotated[int, typer.Option(help="At most, of each fit.")] = 300,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join((*Method, *Baseline))}; repeatable.", show_default="all"),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="run, checkpoint or per-run-1; repeatable.", show_default="all")
    ] = None,
    curve: Annotated[bool, typer.Option(help="Also R² by number of training runs.")] = True,
    seed: Annotated[int, typer.Option(help="Seeds the search and the split.")] = 0,
    workers: Workers = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Every method and baseline side by side on zoos, beside the paper's figures. Resumes where it was."""
    methods_by_name = {name.value: name for name in (*Method, *Baseline)}
    unknown = [name for name in method or () if name not in methods_by_name]
    if unknown:
        raise UsageError(f"--method {unknown[0]}: choose among {', '.join(methods_by_name)}")

    from weightsearch.evaluation import comparison as library
    from weightsearch.viz.curves import draw_comparison

    every, some = _trials(trials or [], methods_by_name)
    protocols = [choose(library.ProtocolName, name, "--split") for name in split or library.ProtocolName]
    methods = [methods_by_name[name] for name in method] if method else library.PREDICTORS
    zoo_tables = library.make_tables(
        zoos, out, trials=every, trials_of=some, seeds=seeds, epochs=epochs, methods=methods,
        protocols=protocols, curve=curve, seed=seed, workers=workers, device=device, quiet=quiet,
    )  # fmt: skip
    draw_comparison(zoo_tables, out)
    for zoo in zoo_tables:
        show(library.render(zoo))
    say(f"written: {out}")


def _trials(
    texts: list[str], methods_by_name: dict[str, Method | Baseline]
) -> tuple[int, dict[Method | Baseline, int]]:
    """`N` and `METHOD=N`: how many trials all methods have, and those that differ."""
    every, some = 10, {}
    for text in texts:
        name, given, number = text.rpartition("=")
        if not number.isdecimal() or (given and name not in methods_by_name):
            raise UsageError(f"--trials {text}: give a number, or METHOD=N with one of {', '.join(methods_by_name)}")
        if given:
            some[methods_by_name[name]] = int(number)
        else:
            every = int(number)
    return every, some


@app.command(
    epilog=example(
        "weightsearch evaluate runs/zoos/usps-v1 --quick",
        "weightsearch evaluate runs/zoos/mnist-v1 runs/zoos/fashion-mnist-v1 --method statistics --json",
        "weightsearch evaluate --public small-cnn-zoo downloads/cifar10",
    )
)
def evaluate(
    zoos: Annotated[list[Path], typer.Argument(help="Zoo directories; the folder of --public.", metavar="ZOO")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"raw-weights, {', '.join(Method)}, {Baseline.STATISTICS_TREES}; repeatable.",
            show_default="all but fc",
        ),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(
            help="small-cnn-zoo or wild-park: the folder holds its published files; Kendall's tau on its published "
            "split beside published figures.",
            metavar="COLLECTION",
            show_default="none",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each method, on other deals of training and validation.")] = 5,
    out: Annotated[Path, typer.Option(help="Directory for evaluation.md and evaluation.json.")] = runs.RUNS
    / "evaluations",
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, 20 epochs, 200 queries: a first look, worse than it can be.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Fits at a time.", show_default="one per core")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, method and metric.")] = False,
    quiet: Quiet = False,
) -> None:
    """How true each method's answers are about networks of runs it has not seen: prediction, neighbours, twins, noise.

    The test runs of each zoo are the queries, its training runs the index. Resumes where it was.
    """
    from dataclasses import asdict

    if public is not None:
        return _evaluate_public(public, zoos, method, seeds, out, quick, workers, as_json, quiet)

    from weightsearch.evaluation import evaluate as library
    from weightsearch.evaluation.report import render as tables_of
    from weightsearch.files import plain

    seeds, epochs, queries = (1, 20, 200) if quick else (seeds, library.EPOCHS, library.QUERIES)
    done = library.evaluate(
        zoos, out, methods=tuple(method) if method else library.METHODS, seeds=seeds, epochs=epochs, queries=queries,
        workers=workers, quiet=quiet,
    )  # fmt: skip
    if as_json:
        for row in done.rows:
            print(json.dumps(plain(asdict(row))))
    else:
        show(tables_of(done.rows))
    say(f"written: {out}")


def _evaluate_public(
    public: str,
    folders: list[Path],
    method: list[str] | None,
    seeds: int,
    out: Path,
    quick: bool,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from dataclasses import asdict

    from weightsearch.evaluation import public_splits as library
    from weightsearch.files import plain

    collection = choose(library.Collection, public, "--public")
    if len(folders) != 1:
        raise UsageError(f"--public {collection} takes one folder, and {len(folders)} are given")
    if workers is not None:
        raise UsageError(f"--workers does not go with --public {collection}, whose fits run one by one; leave it out")
    done = library.evaluate_public(
        collection, folders[0], out, methods=tuple(method or ()), seeds=1 if quick else seeds,
        epochs=20 if quick else None, quiet=quiet,
    )  # fmt: skip
    if as_json:
        for row in [*map(asdict, done.fits), *map(asdict, done.published)]:
            print(json.dumps(plain(row)))
        for note in done.notes:
            say(note)
    else:
        show(library.to_table(done).to_rich())
    say(f"written: {out / f'public-{collection}.json'}")
