"""The Small CNN Zoo, checked by running the network as Keras does."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.zoo.public_zoos import (
    STEPS,
    imported,
    positions,
    write_small_cnn_zoo,
)
from weightsearch.checkpoints.discovery import Sources
from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.zoo.import_zoo import Layout
from weightsearch.zoo.store import Zoo, connect
from weightsearch.zoo.trainer.networks import CnnShape


def keras_run(variables: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The zoo's network as Keras runs it: images NHWC, kernels HWIO, stride 2, relu, global average pooling, dense."""
    hidden = images
    for i in range(3):
        suffix = f"_{i}" if i else ""
        kernel = variables[f"sequential/conv2d{suffix}/kernel:0"]
        n, height, width, _ = hidden.shape
        size = ((height - 3) // 2 + 1, (width - 3) // 2 + 1)
        out = np.zeros((n, *size, kernel.shape[3]))
        for y in range(size[0]):
            for x in range(size[1]):
                patch = hidden[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                out[:, y, x] = np.tensordot(patch, kernel, ([1, 2, 3], [0, 1, 2]))
        hidden = np.maximum(out + variables[f"sequential/conv2d{suffix}/bias:0"], 0)
    return hidden.mean(axis=(1, 2)) @ variables["sequential/dense/kernel:0"] + variables["sequential/dense/bias:0"]


def torch_run(zoo: Zoo, position: int, images: np.ndarray) -> np.ndarray:
    arrays = to_state_dict(zoo.weights([position])[0], zoo.architecture)
    weights = [torch.from_numpy(array) for array in arrays.values()]
    hidden = torch.from_numpy(images.transpose(0, 3, 1, 2)).float()
    for kernel, bias in zip(weights[0:6:2], weights[1:6:2], strict=True):
        hidden = torch.relu(nn.functional.conv2d(hidden, kernel, bias, stride=2))
    return nn.functional.linear(hidden.mean(dim=(2, 3)), *weights[6:]).numpy()


@pytest.mark.slow
def test_small_cnn_zoo(tmp_path: Path):
    rows = write_small_cnn_zoo(tmp_path / "svhn")
    zoo, summary = imported(tmp_path / "svhn", tmp_path)
    assert summary.layout is Layout.SMALL_CNN_ZOO
    assert (summary.runs, summary.checkpoints, summary.quarantined) == (2, 6, ())
    assert zoo.architecture.fingerprint == CnnShape().architecture.fingerprint
    assert (zoo.info.dataset, zoo.info.preset) == ("svhn", "v1")
    table = zoo.table()
    where = positions(zoo)
    assert sorted(where) == [(run, step) for run in ("0/model", "1/model") for step in STEPS]
    images = np.random.default_rng(1).normal(size=(2, 28, 28, 1)).astype(np.float32)
    for i, (step, run) in enumerate((step, run) for step in STEPS for run in (0, 1)):
        position = where[f"{run}/model", step]
        np.testing.assert_allclose(torch_run(zoo, position, images), keras_run(rows[i], images), rtol=1e-4, atol=1e-5)
        assert (table.test_accuracy[position], table.train_loss[position]) == (i / 10, i + 0.5)
        assert (table.test_loss[position], table.train_accuracy[position]) == (i + 0.25, i / 20)
        assert table.extras["laststep"][position] == (step == 86)
        assert table.recipes[table.run[position]] == {
            "activation": ["relu", "tanh"][run],
            "dataset": "svhn_cropped",
            "dropout": [0.0, 0.25][run],
            "l2reg": [1e-4, 1e-8][run],
            "learning_rate": [0.01, 0.002][run],
            "optimizer": ["adam", "sgd"][run],
            "seed": 42,
            "initializer": ["glorot_normal", "RandomNormal"][run],
        }


def test_the_small_cnn_zoo_takes_no_other_metadata(tmp_path: Path):
    write_small_cnn_zoo(tmp_path / "svhn", filters=2)
    with pytest.raises(UsageError, match="leave out --metadata"):
        imported(tmp_path / "svhn", tmp_path, sources=Sources.make(run_pattern="x"))


@pytest.mark.slow
def test_a_diverged_row_of_the_small_cnn_zoo_is_left_out_and_its_run_kept(tmp_path: Path):
    write_small_cnn_zoo(tmp_path / "svhn", filters=4, broken=3)
    zoo, summary = imported(tmp_path / "svhn", tmp_path)
    assert zoo.info.preset == "imported"
    assert [bad.reason for bad in summary.quarantined] == ["its weights hold NaN or infinite values"]
    assert sorted(positions(zoo)) == [("0/model", 0), ("0/model", 1), ("0/model", 86), ("1/model", 0), ("1/model", 86)]
    assert np.isfinite(zoo.weights(slice(None))).all()
    with connect(zoo.path, read_only=True) as connection:
        assert connection.execute("SELECT name, reason FROM runs WHERE status = 'failed'").fetchall() == [
            ("1/model", "epoch 1: its weights hold NaN or infinite values")
        ]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: np.save(folder / "weights.npy", np.zeros((5, 4970), np.float32)), "5 rows"),
        (lambda folder: np.save(folder / "weights.npy", np.zeros((6, 7), np.float32)), "describes rows of 4,970"),
        (lambda folder: np.save(folder / "weights.npy", np.array([{}])), "cannot be read"),
        (lambda folder: (folder / "layout.csv").write_text("varname,shape\na,b\n"), "it needs the columns"),
        (lambda folder: (folder / "metrics.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")), "no column modeldir"),
        (lambda folder: (folder / "metrics.csv.gz").write_bytes(b"no gzip"), "metrics.csv.gz"),
    ],
    ids=["rows", "columns", "objects", "layout", "metrics", "gzip"],
)
def test_a_damaged_small_cnn_zoo_is_one_line(tmp_path: Path, damage: Any, says: str):
    write_small_cnn_zoo(tmp_path / "svhn")
    damage(tmp_path / "svhn")
    with pytest.raises(WeightsearchError) as caught:
        imported(tmp_path / "svhn", tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "zoo").exists()
