"""Real, small artefacts shared by the tests: a zoo of 24 networks on digits, and an index of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightsearch.training.summary import TrainSummary
from weightsearch.training.train import train
from weightsearch.zoo.build_zoo import build_zoo
from weightsearch.zoo.store import Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    path = tmp_path_factory.mktemp("zoos") / "digits-v1"
    build_zoo(out=path, dataset="digits", preset="v1", runs=24, epochs=12, batch_size=64, seed=3, quiet=True)
    return Zoo.open(path)


@pytest.fixture(scope="session")
def trained(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    return train(zoo.path, tmp_path_factory.mktemp("indexes") / "digits", examples=2, quiet=True)


@pytest.fixture
def index_copy(trained: TrainSummary, tmp_path: Path) -> Path:
    """A copy of the index that a test may damage."""
    import shutil

    return Path(shutil.copytree(trained.index, tmp_path / "index"))


# `make test` does a tenth of the kills, mutations and random programs, `make test-all` all of them.
EVERYTHING = bool(os.environ.get("WEIGHTSEARCH_TEST_ALL"))


def share(count: int) -> int:
    """How many of `count` random trials to do."""
    return count if EVERYTHING else max(1, count // 10)
