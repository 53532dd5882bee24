"""Population training: many runs of the base network advance together, each by its own recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from weightsearch.datasets.load import ImageDataset
from weightsearch.errors import UsageError
from weightsearch.zoo.recipes import Recipe
from weightsearch.zoo.trainer.networks import CnnShape
from weightsearch.zoo.trainer.plan import PopulationCheckpoint, TrainingPlan


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

    A run's result depends on its own recipe alone, not on the others beside it, and on one machine is the same every
    time. On `cpu` this keeps one thread busy, whatever the number of runs; on other devices the more runs the better.
    `on_epoch` is called with each epoch's number when it is done.

    Raises UsageError where shape, data and recipes do not fit each other or the device is not there.
    """
    _check(shape, recipes, data)
    if device == "cpu":
        from weightsearch.zoo.trainer.compiled import train_compiled

        return train_compiled(shape, recipes, data, plan, on_epoch=on_epoch)
    from weightsearch.devices import TRAINING_DEVICES, check_device
    from weightsearch.zoo.trainer.batched import train_batched

    check_device(device, TRAINING_DEVICES)
    return train_batched(shape, recipes, data, plan, device=device, on_epoch=on_epoch)


def _check(shape: CnnShape, recipes: Sequence[Recipe], data: ImageDataset) -> None:
    if not recipes:
        raise UsageError("a population needs at least one recipe")
    for recipe in recipes:
        if not 0 <= recipe.dropout < 1:
            raise UsageError(f"dropout must be at least 0 and below 1, got {recipe.dropout}")
    shape.spatial(*data.x_train.shape[2:])
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        if len(x) == 0 or len(x) != len(y) or x.shape[1:] != (shape.channels, *data.x_train.shape[2:]):
            expected = f"N > 0 images (N, {shape.channels}, H, W) of one size and N labels"
            raise UsageError(f"expected {expected}, got {x.shape} and {y.shape}")
        if not 0 <= y.min() <= y.max() < shape.classes:
            raise UsageError(f"expected labels 0 to {shape.classes - 1}, got {y.min()} to {y.max()}")
