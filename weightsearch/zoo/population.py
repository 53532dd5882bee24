"""Population training: many runs of the base network advance together, each by its own recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightsearch.datasets import ImageDataset
from weightsearch.errors import UsageError
from weightsearch.zoo import kernels
from weightsearch.zoo.networks import CnnShape, Stream, initialize, stream
from weightsearch.zoo.recipes import Activation, Optimizer, Recipe


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


def train_population(
    shape: CnnShape,
    recipes: Sequence[Recipe],
    data: ImageDataset,
    plan: TrainingPlan,
    *,
    device: str = "cpu",
    on_epoch: Callable[[int], None] | None = None,
) -> Iterator[PopulationCheckpoint]:
    """Train one network of `shape` per recipe and yield all of them at each of the plan's checkpoint epochs.

    A run's result depends on its own recipe alone, not on the others beside it. `on_epoch` is called with each
    epoch's number when it is done. Raises UsageError where shape and data do not fit each other.
    """
    if device == "cpu":
        return _train_compiled(shape, recipes, data, plan, on_epoch)
    from weightsearch.zoo.batched import train_batched

    return train_batched(shape, recipes, data, plan, device=device, on_epoch=on_epoch)


CACHE_FLOATS = 100_000


def _train_compiled(shape, recipes, data, plan, on_epoch):
    n, (height, width) = len(recipes), data.x_train.shape[2:]
    layout = kernels.Layout(shape, height, width)
    x_train, x_test = (
        np.ascontiguousarray(np.moveaxis(x, 1, 3)).reshape(len(x), -1) for x in (data.x_train, data.x_test)
    )
    subsets = [training_subset(recipe, len(x_train)) for recipe in recipes]
    everything = np.arange(len(x_test))
    weights = layout.pack(np.stack([initialize(shape, recipe) for recipe in recipes]))
    states = np.zeros((n, 2, layout.packed_size), np.float32)
    capacity = max(8, min(128, CACHE_FLOATS // layout.sample_size // 8 * 8))
    buffers = [np.zeros(capacity * layout.sample_size, np.float32) for _ in range(3)]
    work = (np.zeros(layout.packed_size, np.float32), np.zeros(layout.transposed_size, np.float32), *buffers, capacity)
    steps = [0] * n
    for epoch in range(plan.epochs + 1):
        if epoch > 0:
            for i, recipe in enumerate(recipes):
                batches = -(-len(subsets[i]) // plan.batch_size)
                keys = stream(recipe, Stream.DROPOUT, epoch).integers(0, 2**32, (batches, shape.layers, 2), np.uint32)
                order = epoch_order(recipe, epoch, subsets[i])
                compiled = (
                    list(Optimizer).index(recipe.optimizer),
                    np.float32(recipe.learning_rate),
                    np.float32(recipe.weight_decay),
                    np.float32(plan.momentum),
                    list(Activation).index(recipe.activation),
                    np.uint32(recipe.dropout * 2**32),
                    np.float32(1 / (1 - recipe.dropout)),
                )
                kernels.train_epoch(
                    *(layout.layers, shape.classes, weights[i], states[i], work, x_train, data.y_train, order),
                    *(plan.batch_size, compiled, keys, steps[i]),
                )
                steps[i] += batches
        if epoch in plan.checkpoint_epochs:
            metrics = np.empty((4, n))
            for i, recipe in enumerate(recipes):
                activation = list(Activation).index(recipe.activation)
                for k, (x, y, order) in enumerate([(x_train, data.y_train, subsets[i]), (x_test, data.y_test, everything)]):
                    metrics[2 * k : 2 * k + 2, i] = kernels.evaluate(
                        layout.layers, shape.classes, weights[i], work, x, y, order, activation
                    )
            yield PopulationCheckpoint(epoch, layout.unpack(weights), *metrics)
        if epoch > 0 and on_epoch is not None:
            on_epoch(epoch)
