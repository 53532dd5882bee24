"""A checkpoint's signature: what is kept of it to find its relatives without its file.

Per tensor name, shape, hashes and order-free statistics; of the whole a count sketch (Charikar, Chen & Farach-Colton
2002), in which the inner product of two checkpoints' tensors survives.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from weightsearch.relations.hashes import CHUNK, Hasher, ValueHashes, chunks
from weightsearch.relations.roles import Role, role_of

SKETCH_WIDTH = 512  # a power of two, so that a sketch can be folded to a narrower one
_SIGN_SEED = 5_121_127
_TURN = 977  # places by which the signs move on from chunk to chunk


@dataclass(frozen=True)
class TensorSignature:
    """Of one tensor: `mean`, `norm` (Euclidean), `kurtosis` (3 for a normal), `largest` |value|, count of `zeros`."""

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

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def sorted_shape(self) -> tuple[int, ...]:
        return tuple(sorted(size for size in self.shape if size != 1))


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
    tensors: Mapping[str, np.ndarray], *, file_hash: str | None = None, file_bytes: int | None = None
) -> Signature:
    """The signature of named tensors, each read once, in memory bounded by the largest.

    The mapping may read tensors as they are asked for. Values that are not finite are hashed, and left out of sketches.

    >>> weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    >>> one, half = sign({"w": weight}), sign({"v": weight.astype(np.float16)})
    >>> one.tensors[0].hashes.float16 == half.tensors[0].hashes.exact
    True
    """
    sketch, raw_sketch = np.zeros(SKETCH_WIDTH), np.zeros(SKETCH_WIDTH)
    signed = []
    for name in tensors:
        tensor, sums = _sign_tensor(name, np.asarray(tensors[name]))
        signed.append(tensor)
        if tensor.role is Role.WEIGHT:
            values, ones = sums
            centred = values - tensor.mean * ones
            spread = math.sqrt(max(tensor.norm**2 - tensor.numbers * tensor.mean**2, 0.0))
            if spread > 1e-6 * tensor.norm:
                sketch += centred / spread
                raw_sketch += values
    norm = float(np.linalg.norm(sketch))
    return Signature(
        tuple(signed),
        (sketch / norm if norm else sketch).astype(np.float32),
        raw_sketch.astype(np.float32),
        file_hash,
        file_bytes,
    )


def _sign_tensor(name: str, values: np.ndarray) -> tuple[TensorSignature, tuple[np.ndarray, np.ndarray]]:
    """The tensor's signature, and the count sketches `(512,)` of its values and of all ones."""
    shape = values.shape
    hasher = Hasher()
    total = square = fourth = third = 0.0
    largest, zeros = 0.0, 0
    sketch, ones = np.zeros(SKETCH_WIDTH), np.zeros(SKETCH_WIDTH)
    signs = _signs(tuple(sorted(size for size in shape if size != 1)), values.size)
    first: np.float32 | None = None
    constant = True
    for number, chunk in enumerate(chunks(values)):
        hasher.update(chunk)
        finite = np.isfinite(chunk).all()
        kept = chunk if finite else np.where(np.isfinite(chunk), chunk, np.float32(0))
        if first is None:
            first = kept[0]
        constant = constant and bool((kept == first).all())
        zeros += len(kept) - int(np.count_nonzero(kept))
        largest = max(largest, float(np.abs(kept).max()))
        total += float(kept.sum(dtype=np.float64))
        squares = kept * kept
        square += float(squares.sum(dtype=np.float64))
        third += float((squares * kept).sum(dtype=np.float64))
        fourth += float(np.dot(squares, squares))
        start = number * _TURN % CHUNK
        turned = signs[start : start + len(kept)]
        sketch += _folded(kept * turned)
        ones += _folded(turned)
    count = values.size
    mean = total / count if count else 0.0
    variance = square / count - mean**2 if count else 0.0
    central = fourth / count - 4 * mean * third / count + 6 * mean**2 * square / count - 3 * mean**4 if count else 0.0
    with np.errstate(all="ignore"):
        kurtosis = central / variance**2 if variance > 1e-12 * max(square / max(count, 1), 1e-300) else 0.0
    if not math.isfinite(kurtosis):
        kurtosis = 0.0
    tensor = TensorSignature(
        name, shape, str(values.dtype), hasher.finish(), math.sqrt(square), mean, kurtosis, largest, zeros,
        role_of(name, shape, values.dtype, constant),
    )  # fmt: skip
    return tensor, (sketch, ones)


def _folded(values: np.ndarray) -> np.ndarray:
    """Sums over every 512th place, `(512,)`."""
    whole = len(values) // SKETCH_WIDTH * SKETCH_WIDTH
    result = values[:whole].reshape(-1, SKETCH_WIDTH).sum(axis=0, dtype=np.float64)
    rest = values[whole:]
    result[: len(rest)] += rest
    return result


def _signs(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Random signs as float32, the same for all tensors of a shape: for one chunk, or a ring of them laid out twice."""
    length = min(count, CHUNK)
    seed = zlib.crc32(repr(shape).encode())
    bits = np.random.PCG64([_SIGN_SEED, seed]).random_raw(-(-length // 64)).astype("<u8").view(np.uint8)
    signs = np.unpackbits(bits)[:length].astype(np.float32) * 2 - 1
    return signs if count <= CHUNK else np.concatenate([signs, signs])
