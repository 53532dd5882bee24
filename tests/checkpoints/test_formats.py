"""Files of other programs, in PyTorch's layout: checked by running the network before and after."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints.other_formats import ARRAYS, WRITERS, tflite_model
from tests.tensors import assert_close
from weightsearch.checkpoints.named_tensors import NamedTensors, read_tensors
from weightsearch.checkpoints.readers import guard
from weightsearch.errors import WeightsearchError

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
        built(torch.randn(8, 1, 6, 6))
        nn.init.normal_(built[1].weight)
    return built.eval()


NET = network()
NAMES = [name for name, value in NET.state_dict().items() if value.is_floating_point()]


def assert_runs_alike(found: NamedTensors, names: dict[str, str] | None = None) -> None:
    """`names`: the file's names of the network's tensors, where they are others."""
    rebuilt = copy.deepcopy(NET)
    state = {name: torch.from_numpy(np.array(found.arrays[(names or {}).get(name, name)])) for name in NAMES}
    for parameter in rebuilt.parameters():
        nn.init.zeros_(parameter)
    rebuilt.load_state_dict(state, strict=False)
    assert_close(rebuilt(IMAGES), NET(IMAGES), rtol=1e-5, atol=1e-5)
    assert len(found.arrays) == len(NAMES)


def save_distributed(path: Path) -> None:
    import torch.distributed.checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.checkpoint.save({"model": NET.state_dict()}, checkpoint_id=path)


def save_gguf(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "none")
    for name in NAMES:
        writer.add_tensor(name, NET.state_dict()[name].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TORCH_FORMATS: dict[str, Callable[[Path], object]] = {
    "scripted.jit": lambda path: torch.jit.script(NET).save(str(path)),
    "traced.pt": lambda path: torch.jit.trace(NET, IMAGES).save(str(path)),
    "exported.pt2": lambda path: torch.export.save(torch.export.export(NET, (IMAGES,)), path),
    "whole.pt": lambda path: torch.save(NET, path),
    "state.pth.tar": lambda path: torch.save(NET.state_dict(), path, _use_new_zipfile_serialization=False),
    "distributed": save_distributed,
    "model.gguf": save_gguf,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH_FORMATS)
def test_a_network_by_another_program_runs_alike(name: str, tmp_path: Path):
    TORCH_FORMATS[name](tmp_path / name)
    assert_runs_alike(read_tensors(tmp_path / name))


def keras_layout() -> dict[str, np.ndarray]:
    """The network's arrays as Keras and Flax have them, channels last."""
    state = {name: value.numpy() for name, value in NET.state_dict().items()}
    dense = state["4.weight"].reshape(5, 4, 4, 4).transpose(2, 3, 1, 0).reshape(64, 5)
    return {**state, "0.weight": state["0.weight"].transpose(2, 3, 1, 0), "4.weight": dense}


@pytest.mark.slow
def test_flax_msgpack(tmp_path: Path):
    msgpack = pytest.importorskip("msgpack")

    def packed(name: str) -> object:
        array = np.ascontiguousarray(keras_layout()[name])
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))

    tree = {
        "params": {
            "Conv_0": {"kernel": packed("0.weight"), "bias": packed("0.bias")},
            "BatchNorm_0": {"scale": packed("1.weight"), "bias": packed("1.bias")},
            "Dense_0": {"kernel": packed("4.weight"), "bias": packed("4.bias")},
        },
        "batch_stats": {"BatchNorm_0": {"mean": packed("1.running_mean"), "var": packed("1.running_var")}},
    }
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb(tree, use_bin_type=True))
    own = {"0": "Conv_0", "1": "BatchNorm_0", "4": "Dense_0"}
    found = read_tensors(tmp_path / "flax_model.msgpack")
    assert_runs_alike(found, {name: f"{own[name[0]]}{name[1:]}" for name in NAMES})
    assert not found.ordered


@pytest.mark.slow
def test_keras_weights_by_layer_names(tmp_path: Path):
    """The layout of Keras 2, as its reader has it: groups whose attributes name the arrays in order."""
    h5py = pytest.importorskip("h5py")
    layers = {
        "conv2d": {"kernel:0": "0.weight", "bias:0": "0.bias"},
        "batch_normalization": {
            "gamma:0": "1.weight", "beta:0": "1.bias",
            "moving_mean:0": "1.running_mean", "moving_variance:0": "1.running_var",
        },
        "flatten": {},
        "dense": {"kernel:0": "4.weight", "bias:0": "4.bias"},
    }  # fmt: skip
    arrays = keras_layout()
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, named in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{leaf}".encode() for leaf in named]
            for leaf, name in named.items():
                group.create_dataset(f"{layer}/{leaf}", data=arrays[name])
    own = {"0": "conv2d", "1": "batch_normalization", "4": "dense"}
    assert_runs_alike(read_tensors(tmp_path / "model.h5"), {name: f"{own[name[0]]}{name[1:]}" for name in NAMES})


def test_onnx_with_dense_layers_either_way_and_external_data_in_its_folder_only(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    first, second = np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(6, 12, dtype=np.float32).reshape(2, 3)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["h"]),
            helper.make_node("Add", ["h", "fc.bias"], ["i"]),
            helper.make_node("Gemm", ["i", "out.weight"], ["y"], transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3])],
        [helper.make_tensor_value_info("y", 1, [1, 2])],
        [
            array(first, "onnx::MatMul_7"),
            array(np.ones(2, np.float32), "fc.bias"),
            array(second.T.copy(), "out.weight"),
        ],
    )
    model = helper.make_model(graph)
    onnx.save(model, tmp_path / "m.onnx")
    found = read_tensors(tmp_path / "m.onnx").arrays
    assert list(found) == ["fc.weight", "fc.bias", "out.weight"]
    np.testing.assert_array_equal(found["fc.weight"], first.T)  # (inputs, outputs) is turned
    np.testing.assert_array_equal(found["out.weight"], second.T)  # with transB it is PyTorch's already
    (tmp_path / "secret").write_bytes(bytes(24))
    (tmp_path / "in").mkdir()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for location, message in (("../secret", "no plain file name in the same folder"), ("absent", "no such file")):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        (tmp_path / "in" / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(WeightsearchError, match=message):
            read_tensors(tmp_path / "in" / "m.onnx")


def test_a_missing_library_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(guard, "_is_apart", True)  # another process would find the package
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07\x12\x04test")
    with pytest.raises(WeightsearchError, match=r"pip install 'weightsearch\[formats\]'"):
        read_tensors(tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("layer", [nn.LSTM(3, 4, bidirectional=True), nn.GRU(3, 4), nn.RNN(3, 4, bias=True)])
def test_onnx_with_recurrent_layers(layer: nn.Module, tmp_path: Path):
    """As PyTorch exports them, with gates in ONNX's order: they come back in PyTorch's, and run alike."""
    pytest.importorskip("onnx")
    steps = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(layer, (steps,), tmp_path / "m.onnx", dynamo=False)
    found = read_tensors(tmp_path / "m.onnx").arrays
    rebuilt = copy.deepcopy(layer)
    state = {name.rpartition(".")[2]: torch.from_numpy(np.array(array)) for name, array in found.items()}
    for parameter in rebuilt.parameters():
        nn.init.zeros_(parameter)
    rebuilt.load_state_dict(state)
    assert_close(rebuilt(steps)[0], layer(steps)[0])


def test_onnx_with_weights_of_one_name_in_two_branches(tmp_path: Path):
    """Each branch of a condition has names of its own: both are read, and constants that no node is known for."""
    onnx = pytest.importorskip("onnx")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    rng = np.random.default_rng(0)
    kernels = {branch: rng.normal(size=(4, 1, 3)).astype(np.float32) for branch in ("then_branch", "else_branch")}
    gates = {branch: rng.normal(size=(8, 4)).astype(np.float32) for branch in kernels}

    def branch(name: str) -> object:
        nodes = [
            helper.make_node("Constant", [], ["gates"], value=array(gates[name], "gates")),
            helper.make_node("Constant", [], ["limit"], value=array(np.float32([1.0]), "limit")),
            helper.make_node("Slice", ["gates", "a", "b"], ["half"]),
            helper.make_node("Conv", ["x", "conv.weight"], ["h"]),
        ]
        outputs = [helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, None)]
        return helper.make_graph(nodes, name, [], outputs, [array(kernels[name], "conv.weight")])

    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **{name: branch(name) for name in kernels})],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = read_tensors(tmp_path / "m.onnx").arrays
    assert len(found) == 4
    for expected in (*kernels.values(), *gates.values()):
        assert any(np.array_equal(stored, expected) for stored in found.values())


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "model.keras",
        "model.gguf",
        "model.tflite",
        "flax_model.msgpack",
        "old.pth.tar",
        "model.weights.h5",
    ],
)
def test_one_network_is_one_network_in_every_format(name: str, tmp_path: Path):
    """Written by the formats' own libraries: the same values in PyTorch's layout, as layers of the same shapes."""
    try:
        WRITERS[name](tmp_path / name)
    except ImportError as error:
        pytest.skip(f"{error}: weightsearch[formats]")
    found = read_tensors(tmp_path / name).arrays
    assert len(found) == len(ARRAYS)
    for stored, expected in zip(found.values(), ARRAYS.values(), strict=True):
        np.testing.assert_array_equal(stored, expected)
    layers = {name.rpartition(".")[0] for name in found}
    assert len(layers) == 2
    assert {name.rpartition(".")[2] for name in found} == {"weight", "bias"}


def test_quantised_gguf_is_made_floats_and_says_so(tmp_path: Path):
    pytest.importorskip("gguf")
    WRITERS["quantised.gguf"](tmp_path / "m.gguf")
    found = read_tensors(tmp_path / "m.gguf")
    expected = ARRAYS["fc.weight"]
    # Q8_0: blocks of 32 values, each a multiple of the block's largest / 127
    steps = np.abs(expected.reshape(-1, 32)).max(1, keepdims=True) / 127
    off = np.abs(found.arrays["fc.weight"] - expected).reshape(-1, 32)
    assert (off <= 0.52 * steps).all()
    assert off.max() > 0
    np.testing.assert_array_equal(found.arrays["conv.weight"], ARRAYS["conv.weight"])
    assert any("Q8_0" in note for note in found.notes)


@pytest.mark.slow
def test_tflite_kernels_of_every_kind_run_alike(tmp_path: Path):
    pytest.importorskip("tflite")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        depthwise, up, head = nn.Conv2d(3, 6, 3, groups=3), nn.ConvTranspose2d(6, 2, 2), nn.Linear(50, 1)
    arrays = [{name: value.detach().numpy() for name, value in m.named_parameters()} for m in (depthwise, up, head)]
    layers = [
        ("DEPTHWISE_CONV_2D", {**arrays[0], "weight": arrays[0]["weight"].transpose(1, 2, 3, 0)}, (1, 6, 6, 3)),
        ("TRANSPOSE_CONV", {**arrays[1], "weight": arrays[1]["weight"].transpose(1, 2, 3, 0)}, (1, 4, 4, 6)),
        ("RESHAPE", {}, (1, 5, 5, 2)),
        (
            "FULLY_CONNECTED",
            {**arrays[2], "weight": arrays[2]["weight"].reshape(1, 2, 5, 5).transpose(0, 2, 3, 1).reshape(1, 50)},
            (1, 50),
        ),
    ]
    tflite_model(
        tmp_path / "m.tflite", [(k, {n: np.ascontiguousarray(a) for n, a in g.items()}, s) for k, g, s in layers]
    )
    found = list(read_tensors(tmp_path / "m.tflite").arrays.values())
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    rebuilt = [copy.deepcopy(module) for module in (depthwise, up, head)]
    for number, module in enumerate(rebuilt):
        weight, bias = (torch.from_numpy(np.array(array)) for array in found[2 * number : 2 * number + 2])
        module.load_state_dict({"weight": weight, "bias": bias})

    def run(modules: list[nn.Module]) -> torch.Tensor:
        return modules[2](modules[1](modules[0](images)).flatten(1))

    assert_close(run(rebuilt), run([depthwise, up, head]))
