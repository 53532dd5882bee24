"""Vectors in two dimensions: PCA, t-SNE, UMAP; seeded, and the same picture for the same seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from enum import StrEnum

import numpy as np

from weightsearch.distance import prepare
from weightsearch.types import Metric

NEIGHBOURS = 15  # UMAP's default
PLACED_BY = 5  # neighbours that a new point is placed among
TSNE_WIDTH = 50  # wider vectors are reduced to their principal components first (van der Maaten & Hinton 2008)

SPREAD_STEPS = 60
MOST_COVERED = 0.2  # of a picture, by dots that are moved apart


class Projection(StrEnum):
    """How vectors are drawn in two dimensions.

    Example:
        >>> Projection('pca')
        <Projection.PCA: 'pca'>
    """

    UMAP = "umap"
    TSNE = "tsne"
    PCA = "pca"

    @property
    def label(self) -> str:
        return {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}[self.value]


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Positions `(m, k)` of the exact nearest of `vectors (n, D)` to each of `queries (m, D)`, and their distances.

    Nearest first. Both are as `prepare` leaves them.
    """
    from weightsearch.index.vectors import faiss  # which sets what faiss needs on macOS

    inner = metric is Metric.COSINE
    scores, positions = faiss.knn(
        queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT if inner else faiss.METRIC_L2
    )
    distances = 1 - scores if inner else np.sqrt(np.maximum(scores, 0))
    return positions.astype(np.int64), np.maximum(distances, 0).astype(np.float32)


def project(
    vectors: np.ndarray,
    projection: Projection,
    metric: Metric,
    *,
    seed: int = 0,
    neighbours: int = NEIGHBOURS,
    on_epoch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Vectors `(n, D)` -> points `(n, 2)` float32.

    UMAP gets exact neighbours, found on all cores, and starts from the principal components: its own approximate
    search compiles for longer than this takes, and runs on one core when it is seeded. Only the layout is sequential.

    Args:
        neighbours: of each vector in UMAP's graph.
        on_epoch: called with the number of UMAP's epochs that are done, and how many there are.
    """
    prepared = prepare(vectors, metric)
    match projection:
        case Projection.PCA:
            return _principal(prepared, 2, seed)
        case Projection.TSNE:
            return _tsne(prepared, seed)
        case Projection.UMAP:
            return _umap(prepared, metric, neighbours, seed, on_epoch)


def place(new: np.ndarray, vectors: np.ndarray, points: np.ndarray, metric: Metric) -> np.ndarray:
    """Where new vectors `(m, D)` belong in a finished picture: points `(m, 2)`.

    Each is the mean of its nearest vectors' points, weighted as in UMAP's graph: 1 for the nearest, falling off with
    the distance beyond it (McInnes et al. 2018, section 3.1). UMAP's own transform starts there, too.
    """
    placed_by, distances = nearest(prepare(new, metric), prepare(vectors, metric), PLACED_BY, metric)
    beyond = distances - distances[:, :1]
    scale = beyond.mean(axis=1, keepdims=True).clip(1e-12)
    weights = np.exp(-beyond / scale)
    return np.einsum("mk,mkd->md", weights / weights.sum(axis=1, keepdims=True), points[placed_by])


def _principal(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    if len(vectors) == 1:  # which has no variance to be explained
        return np.zeros((1, 2), np.float32)
    count = min(count, *vectors.shape)
    points = PCA(count, svd_solver="randomized", random_state=seed).fit_transform(vectors)
    return np.pad(points, ((0, 0), (0, max(0, 2 - count)))).astype(np.float32)


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    if vectors.shape[1] > TSNE_WIDTH:
        vectors = _principal(vectors, TSNE_WIDTH, seed)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def _umap(
    vectors: np.ndarray, metric: Metric, neighbours: int, seed: int, on_epoch: Callable[[int, int], None] | None
) -> np.ndarray:
    from threadpoolctl import threadpool_limits
    from umap import UMAP

    k = min(neighbours, len(vectors) - 1)
    start = _principal(vectors, 2, seed)
    if len(vectors) <= 4:  # too few for a graph
        return start
    nearest_rows, distances = nearest(vectors, vectors, k, metric)
    start = 10 * (start - start.min(axis=0)) / np.ptp(start, axis=0).clip(1e-12)
    epochs = 500 if len(vectors) <= 10_000 else 200  # UMAP's defaults
    # Numba sets the number of OpenMP's threads, which PyTorch shares: it would train ten times slower from then on.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread, and that `transform` is unavailable
        return UMAP(
            n_neighbors=k,
            n_epochs=epochs,
            precomputed_knn=(nearest_rows, distances),
            init=start,
            random_state=seed,
            n_jobs=1,
            tqdm_kwds=_counter(on_epoch, epochs),
        ).fit_transform(start)  # the neighbours and the start are given: the vectors themselves are not needed


def _counter(on_epoch: Callable[[int, int], None] | None, epochs: int) -> dict[str, object]:
    """Options of UMAP's tqdm bar that make it call `on_epoch` instead of printing."""

    class Lines:
        def write(self, text: str) -> None:
            if on_epoch and text.strip().isdigit():
                on_epoch(int(text), epochs)

        def flush(self) -> None:
            pass

    return {"disable": on_epoch is None, "file": Lines(), "bar_format": "{n}", "mininterval": 0.5}


def spread(points: np.ndarray, diameter: float) -> np.ndarray:
    """`points (n, 2)` moved apart until few dots overprint each other, each as little as that takes.

    The epochs of a run that hardly moves lie at one place: as one dot they would show one accuracy, and hide other
    runs' dots. `diameter` is a dot's, in a picture of width and height 1. Where there is no room they overprint less.
    """
    from scipy.spatial import cKDTree

    low, span = points.min(axis=0), np.ptp(points, axis=0).clip(1e-12)
    diameter = min(diameter, np.sqrt(MOST_COVERED / len(points)))
    moved = (points - low) / span + np.random.default_rng(0).normal(scale=1e-4 * diameter, size=points.shape)
    for _ in range(SPREAD_STEPS):
        first, second = cKDTree(moved).query_pairs(diameter, output_type="ndarray").T
        if not len(first):
            break
        apart = moved[first] - moved[second]
        length = np.hypot(*apart.T)[:, None].clip(1e-9)
        push = apart / length * (diameter - length) / 2
        shift = np.zeros_like(moved)
        np.add.at(shift, first, push)
        np.add.at(shift, second, -push)
        crowd = np.bincount(np.concatenate([first, second]), minlength=len(moved))
        moved += shift / np.sqrt(crowd.clip(1))[:, None]  # all pushes at once would overshoot
    return low + moved * span
