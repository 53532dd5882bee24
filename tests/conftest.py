"""Real, small artefacts shared by the tests: a zoo of 24 networks on digits, and an index of it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: as many processes as cores run at once already
os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")  # trio's, which imports trio

import gc
import pickle
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:  # pytest's first process only hands tests out; it need not wait for torch
    from weightsearch.training.summary import TrainSummary
    from weightsearch.zoo.store import Zoo


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file of slow tests alone is not even imported where they are left out."""
    fast = config.option.markexpr == "not slow" and collection_path.name.startswith("test_")
    return True if fast and "\npytestmark = pytest.mark.slow" in collection_path.read_text() else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What imports have made lasts: no garbage collection looks through it, which would take up to a second each."""
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")  # a slow machine is no fault of the code
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of pytest's processes share; what one of them made there, no test may change."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def zoo(shared: Path) -> Zoo:
    from weightsearch.zoo.build_zoo import build_zoo
    from weightsearch.zoo.store import Zoo

    path = shared / "zoos" / "digits-v1"
    with FileLock(shared / "zoo.lock"):
        if not path.exists():
            build_zoo(
                out=path,
                dataset="digits",
                preset="v1",
                runs=24,
                epochs=12,
                batch_size=64,
                seed=3,
                workers=1,
                quiet=True,
            )
    return Zoo.open(path)


@pytest.fixture(scope="session")
def trained(zoo: Zoo, shared: Path) -> TrainSummary:
    from weightsearch.training.train import train

    summary = shared / "digits.pickle"
    with FileLock(shared / "index.lock"):
        if not summary.exists():
            made = train(zoo.path, shared / "indexes" / "digits", examples=2, quiet=True)
            summary.write_bytes(pickle.dumps(made))
    return pickle.loads(summary.read_bytes())


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
