"""A pickle read, not obeyed: its instructions are followed with stand-ins, and nothing it names is looked up.

A pickle is a program that names functions and calls them. Here a named function is a `Named` string, a call of it a
`Placeholder` that keeps what it was to be called with, and only `pickle_values` gives some of them a meaning: tensors,
NumPy's numbers and arrays, containers. So a file can hold a whole module, a `Namespace` or a callback beside its
weights, and nothing is imported, called or allocated because of it. The instruction set is that of `pickletools`,
protocols 0 to 5.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, Protocol

from weightsearch.checkpoints.tensors import StoredTensor
from weightsearch.errors import WeightsearchError

# A checkpoint of a thousand tensors with Adam's state takes about 120 thousand. Each instruction costs
# at most some 500 bytes and 5 microseconds.
MAX_PICKLE_OPERATIONS = 1_000_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)


class Named(str):
    """A global that a pickle names, as `module.name`; nothing but its name is known of it."""

    __slots__ = ()


class Placeholder:
    """What a call of an unknown global would have made: its name, arguments, attributes (`state`) and items."""

    __slots__ = ("arguments", "items", "members", "name", "state")

    def __init__(self, name: str, arguments: Any = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.members: list[Any] = []

    def __repr__(self) -> str:
        return f"a {self.name}"


class Meaning(Protocol):
    """What calls and references to storages mean."""

    def call(self, name: str, arguments: Any, spend: Callable[[int], None], near: str) -> Any: ...

    def storage(self, identifier: Any) -> Any: ...


def shown(text: str) -> str:
    """`text` made fit for one line of a terminal."""
    text = text if len(text) <= 200 else f"{text[:200]}…"
    return text if text.isprintable() else ascii(text)[1:-1]


class Bounded:
    """A file that is never asked for more bytes than it has left: a pickle may claim a string of any length.

    It has no `tell`, which `pickletools` would call for every instruction.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= 4096:
            left = max(self._size - self._file.tell(), 0)
            count = left if count < 0 else min(count, left)
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(2**20)


class PickleReader:
    """Follows the pickles of one file. The budget of `MAX_PICKLE_OPERATIONS` is shared by all of them.

    `names` are the globals that were met, in order.

    Example:
        >>> import io, pickle
        >>> PickleReader(PickleValues()).read(io.BytesIO(pickle.dumps({"epoch": 3})))
        {'epoch': 3}
    """

    def __init__(self, meaning: Meaning) -> None:
        self.meaning = meaning
        self.names: dict[str, None] = {}
        self._budget = MAX_PICKLE_OPERATIONS

    def read(self, stream: Any) -> Any:
        """Follow one pickle and leave `stream` just behind it. Raises a `WeightsearchError` where it is damaged."""
        try:
            return self.follow(pickletools.genops(stream))
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise WeightsearchError(f"its pickle is damaged ({shown(str(error))}); save it again") from error

    def spend(self, operations: int) -> None:
        self._budget -= operations
        if self._budget < 0:
            raise WeightsearchError(
                f"its pickle takes more than {MAX_PICKLE_OPERATIONS:,} instructions; save only the state dict"
            )

    def follow(self, instructions: Iterable[tuple[Any, Any, Any]]) -> Any:
        """What one pickle's instructions make: opcodes as `pickletools` has them, their arguments and places."""
        stacks: list[list[Any]] = [[]]  # MARK puts the current stack aside and starts another
        memo: dict[int, Any] = {}
        opcode: Any
        argument: Any
        for opcode, argument, _ in instructions:
            self._budget -= 1
            if self._budget < 0:
                self.spend(0)
            name, stack = opcode.name, stacks[-1]
            if name in _VALUES:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                stacks.append([])
            elif (handle := _CONTAINERS.get(name)) is not None:
                handle(self, stacks)
            elif name == "STOP":
                return stack.pop()
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                stack.append(self._named(argument if name == "GLOBAL" else _joined(*_pop(stack, 2))))
            elif name in ("EXT1", "EXT2", "EXT4"):
                stack.append(self._named(f"copyreg extension{argument}"))
            elif name in ("BINPERSID", "PERSID"):
                stack.append(self.meaning.storage(stack.pop() if name == "BINPERSID" else argument))
            elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"):
                self._call(name, argument, stacks)
            elif name == "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Placeholder):
                    stack[-1].state = state
                elif not isinstance(stack[-1], dict | StoredTensor):  # whose attributes do not matter
                    raise ValueError(f"attributes for a {type(stack[-1]).__name__}")
            elif name == "NEXT_BUFFER":
                stack.append(Placeholder("pickle.PickleBuffer"))
            elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
                raise ValueError(f"unexpected instruction {name}")
        raise ValueError("it does not stop")

    def _named(self, pair: str) -> Named:
        name = Named(pair.replace(" ", ".", 1))
        self.names.setdefault(name)
        return name

    def _call(self, opcode: str, argument: Any, stacks: list[list[Any]]) -> None:
        if opcode == "INST":
            arguments: Any = tuple(stacks.pop())
            function: Any = self._named(argument)
        elif opcode == "OBJ":
            function, *rest = stacks.pop()
            arguments = tuple(rest)
        elif opcode == "NEWOBJ_EX":
            function, positional, named = _pop(stacks[-1], 3)
            arguments = (*positional, named) if named else positional
        else:
            function, arguments = _pop(stacks[-1], 2)
        if not isinstance(function, Named):  # a call of what another call made
            value: Any = Placeholder(
                shown(f"call of {function!r}") if isinstance(function, Placeholder) else "call", arguments
            )
        else:
            value = self.meaning.call(function, arguments, self.spend, _nearest_name(stacks))
        stacks[-1].append(value)


def _joined(module: Any, name: Any) -> str:
    """What `STACK_GLOBAL` names; a name that is no text could be containers that unfold without end."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a global without a name")
    return f"{module} {name}"


def _nearest_name(stacks: Sequence[list[Any]]) -> str:
    """The key that a value is about to be stored under: the last string that still waits on the stacks."""
    for stack in reversed(stacks):
        for value in reversed(stack):
            if type(value) is str:
                return f"'{shown(value)}'"
    return "without a name"


def _pop(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise IndexError("a value is missing")
    items = tuple(stack[-count:])
    del stack[-count:]
    return items


def key_of(key: Any) -> Any:
    """The key itself if it hashes in constant time and cannot be chosen to collide, else a stand-in for it."""
    if key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60):
        return key
    return Placeholder(f"key of type {type(key).__name__}", key) if not isinstance(key, Placeholder) else key


def _append(target: Any, items: Sequence[Any]) -> None:
    if isinstance(target, Placeholder):
        target.members.extend(items)
    elif type(target) is list:
        target.extend(items)
    else:
        raise ValueError(f"items for a {type(target).__name__}")


def set_items(target: Any, keys_and_values: Sequence[Any]) -> None:
    target = target.items if isinstance(target, Placeholder) else target
    if type(target) is not dict:
        raise ValueError(f"keys for a {type(target).__name__}")
    for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
        target[key_of(key)] = value


def _set(members: Sequence[Any]) -> Placeholder:
    """A set is no plain value and no place for weights; its members are kept, unhashed."""
    placeholder = Placeholder("builtins.set")
    placeholder.members.extend(members)
    return placeholder


def _dict(items: Sequence[Any]) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    set_items(mapping, items)
    return mapping


def _collect(make: Callable[[list[Any]], Any]) -> Callable[[PickleReader, list[list[Any]]], None]:
    """An instruction that makes a value of all behind the last MARK."""

    def run(_: PickleReader, stacks: list[list[Any]]) -> None:
        items = stacks.pop()
        stacks[-1].append(make(items))

    return run


def _fill(put: Callable[[Any, list[Any]], None]) -> Callable[[PickleReader, list[list[Any]]], None]:
    """An instruction that puts all behind the last MARK into the value before it."""

    def run(_: PickleReader, stacks: list[list[Any]]) -> None:
        items = stacks.pop()
        put(stacks[-1][-1], items)

    return run


def _make(make: Callable[[], Any]) -> Callable[[PickleReader, list[list[Any]]], None]:
    return lambda _, stacks: stacks[-1].append(make())


def _tuple_of(count: int) -> Callable[[PickleReader, list[list[Any]]], None]:
    return lambda _, stacks: stacks[-1].append(_pop(stacks[-1], count))


def _put_one(count: int, put: Callable[[Any, Sequence[Any]], None]) -> Callable[[PickleReader, list[list[Any]]], None]:
    def run(_: PickleReader, stacks: list[list[Any]]) -> None:
        items = _pop(stacks[-1], count)
        put(stacks[-1][-1], items)

    return run


_CONTAINERS: dict[str, Callable[[PickleReader, list[list[Any]]], Any]] = {
    "EMPTY_DICT": _make(dict),
    "EMPTY_LIST": _make(list),
    "EMPTY_SET": _make(lambda: _set(())),
    "TUPLE": _collect(tuple),
    "LIST": _collect(list),
    "DICT": _collect(_dict),
    "FROZENSET": _collect(_set),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "SETITEMS": _fill(set_items),
    "APPENDS": _fill(_append),
    "ADDITEMS": _fill(_append),
    "SETITEM": _put_one(2, set_items),
    "APPEND": _put_one(1, _append),
    "DUP": lambda _, stacks: stacks[-1].append(stacks[-1][-1]),
    "POP": lambda _, stacks: stacks[-1].pop() if stacks[-1] else stacks.pop(),
    "POP_MARK": lambda _, stacks: stacks.pop(),
}
