"""Weights are found again where a row was added from: in a file of several networks, in a distributed checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints.other_formats import ARRAYS, distributed
from weightsearch.checkpoints.discovery import Sources
from weightsearch.checkpoints.networks import network_keys
from weightsearch.errors import WeightsearchError
from weightsearch.paths import REFERENCE_INDEX
from weightsearch.relations.store import read_known
from weightsearch.search.add import add
from weightsearch.search.index import Index
from weightsearch.types import ANY


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REFERENCE_INDEX, tmp_path / "index"))


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (6, 8), "a.bias": (6,), "b.weight": (3, 6), "b.bias": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def last_id(index: Path) -> str:
    return str(Index.open(index).table(ANY.fingerprint, ["id"])["id"][-1])


@pytest.mark.slow
def test_the_network_that_was_chosen_by_its_key(index: Path, tmp_path: Path):
    path = tmp_path / "both.pt"
    torch.save({"model": state(0), "more": {"ema": state(1)}, "epoch": 2}, path)
    before = len(read_known(index))
    add([path], index, sources=Sources.make(weights="more.ema"), quiet=True)
    back = torch.load(Index.open(index).get(last_id(index), tmp_path / "back.pt"), weights_only=True)
    assert all(torch.equal(back[name], value) for name, value in state(1).items())
    [signed] = read_known(index)["content"][before:]
    torch.save(state(1), tmp_path / "alone.pt")
    add([tmp_path / "alone.pt"], index, quiet=True)
    assert read_known(index)["content"][-1] == signed  # the signature is of the chosen network, too
    torch.save({"model": state(0), "more": {"ema": state(2)}}, path)
    with pytest.raises(WeightsearchError, match="holds other weights by now"):
        Index.open(index).get(_id_of(index, path), tmp_path / "again.pt")


def _id_of(index: Path, path: Path) -> str:
    table = Index.open(index).table(ANY.fingerprint, ["id", "source"])
    return next(str(id) for id, source in zip(table["id"], table["source"], strict=True) if source == str(path))


@pytest.mark.slow
def test_a_distributed_checkpoint(index: Path, tmp_path: Path):
    folder = tmp_path / "run" / "step-5"
    distributed(folder)
    report = add([tmp_path / "run"], index, quiet=True)
    assert (report.added, report.signed, report.quarantined) == (1, 1, ())
    back = torch.load(Index.open(index).get(last_id(index), tmp_path / "back.pt"), weights_only=True)
    assert back.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name].numpy(), array)


def test_the_keys_of_a_file():
    tree = {"ema": state(0), "model": {"generator": state(1), "step": 3}, "optimizer": {"param_groups": []}, "n": 1}
    assert list(network_keys(tree)) == ["model", "model.generator", "ema"]
    assert list(network_keys(state(0))) == []
