"""Figures of an index: the embedding in two dimensions, the similarity matrix, the distribution of accuracies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from weightsearch.errors import UsageError
from weightsearch.index import Index
from weightsearch.progress import progress_bar
from weightsearch.types import Architecture, Metric

COLOURS = "viridis"  # perceptually uniform, and legible to colour-blind readers
DPI = 150
EMBEDDING_SAMPLE = 5_000
SIMILARITY_SAMPLE = 1_000


def draw(
    index: Index | str | Path,
    out: str | Path,
    figures: tuple[str, ...] | None = None,
    *,
    seed: int = 0,
    quiet: bool = False,
) -> list[Path]:
    """Draws `figures` (names in `FIGURES`; None: all) of every architecture of `index` as PNGs into `out`.

    Large indexes are sampled with `seed`, and the title says so. Returns the files written.
    """
    index = index if isinstance(index, Index) else Index.open(index)
    names = tuple(FIGURES) if figures is None else figures
    if unknown := [name for name in names if name not in FIGURES]:
        raise UsageError(f"no figure is called {unknown[0]!r}; choose among {', '.join(FIGURES)}")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out takes a directory for the figures")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    total = len(names) * len(index.architectures)
    with progress_bar("drawing", total, unit="figures", quiet=quiet) as advance:
        for fingerprint, architecture in index.architectures.items():
            suffix = f"-{fingerprint}" if len(index.architectures) > 1 else ""
            for name in names:
                advance(0, note=name)
                figure = FIGURES[name](index, architecture, np.random.default_rng(seed))
                path = out / f"{name}{suffix}.png"
                FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": "weightsearch"})
                written.append(path)
                advance()
    return written


def embedding(index: Index, architecture: Architecture, generator: np.random.Generator) -> Figure:
    """UMAP of the embeddings, coloured by test accuracy."""
    from umap import UMAP

    vectors, accuracy, sampled = _sample(index, architecture, EMBEDDING_SAMPLE, generator)
    neighbours = min(15, len(vectors) - 1)
    reducer = UMAP(
        n_neighbors=neighbours, metric="cosine" if index.metric is Metric.COSINE else "euclidean",
        random_state=int(generator.integers(2**31)), n_jobs=1,
        init="spectral" if len(vectors) > 50 else "random",
    )  # fmt: skip
    points = reducer.fit_transform(vectors)
    figure, axes = _figure(7.0, 5.6, "UMAP of the embeddings", index, sampled)
    order = np.argsort(index.target.quality(accuracy))  # the rarer good ones on top
    low, high = _range(index, accuracy)
    drawn = axes.scatter(
        *points[order].T, c=accuracy[order], cmap=COLOURS, vmin=low, vmax=high, s=9, linewidths=0, alpha=0.85
    )
    axes.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, label=_label(index))
    return figure


def similarity(index: Index, architecture: Architecture, generator: np.random.Generator) -> Figure:
    """Cosine similarity of all pairs of networks, sorted by accuracy in descending order; lighter is more similar."""
    vectors, accuracy, sampled = _sample(index, architecture, SIMILARITY_SAMPLE, generator)
    order = np.argsort(-index.target.quality(accuracy))
    unit = vectors[order] / np.linalg.norm(vectors[order], axis=1, keepdims=True).clip(1e-12)
    figure, axes = _figure(7.0, 5.6, "Cosine similarity, best network first", index, sampled)
    drawn = axes.imshow(unit @ unit.T, cmap=COLOURS, vmin=-1, vmax=1, interpolation="nearest")
    marks = np.linspace(0, len(order) - 1, 5).round().astype(int)
    labels = [f"{value:.2f}" for value in accuracy[order][marks]]
    axes.set_xticks(marks, labels)
    axes.set_yticks(marks, labels)
    axes.set(xlabel=_label(index), ylabel=_label(index))
    figure.colorbar(drawn, ax=axes, label="cosine similarity")
    return figure


def distribution(index: Index, architecture: Architecture, generator: np.random.Generator) -> Figure:
    """Histogram of the test accuracies, with the thresholds of good and bad."""
    accuracy = index.accuracies(architecture.fingerprint)
    bad, good = index.thresholds(architecture.fingerprint)
    low, high = _range(index, accuracy)
    figure, axes = _figure(
        7.0, 4.2, f"{_label(index).capitalize()} of the indexed checkpoints", index, f"{len(accuracy):,} checkpoints"
    )
    axes.hist(
        accuracy.clip(low, high), bins=np.linspace(low, high, 51), color="#31688e", edgecolor="white", linewidth=0.4
    )
    right, left = ("good", "bad") if index.target.lower_is_better else ("bad", "good")
    for value, label, side in ((min(bad, good), right, "right"), (max(bad, good), left, "left")):
        axes.axvline(value, color="#333333", linestyle="--", linewidth=1)
        text = f"{label} ≤ {value:.2f} " if side == "right" else f" {label} ≥ {value:.2f}"
        axes.text(value, 0.99, text, transform=axes.get_xaxis_transform(), ha=side, va="top", fontsize=8)
    axes.set(xlabel=_label(index), ylabel="checkpoints", xlim=(low, high))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES: dict[str, Callable[[Index, Architecture, np.random.Generator], Figure]] = {
    "embedding": embedding,
    "similarity": similarity,
    "distribution": distribution,
}


def _label(index: Index) -> str:
    return index.target.column.replace("_", " ")


def _range(index: Index, values: np.ndarray) -> tuple[float, float]:
    """[0, 1] for accuracies, else all values but the outermost 1 %, which are drawn at the edge."""
    if index.target.is_accuracy:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.01, 0.99])
    return float(low), float(high) if high > low else float(low) + 1.0


def _sample(
    index: Index, architecture: Architecture, most: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, str]:
    """Embeddings and accuracies of all rows or of `most` drawn ones, and how many of how many that is."""
    vectors = index.embeddings(architecture.fingerprint)
    accuracy = index.accuracies(architecture.fingerprint)
    total = len(vectors)
    if total <= most:
        return vectors, accuracy, f"{total:,} checkpoints"
    chosen = np.sort(generator.choice(total, most, replace=False))
    return vectors[chosen], accuracy[chosen], f"{most:,} of {total:,} checkpoints, drawn at random"


def _figure(width: float, height: float, title: str, index: Index, count: str):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    zoo = f"{index.manifest.get('dataset', 'unknown dataset')}, encoder {index.manifest.get('method', 'unknown')}"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
    axes.annotate(f"{zoo}, {count}", (0, 1), (0, 8), "axes fraction", "offset points", fontsize=9)
    return figure, axes
