"""Anyone's checkpoint files: round trips checked by running the network."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.checkpoints.samples import FORMATS, NETWORKS, assert_runs_alike, cnn, save_legacy, trained
from tests.tensors import assert_close
from weightsearch.checkpoints.state_dict import align, from_state_dict, read_checkpoint, to_state_dict, write_checkpoint
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import Architecture, Layer, LayerKind

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")


# Round trips


@pytest.mark.slow
@pytest.mark.parametrize("file_name", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_format_gives_the_network_back(name: str, file_name: str, tmp_path: Path) -> None:
    network = trained(name)
    FORMATS[file_name](network.state_dict(), tmp_path / file_name)
    checkpoint = read_checkpoint(tmp_path / file_name)
    assert checkpoint.source == str(tmp_path / file_name)
    assert checkpoint.weights.dtype == np.float32
    assert checkpoint.weights.shape == (checkpoint.architecture.size,)
    assert checkpoint.architecture.size == sum(
        v.numel() for v in network.state_dict().values() if v.is_floating_point()
    )
    assert_runs_alike(name, network, checkpoint)


@pytest.mark.parametrize("file_name", ["out.safetensors", "out.pt", "out.ckpt"])
@pytest.mark.parametrize(
    "metadata", [{}, {"test_acc": 0.5, "epoch": 3, "name": "10", "recipe": {"lr": 0.1, "tags": ["a"]}}]
)
def test_what_is_written_is_read(file_name: str, metadata: dict[str, Any], tmp_path: Path) -> None:
    for name in NETWORKS:
        network = trained(name)
        original = from_state_dict(network.state_dict())
        write_checkpoint(tmp_path / file_name, original.weights, original.architecture, metadata)
        assert [path.name for path in tmp_path.iterdir()] == [file_name]
        checkpoint = read_checkpoint(tmp_path / file_name)
        assert checkpoint.architecture == original.architecture
        np.testing.assert_array_equal(checkpoint.weights, original.weights)
        assert checkpoint.id == original.id
        assert checkpoint.metadata == metadata
        assert_runs_alike(name, network, checkpoint)


def test_written_without_metadata_torch_loads_it_straight(tmp_path: Path) -> None:
    network = trained("cnn")
    original = from_state_dict(network.state_dict())
    write_checkpoint(tmp_path / "a.pt", original.weights, original.architecture)
    write_checkpoint(tmp_path / "a.safetensors", original.weights, original.architecture)
    for loaded in (torch.load(tmp_path / "a.pt"), safetensors.torch.load_file(tmp_path / "a.safetensors")):
        rebuilt = cnn()
        rebuilt.load_state_dict(loaded)
        assert_close(rebuilt.eval()(NETWORKS["cnn"][1]), network(NETWORKS["cnn"][1]), rtol=0, atol=0)


def test_layer_matrices_have_the_bias_and_the_statistics_as_columns() -> None:
    network = trained("cnn")
    state = network.state_dict()
    checkpoint = from_state_dict(state)
    assert checkpoint.architecture == Architecture(
        (
            Layer("conv1", LayerKind.CONV2D, (4, 1, 3, 3), ()),
            Layer("bn1", LayerKind.NORM, (4,), ("bias", "running_mean", "running_var")),
            Layer("conv2", LayerKind.CONV2D, (6, 4, 3, 3), ("bias",)),
            Layer("fc", LayerKind.DENSE, (10, 6), ("bias",)),
        )
    )
    assert checkpoint.skipped == ("bn1.num_batches_tracked: not floating (int64)",)
    statistics = [state[f"bn1.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")]
    expected = [
        state["conv1.weight"].flatten(1),
        torch.stack(statistics, dim=1),
        torch.cat([state["conv2.weight"].flatten(1), state["conv2.bias"][:, None]], dim=1),
        torch.cat([state["fc.weight"], state["fc.bias"][:, None]], dim=1),
    ]
    for matrix, oracle in zip(checkpoint.architecture.matrices(checkpoint.weights), expected, strict=True):
        np.testing.assert_array_equal(matrix, oracle.numpy())


def test_tensors_that_belong_to_no_layer_are_kept() -> None:
    layers = {layer.name: layer for layer in from_state_dict(trained("transformer").state_dict()).architecture.layers}
    assert layers["embedding"] == Layer("embedding", LayerKind.DENSE, (11, 6), ())
    assert layers["position"] == Layer("position", LayerKind.OTHER, (1, 4, 6), ())
    assert layers["gain.scale"] == Layer("gain.scale", LayerKind.OTHER, (1,), ())
    assert layers["encoder.self_attn.in_proj_weight"].kind is LayerKind.OTHER
    assert layers["encoder.norm1"] == Layer("encoder.norm1", LayerKind.NORM, (6,), ("bias",))
    # A transposed convolution's bias has as many values as its weight has columns, not rows.
    assert layers["up"] == Layer("up", LayerKind.CONV1D, (5, 3, 2), ())
    assert layers["up.bias"] == Layer("up.bias", LayerKind.OTHER, (3,), ())


class Residual(nn.Module):
    """Modules named like a ResNet's, whose order is not their names' order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
        self.fc = nn.Linear(4, 3)


def test_a_file_that_forgot_the_order_is_the_same_network(tmp_path: Path) -> None:
    state = Residual().state_dict()
    torch.save(state, tmp_path / "a.pt")
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    known, sorted_by_name = (read_checkpoint(tmp_path / name) for name in ("a.pt", "a.safetensors"))
    assert sorted_by_name.architecture.fingerprint != known.architecture.fingerprint
    other = from_state_dict(cnn().state_dict()).architecture
    aligned = align(sorted_by_name, [other, known.architecture])
    assert aligned.architecture == known.architecture
    assert aligned.id == known.id
    np.testing.assert_array_equal(aligned.weights, known.weights)
    assert align(known, [known.architecture]) is known
    assert align(sorted_by_name, [other]) is sorted_by_name


def test_a_random_state_dict_survives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        state: dict[str, np.ndarray] = {}
        for number in rng.permutation(5):
            rows = int(rng.integers(1, 4))
            shape = (rows, *rng.integers(1, 4, size=rng.integers(0, 6)).tolist())
            leaves = {"weight": shape, "bias": (int(rng.integers(1, 4)),), "running_mean": (rows,), "odd_weight": shape}
            for leaf in rng.permutation(list(leaves))[: rng.integers(1, 5)]:
                state[f"m{number}.{leaf}"] = rng.standard_normal(leaves[leaf]).astype(np.float32)
        checkpoint = from_state_dict(state)
        back = to_state_dict(checkpoint.weights, checkpoint.architecture)
        assert set(back) == set(state)
        for name, array in state.items():
            np.testing.assert_array_equal(back[name], array)
        assert from_state_dict(back).architecture == checkpoint.architecture


def test_one_network_has_one_fingerprint_whatever_the_format_and_the_names(tmp_path: Path) -> None:
    state = trained("mlp").state_dict()
    fingerprints = set()
    for file_name, save in FORMATS.items():
        save(state, tmp_path / file_name)
        fingerprints.add(read_checkpoint(tmp_path / file_name).architecture.fingerprint)
    fingerprints.add(
        from_state_dict({f"encoder.{key}": value for key, value in state.items()}).architecture.fingerprint
    )
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_other_floats_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"weight": trained("mlp").state_dict()["0.weight"].to(dtype)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    save_legacy(state, tmp_path / "b.pt")
    for name in ("a.safetensors", "a.pt", "b.pt"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.weights.dtype == np.float32
        np.testing.assert_array_equal(checkpoint.weights, state["weight"].float().numpy().ravel())


@pytest.mark.slow
def test_safetensors_and_npz_are_read_without_torch(tmp_path: Path) -> None:
    state = {"weight": torch.ones(2, 3, dtype=torch.bfloat16)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", weight=np.ones((2, 3), np.float32))
    code = (
        "import sys; from weightsearch.checkpoints.state_dict import read_checkpoint\n"
        "for path in sys.argv[1:]: assert read_checkpoint(path).weights.sum() == 6\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.safetensors", tmp_path / "a.npz"], check=True)


# What stands beside the weights


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "network", "module"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_is_unwrapped(wrapper: str, legacy: bool, tmp_path: Path) -> None:
    network = trained("cnn")
    optimizer = torch.optim.Adam(network.parameters())
    network(NETWORKS["cnn"][1]).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    metrics = {"loss": [0.5, float("nan")], "best": True}
    saved = {
        "epoch": 7,
        "test_acc": torch.tensor(0.875),
        "hyper_parameters": {"lr": 0.1, "shape": torch.Size([3]), "note": None},
        "metrics": metrics,
        "metrics_again": metrics,
        wrapper: {f"module._orig_mod.{key}": value for key, value in network.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "lr_schedulers": [scheduler.state_dict()],
        "rng": torch.get_rng_state(),
        "seen": {1, 2},
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "bytes": b"\x00\xff",
        "huge": 2**80,
    }
    torch.save(saved, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    assert_runs_alike("cnn", network, checkpoint)
    assert checkpoint.metadata.pop("metrics")["best"] is True
    assert np.isnan(checkpoint.metadata.pop("metrics_again")["loss"][1])
    assert checkpoint.metadata == {
        "epoch": 7,
        "test_acc": 0.875,
        "hyper_parameters": {"lr": 0.1, "shape": [3], "note": None},
        "huge": str(2**80),
    }
    skipped = dict(line.split(": ", 1) for line in checkpoint.skipped)
    assert skipped["optimizer"] == skipped["lr_schedulers"] == "training state"
    assert skipped["rng"] == "not a plain value (Tensor)"
    assert set(skipped) >= {"seen", "device", "dtype", "bytes", "module._orig_mod.bn1.num_batches_tracked"}


def test_prefixes_are_stripped_only_where_common() -> None:
    weight = np.ones((2, 2), np.float32)
    for names, expected in [
        (["module.a.weight", "module.b.weight"], ["a", "b"]),
        (["model.module.a.weight"], ["a"]),
        (["model.a.weight", "head.weight"], ["model.a", "head"]),
        (["model.weight"], [""]),
        (["module."], ["module."]),
    ]:
        layers = from_state_dict({name: weight.copy() for name in names}).architecture.layers
        assert [layer.name for layer in layers] == expected


def test_numbers_in_an_npz_are_metadata(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weight=np.ones((2, 2)), test_acc=0.5, optimizer="adam", labels=np.array(["a", "b"]))
    checkpoint = read_checkpoint(tmp_path / "a.npz")
    assert checkpoint.metadata == {"test_acc": 0.5, "optimizer": "adam"}
    assert checkpoint.skipped == ("labels: not floating (<U1)",)


def test_a_plain_model_key_beside_the_weights_is_metadata() -> None:
    checkpoint = from_state_dict({"model": {"width": 3}, "network": {"weight": np.ones((2, 2))}})
    assert checkpoint.metadata == {"model": {"width": 3}}


# Writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    checkpoint = from_state_dict({"weight": np.ones((2, 2), np.float32)})
    target = tmp_path / "folder" / "a.pt"
    with pytest.raises(WeightsearchError, match="cannot be written"):
        write_checkpoint(target, checkpoint.weights, checkpoint.architecture)
    target.mkdir(parents=True)
    (target / "kept").touch()
    with pytest.raises(WeightsearchError, match="cannot be written"):
        write_checkpoint(target, checkpoint.weights, checkpoint.architecture)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "a.pt", "kept"]
    with pytest.raises(UsageError, match="rename"):
        write_checkpoint(tmp_path / "a.onnx", checkpoint.weights, checkpoint.architecture)
    with pytest.raises(UsageError, match="'state_dict' cannot be written"):
        write_checkpoint(tmp_path / "a.pt", checkpoint.weights, checkpoint.architecture, {"state_dict": 1})
    with pytest.raises(UsageError, match="not a plain value"):
        write_checkpoint(tmp_path / "a.pt", checkpoint.weights, checkpoint.architecture, {"when": object()})
    with pytest.raises(WeightsearchError, match="expected 4 weights"):
        write_checkpoint(tmp_path / "a.pt", checkpoint.weights[:3], checkpoint.architecture)


def test_views_transposes_and_ties_are_read() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"a.weight": whole.T, "b.weight": whole[:, 1:4], "c.weight": whole, "e.weight": torch.ones(2, 3, 2, 2)}
    state["e.weight"] = state["e.weight"].to(memory_format=torch.channels_last)
    checkpoint = from_state_dict(state)
    for name, array in to_state_dict(checkpoint.weights, checkpoint.architecture).items():
        np.testing.assert_array_equal(array, state[name].numpy())
