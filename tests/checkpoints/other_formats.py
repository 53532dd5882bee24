"""Files of other programs, written by the formats' own libraries; each function raises ImportError without its own."""

from __future__ import annotations

import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Arrays = dict[str, np.ndarray]
ARRAYS: Arrays = {
    name: np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for name, shape in {
        "conv.weight": (4, 1, 3, 3), "conv.bias": (4,), "fc.weight": (5, 64), "fc.bias": (5,),
    }.items()
}  # fmt: skip


def onnx_model(path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["h"]),
        helper.make_node("Flatten", ["h"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in ARRAYS.items()]
    )
    onnx.save(helper.make_model(graph), path)


def keras_arrays() -> Arrays:
    """Channels last, the dense kernel behind a flattened `(height, width, channels)`."""
    fc = ARRAYS["fc.weight"].reshape(5, 4, 4, 4).transpose(2, 3, 1, 0).reshape(64, 5)
    return {**ARRAYS, "conv.weight": ARRAYS["conv.weight"].transpose(2, 3, 1, 0), "fc.weight": fc}


def keras_h5(path: Path) -> None:
    """Keras 3's `.weights.h5`."""
    import h5py

    arrays = keras_arrays()
    with h5py.File(path, "w") as file:
        for layer, name in (("conv2d", "conv"), ("dense", "fc")):
            group = file.create_group(f"layers/{layer}/vars")
            group.create_dataset("0", data=arrays[f"{name}.weight"])
            group.create_dataset("1", data=arrays[f"{name}.bias"])


def keras_zip(path: Path) -> None:
    """`.keras`: with a configuration, which tells of the Flatten."""
    inner = path.with_name("inner.weights.h5")
    keras_h5(inner)
    kinds = ("Conv2D", "Flatten", "Dense")
    layers = [{"class_name": kind, "config": {"name": kind.lower()}} for kind in kinds]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": layers}}))
        archive.writestr("metadata.json", "{}")
        archive.write(inner, "model.weights.h5")
    inner.unlink()


def gguf_model(path: Path, quantised: bool = False) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "none")
    for name, array in ARRAYS.items():
        if quantised and name == "fc.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tflite_model(path: Path, layers: list[tuple[str, Arrays, tuple[int, ...]]] | None = None) -> None:
    """A graph of `(operator, its weight and bias as TensorFlow Lite has them, the input's shape)`."""
    import flatbuffers
    import tflite

    if layers is None:
        fc = ARRAYS["fc.weight"].reshape(5, 4, 4, 4).transpose(0, 2, 3, 1).reshape(5, 64)
        conv = ARRAYS["conv.weight"].transpose(0, 2, 3, 1)
        layers = [
            ("CONV_2D", {"weight": conv, "bias": ARRAYS["conv.bias"]}, (1, 6, 6, 1)),
            ("RESHAPE", {}, (1, 4, 4, 4)),
            ("FULLY_CONNECTED", {"weight": fc, "bias": ARRAYS["fc.bias"]}, (1, 64)),
        ]
    builder = flatbuffers.Builder(1024)

    def vector(start: Callable[..., Any], offsets: list[int]) -> int:
        start(builder, len(offsets))
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    def integers(values: list[int] | tuple[int, ...]) -> int:
        return builder.CreateNumpyVector(np.array(values, np.int32))

    buffers, tensors, operators, codes = [], [], [], []

    def buffer(content: bytes) -> int:
        data = builder.CreateByteVector(content) if content else None
        tflite.BufferStart(builder)
        if data is not None:
            tflite.BufferAddData(builder, data)
        buffers.append(tflite.BufferEnd(builder))
        return len(buffers) - 1

    def tensor(name: str, shape: tuple[int, ...], content: bytes = b"") -> int:
        place = buffer(content) if content else 0
        called, sized = builder.CreateString(name), integers(shape)
        tflite.TensorStart(builder)
        tflite.TensorAddName(builder, called)
        tflite.TensorAddShape(builder, sized)
        tflite.TensorAddType(builder, tflite.TensorType.FLOAT32)
        tflite.TensorAddBuffer(builder, place)
        tensors.append(tflite.TensorEnd(builder))
        return len(tensors) - 1

    buffer(b"")
    flow = tensor("input", layers[0][2])
    for number, (kind, arrays, _) in enumerate(layers):
        constants = [tensor(f"layer{number}/{leaf}", a.shape, a.tobytes()) for leaf, a in arrays.items()]
        following = layers[number + 1][2] if number + 1 < len(layers) else (1, 5)
        out = tensor(f"hidden{number}", following)
        given = [-1, constants[0], flow, *constants[1:]] if kind == "TRANSPOSE_CONV" else [flow, *constants]
        ins, outs = integers(given), integers([out])
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, number)
        tflite.OperatorAddInputs(builder, ins)
        tflite.OperatorAddOutputs(builder, outs)
        operators.append(tflite.OperatorEnd(builder))
        tflite.OperatorCodeStart(builder)
        code = getattr(tflite.BuiltinOperator, kind)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(code, 127))
        tflite.OperatorCodeAddBuiltinCode(builder, code)
        codes.append(tflite.OperatorCodeEnd(builder))
        flow = out
    parts = [
        vector(tflite.SubGraphStartTensorsVector, tensors),
        vector(tflite.SubGraphStartOperatorsVector, operators),
    ]
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, parts[0])
    tflite.SubGraphAddOperators(builder, parts[1])
    graph = tflite.SubGraphEnd(builder)
    parts = [
        vector(tflite.ModelStartOperatorCodesVector, codes),
        vector(tflite.ModelStartSubgraphsVector, [graph]),
        vector(tflite.ModelStartBuffersVector, buffers),
    ]
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, parts[0])
    tflite.ModelAddSubgraphs(builder, parts[1])
    tflite.ModelAddBuffers(builder, parts[2])
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def flax_model(path: Path) -> None:
    import msgpack

    def packed(array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array)
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))

    arrays = keras_arrays()
    layers = {
        layer: {"kernel": packed(arrays[f"{name}.weight"]), "bias": packed(arrays[f"{name}.bias"])}
        for layer, name in (("Conv_0", "conv"), ("Dense_0", "fc"))
    }
    path.write_bytes(msgpack.packb({"params": layers}, use_bin_type=True))


def torch_tar(path: Path) -> None:
    """What torch.save wrote until 2017, as `torch.serialization.legacy_load` reads it."""
    import pickle
    import struct

    storages, tensors = BytesIO(), BytesIO()
    pickle.dump(len(ARRAYS), storages, 2)
    pickle.dump(len(ARRAYS), tensors, 2)
    for key, array in enumerate(ARRAYS.values()):
        pickle.dump((str(key), "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", array.size) + array.tobytes())
        pickle.dump((str(key), str(key), torch.FloatTensor), tensors, 2)
        tensors.write(struct.pack("<ii", array.ndim, 0))
        strides = [stride // 4 for stride in array.strides]
        tensors.write(struct.pack(f"<{2 * array.ndim + 1}q", *array.shape, *strides, 0))
    pickle.dump([], storages, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.number if isinstance(value, Reference) else None

    tree = BytesIO()
    Pickler(tree, 2).dump({name: Reference(key) for key, name in enumerate(ARRAYS)})
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (("storages", storages), ("tensors", tensors), ("pickle", tree)):
            member = tarfile.TarInfo(name)
            member.size = len(content.getvalue())
            archive.addfile(member, BytesIO(content.getvalue()))
        archive.addfile(tarfile.TarInfo("sys_info"))


class Reference:
    """A tensor, by its number in the tar."""

    def __init__(self, number: int) -> None:
        self.number = str(number)


def network() -> nn.Module:
    layers = nn.ModuleDict({"conv": nn.Conv2d(1, 4, 3), "fc": nn.Linear(64, 5)})
    layers.load_state_dict({name: torch.from_numpy(array) for name, array in ARRAYS.items()})
    return layers


def distributed(path: Path) -> None:
    import torch.distributed.checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.checkpoint.save({"model": network().state_dict()}, checkpoint_id=path)


def adapter(path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)
    pair = {
        "base_model.model.fc.lora_A.weight": rng.normal(size=(2, 64)).astype(np.float32),
        "base_model.model.fc.lora_B.weight": rng.normal(size=(5, 2)).astype(np.float32),
    }
    path.mkdir()
    save_file(pair, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))


def script(path: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))).save(str(path))


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(4, 3), (torch.ones(1, 4),)), path)


def module(path: Path) -> None:
    torch.save({"model": nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "best": np.float64(0.5)}, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "model.onnx": onnx_model,
    "model.weights.h5": keras_h5,
    "model.keras": keras_zip,
    "model.gguf": gguf_model,
    "quantised.gguf": lambda path: gguf_model(path, quantised=True),
    "model.tflite": tflite_model,
    "flax_model.msgpack": flax_model,
    "old.pth.tar": torch_tar,
    "distributed": distributed,
    "adapter": adapter,
    "script.jit": script,
    "exported.pt2": exported,
    "module.pt": module,
}
