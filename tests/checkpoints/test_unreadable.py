"""What is no checkpoint, or holds tensors that cannot be compared, gets one line."""

import json
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.checkpoints.samples import (
    little_memory,
    mlp,
    refusal,
    save_shards,
    trained,
)
from weightsearch.checkpoints.formats import MAX_FILE_BYTES
from weightsearch.checkpoints.state_dict import from_state_dict, read_checkpoint
from weightsearch.checkpoints.walk import Account, walk
from weightsearch.errors import WeightsearchError

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")


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
        "plain.pt": (pickle.dumps({"a": 1}, protocol=2), "no weights"),
        "protocol4.pt": (pickle.dumps({"a": 1}, protocol=4), "(found a)"),
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
    torch.save({"best": {"accuracy": torch.tensor(0.5)}, "epoch": 1}, tmp_path / "a.pt")
    assert "no weights" in refusal(tmp_path / "a.pt")
    assert "best, epoch" in refusal(tmp_path / "a.pt")
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
    safetensors.torch.save_file({"bad.weight": torch.ones(2, dtype=torch.complex64)}, tmp_path / "a.safetensors")
    assert "tensor 'bad.weight' is complex" in refusal(tmp_path / "a.safetensors")
    with pytest.raises(WeightsearchError, match="no printable name"):
        from_state_dict({"\x1b[31m.weight": np.ones(2)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]}, "it is an optimizer's state"),
        ({"images": torch.ones(4, 2, 2), "labels": torch.ones(4)}, r"it holds data \(images, labels\), not a network"),
        ({"x_train": torch.ones(4, 2), "Y_test": torch.ones(4)}, "it holds data"),
        ({"split": 1, "data": {"features": torch.ones(4, 2)}}, r"it holds data \(features\)"),
        ({0: torch.ones(3, 3), 1: torch.ones(3)}, "its tensors have numbers instead of names"),
        ([torch.ones(3, 3), torch.ones(3)], "it holds a list of tensors without names"),
        (torch.ones(3, 3), "it holds a single tensor without a name"),
    ],
)
def test_what_is_no_network_is_called_what_it_is(content: object, says: str, tmp_path: Path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsearchError, match=says):
        read_checkpoint(tmp_path / "a.pt")


def test_a_shard_by_itself_is_no_network_and_the_only_one_is(tmp_path: Path):
    weights = {"a.weight": torch.ones(3, 3), "b.weight": torch.ones(2, 3)}
    for name in ("m-00001-of-00002.bin", "m-00001-of-00001.bin"):
        torch.save(weights, tmp_path / name)
    with pytest.raises(WeightsearchError, match=r"it is a shard, one of 2 of a network; give their \.index\.json"):
        read_checkpoint(tmp_path / "m-00001-of-00002.bin")
    account = Account()
    assert [path.name for path in walk(tmp_path, account)] == ["m-00001-of-00001.bin"]
    assert account.others == {"shards without their index": 1}
    assert read_checkpoint(tmp_path / "m-00001-of-00001.bin").architecture.size == 15
