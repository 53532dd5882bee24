"""Commands that make zoos and look at them: build-zoo, import, zoo info."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import (
    FileOptions,
    Json,
    Quiet,
    Ray,
    example,
    say,
    show,
    tell,
    with_file_options,
)
from weightsearch.errors import UsageError
from weightsearch.text_table import counted
from weightsearch.types import choose

if TYPE_CHECKING:
    from weightsearch.zoo.options import BuildOptions

app = typer.Typer()
zoo_app = typer.Typer(help="Look at a zoo.", no_args_is_help=True)


@app.command(
    epilog=example(
        "weightsearch build-zoo",
        "weightsearch build-zoo --dataset usps --preset v2 --runs 300 --seed 7",
        "weightsearch build-zoo --derive runs/zoos/digits-v1 --out runs/derived/digits-v1 --runs 20",
    )
)
def build_zoo(
    dataset: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, svhn, usps, or a path (.npz, folder of images).")
    ] = "digits",
    preset: Annotated[
        str, typer.Option(help="v1 (16 filters, 86 epochs), v2 (64 filters, 20 epochs) or wild (many architectures).")
    ] = "v1",
    runs_: Annotated[int, typer.Option("--runs", help="Networks to train, each by a random recipe.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(help="Zoo directory; an unfinished one goes on.", show_default="runs/zoos/DATASET-PRESET"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds recipes, weights, batches and dropout.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Of each run.", show_default="the preset's")] = None,
    filters: Annotated[int | None, typer.Option(help="Of each convolution.", show_default="the preset's")] = None,
    layers: Annotated[int | None, typer.Option(help="Convolutions.", show_default="the preset's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="the preset's")] = None,
    recipes: Annotated[Path | None, typer.Option(help="TOML file that overrides parts of the preset.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where the dataset's files are.", show_default="$WEIGHTSEARCH_DATA, else a cache"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float16, of the stored weights.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, or a graphics card: cuda, ... (not run on one yet).")] = "cpu",
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one per core")] = None,
    ray: Ray = None,
    derive: Annotated[
        Path | None,
        typer.Option(help="A zoo whose networks to copy in every way that people do, with the truth beside them."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a population of small networks by random recipes and keep their checkpoints. Resumes where it was.

    With --derive nothing is trained: --out, --runs and --seed say which copies of a zoo's networks are made, and where.
    """
    from weightsearch.zoo.build_zoo import build_zoo as run
    from weightsearch.zoo.options import BuildOptions, Dtype

    options = BuildOptions(
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
        dtype=choose(Dtype, dtype, "--dtype"),
        device=device,
        workers=workers,
        ray=ray,
    )
    if derive is not None:
        _derive(derive, out, options, quiet)
        return
    summary = run(out or runs.default_zoo(dataset, preset), options, quiet=quiet)
    from weightsearch.cli import render

    show(render.build_summary(summary))


def _derive(zoo: Path, out: Path | None, options: BuildOptions, quiet: bool) -> None:
    from weightsearch.zoo.derive import derive_zoo
    from weightsearch.zoo.options import BuildOptions

    others = replace(options, runs=BuildOptions.runs, seed=BuildOptions.seed)
    changed = [one.name for one in fields(others) if getattr(others, one.name) != one.default]
    if changed:
        raise UsageError(f"--{changed[0].replace('_', '-')} does not go with --derive, which trains nothing")
    if out is None:
        raise UsageError("--derive makes a folder of files: name it with --out")
    summary = derive_zoo(zoo, out, seed=options.seed, runs=options.runs, quiet=quiet)
    tell(
        f"{summary.path}: {counted(summary.networks, 'network')} and their copies in {counted(summary.files, 'file')}; "
        f"what {counted(summary.pairs, 'pair')} of them are to each other is in truth.json"
    )


@app.command(
    "import",
    epilog=example(
        "weightsearch import small_cnn_zoo/svhn_cropped --out runs/zoos/svhn",
        r"weightsearch import sweep --run-pattern 'seed(\d+)' --metadata runs.csv --key file",
    ),
)
@with_file_options
def import_zoo(
    folder: Annotated[
        str, typer.Argument(help="Folder of a public zoo, or of anybody's checkpoints; or a URL.", metavar="FOLDER")
    ],
    files: FileOptions,
    out: Annotated[
        Path | None, typer.Option(help="Zoo directory; an unfinished one goes on.", show_default="runs/zoos/FOLDER")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="auto, small-cnn-zoo, ray-tune, comvex, huggingface or folder (anybody's).")
    ] = "auto",
    architecture: Annotated[
        str | None, typer.Option(help="Fingerprint of the one to import.", show_default="all")
    ] = None,
    runs_: Annotated[
        int | None, typer.Option("--runs", help="Import the first so many runs.", show_default="all")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Import a zoo that others have made, or your own folder of checkpoints, to train on. Resumes where it was."""
    from weightsearch.zoo.import_zoo import ImportOptions, Layout
    from weightsearch.zoo.import_zoo import import_zoo as run

    options = ImportOptions(
        layout=None if layout == "auto" else choose(Layout, layout, "--layout", "auto or "),
        sources=files.sources,
        dataset=files.dataset,
        architecture=architecture,
        runs=runs_,
        inventory=files.inventory,
    )
    summary = run(folder, out or runs.imported_zoo(Path(folder)), options, quiet=quiet)
    from weightsearch.cli import render

    show(render.import_summary(summary))
    for line in render.left_out(summary.quarantined, summary.others, summary.notes, signed=False):
        say(line)
    if summary.quarantined:
        say(f"{len(summary.quarantined):,} left out in all: {summary.path / 'quarantine.csv'}")


@zoo_app.command("info", epilog=example("weightsearch zoo info runs/zoos/digits-v1"))
def zoo_info(
    zoo: Annotated[
        Path | None, typer.Argument(help="Zoo directory.", metavar="ZOO", show_default="newest in runs/zoos")
    ] = None,
    as_json: Json = False,
) -> None:
    """What is in a zoo: runs, checkpoints, size, accuracy quartiles, accuracy by recipe choice."""
    path = zoo or runs.newest_zoo()

    from weightsearch.zoo.summary import render_summary, zoo_summary

    summary = zoo_summary(path)
    if as_json:
        from dataclasses import asdict

        from weightsearch.files import to_json

        print(to_json(asdict(summary)))
    else:
        show(render_summary(summary))
