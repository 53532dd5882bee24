"""Tiny files in the official formats, and how a loaded or refused dataset is checked."""

import gzip
import hashlib
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weightsearch.datasets.load import OFFICIAL, DatasetName, ImageDataset, load_dataset
from weightsearch.errors import WeightsearchError

SHARED = Path(os.environ.get("WEIGHTSEARCH_DATA") or Path(__file__).parents[3] / "shared" / "data")


def shared(*files: str) -> Path:
    for file in files:
        if not (SHARED / file).is_file():
            pytest.skip(f"{SHARED / file} is absent: set WEIGHTSEARCH_DATA")
    return SHARED / files[0]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def check_invariants(data: ImageDataset) -> None:
    for images, labels in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert images.dtype == np.float32
        assert images.ndim == 4
        assert images.shape[1] == 1
        assert images.flags.c_contiguous
        assert -1 <= images.min() < images.max() <= 1
        assert labels.dtype == np.int64
        assert labels.shape == (len(images),)
        assert set(labels.tolist()) == set(range(data.classes))


def fails(words: str, name_or_path: str | Path, data_dir: Path | None = None) -> None:
    """Loading fails with one line that has all the words."""
    with pytest.raises(WeightsearchError) as caught:
        load_dataset(name_or_path, data_dir)
    line = str(caught.value)
    assert "\n" not in line
    for word in words.split():
        assert word in line, line


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes())


def write_mnist(folder: Path, **changes: bytes) -> Path:
    """A tiny MNIST; `changes` replace `train_images`, `train_labels`, `test_images` or `test_labels`."""
    images = np.random.default_rng(3).integers(0, 256, (200, 28, 28), np.uint8)
    labels = np.arange(200).astype(np.uint8) % 10
    folder.mkdir(parents=True, exist_ok=True)
    for (part, content), file in zip(
        (
            ("train_images", idx(images)),
            ("train_labels", idx(labels)),
            ("test_images", idx(images)),
            ("test_labels", idx(labels)),
        ),
        OFFICIAL[DatasetName.MNIST].files,
        strict=True,
    ):
        (folder / file).write_bytes(changes.get(part, content))
    return folder


@contextmanager
def official_as_written(name: DatasetName, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes the files in `folder` for the official ones."""
    official = OFFICIAL[name]
    files = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in official.files}
    with monkeypatch.context() as patch:
        patch.setitem(OFFICIAL, name, replace(official, files=files))
        yield


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request goes to a proxy that nothing listens at."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
