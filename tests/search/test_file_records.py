"""A file that no encoder can take is signed without its weights being in memory as a whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsearch.checkpoints.discovery import CheckpointFile, Sources
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.errors import WeightsearchError
from weightsearch.relations import signature
from weightsearch.search.file_records import FileReader

WIDTH, LAYERS = 512, 16  # a megabyte a layer


def record_of(path: Path):
    return FileReader(None, Sources()).read(CheckpointFile(path, path.parent, run=""))


@pytest.mark.slow
def test_memory_grows_with_the_largest_tensor_and_not_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signature, "COMPILED_FROM", 10**12)  # the compiler's memory is another matter
    rng = np.random.default_rng(0)
    layers = {f"layers.{k}.weight": rng.standard_normal((WIDTH, WIDTH), np.float32) for k in range(LAYERS)}
    save_file({"layers.0.weight": layers["layers.0.weight"]}, tmp_path / "one.safetensors")
    save_file(layers, tmp_path / "all.safetensors")
    record_of(tmp_path / "one.safetensors")  # what is made once
    tracemalloc.start()
    record = record_of(tmp_path / "all.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert record.signed is not None
    assert record.signed.signature.numbers == LAYERS * WIDTH**2
    assert record.space is None
    assert peak < 8 * WIDTH**2 * 4  # a few tensors, of sixteen


@pytest.mark.slow
def test_memory_does_not_grow_with_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signature, "COMPILED_FROM", 10**12)
    values = np.random.default_rng(0).standard_normal((8, WIDTH, WIDTH), np.float32)
    save_file({"a.weight": values[0]}, tmp_path / "small.safetensors")
    save_file({"a.weight": values}, tmp_path / "large.safetensors")
    record_of(tmp_path / "small.safetensors")  # what is made once
    tracemalloc.start()
    record = record_of(tmp_path / "large.safetensors")
    read_checkpoint(tmp_path / "large.safetensors", needed=lambda architecture: False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert record.signed is not None
    assert record.signed.signature.tensors[0] == signature.sign({"a.weight": values}).tensors[0]
    assert peak < values.nbytes


def test_values_that_are_not_finite_are_still_seen(tmp_path: Path):
    bad = np.ones((8, 8), np.float32)
    bad[2, 3] = np.nan
    save_file({"a.weight": bad}, tmp_path / "bad.safetensors")
    record = record_of(tmp_path / "bad.safetensors")
    assert "tensor 'a.weight' holds 1 NaN or infinite values" in str(record.refusal)
    with pytest.raises(WeightsearchError, match=r"'a\.weight' holds 1 NaN"):
        read_checkpoint(tmp_path / "bad.safetensors", needed=lambda architecture: False)
