"""Population training against one network at a time with torch.optim, which has the same weights and batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsearch.datasets.load import ImageDataset
from weightsearch.errors import UsageError
from weightsearch.types import Activation
from weightsearch.zoo.recipes import TRAINED_ACTIVATIONS, Initializer, Optimizer, Recipe
from weightsearch.zoo.trainer import kernels
from weightsearch.zoo.trainer.batched import hash_bits, train_batched
from weightsearch.zoo.trainer.networks import CnnShape, initialize
from weightsearch.zoo.trainer.plan import PopulationCheckpoint, TrainingPlan, dropout_keys, epoch_order, training_subset
from weightsearch.zoo.trainer.population import train_population
from weightsearch.zoo.trainer.reference import train_one

RECIPE = Recipe(
    optimizer=Optimizer.SGD,
    learning_rate=0.02,
    weight_decay=1e-2,
    dropout=0.0,
    initializer=Initializer.XAVIER_UNIFORM,
    init_std=None,
    activation=Activation.TANH,
    train_fraction=1.0,
    seed=0,
)
SHAPE = CnnShape(filters=16, layers=3, classes=10)
PLAN = TrainingPlan(epochs=3, batch_size=32, checkpoint_epochs=(0, 1, 3), momentum=0.9)
Trainer = Callable[[CnnShape, Sequence[Recipe], ImageDataset, TrainingPlan], Iterator[PopulationCheckpoint]]


def batched(
    shape: CnnShape, recipes: Sequence[Recipe], data: ImageDataset, plan: TrainingPlan
) -> Iterator[PopulationCheckpoint]:
    """What trains on accelerators, on the CPU."""
    return train_batched(shape, recipes, data, plan, device="cpu")


both_trainers = pytest.mark.parametrize("train", [train_population, batched])


def images(
    shape: CnnShape = SHAPE, size: tuple[int, int] = (16, 16), n: int = 77, tests: int = 30, noise: float = 0.3
) -> ImageDataset:
    """Classes that are noisy copies of one random image each; 77 leaves a part of a batch and of a tile."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, shape.classes, n + tests)
    means = rng.normal(size=(shape.classes, shape.channels, *size))
    x = np.clip(0.5 * means[y] + noise * rng.normal(size=(n + tests, shape.channels, *size)), -1, 1).astype(np.float32)
    return ImageDataset("noisy", x[:n], y[:n], x[n:], y[n:], shape.classes)


def assert_same(
    checkpoint: PopulationCheckpoint, expected: PopulationCheckpoint, run: int, run_expected: int = 0, few: float = 0.0
) -> None:
    """Equal to float tolerance, in the weights by `few` (0 for none) but for 2 in a thousand."""
    assert checkpoint.epoch == expected.epoch
    for field in fields(PopulationCheckpoint)[1:]:
        value, wanted = getattr(checkpoint, field.name)[run], getattr(expected, field.name)[run_expected]
        assert value.dtype == wanted.dtype
        difference = np.abs(np.atleast_1d(value) - wanted)
        assert np.quantile(difference, 0.998 if few else 1) < 2e-5 * max(1, np.abs(wanted).max()), field.name
        assert difference.max() <= max(few, 2e-5), field.name


@pytest.mark.slow
@both_trainers
def test_same_weights_as_one_at_a_time_for_every_optimizer_and_activation(train: Trainer) -> None:
    rates = {Optimizer.SGD: 0.02, Optimizer.ADAM: 0.002, Optimizer.RMSPROP: 0.001}
    recipes = [
        replace(RECIPE, optimizer=optimizer, learning_rate=rates[optimizer], activation=activation, seed=seed)
        for seed, (optimizer, activation) in enumerate((o, a) for o in Optimizer for a in TRAINED_ACTIVATIONS)
    ]
    recipes.append(replace(RECIPE, train_fraction=0.25, seed=9))
    data = images()
    population = list(train(SHAPE, recipes, data, PLAN))
    assert [checkpoint.epoch for checkpoint in population] == [0, 1, 3]
    assert population[0].weights.shape == (7, SHAPE.parameters)
    for i, recipe in enumerate(recipes):
        for checkpoint, expected in zip(population, train_one(SHAPE, recipe, data, PLAN), strict=True):
            # An adaptive step divides by the gradient's size: where that is about 1e-8, as its own rounding error,
            # the step is anything up to the learning rate.
            few = 0.0 if recipe.optimizer is Optimizer.SGD else recipe.learning_rate
            assert_same(checkpoint, expected, i, few=few)
    moved = np.abs(population[-1].weights - population[0].weights).max(1)
    assert moved.min() > 1e-3


@pytest.mark.slow
@both_trainers
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (CnnShape(filters=16, layers=1, classes=10), (5, 9)),
        (CnnShape(filters=5, layers=2, classes=3, channels=3), (13, 8)),
        (CnnShape(filters=40, layers=2, classes=17, channels=2), (9, 12)),
        (CnnShape(filters=20, layers=3, classes=2), (28, 28)),
        (CnnShape(filters=33, layers=4, classes=10, channels=16), (31, 32)),
    ],
)
def test_any_shape_of_network_and_image(train: Trainer, shape: CnnShape, size: tuple[int, int]) -> None:
    data = images(shape, size, n=45)
    plan = TrainingPlan(epochs=2, batch_size=30, checkpoint_epochs=(2,), momentum=0.5)
    recipe = replace(RECIPE, learning_rate=0.05)
    (checkpoint,), (expected,) = train(shape, [recipe], data, plan), train_one(shape, recipe, data, plan)
    assert np.abs(expected.weights[0] - initialize(shape, recipe)).max() > 1e-3
    assert_same(checkpoint, expected, 0)


@pytest.mark.slow
def test_dropout_is_the_same_in_both_trainers_and_differs_from_none() -> None:
    recipes = [
        replace(RECIPE, dropout=dropout, activation=activation, seed=seed, train_fraction=fraction)
        for seed, (dropout, activation, fraction) in enumerate(
            [(0.3, Activation.RELU, 1.0), (0.6, Activation.TANH, 0.5), (0.0, Activation.TANH, 0.5)]
        )
    ]
    shape = replace(SHAPE, filters=20)  # padded to 32: the padding must not shift the draws
    for compiled, torched in zip(
        train_population(shape, recipes, images(), PLAN), batched(shape, recipes, images(), PLAN), strict=True
    ):
        for i in range(len(recipes)):
            assert_same(compiled, torched, i, i)
    (dropped,) = train_population(shape, recipes[1:2], images(), replace(PLAN, checkpoint_epochs=(3,)))
    (kept,) = train_population(
        shape, [replace(recipes[1], dropout=0.0)], images(), replace(PLAN, checkpoint_epochs=(3,))
    )
    assert np.abs(dropped.weights - kept.weights).max() > 1e-2


def test_dropout_bits_are_uniform_and_independent_of_each_other() -> None:
    keys = dropout_keys(RECIPE, 1, batches=2, layers=1)  # (2, 1, 2)
    draws = []
    for key0, key1 in keys[:, 0].view(np.int32):
        key0, key1 = torch.tensor([key0]), torch.tensor([key1])
        draws.append(hash_bits(torch.arange(200_000, dtype=torch.int32), key0, key1).numpy().view(np.uint32) / 2**32)
    draws.append(np.roll(draws[0], 1))
    draws.append(np.roll(draws[0], 16))
    assert np.abs(np.mean(draws, 1) - 0.5).max() < 4 * 12**-0.5 / 200_000**0.5
    assert np.abs(np.corrcoef(draws)[np.triu_indices(4, 1)]).max() < 4 / 200_000**0.5
    for share in (0.01, 0.3, 0.9):
        error = 4 * (share * (1 - share) / 200_000) ** 0.5
        assert np.abs((np.array(draws) < share).mean(1) - share).max() < error


@pytest.mark.slow
def test_dropout_leads_to_the_accuracies_of_one_at_a_time_training() -> None:
    """The draws differ, so only in distribution: within four standard errors of the paired differences."""
    data = images(n=400, tests=400, noise=0.9)
    recipes = [
        replace(RECIPE, dropout=dropout, activation=activation, optimizer=optimizer, learning_rate=rate, seed=seed)
        for optimizer, rate in ((Optimizer.ADAM, 0.004), (Optimizer.SGD, 0.02))
        for dropout in (0.2, 0.5)
        for activation in TRAINED_ACTIVATIONS
        for seed in range(4)
    ]
    plan = TrainingPlan(epochs=5, batch_size=32, checkpoint_epochs=(5,), momentum=0.9)
    (population,) = train_population(SHAPE, recipes, data, plan)
    singles = [next(train_one(SHAPE, recipe, data, plan)) for recipe in recipes]
    for metric in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        ours, theirs = getattr(population, metric), np.concatenate([getattr(single, metric) for single in singles])
        differences = ours - theirs
        assert abs(differences.mean()) < 4 * differences.std() / len(recipes) ** 0.5, metric
        assert ours.std() == pytest.approx(theirs.std(), rel=0.5), metric
    assert 0.3 < population.test_accuracy.mean() < 0.9  # neither untrained nor too easy to tell


@pytest.mark.slow
@both_trainers
def test_a_run_depends_on_its_recipe_alone_and_a_diverged_one_disturbs_nobody(train: Trainer) -> None:
    recipes = [
        replace(RECIPE, dropout=0.2, seed=1, activation=Activation.RELU),
        replace(RECIPE, learning_rate=1e30, seed=2),
        replace(RECIPE, optimizer=Optimizer.ADAM, learning_rate=0.001, dropout=0.4, seed=3, train_fraction=0.5),
    ]
    together = list(train(SHAPE, recipes, images(), PLAN))
    assert not np.isfinite(together[-1].weights[1]).all()
    assert not np.isfinite(together[-1].train_loss[1])
    assert np.isfinite(together[-1].weights[[0, 2]]).all()
    for i in (0, 2):
        for checkpoint, alone in zip(together, train(SHAPE, recipes[i : i + 1], images(), PLAN), strict=True):
            assert_same(checkpoint, alone, i)


@pytest.mark.slow
@both_trainers
def test_twice_the_same_bit_for_bit(train: Trainer) -> None:
    recipes = [replace(RECIPE, dropout=0.2, seed=seed) for seed in range(2)]
    for one, two in zip(train(SHAPE, recipes, images(), PLAN), train(SHAPE, recipes, images(), PLAN), strict=True):
        for field in fields(PopulationCheckpoint):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


@pytest.mark.slow
def test_every_epoch_is_reported_and_checkpoints_do_not_change_afterwards() -> None:
    done: list[int] = []
    checkpoints = list(train_population(SHAPE, [RECIPE], images(), PLAN, on_epoch=done.append))
    assert done == [1, 2, 3]
    np.testing.assert_array_equal(checkpoints[0].weights[0], initialize(SHAPE, RECIPE))
    assert (checkpoints[1].weights != checkpoints[2].weights).any()


def test_subset_and_batches_come_from_the_seed() -> None:
    recipe = replace(RECIPE, train_fraction=0.25)
    subset = training_subset(recipe, 1000)
    assert len(subset) == len(set(subset.tolist())) == 250
    assert (training_subset(replace(recipe, seed=1), 1000) != subset).any()
    first, second = (epoch_order(recipe, epoch, subset) for epoch in (1, 2))
    np.testing.assert_array_equal(np.sort(first), subset)
    np.testing.assert_array_equal(np.sort(second), subset)
    assert (first != second).any()
    assert len(training_subset(replace(recipe, train_fraction=1e-9), 1000)) == 1


@pytest.mark.slow
def test_compiled_tanh_is_as_exact_as_float32() -> None:
    x = np.concatenate([np.linspace(-12, 12, 10_001), np.geomspace(1e-20, 1, 1000), [np.inf, -np.inf]]).astype(
        np.float32
    )
    z, slope = x.copy(), np.empty_like(x)
    hyper = kernels.Hyperparameters(0, kernels.TANH, *np.zeros(3, np.float32), np.uint32(0), np.float32(1))
    kernels._activate(z, slope, hyper, 0, np.uint32(0), np.uint32(0))
    np.testing.assert_allclose(z, np.tanh(x.astype(np.float64)), rtol=5e-7)
    np.testing.assert_allclose(slope, 1 - np.tanh(x.astype(np.float64)) ** 2, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": []}, "at least one recipe"),
        ({"recipes": [replace(RECIPE, dropout=1.0)]}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"shape": replace(SHAPE, channels=3)}, r"expected N > 0 images \(N, 3, H, W\).*got \(77, 1, 16, 16\)"),
        ({"shape": replace(SHAPE, layers=4)}, "16x16 are too small for 4 convolutions"),
        ({"shape": replace(SHAPE, classes=9)}, "expected labels 0 to 8, got 0 to 9"),
        (
            {"data": replace(images(), x_test=np.zeros((0, 1, 16, 16)), y_test=np.zeros(0, int))},
            "expected N > 0 images",
        ),
        ({"device": "no-such-device"}, "--device no-such-device: choose"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(change: dict, message: str) -> None:
    arguments = {"shape": SHAPE, "recipes": [RECIPE], "data": images(), "plan": PLAN, **change}
    with pytest.raises(UsageError, match=message):
        train_population(**arguments)


@pytest.mark.parametrize(
    "plan", [{"epochs": -1}, {"batch_size": 0}, {"checkpoint_epochs": (2, 1)}, {"checkpoint_epochs": (0, 4)}]
)
def test_impossible_plans_are_refused(plan: dict) -> None:
    with pytest.raises(UsageError):
        replace(PLAN, **plan)


def test_compiled_code_older_than_its_sources_is_removed(tmp_path: Path):
    (tmp_path / "__pycache__").mkdir()
    cached = {age: tmp_path / "__pycache__" / f"kernels.evaluate-{age}.py311.nbi" for age in (100, 300)}
    for name in ("kernels", "tile", "memory_layout"):
        (tmp_path / f"{name}.py").touch()
        os.utime(tmp_path / f"{name}.py", (50, 50))
    for age, path in cached.items():
        path.touch()
        os.utime(path, (age, age))
    other = tmp_path / "__pycache__" / "tile.py311.nbi"
    other.touch()
    kernels._drop_stale_cache(tmp_path)
    assert all(path.exists() for path in cached.values())
    os.utime(tmp_path / "memory_layout.py", (200, 200))
    kernels._drop_stale_cache(tmp_path)
    assert [path.exists() for path in (*cached.values(), other)] == [False, True, True]
