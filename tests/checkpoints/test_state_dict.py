"""Anyone's checkpoint files: round trips checked by running the network, and hostile files that must be refused."""

import io
import json
import os
import pickle
import resource
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.conftest import share
from weightsearch.checkpoints.formats import MAX_FILE_BYTES
from weightsearch.checkpoints.state_dict import align, from_state_dict, read_checkpoint, to_state_dict, write_checkpoint
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import Architecture, Checkpoint, Layer, LayerKind

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")


class Tiny(nn.Module):
    """Layers of every kind, and parameters that belong to none."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.position = nn.Parameter(torch.randn(1, 4, 6))
        self.gain = nn.ParameterDict({"scale": torch.tensor(1.5)})
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.conv = nn.Conv1d(6, 5, 3, bias=False)
        self.norm = nn.BatchNorm1d(5)
        self.up = nn.ConvTranspose1d(5, 3, 2)
        self.head = nn.Linear(9, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(self.gain["scale"] * (self.embedding(tokens) + self.position))
        return self.head(self.up(self.norm(self.conv(hidden.mT))).flatten(1))


def mlp() -> nn.Module:
    widths = [7] + [5] * 11 + [3]  # over ten modules: `10.weight` sorts before `2.weight`
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def cnn() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3, bias=False),
            bn1=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(4, 6, 3),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(6, 10),
        )
    )


class Video(nn.Module):
    """What the others lack: three dimensions, recurrence, norms without a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3)
        self.bn = nn.BatchNorm3d(4, affine=False)
        self.group = nn.GroupNorm(2, 4)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.cell = nn.Bilinear(3, 3, 2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = self.group(self.bn(self.stem(frames))).mean(dim=(3, 4)).mT
        last = self.lstm(hidden)[0][:, -1]
        return self.cell(last, last)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "mlp": (mlp, torch.randn(4, 7, generator=torch.Generator().manual_seed(1))),
    "cnn": (cnn, torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(2))),
    "transformer": (Tiny, torch.randint(0, 11, (4, 4), generator=torch.Generator().manual_seed(3))),
    "video": (Video, torch.randn(4, 1, 5, 5, 5, generator=torch.Generator().manual_seed(4))),
}


def trained(name: str, seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose running statistics have moved."""
    build, inputs = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
    network(inputs)
    return network.eval()


def assert_runs_alike(name: str, network: nn.Module, checkpoint: Checkpoint, *, tolerance: float = 0.0) -> None:
    build, inputs = NETWORKS[name]
    state_dict = to_state_dict(checkpoint.weights, checkpoint.architecture)
    rebuilt = build()
    rebuilt.load_state_dict({key: torch.from_numpy(value) for key, value in state_dict.items()})
    torch.testing.assert_close(rebuilt.eval()(inputs), network(inputs), rtol=tolerance, atol=tolerance)


def save_npz(state: dict[str, torch.Tensor], path: Path) -> None:
    np.savez(path, **{key: value.numpy() for key, value in state.items()})


def save_npz_compressed(state: dict[str, torch.Tensor], path: Path) -> None:
    np.savez_compressed(path, **{key: value.numpy() for key, value in state.items()})


def save_legacy(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_shards(state: dict[str, torch.Tensor], path: Path) -> None:
    names = sorted(state)
    halves = {"model-1.safetensors": names[: len(names) // 2], "model-2.safetensors": names[len(names) // 2 :]}
    for shard, part in halves.items():
        safetensors.torch.save_file({name: state[name] for name in part}, path.parent / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in halves.items() for name in part}}
    path.write_text(json.dumps(index))


FORMATS: dict[str, Callable[[dict[str, torch.Tensor], Path], None]] = {
    "model.safetensors": lambda state, path: safetensors.torch.save_file(state, path),
    "model.safetensors.index.json": save_shards,
    "model.pt": lambda state, path: torch.save(state, path),
    "legacy.pth": save_legacy,
    "model.npz": save_npz,
    "compressed.npz": save_npz_compressed,
}


def refusal(path: Path) -> str:
    """The one line that reading `path` raises."""
    with pytest.raises(WeightsearchError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.isprintable()
    return message


def attempt(path: Path) -> tuple[Checkpoint | None, str]:
    """What reading `path` gives: a checkpoint, or a message."""
    try:
        return read_checkpoint(path), ""
    except WeightsearchError as error:
        return None, str(error)


@contextmanager
def little_memory(extra: int = 2**30) -> Iterator[None]:
    """Allocations beyond `extra` bytes more than now fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 2**40
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# Round trips


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
        torch.testing.assert_close(rebuilt.eval()(NETWORKS["cnn"][1]), network(NETWORKS["cnn"][1]), rtol=0, atol=0)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"weight": trained("mlp").state_dict()["0.weight"].to(dtype)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    save_legacy(state, tmp_path / "b.pt")
    for name in ("a.safetensors", "a.pt", "b.pt"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.weights.dtype == np.float32
        np.testing.assert_array_equal(checkpoint.weights, state["weight"].float().numpy().ravel())


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
    }
    skipped = dict(line.split(": ", 1) for line in checkpoint.skipped)
    assert skipped["optimizer"] == skipped["lr_schedulers"] == "training state"
    assert skipped["rng"] == "not a plain value (Tensor)"
    assert set(skipped) >= {"seen", "device", "dtype", "bytes", "huge", "module._orig_mod.bn1.num_batches_tracked"}


def test_prefixes_are_stripped_only_where_common() -> None:
    weight = np.ones((2, 2), np.float32)
    for names, expected in [
        (["module.a.weight", "module.b.weight"], ["a", "b"]),
        (["model.module.a.weight"], ["a"]),
        (["model.a.weight", "head.weight"], ["model.a", "head"]),
        (["model.weight"], [""]),
        (["module."], ["module."]),
    ]:
        layers = from_state_dict(dict.fromkeys(names, weight)).architecture.layers
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


# Files that are no checkpoint


def test_what_is_no_checkpoint_gets_one_line(tmp_path: Path) -> None:
    contents = {
        "empty.pt": (b"", "is empty"),
        "notes.pt": ("Größe: 3\n".encode() * 999, "a text file"),
        "pointer.safetensors.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "noise.pth": (np.random.default_rng(0).bytes(999), "no known checkpoint format"),
        "array.npz": (b"\x93NUMPY\x01\x00", "np.savez"),
        "half.pt": (b"PK\x03\x04" + bytes(99), "truncated or damaged"),
        "text.safetensors": (b"hello", "no sound safetensors"),
        "header.safetensors": (struct.pack("<Q", 2**60) + b"{}", "no sound safetensors"),
        "list.safetensors.index.json": (b"[1]", "weight_map"),
        "deep.safetensors.index.json": (b"[" * 10**6, "RecursionError"),
        "plain.pt": (pickle.dumps({"a": 1}, protocol=2), "bare pickle"),
        "protocol4.pt": (pickle.dumps({"a": 1}, protocol=4), "pickle protocol 4"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert message in refusal(tmp_path / name), name
    assert "no such file" in refusal(tmp_path / "missing.pt")
    assert "cannot be read" in refusal(tmp_path / "empty.pt" / "below.pt")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "vast.pt").touch()
    os.truncate(tmp_path / "vast.pt", MAX_FILE_BYTES + 1)  # takes no space on disk
    assert "over the limit of 8.0 GiB" in refusal(tmp_path / "vast.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "no regular file" in refusal(tmp_path / "pipe.pt")
    torch.save([torch.ones(2)], tmp_path / "a.pt")
    assert "holds a list" in refusal(tmp_path / "a.pt")
    torch.save({"generator": {"weight": torch.ones(2)}, "epoch": 1}, tmp_path / "a.pt")
    assert "no weights" in refusal(tmp_path / "a.pt")
    assert "generator, epoch" in refusal(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert "neither a PyTorch checkpoint" in refusal(tmp_path / "a.pt")
    with pytest.raises(WeightsearchError, match=r"pass model\.state_dict"):
        from_state_dict(mlp())  # type: ignore[arg-type]


def test_an_unreadable_file_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "a.pt").chmod(0)
    if os.access(tmp_path / "a.pt", os.R_OK):
        pytest.skip("this user may read every file")
    assert "Permission denied" in refusal(tmp_path / "a.pt")
    (tmp_path / "a.pt").chmod(stat.S_IRUSR)


def test_shards_stay_in_their_folder_and_are_complete(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    save_shards(trained("mlp").state_dict(), tmp_path / "below" / "model.safetensors.index.json")
    index = tmp_path / "a.safetensors.index.json"
    for shard, message in [
        ("below/model-1.safetensors", "no plain file name"),
        ("..", "no plain file name"),
        ("", "no plain file name"),
        ("\0", "no plain file name"),
        (index.name, "no plain file name"),
        ("absent.safetensors", "shard absent.safetensors: there is no such file"),
    ]:
        index.write_text(json.dumps({"weight_map": {"0.weight": shard}}))
        assert message in refusal(index)
    safetensors.torch.save_file({"1.weight": torch.ones(2)}, tmp_path / "one.safetensors")
    index.write_text(json.dumps({"weight_map": {"0.weight": "one.safetensors"}}))
    assert "'0.weight' is in none of its shards" in refusal(index)


# Tensors that cannot be compared


def expanded(*size: int) -> torch.Tensor:
    return torch.ones(1).expand(*size)


UNREADABLE = {
    "complex": torch.ones(2, dtype=torch.complex64),
    "sparse": torch.eye(2).to_sparse(),
    "csr": torch.tensor([[0.0, 1.0]]),
    "quantised": torch.ones(2),
    "int8": torch.ones(2, 2, dtype=torch.int8),
    "nan": torch.tensor([1.0, float("nan")]),
    "inf": torch.tensor([float("inf")]),
    "too large": torch.tensor([1e300], dtype=torch.float64),
    "meta": torch.empty(2, device="meta"),
    "expanded": expanded(2**32),
    "overlapping": torch.arange(5.0).as_strided((3, 3), (1, 1)),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("problem", UNREADABLE)
@pytest.mark.filterwarnings("ignore")
def test_an_unreadable_tensor_is_named(problem: str, tmp_path: Path) -> None:
    tensor = UNREADABLE[problem]
    if problem == "quantised":
        tensor = torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    if problem == "csr":
        tensor = tensor.to_sparse_csr()
    state = {"first.weight": torch.ones(2, 2), "bad.weight": tensor, "last.weight": torch.ones(2, 2)}
    with pytest.raises(WeightsearchError, match=r"^state dict: tensor 'bad\.weight' "):
        from_state_dict(state)
    for name, wrapped in (("a.pt", state), ("b.pt", {"state_dict": state, "epoch": 1})):
        torch.save(wrapped, tmp_path / name)
        with little_memory():
            assert "tensor 'bad.weight' " in refusal(tmp_path / name)


def test_an_unreadable_array_is_named(tmp_path: Path) -> None:
    broadcast = np.broadcast_to(np.ones(1, np.float32), (2**20, 2**12))
    for array in (np.ones(2, complex), np.array([np.nan]), broadcast, np.ones((2, 2), np.int8)):
        with pytest.raises(WeightsearchError, match=r"^mine: tensor 'bad\.weight' "):
            from_state_dict({"bad.weight": array}, source="mine")
    np.savez(tmp_path / "a.npz", **{"bad.weight": np.array([1, None])})
    assert "'bad.weight' holds Python objects" in refusal(tmp_path / "a.npz")
    safetensors.torch.save_file({"bad.weight": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    assert "tensor 'bad.weight' is of type F8_E4M3" in refusal(tmp_path / "a.safetensors")
    with pytest.raises(WeightsearchError, match="no printable name"):
        from_state_dict({"\x1b[31m.weight": np.ones(2)})


def test_views_transposes_and_ties_are_read() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"a.weight": whole.T, "b.weight": whole[:, 1:4], "c.weight": whole, "e.weight": torch.ones(2, 3, 2, 2)}
    state["e.weight"] = state["e.weight"].to(memory_format=torch.channels_last)
    checkpoint = from_state_dict(state)
    for name, array in to_state_dict(checkpoint.weights, checkpoint.architecture).items():
        np.testing.assert_array_equal(array, state[name].numpy())


# Hostile files


class Payload:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def torch_zip(path: Path, pickled: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """What torch.save writes, with contents of our own."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
        archive.writestr("a/version", "3\n")


def pickled_tensor(claimed: int, size: int, stride: int = 1) -> bytes:
    """The pickle of `{"weight": tensor}` with `claimed` stored values and `size` values."""

    def integer(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little")

    def string(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    return (
        b"\x80\x02}" + string(b"weight") + b"ctorch._utils\n_rebuild_tensor_v2\n("
        b"(" + string(b"storage") + b"ctorch\nFloatStorage\n" + string(b"0") + string(b"cpu") + integer(claimed) + b"tQ"
        b"K\x00" + integer(size) + b"\x85" + integer(stride) + b"\x85\x89ccollections\nOrderedDict\n)RtRs."
    )


def test_a_pickle_that_would_run_code_is_named_and_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    payload = {"weight": torch.ones(2), "x": Payload(os.system, f"touch {marker}")}
    torch.save(payload, tmp_path / "zip.pt")
    torch.save(payload, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for protocol in range(6):
        content = pickle.dumps(payload["x"], protocol=protocol)
        (tmp_path / f"protocol{protocol}.pt").write_bytes(content)
        torch_zip(tmp_path / f"zip{protocol}.pt", content, {})
    for path in tmp_path.glob("*.pt"):
        message = refusal(path)
        if "protocol0" not in path.name and "zip0" not in path.name and "protocol1" not in path.name:
            assert f"{os.system.__module__}.system" in message, path
    assert not marker.exists()
    torch.save({"when": Payload(eval, f"open({str(marker)!r}, 'w')")}, tmp_path / "eval.pt")
    assert "__builtin__.eval" in refusal(tmp_path / "eval.pt")
    torch.save(mlp(), tmp_path / "module.pt")
    assert "torch.nn.modules.container.Sequential" in refusal(tmp_path / "module.pt")
    assert not marker.exists()


def test_cyclic_dicts_end(tmp_path: Path) -> None:
    state: dict[str, Any] = {"weight": torch.ones(2, 2)}
    state["itself"] = state
    torch.save(state, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert checkpoint.metadata == {}
    assert checkpoint.skipped[0].startswith("itself: ")
    history: list[Any] = []
    history.append(history)
    torch.save({"weight": torch.ones(2, 2), "history": history}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").skipped == ("history: nested over 20 deep",)
    state["state_dict"] = state
    torch.save(state, tmp_path / "a.pt")
    assert "nested too deeply, or in themselves" in refusal(tmp_path / "a.pt")


@pytest.mark.slow
def test_values_that_unfold_without_end_are_skipped() -> None:
    doubled: Any = [1]
    for _ in range(19):
        doubled = [doubled, doubled]
    started = time.monotonic()
    state = {"weight": np.ones((2, 2)), **{f"k{i}": doubled for i in range(1000)}, "text": "x" * 10**7}
    checkpoint = from_state_dict(state)
    assert time.monotonic() - started < 10
    assert checkpoint.metadata == {}
    assert len(checkpoint.skipped) == 1001


COPIES = (  # an OrderedDict of ten thousand pairs, and then a copy of it, and another, ...
    b"\x80\x02ccollections\nOrderedDict\nq\x00]("
    + b"".join(b"]q\x01(M" + struct.pack("<H", i) + b"Ne" for i in range(10_000))
    + b"e\x85q\x02"
    + b"h\x00h\x02R" * 10_000
    + b"."
)
HOSTILE_PICKLES = {
    "memory by bytearray": (pickle.dumps({"weight": Payload(bytearray, 10**11)}, protocol=2), "bytearray"),
    "time by hashing": (b"\x80\x02}(K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01u.", "a key of type tuple"),
    "time by colliding keys": (b"\x80\x02}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns.", "a key of type int"),
    "time by copying": (COPIES, "instructions"),
    "many instructions": (b"\x80\x02" + b"]" * 1_100_000 + b".", "instructions"),
    "an endless string": (b"\x80\x02X\xff\xff\xff\xffabc.", "damaged"),
    "a shadowed method": (b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.", "attributes"),
    "an empty stack": (b"\x80\x02R.", "damaged"),
    "no mark": (b"\x80\x02tu.", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "no value": (b"\x80\x02.", "damaged"),
    "an unknown storage": (b"\x80\x02X\x01\x00\x00\x00aQ.", "damaged"),
    "a claimed storage": (pickled_tensor(10**12, 4), "storage 0 is not the 4,000,000,000,000 bytes"),
    "a claimed size": (pickled_tensor(4, 10**12), "tensor 'weight' claims more values"),
    "a claimed stride": (pickled_tensor(4, 4, 10**12), "tensor 'weight' claims more values"),
    "a size beyond 64 bits": (pickled_tensor(4, 2**70), "impossible tensor shape"),
    "an expanded tensor": (pickled_tensor(4, 10**12, 0), "tensor 'weight' is expanded"),
}


def torch_legacy(path: Path, pickled: bytes, values: bytes, claimed: int = 4, view: bytes = b"N") -> None:
    """What torch.save wrote before zips, with contents of our own and one storage (a `view` of it, or all)."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = buffer.getvalue().removesuffix(pickle.dumps({}, protocol=2) + pickle.dumps([], protocol=2))
    pickled = pickled.replace(b"tQ", view + b"tQ")
    path.write_bytes(head + pickled + pickle.dumps(["0"], protocol=2) + struct.pack("<q", claimed) + values)


@pytest.mark.parametrize(
    "trick",
    [
        pytest.param(t, marks=pytest.mark.slow) if t in ("many instructions", "time by copying") else t
        for t in HOSTILE_PICKLES
    ],
)
def test_a_hostile_pickle_takes_neither_memory_nor_time(trick: str, tmp_path: Path) -> None:
    hostile, expected = HOSTILE_PICKLES[trick]
    values = struct.pack("<4f", 1, 1, 1, 1)
    torch_zip(tmp_path / "zip.pt", hostile, {"0": values})
    torch_legacy(tmp_path / "legacy.pt", hostile, values)
    for path in (tmp_path / "zip.pt", tmp_path / "legacy.pt"):
        started = time.monotonic()
        with little_memory():
            assert expected in refusal(path)
        assert time.monotonic() - started < 20


def test_the_hand_made_files_are_read_when_honest(tmp_path: Path) -> None:
    """Else the hostile ones might be refused for another reason."""
    values = struct.pack("<4f", 1, 2, 3, 4)
    honest = pickled_tensor(4, 4)
    # Python 2 wrote an OrderedDict as a list of pairs; a file from a GPU says so; torch warns of other protocols.
    python2 = honest.replace(b"\x02}", b"\x02ccollections\nOrderedDict\n]](").replace(b"Rs.", b"Rea\x85R.")
    from_gpu = honest.replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:1")
    protocol1 = honest.replace(b"\x80\x02", b"\x80\x01")
    for pickled in (honest, python2, from_gpu, protocol1):
        torch_legacy(tmp_path / "legacy.pt", pickled, values)
        torch_zip(tmp_path / "zip.pt", pickled, {"0": values})
        for path in (tmp_path / "legacy.pt", tmp_path / "zip.pt"):
            np.testing.assert_array_equal(read_checkpoint(path).weights, [1, 2, 3, 4])


def test_a_legacy_storage_beyond_the_file_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    torch_legacy(tmp_path / "a.pt", pickled_tensor(10**9, 4), bytes(16), claimed=10**9)
    with little_memory():
        assert "storage 0 is not the 4,000,000,000 bytes" in refusal(tmp_path / "a.pt")
    view = b"X\x01\x00\x00\x00vK\x01K\x02\x87"  # a storage that is a slice of another one
    torch_legacy(tmp_path / "a.pt", pickled_tensor(4, 4), bytes(16), view=view)
    assert "an unknown storage" in refusal(tmp_path / "a.pt")


def test_a_thousand_views_of_one_storage_are_refused(tmp_path: Path) -> None:
    whole = torch.ones(2**20)
    torch.save({f"w{i}": whole[i:] for i in range(1000)}, tmp_path / "a.pt")
    with little_memory():
        assert "share the stored values" in refusal(tmp_path / "a.pt")


def test_hostile_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    honest = pickled_tensor(4, 4)
    values = struct.pack("<4f", 1, 2, 3, 4)
    torch_zip(path, honest, {"0": values, "1": bytes(2**25)}, zipfile.ZIP_DEFLATED)
    assert "inflate" in refusal(path)
    torch_zip(path, honest, {"0": values}, zipfile.ZIP_DEFLATED)
    assert "compressed or overlap" in refusal(path)
    torch_zip(path, honest, {"0": values}, zipfile.ZIP_BZIP2)
    assert "compression" in refusal(path)
    torch_zip(path, honest, {"0": values})
    path.write_bytes(path.read_bytes() + b"PK")
    assert "something appended" in refusal(path)
    torch_zip(path, honest, {"0": values, "X": b"", "x": b""})
    assert "two members of one name" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", honest)
        archive.writestr("a/constants.pkl", honest)
    assert "TorchScript" in refusal(path)
    np.savez_compressed(tmp_path / "b.npz", weight=np.zeros(2**23, np.float32))
    assert "inflate" in refusal(tmp_path / "b.npz")


@pytest.mark.parametrize("shape", [(10**12,), (-2, -2), (3,), (4, 10**9), (2**62, 4)])
def test_an_array_of_another_shape_than_its_bytes_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("weight.npy", content)
    with little_memory():
        assert "'weight' claims a shape" in refusal(tmp_path / "a.npz")


# Damage

SAMPLES = {name: save for name, save in FORMATS.items() if not name.endswith(".json")}
CHECKSUMMED = ("model.pt", "model.npz", "compressed.npz")


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three bits flipped, half of the time near the start, where the headers are."""
    mutated = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        end = len(content) if rng.random() < 0.5 else min(len(content), 1500)
        mutated[rng.integers(end)] ^= 1 << rng.integers(8)
    return bytes(mutated)


@pytest.mark.parametrize("file_name", SAMPLES)
def test_flipped_bits_and_truncations_are_refused_or_harmless(file_name: str, tmp_path: Path) -> None:
    path = tmp_path / file_name
    SAMPLES[file_name](trained("cnn").state_dict(), path)
    original = read_checkpoint(path)
    content = path.read_bytes()
    rng = np.random.default_rng(len(file_name))
    count = share(2000) // len(SAMPLES) + 1
    mutations = [damaged(content, rng) for _ in range(3 * count // 4)]
    mutations += [content[: rng.integers(len(content))] for _ in range(count // 4)]
    refused = 0
    with little_memory():
        for mutated in mutations:
            path.write_bytes(mutated)
            started = time.monotonic()
            checkpoint, message = attempt(path)
            assert time.monotonic() - started < 20
            if checkpoint is None:
                refused += 1
                assert "\n" not in message
                assert "more memory" not in message
            else:
                assert len(mutated) == len(content)  # every truncation is noticed
                assert np.isfinite(checkpoint.weights).all()
                assert checkpoint.weights.shape == (checkpoint.architecture.size,)
                # Without checksums a flipped weight, or a letter of a name, is a checkpoint like any other.
                if file_name in CHECKSUMMED:
                    np.testing.assert_array_equal(checkpoint.weights, original.weights)
                    assert checkpoint.architecture.fingerprint == original.architecture.fingerprint
    assert refused > len(mutations) // 4
