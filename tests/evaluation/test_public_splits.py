"""The literature's number: published splits read as their own readers read them, on small folders in those layouts."""

from __future__ import annotations

import csv
import gzip
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.zoo.public_zoos import write_layout
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.encoders.universal.described import describe
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.evaluation.public_layouts import read_small_cnn_zoo, read_wild_park
from weightsearch.evaluation.public_splits import (
    Collection,
    _described,
    evaluate_public,
    published_figures,
    to_table,
)

RUNS = 120
STEPS = (0, 1, 86)
FILTERS = 2


def write_zoo(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A Small CNN Zoo, rows by step, whose final accuracy is the scale of the weights; returns steps and order."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    size = sum(int(np.prod(shape)) for shape in write_layout(folder, FILTERS).values())
    steps = np.repeat(STEPS, RUNS)
    scales = rng.uniform(0.1, 0.9, len(steps))
    np.save(folder / "weights.npy", (rng.normal(size=(len(steps), size)) * scales[:, None]).astype(np.float32))
    accuracy = np.where(steps == 86, scales, 1 - scales)  # the other steps would teach the opposite
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        metrics = ["test_accuracy", "test_loss", "train_accuracy", "train_loss"]
        writer.writerow(["row", "config.dataset", "config.activation", "modeldir", "step", *metrics])
        for row, (step, value) in enumerate(zip(steps, accuracy, strict=True)):
            writer.writerow([row, "cifar10", "relu", f"/zoo/{row % RUNS}", step, value, 1.0, value, 1.0])
    order = np.concatenate([[0], rng.permutation(len(steps))])  # as published: its first line is a row, too
    (folder / "cifar10_split.csv").write_text("".join(f"{row}\n" for row in order))
    return steps, order


def published_reader(steps: np.ndarray, order: np.ndarray) -> dict[str, list[int]]:
    """Rows of `weights.npy` by part, by arrays that shrink as in the published class."""
    rows = np.arange(len(steps))[order]
    rows = rows[steps[order] == 86]
    half = int(0.5 * len(rows))
    fitted = list(range(half))
    random.Random(0).shuffle(fitted)
    kept = int(0.8 * len(fitted))
    return {"train": [*rows[fitted[:kept]]], "val": [*rows[fitted[kept:]]], "test": [*rows[half:]]}


def test_the_split_is_that_of_the_published_reader(tmp_path: Path):
    steps, order = write_zoo(tmp_path / "zoo")
    final = read_small_cnn_zoo(tmp_path / "zoo")
    assert final.parts == published_reader(steps, order)
    assert {len(run.checkpoints) for run in final.runs} == {1}
    assert final.dataset == "cifar10"


@pytest.mark.slow
def test_scores_are_of_final_checkpoints_and_stand_beside_published_figures(tmp_path: Path):
    write_zoo(tmp_path / "zoo")
    methods = ("statistics", "statistics-trees")
    done = evaluate_public("small-cnn-zoo", tmp_path / "zoo", tmp_path / "out", methods=methods, seeds=1, epochs=40)
    assert done.sizes == {"train": 48, "val": 12, "test": 60}
    assert [one.method for one in done.fits] == [*methods]
    for one in done.fits:  # rows, steps or parts mixed up leave no order
        assert one.test.tau > 0.6, one
        assert one.test.count == 60
    text = to_table(done).to_text()
    assert "0.957" in text
    assert "0.914" in text
    written = json.loads((tmp_path / "out" / "public-small-cnn-zoo.json").read_text())
    assert written["fits"][0]["test"]["tau"] == done.fits[0].test.tau
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "public-small-cnn-zoo.json",
        "public-small-cnn-zoo.md",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "cifar10_split.csv").unlink(), "has none; it is at https"),
        (lambda folder: (folder / "svhn_split.csv").write_text("1\n"), "has 2 of them"),
        (lambda folder: (folder / "cifar10_split.csv").write_text("index\n"), "one row number a line"),
        (lambda folder: (folder / "cifar10_split.csv").write_text("240\n241\n"), "leaves out 118 of 120"),
        (lambda folder: (folder / "layout.csv").unlink(), "has no layout.csv"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, damage, message: str):
    write_zoo(tmp_path / "zoo")
    damage(tmp_path / "zoo")
    with pytest.raises(WeightsearchError, match=message):
        read_small_cnn_zoo(tmp_path / "zoo")


def write_park(folder: Path, trials: int = 10) -> None:
    """Trials of two architectures with three checkpoints each, as the published Ray trainable saves them."""
    rng = np.random.default_rng(0)
    parts: dict[str, dict[str, list]] = {
        part: {"path": [], "score": [], "step": []} for part in ("train", "val", "test")
    }
    for trial in range(trials):
        part = parts["test" if trial % 5 == 4 else "val" if trial % 5 == 3 else "train"]
        channels = [3, 4, 8] if trial % 2 else [3, 4, 4, 8]
        for step in (1, 2, 3):
            model = nn.Module()
            torch.manual_seed(10 * trial + step)
            model.layers = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(channels))
            model.fc = nn.Linear(channels[-1], 10)
            name = f"cifar10_zooV2/NN_tune_{trial:05d}/checkpoint_{step:06d}/checkpoint.pt"
            (folder / name).parent.mkdir(parents=True)
            config = {"channels": channels, "activation": ["relu"] * (len(channels) - 1), "residual": [-1]}
            content = {"model": model.state_dict(), "optimizer": {"state": {}}, "config": config, "iteration": step}
            torch.save(content, folder / name)
            part["path"].append(name)
            part["score"].append(float(rng.uniform(0.1, 0.7)))
            part["step"].append(step)
    (folder / "cnn_park_splits.json").write_text(json.dumps(parts))


@pytest.mark.slow
def test_the_park_is_read_in_the_published_order(tmp_path: Path):
    write_park(tmp_path)
    content = json.loads((tmp_path / "cnn_park_splits.json").read_text())
    part = read_wild_park(tmp_path)["train"]
    assert part.scores.tolist() == content["train"]["score"]
    assert part.trials[:4] == [*["cifar10_zooV2/NN_tune_00000"] * 3, "cifar10_zooV2/NN_tune_00001"]
    described, usable, reasons = _described(part, lambda: None)
    assert not reasons
    pooled = described.pooled()
    assert sorted(usable) == list(range(len(part.paths)))
    for row, place in enumerate(usable):
        one = read_checkpoint(tmp_path / content["train"]["path"][place])
        np.testing.assert_allclose(pooled[row], describe(one.weights[None], one.architecture).pooled()[0], rtol=1e-5)


def test_a_part_of_the_park_that_reaches_outside_or_shares_a_trial_is_refused(tmp_path: Path):
    write_park(tmp_path, trials=5)
    content = json.loads((tmp_path / "cnn_park_splits.json").read_text())
    shared = {**content, "test": content["train"]}
    (tmp_path / "cnn_park_splits.json").write_text(json.dumps(shared))
    with pytest.raises(WeightsearchError, match="trials of the test part in training"):
        read_wild_park(tmp_path)
    outside = {**content, "test": {"path": ["../x/c/checkpoint.pt"], "score": [0.5]}}
    (tmp_path / "cnn_park_splits.json").write_text(json.dumps(outside))
    with pytest.raises(WeightsearchError, match="outside of the folder"):
        read_wild_park(tmp_path)


@pytest.mark.slow
def test_the_park_is_evaluated_and_a_broken_file_is_told_of(tmp_path: Path):
    write_park(tmp_path / "park", trials=20)
    next((tmp_path / "park").glob("*/NN_tune_00004/*1/checkpoint.pt")).write_bytes(b"broken")
    done = evaluate_public(Collection.WILD_PARK, tmp_path / "park", tmp_path / "out", seeds=1, epochs=2)
    assert done.sizes == {"train": 36, "val": 12, "test": 11}
    assert -1 <= done.fits[0].test.tau <= 1
    assert any("1 file of test could not be used" in note for note in done.notes)
    assert "0.874" in to_table(done).to_text()


def test_wrong_options_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match="choose among universal"):
        evaluate_public("wild-park", tmp_path, tmp_path, methods=("statistics",))
    with pytest.raises(UsageError, match="--seeds 0"):
        evaluate_public("wild-park", tmp_path, tmp_path, seeds=0)
    with pytest.raises(WeightsearchError, match="has no cnn_park_splits"):
        evaluate_public("wild-park", tmp_path, tmp_path)


def test_every_published_figure_has_a_source():
    figures = [
        *published_figures(Collection.SMALL_CNN_ZOO, "svhn"),
        *published_figures(Collection.WILD_PARK, "cifar10"),
    ]
    assert len(figures) == 7
    for figure in figures:
        assert figure.source.startswith("https://arxiv.org/abs/")
        assert figure.seen
        assert 0 < figure.tau < 1
