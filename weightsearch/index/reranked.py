"""The vectors of more than a million rows: codes of two bits a value in FAISS, which are searched, and beside them the
exact vectors in a memory-mapped file, by which what the codes find is ranked anew.

Codes are RaBitQ's (Gao et al. 2024, https://arxiv.org/abs/2405.12497; several bits: https://arxiv.org/abs/2409.09913)
in inverted lists. Rows that are added are appended to both; nothing is trained again until there are four times as
many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from weightsearch.distance import prepare
from weightsearch.errors import UsageError
from weightsearch.files import sync, write_whole
from weightsearch.index import lists, paged, vectors
from weightsearch.index.manifest import describe_file
from weightsearch.index.paged import PagedVectors
from weightsearch.index.vectors import RECALL, Cache, CacheInfo, Depth
from weightsearch.types import Metric

ROWS_PER_LIST = 40  # to train with, of which FAISS wants 39
BLOCK = 100_000
GROWTH = 4  # times the rows that it was trained for, and the lists are made anew
DEAD_SHARE = 0.2  # of removed rows, from which on the file is made anew
TUNING_QUERIES, ALL_LISTS_QUERIES = 100, 20
BY_CODES = 0.998  # of the wanted ones that are to be among the candidates where all lists are searched
MOST_CANDIDATES = 64

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]


def is_reranked(factory: str) -> bool:
    """Whether FAISS's type by this name is kept beside exact vectors."""
    return "RaBitQ" in factory and factory.startswith("IVF")


def blocks_of(numbers: np.ndarray, embeddings: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and embeddings that are in memory, as `write` takes them."""
    for start in range(0, len(numbers), BLOCK):
        yield numbers[start : start + BLOCK], embeddings[start : start + BLOCK]


def can_grow(cache: Cache | None, numbers: np.ndarray) -> bool:
    """Whether rows with ascending `numbers (n,)` can be had by appending to the cache, if that is of this kind."""
    if cache is None or cache.paged is None or not len(cache.numbers):
        return False
    held = numbers[: np.searchsorted(numbers, cache.numbers[-1], side="right")]
    kept = np.searchsorted(cache.numbers, held)  # each is there: numbers only grow
    all_held = bool((cache.numbers[kept] == held).all())
    few_dead = len(held) >= (1 - DEAD_SHARE) * len(cache.numbers)
    return all_held and few_dead and len(numbers) <= GROWTH * (cache.info.trained_rows or 0)


def write(
    directory: Path,
    generation: int,
    blocks: Blocks,
    metric: Metric,
    factory: str,
    before: Path | None = None,
    cache: Cache | None = None,
) -> CacheInfo:
    """Writes `vectors-G.faiss` with what stands beside it, in memory for no more than the codes and a block.

    Args:
        blocks: numbers `(m,)`, ascending, and embeddings `(m, D)`.
        before: the FAISS file to which they are appended, opened as `cache`; None makes all anew.
    """  # fmt: skip
    start = 0 if cache is None or cache.paged is None else len(cache.paged.matrix)
    if cache is None or cache.paged is None or before is None:
        path, cache = directory / f"vectors-{generation}.float32", None
    else:
        path = cache.paged.path
        cache.paged.check(np.array([start - 1]))  # its page gets another checksum
    fresh: list[np.ndarray] = []
    width = 0

    def prepared() -> Iterator[np.ndarray]:
        nonlocal width
        for numbers, embeddings in blocks:
            fresh.append(np.asarray(numbers, np.int64))
            width = embeddings.shape[1]
            yield prepare(embeddings, metric)

    rows = paged.append(path, start, prepared())
    numbers = np.concatenate([np.empty(0, np.int64), *fresh])
    width = width or (0 if cache is None else cache.inner.d)
    stem = directory / f"vectors-{generation}"
    earlier = None if cache is None else cache.paged
    exact = paged.describe(path, rows, width, stem.with_suffix(".pages"), earlier)
    file = PagedVectors.open(directory, exact)
    assert file is not None
    if cache is None:
        index = faiss.IndexIDMap(_trained(factory, file.matrix, metric))
        info = CacheInfo(factory, rows, trained_rows=rows)
    else:
        index = faiss.read_index(str(before))  # not mapped, which cannot be added to
        info = cache.info
    for first in range(start, rows, BLOCK):
        last = min(first + BLOCK, rows)
        index.add_with_ids(file.matrix[first:last], numbers[first - start : last - start])
    depths = info.depths if cache is not None else _tune(Cache.of(index, info, file), metric)
    codes = stem.with_suffix(".faiss")
    content = faiss.serialize_index(index).data
    write_whole(codes, content)
    described = describe_file(codes) | lists.describe(faiss.extract_index_ivf(index.index), content)
    changes: dict[str, Any] = {"rows": rows, "depths": depths, "exact": exact, "file": described}
    if depths:
        changes |= {"nprobe": depths[0]["nprobe"], "recall": depths[0]["recall"]}
    info = CacheInfo(**{**asdict(info), **changes})
    vectors.write_info(codes, info)
    sync(directory)
    return info


def _trained(factory: str, matrix: np.ndarray, metric: Metric) -> Any:
    """An empty FAISS index, trained on a sample."""
    inner = vectors.make_inner(factory, matrix.shape[1], metric)
    inverted = faiss.extract_index_ivf(inner)
    inverted.cp.min_points_per_centroid = 1  # fewer than it likes are only so many in tests
    wanted = min(len(matrix), max(ROWS_PER_LIST * inverted.nlist, 10_000))
    chosen = np.sort(np.random.default_rng(0).choice(len(matrix), wanted, replace=False))
    try:
        inner.train(matrix[chosen])
    except RuntimeError as error:
        fault = str(error).splitlines()[0].rpartition("Error: ")[2]
        raise UsageError(f"--factory {factory}: FAISS cannot train it on {len(matrix):,} rows ({fault})") from error
    return inner


def _tune(cache: Cache, metric: Metric) -> list[Depth]:
    """For each of `vectors.DEPTHS` how many candidates and lists find `RECALL` of a sample's neighbours of these ranks.

    The nearest of all are of the sample's own runs, near-copies that any nprobe finds (see `vectors.tune`).
    """
    assert cache.paged is not None
    matrix = cache.paged.matrix
    chosen = np.random.default_rng(1).choice(len(matrix), min(TUNING_QUERIES, len(matrix)), replace=False)
    queries = matrix[chosen]
    kind = faiss.METRIC_INNER_PRODUCT if metric is Metric.COSINE else faiss.METRIC_L2
    truth = faiss.knn(queries, matrix, min(vectors.DEPTHS[-1][1], len(matrix)), metric=kind)[1]
    nlist = faiss.extract_index_ivf(cache.inner).nlist

    def recall(start: int, end: int, candidates: int, nprobe: int, sample: int = TUNING_QUERIES) -> float:
        shares = [
            np.isin(
                ranks[start:end], vectors.nearest_by_codes(cache, query, candidates * end, metric, nprobe)[0]
            ).mean()
            for query, ranks in zip(queries[:sample], truth, strict=False)
        ]
        return float(np.mean(shares))

    tuned: list[Depth] = []
    candidates = nprobe = 1
    for start, end in vectors.DEPTHS:
        end = min(end, len(matrix))
        start = min(start, end // 2)
        while candidates < MOST_CANDIDATES and recall(start, end, candidates, nlist, ALL_LISTS_QUERIES) < BY_CODES:
            candidates *= 2
        while (share := recall(start, end, candidates, nprobe)) < RECALL and nprobe < nlist:
            nprobe = min(max(nprobe + 1, nprobe * 4 // 3), nlist)
        tuned.append({"ranks": end, "nprobe": nprobe, "candidates": candidates, "recall": share})
    return tuned
