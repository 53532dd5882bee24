"""A worker's part in building a wild zoo: train a job's runs one after another and write their weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.state_dict import from_state_dict
from weightsearch.datasets.load import ImageDataset
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, content_hash
from weightsearch.zoo.schema import CheckpointRow, RunRow
from weightsearch.zoo.store import write_part
from weightsearch.zoo.wild.recipes import CHECKPOINTS, WildRecipe
from weightsearch.zoo.wild.train import train
from weightsearch.zoo.workers.messages import Group, TrainingJob

SIZES = {"coarse": 8, "fine": 16}  # at most so many pixels wide, by a recipe's resolution


def dataset_key(name: str, resolution: str) -> str:
    """What a reduced dataset is called among a worker's."""
    return f"{name}-{resolution}"


def train_group(
    job: TrainingJob, datasets: Mapping[str, ImageDataset], *, dtype: str, on_run: Callable[[], None]
) -> Group:
    """Train a job's runs and write the good checkpoints' weights, flat and one after another, to its file.

    `datasets` are the reduced ones by `dataset_key`. A run that diverges fails; its checkpoints before that are kept.
    """
    runs: list[RunRow] = []
    rows: list[CheckpointRow] = []
    weights: list[np.ndarray] = []
    architectures: dict[str, Architecture] = {}
    start = 0
    for run, plain in zip(job.runs, job.recipes, strict=True):
        began = time.monotonic()
        recipe = WildRecipe.from_dict(plain)
        number = 0
        for saved in train(recipe, datasets[dataset_key(recipe.dataset, recipe.resolution)]):
            try:
                network = from_state_dict(saved.state)
            except WeightsearchError:  # weights that are not finite, where the loss still is
                break
            with np.errstate(over="ignore"):  # beyond float16 becomes Inf, which is not good
                flat = network.weights.astype(dtype)
            if not np.isfinite(flat).all():
                break
            number = saved.number
            architecture = network.architecture
            architectures.setdefault(architecture.fingerprint, architecture)
            rows.append(
                CheckpointRow(
                    content_hash(flat),
                    run,
                    number,
                    saved.train_loss,
                    saved.train_accuracy,
                    saved.test_loss,
                    saved.test_accuracy,
                    extras={"step": saved.step},
                    architecture=architecture.fingerprint,
                    start=start,
                )
            )
            weights.append(flat)
            start += len(flat)
        reason = None if number == CHECKPOINTS else f"weights or loss not finite by checkpoint {number + 1}"
        runs.append(RunRow(run, plain, reason, time.monotonic() - began))
        on_run()
    if weights:
        write_part(Path(job.path), np.concatenate(weights))
    return Group(runs, rows, list(architectures.values()))
