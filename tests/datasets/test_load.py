"""Every loader on real files, against an oracle; every damaged input against its one line."""

import bz2
import gzip
import hashlib
import io
import logging
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from weightsearch.datasets.load import OFFICIAL, DatasetName, ImageDataset, load_dataset
from weightsearch.errors import UsageError, WeightsearchError

SHARED = Path(os.environ.get("WEIGHTSEARCH_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(autouse=True)
def _no_data_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEIGHTSEARCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


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


# By name ---------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_cifar10_tar_agrees_with_the_gray_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = shared("cifar10/cifar-10-python-small.tar.gz", "cifar10/cifar10-gray.npz")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-python.tar.gz").symlink_to(small.resolve())
    data = load_dataset("cifar10", tmp_path)
    gray = load_dataset("cifar10", SHARED)
    for dataset in (data, gray):
        check_invariants(dataset)
    assert (data.x_train.shape, data.x_test.shape) == ((1000, 1, 32, 32), (200, 1, 32, 32))
    assert (gray.x_train.shape, gray.x_test.shape) == ((50000, 1, 32, 32), (10000, 1, 32, 32))
    level = 1 / 127.5 + 1e-6  # the copy was rounded elsewhere
    np.testing.assert_allclose(data.x_train, gray.x_train[:1000], atol=level)
    np.testing.assert_allclose(data.x_test, gray.x_test[:200], atol=level)
    np.testing.assert_array_equal(data.y_train, gray.y_train[:1000])
    np.testing.assert_array_equal(data.y_test, gray.y_test[:200])
    first, second = warnings_of(caplog)
    assert "checksum" in first
    assert "cifar10-gray.npz" in second
    assert "not the official" in second


def write_svhn(folder: Path, rng: np.random.Generator, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Both splits as SVHN has them; returns the pixels and labels of training."""
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
    savemat(tmp_path / "train_32x32.mat", {"Z": np.zeros(3)})
    fails("train_32x32.mat lacks", "svhn", tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 7.3 no more")
    fails("cannot read train_32x32.mat", "svhn", tmp_path)


# MNIST's format, damaged ---------------------------------------------------------------------------------------


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


@contextmanager
def official_as_written(name: DatasetName, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes the files in `folder` for the official ones."""
    official = OFFICIAL[name]
    files = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in official.files}
    with monkeypatch.context() as patch:
        patch.setitem(OFFICIAL, name, replace(official, files=files))
        yield


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


# CIFAR-10's pickles --------------------------------------------------------------------------------------------


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote the official ones: protocol 2 with 8-bit strings, NumPy's old module names."""
    count = struct.pack("<i", len(data))
    content = data.tobytes()
    return b"".join(
        [
            b"\x80\x02}(U\x0bbatch_labelU\x08batch  1U\x06labels](",
            *(b"K" + bytes([label]) for label in labels),
            b"eU\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01J" + count + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(content)) + content + b"tbU\tfilenames](U\x01aeu.",
        ]
    )


def write_cifar10(folder: Path, batch: Callable[[str], bytes], members: int = 6) -> None:
    names = ["data_batch_4", "test_batch", "data_batch_1", "data_batch_5", "data_batch_3", "data_batch_2"]
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in names[:members]:
            content = batch(name)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_cifar10_as_python_2_wrote_it(tmp_path: Path, rng: np.random.Generator) -> None:
    batches = {f"data_batch_{number}": rng.integers(0, 256, (10, 3072), np.uint8) for number in range(1, 6)}
    batches["test_batch"] = rng.integers(0, 256, (10, 3072), np.uint8)
    labels = [3, 1, 2, 0, 4, 5, 6, 7, 9, 8]
    assert pickle.loads(python2_batch(batches["test_batch"], labels), encoding="bytes")[b"data"].shape == (10, 3072)
    write_cifar10(tmp_path, lambda name: python2_batch(batches[name], labels))
    data = load_dataset("cifar10", tmp_path)
    check_invariants(data)
    assert data.y_test.tolist() == labels
    assert data.y_train.tolist() == labels * 5
    colours = np.concatenate([batches[f"data_batch_{number}"] for number in range(1, 6)]).reshape(-1, 3, 32, 32)
    for number in (0, 15, 49):  # the tar's order of batches is another
        oracle = np.asarray(Image.fromarray(colours[number].transpose(1, 2, 0).copy()).convert("L"))
        np.testing.assert_allclose(data.x_train[number, 0], oracle / 127.5 - 1, atol=1e-6)


class Hostile:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    for call, arguments in ((os.mkdir, (str(marker),)), (eval, (f"__import__('os').mkdir({str(marker)!r})",))):
        content = pickle.dumps({"data": Hostile(call, *arguments), "labels": []}, protocol)
        write_cifar10(tmp_path, lambda _, content=content: content)
        fails("cannot read cifar-10-python.tar.gz refused", "cifar10", tmp_path)
        assert not marker.exists()
        pickle.loads(content)  # the same pickle, obeyed
        assert marker.exists()
        marker.rmdir()


def test_hostile_arrays_are_refused(tmp_path: Path) -> None:
    good = python2_batch(np.zeros((10, 3072), np.uint8), list(range(10)))
    for found, hostile, words in (
        (b"U\x02u1", b"U\x02O8", "O8 refused"),  # Python objects at addresses that the file gives
        (b"U\x02u1", b"U\x02V9", "V9 refused"),
        (b"U\x02u1", b"U\x02i1", "(10, 3072) int8 uint8"),
        (b"M\x00\x0c\x86", b"M\x00\x0d\x86", "reshape"),  # a shape beyond the content
        (b"\x0a\x00\x00\x00M", b"\xff\xff\xff\x7fM", "reshape"),
        (b"U\x06labels](", b"U\x06labelt](", "lacks"),
    ):
        assert good.count(found) == 1
        content = good.replace(found, hostile)
        write_cifar10(tmp_path, lambda _, content=content: content)
        fails(words, "cifar10", tmp_path)


def test_cifar10_damaged(tmp_path: Path) -> None:
    good = python2_batch(np.zeros((10, 3072), np.uint8), list(range(10)))
    write_cifar10(tmp_path, lambda _: good, members=5)
    fails("lacks data_batch_2", "cifar10", tmp_path)
    for content in (b"", good[:-50], pickle.dumps([1, 2]), pickle.dumps({"data": b"x", "labels": [1]}, 2)):
        write_cifar10(tmp_path, lambda _, content=content: content)
        fails("cannot read cifar-10-python.tar.gz", "cifar10", tmp_path)
    whole = tmp_path / "cifar-10-python.tar.gz"
    whole.write_bytes(whole.read_bytes()[:100])
    fails("cannot read cifar-10-python.tar.gz", "cifar10", tmp_path)


# A user's own files --------------------------------------------------------------------------------------------


def arrays(rng: np.random.Generator, shape: tuple[int, ...] = (16, 16)) -> dict[str, np.ndarray]:
    labels = np.arange(12) % 3
    return {
        "x_train": rng.integers(0, 256, (12, *shape), np.uint8),
        "y_train": labels,
        "x_test": rng.integers(0, 256, (12, *shape), np.uint8),
        "y_test": labels.reshape(-1, 1).astype(np.uint8),
    }


def test_npz_in_every_layout(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "mine.npz"
    gray = arrays(rng)
    expected = gray["x_train"] / 127.5 - 1
    for change in (
        lambda x: x,
        lambda x: x[:, None],
        lambda x: x[..., None],
        lambda x: x.astype(np.int64),
        lambda x: x / 127.5 - 1,
        lambda x: (x / 127.5 - 1).astype(">f4"),
        lambda x: np.stack([x] * 3, 1),
        lambda x: np.stack([x] * 3, 3) / 127.5 - 1,
    ):
        np.savez(path, **gray | {name: change(gray[name]) for name in ("x_train", "x_test")})
        data = load_dataset(str(path))
        check_invariants(data)
        assert (data.name, data.classes) == ("mine", 3)
        np.testing.assert_allclose(data.x_train[:, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(data.y_test, gray["y_train"])


def test_npz_colours_become_luma(tmp_path: Path, rng: np.random.Generator) -> None:
    colours = arrays(rng, (16, 16, 3))
    np.savez(tmp_path / "colours.npz", **colours)
    data = load_dataset(tmp_path / "colours.npz")
    luma = colours["x_train"] @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(data.x_train[:, 0], luma / 127.5 - 1, atol=0.51 / 127.5)  # rounded to a level
    scaled = {name: colours[name] / 127.5 - 1 for name in ("x_train", "x_test")}
    np.savez(tmp_path / "colours.npz", **colours | scaled)
    data = load_dataset(tmp_path / "colours.npz")
    np.testing.assert_allclose(data.x_train[:, 0], luma / 127.5 - 1, atol=1e-6)


def nan(images: np.ndarray) -> np.ndarray:
    images = images / 127.5 - 1
    images[3, 4, 5] = np.nan
    return images


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("x_train", nan, "x_train NaN"),
        ("x_train", lambda x: x / 1.0, "x_train float64 expected -1 1"),
        ("x_test", lambda x: x + np.float32(0.5), "x_test float32"),
        ("x_train", lambda x: np.where(x == x.max(), np.inf, -x / 255), "x_train inf"),
        ("x_train", lambda x: x.astype(np.int16) - 128, "x_train int16 expected 0 255"),
        ("x_train", lambda x: x.astype(np.complex64), "x_train complex64"),
        ("x_train", lambda x: x > 100, "x_train bool"),
        ("x_train", lambda x: x[:0], "x_train (0, 16, 16)"),
        ("x_train", lambda x: x[:, 0], "x_train (12, 16)"),
        ("x_train", lambda x: np.stack([x] * 4, 3), "x_train (12, 16, 16, 4)"),
        ("x_test", lambda x: x[:, :8], "16x16 16x8 one size"),
        ("x_train", lambda x: x.astype(object), "cannot read mine.npz"),
        ("y_train", lambda y: y[1:], "y_train (11,) (12,)"),
        ("y_train", lambda y: y.astype(np.float32), "y_train float32 integers"),
        ("y_train", lambda y: y + 1, "y_train 1 to 3 0 to K-1"),
        ("y_train", lambda y: y * 0, "y_train 1 different at least 2"),
        ("y_train", lambda y: np.where(y == 2, 255, y), "y_train 0 to 255"),
        ("y_test", lambda y: y.astype(np.int64) - 1, "y_test label -1 0 to 2"),
        ("y_test", lambda y: y + 1, "y_test label 3 0 to 2"),
    ],
)
def test_npz_damaged(
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    words: str,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    good = arrays(rng)
    np.savez(tmp_path / "mine.npz", **good | {name: change(good[name])})
    fails(words, tmp_path / "mine.npz")


def test_npz_that_is_none(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "mine.npz"
    good = arrays(rng)
    np.savez(path, **{name: good[name] for name in ("x_train", "y_train")})
    fails("mine.npz lacks x_test, y_test", path)
    for content in (b"", b"PK\x03\x04 no zip", pickle.dumps(good), path.read_bytes()[:-100]):
        path.write_bytes(content)
        fails("cannot read mine.npz", path)


def test_floats_from_0_to_1_are_warned_of(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    good = arrays(rng)
    np.savez(tmp_path / "mine.npz", **good | {"x_train": good["x_train"] / 255})
    load_dataset(tmp_path / "mine.npz")
    [line] = warnings_of(caplog)
    assert "x_train" in line
    assert "[-1, 1]" in line


def write_folder(folder: Path, images: np.ndarray, classes: list[str]) -> None:
    for split in ("train", "test"):
        for number, image in enumerate(images):
            (folder / split / classes[number % len(classes)]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / split / classes[number % len(classes)] / f"{number:03}.png")


def test_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (6, 16, 20, 3), np.uint8)
    write_folder(tmp_path / "pets", images, ["dog", "cat"])
    (tmp_path / "pets" / "train" / "cat" / ".hidden.png").write_bytes(b"what a file manager leaves")
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("ignored")
    (tmp_path / "pets" / "train" / ".git").mkdir()
    data = load_dataset(str(tmp_path / "pets"))
    check_invariants(data)
    assert (data.name, data.classes, data.x_train.shape) == ("pets", 2, (6, 1, 16, 20))
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    order = [1, 3, 5, 0, 2, 4]  # cats first
    luma = images[order] @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(data.x_train[:, 0], luma / 127.5 - 1, atol=0.51 / 127.5)


def test_folder_of_numbers_is_ordered_by_value(tmp_path: Path) -> None:
    images = np.arange(11, dtype=np.uint8)[:, None, None] * np.ones((1, 16, 16), np.uint8)
    write_folder(tmp_path, images, [str(number) for number in range(11)])
    data = load_dataset(tmp_path)
    assert data.classes == 11
    np.testing.assert_allclose(data.x_train[:, 0, 0, 0], data.y_train / 127.5 - 1, atol=1e-6)


def test_folder_damaged(tmp_path: Path, rng: np.random.Generator) -> None:
    fails("no folder train", tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    fails("x_train (0, 0, 0)", tmp_path)
    write_folder(tmp_path, rng.integers(0, 256, (4, 16, 16), np.uint8), ["a", "b"])
    load_dataset(tmp_path)
    (tmp_path / "test" / "c").mkdir()
    fails("test/c without training images", tmp_path)
    (tmp_path / "train" / "c").mkdir()
    fails("train/c has no images", tmp_path)
    Image.fromarray(np.zeros((16, 17), np.uint8)).save(tmp_path / "train" / "c" / "odd.png")
    fails("odd.png 16x16 17x16 one size", tmp_path)
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "train" / "c" / "odd.png")
    fails("odd.png 8 bits", tmp_path)
    (tmp_path / "train" / "c" / "odd.png").write_bytes((tmp_path / "train" / "a" / "000.png").read_bytes()[:150])
    fails("cannot read odd.png", tmp_path)


def test_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    for name in ("mnits", tmp_path / "absent.npz", tmp_path / "data.csv"):
        with pytest.raises(UsageError, match=r"unknown dataset .*fashion-mnist.*\.npz"):
            load_dataset(name)


# Downloads -----------------------------------------------------------------------------------------------------


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request goes to a proxy that nothing listens at."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Server(ThreadingHTTPServer):
    """Serves `files` on this machine and notes the requests; `sends` limits the bytes of the first answer."""

    def __init__(self, files: dict[str, bytes], *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.ranges = files, ranges
        self.sends: int | None = None
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path[1:]
        wanted = self.headers.get("Range", "bytes=0-")
        self.server.requests.append((name, wanted))
        content = self.server.files.get(name)
        start = int(wanted[6:-1]) if self.server.ranges else 0
        if content is None or start >= len(content):
            self.send_error(404 if content is None else 416)
            return
        self.send_response(206 if self.server.ranges else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.sends])
        self.server.sends = None

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A tiny MNIST that passes for the official one, behind a dead mirror and a living one."""
    folder = write_mnist(tmp_path / "origin")
    files = {file: (folder / file).read_bytes() for file in OFFICIAL[DatasetName.MNIST].files}
    with official_as_written(DatasetName.MNIST, folder, monkeypatch), serving(Server(files)) as server:
        official = OFFICIAL[DatasetName.MNIST]
        mirrors = ("http://127.0.0.1:9/", server.url)
        monkeypatch.setitem(OFFICIAL, DatasetName.MNIST, replace(official, mirrors=mirrors))
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_download(served: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "data"
    data = load_dataset("mnist", target)
    assert data.x_train.shape == (200, 1, 28, 28)
    assert contents(target / "mnist") == served.files  # and no leftovers
    assert warnings_of(caplog) == []
    assert len(served.requests) == 4
    load_dataset("mnist", target)
    assert len(served.requests) == 4
    (target / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    load_dataset("mnist", target)
    assert [name for name, _ in served.requests[4:]] == ["t10k-labels-idx1-ubyte.gz"]


def test_download_into_the_cache(served: Server, tmp_path: Path) -> None:
    load_dataset("mnist")
    assert contents(tmp_path / "cache" / "weightsearch" / "mnist") == served.files


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_download_goes_on(served: Server, tmp_path: Path, ranges: bool) -> None:
    served.sends, served.ranges = 100_000, ranges
    fails("no download t10k-labels-idx1-ubyte.gz ChunkedEncodingError put", "mnist", tmp_path)
    [part] = (tmp_path / "mnist").iterdir()
    assert part.name == "train-images-idx3-ubyte.gz.part"
    received = part.stat().st_size
    assert 0 < received <= 100_000
    load_dataset("mnist", tmp_path)
    assert served.requests[:2] == [(part.stem, "bytes=0-"), (part.stem, f"bytes={received}-")]
    assert contents(tmp_path / "mnist") == served.files


def test_download_killed_before_the_rename_is_not_repeated(served: Server, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    file = "train-images-idx3-ubyte.gz"
    (tmp_path / "mnist" / f"{file}.part").write_bytes(served.files[file])
    load_dataset("mnist", tmp_path)
    assert contents(tmp_path / "mnist") == served.files


def test_download_with_a_wrong_checksum_leaves_nothing(served: Server, tmp_path: Path) -> None:
    file = "train-images-idx3-ubyte.gz"
    good = served.files[file]
    served.files[file] = good[:-1] + b"?"
    fails(f"{file} wrong checksum put", "mnist", tmp_path)
    assert contents(tmp_path / "mnist") == {}
    served.files[file] = good
    load_dataset("mnist", tmp_path)


def test_download_of_what_is_gone(served: Server, tmp_path: Path) -> None:
    served.files.clear()
    fails("HTTPError ConnectionError", "mnist", tmp_path)


def test_unofficial_files_are_not_completed(served: Server, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"mine")
    fails("unofficial train-images-idx3-ubyte.gz put t10k-labels-idx1-ubyte.gz", "mnist", tmp_path)
    assert contents(tmp_path / "mnist") == {"train-images-idx3-ubyte.gz": b"mine"}


def test_download_into_what_is_no_folder(served: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails("cannot download --data-dir", "mnist", tmp_path / "file")


@pytest.mark.parametrize("name", OFFICIAL)
def test_offline_says_what_to_put_where(
    name: DatasetName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    offline(monkeypatch)
    fails(f"{name} --data-dir $WEIGHTSEARCH_DATA {tmp_path / name} {' '.join(OFFICIAL[name].files)}", name, tmp_path)
    assert capfd.readouterr() == ("", "")


# Cost ----------------------------------------------------------------------------------------------------------


def test_one_float_copy(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (20_000, 16, 16), np.uint8)
    y = np.arange(20_000) % 10
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    tracemalloc.start()
    data = load_dataset(tmp_path / "mine.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * data.x_train.nbytes  # the bytes are a quarter, labels and slack the rest


def test_import_is_cheap() -> None:
    code = "import weightsearch.datasets.load, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "sklearn", "scipy", "pooch", "requests", "PIL"} & set(modules)
