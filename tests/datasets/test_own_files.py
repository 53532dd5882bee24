"""A user's own arrays and folders of images, sound and damaged."""

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.samples import check_invariants, fails, warnings_of
from weightsearch.datasets.load import load_dataset
from weightsearch.errors import UsageError


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


def test_one_float_copy(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (20_000, 16, 16), np.uint8)
    y = np.arange(20_000) % 10
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    tracemalloc.start()
    data = load_dataset(tmp_path / "mine.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * data.x_train.nbytes  # the bytes are a quarter, labels and slack the rest
