"""What the population trainers share: what is trained, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.zoo.recipes import Recipe
from weightsearch.zoo.trainer.networks import Stream, stream


@dataclass(frozen=True)
class TrainingPlan:
    """What all runs of a zoo share. Epoch 0 is the initial weights; `momentum` is SGD's alone."""

    epochs: int
    batch_size: int
    checkpoint_epochs: tuple[int, ...]
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise UsageError(f"expected epochs >= 0 and batch size >= 1, got {self.epochs} and {self.batch_size}")
        epochs = self.checkpoint_epochs
        if list(epochs) != sorted(set(epochs)) or any(not 0 <= epoch <= self.epochs for epoch in epochs):
            raise UsageError(f"checkpoint epochs must rise within 0 to {self.epochs}, got {list(epochs)}")


@dataclass(frozen=True)
class PopulationCheckpoint:
    """All N runs at one epoch: flat weights `(N, P)` float32 and, in evaluation mode, their metrics `(N,)` float64.

    `train_*` are over the part of the training split that the run trained on, `test_*` over the whole test split;
    losses are mean cross-entropies in nats. A diverged run has NaN or Inf in its weights and losses.
    """

    epoch: int
    weights: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray


def training_subset(recipe: Recipe, n: int) -> np.ndarray:
    """Which of `n` training images a run sees, drawn by its seed: int64 positions, rising."""
    count = min(n, max(1, round(recipe.train_fraction * n)))
    return np.sort(stream(recipe, Stream.SUBSET).permutation(n)[:count])


def epoch_order(recipe: Recipe, epoch: int, subset: np.ndarray) -> np.ndarray:
    """The order in which a run sees its `subset` in `epoch` (from 1); batches are consecutive pieces of it."""
    return subset[stream(recipe, Stream.BATCHES, epoch).permutation(len(subset))]


def dropout_threshold(dropout: float) -> np.uint32:
    """A unit is dropped where its 32 random bits are below this."""
    return np.uint32(round(dropout * 2**32))


def dropout_keys(recipe: Recipe, epoch: int, batches: int, layers: int) -> np.ndarray:
    """Keys `(batches, layers, 2)` uint32 of a run's dropout in `epoch`: each layer of each batch has its own.

    A unit's random bits are a hash of its layer's keys and of its place in its batch's activations
    `(B, h, w, channels padded to LANES)`, so that they are the same on every device and in any company.
    """
    return stream(recipe, Stream.DROPOUT, epoch).integers(0, 2**32, (batches, layers, 2), np.uint32)
