"""Distances between embeddings by NumPy, and the nearest by them."""

from __future__ import annotations

import numpy as np

from weightsearch.types import Metric


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(..., D)` divided by their Euclidean length; one of length 0 stays as it is.

    Example:
        >>> unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)


def prepare(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors `(n, D)` whose Euclidean distances order as the metric's do, float32: the cosine's are of length 1."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    return unit_length(vectors) if metric is Metric.COSINE else vectors


def pairwise(queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances `(m, n)` between prepared `queries (m, D)` and `rows (n, D)`: 1 - cosine similarity, or Euclidean."""
    products = queries @ rows.T
    if metric is Metric.COSINE:
        return 1 - products
    return np.sqrt(np.maximum((queries**2).sum(1)[:, None] + (rows**2).sum(1) - 2 * products, 0))


def nearest(distances: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k smallest of each row of `distances (m, n)`, smallest first: `(m, min(k, n))`."""
    count = min(k, distances.shape[1])
    columns = np.argpartition(distances, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(distances, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def smallest_distances(distances: np.ndarray, k: int) -> np.ndarray:
    """The k smallest of `distances (..., n)`, in any order: `(..., min(k, n))`."""
    count = min(k, distances.shape[-1])
    return np.partition(distances, count - 1, axis=-1)[..., :count]
