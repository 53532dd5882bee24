"""Chunks' hashes, moments and sketches in machine code: what `hashes` and `signature` say in NumPy, in one pass.

LLVM makes it for the processor that it runs on, sixteen values at a time, in a twentieth of a second. Numba, which
would be given the same as Python, takes a second to start: as long as 700 million values.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from weightsearch.relations.hashes import LANES, MIX_ADD, MIX_FIRST, MIX_SECOND, WEIGHTS

WIDTH = 512  # of a sketch
MINUS_ZERO, SIZE, INFINITE = 0x80000000, 0x7FFFFFFF, 0x7F800000
LARGEST_HALF, SMALLEST_NORMAL_HALF = 0x477FE000, 0x38800000  # 65504 and 2^-14
_I32, _I64, _F32, _F64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()


@dataclass(frozen=True)
class Added:
    """Of chunks `(t,)`: hashes `(t, 4)` uint64, totals `(t, 8)`, and sketches of the values and of ones `(t, 2, 512)`.

    Hashes are those of `hashes.chunk_hashes`. Totals are Σv, Σv², Σv³, Σv⁴, zeros, whether values differ, the bits of
    the largest |v|, and how many are not finite; those count as zeros.
    """

    hashes: np.ndarray
    totals: np.ndarray
    sketches: np.ndarray


def add_chunks(
    values: np.ndarray, signs: np.ndarray, starts: np.ndarray, sign_starts: np.ndarray, counts: np.ndarray
) -> Added:
    """Chunks of `counts (t,)` > 0 float32 values, from `starts (t,)` of `values (n,)` on, with random signs.

    Their signs are those from `sign_starts (t,)` of `signs (m,)` on. Whole lanes are read: a chunk's last ones must lie
    within the arrays, whatever they hold. Raises ValueError for chunks that do not.
    """
    read = -(-counts // LANES) * LANES
    inside = ((starts + read <= len(values)) & (sign_starts + read <= len(signs)) & (read <= len(WEIGHTS))).all()
    if not inside or min(starts.min(), sign_starts.min()) < 0 or counts.min() < 1:
        raise ValueError("chunks lie outside of their arrays")
    amount = len(starts)
    added = Added(
        np.empty((amount, 4), np.uint64), np.empty((amount, 8)), np.zeros((amount, 2, WIDTH), np.float32)
    )  # fmt: skip
    arrays = [
        np.ascontiguousarray(values, np.float32), np.ascontiguousarray(signs, np.float32), WEIGHTS,
        *(np.ascontiguousarray(places, np.int64) for places in (starts, sign_starts, counts)),
        added.hashes, added.totals, added.sketches,
    ]  # fmt: skip
    _compiled()[1](amount, *(array.ctypes.data for array in arrays))
    return added


@functools.cache
def _compiled() -> tuple[Any, Callable[..., None]]:
    """The engine, which the code lives as long as, and the function."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(llvm.get_host_cpu_name(), features, opt=2)
    module = llvm.parse_assembly(str(_module()))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * 9)
    return engine, kind(engine.get_function_address("add_chunks"))


@dataclass(frozen=True)
class Lanes:
    """Sixteen values of a type in LLVM's code, with Python's operators. Integers have no sign."""

    builder: ir.IRBuilder
    value: Any

    @property
    def _type(self) -> ir.Type:
        return self.value.type.element

    def like(self, number: Lanes | float) -> Lanes:
        """A number as sixteen of them."""
        if isinstance(number, Lanes):
            return number
        return Lanes(self.builder, ir.Constant(self.value.type, [number] * LANES))

    def _with(self, operation: str, other: Lanes | float) -> Lanes:
        operation = f"f{operation}" if self._type in (_F32, _F64) else operation
        flags = ("contract",) if self._type == _F64 else ()  # a product that is added may be rounded once
        return Lanes(self.builder, getattr(self.builder, operation)(self.value, self.like(other).value, flags=flags))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._with("add", other)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._with("sub", other)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._with("mul", other)

    def __and__(self, other: Lanes | int) -> Lanes:
        return Lanes(self.builder, self.builder.and_(self.value, self.like(other).value))

    def __or__(self, other: Lanes | int) -> Lanes:
        return Lanes(self.builder, self.builder.or_(self.value, self.like(other).value))

    def __xor__(self, other: Lanes | int) -> Lanes:
        return Lanes(self.builder, self.builder.xor(self.value, self.like(other).value))

    def __rshift__(self, other: int) -> Lanes:
        return Lanes(self.builder, self.builder.lshr(self.value, self.like(other).value))

    def compared(self, relation: str, other: Lanes | int) -> Lanes:
        return Lanes(self.builder, self.builder.icmp_unsigned(relation, self.value, self.like(other).value))

    def where(self, condition: Lanes, otherwise: Lanes | float) -> Lanes:
        """These values where `condition`, else others."""
        return Lanes(self.builder, self.builder.select(condition.value, self.value, self.like(otherwise).value))

    def to(self, operation: str, kind: ir.Type) -> Lanes:
        return Lanes(self.builder, getattr(self.builder, operation)(self.value, ir.VectorType(kind, LANES)))

    @property
    def bits(self) -> Lanes:
        return self.to("bitcast", _I32)

    def combined(self, combine: Callable[[Any, Any], Any]) -> Any:
        lanes = [self.builder.extract_element(self.value, ir.Constant(_I32, lane)) for lane in range(LANES)]
        return functools.reduce(combine, lanes)


def _hashed(bits: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """What is weighed, as float32, float16 and bfloat16, and what is squared."""
    bits = bits.like(0).where(bits.compared("==", MINUS_ZERO), bits)
    size = bits & SIZE
    sign = bits ^ size
    finite = size.compared("<", INFINITE)

    half = (size + (((size >> 13) & 1) + 0xFFF)) & 0xFFFFE000
    half = half.like(INFINITE).where(half.compared(">", LARGEST_HALF), half)
    small = (size.to("bitcast", _F32) + 0.5) - 0.5  # 0.5 has the spacing of float16's subnormals
    half = small.bits.where(size.compared("<", SMALLEST_NORMAL_HALF), half)
    brain = (size + (((size >> 16) & 1) + 0x7FFF)) & 0xFFFF0000
    half, brain = (rounded.where(finite, size) for rounded in (half, brain))
    half, brain = ((rounded | sign).where(rounded.compared("!=", 0), 0) for rounded in (half, brain))

    mixed = bits + MIX_ADD
    mixed = (mixed ^ (mixed >> 16)) * MIX_FIRST
    mixed = (mixed ^ (mixed >> 13)) * MIX_SECOND
    return bits, half, brain, mixed ^ (mixed >> 16)


class _Code:
    """LLVM's builder within one function."""

    def __init__(self, function: ir.Function) -> None:
        self.function = function
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))

    def load(self, pointer: Any, place: Any, kind: ir.Type) -> Lanes:
        return Lanes(self.builder, self.builder.load(self._at(pointer, place, kind), align=4))

    def store(self, lanes: Lanes, pointer: Any, place: Any) -> None:
        self.builder.store(lanes.value, self._at(pointer, place, lanes.value.type.element), align=4)

    def _at(self, pointer: Any, place: Any, kind: ir.Type) -> Any:
        vector = ir.VectorType(kind, LANES).as_pointer()
        return self.builder.bitcast(self.builder.gep(pointer, [place]), vector)

    def spread(self, scalar: Any) -> Lanes:
        vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
        for lane in range(LANES):
            vector = self.builder.insert_element(vector, scalar, ir.Constant(_I32, lane))
        return Lanes(self.builder, vector)

    def loop(self, step: int, count: Any, running: list[Any], body: Callable[..., list[Any]]) -> list[Any]:
        """For places 0, `step`, … below `count` > 0; `running` values go from turn to turn, and their last is told."""
        builder = self.builder
        before, block = builder.block, self.function.append_basic_block("loop")
        end = self.function.append_basic_block("end")
        builder.branch(block)
        builder.position_at_end(block)
        place, *values = (builder.phi(value.type) for value in (ir.Constant(_I64, 0), *running))
        following = body(place, *values)
        later = builder.add(place, ir.Constant(_I64, step))
        for phi, first, value in zip(
            (place, *values), (ir.Constant(_I64, 0), *running), (later, *following), strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(value, block)
        builder.cbranch(builder.icmp_unsigned("<", later, count), block, end)
        builder.position_at_end(end)
        return following


def _module() -> ir.Module:
    module = ir.Module("weightsearch")
    pointers = {kind: kind.as_pointer() for kind in (_I64, _F32, _F64)}
    inputs = [pointers[_F32], pointers[_F32], pointers[_I64]]
    results = [pointers[_I64], pointers[_F64], pointers[_F32]]
    chunk = ir.Function(module, ir.FunctionType(ir.VoidType(), [*inputs, _I64, *results]), "add_chunk")
    _write_chunk(chunk)
    kind = ir.FunctionType(ir.VoidType(), [_I64, *inputs, *[pointers[_I64]] * 3, *results])
    code = _Code(ir.Function(module, kind, "add_chunks"))
    amount, values, signs, weights, starts, sign_starts, counts, *results = code.function.args

    def add(place: Any) -> list[Any]:
        builder = code.builder
        start, sign_start, count = (
            builder.load(builder.gep(array, [place])) for array in (starts, sign_starts, counts)
        )
        parts = [
            builder.gep(result, [builder.mul(place, ir.Constant(_I64, width))])
            for result, width in zip(results, (4, 8, 2 * WIDTH), strict=True)
        ]
        own_values, own_signs = builder.gep(values, [start]), builder.gep(signs, [sign_start])
        builder.call(chunk, [own_values, own_signs, weights, count, *parts])
        return []

    code.loop(1, amount, [], add)
    code.builder.ret_void()
    return module


def _write_chunk(function: ir.Function) -> None:
    values, signs, weights, count, hashes, totals, sketches = function.args
    code = _Code(function)
    builder = code.builder
    order = ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES)))
    limits = builder.sub(code.spread(builder.trunc(count, _I32)).value, order)
    first = code.spread(builder.load(values)).bits
    first = first.where((first & SIZE).compared("<", INFINITE), 0)
    first = first.where((first & SIZE).compared("!=", 0), 0)

    def add(place: Any, *running: Any) -> list[Any]:
        before = [Lanes(builder, value) for value in running]
        here = code.spread(builder.trunc(place, _I32)).value
        inside = Lanes(builder, builder.icmp_signed("<", here, limits))
        value, sign = (code.load(array, place, _F32) for array in (values, signs))
        value, sign = value.where(inside, 0.0), sign.where(inside, 0.0)

        *ordered, mixed = _hashed(value.bits)
        weight = code.load(weights, place, _I64)
        low, high = weight & 0xFFFFFFFF, weight >> 32  # two products of 32 bits are faster than one of 64
        products = [half * one.to("zext", _I64) for one in ordered for half in (low, high)]
        mixed = mixed.where(inside, 0).to("zext", _I64)
        products.append(mixed * mixed)

        size = value.bits & SIZE
        finite = size.compared("<", INFINITE)
        value = value.where(finite, 0.0)
        wide = value.to("fpext", _F64)
        square = wide * wide
        powers = [wide, square, square * wide, square * square]
        sums = [one + other for one, other in zip(before[:11], [*products, *powers], strict=True)]

        zeros, differ, largest, strange = before[11:]
        size = size.where(finite, 0)
        zero = size.compared("==", 0)
        bits = value.bits.like(0).where(zero, value.bits)
        counted = [
            zeros + zeros.like(1).where(zero, 0).where(inside, 0),
            differ | (bits ^ first).where(inside, 0),
            size.where(size.compared(">", largest), largest),
            strange + strange.like(0).where(finite, 1),
        ]
        at = builder.and_(place, ir.Constant(_I64, WIDTH - 1))
        for place_of_sketch, change in ((at, value * sign), (builder.add(at, ir.Constant(_I64, WIDTH)), sign)):
            code.store(code.load(sketches, place_of_sketch, _F32) + change, sketches, place_of_sketch)
        return [lanes.value for lanes in (*sums, *counted)]

    kinds = [_I64] * 7 + [_F64] * 4 + [_I32] * 4
    start = [ir.Constant(ir.VectorType(kind, LANES), [0] * LANES) for kind in kinds]
    lanes = [Lanes(builder, value) for value in code.loop(LANES, count, start, add)]

    products = [one.combined(builder.add) for one in lanes[:7]]
    ordered = [builder.add(products[k], builder.shl(products[k + 1], ir.Constant(_I64, 32))) for k in (0, 2, 4)]
    for k, result in enumerate([*ordered, products[6]]):
        builder.store(result, builder.gep(hashes, [ir.Constant(_I64, k)]))
    largest = lanes[13].combined(lambda a, b: builder.select(builder.icmp_unsigned(">", a, b), a, b))
    integers = [lanes[11].combined(builder.add), lanes[12].combined(builder.or_), largest]
    integers.append(lanes[14].combined(builder.add))
    powers = [one.combined(builder.fadd) for one in lanes[7:11]]
    for k, result in enumerate([*powers, *(builder.uitofp(integer, _F64) for integer in integers)]):
        builder.store(result, builder.gep(totals, [ir.Constant(_I64, k)]))
    builder.ret_void()
