"""ONNX: initialisers in the order in which the graph uses them, in PyTorch's layout. Nothing of the graph is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.readers.libraries import library
from weightsearch.checkpoints.readers.limits import file_size, plain_member
from weightsearch.checkpoints.tensors import Content, FileBytes, Storage, StoredTensor, in_memory
from weightsearch.errors import WeightsearchError

_TYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"},
    **{10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"},
    **{17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz"},
}
_EXTERNAL = 1
_LEAVES = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "MatMul": ("weight",),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "InstanceNormalization": ("weight", "bias"),
    "LayerNormalization": ("weight", "bias"),
    "PRelu": ("weight",),
    "Gather": ("weight",),
}
# Recurrent layers: where ONNX keeps PyTorch's gates. i, o, f, c for i, f, g, o; z, r, h for r, z, n.
# https://onnx.ai/onnx/operators/onnx__LSTM.html, https://pytorch.org/docs/stable/generated/torch.nn.LSTM.html
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_QUANTISED = ("DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "MatMulNBits")
MAX_DEPTH = 10  # graphs within graphs
SMALLEST = 2  # values of an initialiser that counts as a weight
SMALLEST_CONSTANT = 16  # of a node's, among which are scales and limits as well


def read_onnx(path: Path) -> Content:
    """The weights of a model; external data is read from files in the same folder only."""
    onnx = library("onnx", "ONNX models")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:
        raise WeightsearchError(f"it is no sound ONNX model ({shown(str(error))}); copy or export it again") from None
    collected = _Collected(onnx, path)
    collected.graph(model.graph, 0)
    if not collected.tensors:
        raise WeightsearchError("the ONNX model holds no weights")
    return Content({"state_dict": collected.tensors, "producer": model.producer_name or None})


@dataclass
class _Collected:
    onnx: Any
    path: Path
    tensors: dict[str, Any] = field(default_factory=dict)
    _known: dict[str, Any] = field(default_factory=dict)  # constants by name, with those of outer graphs
    _used: set[str] = field(default_factory=set)

    def graph(self, graph: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise WeightsearchError("its graphs are nested too deeply")
        outer = dict(self._known)
        for tensor in graph.initializer:
            self._known[tensor.name] = tensor
            self._used.discard(tensor.name)  # another graph's of the same name
        aliases: dict[str, str] = {}
        constants: dict[str, Any] = {}
        for node in graph.node:
            if node.op_type == "Constant" and len(node.output) == 1:
                value = next((item.t for item in node.attribute if item.name == "value"), None)
                if value is not None:
                    self._known[node.output[0]] = constants[node.output[0]] = value
                    self._used.discard(node.output[0])  # another graph's of the same name
            elif node.op_type in ("Identity", "Cast") and node.input and node.input[0] in self._known:
                self._known[node.output[0]] = self._known[node.input[0]]
            elif node.op_type == "Transpose" and node.input[0] in self._known:
                aliases[node.output[0]] = node.input[0]
        for position, node in enumerate(graph.node):
            self._node(node, position, list(graph.node), aliases)
            for inner in self._graphs(node):
                self.graph(inner, depth + 1)
        for tensor in graph.initializer:  # what no known node uses, such as a position's embedding
            if tensor.name not in self._used and len(tensor.dims) and int(np.prod(tensor.dims)) >= SMALLEST:
                self._keep(tensor.name, tensor)
        for name, tensor in constants.items():  # or what reaches its node through others, as an LSTM's gates do
            is_float = _TYPES.get(tensor.data_type, "").startswith(("float", "bfloat"))
            if is_float and name not in self._used and int(np.prod(tensor.dims)) >= SMALLEST_CONSTANT:
                self._used.add(name)
                self._keep(name, tensor)
        self._known = outer

    def _graphs(self, node: Any) -> Iterator[Any]:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g

    def _node(self, node: Any, position: int, nodes: list[Any], aliases: dict[str, str]) -> None:
        inputs = [aliases.get(name, name) for name in node.input]
        parameters = [name for name in inputs if name in self._known]
        if node.op_type in _QUANTISED and any(self._known[name].data_type in (2, 3, 21, 22) for name in parameters):
            raise WeightsearchError(
                f"tensor '{shown(parameters[0])}' is quantised ({node.op_type}); "
                "export the network in an ordinary float type"
            )
        if node.op_type in _GATES:
            self._recurrent(node, [*inputs, "", "", ""][1:4], position)
            return
        leaves = _LEAVES.get(node.op_type)
        if leaves is None or not parameters:
            return
        place = 0 if node.op_type == "Gather" else 1
        weight = inputs[place] if len(inputs) > place else ""
        if weight not in self._known:
            return
        names = dict(zip(leaves, inputs[place:], strict=False))
        if node.op_type == "MatMul":
            following = next(
                (n for n in nodes[position + 1 :] if n.op_type == "Add" and node.output[0] in n.input), None
            )
            bias = next((n for n in following.input if n in self._known), "") if following is not None else ""
            if bias and list(self._known[bias].dims) == list(self._known[weight].dims)[1:]:
                names["bias"] = bias
        module = _module(names, node, position)
        for leaf, name in names.items():
            if name not in self._known or name in self._used:
                continue
            self._used.add(name)
            tensor = self._known[name]
            turned = leaf == "weight" and len(tensor.dims) == 2 and self._is_turned(node, name, node.input[place])
            self._keep(f"{module}.{leaf}" if module else name, tensor, turned=turned)

    def _recurrent(self, node: Any, names: list[str], position: int) -> None:
        """A recurrent layer `(directions, gates x H, inputs)` as PyTorch has it: gates in its order, two biases."""
        given = [self._known[name] for name in names if name in self._known]
        if not set(names[:2]) <= set(self._known) or any(tensor.data_location == _EXTERNAL for tensor in given):
            return
        weights, recurrent, *biases = [self.onnx.numpy_helper.to_array(tensor) for tensor in given]
        gates = _GATES[node.op_type]
        module = _module({}, node, position)
        self._used.update(filter(None, names))
        for direction in range(len(weights)):
            both = np.split(biases[0][direction], 2) if biases else None
            parts = {"weight_ih": weights[direction], "weight_hh": recurrent[direction]}
            parts |= {} if both is None else {"bias_ih": both[0], "bias_hh": both[1]}
            for leaf, array in parts.items():
                blocks = np.split(array, len(gates))
                turned = np.concatenate([blocks[gate] for gate in gates])
                self.tensors[f"{module}.{leaf}_l0{'_reverse' * direction}"] = in_memory(turned)

    def _is_turned(self, node: Any, name: str, given: str) -> bool:
        """Whether a dense layer's weight is stored as `(inputs, outputs)`."""
        if node.op_type == "MatMul":
            return name == given  # through a Transpose it is PyTorch's already
        transposed = next((item.i for item in node.attribute if item.name == "transB"), 0)
        return node.op_type == "Gemm" and not transposed and name == given

    def _keep(self, name: str, tensor: Any, *, turned: bool = False) -> None:
        stored = self._stored(tensor)
        if turned and stored.problem is None:
            rows, columns = stored.shape
            stored = StoredTensor(stored.dtype, (columns, rows), stored.storage, 0, (1, columns))
        while name in self.tensors:
            name = f"{name}_"
        self.tensors[name] = stored

    def _stored(self, tensor: Any) -> StoredTensor:
        shape, dtype = tuple(tensor.dims), _TYPES.get(tensor.data_type)
        if dtype is None:
            return StoredTensor("?", shape, problem=f"is of ONNX's type {tensor.data_type}")
        if tensor.data_location != _EXTERNAL:
            if dtype in ("bfloat16",) or dtype.startswith("float8"):
                raw = np.frombuffer(tensor.raw_data, np.uint16 if dtype == "bfloat16" else np.uint8)
                return in_memory(raw.reshape(shape), dtype)
            return in_memory(self.onnx.numpy_helper.to_array(tensor))
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = plain_member(self.path.parent, entries.get("location", ""), "external file")
        if place.is_symlink() and place.resolve().parent != self.path.parent.resolve():
            raise WeightsearchError(f"its external file {shown(place.name)} leads out of its folder")
        offset = int(entries.get("offset", 0))
        result = StoredTensor(dtype, shape)
        length = result.size * result.item_bytes
        if offset < 0 or int(entries.get("length", length)) != length or offset + length > file_size(place):
            raise WeightsearchError(
                f"tensor '{shown(tensor.name)}' is not in {shown(place.name)} as it says; copy it again"
            )
        return StoredTensor(dtype, shape, Storage(length, FileBytes(place, offset)))


def _module(names: dict[str, str], node: Any, position: int) -> str:
    """The module's name, of whichever tensor still has it: `fc.bias` tells what `onnx::MatMul_12` is the weight of."""
    for leaf, name in names.items():
        if name.endswith(f".{leaf}"):
            return name.removesuffix(f".{leaf}")
    if len(names) == 1:
        return ""
    path, _, last = node.name.rpartition("/")
    if path and last.startswith(node.op_type):  # `/rnn/LSTM`, as PyTorch names a module's nodes
        return str(path).strip("/").replace("/", ".")
    return (node.name or f"{node.op_type.lower()}_{position}").strip("/").replace("/", ".")
