"""A chunk's hashes, moments and sketch in compiled code: what `hashes` and `signature` say in NumPy, in one pass.

Loading the compiler takes as long as signing some millions of numbers without it, so that small files never do.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from weightsearch.relations.hashes import MIX_ADD, MIX_FIRST, MIX_SECOND

u32, u64, f32 = np.uint32, np.uint64, np.float32
# Literals would be 64 bits wide and make everything they touch so.
ADD, FIRST, SECOND = u32(MIX_ADD), u32(MIX_FIRST), u32(MIX_SECOND)
MINUS_ZERO, SIZE, INFINITE = u32(0x80000000), u32(0x7FFFFFFF), u32(0x7F800000)
LARGEST_HALF, SMALLEST_NORMAL_HALF = u32(0x477FE000), u32(0x38800000)  # 65504 and 2^-14
ZERO, ONE = u32(0), u32(1)
HALF = f32(0.5)
_jit = njit(cache=True, nogil=True, error_model="numpy")
_jit_sums = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@_jit
def hash_chunk(values, weights, result):  # type: ignore[no-untyped-def]
    """Fills `result (4,)` uint64: ordered as float32, float16, bfloat16, and order-free. See `hashes.chunk_hashes`."""
    bits = values.view(np.uint32)
    single, half, brain, unordered = u64(0), u64(0), u64(0), u64(0)
    for i in range(bits.size):
        b = bits[i]
        b = ZERO if b == MINUS_ZERO else b
        size = b & SIZE
        sign = b ^ size
        finite = size < INFINITE
        weight = weights[i]
        single += weight * u64(b)

        r = (size + (u32(0xFFF) + ((size >> u32(13)) & ONE))) & u32(0xFFFFE000)
        r = INFINITE if r > LARGEST_HALF else r
        small = f32(f32(abs(values[i]) + HALF) - HALF)  # 0.5 has the spacing of float16's subnormals
        r = small.view(np.uint32) if size < SMALLEST_NORMAL_HALF else r
        r = r if finite else size
        half += weight * u64(ZERO if r == ZERO else r | sign)

        r = (size + (u32(0x7FFF) + ((size >> u32(16)) & ONE))) & u32(0xFFFF0000)
        r = r if finite else size
        brain += weight * u64(ZERO if r == ZERO else r | sign)

        m = u32(b + ADD)  # Numba's sums and products of 32-bit integers have 64 bits
        m = u32(m ^ (m >> u32(16)))
        m = u32(m * FIRST)
        m = u32(m ^ (m >> u32(13)))
        m = u32(m * SECOND)
        m = u32(m ^ (m >> u32(16)))
        unordered += u64(m) * u64(m)
    result[0], result[1], result[2], result[3] = single, half, brain, unordered


@_jit_sums
def moments(values, result):  # type: ignore[no-untyped-def]
    """Fills `result (8,)`: Σv, Σv², Σv³, Σv⁴, zeros, whether values differ, bits of the largest |v|, not finite.

    A value that is not finite counts as zero.
    """
    bits = values.view(np.uint32)
    first = bits[0] if bits[0] != MINUS_ZERO else ZERO
    first = first if (first & SIZE) < INFINITE else ZERO
    total, square, third, fourth = 0.0, 0.0, 0.0, 0.0
    zeros, differ, largest, strange = 0, ZERO, ZERO, 0
    for i in range(bits.size):
        size = bits[i] & SIZE
        finite = size < INFINITE
        strange += not finite
        size = size if finite else ZERO
        value = np.float64(values[i]) if finite else 0.0
        largest = max(largest, size)
        zeros += size == ZERO
        differ |= (ZERO if size == ZERO else bits[i]) ^ first
        power = value * value
        total += value
        square += power
        third += power * value
        fourth += power * power
    result[0], result[1], result[2], result[3] = total, square, third, fourth
    result[4], result[5], result[6], result[7] = zeros, differ != ZERO, largest, strange


@_jit
def sketch_chunk(values, signs, sketch, ones):  # type: ignore[no-untyped-def]
    """Adds to `sketch (w,)` and `ones (w,)` the signed sums of values and of ones over every w-th place."""
    width = sketch.size
    part, part_of_ones = np.zeros(width, np.float32), np.zeros(width, np.float32)
    whole = values.size // width
    for row in range(whole):
        for j in range(width):
            sign = signs[row * width + j]
            part[j] += values[row * width + j] * sign
            part_of_ones[j] += sign
    for j in range(values.size - whole * width):
        sign = signs[whole * width + j]
        part[j] += values[whole * width + j] * sign
        part_of_ones[j] += sign
    for j in range(width):
        sketch[j] += part[j]
        ones[j] += part_of_ones[j]


@_jit
def whole_tensors(values, ends, signs, weights, hashes, totals, sketches, ones):  # type: ignore[no-untyped-def]
    """The three above for tensors of a chunk at most, one behind the other in `values` and `signs`, row by row.

    `ends (t,)` says where each ends; none is empty. A value that is not finite counts as zero in the sketches.
    """
    start = 0
    for k in range(ends.size):
        part = values[start : ends[k]]
        hash_chunk(part, weights, hashes[k])
        moments(part, totals[k])
        if totals[k, 7] > 0:
            part = part.copy()
            for i in range(part.size):
                if not np.isfinite(part[i]):
                    part[i] = f32(0)
        sketch_chunk(part, signs[start : ends[k]], sketches[k], ones[k])
        start = ends[k]
