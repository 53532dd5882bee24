"""Parsers: a dataset's files to raw pixels and labels, which `datasets` then checks and scales."""

from __future__ import annotations

import gzip
import math
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from weightsearch.errors import WeightsearchError

# x_train, y_train, x_test, y_test as a file holds them: uint8 or already in [-1, 1], labels from 0.
Splits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff"}
MAX_CIFAR_BATCH = 1 << 26  # bytes; the official batches have 31 million


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a parser raises on a damaged file into one line."""
    try:
        yield
    except WeightsearchError:
        raise
    except Exception as error:  # the parsers of five libraries, on bytes from anywhere
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsearchError(f"cannot read {path} ({reason}): replace or remove it") from error


def luma(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma `(N, H, W)` of uint8 colours `(N, 3, H, W)`, rounded as Pillow rounds single images."""
    from PIL import Image

    count, _, height, width = pixels.shape
    gray = np.empty((count, height, width), np.uint8)
    step = max(1, (1 << 22) // (height * width))  # many images as a single tall one, of bounded size
    for start in range(0, count, step):
        part = slice(start, start + step)
        planes = [Image.fromarray(pixels[part, channel].reshape(-1, width)) for channel in range(3)]
        gray[part] = np.asarray(Image.merge("RGB", planes).convert("L")).reshape(-1, height, width)
    return gray


def read_digits() -> Splits:
    """scikit-learn's 1,797 digits, 8x8 enlarged to 16x16; every fifth image of each class is for testing."""
    from PIL import Image

    scikit_learn = find_spec("sklearn")  # which takes as long to import as torch
    assert scikit_learn is not None
    assert scikit_learn.origin is not None
    table = np.loadtxt(Path(scikit_learn.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1].astype(int)
    images = np.empty((len(pixels), 16, 16), np.float32)
    for image, small in zip(images, pixels.reshape(-1, 8, 8).astype(np.float32), strict=True):
        image[:] = np.asarray(Image.fromarray(small).resize((16, 16), Image.Resampling.BILINEAR))
    images /= 8  # 0 to 16 -> -1 to 1
    images -= 1
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[4::5]] = True
    return images[~test], labels[~test], images[test], labels[test]


def read_mnist(folder: Path) -> Splits:
    """MNIST's or Fashion-MNIST's four files."""
    return (
        _read_idx(folder / "train-images-idx3-ubyte.gz", 3),
        _read_idx(folder / "train-labels-idx1-ubyte.gz", 1),
        _read_idx(folder / "t10k-images-idx3-ubyte.gz", 3),
        _read_idx(folder / "t10k-labels-idx1-ubyte.gz", 1),
    )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """IDX, gzipped: magic number 0x08 (bytes) and dimensions, the shape in big-endian 32 bits, the data."""
    with reading(path), gzip.open(path) as file:
        magic, *shape = struct.unpack(f">{dimensions + 1}I", file.read(4 * dimensions + 4))
        if magic != 0x800 + dimensions:
            raise ValueError(f"magic number {magic:#x}, expected {0x800 + dimensions:#x}")
        content = file.read(math.prod(shape) + 1)  # one more, to see that nothing follows
        return np.frombuffer(content, np.uint8).reshape(shape)


def read_usps(folder: Path) -> Splits:
    """LIBSVM text: 16x16 features in [-1, 1], labels 1 to 10 for the digits 0 to 9."""
    from sklearn.datasets import load_svmlight_file

    arrays = []
    for path in (folder / "usps.bz2", folder / "usps.t.bz2"):
        with reading(path):
            features, labels = load_svmlight_file(path, n_features=256, dtype=np.float32, zero_based=False)
            arrays += [features.toarray().reshape(-1, 16, 16), _whole(labels) - 1]
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test


def read_svhn(folder: Path) -> Splits:
    """MATLAB v5: `X` is `(32, 32, 3, N)` uint8 and `y` is `(N, 1)`, with 10 for the digit 0."""
    from scipy.io import loadmat

    arrays = []
    for path in (folder / "train_32x32.mat", folder / "test_32x32.mat"):
        with reading(path):
            variables = loadmat(path, variable_names=["X", "y"])
            if not {"X", "y"} <= variables.keys():
                raise ValueError("it lacks X or y")
            pixels, labels = variables["X"], _whole(variables["y"].ravel())
            if pixels.ndim != 4 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
                raise ValueError(f"X is {pixels.shape} {pixels.dtype}, expected (32, 32, 3, N) uint8")
            arrays += [luma(pixels.transpose(3, 2, 0, 1)), np.where(labels == 10, 0, labels)]
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test


def _whole(labels: np.ndarray) -> np.ndarray:
    """Labels that a format stores as floats, as integers."""
    if not (labels == np.trunc(labels)).all():
        raise ValueError("labels are not whole numbers")
    return labels.astype(np.int64)


def read_cifar10(folder: Path) -> Splits:
    """The binary archive: records of a label and 3,072 bytes of colours."""
    return _read_cifar10(folder / "cifar-10-binary.tar.gz", ".bin", _read_binary_batch)


def read_cifar10_pickled(folder: Path) -> Splits:
    """The archive for Python: dicts of `data`, `(N, 3072)` uint8, and `labels`."""
    return _read_cifar10(folder / "cifar-10-python.tar.gz", "", _read_pickled_batch)


def _read_cifar10(path: Path, suffix: str, read: Callable[[IO[bytes]], tuple[np.ndarray, np.ndarray]]) -> Splits:
    """Five batches and a test batch in a tar file, read without extracting anything."""
    names = [f"data_batch_{number}{suffix}" for number in range(1, 6)] + [f"test_batch{suffix}"]
    batches = {}
    with reading(path), tarfile.open(path, "r:gz") as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            if name in names and member.isfile():
                if member.size > MAX_CIFAR_BATCH:
                    raise ValueError(f"{name} has {member.size} bytes")
                file = tar.extractfile(member)
                assert file is not None
                pixels, labels = read(file)
                batches[name] = luma(pixels.reshape(-1, 3, 32, 32)), labels
        if lacking := [name for name in names if name not in batches]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
    x_train, y_train = (np.concatenate([batches[name][part] for name in names[:5]]) for part in (0, 1))
    x_test, y_test = batches[names[5]]
    return x_train, y_train, x_test, y_test


def _read_binary_batch(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Colours `(N, 3072)` uint8 and labels `(N,)`."""
    content = file.read()
    if len(content) % 3073:
        raise ValueError(f"a batch has {len(content)} bytes, which are no records of 3073")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:], records[:, 0]


def _read_pickled_batch(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Colours `(N, 3072)` uint8 and labels `(N,)`."""
    # Python 2 wrote the official files: its strings come as bytes.
    batch = _ArrayUnpickler(file, encoding="bytes").load()
    batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if not {"data", "labels"} <= batch.keys() or not isinstance(batch["data"], _PickledArray):
        raise ValueError("a batch lacks data or labels")
    data = batch["data"].array
    if data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        raise ValueError(f"a batch's data is {data.shape} {data.dtype}, expected (N, 3072) uint8")
    return data, np.array(batch["labels"])


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, bytes and NumPy arrays of numbers; other names in a pickle are refused.

    Arrays come as `_PickledArray`: NumPy's own `__setstate__` believes the flags and item sizes that a pickle
    gives, so it is not for strangers' files.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_NAMES:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which is refused")
        return _PICKLE_NAMES[module, name]


class _PickledArray:
    """Stands for `numpy.ndarray`; `array` holds the numbers."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, content = state
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran else "C")


class _PickledDtype:
    """Stands for `numpy.dtype`, of plain numbers only."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        code = code.decode() if isinstance(code, bytes) else code
        if code not in {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}:
            raise pickle.UnpicklingError(f"its pickle has an array of {code!r}, which is refused")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


_PICKLE_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,  # an argument of _reconstruct
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): str.encode,  # how Python 3 writes bytes in Python 2's protocol
}


def read_npz(path: Path) -> Splits:
    """`x_train`, `y_train`, `x_test` and `y_test` as they are."""
    names = ("x_train", "y_train", "x_test", "y_test")
    # Opened here, since np.load forgets to close a file that is no zip file.
    with reading(path), path.open("rb") as file, np.load(file) as arrays:
        if lacking := [name for name in names if name not in arrays.files]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"]


def read_folder(folder: Path) -> Splits:
    """`<split>/<class>/<image>`; the classes are those of `train`, numbered in the order of their names."""
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            layout = "train/<class>/*.png and test/<class>/*.png"
            raise WeightsearchError(f"{folder} has no folder {split}: expected {layout}")
    classes = [path.name for path in _visible(folder / "train") if path.is_dir()]
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    x_train, y_train = _read_split(folder / "train", classes)
    x_test, y_test = _read_split(folder / "test", classes)
    return x_train, y_train, x_test, y_test


def _visible(folder: Path) -> list[Path]:
    """What is in a folder in the order of names, without hidden files, which file managers leave behind."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read_split(split: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    paths: list[Path] = []
    labels: list[int] = []
    for subfolder in filter(Path.is_dir, _visible(split)):
        if subfolder.name not in classes:
            raise WeightsearchError(f"{subfolder} is a class without training images: add them or remove it")
        images = [path for path in _visible(subfolder) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise WeightsearchError(f"{subfolder} has no images: add some or remove it")
        paths += images
        labels += [classes.index(subfolder.name)] * len(images)
    return _read_images(paths), np.array(labels, np.int64)


def _read_images(paths: list[Path]) -> np.ndarray:
    """Luma `(N, H, W)` uint8 of image files of one size."""
    from PIL import Image

    images = np.empty((len(paths), 0, 0), np.uint8)
    for number, path in enumerate(paths):
        with reading(path), Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel")
            pixels = np.asarray(image.convert("L"))
        if number == 0:
            images = np.empty((len(paths), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            sizes = " and ".join(f"{width}x{height}" for height, width in (images.shape[1:], pixels.shape))
            raise WeightsearchError(f"{paths[0]} and {path} are {sizes}: make all images one size")
        images[number] = pixels
    return images
