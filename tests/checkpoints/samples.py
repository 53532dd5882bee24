"""Small networks of every kind of layer, saved in every format, and how a refused file is read."""

import json
import resource
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.tensors import assert_close
from weightsearch.checkpoints.state_dict import read_checkpoint, to_state_dict
from weightsearch.errors import WeightsearchError
from weightsearch.types import Checkpoint


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
    assert_close(rebuilt.eval()(inputs), network(inputs), rtol=tolerance, atol=tolerance)


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
