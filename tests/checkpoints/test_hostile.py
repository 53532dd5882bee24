"""Hostile and damaged files are refused before they run code, fill the memory or take time."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.samples import (
    FORMATS,
    little_memory,
    refusal,
    trained,
)
from tests.conftest import share
from weightsearch.checkpoints.state_dict import from_state_dict, read_checkpoint
from weightsearch.errors import WeightsearchError
from weightsearch.types import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")


def attempt(path: Path) -> tuple[Checkpoint | None, str]:
    """What reading `path` gives: a checkpoint, or a message."""
    try:
        return read_checkpoint(path), ""
    except WeightsearchError as error:
        return None, str(error)


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
    call = Payload(os.system, f"touch {marker}")
    payload = {"weight": torch.ones(2), "x": call}
    torch.save(payload, tmp_path / "zip.pt")
    torch.save(payload, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("zip.pt", "legacy.pt"):  # the weights are sound: they are read, and the call is named
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.weights.tolist() == [1, 1]
        assert any(f"{os.system.__module__}.system" in note for note in checkpoint.notes)
    for protocol in range(6):
        content = pickle.dumps(call, protocol=protocol)
        (tmp_path / f"protocol{protocol}.pt").write_bytes(content)
        torch_zip(tmp_path / f"zip{protocol}.pt", content, {})
        refusal(tmp_path / f"protocol{protocol}.pt")
        assert f"{os.system.__module__}.system" in refusal(tmp_path / f"zip{protocol}.pt")
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


KEYS = "list of storages"  # what a legacy file that we made says first
HOSTILE_PICKLES = {
    "memory by bytearray": (pickle.dumps({"weight": Payload(bytearray, 10**11)}, protocol=2), f"bytearray|{KEYS}"),
    "time by hashing": (b"\x80\x02}(K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01u.", f"no weights|{KEYS}"),
    "time by colliding keys": (b"\x80\x02}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns.", f"no weights|{KEYS}"),
    "time by copying": (COPIES, "instructions"),
    "many instructions": (b"\x80\x02" + b"]" * 1_100_000 + b".", "instructions"),
    "an endless string": (b"\x80\x02X\xff\xff\xff\xffabc.", "damaged"),
    "a shadowed method": (
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
        f"no weights|{KEYS}",
    ),
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
    "a name that is a tuple of 2^60": (b"\x80\x04)" + b"2\x86" * 60 + b"\x8c\x01a\x93.", "a global without a name"),
    "a call of a call of a call": (b"\x80\x02cfoo\nbar\n" + b"2)R" * 50_000 + b".", f"it holds a call of|{KEYS}"),
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
        pytest.param(t, marks=pytest.mark.slow)
        if t in ("many instructions", "time by copying", "a call of a call of a call")
        else t
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
            assert any(part in refusal(path) for part in expected.split("|"))
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


@pytest.mark.slow
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
    assert "storage 0 is not the 16 bytes" in refusal(path)
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
