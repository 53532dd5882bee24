"""The figures of one or several sources, a row for each: accuracies, the embedding, similarity, a run's path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure

from weightsearch.distance import prepare, unit_length
from weightsearch.errors import UsageError
from weightsearch.evaluation import block_means
from weightsearch.types import choose
from weightsearch.viz.projection import Projection, nearest, place, project, spread
from weightsearch.viz.sources import RAW, Part, Sample, Source, networks_in
from weightsearch.viz.style import COLOURS, DIVERGING, MARK, bare, label_of, limits, rows_of

EMBEDDING_SAMPLE = 5_000
SIMILARITY_SAMPLE = 1_000
RAW_BYTES = 1 << 30  # of raw weights that are drawn at a time
PANEL = 2.55  # inches, of the square pictures side by side,
ALONE = 4.4  # and of one alone
DRAWN = 0.9  # of it, within the frame
ABREAST = 6  # pictures side by side
EPOCHS_NAMED = 5  # on a run's path
ROOM = 0.05  # of the picture, between the names of two epochs
LONGEST_STEP = 0.25  # of the picture, that a run's path is drawn across
JOINED = 5  # neighbours that a network is joined to


@dataclass(frozen=True)
class Options:
    """What is drawn: which part, in which projection, with which networks or run marked in it."""

    part: Part | None = None  # None: held-out runs of a zoo, all of an index
    projection: Projection = Projection.UMAP
    seed: int = 0
    networks: tuple[str | Path, ...] = ()
    run: str | None = None

    def __post_init__(self) -> None:
        """Choices take their strings, too."""
        if self.part is not None:
            object.__setattr__(self, "part", choose(Part, self.part, "--part"))
        object.__setattr__(self, "projection", choose(Projection, self.projection, "--projection"))


Note = Callable[[str], None]


def distribution(sources: Sequence[Source], options: Options, note: Note) -> Figure:
    """Histogram of the test accuracies with the thresholds of good and bad, and test against training accuracy."""
    headings = [f"{source.title}: all {np.isfinite(source.values).sum():,} networks" for source in sources]
    figure, rows = rows_of("How accurate the networks are", headings, 8.6, 2.7)
    for row, source in zip(rows, sources, strict=True):
        left, right = row.subplots(1, 2, width_ratios=(1.45, 1))
        _histogram(left, source)
        _test_against_train(right, source)
    return figure


def _histogram(axes: Any, source: Source) -> None:
    low, high = limits(source.target, source.values)
    values = source.values[np.isfinite(source.values)].clip(low, high)
    axes.hist(values, bins=np.linspace(low, high, 51), color="#31688e", linewidth=0)
    bad, good = source.thresholds
    right, left = ("good", "bad") if source.target.lower_is_better else ("bad", "good")
    axes.set(xlabel=label_of(source.target), ylabel="networks", xlim=(low, high))
    axes.margins(y=0.16)  # room for the thresholds' names
    for value, label, side in ((min(bad, good), right, "right"), (max(bad, good), left, "left")):
        axes.axvline(value, color=MARK, linewidth=1.2)
        text = f"{label} ≤ {value:.2f} " if side == "right" else f" {label} ≥ {value:.2f}"
        near_edge = (value - low) / (high - low)  # the text stays inside
        side = "left" if near_edge < 0.3 else "right" if near_edge > 0.7 else side
        height = 0.985 if label == left else 0.9
        axes.text(value, height, f" {text.strip()} ", transform=axes.get_xaxis_transform(), ha=side, va="top")


def _test_against_train(axes: Any, source: Source) -> None:
    train, test = source.columns["train_accuracy"], source.columns["test_accuracy"]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    if np.isfinite(train.astype(float)).any():
        axes.scatter(train, test, s=4, color="#31688e", alpha=0.35, linewidths=0, rasterized=True)
    else:
        axes.text(0.5, 0.5, "no training accuracy known", ha="center")
    axes.set(xlabel="training accuracy", ylabel="test accuracy", xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")


def embedding(sources: Sequence[Source], options: Options, note: Note) -> Figure:
    """The networks in two dimensions, coloured by accuracy: raw weights and each encoder side by side.

    A network given by path is drawn into each picture as a star, joined to its nearest neighbours.
    """
    networks = networks_in(sources, options.networks)

    def marks(axes: Any, source: Source, method: str, vectors: np.ndarray, points: np.ndarray, sample: Sample) -> None:
        for path, network in networks[sources.index(source)]:
            vector = source.embed(method, network)[None]
            where = place(vector, vectors, points, source.metric)[0]
            joined, _ = nearest(prepare(vector, source.metric), prepare(vectors, source.metric), JOINED, source.metric)
            lines = [(where, points[other]) for other in joined[0]]
            axes.add_collection(LineCollection(lines, colors=MARK, linewidths=1.0, zorder=4))
            axes.scatter(*where, s=220, marker="*", color=MARK, edgecolors="white", linewidths=0.7, zorder=5)
            ink = rcParams["text.color"]  # on the star, too, which hides none of them so
            ring = 2.5 * _dot(len(points))
            axes.scatter(*points[joined[0]].T, s=ring, facecolors="none", edgecolors=ink, linewidths=0.5, zorder=6)
            predicted = source.predict(method, network)
            label = path.name if predicted is None else f"{path.name}, {predicted:.2f} predicted"
            _beside(axes, label, where, points, points[joined[0]])

    def more(source: Source) -> str:
        return f"; ★ is joined to its {JOINED} nearest" if networks[sources.index(source)] else ""

    return _pictures(sources, options, note, f"{options.projection.label} of the networks", marks, more)


def _beside(axes: Any, label: str, where: np.ndarray, points: np.ndarray, near: np.ndarray) -> None:
    """Writes beside a star: within the frame, and away from its neighbours where there is room."""
    low, high = points.min(axis=0), points.max(axis=0)
    across, up = (where - low) / (high - low).clip(1e-12)  # in [0, 1] within the picture
    side = np.sign(where[0] - near[:, 0].mean()) or 1
    if across > 0.6:
        side = -1  # the longer way has room
    elif across < 0.4:
        side = 1
    above = np.sign(where[1] - near[:, 1].mean()) or 1
    if up > 0.9:
        above = -1
    elif up < 0.1:
        above = 1
    axes.annotate(
        label, where, (9 * side, 9 * above), textcoords="offset points", ha="left" if side > 0 else "right",
        va="bottom" if above > 0 else "top", fontsize=8, zorder=7,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": axes.get_facecolor(), "alpha": 0.75, "linewidth": 0},
    )  # fmt: skip


def training(sources: Sequence[Source], options: Options, note: Note) -> Figure:
    """The path of one run's checkpoints through the embedding, from its first to its last epoch."""
    chosen = _choose_runs(sources, options)
    sources = [source for source in sources if id(source) in chosen]

    def marks(axes: Any, source: Source, method: str, vectors: np.ndarray, points: np.ndarray, sample: Sample) -> None:
        of_run = _checkpoints_of(source, chosen[id(source)])
        path = place(source.vectors(method, of_run), vectors, points, source.metric)
        drawn = {int(position): row for row, position in enumerate(sample.positions)}
        for row, position in enumerate(of_run.tolist()):
            if position in drawn:
                path[row] = points[drawn[position]]
        span = np.ptp(points, axis=0).clip(1e-12)
        steps = [
            (start, end)
            for start, end in pairwise(path)
            if np.hypot(*((end - start) / span)) < LONGEST_STEP  # a line across empty space would say that it was there
        ]
        axes.add_collection(LineCollection(steps, colors=MARK, linewidths=1.3, zorder=4))
        epochs = source.columns["epoch"][of_run]
        named: list[np.ndarray] = []
        rows = np.unique(np.linspace(0, len(of_run) - 1, min(len(of_run), EPOCHS_NAMED)).round().astype(int)).tolist()
        for row in (rows[0], rows[-1], *rows[1:-1]):  # the ends are named, the others where there is room
            if any(np.hypot(*((path[row] - other) / span)) < ROOM for other in named):
                continue
            named.append(path[row])
            right = (path[row][0] - points[:, 0].min()) / span[0] > 0.6
            axes.annotate(
                f"{epochs[row]:g}", path[row], (-6 if right else 6, -3), textcoords="offset points", fontsize=7,
                ha="right" if right else "left", zorder=7,
                bbox={"boxstyle": "round,pad=0.1", "facecolor": axes.get_facecolor(), "alpha": 0.7, "linewidth": 0},
            )  # fmt: skip
        axes.scatter(*path.T, s=10, color=MARK, zorder=5, linewidths=0)
        axes.scatter(*path[0], s=42, marker="o", facecolor="white", edgecolor=MARK, linewidths=1.5, zorder=6)
        axes.scatter(*path[-1], s=130, marker="*", color=MARK, edgecolors="white", linewidths=0.7, zorder=6)

    def more(source: Source) -> str:
        of_run = _checkpoints_of(source, chosen[id(source)])
        epochs, values = source.columns["epoch"][of_run], source.values[of_run]
        return (
            f"; run {chosen[id(source)]} by epochs, ○ epoch {epochs[0]:.0f} ({values[0]:.2f}) to "
            f"★ epoch {epochs[-1]:.0f} ({values[-1]:.2f})"
        )

    return _pictures(sources, options, note, f"A run's way through the {options.projection.label}", marks, more)


def _choose_runs(sources: Sequence[Source], options: Options) -> dict[int, str]:
    """The run whose path is drawn of each source, by the source's id(); those without a path are left out.

    Raises UsageError where no source has the run that is asked for.
    """
    chosen: dict[int, str] = {}
    fault: UsageError | None = None
    for source in sources:
        try:
            chosen[id(source)] = _choose_run(source, options)
        except UsageError as error:
            fault = error
    if not chosen and fault is not None:
        raise fault
    paths = {
        id(source): chosen[id(source)]
        for source in sources
        if id(source) in chosen and len(_checkpoints_of(source, chosen[id(source)])) > 1
    }
    return paths or chosen


def _choose_run(source: Source, options: Options) -> str:
    """The run that is asked for; else the drawn one whose accuracy rises the most from its first to its last epoch."""
    runs = source.runs
    if options.run is not None:
        named = [run for run in np.unique(runs) if options.run in (run, run.rpartition("/")[2])]
        if not named:
            raise UsageError(f"--run {options.run}: {source.path} has no such run; one of its runs is {runs[0]}")
        return named[0]
    part = source.sample(options.part, len(runs), options.seed).positions
    best, most = runs[part[0]], -np.inf
    for run in np.unique(runs[part]):
        qualities = source.target.quality(source.values[_checkpoints_of(source, run)])
        if qualities[-1] - qualities[0] > most:
            best, most = run, qualities[-1] - qualities[0]
    return best


def _checkpoints_of(source: Source, run: str) -> np.ndarray:
    """Positions of a run's checkpoints, by epoch."""
    of_run = np.flatnonzero((source.runs == run) & np.isfinite(source.values))
    return of_run[np.argsort(source.columns["epoch"][of_run], kind="stable")]


def _pictures(
    sources: Sequence[Source],
    options: Options,
    note: Note,
    title: str,
    marks: Callable[[Any, Source, str, np.ndarray, np.ndarray, Sample], None],
    more: Callable[[Source], str] = lambda _: "",
) -> Figure:
    """A row per source, a picture per method, coloured by accuracy; `marks` draws into each."""
    samples = [sample_of(source, options, EMBEDDING_SAMPLE) for source in sources]
    headings = [
        f"{source.title}: {sample.label}{_graph(source, sample, options)}{more(source)}"
        for source, sample in zip(sources, samples, strict=True)
    ]
    figure, rows = rows_of(title, headings, _width(sources), _lines(sources) * (_panel(sources) + 0.22))
    for row, source, sample in zip(rows, sources, samples, strict=True):
        values = source.values[sample.positions]
        order = np.argsort(source.target.quality(values), kind="stable")  # the rarer good ones on top
        low, high = limits(source.target, source.values)
        panels, everything = _panels(row, source, sources)
        for axes, method in zip(panels, source.methods, strict=True):
            note(f"{source.title}, {method}")
            vectors = source.vectors(method, sample.positions)

            def epoch(done: int, total: int, method: str = method, source: Source = source) -> None:
                note(f"{source.title}, {method}, UMAP epoch {done} of {total}")

            points = project(
                vectors, options.projection, source.metric, seed=options.seed, on_epoch=epoch,
                neighbours=source.neighbours(sample),
            )  # fmt: skip
            size = _dot(len(points))
            points = spread(points, np.sqrt(size) / (72 * DRAWN * _panel(sources)))
            drawn = axes.scatter(
                *points[order].T, c=values[order], cmap=COLOURS, vmin=low, vmax=high, s=size, linewidths=0, alpha=0.9,
                rasterized=True,
            )  # fmt: skip
            marks(axes, source, method, vectors, points, sample)
            axes.set_title(method)
            axes.set_box_aspect(1)
            bare(axes)
        row.colorbar(drawn, ax=everything, label=label_of(source.target), pad=0.01, aspect=18)
    return figure


def _dot(count: int) -> float:
    """The area of one of so many dots, in square points."""
    return float(np.clip(6000 / count, 4, 18))


def _graph(source: Source, sample: Sample, options: Options) -> str:
    return (
        f", each laid out by its {source.neighbours(sample)} nearest" if options.projection is Projection.UMAP else ""
    ) + ", moved apart where dots would cover each other"


def similarity(sources: Sequence[Source], options: Options, note: Note) -> Figure:
    """Cosine similarity of all pairs of networks, sorted by accuracy in descending order: red alike, blue opposite.

    Under each: its means over the pairs of two good networks, of two bad ones, and of a good with a bad one.
    """
    samples = [sample_of(source, options, SIMILARITY_SAMPLE) for source in sources]
    headings = [
        f"{source.title}: {sample.label}, {_good_and_bad(source)}"
        for source, sample in zip(sources, samples, strict=True)
    ]
    title = "Cosine similarity, the best network first"
    figure, rows = rows_of(title, headings, _width(sources), _lines(sources) * (_panel(sources) + 0.64))
    for row, source, sample in zip(rows, sources, samples, strict=True):
        quality = source.target.quality(source.values[sample.positions])
        order = np.argsort(-quality, kind="stable")
        positions, quality = sample.positions[order], quality[order]
        bad, good = (source.target.quality(threshold) for threshold in source.thresholds)
        panels, everything = _panels(row, source, sources)
        for axes, method in zip(panels, source.methods, strict=True):
            note(f"{source.title}, {method}")
            vectors = source.vectors(method, positions)
            unit = unit_length(vectors)
            drawn = axes.imshow(unit @ unit.T, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="antialiased")
            means = block_means(vectors, quality, good, bad)
            axes.set_title(method)
            bare(axes)
            for threshold in (np.searchsorted(-quality, -good, "right"), np.searchsorted(-quality, -bad, "left")):
                for line in (axes.axhline, axes.axvline):  # where good ends and where bad begins
                    line(threshold - 0.5, color="black", linewidth=0.7, alpha=0.8)
            named = {"good–good": means.good_good, "bad–bad": means.bad_bad, "good–bad": means.good_bad}
            # Adding 0 turns -0.00 into +0.00.
            axes.set_xlabel("\n".join(f"{name} {round(mean, 2) + 0.0:+.2f}" for name, mean in named.items()))
        panels[0].set_ylabel(f"← lower  {label_of(source.target)}  higher →")
        row.colorbar(
            drawn, ax=everything, label="cosine similarity: red alike, blue opposite", pad=0.01, aspect=15, shrink=0.8
        )
    return figure


def _good_and_bad(source: Source) -> str:
    bad, good = source.thresholds
    better, worse = ("≤", "≥") if source.target.lower_is_better else ("≥", "≤")
    return f"good {better} {good:.2f}, bad {worse} {bad:.2f}"


def _width(sources: Sequence[Source]) -> float:
    return min(ABREAST, max(len(source.methods) for source in sources)) * _panel(sources) + 1.0


def _lines(sources: Sequence[Source]) -> int:
    """Lines of pictures in a row: more than six wrap."""
    return -(-max(len(source.methods) for source in sources) // ABREAST)


def _panels(row: SubFigure, source: Source, sources: Sequence[Source]) -> tuple[list[Any], list[Any]]:
    """Axes for each of a source's methods, and all axes of the row: empty ones fill it, so that columns line up."""
    abreast = min(ABREAST, max(len(other.methods) for other in sources))
    everything = row.subplots(_lines(sources), abreast, squeeze=False).ravel().tolist()
    used = len(source.methods)
    for axes in everything[used:]:
        axes.set_axis_off()
    return everything[:used], everything


def _panel(sources: Sequence[Source]) -> float:
    return PANEL if max(len(source.methods) for source in sources) > 1 else ALONE


def sample_of(source: Source, options: Options, most: int) -> Sample:
    """What is drawn of a source; fewer than `most` where raw weights would fill the memory."""
    if RAW in source.methods:
        most = min(most, RAW_BYTES // (4 * source.architecture.size))
    return source.sample(options.part, most, options.seed)
