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

from weightsearch.relations.hashes import CHUNK, FOLD, LANES, MIX_ADD, MIX_FIRST, MIX_SECOND, WEIGHTS

WIDTH = 512  # of a sketch
MINUS_ZERO, SIZE, INFINITE = 0x80000000, 0x7FFFFFFF, 0x7F800000
LARGEST_HALF, SMALLEST_NORMAL_HALF = 0x477FE000, 0x38800000  # 65504 and 2^-14
_I8, _I32, _I64, _F32, _F64 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()


@dataclass(frozen=True)
class Added:
    """Of tensors `(t,)`, what chunk after chunk adds to.

    `integers (t, 8)` uint64: the hashes in order as float32, float16 and bfloat16, and the one without; zeros, whether
    values differ, the bits of the largest |v|, and how many are not finite; those count as zeros. `powers (t, 4)`: Σv,
    Σv², Σv³, Σv⁴. `sketches (t, 2, 512)`, of the values and of ones.
    """

    integers: np.ndarray
    powers: np.ndarray
    sketches: np.ndarray

    @classmethod
    def nothing(cls, tensors: int) -> Added:
        return cls(np.zeros((tensors, 8), np.uint64), np.zeros((tensors, 4)), np.zeros((tensors, 2, WIDTH)))


def firsts_of(values: np.ndarray) -> np.ndarray:
    """Tensors' first values `(t,)` as the kernel compares others with them: bits, of those that count."""
    return (np.where(np.isfinite(values), values, np.float32(0)) + np.float32(0)).view(np.uint32)


def add_tensors(values: np.ndarray, signs: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Added:
    """Tensors of a chunk at most: `counts (t,)` > 0 float32 values from `starts (t,)` of `values (n,)` on.

    `signs (n,)` int8 are their random signs. Whole lanes are read of each, whatever lies behind its values. Raises
    ValueError where that is outside of the arrays.
    """
    read = -(-counts // LANES) * LANES
    if (
        counts.min() < 1
        or starts.min() < 0
        or read.max() > CHUNK
        or (starts + read).max() > min(len(values), len(signs))
    ):
        raise ValueError("tensors lie outside of their arrays")
    added = Added.nothing(len(starts))
    places = [np.ascontiguousarray(one, np.int64) for one in (starts, starts, counts)]
    values, signs = np.ascontiguousarray(values, np.float32), np.ascontiguousarray(signs, np.int8)
    arrays = (values, signs, WEIGHTS, *places, firsts_of(values[starts]), added.integers, added.powers, added.sketches)
    _compiled()[1](len(starts), *(array.ctypes.data for array in arrays))
    return added


class ChunkAdder:
    """Adds a tensor's chunks, in order, to `added`, its one row."""

    def __init__(self, signs: np.ndarray) -> None:
        self.added = Added.nothing(1)
        self._signs = np.append(np.ascontiguousarray(signs, np.int8), np.zeros(LANES, np.int8))
        self._places = np.zeros((3, 1), np.int64)
        self._first = np.zeros(1, np.uint32)
        self._chunks = 0
        held = (self._signs, WEIGHTS, *self._places, self._first, *self.added.__dict__.values())
        self._held = [array.ctypes.data for array in held]
        self._call = _compiled()[1]

    def add(self, chunk: np.ndarray, sign_start: int) -> None:
        """A chunk `(n,)` of float32, whose signs begin at `sign_start`. Raises ValueError where those are too few."""
        count = len(chunk)
        if not 0 < count <= CHUNK or not 0 <= sign_start <= len(self._signs) - LANES - count:
            raise ValueError("a chunk has too many values, or too few signs")
        if not self._chunks:
            self._first[:] = firsts_of(chunk[:1])
        self._chunks += 1
        if count % LANES:
            chunk = np.append(chunk, np.zeros(-count % LANES, np.float32))
        chunk = np.ascontiguousarray(chunk, np.float32)
        self._places[1:, 0] = sign_start, count
        self._call(1, chunk.ctypes.data, *self._held)


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
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * 10)
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
        return Lanes(self.builder, self.builder.load(self._at(pointer, place, kind), align=1))

    def store(self, lanes: Lanes, pointer: Any, place: Any) -> None:
        self.builder.store(lanes.value, self._at(pointer, place, lanes.value.type.element), align=1)

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
    """`add_chunks(amount, values, signs, weights, starts, sign_starts, counts, firsts, integers, powers, sketches)`."""
    module = ir.Module("weightsearch")
    values, signs, wide = _F32.as_pointer(), _I8.as_pointer(), _I64.as_pointer()
    results = [wide, _F64.as_pointer(), _F64.as_pointer()]
    kind = ir.FunctionType(ir.VoidType(), [values, signs, wide, _I64, _I32, *results])
    chunk = ir.Function(module, kind, "add_chunk")
    _write_chunk(chunk)
    kind = ir.FunctionType(ir.VoidType(), [_I64, values, signs, *[wide] * 4, _I32.as_pointer(), *results])
    code = _Code(ir.Function(module, kind, "add_chunks"))
    builder = code.builder
    amount, values, signs, weights, *places, integers, powers, sketches = code.function.args

    def add(row: Any) -> list[Any]:
        start, sign_start, count, first = (builder.load(builder.gep(array, [row])) for array in places)
        rows = [
            builder.gep(result, [builder.mul(row, ir.Constant(_I64, width))])
            for result, width in ((integers, 8), (powers, 4), (sketches, 2 * WIDTH))
        ]
        own = builder.gep(values, [start]), builder.gep(signs, [sign_start])
        builder.call(chunk, [*own, weights, count, first, *rows])
        return []

    code.loop(1, amount, [], add)
    builder.ret_void()
    return module


def _write_chunk(function: ir.Function) -> None:
    values, signs, weights, count, first, integers, powers, sketches = function.args
    code = _Code(function)
    builder = code.builder
    part = builder.alloca(_F32, ir.Constant(_I64, 2 * WIDTH))  # of the sketches, by this chunk
    nothing = Lanes(builder, ir.Constant(ir.VectorType(_F32, LANES), [0] * LANES))
    both = ir.Constant(_I64, 2 * WIDTH)

    def clear(place: Any) -> list[Any]:
        code.store(nothing, part, place)
        return []

    code.loop(LANES, both, [], clear)
    order = ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES)))
    limits = builder.sub(code.spread(builder.trunc(count, _I32)).value, order)
    first = code.spread(first)

    def add(place: Any, *running: Any) -> list[Any]:
        before = [Lanes(builder, value) for value in running]
        here = code.spread(builder.trunc(place, _I32)).value
        inside = Lanes(builder, builder.icmp_signed("<", here, limits))
        value = code.load(values, place, _F32).where(inside, 0.0)
        sign = code.load(signs, place, _I8).to("sext", _I32).to("sitofp", _F32).where(inside, 0.0)

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
        sums = [one + other for one, other in zip(
            before[:11], [*products, wide, square, square * wide, square * square], strict=True
        )]  # fmt: skip

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
            code.store(code.load(part, place_of_sketch, _F32) + change, part, place_of_sketch)
        return [lanes.value for lanes in (*sums, *counted)]

    kinds = [_I64] * 7 + [_F64] * 4 + [_I32] * 4
    start = [ir.Constant(ir.VectorType(kind, LANES), [0] * LANES) for kind in kinds]
    lanes = [Lanes(builder, value) for value in code.loop(LANES, count, start, add)]

    def keep(place: Any) -> list[Any]:
        code.store(code.load(sketches, place, _F64) + code.load(part, place, _F32).to("fpext", _F64), sketches, place)
        return []

    code.loop(LANES, both, [], keep)

    def add_to(array: Any, place: int, more: Any, combine: Callable[[Any, Any], Any]) -> None:
        pointer = builder.gep(array, [ir.Constant(_I64, place)])
        builder.store(combine(builder.load(pointer), more), pointer)

    def folded(before: Any, chunk: Any) -> Any:
        return builder.add(builder.mul(before, ir.Constant(_I64, FOLD)), chunk)

    def larger(one: Any, other: Any) -> Any:
        return builder.select(builder.icmp_unsigned(">", one, other), one, other)

    products = [one.combined(builder.add) for one in lanes[:7]]
    for k in range(3):
        high = builder.shl(products[2 * k + 1], ir.Constant(_I64, 32))
        add_to(integers, k, builder.add(products[2 * k], high), folded)
    add_to(integers, 3, products[6], builder.add)
    for k, combine in enumerate((builder.add, builder.or_, larger, builder.add)):
        add_to(integers, 4 + k, builder.zext(lanes[11 + k].combined(combine), _I64), combine)
    for k in range(4):
        add_to(powers, k, lanes[7 + k].combined(builder.fadd), builder.fadd)
    builder.ret_void()
