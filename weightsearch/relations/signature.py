"""A checkpoint's signature: what is kept of it to find its relatives without its file.

Per tensor name, shape, hashes and order-free statistics; of the whole a count sketch (Charikar, Chen & Farach-Colton
2002), in which the inner product of two checkpoints' tensors survives.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from weightsearch.relations.hashes import CHUNK, LANES, Hasher, Unread, ValueHashes, chunk_hashes, chunks
from weightsearch.relations.roles import Role, role_of

if TYPE_CHECKING:
    from weightsearch.relations.kernels import Added

SKETCH_WIDTH = 512  # a power of two, so that a sketch can be folded to a narrower one
_SIGN_SEED = 5_121_127
COMPILED_FROM = 4_000_000  # numbers from which compiled code pays for its making
TENSOR_COST = 3_000  # numbers that take as long as what NumPy needs for a tensor of any size
TOGETHER = 4 * CHUNK  # values of small tensors that are added up together
_TURN = 977  # places by which the signs move on from chunk to chunk


@dataclass(frozen=True)
class TensorSignature:
    """Of one tensor: `mean`, `norm` (Euclidean), `kurtosis` (3 for a normal), `largest` |value|, count of `zeros`.

    `not_finite` counts the values that are NaN or infinite as float32, which the others leave out; no index keeps it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    hashes: ValueHashes
    norm: float
    mean: float
    kurtosis: float
    largest: float
    zeros: int
    role: Role
    not_finite: int = field(default=0, compare=False)

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def sorted_shape(self) -> tuple[int, ...]:
        return _sorted(self.shape)


@dataclass(frozen=True)
class Signature:
    """Of one checkpoint. `sketch` and `raw_sketch` `(512,)` float32: of unit-norm tensors, of the values as they are.

    `sketch` has norm 1 (or is 0 without weights): its inner product with another's is near the mean cosine of their
    tensors. `raw_sketch` is linear in the weights, so that a merge's is the merge of its parents'. `file_hash` is the
    SHA-256 of the file's bytes where there is one.
    """

    tensors: tuple[TensorSignature, ...]
    sketch: np.ndarray
    raw_sketch: np.ndarray
    file_hash: str | None = None
    file_bytes: int | None = None

    @property
    def numbers(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors if tensor.role.is_parameter)

    @property
    def weights(self) -> tuple[TensorSignature, ...]:
        """Those that can prove something: matrices and kernels that are not constant."""
        return tuple(tensor for tensor in self.tensors if tensor.role is Role.WEIGHT)

    @property
    def content(self) -> str:
        """Names equal weights: the same for other names, layouts and orders, not for another precision."""
        return _content(self, [tensor.hashes.unordered for tensor in self.tensors if tensor.role.is_parameter])

    @property
    def rounded_content(self) -> tuple[str, str, str]:
        """`content`'s like in the order within tensors: as stored, as float16 and as bfloat16."""
        kept = [tensor.hashes for tensor in self.tensors if tensor.role.is_parameter]
        return (
            _content(self, [hashes.exact for hashes in kept]),
            _content(self, [hashes.float16 for hashes in kept]),
            _content(self, [hashes.bfloat16 for hashes in kept]),
        )


def _content(signature: Signature, hashes: list[int]) -> str:
    import hashlib

    listed = ",".join(map(str, sorted(hashes)))
    return hashlib.sha256(listed.encode()).hexdigest()[:32]


def sign(
    tensors: Mapping[str, np.ndarray | Unread], *, file_hash: str | None = None, file_bytes: int | None = None
) -> Signature:
    """The signature of named tensors, each read once: of one that is `Unread` no more than a block is in memory.

    The mapping may read tensors as they are asked for. Values that are not finite are hashed, and left out of sketches.

    >>> weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    >>> one, half = sign({"w": weight}), sign({"v": weight.astype(np.float16)})
    >>> one.tensors[0].hashes.float16 == half.tensors[0].hashes.exact
    True
    """
    sketch, raw_sketch = np.zeros(SKETCH_WIDTH), np.zeros(SKETCH_WIDTH)
    signed = []
    for name, shape, dtype, hashes, sums in _summed(tensors):
        tensor = _signed(name, shape, dtype, hashes, sums)
        signed.append(tensor)
        if tensor.role is Role.WEIGHT:
            centred = sums.sketch - tensor.mean * sums.ones
            spread = math.sqrt(max(tensor.norm**2 - tensor.numbers * tensor.mean**2, 0.0))
            if spread > 1e-6 * tensor.norm:
                sketch += centred / spread
                raw_sketch += sums.sketch
    norm = float(np.linalg.norm(sketch))
    return Signature(
        tuple(signed),
        (sketch / norm if norm else sketch).astype(np.float32),
        raw_sketch.astype(np.float32),
        file_hash,
        file_bytes,
    )


Summed = tuple[str, tuple[int, ...], np.dtype, ValueHashes, "Sums"]  # name, shape, type, and what was added up


def _summed(tensors: Mapping[str, np.ndarray | Unread]) -> Iterator[Summed]:
    """Each tensor's hashes and sums, in order. Small ones are added up together, which saves most of their time."""
    waiting: list[tuple[str, tuple[int, ...], np.dtype, np.ndarray]] = []
    numbers = 0
    for name in tensors:
        values = tensors[name]
        if not hasattr(values, "blocks"):
            values = np.asarray(values)
        shape, count = values.shape, math.prod(values.shape)
        dtype = values.dtype if isinstance(values, np.ndarray) else values.value_dtype
        summed = _best_for(count)
        if summed is summed_compiled and 0 < count <= CHUNK:
            flat = values.reshape(-1) if isinstance(values, np.ndarray) else next(values.blocks(count))
            if flat.dtype != np.float32:
                with np.errstate(over="ignore", invalid="ignore"):
                    flat = flat.astype(np.float32)
            waiting.append((name, shape, dtype, flat))
            numbers += count
            if numbers > TOGETHER:
                yield from _summed_together(waiting)
                waiting, numbers = [], 0
            continue
        yield from _summed_together(waiting)
        waiting, numbers = [], 0
        yield name, shape, dtype, *summed(values, _signs(_sorted(shape), min(count, CHUNK + 1)))
    yield from _summed_together(waiting)


def _summed_together(waiting: Sequence[tuple[str, tuple[int, ...], np.dtype, np.ndarray]]) -> Iterator[Summed]:
    """Tensors of a chunk at most each, by one call of compiled code."""
    if not waiting:
        return
    from weightsearch.relations.kernels import add_tensors

    counts = np.array([len(values) for *_, values in waiting])
    lengths = -(-counts // LANES) * LANES
    starts = np.cumsum(lengths) - lengths
    together = np.zeros(int(lengths.sum()), np.float32)
    for (*_, values), start in zip(waiting, starts.tolist(), strict=True):
        together[start : start + len(values)] = values
    signs = _signs_of_all(tuple((_sorted(shape), len(values)) for _, shape, _, values in waiting))
    added = add_tensors(together, signs, starts, counts)
    for row, (name, shape, dtype, _) in enumerate(waiting):
        yield name, shape, dtype, *_told(added, row)


def _signed(name: str, shape: tuple[int, ...], dtype: np.dtype, hashes: ValueHashes, sums: Sums) -> TensorSignature:
    count = math.prod(shape)
    total, square, third, fourth = map(float, sums.powers)
    mean = total / count if count else 0.0
    variance = square / count - mean**2 if count else 0.0
    central = fourth / count - 4 * mean * third / count + 6 * mean**2 * square / count - 3 * mean**4 if count else 0.0
    try:
        kurtosis = central / variance**2 if variance > 1e-12 * max(square / max(count, 1), 1e-300) else 0.0
    except (OverflowError, ZeroDivisionError):
        kurtosis = 0.0
    if not math.isfinite(kurtosis):
        kurtosis = 0.0
    return TensorSignature(
        name, shape, _name_of(dtype), hashes, math.sqrt(square), mean, kurtosis, sums.largest, sums.zeros,
        role_of(name, shape, dtype, not sums.differ), sums.not_finite,
    )  # fmt: skip


def _sorted(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


_name_of = functools.lru_cache(maxsize=64)(str)


@dataclass
class Sums:
    """Over a tensor's finite values: powers 1 to 4, count of zeros, largest |value|, whether any two differ, sketches.

    `sketch` and `ones` `(512,)` are the count sketches of the values and of as many ones. The others are counted.
    """

    powers: np.ndarray
    zeros: int
    not_finite: int
    largest: float
    differ: bool
    sketch: np.ndarray
    ones: np.ndarray


def empty_sums() -> Sums:
    return Sums(np.zeros(4), 0, 0, 0.0, False, np.zeros(SKETCH_WIDTH), np.zeros(SKETCH_WIDTH))


_seen = 0  # numbers signed by this process so far


def _best_for(numbers: int) -> Callable[[np.ndarray | Unread, np.ndarray], tuple[ValueHashes, Sums]]:
    """What sums a tensor up: compiled once the process has enough numbers to sign to be worth its making."""
    global _seen
    _seen += numbers + TENSOR_COST
    return summed_in_numpy if _seen < COMPILED_FROM else summed_compiled


def summed_in_numpy(tensor: np.ndarray | Unread, signs: np.ndarray) -> tuple[ValueHashes, Sums]:
    """A tensor's hashes and sums, a chunk at a time; `signs` are int8 as `_signs` makes them."""
    hasher = Hasher()
    sums = empty_sums()
    first: float | None = None
    for number, values in enumerate(chunks(tensor)):
        start = number * _TURN % CHUNK
        own_signs = signs[start : start + len(values)]
        hasher.update(*chunk_hashes(values))
        finite = np.isfinite(values)
        if not finite.all():
            sums.not_finite += len(values) - int(np.count_nonzero(finite))
            values = np.where(finite, values, np.float32(0))
        first = float(values[0]) if first is None else first
        sums.differ = sums.differ or bool((values != first).any())
        sums.zeros += len(values) - int(np.count_nonzero(values))
        sums.largest = max(sums.largest, float(np.abs(values).max()))
        wide = values.astype(np.float64)
        squares = wide * wide
        sums.powers += wide.sum(), squares.sum(), np.dot(squares, wide), np.dot(squares, squares)
        sums.sketch += _folded(values * own_signs)
        sums.ones += _folded(own_signs)
    return hasher.finish(), sums


def summed_compiled(tensor: np.ndarray | Unread, signs: np.ndarray) -> tuple[ValueHashes, Sums]:
    """`summed_in_numpy` in compiled code."""
    from weightsearch.relations.kernels import ChunkAdder

    adder = ChunkAdder(signs)
    for number, values in enumerate(chunks(tensor)):
        adder.add(values, number * _TURN % CHUNK)
    return _told(adder.added, 0)


def _told(added: Added, row: int) -> tuple[ValueHashes, Sums]:
    *hashes, zeros, differ, largest, not_finite = added.integers[row].tolist()
    size = float(np.uint32(largest).view(np.float32))
    return ValueHashes(*hashes), Sums(
        added.powers[row], zeros, not_finite, size, bool(differ), added.sketches[row, 0], added.sketches[row, 1]
    )


def _folded(values: np.ndarray) -> np.ndarray:
    """Sums over every 512th place, `(512,)`."""
    whole = len(values) // SKETCH_WIDTH * SKETCH_WIDTH
    result = values[:whole].reshape(-1, SKETCH_WIDTH).sum(axis=0, dtype=np.float64)
    rest = values[whole:]
    result[: len(rest)] += rest
    return result


@functools.lru_cache(maxsize=16)
def _signs(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Random signs as int8, the same for all tensors of a shape: for one chunk, or a ring of them laid out twice."""
    length = min(count, CHUNK)
    seed = zlib.crc32(repr(shape).encode())
    bits = np.random.PCG64([_SIGN_SEED, seed]).random_raw(-(-length // 64)).astype("<u8").view(np.uint8)
    signs = np.unpackbits(bits)[:length].astype(np.int8) * 2 - 1
    return signs if count <= CHUNK else np.concatenate([signs, signs])


@functools.lru_cache(maxsize=16)
def _signs_of_all(tensors: tuple[tuple[tuple[int, ...], int], ...]) -> np.ndarray:
    """The signs of tensors by sorted shape and count, one behind the other, each filled up to whole lanes."""
    return np.concatenate([np.pad(_signs(shape, count), (0, -count % LANES)) for shape, count in tensors])
