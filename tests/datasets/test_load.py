"""Every loader on real files, against an oracle; every damaged input against its one line."""

import bz2
import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.samples import (
    SHARED,
    check_invariants,
    fails,
    idx,
    official_as_written,
    offline,
    shared,
    warnings_of,
    write_mnist,
)
from weightsearch.datasets.load import OFFICIAL, DatasetName, load_dataset
from weightsearch.types import Scaling


@pytest.mark.slow
def test_digits_are_stratified_and_enlarged() -> None:
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    check_invariants(data)
    assert (data.x_train.shape, data.x_test.shape) == ((1442, 1, 16, 16), (355, 1, 16, 16))
    pixels, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(np.bincount(data.y_test), np.bincount(labels) // 5)
    np.testing.assert_array_equal(np.bincount(data.y_train) + np.bincount(data.y_test), np.bincount(labels))
    # Bilinear by hand: each new pixel lies a quarter of the way from its own pixel to the next.
    first = np.pad(pixels[0].reshape(8, 8), 1, mode="edge")
    rows = np.stack([0.75 * first[1:-1] + 0.25 * first[:-2], 0.75 * first[1:-1] + 0.25 * first[2:]], 1)
    rows = rows.reshape(16, 10)
    columns = np.stack([0.75 * rows[:, 1:-1] + 0.25 * rows[:, :-2], 0.75 * rows[:, 1:-1] + 0.25 * rows[:, 2:]], 2)
    np.testing.assert_allclose(data.x_train[0, 0], columns.reshape(16, 16) / 8 - 1, atol=1e-6)
    assert data.y_train[0] == labels[0]
    np.testing.assert_array_equal(load_dataset("digits").x_test, data.x_test)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train_counts"),
    [
        ("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("fashion-mnist", [6000] * 10),
    ],
)
def test_mnist_and_fashion_mnist(name: str, train_counts: list[int], caplog: pytest.LogCaptureFixture) -> None:
    folder = shared(*(f"{name}/{file}" for file in OFFICIAL[DatasetName(name)].files)).parent
    data = load_dataset(name, SHARED)
    check_invariants(data)
    assert (data.name, data.x_train.shape, data.x_test.shape) == (name, (60000, 1, 28, 28), (10000, 1, 28, 28))
    assert np.bincount(data.y_train).tolist() == train_counts  # as published
    raw = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    np.testing.assert_array_equal(data.x_test.ravel(), raw / np.float32(127.5) - np.float32(1))
    raw = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    np.testing.assert_array_equal(data.y_test, raw)
    [line] = warnings_of(caplog)  # one, although four files differ from the official ones
    assert "t10k-labels-idx1-ubyte.gz" in line


@pytest.mark.slow
def test_usps(caplog: pytest.LogCaptureFixture) -> None:
    folder = shared("usps/usps.bz2", "usps/usps.t.bz2").parent
    data = load_dataset("usps", SHARED / "usps")  # without the folder of its name
    check_invariants(data)
    assert np.bincount(data.y_train).tolist() == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]  # published
    assert len(data.y_test) == 2007
    for number, line in enumerate(bz2.decompress((folder / "usps.t.bz2").read_bytes()).decode().splitlines()[:20]):
        label, *pairs = line.split()
        image = np.zeros(256, np.float32)
        for index, value in (pair.split(":") for pair in pairs):
            image[int(index) - 1] = float(value)
        assert data.y_test[number] == int(label) - 1
        np.testing.assert_array_equal(data.x_test[number].ravel(), image)
    assert len(warnings_of(caplog)) == 1


def write_usps(folder: Path, first: str = "1 1:-0.5 256:1") -> None:
    """Twenty images per split; `first` is the first line of training."""
    lines = [f"{number % 10 + 1} 3:-1 200:0.25" for number in range(19)]
    (folder / "usps.bz2").write_bytes(bz2.compress("\n".join([first, *lines]).encode()))
    (folder / "usps.t.bz2").write_bytes(bz2.compress("\n".join([*lines, lines[0]]).encode()))


@pytest.mark.slow
def test_usps_format(tmp_path: Path) -> None:
    write_usps(tmp_path)
    data = load_dataset("usps", tmp_path)
    check_invariants(data)
    assert data.x_train.shape == (20, 1, 16, 16)
    assert (data.x_train[0, 0, 0, 0], data.x_train[0, 0, 15, 15]) == (-0.5, 1)  # the others are 0
    assert data.x_train[0].sum() == 0.5
    assert data.y_train[:3].tolist() == [0, 0, 1]
    for first, words in (
        ("11 1:-1", "y_train label 10 0 9"),
        ("0 1:-1", "y_train label -1 0 9"),
        ("1.5 1:-1", "usps.bz2 whole"),
        ("1 1:1.5", "x_train float32 expected -1 1"),
        ("1 1:nan", "x_train NaN"),
        ("1 257:1", "cannot read usps.bz2"),
        ("1 0:1", "cannot read usps.bz2"),
        ("words", "cannot read usps.bz2"),
    ):
        write_usps(tmp_path, first)
        fails(words, "usps", tmp_path)
    for content in (b"", b"no bz2", bz2.compress(b""), (tmp_path / "usps.t.bz2").read_bytes()[:-20]):
        (tmp_path / "usps.bz2").write_bytes(content)
        fails("usps", "usps", tmp_path)


def write_svhn(folder: Path, rng: np.random.Generator, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Both splits as SVHN has them; returns the pixels and labels of training."""
    from scipy.io import savemat

    written = {}
    for name in ("test", "train"):
        labels = (np.arange(30) % 10 + 1).reshape(-1, 1)
        written = {"X": rng.integers(0, 256, (32, 32, 3, 30), np.uint8), "y": labels} | changes
        savemat(folder / f"{name}_32x32.mat", written, do_compression=True)
    return written


def test_svhn(tmp_path: Path, rng: np.random.Generator) -> None:
    written = write_svhn(tmp_path, rng)
    data = load_dataset("svhn", tmp_path)
    check_invariants(data)
    assert data.x_test.shape == (30, 1, 32, 32)
    for number in (0, 9, 29):
        oracle = np.asarray(Image.fromarray(written["X"][..., number]).convert("L"))
        np.testing.assert_allclose(data.x_train[number, 0], oracle / 127.5 - 1, atol=1e-6)
    assert data.y_train[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # 10 stands for the digit 0


def test_svhn_damaged(tmp_path: Path, rng: np.random.Generator) -> None:
    write_svhn(tmp_path, rng, y=np.full((30, 1), 11))
    fails("y_train label 11 0 9", "svhn", tmp_path)
    write_svhn(tmp_path, rng, y=np.full((30, 1), 1.5))
    fails("train_32x32.mat whole", "svhn", tmp_path)
    write_svhn(tmp_path, rng, X=np.zeros((32, 32, 30), np.uint8))
    fails("train_32x32.mat (32, 32, 30)", "svhn", tmp_path)
    from scipy.io import savemat

    savemat(tmp_path / "train_32x32.mat", {"Z": np.zeros(3)})
    fails("train_32x32.mat lacks", "svhn", tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 7.3 no more")
    fails("cannot read train_32x32.mat", "svhn", tmp_path)


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("train_images", b"", "train-images-idx3-ubyte.gz cannot read"),
        ("train_images", b"not gzip at all", "train-images-idx3-ubyte.gz gzip"),
        ("train_images", idx(np.zeros((200, 28, 28), np.uint8))[:-12], "train-images-idx3-ubyte.gz cannot read"),
        ("train_images", idx(np.zeros(10, np.uint8)), "magic 0x801 0x803"),
        ("train_images", gzip.compress(struct.pack(">4I", 0x803, 200, 28, 28) + bytes(156799)), "reshape 156799"),
        ("train_images", gzip.compress(struct.pack(">4I", 0x803, 200, 28, 28) + bytes(156801)), "reshape 156801"),
        ("train_images", gzip.compress(struct.pack(">4I", 0x803, *[2**32 - 1] * 3) + bytes(9)), "cannot read"),
        ("train_images", idx(np.zeros((0, 28, 28), np.uint8)), "x_train (0, 28, 28)"),
        ("test_images", idx(np.zeros((200, 8, 28), np.uint8)), "28x28 28x8 expected"),
        ("train_labels", idx(np.zeros(199, np.uint8)), "y_train (199,) (200,)"),
        ("test_labels", idx(np.full(200, 10, np.uint8)), "y_test label 10 0 9"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_mnist_damaged(part: str, content: bytes, words: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", **{part: content})
    fails(words, "mnist", tmp_path)


def test_files_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSEARCH_DATA", str(tmp_path / "env"))
    write_mnist(tmp_path / "cache" / "weightsearch" / "mnist", test_labels=idx(np.full(200, 1, np.uint8)))
    assert load_dataset("mnist").y_test[0] == 1
    write_mnist(tmp_path / "env", test_labels=idx(np.full(200, 2, np.uint8)))
    assert load_dataset("mnist").y_test[0] == 2
    write_mnist(tmp_path / "argument" / "mnist", test_labels=idx(np.full(200, 3, np.uint8)))
    assert load_dataset("mnist", tmp_path / "argument").y_test[0] == 3
    # A folder that lacks a file is passed over as a whole: its labels might belong to other images.
    (tmp_path / "argument" / "mnist" / "train-images-idx3-ubyte.gz").unlink()
    assert load_dataset("mnist", tmp_path / "argument").y_test[0] == 2


def test_mnist_is_not_taken_for_fashion_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offline(monkeypatch)
    folder = write_mnist(tmp_path / "mnist")
    fails("fashion-mnist not found", "fashion-mnist", folder)
    folder.rename(tmp_path / "fashion-mnist")
    with official_as_written(DatasetName.MNIST, tmp_path / "fashion-mnist", monkeypatch):
        fails("belongs to mnist", "fashion-mnist", tmp_path)
        (tmp_path / "fashion-mnist").rename(folder)
        caplog.clear()
        load_dataset("mnist", tmp_path)
    assert warnings_of(caplog) == []  # the official file needs no warning


@pytest.mark.slow
def test_import_is_cheap() -> None:
    code = "import weightsearch.datasets.load, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "sklearn", "scipy", "pooch", "requests", "PIL"} & set(modules)


def test_images_are_given_in_other_numbers():
    data = load_dataset("digits")
    assert data.scaled(Scaling.SYMMETRIC) is data
    np.testing.assert_allclose(data.scaled(Scaling.UNIT).x_test, (data.x_test + 1) / 2, atol=1e-6)
    standard = data.scaled(Scaling.STANDARD)
    assert standard.x_train.dtype == np.float32
    assert standard.x_train.mean() == pytest.approx(0, abs=1e-5)
    assert standard.x_train.std() == pytest.approx(1, abs=1e-5)
    slope, intercept = np.polyfit(data.x_train.ravel(), standard.x_train.ravel(), 1)
    np.testing.assert_allclose(standard.x_test, slope * data.x_test + intercept, atol=1e-4)  # as the training images
