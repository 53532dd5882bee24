"""The base network: parameter counts, sizes, initializers and the flat layout."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tensors import assert_close
from weightsearch.errors import UsageError
from weightsearch.types import Activation
from weightsearch.zoo.recipes import Initializer, Optimizer, Recipe
from weightsearch.zoo.trainer.networks import CnnShape, initialize
from weightsearch.zoo.trainer.reference import BaseCnn

RECIPE = Recipe(
    optimizer=Optimizer.SGD,
    learning_rate=0.1,
    weight_decay=0.0,
    dropout=0.0,
    initializer=Initializer.NORMAL,
    init_std=0.1,
    activation=Activation.RELU,
    train_fraction=1.0,
    seed=0,
)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (CnnShape(), 4_970),
        (CnnShape(filters=64), 75_146),
        (CnnShape(filters=5, layers=1, classes=3, channels=2), None),
        (CnnShape(filters=7, layers=4, classes=11, channels=3), None),
    ],
)
def test_parameter_count_by_formula_architecture_and_module(shape: CnnShape, expected: int | None) -> None:
    module = sum(parameter.numel() for parameter in BaseCnn(shape).parameters())
    assert shape.parameters == shape.architecture.size == module == (expected or module)
    assert len(initialize(shape, RECIPE)) == module


def test_state_dict_is_named_and_shaped_as_the_architecture_says() -> None:
    shape = CnnShape(filters=5, layers=2, classes=4, channels=3)
    state = BaseCnn(shape).state_dict()
    expected = {}
    for layer in shape.architecture.layers:
        expected[f"{layer.name}.weight"], expected[f"{layer.name}.bias"] = layer.shape, layer.shape[:1]
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_flat_weights_go_into_the_module_and_come_back() -> None:
    shape = CnnShape(filters=3, layers=2, classes=4, channels=2)
    weights = np.random.default_rng(0).normal(size=shape.parameters).astype(np.float32)
    network = BaseCnn(shape).load_flat(weights, shape)
    np.testing.assert_array_equal(network.flat(shape), weights)
    first = shape.architecture.matrices(weights)[0]  # (3, 2*9 + 1)
    np.testing.assert_array_equal(network.conv1.weight.detach().numpy()[1, 1, 2], first[1, 15:18])
    np.testing.assert_array_equal(network.conv1.bias.detach().numpy(), first[:, -1])


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (28, 28), (32, 32), (15, 31), (23, 24)])
def test_sizes_are_the_convolutions_and_the_rest_of_the_image_does_not_matter(size: tuple[int, int]) -> None:
    shape = CnnShape(filters=4, layers=2 if min(size) < 15 else 3)
    (height, width), *outputs = shape.spatial(*size)
    network = BaseCnn(shape).load_flat(initialize(shape, RECIPE), shape)
    images = torch.tensor(np.random.default_rng(0).normal(size=(2, 1, *size)), dtype=torch.float32)
    x = images[:, :, :height, :width]
    for i, output in enumerate(outputs, 1):
        x = network.get_submodule(f"conv{i}")(x)
        assert tuple(x.shape[2:]) == output
    assert_close(network(images[:, :, :height, :width]), network(images))


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UsageError, match="8x8 are too small for 3 convolutions"):
        CnnShape().spatial(8, 8)


@pytest.mark.parametrize("initializer", Initializer)
def test_initializers_have_their_published_spread(initializer: Initializer) -> None:
    shape = CnnShape(filters=64)
    weights = initialize(shape, replace(RECIPE, initializer=initializer))
    kernel = shape.architecture.matrices(weights)[1]  # (64, 576 + 1)
    assert not kernel[:, -1].any()
    kernel, fan_in, fan_out = kernel[:, :-1], 576, 576
    truncated_std = 0.1 * 0.8796  # of a normal distribution cut at two standard deviations
    std, highest = {
        Initializer.NORMAL: (0.1, math.inf),
        Initializer.TRUNCATED_NORMAL: (truncated_std, 0.2),
        Initializer.XAVIER_NORMAL: (math.sqrt(2 / (fan_in + fan_out)), math.inf),
        Initializer.HE_NORMAL: (math.sqrt(2 / fan_in), math.inf),
        Initializer.XAVIER_UNIFORM: (math.sqrt(2 / (fan_in + fan_out)), math.sqrt(6 / (fan_in + fan_out))),
        Initializer.HE_UNIFORM: (math.sqrt(2 / fan_in), math.sqrt(6 / fan_in)),
        Initializer.ORTHOGONAL: (1 / math.sqrt(fan_in), 1),
    }[initializer]
    assert kernel.std() == pytest.approx(std, rel=0.02)  # of 36,864 draws
    assert abs(kernel.mean()) < 0.02 * std
    assert np.abs(kernel).max() <= highest
    if highest < 1:
        assert np.abs(kernel).max() > 0.99 * highest
    if initializer is Initializer.ORTHOGONAL:
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(64), atol=1e-5)


def test_initial_weights_come_from_initializer_and_seed_alone() -> None:
    shape = CnnShape()
    weights = initialize(shape, RECIPE)
    others = replace(RECIPE, optimizer=Optimizer.ADAM, dropout=0.5, activation=Activation.TANH, train_fraction=0.1)
    np.testing.assert_array_equal(initialize(shape, others), weights)
    assert (initialize(shape, replace(RECIPE, seed=1)) != weights).mean() > 0.9


def test_an_initializer_without_its_standard_deviation_is_refused() -> None:
    with pytest.raises(UsageError, match="initializer normal needs init_std"):
        initialize(CnnShape(), replace(RECIPE, init_std=None))
