"""Image datasets: find or download their files, and normalise them to grayscale `(N, 1, H, W)` in [-1, 1].

Grayscale is ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, and a value v of 0 to 255 becomes v / 127.5 - 1. The
checksums are the MD5 sums that torchvision publishes for the official files (its datasets/mnist.py, cifar.py,
svhn.py and usps.py), and for CIFAR-10's binary archive its authors (https://www.cs.toronto.edu/~kriz/cifar.html). How
the files are parsed is in `parsers`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from weightsearch.datasets import parsers as image_files
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import Scaling

log = logging.getLogger("weightsearch")


class DatasetName(StrEnum):
    """The datasets known by name. `digits` comes with scikit-learn and needs no files."""

    DIGITS = "digits"
    MNIST = "mnist"
    FASHION_MNIST = "fashion-mnist"
    CIFAR10 = "cifar10"
    SVHN = "svhn"
    USPS = "usps"


@dataclass(frozen=True)
class ImageDataset:
    """Labelled grayscale images in two splits.

    `x_train` and `x_test` are `(N, 1, H, W)` float32 in [-1, 1] unless `scaled`; `y_train` and `y_test` are
    `(N,)` int64, from 0 to `classes` - 1.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int

    def scaled(self, scaling: Scaling) -> ImageDataset:
        """The same images in other numbers.

        Example:
            >>> data = load_dataset("digits").scaled(Scaling.STANDARD)
            >>> round(float(data.x_train.mean()), 3), round(float(data.x_train.std()), 3)
            (0.0, 1.0)
        """
        if scaling is Scaling.SYMMETRIC:
            return self
        centre, spread = centre_and_spread(scaling, self.x_train)
        x_train, x_test = (((x - centre) / spread).astype(np.float32) for x in (self.x_train, self.x_test))
        return replace(self, x_train=x_train, x_test=x_test)


def centre_and_spread(scaling: Scaling, x_train: np.ndarray) -> tuple[float, float]:
    """What to take from images in [-1, 1] and what to divide them by; `standard` goes by the training images."""
    match scaling:
        case Scaling.SYMMETRIC:
            return 0.0, 1.0
        case Scaling.UNIT:
            return -1.0, 2.0
        case Scaling.STANDARD:
            return float(x_train.mean()), float(x_train.std())


@dataclass(frozen=True)
class OfficialFiles:
    """Where a dataset comes from; all of them have ten classes and images of `size` x `size`."""

    size: int
    read: Callable[[Path], image_files.Splits]
    mirrors: tuple[str, ...]
    files: dict[str, str]  # name -> MD5


OFFICIAL = {
    DatasetName.MNIST: OfficialFiles(
        size=28,
        read=image_files.read_mnist,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    DatasetName.FASHION_MNIST: OfficialFiles(
        size=28,
        read=image_files.read_mnist,
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        files={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    DatasetName.CIFAR10: OfficialFiles(
        size=32,
        read=image_files.read_cifar10,
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        files={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    DatasetName.SVHN: OfficialFiles(
        size=32,
        read=image_files.read_svhn,
        mirrors=("http://ufldl.stanford.edu/housenumbers/",),
        files={
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
    DatasetName.USPS: OfficialFiles(
        size=16,
        read=image_files.read_usps,
        mirrors=("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",),
        files={
            "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
            "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
        },
    ),
}

CIFAR10_PICKLED = OfficialFiles(  # read where the binary archive is not there
    size=32,
    read=image_files.read_cifar10_pickled,
    mirrors=(),
    files={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
)
CIFAR10_GRAY = "cifar10-gray.npz"


def load_dataset(name_or_path: str | Path, data_dir: str | Path | None = None) -> ImageDataset:
    """A dataset by name (a `DatasetName`) or from a path.

    Official files are searched as `<dir>/<name>/<file>` and `<dir>/<file>` in `data_dir`,
    `$WEIGHTSEARCH_DATA` and the user's cache directory, and else downloaded into the first of these. Files that
    differ from the official ones are read with one warning on the logger `weightsearch`.

    A path is one of:

    - an `.npz` file with `x_train`, `y_train`, `x_test` and `y_test`. Images are `(N, H, W)`, `(N, C, H, W)`
      or `(N, H, W, C)` with 1 or 3 channels: integers from 0 to 255, which are scaled to [-1, 1], or floats,
      which must lie in [-1, 1] already. Labels are integers from 0 to K - 1.
    - a folder with `train/<class>/*.png` and `test/<class>/*.png` (or another common image format; 8 bits per
      channel, one size). Classes are numbered in the order of their names, by value if all are integers.

    Raises `UsageError` for an unknown name or path, and `WeightsearchError` for files that are missing and
    cannot be downloaded, or cannot be read, or hold images or labels that are empty, misshapen or out of range.

    Example:
        >>> digits = load_dataset('digits')
        >>> digits.x_train.shape[1:]
        (1, 16, 16)
    """
    if name_or_path in list(DatasetName):
        name = DatasetName(name_or_path)
        if name is DatasetName.DIGITS:
            return _normalise(name, name, image_files.read_digits(), classes=10)
        return _load_official(name, data_dir)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _normalise(path.resolve().name, path, image_files.read_folder(path))
    if path.is_file() and path.suffix == ".npz":
        return _normalise(path.stem, path, image_files.read_npz(path))
    names = ", ".join(DatasetName)
    raise UsageError(f"unknown dataset {name_or_path}: use {names}, or the path of an .npz file or a folder")


def _load_official(name: DatasetName, data_dir: str | Path | None) -> ImageDataset:
    official = OFFICIAL[name]
    directories = _search_directories(data_dir)
    folder = _find(name, official.files, directories)
    if folder is None and name is DatasetName.CIFAR10:
        folder = _find(name, CIFAR10_PICKLED.files, directories)
        official = official if folder is None else CIFAR10_PICKLED
    if folder is None and name is DatasetName.CIFAR10:
        folder = _find(name, [CIFAR10_GRAY], directories)
        if folder is not None:
            splits = image_files.read_npz(folder / CIFAR10_GRAY)
            dataset = _normalise(name, folder / CIFAR10_GRAY, splits, classes=10, size=official.size)
            log.warning("cifar10: read %s, which is not the official CIFAR-10: say so with any result on it",
                        folder / CIFAR10_GRAY)  # fmt: skip
            return dataset
    if folder is None:
        folder = directories[0] / name
        _download(name, folder)
    unofficial = _unofficial(name, folder, official.files)
    dataset = _normalise(name, folder, official.read(folder), classes=10, size=official.size)
    if unofficial:
        log.warning("%s: not the official file by its checksum, read anyway: %s in %s",
                    name, ", ".join(unofficial), folder)  # fmt: skip
    return dataset


def _search_directories(data_dir: str | Path | None) -> list[Path]:
    import platformdirs

    directories = [data_dir, os.environ.get("WEIGHTSEARCH_DATA"), platformdirs.user_cache_dir("weightsearch")]
    return [Path(directory).expanduser() for directory in directories if directory]


def _find(name: DatasetName, files: Iterable[str], directories: list[Path]) -> Path | None:
    """The first folder that has all the files: files of two folders might not belong together."""
    for directory in directories:
        folders = [directory / name]
        # MNIST and Fashion-MNIST share their file names: never take one from a folder named after the other.
        if directory.resolve().name not in set(DatasetName) - {name}:
            folders.append(directory)
        for folder in folders:
            if all((folder / file).is_file() for file in files):
                return folder
    return None


def _unofficial(name: DatasetName, folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """Those of the files in `folder` whose MD5 is not the official one. Raises if it is another dataset's."""
    owners = {md5: owner for owner, official in OFFICIAL.items() for md5 in official.files.values()}
    unofficial = []
    for file, official_md5 in checksums.items():
        path = folder / file
        with image_files.reading(path), path.open("rb") as opened:
            md5 = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 == official_md5:
            continue
        if md5 in owners:
            raise WeightsearchError(f"{path} belongs to {owners[md5]}, not {name}: move it to its own folder")
        unofficial.append(file)
    return unofficial


def _download(name: DatasetName, folder: Path) -> None:
    """The official files that `folder` lacks, each checked and then renamed into place."""
    import pooch
    import requests  # whose exceptions pooch lets through

    pooch.get_logger().setLevel("WARNING")  # its line per mirror would hide our one line on what to do
    official = OFFICIAL[name]
    present = {file: md5 for file, md5 in official.files.items() if (folder / file).is_file()}
    missing = [file for file in official.files if file not in present]
    fix = f"put {', '.join(missing)} into {folder}, or name their place with --data-dir or $WEIGHTSEARCH_DATA"
    if unofficial := _unofficial(name, folder, present):
        raise WeightsearchError(f"{name}: unofficial {', '.join(unofficial)} cannot be completed by a download: {fix}")
    terminal = sys.stderr.isatty()
    # A server must not compress these files, nor decompress them.
    headers = {"Accept-Encoding": "identity"}
    downloader = pooch.HTTPDownloader(progressbar=terminal, chunk_size=1 << 16, timeout=30, headers=headers)
    for file in missing:
        failures = []
        for mirror in official.mirrors:
            if terminal:
                print(f"Downloading {mirror + file}", file=sys.stderr)
            try:
                pooch.retrieve(mirror + file, f"md5:{official.files[file]}", file, folder, downloader=downloader)
                break
            except ValueError:
                failures.append(f"{mirror + file}: wrong checksum")
            except requests.RequestException as error:
                failures.append(f"{mirror + file}: {type(error).__name__}")
            except OSError as error:
                raise WeightsearchError(f"{name}: cannot download ({error}): choose another --data-dir") from error
        else:
            raise WeightsearchError(f"{name}: not found, and no download ({'; '.join(failures)}): {fix}")


def _normalise(
    name: str,
    source: str | Path,
    splits: image_files.Splits,
    classes: int | None = None,
    size: int | None = None,
) -> ImageDataset:
    """Checked and scaled. `classes` and `size` are what the dataset must have; by default what it has."""
    x_train, y_train, x_test, y_test = splits
    train = _images(x_train, f"{source}: x_train")
    test = _images(x_test, f"{source}: x_test")
    if test.shape[2:] != train.shape[2:] or (size and train.shape[2:] != (size, size)):
        sizes = " and ".join(f"{images.shape[3]}x{images.shape[2]}" for images in (train, test))
        expected = f"{size}x{size}" if size else "one size"
        raise WeightsearchError(f"{source}: training and test images are {sizes}, expected {expected}")
    y_train = _labels(y_train, len(train), f"{source}: y_train")
    y_test = _labels(y_test, len(test), f"{source}: y_test")
    expected_labels = np.arange(classes) if classes else np.unique(y_train)
    if len(expected_labels) < 2 or not np.array_equal(expected_labels, np.arange(len(expected_labels))):
        problem = f"{len(expected_labels)} different labels from {expected_labels[0]} to {expected_labels[-1]}"
        raise WeightsearchError(f"{source}: y_train has {problem}, expected each of 0 to K-1 and K at least 2")
    for what, labels in (("y_train", y_train), ("y_test", y_test)):
        outside = labels[(labels < 0) | (labels >= len(expected_labels))]
        if len(outside):
            raise WeightsearchError(
                f"{source}: {what} has the label {outside[0]}, expected 0 to {len(expected_labels) - 1}"
            )
    return ImageDataset(str(name), train, y_train, test, y_test, len(expected_labels))


def _images(pixels: np.ndarray, what: str) -> np.ndarray:
    """`(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)` to `(N, 1, H, W)` float32 in [-1, 1]; one float copy."""
    shape = pixels.shape
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and shape[1] not in (1, 3):
        pixels = np.moveaxis(pixels, 3, 1)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.size == 0:
        raise WeightsearchError(f"{what} is {shape}, expected images (N, H, W), or with 1 or 3 channels")
    if pixels.dtype.kind not in "uif":
        raise WeightsearchError(f"{what} is {pixels.dtype}, expected integers 0 to 255 or floats in [-1, 1]")
    is_float = pixels.dtype.kind == "f"
    low, high = pixels.min(), pixels.max()
    lowest, highest = (-1, 1) if is_float else (0, 255)
    if not (lowest <= low and high <= highest):  # written so that NaN fails it
        span = "NaN" if np.isnan(low) else f"{low} to {high}"
        raise WeightsearchError(f"{what} has {pixels.dtype} values {span}, expected {lowest} to {highest}")
    if is_float:
        if low >= 0:
            log.warning("%s has no value below 0: if it is scaled to [0, 1], scale it to [-1, 1]", what)
        if pixels.shape[1] == 3:
            luma = np.array([0.299, 0.587, 0.114], pixels.dtype)
            pixels = np.einsum("nchw,c->nhw", pixels, luma)[:, None]
        return np.ascontiguousarray(pixels, np.float32)
    pixels = pixels.astype(np.uint8, copy=False)
    gray = pixels if pixels.shape[1] == 1 else image_files.luma(pixels)[:, None]
    images = gray.astype(np.float32, order="C")
    images /= 127.5
    images -= 1
    return images


def _labels(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """`(N,)` or `(N, 1)` integers to `(N,)` int64."""
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "ui":
        raise WeightsearchError(f"{what} is {labels.shape} {labels.dtype}, expected ({count},) integers")
    return labels.astype(np.int64)
