"""Files by torch.save read by the template of another, against the same files read the whole way."""

from __future__ import annotations

import random
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from weightsearch.checkpoints import formats
from weightsearch.checkpoints.formats import read_content
from weightsearch.checkpoints.named_tensors import find_tensors
from weightsearch.checkpoints.readers.torch_templates import PickleTemplate, TorchTemplates
from weightsearch.checkpoints.state_dict import read_checkpoint, to_state_dict
from weightsearch.checkpoints.tensors import StoredTensor
from weightsearch.errors import WeightsearchError


class NoTemplates:
    def read(self, content: bytes) -> None:
        return None

    def learn(self, archive: zipfile.ZipFile, content: bytes) -> None: ...


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> TorchTemplates:
    fresh = TorchTemplates()
    monkeypatch.setattr(formats, "TEMPLATES", fresh)
    return fresh


def plain(value: Any) -> Any:
    """What a file holds, to be compared."""
    if isinstance(value, StoredTensor):
        return value.dtype, value.shape, value.steps, value.array().tobytes()
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [plain(item) for item in value]
    return type(value), repr(value)


def whole_way(path: Path) -> Any:
    """The same by a reader without templates and plans: what it holds, or its error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "TEMPLATES", NoTemplates())
        return outcome(path)


def outcome(path: Path) -> Any:
    try:
        content = read_content(path)
        network = find_tensors(content)
    except Exception as error:
        return type(error), str(error)
    told = plain(network.tensors), plain(network.metadata), network.tied, network.skipped, network.notes
    return plain(content.tree), content.notes, content.globals, content.ordered, told, plain(network.counters)


def sweep_file(path: Path, seed: int, **beside: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 4, generator=generator)
    counter = torch.tensor(seed)
    state = OrderedDict(
        [("0.weight", weight), ("0.bias", weight[0]), ("tied", weight), ("1.num_batches_tracked", counter)]
    )
    averaged = {"0.weight": weight + 1}
    torch.save({"epoch": seed % 200, **beside, "state_dict": state, "betas": (0.9, 0.1 * seed), "ema": averaged}, path)


KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "numbers": lambda seed: {"accuracy": seed / 7, "steps": [seed, -seed, seed * 1000, 0.5]},
    "texts": lambda seed: {"run": f"run-{seed:03d} é", "hparams": {"opt": ["adam", "sgd"][seed % 2] * 2}},
    "a text of another length": lambda seed: {"run": "x" * (seed % 3)},
    "none and truth": lambda seed: {"best": None if seed % 2 else seed, "good": bool(seed % 3)},
    "numbers as keys": lambda seed: {"by_epoch": {seed % 3: 1.0, 7: seed}},
    "numpy's numbers": lambda seed: {"accuracy": np.float64(seed / 7)},
    "a device": lambda seed: {"device": torch.device("cpu"), "accuracy": seed / 7},
    "a text that is too long": lambda seed: {"note": "x" * (250_000 if seed == 7 else 10), "epoch_": seed},
    "one container twice": lambda seed: {"a": (shared := {"x": seed}), "b": shared},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_as_without_a_template(kind: str, tmp_path: Path, templates: TorchTemplates):
    for seed in range(12):
        path = tmp_path / f"{seed}.pt"
        sweep_file(path, seed, **KINDS[kind](seed))
        assert outcome(path) == whole_way(path)
    if kind in ("numbers", "texts", "a device"):
        assert templates.fitted >= 6  # numbers of one byte and of two alternate


@pytest.mark.parametrize("shape", [tuple, list])
def test_a_network_beside_an_epoch_in_a_tuple(shape: type, tmp_path: Path, templates: TorchTemplates):
    for seed in range(4):
        path = tmp_path / f"{seed}.pt"
        torch.save(shape(({"model": {"0.weight": torch.full((2, 3), float(seed))}}, seed)), path)
        told = outcome(path)
        assert told == whole_way(path)
        assert told[0] is not WeightsearchError
    assert templates.fitted == 3


def test_a_safetensors_file_is_found_as_without_a_plan(tmp_path: Path):
    for seed in range(4):
        path = tmp_path / f"{seed}.safetensors"
        tensors = {"module.0.weight": np.full((3, 2), seed, np.float32), "module.0.bias": np.ones(3, np.float32)}
        save_file(tensors, path, metadata={"epoch": str(seed), "config": "{}" if seed % 2 else '{"lr": 1}'})
        content = read_content(path)
        assert content.form is not None
        read, without = find_tensors(content), find_tensors(replace(content, form=None))
        assert plain(read.tensors) == plain(without.tensors)
        assert (read.metadata, read.skipped, read.notes) == (without.metadata, without.skipped, without.notes)
        assert read.metadata["epoch"] == seed


def test_weights_of_a_fitting_file_are_its_own(tmp_path: Path, templates: TorchTemplates):
    for seed in (1, 2):
        sweep_file(tmp_path / f"{seed}.pt", seed)
    read_checkpoint(tmp_path / "1.pt")
    read = read_checkpoint(tmp_path / "2.pt")
    assert templates.fitted == 1
    expected = torch.load(tmp_path / "2.pt")["state_dict"]
    np.testing.assert_array_equal(
        to_state_dict(read.weights, read.architecture)["0.weight"], expected["0.weight"].numpy()
    )
    assert (read.metadata["epoch"], read.metadata["betas"]) == (2, [0.9, 0.2])


@pytest.mark.slow
def test_a_changed_byte_says_the_same_with_a_template_as_without(tmp_path: Path, templates: TorchTemplates):
    """Flips anywhere, and in the pickle with the checksum set right, so that the pickle itself is met."""
    sweep_file(tmp_path / "known.pt", 1, run="run-1", accuracy=0.5)
    sweep_file(tmp_path / "other.pt", 2, run="run-2", accuracy=0.25)
    read_content(tmp_path / "known.pt")
    content = (tmp_path / "other.pt").read_bytes()
    assert templates.read(content) is not None
    with zipfile.ZipFile(tmp_path / "other.pt") as archive:
        member = archive.getinfo("archive/data.pkl" if "archive/data.pkl" in archive.namelist() else "other/data.pkl")
        pickle = archive.read(member)
        start, directory = content.index(pickle), archive.start_dir
    at_checksum = content.index(member.CRC.to_bytes(4, "little"), directory)
    generator = random.Random(0)
    path = tmp_path / "changed.pt"
    fitted = 0
    for number in range(600):
        changed = bytearray(content)
        place = generator.randrange(len(pickle)) + start if number % 2 else generator.randrange(len(content))
        changed[place] = generator.randrange(256)
        if number % 2:
            checksum = zlib.crc32(changed[start : start + len(pickle)])
            changed[at_checksum : at_checksum + 4] = checksum.to_bytes(4, "little")
        path.write_bytes(changed)
        before = templates.fitted
        assert outcome(path) == whole_way(path), place
        fitted += templates.fitted > before
    assert fitted > 20  # flips within numbers and texts fit, and are read right


def test_a_pickle_that_never_fits_is_tried_ever_less(tmp_path: Path, templates: TorchTemplates):
    for seed in range(9):
        sweep_file(tmp_path / f"{seed}.pt", seed, **{f"key{seed}": 1})
        read_content(tmp_path / f"{seed}.pt")
    assert templates.fitted == 0
    assert len(templates._pickles) <= 5  # at the first, the second, the fourth, the eighth


@pytest.mark.parametrize(
    "pickle",
    [
        b"\x80\x02}" + b"(" * 30_000 + b".",  # it does not follow
        b"\x80\x02]" + b"K\x01a" * 20_000 + b".",  # long
        b"\x80\x02" + b"]" * 25 + b"a" * 24 + b".",  # deep
        b"\x80\x02)" + b"2\x86" * 40 + b".",  # 2^40 tuples, which are 41
        b"\x80\x02cfoo\nbar\n)" + b"2\x86" * 40 + b"R.",  # and a call of them
    ],
)
def test_no_template_is_made_of_what_unfolds_or_does_not_follow(pickle: bytes):
    started = time.process_time()
    assert PickleTemplate.of(pickle) is None
    assert time.process_time() - started < 2
