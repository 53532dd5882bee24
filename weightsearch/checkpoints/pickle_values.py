"""What a pickle's globals mean: torch's tensors when they are met, and plain values when they are asked for.

Nothing is looked up by name: each meaning is written out here. What has none stays a `Placeholder`.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import Named, Placeholder, set_items, shown
from weightsearch.checkpoints.tensors import ITEM_BYTES, ITEM_TYPES, MemoryBytes, Storage, StoredTensor
from weightsearch.errors import WeightsearchError

STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}
UNREADABLE_TENSORS = {
    "_rebuild_sparse_tensor": "is sparse",
    "_rebuild_sparse_csr_tensor": "is sparse",
    "_rebuild_qtensor": "is quantised",
    "_rebuild_meta_tensor_no_storage": "is on the meta device and has no values",
    "_rebuild_nested_tensor": "is a nested tensor",
    "_rebuild_wrapper_subclass": "is of a tensor subclass",
}
_TENSOR_MODULES = ("torch._utils", "torch._tensor", "torch")
# Of these, a look at what a name would have done when somebody else loads the file.
DANGEROUS = ("os", "posix", "nt", "subprocess", "sys", "socket", "shutil", "runpy", "importlib", "pty", "commands")
_DANGEROUS_BUILTINS = ("eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "breakpoint", "input")
_PLAIN_CONTAINERS = {"builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"}


def is_dangerous(name: str) -> bool:
    """Whether a global runs commands or code, so that no honest file names it."""
    module, _, attribute = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return attribute in _DANGEROUS_BUILTINS
    return module.partition(".")[0] in DANGEROUS


class PickleValues:
    """The meaning of torch's and Python's own globals; `storages` collects the storages referred to, by key.

    Args:
        nested: reads what a storage's own pickle holds, for pickles that were not written by torch.save.
    """

    def __init__(self, nested: Callable[[bytes], Any] | None = None, byteorder: str = "<") -> None:
        self.storages: dict[str, tuple[str, Storage]] = {}
        self.nested = nested
        self.byteorder = byteorder

    def storage(self, identifier: Any) -> Any:
        """A storage by torch's persistent id: `("storage", type, key, location, numel[, view])`."""
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # a module's class, with its source beside it
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
            raise ValueError("an unknown storage")
        _, kind, key, location, numel, *view = identifier
        if not isinstance(location, str) or any(part is not None for part in view):
            raise ValueError("an unknown storage")
        if not isinstance(key, str) or not key.isascii() or not is_size((numel,)):
            raise ValueError("an impossible storage")
        dtype = STORAGE_TYPES.get(kind.rpartition(".")[2] if isinstance(kind, Named) else "")
        if dtype is None:
            raise ValueError("a storage of an unknown type")
        nbytes = numel * ITEM_BYTES[dtype]
        stored = self.storages.setdefault(key, (dtype, Storage(nbytes)))
        if stored[1].nbytes != nbytes:
            raise ValueError("two accounts of one storage")
        return dtype, stored[1]

    def call(self, name: str, arguments: Any, spend: Callable[[int], None], near: str) -> Any:
        """What a call would have made: a tensor, a container, or a placeholder. Copied items are spent."""
        if not isinstance(arguments, tuple):
            raise ValueError(f"an unusual call of {shown(name)}")
        module, _, function = name.rpartition(".")
        if module in _TENSOR_MODULES and function.startswith("_rebuild"):
            return self._tensor(function, arguments, spend, near)
        match name, arguments:
            case (("collections.OrderedDict" | "builtins.dict" | "__builtin__.dict"), ()):
                return {}
            case ("collections.Counter", (dict() as counts,)) | (
                "collections.defaultdict",
                (Named() | None, dict() as counts),
            ):
                spend(len(counts))
                return dict(counts)
            case ("collections.defaultdict", (Named() | None,) | ()) | ("collections.Counter", ()):
                return {}
            case "collections.OrderedDict", (list() as pairs,):  # as Python 2 wrote it
                spend(len(pairs))
                mapping: dict[Any, Any] = {}
                for key, value in pairs:
                    set_items(mapping, [key, value])
                return mapping
            case (
                ("builtins.set" | "__builtin__.set" | "builtins.frozenset" | "__builtin__.frozenset"),
                (list() as all,),
            ):
                spend(len(all))
                container = Placeholder("builtins.set")
                container.members.extend(all)
                return container
            case "torch.Size", (tuple() | list() as size,) if is_size(size):
                spend(len(size))
                return tuple(size)
            case "_codecs.encode", (str() as text, "latin1" | "latin-1"):
                spend(len(text) // 100)
                return text.encode("latin-1")
            case (("builtins.bytearray" | "__builtin__.bytearray"), (bytes() as content,)):
                return content
            case "torch.storage._load_from_bytes", (bytes() as content,) if self.nested is not None:
                return self.nested(content)
            case "torch.jit._pickle.restore_type_tag", (inner, *_):
                return inner
            case _, (list() as items,) if name.startswith("torch.jit._pickle.build_"):
                return items
        return Placeholder(name, arguments)

    def _tensor(self, function: str, arguments: tuple[Any, ...], spend: Callable[[int], None], near: str) -> Any:
        match function, arguments:
            case "_rebuild_tensor" | "_rebuild_tensor_v2", (
                (str() as dtype, Storage() as storage),
                offset,
                size,
                stride,
                *_,
            ):
                return self._strided(dtype, storage, offset, size, stride, spend, near)
            case "_rebuild_tensor_v3", ((str(), Storage() as storage), offset, size, stride, _, _, Named() as kind, *_):
                dtype = kind.rpartition(".")[2]
                if dtype not in ITEM_TYPES:
                    return StoredTensor(dtype, (), problem=f"has an unsupported dtype ({shown(dtype)})")
                return self._strided(dtype, storage, offset, size, stride, spend, near)
            case "_rebuild_parameter" | "_rebuild_parameter_with_state", (StoredTensor() as tensor, *_):
                return tensor
            case "_rebuild_device_tensor_from_numpy", (array, *_):
                return plain(array)
            case "_rebuild_from_type_v2" | "_rebuild_from_type", (
                Named() as made_by,
                Named() as kind,
                tuple() as rest,
                *_,
            ):
                rebuilt = self.call(made_by, rest, spend, near)
                subclass = kind.rpartition(".")[2]
                if subclass not in ("Tensor", "Parameter", "Buffer"):
                    return StoredTensor("?", (), problem=f"is of the tensor subclass {shown(subclass)}")
                return rebuilt
            case _ if function in UNREADABLE_TENSORS:
                return StoredTensor("?", (), problem=UNREADABLE_TENSORS[function])
        raise ValueError(f"an unusual call of {shown(function)}")

    def _strided(
        self, dtype: str, storage: Storage, offset: Any, size: Any, stride: Any, spend: Callable[[int], None], near: str
    ) -> StoredTensor:
        if not isinstance(size, tuple) or not isinstance(stride, tuple) or not is_size((offset, *size, *stride)):
            raise ValueError("an impossible tensor shape")
        spend(len(size))
        tensor = StoredTensor(dtype, size, storage, offset, stride, byteorder=self.byteorder)
        if 0 not in size and (offset + tensor.extent) * tensor.item_bytes > storage.nbytes:
            raise WeightsearchError(f"tensor {near} claims more values than its storage holds; save it again")
        return tensor


def is_size(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def plain(value: Any) -> Any:
    """The value that a placeholder stands for, where that is safe to say: one level, its items as they are.

    A NumPy scalar is its number, a Namespace or another object its attributes, a path its text, a member of an enum
    its value. Whatever else there is comes back as it came.
    """
    if not isinstance(value, Placeholder):
        return value
    name = value.name.rpartition(".")[2]
    module = value.name.partition(".")[0]
    if module == "numpy":
        array = _numpy(name, value)
        if array is not None:
            return array.item() if name == "scalar" else array
        return value
    if module == "pathlib" and name.endswith("Path") and all(isinstance(part, str) for part in value.arguments):
        return "/".join(value.arguments).replace("//", "/")
    if value.name == "datetime.datetime":
        return _moment(value)
    if value.name in ("builtins.set", "torch.device"):
        return value
    if isinstance(value.state, Mapping) and isinstance(value.state.get("_content"), Mapping):  # OmegaConf's
        return {key: _content(item) for key, item in value.state["_content"].items()}
    if value.items:
        return value.items
    if isinstance(value.state, Mapping):
        return value.state
    if isinstance(value.state, tuple) and len(value.state) == 2 and isinstance(value.state[1], Mapping):
        return value.state[1]  # of an object with slots
    if value.members:
        return value.members
    if len(value.arguments) == 1 and isinstance(value.arguments[0], str | int | float):  # a member of an enum
        return value.arguments[0]
    return value


def _content(node: Any) -> Any:
    if isinstance(node, Placeholder) and isinstance(node.state, Mapping) and "_val" in node.state:
        return node.state["_val"]
    return node


def _moment(value: Placeholder) -> Any:
    packed = value.arguments[0] if value.arguments else b""
    packed = packed.encode("latin-1", "replace") if isinstance(packed, str) else packed
    if not isinstance(packed, bytes) or len(packed) != 10:
        return value
    high, low, month, day, hour, minute, second = packed[:7]
    microsecond = int.from_bytes(packed[7:], "big")
    try:
        moment = datetime.datetime(256 * high + low, month & 127, day, hour, minute, second, microsecond)
        return moment.isoformat()
    except ValueError:
        return value


def _numpy(name: str, value: Placeholder) -> np.ndarray | None:
    """NumPy's own pickles of scalars and arrays, of numbers and texts alone."""
    match name, value.arguments, value.state:
        case "scalar", (kind, content), _:
            shape: Any = ()
            order = "C"
        case "_reconstruct", _, (_, shape, kind, fortran, content):
            order = "F" if fortran else "C"
        case "_frombuffer", (content, kind, shape, order, *_), _:
            pass
        case _:
            return None
    dtype = _dtype(kind)
    content = content.encode("latin-1", "replace") if isinstance(content, str) else content
    if (
        dtype is None
        or not isinstance(content, bytes | bytearray)
        or not isinstance(shape, tuple)
        or not is_size(shape)
    ):
        return None
    if math.prod(shape) * dtype.itemsize != len(content) or order not in ("C", "F"):
        return None
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _dtype(kind: Any) -> np.dtype | None:
    if not isinstance(kind, Placeholder) or kind.name != "numpy.dtype" or not kind.arguments:
        return None
    code = kind.arguments[0]
    if not isinstance(code, str) or len(code) > 12 or code[:1] not in "fiubcUS" or not code[1:].isdecimal():
        return None
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "="
    try:
        return np.dtype((order if order in ("<", ">") else "=") + code)
    except TypeError:
        return None


def memory_storage(content: bytes, dtype: str) -> tuple[str, Storage]:
    return dtype, Storage(len(content), MemoryBytes(content))
