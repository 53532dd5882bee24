"""A pickle inspected, not obeyed: what `torch.load` would do with it, known before it does anything.

`torch.load(weights_only=True)` runs no code, but it still lets a file of a few bytes ask for any amount of
memory (`bytearray(10**11)`, a legacy storage of 10**12 values) or time (a nested tuple as a dict key is hashed
in exponential time). So the pickle's instructions are first followed with stand-ins: nothing is imported,
called or allocated, and only what `torch.save` writes for tensors and plain values is let through.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from weightsearch.errors import WeightsearchError

# A checkpoint of a thousand tensors with Adam's state takes about 120 thousand. Each instruction costs
# at most some 500 bytes and 5 microseconds in `torch.load`.
MAX_PICKLE_OPERATIONS = 1_000_000

# Globals by "module name", as pickletools gives them. Protocol 2 calls `builtins` by its old name.
_ITEM_BYTES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch ComplexDoubleStorage": 16,
    "torch ComplexFloatStorage": 8,
}
_ALLOWED = {
    *_ITEM_BYTES,
    *(f"torch float{bits}" for bits in (16, 32, 64)),
    *(f"torch int{bits}" for bits in (8, 16, 32, 64)),
    *("torch bfloat16", "torch uint8", "torch bool", "torch complex64", "torch complex128"),
    *("torch Size", "torch device", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"),
    *("torch._utils _rebuild_parameter", "collections OrderedDict", "collections Counter", "_codecs encode"),
    *("__builtin__ set", "builtins set", "__builtin__ complex", "builtins complex"),
}
_UNREADABLE_TENSORS = {
    "torch._utils _rebuild_sparse_tensor": "is sparse",
    "torch._utils _rebuild_qtensor": "is quantised",
    "torch._utils _rebuild_meta_tensor_no_storage": "is on the meta device and has no values",
    "torch._utils _rebuild_nested_tensor": "is a nested tensor",
    "torch._utils _rebuild_wrapper_subclass": "is of a tensor subclass",
    "torch._tensor _rebuild_from_type_v2": "is of a tensor subclass",
    "torch._utils _rebuild_tensor_v3": "has an unsupported dtype",
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS_AND_STRINGS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINSTRING", "SHORT_BINUNICODE"),
)


@dataclass(frozen=True)
class Storage:
    """What a pickle says about one block of stored values."""

    numel: int
    item_bytes: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.item_bytes


@dataclass(frozen=True)
class _Global:
    name: str


class _Opaque:
    """Stands in for a value whose content does not matter: a tensor, a device, bytes."""


_OPAQUE = _Opaque()


def shown(text: str) -> str:
    """`text` made fit for one line of a terminal."""
    text = text if len(text) <= 200 else f"{text[:200]}…"
    return text if text.isprintable() else ascii(text)[1:-1]


class PickleInspector:
    """Follows the pickles of one file; `storages` collects the storages they refer to, by key.

    The budget of `MAX_PICKLE_OPERATIONS` is shared by all pickles of a file.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._budget = MAX_PICKLE_OPERATIONS
        self._protocol = 0

    def inspect(self, stream: BinaryIO) -> Any:
        """Follow one pickle and leave `stream` just behind it. Returns its value, with stand-ins in it.

        Raises a `WeightsearchError` that names the global or the tensor for everything but tensors and plain
        values.
        """
        try:
            value = self._follow(stream)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise WeightsearchError(f"its pickle is damaged ({shown(str(error))}); save it again") from error
        if self._protocol > 2:
            raise WeightsearchError(
                f"it uses pickle protocol {self._protocol}, but the safe loader reads protocol 2; "
                "save it again with torch.save's default"
            )
        return value

    def _spend(self, operations: int) -> None:
        self._budget -= operations
        if self._budget < 0:
            raise WeightsearchError(
                f"its pickle takes more than {MAX_PICKLE_OPERATIONS:,} instructions; save only the state dict"
            )

    def _follow(self, stream: BinaryIO) -> Any:
        stacks: list[list[Any]] = [[]]  # MARK puts the current stack aside and starts another
        memo: dict[int, Any] = {}
        opcode: Any
        argument: Any
        for opcode, argument, _ in pickletools.genops(stream):
            self._spend(1)
            name, stack = opcode.name, stacks[-1]
            if name in _NUMBERS_AND_STRINGS:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name == "MARK":
                stacks.append([])
            elif name == "TUPLE":
                items = stacks.pop()
                stacks[-1].append(tuple(items))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack.append(_pop(stack, int(name[-1])))
            elif name == "SETITEM":
                key_and_value = _pop(stack, 2)
                _set_items(stack[-1], key_and_value)
            elif name == "SETITEMS":
                items = stacks.pop()
                _set_items(stacks[-1][-1], items)
            elif name == "APPEND":
                item = stack.pop()
                _append(stack[-1], [item])
            elif name == "APPENDS":
                items = stacks.pop()
                _append(stacks[-1][-1], items)
            elif name == "GLOBAL":
                stack.append(_global(argument, stacks))
            elif name == "STACK_GLOBAL":
                module, attribute = _pop(stack, 2)
                stack.append(_global(f"{module} {attribute}", stacks))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name == "REDUCE":
                function, arguments = _pop(stack, 2)
                stack.append(self._call(function, arguments, stacks))
            elif name == "BUILD":
                # A state dict's `_metadata`; any other attribute could shadow a method of the dict.
                state = stack.pop()
                if not (type(stack[-1]) is type(state) is dict and len(state) == 1 and "_metadata" in state):
                    raise ValueError("an object with attributes")
            elif name == "PROTO":
                self._protocol = argument
            elif name == "STOP":
                return stack.pop()
            elif name != "FRAME":
                raise ValueError(f"unexpected instruction {name}")
        raise ValueError("it does not stop")

    def _storage(self, identifier: Any) -> Storage:
        kind, dtype, key, location, numel, *view = identifier
        if kind != "storage" or not isinstance(location, str) or any(part is not None for part in view):
            raise ValueError("an unknown storage")
        if not isinstance(key, str) or not key.isascii() or not _is_size((numel,)):
            raise ValueError("an impossible storage")
        storage = Storage(numel, _ITEM_BYTES[dtype.name if isinstance(dtype, _Global) else ""])
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("two accounts of one storage")
        return storage

    def _call(self, function: Any, arguments: Any, stacks: Sequence[list[Any]]) -> Any:
        """A stand-in for what the call would return. Each copied item counts as one more instruction."""
        if not isinstance(function, _Global):
            raise ValueError("a call of something that is no function")
        match function.name.split()[1], arguments:
            case (
                "_rebuild_tensor" | "_rebuild_tensor_v2",
                (Storage() as storage, offset, tuple() as size, tuple() as stride, *rest),
            ):
                _check_no_hooks(rest)
                self._spend(len(size))
                if not _is_size((offset, *size, *stride)):
                    raise ValueError("an impossible tensor shape")
                extent = 1 + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
                if 0 not in size and offset + extent > storage.numel:
                    raise WeightsearchError(
                        f"tensor {_nearest_name(stacks)} claims more values than its storage holds; save it again"
                    )
                return _OPAQUE
            case "_rebuild_parameter", (_Opaque(), *rest):
                _check_no_hooks(rest)
                return _OPAQUE
            case "OrderedDict" | "Counter", ():
                return {}
            case "Counter", (dict() as counts,):
                self._spend(len(counts))
                return dict(counts)
            case "OrderedDict", (list() as pairs,):  # as Python 2 wrote it
                self._spend(len(pairs))
                result: dict[Any, Any] = {}
                for key, value in pairs:
                    _set_items(result, [key, value])
                return result
            case "set", (list() as members,):
                self._spend(len(members))
                for member in members:
                    _check_key(member)
                return _OPAQUE
            case "Size", (tuple() as size,) if _is_size(size):
                self._spend(len(size))
                return size
            case "encode", (str() as text, "latin1"):
                self._spend(len(text))
                return _OPAQUE
            case ("device", (str(), *_)) | ("complex", (float(), float())):
                return _OPAQUE
        raise ValueError(f"an unusual call of {function.name.replace(' ', '.')}")


def _global(name: str, stacks: Sequence[list[Any]]) -> _Global:
    if name in _ALLOWED:
        return _Global(name)
    if name in _UNREADABLE_TENSORS:
        raise WeightsearchError(
            f"tensor {_nearest_name(stacks)} {_UNREADABLE_TENSORS[name]}; save it as an ordinary float tensor"
        )
    raise WeightsearchError(
        f"its pickle needs the global {shown(name.replace(' ', '.'))}, which could run code, so it was not "
        "loaded; save model.state_dict() with plain numbers and strings only"
    )


def _nearest_name(stacks: Sequence[list[Any]]) -> str:
    """The key that a value is about to be stored under: the last string that still waits on the stacks."""
    for stack in reversed(stacks):
        for value in reversed(stack):
            if isinstance(value, str):
                return f"'{shown(value)}'"
    return "without a name"


def _check_no_hooks(arguments: Sequence[Any]) -> None:
    """What follows a tensor's data: requires_grad, no hooks, no metadata."""
    if not all(part is None or isinstance(part, bool) or part == {} for part in arguments):
        raise ValueError("a tensor with hooks")


def _check_key(key: Any) -> None:
    """Dict keys that hash in constant time and cannot be chosen to collide."""
    if not (key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60)):
        raise ValueError(f"a key of type {type(key).__name__}")


def _is_size(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _pop(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise IndexError("a value is missing")
    items = tuple(stack[-count:])
    del stack[-count:]
    return items


def _append(target: Any, items: Sequence[Any]) -> None:
    if type(target) is not list:
        raise ValueError(f"items for a {type(target).__name__}")
    target.extend(items)


def _set_items(target: Any, keys_and_values: Sequence[Any]) -> None:
    if type(target) is not dict:
        raise ValueError(f"keys for a {type(target).__name__}")
    for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
        _check_key(key)
        target[key] = value
