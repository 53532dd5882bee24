"""Which of an index's sketches lie near each other: among all pairs, in bounded memory, or those of like signs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from weightsearch.index.connection import Database
from weightsearch.index.manifest import DATABASE
from weightsearch.relations.signature import SKETCH_WIDTH
from weightsearch.relations.sketches import blocks, signs_of

ALL_PAIRS = 50_000  # sketches up to which each is multiplied with all others; a minute of a core
ROWS, COLUMNS = 1_024, 16_384  # of the products in memory at a time
BY_SIGNS = 32  # of more sketches, those of each that are multiplied: the likest by their signs
PROBED = 64  # cells that those are looked for in


@contextmanager
def read_sketches(index: Path, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """The sketches `(n, 512)` float16 of signatures by rising number, in a file without a name, not in memory."""
    with tempfile.TemporaryFile() as file, Database(index / DATABASE).open() as connection:
        for stored, sketches in blocks(connection):
            file.write(sketches[np.isin(stored, numbers, assume_unique=True)].tobytes())
        file.flush()
        shape = (file.tell() // (2 * SKETCH_WIDTH), SKETCH_WIDTH)
        yield np.memmap(file, np.float16, "r", shape=shape) if shape[0] else np.empty(shape, np.float16)


Pair = tuple[int, int, float]  # rows, the lower first, and their cosine


def near_pairs(sketches: np.ndarray, each: int, least: float, most: int) -> tuple[list[Pair], int]:
    """Pairs of each row and its `each` nearest, from `least` on: the `most` nearest, in that order; how many in all.

    Of more than `ALL_PAIRS` rows, those whose signs are unlike are not looked at: what is near is found, what is
    barely related may be missed.
    """
    count = min(each, len(sketches) - 1)
    if count < 1:
        return [], 0
    find = _nearest if len(sketches) <= ALL_PAIRS else _nearest_by_signs
    keys, cosines = [], []
    for start, others, values in find(sketches, count):
        rows, places = np.nonzero(values >= least)
        i, j = start + rows, others[rows, places]
        keys.append(np.minimum(i, j) * len(sketches) + np.maximum(i, j))
        cosines.append(values[rows, places])
    pairs, first = np.unique(np.concatenate(keys), return_index=True)
    near = np.concatenate(cosines)[first]
    order = np.argsort(-near, kind="stable")[:most]
    lower, higher = np.divmod(pairs[order], len(sketches))
    return list(zip(lower.tolist(), higher.tolist(), near[order].tolist(), strict=True)), len(pairs)


Nearest = Iterator[tuple[int, np.ndarray, np.ndarray]]  # the first of some rows, and rows and cosines `(m, k)` of each


def _nearest(sketches: np.ndarray, count: int) -> Nearest:
    for start in range(0, len(sketches), ROWS):
        asked = sketches[start : start + ROWS].astype(np.float32)
        rows = np.arange(start, start + len(asked))
        best = np.full((len(asked), count), -2, np.float32)
        which = np.zeros((len(asked), count), np.int64)
        for first in range(0, len(sketches), COLUMNS):
            cosine = asked @ sketches[first : first + COLUMNS].astype(np.float32).T
            own = rows[(rows >= first) & (rows < first + cosine.shape[1])]
            cosine[own - start, own - first] = -2
            chosen = np.argpartition(-cosine, min(count, cosine.shape[1]) - 1, axis=1)[:, :count]
            best = np.hstack([best, np.take_along_axis(cosine, chosen, 1)])
            which = np.hstack([which, chosen + first])
            kept = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best, which = np.take_along_axis(best, kept, 1), np.take_along_axis(which, kept, 1)
        yield start, which, best


def _nearest_by_signs(sketches: np.ndarray, count: int) -> Nearest:
    import faiss

    signs = np.concatenate([signs_of(sketches[k : k + COLUMNS]) for k in range(0, len(sketches), COLUMNS)])
    cells = int(4 * np.sqrt(len(signs)))
    quantizer = faiss.IndexBinaryFlat(SKETCH_WIDTH)
    index = faiss.IndexBinaryIVF(quantizer, SKETCH_WIDTH, cells)
    index.cp.niter = 5
    index.train(signs[:: max(1, len(signs) // (40 * cells))])
    index.add(signs)
    index.nprobe = PROBED
    together = ROWS // 4
    for start in range(0, len(sketches), together):
        others = index.search(signs[start : start + together], BY_SIGNS)[1]
        rows = np.arange(start, start + len(others))[:, None]
        there = (others >= 0) & (others != rows)
        asked = sketches[start : start + together].astype(np.float32)
        values = np.einsum("ij,ikj->ik", asked, sketches[np.maximum(others, 0)].astype(np.float32))
        values = np.where(there, values, np.float32(-2))
        chosen = np.argsort(-values, axis=1)[:, :count]
        yield start, np.take_along_axis(others, chosen, 1), np.take_along_axis(values, chosen, 1)
