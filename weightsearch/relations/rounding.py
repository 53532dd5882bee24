"""Weights rounded to a grid of few bits, which a pack keeps in place of them where some loss is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import zstandard
from safetensors.numpy import save

from weightsearch.relations.signature import Signature

FEWEST, MOST = 2, 16  # bits


@dataclass(frozen=True)
class Rounded:
    """One tensor as `levels (rows, columns)` int8 or int16 times `steps (rows,)` float32, a step an output."""

    levels: np.ndarray
    steps: np.ndarray
    dtype: str

    def values(self) -> np.ndarray:
        """`(rows, columns)` in the tensor's own type."""
        return (self.levels * self.steps[:, None]).astype(self.dtype)

    def encode(self, level: int) -> bytes:
        compressor = zstandard.ZstdCompressor(level=level)
        planes = self.levels.view(np.uint8).reshape(-1, self.levels.itemsize).T.tobytes()
        return compressor.compress(self.steps.tobytes() + planes)


def decode(content: bytes, rows: int, columns: int, item: int, dtype: str) -> Rounded:
    """What `Rounded.encode` wrote."""
    raw = zstandard.ZstdDecompressor().decompress(content, max_output_size=rows * (4 + columns * item))
    planes = np.frombuffer(raw[4 * rows :], np.uint8).reshape(item, -1).T
    levels = np.ascontiguousarray(planes).view(f"<i{item}").reshape(rows, columns)
    return Rounded(levels, np.frombuffer(raw[: 4 * rows], "<f4"), dtype)


def rounded(values: np.ndarray, bits: int) -> Rounded:
    """`values (D_out, ...)` on a grid symmetric about 0 with 2^bits − 1 levels for each output."""
    rows = values.reshape(len(values), -1).astype(np.float32)
    top = 2 ** (bits - 1) - 1
    steps = np.abs(rows).max(axis=1) / np.float32(top)
    whole = np.round(rows / np.where(steps > 0, steps, np.float32(1))[:, None])
    return Rounded(np.clip(whole, -top, top).astype("i1" if bits <= 8 else "<i2"), steps, str(values.dtype))


def rounded_file(
    tensors: Mapping[str, np.ndarray], signature: Signature, bits: int
) -> tuple[bytes, dict[str, Rounded], float]:
    """A checkpoint's tensors as a .safetensors file, weights rounded; those by name; and the relative error of all.

    Vectors, and weights that hold values that are not finite, stay as they are.
    """
    weights = {tensor.name for tensor in signature.weights}
    written: dict[str, np.ndarray] = {}
    grids: dict[str, Rounded] = {}
    lost = size = 0.0
    for name in tensors:
        values = np.ascontiguousarray(tensors[name])
        if name in weights and values.dtype.kind == "f" and values.ndim >= 2 and np.isfinite(values).all():
            grids[name] = rounded(values, bits)
            coarse = grids[name].values().reshape(values.shape)
            lost += float(np.sum((coarse.astype(np.float64) - values) ** 2))
            size += float(np.sum(values.astype(np.float64) ** 2))
            values = coarse
        written[name] = values
    return save(written), grids, (lost / size) ** 0.5 if size else 0.0
