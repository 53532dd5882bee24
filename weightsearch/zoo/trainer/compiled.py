"""The population on one processor core: one network after another through the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from weightsearch.datasets.load import ImageDataset
from weightsearch.types import Activation
from weightsearch.zoo.recipes import Initializer, Optimizer, Recipe
from weightsearch.zoo.trainer import kernels
from weightsearch.zoo.trainer.memory_layout import MemoryLayout
from weightsearch.zoo.trainer.networks import CnnShape, initialize
from weightsearch.zoo.trainer.plan import (
    PopulationCheckpoint,
    TrainingPlan,
    dropout_keys,
    dropout_threshold,
    epoch_order,
    training_subset,
)
from weightsearch.zoo.trainer.tile import ROWS

REHEARSAL = Recipe(Optimizer.SGD, 0.1, 0.0, 0.0, Initializer.HE_NORMAL, None, Activation.RELU, 1.0, seed=0)
CHUNK_FLOATS = 32_000  # a chunk's activations; three such buffers and the weights should fit a core's own cache
OPTIMIZERS = {Optimizer.SGD: kernels.SGD, Optimizer.ADAM: kernels.ADAM, Optimizer.RMSPROP: kernels.RMSPROP}
ACTIVATIONS = {Activation.RELU: kernels.RELU, Activation.TANH: kernels.TANH}


def train_compiled(
    shape: CnnShape,
    recipes: Sequence[Recipe],
    data: ImageDataset,
    plan: TrainingPlan,
    *,
    on_epoch: Callable[[int], None] | None = None,
) -> Iterator[PopulationCheckpoint]:
    """As train_population, on the calling thread alone. The first call on a machine compiles for some ten seconds."""
    layout = MemoryLayout(shape, *data.x_train.shape[2:])
    height, width = layout.sizes[0]
    x_train, x_test = (
        np.require(np.moveaxis(x[:, :, :height, :width], 1, 3), np.float32, ["C", "W"]).reshape(len(x), -1)
        for x in (data.x_train, data.x_test)
    )  # (N, h*w*channels)
    y_train, y_test = (np.require(y, np.int64, ["C", "W"]) for y in (data.y_train, data.y_test))
    subsets = [training_subset(recipe, len(x_train)) for recipe in recipes]
    test = np.arange(len(x_test))
    weights = layout.pack(np.stack([initialize(shape, recipe) for recipe in recipes]))  # (N, Q)
    states = np.zeros((len(recipes), 2, layout.packed_size), np.float32)
    capacity = min(max(CHUNK_FLOATS // layout.sample_size // ROWS, 1), 64) * ROWS
    buffers = (np.zeros(capacity * layout.sample_size, np.float32) for _ in range(3))
    work = kernels.Workspace(
        capacity, np.zeros(layout.packed_size, np.float32), np.zeros(layout.transposed_size, np.float32), *buffers
    )

    def train(i: int, epoch: int) -> None:
        recipe, count = recipes[i], len(subsets[i])
        batches = -(-count // plan.batch_size)
        kernels.train_epoch(
            *(layout.layers, weights[i], states[i], work),
            *(x_train, y_train, epoch_order(recipe, epoch, subsets[i])),
            *(shape.classes, plan.batch_size, _hyperparameters(recipe, plan, recipe.dropout)),
            *(dropout_keys(recipe, epoch, batches, shape.layers), (epoch - 1) * batches),
        )

    def evaluate(i: int) -> tuple[float, float, float, float]:
        hyper = _hyperparameters(recipes[i], plan, dropout=0.0)
        network = (layout.layers, weights[i], work)
        train_metrics = kernels.evaluate(*network, x_train, y_train, subsets[i], shape.classes, hyper)
        return *train_metrics, *kernels.evaluate(*network, x_test, y_test, test, shape.classes, hyper)

    for epoch in range(plan.epochs + 1):
        if epoch > 0:
            for i in range(len(recipes)):
                train(i, epoch)
        if epoch in plan.checkpoint_epochs:
            metrics = np.array([evaluate(i) for i in range(len(recipes))]).T
            yield PopulationCheckpoint(epoch, layout.unpack(weights), *metrics)
        if epoch > 0 and on_epoch is not None:
            on_epoch(epoch)


def rehearse() -> bool:
    """Trains a network of one unit, so that all is compiled; False if code was not loaded from Numba's cache for it.

    What Numba has just compiled is optimized otherwise than what it loads (https://github.com/numba/numba/issues/10617)
    and gives other last bits: where these have to be the same every time, a process that compiled must start anew.
    """
    images, labels = np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.int64)
    data = ImageDataset("rehearsal", images, labels, images, labels, classes=1)
    shape, plan = CnnShape(filters=1, layers=2, classes=1), TrainingPlan(1, 1, checkpoint_epochs=(1,))
    for _ in train_compiled(shape, [REHEARSAL], data, plan):
        pass
    return not any(kernel.stats.cache_misses for kernel in (kernels.train_epoch, kernels.evaluate))


def _hyperparameters(recipe: Recipe, plan: TrainingPlan, dropout: float) -> kernels.Hyperparameters:
    return kernels.Hyperparameters(
        optimizer=OPTIMIZERS[recipe.optimizer],
        activation=ACTIVATIONS[recipe.activation],
        learning_rate=np.float32(recipe.learning_rate),
        weight_decay=np.float32(recipe.weight_decay),
        momentum=np.float32(plan.momentum),
        threshold=dropout_threshold(dropout),
        scale=np.float32(1 / (1 - dropout)),
    )
