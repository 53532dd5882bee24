"""One architecture's vectors in FAISS: a cache of the database's embeddings, and the distances from a query."""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
from xxhash import xxh3_128

from weightsearch.distance import prepare
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import MISREAD, sync, write_whole
from weightsearch.index.lists import VerifiedLists
from weightsearch.index.manifest import SEAL, describe_file, is_intact, is_intact_around, is_sealed, write_sealed
from weightsearch.index.paged import PagedVectors, block_bytes, page_checksums, read_ahead
from weightsearch.types import Metric

if sys.platform == "darwin":
    # torch and faiss each bring an OpenMP runtime on macOS, which aborts the process unless told that this is meant.
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")

import faiss

EXACT_LIMIT = 1_000_000  # rows beyond which codes are searched, and what they find is ranked anew by exact vectors
RECALL, RANKS = 0.99, (50, 100)  # share of the 51st to the 100th nearest that nprobe is tuned to find
TUNING_QUERIES = 200
TRAINING_ROWS_PER_LIST = 64
VERIFIERS = 4  # threads, at most, that verify vectors as they are searched
BLOCKS_EACH = 64  # the fewest that make a thread worth its start
DEPTHS = (50, 100), (500, 1000)  # ranks for which nprobe is tuned where codes are searched


class Depth(TypedDict):
    """How to search codes so that the share `recall` of the neighbours of about the first `ranks` is found."""

    ranks: int
    nprobe: int
    candidates: int  # taken by their codes, for each that is wanted
    recall: float


@dataclass(frozen=True)
class CacheInfo:
    """What stands in `vectors-G.json` beside the FAISS file of generation `G`."""

    factory: str  # FAISS's name for the type
    rows: int
    nprobe: int | None = None  # of an inverted file
    recall: float | None = None  # as tuned: of a sample's 51st to 100th nearest
    file: dict[str, Any] | None = None  # size, time and checksum; None where there is no file
    exact: dict[str, Any] | None = None  # of codes: the file of exact vectors (see `paged`)
    depths: list[Depth] | None = None  # of codes, shallow ones first
    trained_rows: int | None = None  # of codes: how many rows there were when they were made


@dataclass(frozen=True)
class Cache:
    """A FAISS index whose inner ids are positions, the rows' numbers `(n,)` and, where exact, a view of the vectors."""

    index: Any  # faiss.IndexIDMap over `inner`
    inner: Any
    numbers: np.ndarray  # int64 (n,), ascending
    info: CacheInfo
    matrix: np.ndarray | None  # float32 (n, D) view of the exact vectors, where they are kept, else None
    paged: PagedVectors | None = None  # whose matrix that is, where FAISS holds codes
    blocks: PagedVectors | None = None  # of the same matrix where FAISS has the vectors, verified as they are used
    lists: VerifiedLists | None = None  # of codes, where those are verified as they are searched

    @property
    def is_exact(self) -> bool:
        return self.matrix is not None and self.paged is None

    @classmethod
    def of(cls, index: Any, info: CacheInfo, paged: PagedVectors | None = None) -> Self:
        """Of a `faiss.IndexIDMap`, and the exact vectors beside it."""
        inner = faiss.downcast_index(index.index)
        matrix = None if paged is None else paged.matrix
        if isinstance(inner, faiss.IndexFlat) and inner.ntotal:
            matrix = faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d).reshape(inner.ntotal, inner.d)
        elif isinstance(inner, faiss.IndexFlat):
            matrix = np.empty((0, inner.d), np.float32)
        inverted = faiss.try_extract_index_ivf(inner)
        if inverted is not None:
            inverted.nprobe = info.nprobe or inverted.nprobe
            inverted.parallel_mode = int(paged is not None)  # 1: the lists of one query are shared out among the cores
        return cls(index, inner, faiss.vector_to_array(index.id_map), info, matrix, paged)


def build(numbers: np.ndarray, vectors: np.ndarray, metric: Metric, factory: str | None = None) -> Cache:
    """A FAISS index of `vectors (n, D)` under ascending `numbers (n,)`, exact up to a million unless `factory` says."""
    prepared = prepare(vectors, metric)
    name = factory or default_factory(len(prepared))
    inner = make_inner(name, prepared.shape[1], metric)
    if not inner.is_trained:
        lists = getattr(faiss.downcast_index(inner), "nlist", 256)
        wanted = min(len(prepared), max(TRAINING_ROWS_PER_LIST * lists, 10_000))
        sample = np.random.default_rng(0).choice(len(prepared), wanted, replace=False)
        try:
            inner.train(prepared[np.sort(sample)])
        except RuntimeError as error:
            fault = str(error).splitlines()[0].rpartition("Error: ")[2]
            raise UsageError(f"--factory {name}: FAISS cannot train it on {len(prepared):,} rows ({fault})") from error
    index = faiss.IndexIDMap(inner)
    index.add_with_ids(prepared, np.asarray(numbers, np.int64))
    nprobe, recall = tune(inner, prepared, metric)
    return Cache.of(index, CacheInfo(name, len(prepared), nprobe, recall))


def default_factory(rows: int) -> str:
    """FAISS's name for the type that is chosen for so many rows."""
    return "Flat" if rows <= EXACT_LIMIT else f"IVF{2 ** round(np.log2(rows**0.5))},RaBitQ2"


def make_inner(factory: str, width: int, metric: Metric) -> Any:
    """An empty FAISS index by its factory's name; raises UsageError for an unknown one."""
    if re.search(r"IDMap", factory):
        raise UsageError(f"--factory {factory}: leave IDMap out, the index adds it by itself")
    try:
        kind = faiss.METRIC_INNER_PRODUCT if metric is Metric.COSINE else faiss.METRIC_L2
        return faiss.index_factory(width, factory, kind)
    except RuntimeError as error:
        raise UsageError(f"--factory {factory}: FAISS knows no such index for {width} dimensions") from error


def tune(inner: Any, vectors: np.ndarray, metric: Metric) -> tuple[int | None, float | None]:
    """The least power of two as nprobe that finds `RECALL` of a sample's `RANKS` nearest, and the share it finds.

    The nearest of all are of the sample's own runs, near-copies that any nprobe finds; what is nearest to a new network
    is as far away as those further on.
    """
    inverted = faiss.try_extract_index_ivf(inner)
    if inverted is None:
        return None, None
    chosen = np.random.default_rng(1).choice(len(vectors), min(TUNING_QUERIES, len(vectors)), replace=False)
    queries, k = vectors[chosen], min(RANKS[1], len(vectors))
    start = min(RANKS[0], k // 2)
    exact = faiss.METRIC_INNER_PRODUCT if metric is Metric.COSINE else faiss.METRIC_L2
    truth = faiss.knn(queries, vectors, k, metric=exact)[1][:, start:]
    nprobe = 1
    while True:
        inverted.nprobe = min(nprobe, inverted.nlist)
        neighbours = inner.search(queries, k)[1]
        recall = float(np.mean([np.isin(wanted, got).mean() for wanted, got in zip(truth, neighbours, strict=True)]))
        if recall >= RECALL or nprobe >= inverted.nlist:
            return int(inverted.nprobe), recall
        nprobe *= 2


def save(cache: Cache, path: Path) -> CacheInfo:
    """Writes the FAISS file and then, beside it, what it is; both appear whole or not at all."""
    # Not write_index, whose full disk is no OSError.
    content = faiss.serialize_index(cache.index).data
    write_whole(path, content)
    info = CacheInfo(**{**asdict(cache.info), "file": describe_file(path) | _describe_blocks(cache, content)})
    write_info(path, info)
    sync(path.parent)
    return info


def _describe_blocks(cache: Cache, content: memoryview) -> dict[str, Any]:
    """Checksums of the exact vectors, which lie one behind the other before the rows' numbers, and of all around."""
    if not cache.is_exact or cache.matrix is None or not len(cache.matrix):
        return {}
    end = len(content) - 8 * (1 + len(cache.numbers))
    start = end - cache.matrix.nbytes
    if not np.array_equal(np.frombuffer(content[start:end], np.float32), cache.matrix.ravel()):
        return {}
    size = block_bytes(cache.inner.d)
    checksums = page_checksums(cache.matrix, np.arange(-(-cache.matrix.nbytes // size)), size)
    around = xxh3_128(content[:start])
    around.update(content[end:])
    return {"around": around.hexdigest(), "start": start, "block_bytes": size, "blocks": checksums.tolist()}


def behind(cached: np.ndarray, numbers: np.ndarray) -> int:
    """How many of two lists of ascending numbers are in one of them alone."""
    if not len(cached):
        return len(numbers)
    at = np.minimum(np.searchsorted(cached, numbers), len(cached) - 1)
    return len(cached) + len(numbers) - 2 * int(np.count_nonzero(cached[at] == numbers))


def cache_files(directory: Path, newest: int) -> list[Path]:
    """The directory's FAISS files, up to generation `newest`, the newest first."""
    generations = {path: int(path.stem.removeprefix("vectors-")) for path in directory.glob("vectors-*.faiss")
             if path.stem.removeprefix("vectors-").isdigit()}  # fmt: skip
    return sorted((path for path in generations if generations[path] <= newest), key=lambda path: -generations[path])


def read_info(path: Path, manifest: dict[str, Any]) -> CacheInfo | None:
    """What stands beside the FAISS file `path`, or in a manifest of format 1; None where that is missing or damaged."""
    fingerprint = path.parent.name
    if manifest["format"] == 1 and f"{fingerprint}/{path.name}" in manifest["files"]:
        described = manifest["files"][f"{fingerprint}/{path.name}"]
        return CacheInfo("Flat", manifest["architectures"][fingerprint]["count"], file=described)
    try:
        content = json.loads(path.with_suffix(".json").read_text())
        if not is_sealed(content):
            return None
        del content[SEAL]
        return CacheInfo(**content)
    except MISREAD:
        return None


def write_info(path: Path, info: CacheInfo) -> None:
    """Beside the FAISS file `path`."""
    write_sealed(path.with_suffix(".json"), asdict(info))


def load(path: Path, info: CacheInfo | None, *, at_once: bool = True) -> Cache | None:
    """Maps the FAISS file into memory; None where it is missing, damaged or not what `info` says.

    Where not all of it is to be verified `at_once`, exact vectors and lists of codes are verified as they are used: see
    `Cache.blocks` and `Cache.lists`.
    """
    if info is None or info.file is None:
        return None
    checksums, of_lists = (None if at_once else info.file.get(name) for name in ("blocks", "lists"))
    if checksums is None and of_lists is None:
        is_sound = is_intact(path, info.file)
    else:
        is_sound = is_intact_around(path, info.file, info.file["start"], _end(info))
    if not is_sound:
        return None
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:  # unlinked meanwhile, say
        return None
    paged = None
    if info.exact is not None:
        paged = PagedVectors.open(path.parent, info.exact)
        if paged is None or len(paged.matrix) != info.rows:
            return None
    cache = Cache.of(index, info, paged)
    if len(cache.numbers) != info.rows:
        return None
    if checksums is not None:
        if cache.matrix is None or cache.matrix.nbytes != _end(info) - info.file["start"]:
            return None
        unseen = np.zeros(len(checksums), bool)
        blocks = PagedVectors(path, cache.matrix, np.array(checksums, np.uint64), unseen, info.file["block_bytes"])
        read_ahead(cache.matrix)
        cache = replace(cache, blocks=blocks)
    if of_lists is not None:
        lists = VerifiedLists.of(faiss.try_extract_index_ivf(cache.inner), of_lists)
        return None if lists is None else replace(cache, lists=lists)
    return cache


def _end(info: CacheInfo) -> int:
    """Of the exact vectors, or the lists of codes, in the file."""
    assert info.file is not None
    return int(info.file.get("end", info.file["bytes"] - 8 * (1 + info.rows)))


def verified_distances(query: np.ndarray, vectors: PagedVectors, metric: Metric) -> np.ndarray:
    """As `distances` to all; each block is compared with its checksum just after, so that memory is read once.

    In this order the processor fetches the next vectors while it computes; a checksum alone would wait for each. Many
    blocks are shared out among cores. Raises DamagedVectorsError, and then no distance is returned.
    """
    count, width = vectors.matrix.shape
    out, kernel = np.empty(count, np.float32), _kernel(metric)
    rows = vectors.page_bytes // (4 * width)

    asked, at, out_at = faiss.swig_ptr(query), vectors.matrix.ctypes.data, out.ctypes.data
    pointer = faiss.cast_integer_to_float_ptr  # quicker than a view of each block

    def go_through(pages: np.ndarray) -> None:
        for page in pages.tolist():
            start = page * rows
            block = pointer(at + 4 * width * start)
            kernel(pointer(out_at + 4 * start), asked, block, width, min(rows, count - start))
            vectors.check_page(page)

    pages = np.arange(len(vectors.checksums))
    threads = max(1, min(VERIFIERS, faiss.omp_get_max_threads(), len(pages) // BLOCKS_EACH))
    own, *others = np.array_split(pages, threads)
    if not others:
        go_through(own)
    else:
        with ThreadPoolExecutor(len(others)) as pool:
            parts = [pool.submit(go_through, part) for part in others]
            go_through(own)
            for part in parts:
                part.result()
    return _finished(out, metric)


def _kernel(metric: Metric) -> Any:
    return faiss.fvec_inner_products_ny if metric is Metric.COSINE else faiss.fvec_L2sqr_ny


def _finished(out: np.ndarray, metric: Metric) -> np.ndarray:
    """What a kernel wrote as distances, in place."""
    np.subtract(1.0, out, out=out) if metric is Metric.COSINE else np.sqrt(out, out=out)
    return np.maximum(out, 0.0, out=out)


def distances(query: np.ndarray, vectors: np.ndarray, metric: Metric, at: np.ndarray | None = None) -> np.ndarray:
    """From prepared `query (D,)` to prepared `vectors (n, D)`, or those `at` positions `(m,)`: float32, as many.

    Cosine distance is 1 - cosine similarity; L2 the Euclidean distance. FAISS's kernels: one pass over the memory, no
    copies, and no matrix product, whose threads would only wait for that memory.
    """
    count, width = len(vectors) if at is None else len(at), vectors.shape[1]
    out = np.empty(count, np.float32)
    if count == 0:
        return out
    pointers = (faiss.swig_ptr(out), faiss.swig_ptr(query), faiss.swig_ptr(vectors))
    if at is None:
        _kernel(metric)(*pointers, width, count)
    else:
        at = np.ascontiguousarray(at, np.int64)
        by_index = faiss.fvec_inner_products_by_idx if metric is Metric.COSINE else faiss.fvec_L2sqr_by_idx
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(
            1
        )  # of this thread's calls: one query gives others no work, but makes it wait for them
        by_index(*pointers, faiss.swig_ptr(at), width, 1, count)
        faiss.omp_set_num_threads(threads)
    return _finished(out, metric)


def decode(cache: Cache, at: np.ndarray | None) -> np.ndarray:
    """The prepared vectors `(m, D)` at positions, or all, of an index that holds them in another form."""
    inverted = faiss.try_extract_index_ivf(cache.inner)
    if inverted is not None and inverted.direct_map.no():
        inverted.make_direct_map()
    at = np.arange(cache.inner.ntotal) if at is None else np.ascontiguousarray(at, np.int64)
    return cache.inner.reconstruct_batch(at)


def approximate(
    cache: Cache, query: np.ndarray, k: int, metric: Metric, among: np.ndarray | None = None, depth: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and distances of about the `k` nearest, nearest first, by FAISS's own search, or by codes and anew.

    `among` is a boolean mask `(n,)` of the positions that may be found; `depth` the rank, among all, down to which the
    wanted ones lie, by which nprobe is chosen where codes are searched.
    """
    if cache.paged is not None:
        tuned = cache.info.depths or []
        deep = [one["nprobe"] for one in tuned if (depth or k) <= one["ranks"]]
        nprobe = deep[0] if deep else faiss.extract_index_ivf(cache.inner).nlist
        candidates = k * max(one["candidates"] for one in tuned)
        positions, distances = nearest_by_codes(cache, query, candidates, metric, nprobe, among)
        return positions[:k], distances[:k]
    scores, positions = _search(cache, query, k, among)
    distances = 1.0 - scores if metric is Metric.COSINE else np.sqrt(np.maximum(scores, 0.0))
    return positions, np.maximum(distances, 0.0)


def nearest_by_codes(
    cache: Cache, query: np.ndarray, candidates: int, metric: Metric, nprobe: int, among: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and exact distances, nearest first, of the `candidates` whose codes are nearest in `nprobe` lists."""
    assert cache.paged is not None
    if cache.lists is not None:
        cache.lists.check(query, nprobe)
    positions = _search(cache, query, candidates, among, nprobe)[1]
    cache.paged.check(positions)
    exact = distances(query, cache.paged.matrix, metric, positions)
    order = np.lexsort((positions, exact))
    return positions[order], exact[order]


def _search(
    cache: Cache, query: np.ndarray, k: int, among: np.ndarray | None, nprobe: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's scores and positions `(m,)` of up to `k`."""
    selector = None
    if among is not None:
        bits = np.packbits(among, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
    parameters = None
    inverted = faiss.try_extract_index_ivf(cache.inner)
    if inverted is not None:  # made anew for each call: searches change them
        kind = faiss.SearchParametersIVF if cache.paged is None else faiss.IVFRaBitQSearchParameters
        parameters = kind(nprobe=nprobe or inverted.nprobe, sel=selector)
    elif selector is not None:
        parameters = faiss.SearchParameters(sel=selector)
    scores, positions = cache.inner.search(query[None], min(k, cache.inner.ntotal), params=parameters)
    kept = positions[0] >= 0  # too few results are padded with -1
    return scores[0][kept], positions[0][kept]


def check_query(vector: np.ndarray, width: int) -> None:
    if vector.shape != (width,) or not np.isfinite(vector).all():
        raise WeightsearchError(f"expected a finite vector of {width} values, got shape {vector.shape}")
