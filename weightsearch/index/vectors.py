"""One architecture's vectors in FAISS: a cache of the catalogue's embeddings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.types import Metric

if sys.platform == "darwin":
    # torch and faiss each bring an OpenMP runtime on macOS, which aborts the process unless told that this is meant.
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")

import faiss


def build(numbers: np.ndarray, vectors: np.ndarray, metric: Metric) -> faiss.Index:
    """An exact index of `vectors (n, D)` under the ids `numbers (n,)`."""
    flat = faiss.IndexFlatIP if metric is Metric.COSINE else faiss.IndexFlatL2
    index = faiss.IndexIDMap2(flat(vectors.shape[1]))
    index.add_with_ids(_prepare(vectors, metric), numbers)
    return index


def search(
    index: faiss.Index, vector: np.ndarray, k: int, metric: Metric, among: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances of the up to `k` vectors nearest to `vector (D,)`, nearest first, among ids `among` or all.

    Cosine distance is 1 - cosine similarity; L2 the Euclidean distance.
    """
    if vector.shape != (index.d,) or not np.isfinite(vector).all():
        raise WeightsearchError(f"expected a finite vector of {index.d} values, got shape {vector.shape}")
    parameters = None
    if among is not None:  # IndexIDMap changes its parameters while searching: make them anew each time
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBatch(among))  # type: ignore[call-arg]
    scores, ids = index.search(_prepare(vector[None], metric), min(k, index.ntotal), params=parameters)
    found = ids[0] >= 0  # too few results are padded with -1
    scores, ids = scores[0][found].astype(np.float64), ids[0][found]
    distances = 1.0 - scores if metric is Metric.COSINE else np.sqrt(scores)
    return ids, np.maximum(distances, 0.0)


def save(index: faiss.Index, path: Path) -> None:
    path.write_bytes(faiss.serialize_index(index).tobytes())  # not write_index, whose full disk is no OSError


def load(path: Path) -> faiss.Index:
    return faiss.read_index(str(path))


def _prepare(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, np.float32)
    if metric is Metric.COSINE:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return vectors
