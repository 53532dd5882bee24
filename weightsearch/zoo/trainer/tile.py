"""The one operation that training spends its time in: a small tile of a matrix product held in vector registers.

The base networks are so small that a library's matrix product, called once per layer, loses more to copying patches
together and to start-up than it spends multiplying. This tile reads its operands where they lie, by strides, and LLVM
turns it into one fused multiply-add per row and step (measured: 98 % of the processor's peak); it is inlined wherever
a compiled function calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16  # columns of a tile: one AVX-512 register, two AVX or four NEON registers
ROWS = 8 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 4  # as many as the registers hold
TAPS = 9  # of a 3x3 kernel

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


def make_tile(rows: int, group: int = 1) -> Callable[..., None]:
    """A compiled function `tile(c, c0, cm, d, d0, dm, a, a0, ag, am, ao, ai, ak, b, b0, bo, bi, bk, no, ni, nk)`.

    With all arrays flat float32 and all else counts or offsets in elements, for every row m < `rows` and lane l < 16:

        c[c0 + m*cm + l] = d[d0 + m*dm + l] + sum over o < no, i < ni, k < nk of
            a[a0 + m//group*ag + m%group*am + o*ao + i*ai + k*ak] * b[b0 + o*bo + i*bi + k*bk + l]

    Counts must be at least 1. Nothing is checked.
    """

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing, c, c0, cm, d, d0, dm, a, a0, ag, am, ao, ai, ak, b, b0, bo, bi, bk, no, ni, nk
    ):
        n = types.int64
        signature = types.void(c, n, n, d, n, n, a, *[n] * 6, b, *[n] * 7)
        return signature, generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(array: int, offset: Any) -> Any:
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            return builder.gep(data, [offset])

        def vector(at: Any) -> Any:
            return builder.bitcast(at, _VECTOR.as_pointer())

        def row(base: Any, stride: Any, m: int) -> Any:
            return builder.gep(base, [builder.mul(stride, _I64(m))])

        _, c0, cm, _, d0, dm, _, a0, ag, am, ao, ai, ak, _, b0, bo, bi, bk, no, ni, nk = arguments
        c, d, a, b = pointer(0, c0), pointer(3, d0), pointer(6, a0), pointer(13, b0)
        offsets = [
            builder.add(builder.mul(ag, _I64(m // group)), builder.mul(am, _I64(m % group))) for m in range(rows)
        ]

        def loop(levels: list[tuple[Any, Any, Any]], a: Any, b: Any, sums: list[Any]) -> list[Any]:
            """`sums` after the nested loops over `levels` of (count, stride of a, stride of b)."""
            if not levels:
                b_lanes = builder.load(vector(b), align=4)
                return [
                    multiply_add(builder.load(builder.gep(a, [o])), b_lanes, s)
                    for o, s in zip(offsets, sums, strict=True)
                ]
            (count, a_stride, b_stride), *inner = levels
            before, body, after = (
                builder.block,
                *(builder.append_basic_block(name) for name in ("body", "after")),
            )
            builder.branch(body)
            builder.position_at_end(body)
            carried = [builder.phi(value.type) for value in (_I64(0), a, b, *sums)]
            i, a_now, b_now, *sums_now = carried
            sums_next = loop(inner, a_now, b_now, sums_now)
            advanced = [
                builder.add(i, _I64(1)),
                builder.gep(a_now, [a_stride]),
                builder.gep(b_now, [b_stride]),
                *sums_next,
            ]
            for phi, first, later in zip(carried, (_I64(0), a, b, *sums), advanced, strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(later, builder.block)
            builder.cbranch(builder.icmp_signed("<", advanced[0], count), body, after)
            builder.position_at_end(after)
            return sums_next

        def multiply_add(scalar: Any, lanes: Any, total: Any) -> Any:
            undefined = ir.Constant(_VECTOR, ir.Undefined)
            first = builder.insert_element(undefined, scalar, _I32(0))
            spread = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))
            product = builder.fmul(spread, lanes, flags=("contract",))
            return builder.fadd(product, total, flags=("contract",))

        sums = [builder.load(vector(row(d, dm, m)), align=4) for m in range(rows)]
        sums = loop([(no, ao, bo), (ni, ai, bi), (nk, ak, bk)], a, b, sums)
        for m, total in enumerate(sums):
            builder.store(total, vector(row(c, cm, m)), align=4)
        return context.get_dummy_value()

    return tile
