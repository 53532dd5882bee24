"""The command line: parse, call one library function, print. Results to stdout, progress and errors to stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from weightsearch import runs
from weightsearch.errors import Interrupted, UsageError, WeightsearchError
from weightsearch.types import Baseline, Method, Metric, SplitBy, Target

app = typer.Typer(
    help="The search engine for neural-network checkpoints: find networks that perform alike, from weights alone.",
    epilog="Start with `weightsearch demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
zoo_app = typer.Typer(help="Look at a zoo.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
IndexOption = Annotated[
    Path | None, typer.Option("--index", help="Index directory.", show_default="newest in runs/, else index/")
]
OwnIndexOption = Annotated[
    Path | None, typer.Option("--index", help="Index directory.", show_default="newest in runs/indexes")
]


Metadata = Annotated[
    Path | None,
    typer.Option(help="Table of accuracies and other columns: .csv, .json or .parquet.", show_default="none"),
]
Key = Annotated[str, typer.Option(help="Its column of the files' paths, ends of paths, or names.")]
RunColumn = Annotated[
    str | None, typer.Option(help="Name in the metadata that tells runs apart.", show_default="by folder")
]
RunPattern = Annotated[
    str | None,
    typer.Option(
        help="Regular expression for the path that tells runs apart; its first group counts.", show_default=""
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"weightsearch {version('weightsearch')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def example(*commands: str) -> str:
    """An epilog for `--help`, one command a line."""
    return "\n\n".join(["Example:", *commands])


@app.command(
    epilog=example("weightsearch build-zoo", "weightsearch build-zoo --dataset usps --preset v2 --runs 300 --seed 7")
)
def build_zoo(
    dataset: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, svhn, usps, or a path (.npz, folder of images).")
    ] = "digits",
    preset: Annotated[str, typer.Option(help="v1 (16 filters, 86 epochs) or v2 (64 filters, 20 epochs).")] = "v1",
    runs_: Annotated[int, typer.Option("--runs", help="Networks to train, each by a random recipe.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(help="Zoo directory; an unfinished one goes on.", show_default="runs/zoos/DATASET-PRESET"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds recipes, weights, batches and dropout.")] = 0,
    epochs: Annotated[int | None, typer.Option(show_default="the preset's")] = None,
    filters: Annotated[int | None, typer.Option(show_default="the preset's")] = None,
    layers: Annotated[int | None, typer.Option(help="Convolutions.", show_default="the preset's")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="the preset's")] = None,
    recipes: Annotated[Path | None, typer.Option(help="TOML file that overrides parts of the preset.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where the dataset's files are.", show_default="$WEIGHTSEARCH_DATA, else a cache"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float16, of the stored weights.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one per core")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a population of small networks by random recipes and keep their checkpoints. Resumes where it was."""
    from weightsearch.zoo.build import build_zoo as run

    summary = run(
        out=out or runs.default_zoo(dataset, preset),
        dataset=dataset,
        runs=runs_,
        preset=preset,
        seed=seed,
        recipes=recipes,
        epochs=epochs,
        filters=filters,
        layers=layers,
        batch_size=batch_size,
        data_dir=data_dir,
        dtype=dtype,
        device=device,
        workers=workers,
        quiet=quiet,
    )
    from weightsearch import render

    show(render.build_summary(summary))


@app.command(
    "import",
    epilog=example(
        "weightsearch import small_cnn_zoo/svhn_cropped --out runs/zoos/svhn",
        r"weightsearch import sweep --run-pattern 'seed(\d+)' --metadata runs.csv --key file",
    ),
)
def import_zoo(
    folder: Annotated[Path, typer.Argument(help="Folder of a public zoo, or of anybody's checkpoints.")],
    out: Annotated[
        Path | None, typer.Option(help="Zoo directory; an unfinished one goes on.", show_default="runs/zoos/FOLDER")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="auto, small-cnn-zoo, ray-tune, comvex, huggingface or folder (anybody's).")
    ] = "auto",
    metadata: Metadata = None,
    key: Key = "path",
    run_column: RunColumn = None,
    run_pattern: RunPattern = None,
    dataset: Annotated[
        str | None, typer.Option(help="What the networks were trained on.", show_default="what the files say")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Fingerprint of the one to import.", show_default="the commonest")
    ] = None,
    runs_: Annotated[
        int | None, typer.Option("--runs", help="Import the first so many runs.", show_default="all")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Import a zoo that others have made, or your own folder of checkpoints, to train on. Resumes where it was."""
    from weightsearch.intake import Sources
    from weightsearch.zoo.importers import Layout
    from weightsearch.zoo.importers import import_zoo as run

    summary = run(
        folder,
        out or runs.imported_zoo(folder),
        layout=None if layout == "auto" else _choice(Layout, layout, "--layout", "auto or "),
        sources=Sources.make(metadata, key, run_column, run_pattern),
        dataset=dataset,
        architecture=architecture,
        runs=runs_,
        quiet=quiet,
    )
    from weightsearch import render

    show(render.import_summary(summary))
    for line in render.left_out(summary.quarantined, summary.others, summary.notes):
        _say(line)
    if summary.quarantined:
        _say(f"{len(summary.quarantined):,} left out in all: {summary.path / 'quarantine.csv'}")


@zoo_app.command("info", epilog=example("weightsearch zoo info runs/zoos/digits-v1"))
def zoo_info(
    zoo: Annotated[Path | None, typer.Argument(help="Zoo directory.", show_default="newest in runs/zoos")] = None,
) -> None:
    """What is in a zoo: runs, checkpoints, size, accuracy quartiles, accuracy by recipe choice."""
    path = zoo or runs.newest_zoo()

    from weightsearch.zoo.summary import render_summary, zoo_summary

    show(render_summary(zoo_summary(path)))


@app.command(
    epilog=example("weightsearch train", "weightsearch train runs/zoos/usps-v1 --method comvex-conv --trials 100")
)
def train(
    zoo: Annotated[Path | None, typer.Argument(help="Zoo directory.", show_default="newest in runs/zoos")] = None,
    method: Annotated[str, typer.Option(help=f"auto (the best on validation runs), {', '.join(Method)}.")] = "auto",
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
    workers: Annotated[int | None, typer.Option(help="Trials at a time.", show_default="one per core")] = None,
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
    chosen = None if method == "auto" else _choice(Method, method, "--method", "auto or ")
    split_by = _choice(SplitBy, split, "--split")
    distance = _choice(Metric, metric, "--metric")
    if add and (out is None or replace):
        raise UsageError("--add: name the index to add to with --out, without --replace")
    path = zoo or runs.newest_zoo()
    if zoo is None:
        _say(f"zoo: {path}")

    from weightsearch import render
    from weightsearch.training import train as run

    summary = run(
        path,
        out or runs.new_index(path),
        method=chosen,
        seed=seed,
        split_by=split_by,
        per_run=per_run,
        target=Target(target, lower_is_better),
        trials=trials,
        workers=workers,
        examples=examples,
        replace=replace,
        add=add,
        metric=distance,
        factory=factory,
        quiet=quiet,
    )
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
    dataset: Annotated[
        str | None, typer.Option(help="What the networks were trained on.", show_default="what the files say")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write the files left out and why to this .csv.", show_default="none")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if anything was left out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Add checkpoints to an index, with what is known of them. Adding twice adds once."""
    path = index or runs.own_index()
    _say(f"index: {path}")

    from weightsearch.adding import add as run
    from weightsearch.intake import Sources, write_quarantine

    sources = Sources.make(metadata, key, run_column, run_pattern)
    report = run(paths, path, sources=sources, dataset=dataset, quiet=quiet)
    from weightsearch import render

    for line in render.left_out(report.quarantined, report.unknown, report.notes):
        _say(line)
    if quarantine is not None:
        write_quarantine(quarantine, report.quarantined)
    show(render.add_report(report))
    left_out = len(report.quarantined) + sum(report.unknown.values())
    if left_out and (strict or report.added + report.already == 0):
        raise WeightsearchError(
            f"{left_out:,} of {left_out + report.added + report.already:,} checkpoints were left out; see above"
        )


@app.command(
    epilog=example(
        "weightsearch query index/examples/good.pt --k 5",
        "weightsearch query sweep/ --where \"optimizer = 'adam'\" --per-run 1 --json",
        "weightsearch query --id 1f00c94a --not-run",
    )
)
def query(
    models: Annotated[
        list[str] | None, typer.Argument(help="Checkpoint files, or folders of them.", metavar="MODEL.pt...")
    ] = None,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="Of an indexed checkpoint, or how it begins; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option(help="Rows in each list.")] = 10,
    index: IndexOption = None,
    where: Annotated[
        str | None, typer.Option(help='Condition that neighbours meet, in SQL: "epoch > 5 and dropout < 0.1".')
    ] = None,
    good: Annotated[
        str | None, typer.Option(help="Good is at least this: 0.9, or q75 for a quantile.", show_default="q75")
    ] = None,
    bad: Annotated[str | None, typer.Option(help="Bad is at most this.", show_default="q25")] = None,
    within: Annotated[float | None, typer.Option(help="Greatest distance of a neighbour.", show_default="any")] = None,
    not_run: Annotated[bool, typer.Option("--not-run", help="Leave out neighbours of the network's own run.")] = False,
    per_run: Annotated[
        int | None, typer.Option(help="At most this many neighbours of one run.", show_default="any")
    ] = None,
    run: Annotated[str | None, typer.Option(help="The network's run, where its file does not say.")] = None,
    epoch: Annotated[int | None, typer.Option(help="The network's epoch, where its file does not say.")] = None,
    activation: Annotated[
        str | None, typer.Option(help="The network's: relu, tanh, ...", show_default="what its file says")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="How the search was done, and its time.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of tables.")] = False,
) -> None:
    """What a network's weights say: its accuracy, its nearest good and bad neighbours, what became of runs like it."""
    if k < 1:
        raise UsageError(f"--k {k}: choose at least 1")
    if not models and not id_:
        raise UsageError("query needs a MODEL file or folder, or the --id of an indexed checkpoint")
    path = index or runs.newest_index()
    _say(f"index: {path}")

    from weightsearch.answers import Index

    opened = Index.open(path)
    asked: list[tuple[Path | None, str | None]] = [(None, id) for id in id_ or ()]
    failures = 0
    if models:
        from weightsearch.intake import find_files

        files, missing = find_files(models)
        if not files and not asked and len(missing) == 1:
            raise WeightsearchError(f"{missing[0].path}: {missing[0].reason}")
        for bad_file in missing:
            _complain(f"{bad_file.path}: {bad_file.reason}")
        asked = [*((file.path, None) for file in files), *asked]
        failures = len(missing)
    total = len(asked) + failures
    for number, (model, id) in enumerate(asked):
        try:
            answer = opened.query(
                model, k, id=id, where=where, good=good, bad=bad, within=within, not_run=not_run, per_run=per_run,
                run=run, epoch=epoch, activation=activation,
            )  # fmt: skip
        except UsageError:
            raise
        except WeightsearchError as error:  # the others still get their answers
            if total == 1:
                raise
            _complain(error)
            failures += 1
            continue
        if as_json:
            print(json.dumps(answer.to_dict()), flush=True)
        else:
            if number:
                print()
            _show_answer(answer, explain)
    if failures:
        raise WeightsearchError(f"{failures} of {total} networks could not be answered")


@app.command(epilog=example("weightsearch get 1f00c94a --out model.pt"))
def get(
    id: Annotated[str, typer.Argument(help="Of an indexed checkpoint, or how it begins; queries show it.")],
    out: Annotated[Path, typer.Option(help="File to write: .pt, .pth, .ckpt, .bin or .safetensors.")],
    index: IndexOption = None,
) -> None:
    """Write an indexed checkpoint's weights back as a state dict, from the zoo or the file that they came from."""
    path = index or runs.newest_index()
    _say(f"index: {path}")

    from weightsearch.answers import Index

    print(Index.open(path).get(id, out))


@app.command(
    epilog=example(
        "weightsearch viz",
        "weightsearch viz runs/zoos/usps-v1 runs/zoos/mnist-v1 --figure embedding --figure similarity",
        "weightsearch viz index --figure embedding --network model.pt --format svg --dark",
        "weightsearch viz index --interactive",
    )
)
def viz(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Zoos and indexes to draw, a row each (and tables.json files, for efficiency).",
            metavar="[ZOO_OR_INDEX]...",
            show_default="the index",
        ),
    ] = None,
    index: IndexOption = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help="distribution, efficiency, embedding, similarity or training; repeatable.", show_default="all"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for the files.", show_default="runs/figures/NAME")] = None,
    format: Annotated[str, typer.Option(help="png or svg.")] = "png",
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark.")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Write a map to explore in a browser, offline: one HTML file.")
    ] = False,
    projection: Annotated[str, typer.Option(help="umap, tsne or pca, of the embedding.")] = "umap",
    part: Annotated[
        str | None,
        typer.Option(help="test (held-out runs) or all.", show_default="test of a zoo, all of an index"),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What a zoo is drawn through: 'raw weights', {', '.join(Method)}; repeatable.",
            show_default="raw weights and the paper's three",
        ),
    ] = None,
    network: Annotated[
        list[Path] | None, typer.Option(help="Draw this checkpoint file into the embedding; repeatable.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Whose path `training` draws.", show_default="the one that improves most")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the projection, the fits and the sample of a large index.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw zoos and indexes: accuracies, embeddings, their similarity, a run's path, the trials of a search."""
    from weightsearch.viz import Format, Part, Projection, draw, draw_map

    chosen = _choice(Format, format, "--format")
    projected = _choice(Projection, projection, "--projection")
    drawn = _choice(Part, part, "--part") if part else None
    paths = list(sources or ()) + ([index] if index else [])
    if not paths:
        paths = [runs.newest_index()]
        _say(f"index: {paths[0]}")
    folder = out or runs.figures(*paths)
    if interactive:
        print(
            draw_map(
                paths, folder / "map.html", dark=dark, part=drawn, projection=projected, methods=method, seed=seed,
                quiet=quiet,
            )
        )  # fmt: skip
    if figure or not interactive:
        for written in draw(
            paths, folder, figure, format=chosen, dark=dark, projection=projected, part=drawn, methods=method,
            networks=network or (), run=run, seed=seed, quiet=quiet,
        ):  # fmt: skip
            print(written)


@app.command(
    epilog=example(
        "weightsearch report index",
        "weightsearch report runs/zoos/usps-v1 --document runs/evaluation/evaluation.md --out report.html",
    )
)
def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Zoos and indexes (and tables.json files, for efficiency).",
            metavar="[ZOO_OR_INDEX]...",
            show_default="the index",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file.", show_default="runs/reports/NAME.html")] = None,
    document: Annotated[
        list[Path] | None, typer.Option(help="Take in this tables.md or evaluation.md; repeatable.")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark.")] = False,
    part: Annotated[
        str | None, typer.Option(help="test (held-out runs) or all.", show_default="test of a zoo, all of an index")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="What a zoo is drawn through, as in viz; repeatable.", show_default="as in viz"),
    ] = None,
    network: Annotated[list[Path] | None, typer.Option(help="Draw this checkpoint file, too; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the projection, the fits and the sample of a large index.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Everything about zoos and indexes on one HTML page: figures, a map, metrics, tables, commands."""
    from weightsearch.viz import Part
    from weightsearch.viz import report as run

    drawn = _choice(Part, part, "--part") if part else None
    paths = list(sources or ())
    if not paths:
        paths = [runs.newest_index()]
        _say(f"index: {paths[0]}")
    print(
        run(
            paths, out or runs.report(*paths), documents=document or (), dark=dark, part=drawn, methods=method,
            networks=network or (), seed=seed, quiet=quiet,
        )
    )  # fmt: skip


@app.command(
    epilog=example(
        "weightsearch tables runs/zoos/usps-v1 runs/zoos/usps-v2",
        "weightsearch tables runs/zoos/usps-v2 --split run --method comvex-conv --method statistics-trees --trials 30",
    )
)
def tables(
    zoos: Annotated[list[Path], typer.Argument(help="Zoo directories.", metavar="ZOO...")],
    out: Annotated[Path, typer.Option(help="Directory for tables.md, tables.json and PNGs.")] = runs.RUNS / "tables",
    trials: Annotated[int, typer.Option(help="Settings to search at random, of each method.")] = 10,
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
    workers: Annotated[int | None, typer.Option(help="Fits at a time.", show_default="one per core")] = None,
    quiet: Quiet = False,
) -> None:
    """Every method and baseline side by side on zoos, beside the paper's figures. Resumes where it was."""
    known = {name.value: name for name in (*Method, *Baseline)}
    unknown = [name for name in method or () if name not in known]
    if unknown:
        raise UsageError(f"--method {unknown[0]}: choose among {', '.join(known)}")

    from weightsearch import tables as library

    protocols = [_choice(library.ProtocolName, name, "--split") for name in split or library.ProtocolName]
    methods = [known[name] for name in method] if method else library.PREDICTORS
    made = library.make_tables(
        zoos, out, trials=trials, seeds=seeds, epochs=epochs, methods=methods, protocols=protocols, curve=curve,
        seed=seed, workers=workers, quiet=quiet,
    )  # fmt: skip
    for zoo in made:
        show(library.render(zoo))
    _say(f"written: {out}")


@app.command(
    epilog=example(
        "weightsearch evaluate runs/zoos/usps-v1 --quick",
        "weightsearch evaluate runs/zoos/mnist-v1 runs/zoos/fashion-mnist-v1 --method statistics --json",
    )
)
def evaluate(
    zoos: Annotated[list[Path], typer.Argument(help="Zoo directories.", metavar="ZOO...")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"raw-weights, {', '.join(Method)}, {Baseline.STATISTICS_TREES}; repeatable.",
            show_default="all but fc",
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

    from weightsearch.evaluation import run as library
    from weightsearch.evaluation.report import render as tables_of
    from weightsearch.jobs import plain

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
    _say(f"written: {out}")


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
    _say(f"index: {path}")

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
    _say(f"index: {path}")

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
    _say(f"index: {path}")

    from weightsearch import render
    from weightsearch.index import info, rebuild

    rebuild(path, factory)
    show(render.index_info(info(path)))


@app.command(epilog=example("weightsearch doctor --index runs/indexes/usps-v1"))
def doctor(index: IndexOption = None) -> None:
    """Check all that an index promises, and repair what can be repaired. Ends with 1 where something stays broken."""
    path = index or runs.newest_index()
    _say(f"index: {path}")

    from weightsearch import render
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
    _say(f"index: {path}")

    from weightsearch.index import info

    found = info(path)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        from weightsearch import render

        show(render.index_info(found))


@app.command(epilog=example('weightsearch export rows.parquet --where "test_accuracy > 0.9"'))
def export(
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.", metavar="OUT.parquet")],
    where: Annotated[str | None, typer.Option(help="Only checkpoints for which this holds.")] = None,
    index: IndexOption = None,
) -> None:
    """Write an index's rows, embeddings included, to a Parquet file."""
    path = index or runs.newest_index()
    _say(f"index: {path}")

    from weightsearch.index import export

    print(f"{export(path, out, where=where):,} rows written to {out}")


@app.command(epilog=example("weightsearch demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Directory for all that is made.")] = runs.RUNS,
    runs_: Annotated[int, typer.Option("--runs", help="Networks to train.")] = 150,
    quiet: Quiet = False,
) -> None:
    """The whole path on scikit-learn's digits: build a zoo, train, query two held-out networks, draw."""
    from weightsearch.demo import demo as run

    run(out, runs=runs_, quiet=quiet, show=show)


def main() -> None:
    """The console script: whatever goes wrong ends in one line on stderr and a non-zero exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    try:
        code = app(prog_name="weightsearch", standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this
            print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except UsageError as error:
        _complain(error)
        sys.exit(2)
    except Interrupted as error:
        _complain(error)
        sys.exit(130)
    except WeightsearchError as error:
        _complain(error)
        sys.exit(1)
    except BrokenPipeError:  # `weightsearch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _complain(f"the disk is full ({error.filename or 'while writing'}); free some space and try again")
        else:
            _complain(error)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("WEIGHTSEARCH_DEBUG"):
            raise
        if hasattr(error, "format_message"):  # typer's own complaints about flags
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "weightsearch"
            if message := error.format_message().replace("\n", " "):  # empty where the help was printed instead
                _complain(f"{message} See `{command} --help`.")
            sys.exit(getattr(error, "exit_code", 2))
        _complain(
            f"internal: {type(error).__name__}: {str(error).partition(chr(10))[0]} "
            "(a bug; WEIGHTSEARCH_DEBUG=1 shows where)"
        )
        sys.exit(1)


def _choice(enum: Any, value: str, flag: str, others: str = "") -> Any:
    try:
        return enum(value)
    except ValueError:
        raise UsageError(f"{flag} {value}: choose {others}one of {', '.join(enum)}") from None


def _value(text: str) -> Any:
    """What was meant by VALUE: a number, true or false, nothing (unknown), else text."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _complain(error: object) -> None:
    print(f"error: {error}", file=sys.stderr)


def _show_answer(answer: Any, explain: bool) -> None:
    """Tables of the terminal's width; into a pipe or a file, which have none, text as wide as it is, without rich."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        from weightsearch import render

        show(render.answer(answer, explain))
    else:
        from weightsearch import wording

        print(wording.as_text(answer, explain), flush=True)


def show(renderable: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=120)  # a pipe or a file has no width of its own
    console.print(renderable)
