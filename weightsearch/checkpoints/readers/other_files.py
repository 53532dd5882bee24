"""GGUF, TensorFlow Lite and Flax's msgpack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.readers.channels_last import NORM_NAMES, after_flatten, kernel_to_torch
from weightsearch.checkpoints.readers.libraries import library
from weightsearch.checkpoints.readers.limits import MAX_FILE_BYTES, natural
from weightsearch.checkpoints.tensors import Content
from weightsearch.errors import WeightsearchError

MAX_DEPTH = 20


def read_gguf(path: Path) -> Content:
    """llama.cpp's format, its quantised blocks as float32 by the `gguf` package; shapes come in PyTorch's order."""
    gguf = library("gguf", "GGUF files")
    try:
        reader = gguf.GGUFReader(str(path), "r")
    except Exception as error:
        raise WeightsearchError(f"it is no sound GGUF file ({shown(str(error))}); copy it again") from None
    tensors: dict[str, Any] = {}
    quantised: set[str] = set()
    total = 0
    for tensor in reader.tensors:
        shape = tuple(int(length) for length in reversed(tensor.shape))
        total += 4 * int(np.prod(shape))
        if total > MAX_FILE_BYTES:
            raise WeightsearchError("its tensors are over the limit of 8 GiB as float32")
        kind = tensor.tensor_type.name
        if kind in ("F32", "F16", "F64", "I8", "I16", "I32", "I64"):
            tensors[tensor.name] = np.array(tensor.data).reshape(shape)
            continue
        if kind != "BF16":
            quantised.add(kind)
        tensors[tensor.name] = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type).reshape(shape)
    stated = {}
    for name in ("general.architecture", "general.name", "general.file_type"):
        entry = reader.fields.get(name)
        if entry is not None:
            stated[name] = entry.contents()
    notes = (f"its quantised weights ({', '.join(sorted(quantised))}) were made floats",) if quantised else ()
    return Content({"state_dict": tensors, **stated}, notes)


def read_tflite(path: Path) -> Content:
    """The constants of a TensorFlow Lite graph, in the order of its operators and PyTorch's layout."""
    tflite = library("tflite", "TensorFlow Lite models")
    try:
        model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
        return Content({"state_dict": dict(_tflite_tensors(tflite, model))})
    except WeightsearchError:
        raise
    except Exception as error:
        raise WeightsearchError(f"it is no sound TFLite model ({shown(str(error))}); copy it again") from None


def _tflite_tensors(tflite: Any, model: Any) -> Iterator[tuple[str, Any]]:
    codes = {
        value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int) and name.isupper()
    }
    types = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 6: np.bool_, 7: np.int16, 9: np.int8}
    named: dict[int, set[int]] = {}  # by graph, the tensors that have been given
    for g in range(model.SubgraphsLength()):
        named[g] = set()
        graph = model.Subgraphs(g)
        constants: dict[int, Any] = {}
        for t in range(graph.TensorsLength()):
            tensor = graph.Tensors(t)
            data = model.Buffers(tensor.Buffer()).DataAsNumpy()
            if not isinstance(data, np.ndarray) or not data.size or tensor.Type() not in types:
                continue
            array: Any = np.frombuffer(data.tobytes(), types[tensor.Type()])
            shape = tuple(int(n) for n in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
            if array.size != int(np.prod(shape)):
                continue
            scales = tensor.Quantization().ScaleLength() if tensor.Quantization() is not None else 0
            if scales and array.dtype in (np.int8, np.uint8) and len(shape) > 1:
                raise WeightsearchError(
                    f"tensor '{shown(tensor.Name().decode())}' is quantised ({array.dtype}); give the float model"
                )
            constants[t] = array.reshape(shape)
        made_by: dict[int, Any] = {}
        for o in range(graph.OperatorsLength()):
            operator = graph.Operators(o)
            code = model.OperatorCodes(operator.OpcodeIndex())
            kind = codes.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "")
            inputs = [int(i) for i in operator.InputsAsNumpy()] if operator.InputsLength() else []
            outputs = [int(i) for i in operator.OutputsAsNumpy()] if operator.OutputsLength() else []
            made_by |= {output: (kind, inputs) for output in outputs}
            if kind == "DEQUANTIZE" and inputs and inputs[0] in constants and outputs:
                constants[outputs[0]] = constants[inputs[0]]
                continue
            weight, bias = _TFLITE_PLACES.get(kind, (-1, -1))
            module = ""
            for at, i in sorted(enumerate(inputs), key=lambda item: item[0] != weight):
                array = constants.get(i)
                if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or i in named[g]:
                    continue
                name = _plain_name(graph.Tensors(i).Name().decode(errors="replace"))
                if at == weight and array.ndim >= 2:
                    module = name
                    if kind == "FULLY_CONNECTED":
                        array = after_flatten(array, _flattened_channels(graph, made_by, inputs[0]))
                    else:
                        array = np.transpose(array, _TFLITE_AXES[kind])
                    name = f"{name}.weight"
                elif at == bias and module:
                    name = f"{module}.bias"
                elif array.size < 2:  # a scale, a limit
                    continue
                named[g].add(i)
                yield name, array


# Of layers, which inputs are weight and bias, and the axes that PyTorch has; dense weights are in its order already.
# https://www.tensorflow.org/mlir/tfl_ops
_TFLITE_PLACES = {
    "CONV_2D": (1, 2), "CONV_3D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "TRANSPOSE_CONV": (1, 3),
    "FULLY_CONNECTED": (1, 2),
}  # fmt: skip
_TFLITE_AXES = {
    "CONV_2D": (0, 3, 1, 2),  # (outputs, height, width, inputs)
    "CONV_3D": (4, 3, 0, 1, 2),  # (depth, height, width, inputs, outputs)
    "DEPTHWISE_CONV_2D": (3, 0, 1, 2),  # (1, height, width, channels)
    "TRANSPOSE_CONV": (3, 0, 1, 2),  # (outputs, height, width, inputs)
}


def _plain_name(name: str) -> str:
    first = name.split(";")[0]
    return first.replace("/", ".").strip(".") or "tensor"


def _flattened_channels(graph: Any, made_by: Mapping[int, Any], tensor: int) -> int:
    """The channels of the `(N, H, W, C)` that a RESHAPE flattened before a dense layer; 0 where it was none."""
    kind, inputs = made_by.get(tensor, ("", []))
    if kind != "RESHAPE" or not inputs:
        return 0
    shape = graph.Tensors(inputs[0]).ShapeAsNumpy() if graph.Tensors(inputs[0]).ShapeLength() else ()
    return int(list(shape)[-1]) if len(shape) == 4 else 0


def read_flax(path: Path) -> Content:
    """`flax.serialization.to_bytes`: nested mappings whose arrays are msgpack extensions.

    https://github.com/google/flax/blob/main/flax/serialization.py
    """
    msgpack = library("msgpack", "Flax's msgpack files")

    def extension(code: int, data: bytes) -> Any:
        if code not in (1, 3):
            return None
        shape, name, content = msgpack.unpackb(data, raw=True)
        name = name.decode()
        if name == "bfloat16":
            values = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif re.fullmatch(r"(float|int|uint)\d+|bool", name):
            values = np.frombuffer(content, name)
        else:
            raise WeightsearchError(f"an array is of the type {shown(name)}; save it in an ordinary float type")
        array = values.reshape(shape)
        return array if code == 1 else array[()]

    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=extension, raw=False, strict_map_key=False)
    except WeightsearchError:
        raise
    except Exception as error:
        raise WeightsearchError(f"it is no sound msgpack file ({shown(str(error))}); copy it again") from None
    if not isinstance(tree, Mapping):
        raise WeightsearchError("it is a msgpack file, but holds no mapping of weights")
    arrays = dict(_unfolded(tree, "", 0))
    for part in ("params", "model.params", "state.params"):
        chosen = {name: array for name, array in arrays.items() if name.startswith((f"{part}.", "batch_stats."))}
        if any(name.startswith(f"{part}.") for name in chosen):
            arrays = {name.removeprefix(f"{part}.").removeprefix("batch_stats."): a for name, a in chosen.items()}
            arrays = {name.removeprefix("params."): array for name, array in arrays.items()}
            break
    return _flax_to_torch({name: array for name, array in arrays.items() if not name.startswith("opt_state.")})


def _unfolded(tree: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    if depth > MAX_DEPTH:
        raise WeightsearchError("its mappings are nested too deeply")
    if "__msgpack_chunked_array__" in tree:
        shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
        yield (
            prefix.rstrip("."),
            np.concatenate([tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]).reshape(shape),
        )
        return
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _unfolded(value, f"{prefix}{key}.", depth + 1)
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{key}", value


def _flax_to_torch(arrays: Mapping[str, np.ndarray]) -> Content:
    tensors: dict[str, np.ndarray] = {}
    channels = 0
    notes: list[str] = []
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(arrays, key=natural):
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = arrays[name]
    for module, named in modules.items():
        prefix = f"{module}." if module else ""
        for leaf in sorted(named, key=lambda leaf: leaf not in ("kernel", "scale", "embedding")):
            array = named[leaf]
            if leaf == "kernel" and array.ndim >= 2:
                bias = named.get("bias")
                heads = array.ndim == 3 and module.rpartition(".")[2] in ("query", "key", "value", "out")
                if heads:  # of attention: (inputs, heads, width), or (heads, width, outputs)
                    split = 2 if module.endswith("out") else 1
                    array = array.reshape(int(np.prod(array.shape[:split])), -1)
                    if bias is not None:
                        named["bias"] = bias.reshape(-1)
                weight = kernel_to_torch(array)
                if weight.ndim > 2:
                    channels = weight.shape[0]
                elif channels and weight.shape[1] > channels and weight.shape[1] % channels == 0:
                    weight = after_flatten(weight, channels)
                    notes.append(f"{module} is taken to stand behind a flattened convolution, channels last")
                    channels = 0
                else:
                    channels = 0
                tensors[f"{prefix}weight"] = np.ascontiguousarray(weight)
            else:
                tensors[prefix + ("weight" if leaf == "embedding" else NORM_NAMES.get(leaf, leaf))] = named[leaf]
    return Content({"state_dict": tensors}, tuple(notes), ordered=len(modules) < 2)
