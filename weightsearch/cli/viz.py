"""Commands that draw: viz, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import Force, IndexOption, Quiet, example, say
from weightsearch.errors import UsageError
from weightsearch.types import Method, choose

app = typer.Typer()

Drawn = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Zoos and indexes to draw, a row each (and tables.json files, for efficiency).",
        metavar="ZOO_OR_INDEX",
        show_default="the index",
    ),
]
Dark = Annotated[bool, typer.Option("--dark", help="Light on dark.")]
PartOption = Annotated[
    str | None, typer.Option(help="test (held-out runs) or all.", show_default="test of a zoo, all of an index")
]
Through = Annotated[
    list[str] | None,
    typer.Option(
        help=f"What a zoo is drawn through: 'raw weights', {', '.join(Method)}; repeatable.",
        show_default="raw weights and the paper's three",
    ),
]
Networks = Annotated[list[Path] | None, typer.Option(help="Draw this checkpoint file, too; repeatable.")]
Seed = Annotated[int, typer.Option(help="Seeds the projection, the fits and the sample of a large index.")]


@app.command(
    epilog=example(
        "weightsearch viz",
        "weightsearch viz runs/zoos/usps-v1 runs/zoos/mnist-v1 --figure embedding --figure similarity",
        "weightsearch viz index --figure embedding --network model.pt --format svg --dark",
        "weightsearch viz index --interactive",
    )
)
def viz(
    sources: Drawn = None,
    index: IndexOption = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help="distribution, efficiency, embedding, similarity or training; repeatable.", show_default="all"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for the files.", show_default="runs/figures/NAME")] = None,
    format: Annotated[str, typer.Option(help="png or svg.")] = "png",
    dark: Dark = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Write a map to explore in a browser, offline: one HTML file.")
    ] = False,
    projection: Annotated[str, typer.Option(help="umap, tsne or pca, of the embedding.")] = "umap",
    part: PartOption = None,
    method: Through = None,
    network: Networks = None,
    run: Annotated[
        str | None, typer.Option(help="Whose path `training` draws.", show_default="the one that improves most")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Draw zoos and indexes: accuracies, embeddings, their similarity, a run's path, the trials of a search."""
    from weightsearch.viz import Format, Part, Projection, draw, draw_map

    _refuse_what_does_nothing(figure, interactive, run, network, format, projection)
    chosen = choose(Format, format, "--format")
    projected = choose(Projection, projection, "--projection")
    drawn = choose(Part, part, "--part") if part else None
    paths = list(sources or ()) + ([index] if index else [])
    if not paths:
        paths = [runs.newest_index()]
        say(f"index: {paths[0]}")
    folder, overwrite = out or runs.figures(*paths), force or out is None
    if interactive:
        print(
            draw_map(
                paths, folder / "map.html", dark=dark, part=drawn, projection=projected, methods=method,
                networks=network or (), seed=seed, quiet=quiet, overwrite=overwrite,
            )
        )  # fmt: skip
    if figure or not interactive:
        for written in draw(
            paths, folder, figure, format=chosen, dark=dark, projection=projected, part=drawn, methods=method,
            networks=network or (), run=run, seed=seed, quiet=quiet, overwrite=overwrite,
        ):  # fmt: skip
            print(written)


def _refuse_what_does_nothing(
    figure: list[str] | None,
    interactive: bool,
    run: str | None,
    network: list[Path] | None,
    format: str,
    projection: str,
) -> None:
    drawn = set(figure or ()) or (set() if interactive else {"embedding", "training", "files"})
    if figure:
        drawn.add("files")
    if interactive:
        drawn |= {"map"}
    uses = {
        "--run": (run, {"training"}),
        "--network": (network, {"embedding", "map"}),
        "--format": (format != "png", {"files"}),
        "--projection": (projection != "umap", {"embedding", "training", "map"}),
    }
    for name, (given, needed) in uses.items():
        if given and not drawn & needed:
            raise UsageError(f"{name} does nothing for {', '.join(figure or ('the map',))}; leave it out")


@app.command(
    epilog=example(
        "weightsearch report index",
        "weightsearch report runs/zoos/usps-v1 --document runs/evaluation/evaluation.md --out report.html",
    )
)
def report(
    sources: Drawn = None,
    out: Annotated[Path | None, typer.Option(help="HTML file.", show_default="runs/reports/NAME.html")] = None,
    document: Annotated[
        list[Path] | None, typer.Option(help="Take in this tables.md or evaluation.md; repeatable.")
    ] = None,
    dark: Dark = False,
    part: PartOption = None,
    method: Through = None,
    network: Networks = None,
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Everything about zoos and indexes on one HTML page: figures, a map, metrics, tables, commands."""
    from weightsearch.viz import Part
    from weightsearch.viz import report as run

    drawn = choose(Part, part, "--part") if part else None
    paths = list(sources or ())
    if not paths:
        paths = [runs.newest_index()]
        say(f"index: {paths[0]}")
    print(
        run(
            paths, out or runs.report(*paths), documents=document or (), dark=dark, part=drawn, methods=method,
            networks=network or (), seed=seed, quiet=quiet, overwrite=force or out is None,
        )
    )  # fmt: skip
