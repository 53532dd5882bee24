"""CIFAR-10's archives: what NumPy and Pillow make of them, and hostile pickles."""

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.samples import SHARED, check_invariants, fails, shared, warnings_of
from weightsearch.datasets.load import load_dataset


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


NAMES = ["data_batch_4", "test_batch", "data_batch_1", "data_batch_5", "data_batch_3", "data_batch_2"]


def write_cifar10(folder: Path, batch: Callable[[str], bytes], members: int = 6, binary: bool = False) -> None:
    kind, suffix = ("bin", ".bin") if binary else ("py", "")
    with tarfile.open(folder / f"cifar-10-{'binary' if binary else 'python'}.tar.gz", "w:gz") as tar:
        for name in NAMES[:members]:
            content = batch(name)
            info = tarfile.TarInfo(f"cifar-10-batches-{kind}/{name}{suffix}")
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


def test_the_binary_archive_is_read_first_and_holds_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    labels = [3, 1, 2, 0, 4, 5, 6, 7, 9, 8]
    batches = {name: rng.integers(0, 256, (10, 3072), np.uint8) for name in NAMES}
    write_cifar10(tmp_path, lambda name: python2_batch(batches[name], labels))
    pickled = load_dataset("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"never opened")

    def records(name: str) -> bytes:
        return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, batches[name], strict=True))

    write_cifar10(tmp_path, records, binary=True)
    data = load_dataset("cifar10", tmp_path)
    for split in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(data, split), getattr(pickled, split))
    write_cifar10(tmp_path, lambda name: records(name)[:-1], binary=True)
    fails("cannot read cifar-10-binary.tar.gz 30729 bytes", "cifar10", tmp_path)
    write_cifar10(tmp_path, lambda name: b"\x0a" + bytes(3072), binary=True)
    fails("label 10", "cifar10", tmp_path)
    write_cifar10(tmp_path, records, members=5, binary=True)
    fails("lacks data_batch_2.bin", "cifar10", tmp_path)


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
