"""`draw`: figures by name, of zoos and indexes, written to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from weightsearch import paths as runs
from weightsearch.errors import UsageError
from weightsearch.files import refuse_to_overwrite, write_whole
from weightsearch.progress import progress_bar
from weightsearch.search.index import Index
from weightsearch.types import choose
from weightsearch.viz import figures as drawn
from weightsearch.viz.curves import efficiency, is_tables, trials_in, trials_on
from weightsearch.viz.figures import Options
from weightsearch.viz.map import interactive
from weightsearch.viz.projection import Projection
from weightsearch.viz.report import commands_of, compose, png
from weightsearch.viz.sources import Part, Source, ZooSource, open_sources
from weightsearch.viz.style import Format, save, theme
from weightsearch.zoo.store import Zoo

Draw = Callable[[Sequence[Source], Options, Callable[[str], None]], Figure]
FIGURES: dict[str, Draw | None] = {
    "distribution": drawn.distribution,
    "efficiency": None,  # of trials, not of networks
    "embedding": drawn.embedding,
    "similarity": drawn.similarity,
    "training": drawn.training,
}
ENCODED = ("embedding", "similarity", "training")  # what needs a zoo's encoders
Drawable = Index | Zoo | str | Path


def draw(
    sources: Drawable | Sequence[Drawable],
    out: str | Path,
    figures: Sequence[str] | None = None,
    *,
    format: Format = Format.PNG,
    dark: bool = False,
    part: Part | None = None,
    projection: Projection = Projection.UMAP,
    methods: Sequence[str] | None = None,
    networks: Sequence[str | Path] = (),
    run: str | None = None,
    seed: int = 0,
    root: Path | None = None,
    quiet: bool = False,
    overwrite: bool = True,
) -> list[Path]:
    """Draws `figures` (names in `FIGURES`; None: all) of zoos and indexes, a row for each, into the directory `out`.

    An index is drawn through its own encoder, a zoo through raw weights and encoders that are fitted for it with the
    default settings, split by run, and kept in `root/fits` (`root` None: `runs`), so that drawing again fits nothing.
    Large ones are sampled with `seed`, and the headings say so. `efficiency` is drawn from a `tables.json` or from
    the searches on a zoo in `root/searches`; where neither is there, None leaves it out. Returns the files written.

    Args:
        part: `Part.TEST` draws checkpoints of held-out runs only (None: those of a zoo, all of an index).
        methods: what a zoo is drawn through: `raw weights` or names of encoders.
        networks: checkpoint files to draw into the embedding, joined to their neighbours.
        run: whose path `training` draws, as `usps-v1/17` or `17` (None: the one that improves the most).
        overwrite: False refuses to write over a file that is there.

    Example:
        >>> [path.name for path in draw('index', 'figures', ['distribution'], quiet=True)]
        ['distribution.png']
    """
    names = tuple(FIGURES) if figures is None else tuple(dict.fromkeys(figures))
    if unknown := [name for name in names if name not in FIGURES]:
        raise UsageError(f"no figure is called {unknown[0]!r}; choose among {', '.join(FIGURES)}")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out takes a directory for the figures")
    root = root or runs.RUNS
    tables, opened = _open(sources, methods, seed, root)
    if not opened:
        names = tuple(name for name in names if FIGURES[name] is None)
    groups = _groups(tables, opened, seed, root) if "efficiency" in names else []
    if not groups and figures is None:
        names = tuple(name for name in names if name != "efficiency")
    if not names or ("efficiency" in names and not groups):
        raise UsageError(
            "efficiency is drawn of a search's trials: name a tables.json (`weightsearch tables`) or a zoo that "
            "`weightsearch train --trials` has searched on"
        )
    suffix = choose(Format, format, "--format")
    for name in names:
        refuse_to_overwrite(out / f"{name}.{suffix}", overwrite)
    if set(names) & set(ENCODED):
        for source in opened:
            source.prepare(source.methods, quiet=quiet)
    options = Options(part, projection, seed, tuple(networks), run)
    written = []
    with progress_bar("drawing", len(names), unit="figures", quiet=quiet) as advance, theme(dark):
        for name in names:
            function = FIGURES[name]
            note = partial(_note, advance, name)
            figure = function(opened, options, note) if function else efficiency(groups)
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{name}.{suffix}"
            save(figure, path)
            written.append(path)
            advance()
    return written


def draw_map(
    sources: Drawable | Sequence[Drawable],
    path: str | Path,
    *,
    dark: bool = False,
    part: Part | None = None,
    projection: Projection = Projection.UMAP,
    methods: Sequence[str] | None = None,
    networks: Sequence[str | Path] = (),
    seed: int = 0,
    root: Path | None = None,
    quiet: bool = False,
    overwrite: bool = True,
) -> Path:
    """Writes a map of zoos and indexes to explore, one HTML file that needs no network. See `draw` for the arguments.

    Of more than 100,000 networks it shows a sample, and says so.

    Example:
        >>> draw_map('index', 'map.html', projection='pca', quiet=True)
        PosixPath('map.html')
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a directory; a map is one HTML file")
    refuse_to_overwrite(path, overwrite)
    _, opened = _open(sources, methods, seed, root or runs.RUNS)
    if not opened:
        raise UsageError("a map is drawn of zoos and indexes: name one")
    for source in opened:
        source.prepare(source.methods, quiet=quiet)
    options = Options(part, projection, seed, tuple(networks))
    total = sum(len(source.methods) for source in opened)
    with progress_bar("mapping", total, unit="maps", quiet=quiet) as advance:
        content = interactive(opened, options, partial(_note, advance, "map"), dark=dark)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def report(
    sources: Drawable | Sequence[Drawable],
    path: str | Path,
    *,
    documents: Sequence[str | Path] = (),
    dark: bool = False,
    part: Part | None = None,
    methods: Sequence[str] | None = None,
    networks: Sequence[str | Path] = (),
    seed: int = 0,
    root: Path | None = None,
    quiet: bool = False,
    overwrite: bool = True,
) -> Path:
    """Writes all figures, the map, the metrics and the commands that make them to one HTML page. See `draw`.

    Args:
        documents: Markdown files to take in, the `tables.md` and `evaluation.md` of those commands.

    Example:
        >>> report('index', 'report.html', quiet=True)  # doctest: +SKIP
        PosixPath('report.html')
    """
    path, root = Path(path), root or runs.RUNS
    if path.is_dir():
        raise UsageError(f"{path} is a directory; a report is one HTML file")
    refuse_to_overwrite(path, overwrite)
    if missing := [str(document) for document in documents if not Path(document).is_file()]:
        raise UsageError(f"--document {missing[0]}: there is no such file")
    tables, opened = _open(sources, methods, seed, root)
    if not opened:
        raise UsageError("a report is made of zoos and indexes: name one")
    for source in opened:
        source.prepare(source.methods, quiet=quiet)
    options = Options(part, seed=seed, networks=tuple(networks))
    groups = _groups(tables, opened, seed, root)
    names = [name for name in FIGURES if FIGURES[name] or groups]
    total = len(names) + 2
    with progress_bar("reporting", total, unit="parts", quiet=quiet) as advance:
        figures = {}
        with theme(dark):
            for name in names:
                function = FIGURES[name]
                note = partial(_note, advance, name)
                figures[name] = png(function(opened, options, note) if function else efficiency(groups))
                advance()
        content = interactive(opened, options, partial(_note, advance, "map"), dark=dark)
        advance()
        given = [
            Path(one)
            for one in ([sources] if isinstance(sources, Drawable) else sources)
            if isinstance(one, str | Path)
        ]
        whole = compose(
            opened, figures, content, options, documents=[Path(document) for document in documents],
            commands=commands_of(opened, given), dark=dark, note=partial(_note, advance, "report"),
        )  # fmt: skip
        advance()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, whole)
    return path


def _groups(
    tables: Sequence[Path], opened: Sequence[Source], seed: int, root: Path
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Trials to draw: of the tables, and of searches on the zoos."""
    groups = [group for table in tables for group in trials_in(table)]
    for source in opened:
        if isinstance(source, ZooSource) and (group := trials_on(source.zoo, seed=seed, root=root / "searches")):
            groups.append(group)
    return groups


def _open(
    sources: Drawable | Sequence[Drawable], methods: Sequence[str] | None, seed: int, root: Path
) -> tuple[list[Path], list[Source]]:
    """What is given, as files of tables and as things to draw."""
    given = [sources] if isinstance(sources, Drawable) else list(sources)
    if not given:
        raise UsageError("name at least one zoo or index to draw")
    tables = [Path(one) for one in given if isinstance(one, str | Path) and is_tables(Path(one))]
    opened = [
        source
        for one in given
        if not (isinstance(one, str | Path) and Path(one) in tables)
        for source in open_sources(one, methods, seed=seed, root=root / "fits")
    ]
    return tables, opened


def _note(advance: Callable[..., None], name: str, text: str) -> None:
    advance(0, note=f"{name}: {text}")
