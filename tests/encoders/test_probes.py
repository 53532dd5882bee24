"""Images that go through many networks at once: against PyTorch's own modules, one network at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.tensors import assert_close
from weightsearch.encoders import EncoderConfig, build_encoder
from weightsearch.encoders.invariant import chain_of
from weightsearch.encoders.probes import POOLED_SIDE, answers, image_size
from weightsearch.encoders.registry import config_from_dict
from weightsearch.types import Architecture, Layer, LayerKind, Method
from weightsearch.zoo.trainer.networks import CnnShape

CONV, DENSE = LayerKind.CONV2D, LayerKind.DENSE
POOLED = (Layer("a", CONV, (4, 2, 3, 3)), Layer("b", CONV, (5, 4, 2, 3)), Layer("c", DENSE, (3, 5)))
FLATTENED = (Layer("a", CONV, (4, 1, 3, 3)), Layer("b", DENSE, (6, 24)), Layer("c", DENSE, (3, 6), extras=()))
ALL_CONVOLUTIONS = (Layer("a", CONV, (4, 1, 3, 3), extras=()), Layer("b", CONV, (3, 4, 1, 1)))
ONE_AXIS = (Layer("a", LayerKind.CONV1D, (4, 2, 5)), Layer("b", DENSE, (3, 28)))
THREE_AXES = (Layer("a", LayerKind.CONV3D, (4, 1, 2, 2, 2)), Layer("b", DENSE, (3, 32)))
MODULES = {LayerKind.CONV1D: nn.Conv1d, LayerKind.CONV2D: nn.Conv2d, LayerKind.CONV3D: nn.Conv3d}


def modules(architecture: Architecture, weights: np.ndarray, activation: type[nn.Module], pooled: bool) -> nn.Module:
    """The network as somebody would write it."""
    made: list[nn.Module] = []
    dense_yet = False
    for layer, matrix in zip(architecture.layers, architecture.matrices(weights), strict=True):
        if layer.kind is DENSE:
            if not dense_yet and pooled:
                made.append(nn.AdaptiveAvgPool2d(1))
            if not dense_yet:
                made.append(nn.Flatten())
            dense_yet = True
            module: nn.Module = nn.Linear(layer.shape[1], layer.rows, bias=bool(layer.extras))
        else:
            module = MODULES[layer.kind](layer.shape[1], layer.rows, layer.shape[2:], bias=bool(layer.extras))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(matrix[:, : layer.weight_columns].reshape(layer.shape)))
            if layer.extras:
                module.bias.copy_(torch.from_numpy(matrix[:, -1]))
        made += [module, activation()]
    made.pop()
    return nn.Sequential(*made, *([] if dense_yet else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(
    ("layers", "shape", "pooled"),
    [
        (POOLED, (2, POOLED_SIDE + 3, POOLED_SIDE + 4), True),
        (FLATTENED, (1, 4, 5), False),  # six pixels a unit: two by three
        (ALL_CONVOLUTIONS, (1, POOLED_SIDE + 2, POOLED_SIDE + 2), False),
        (ONE_AXIS, (2, 11), False),
        (THREE_AXES, (1, 3, 3, 3), False),
    ],
    ids=["pooled", "flattened", "all-convolutions", "one-axis", "three-axes"],
)
def test_answers_are_those_of_the_networks_as_modules(
    layers: tuple[Layer, ...], shape: tuple[int, ...], pooled: bool, activation: type[nn.Module]
) -> None:
    architecture = Architecture(layers)
    size = image_size(architecture, chain_of(architecture))
    assert size is not None
    assert size.shape == shape
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((7, architecture.size)).astype(np.float32)
    images = torch.from_numpy(generator.standard_normal((5, *shape)).astype(np.float32))
    made = answers(images, torch.from_numpy(weights), architecture, torch.relu if activation is nn.ReLU else torch.tanh)
    assert made.shape == (7, 5, 3)
    for network, outputs in zip(weights, made, strict=True):
        expected = modules(architecture, network, activation, pooled)(images)
        assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_networks_without_images() -> None:
    mlp = Architecture((Layer("a", DENSE, (4, 6)), Layer("b", DENSE, (3, 4))))
    assert image_size(mlp, chain_of(mlp)) is None
    encoder = build_encoder(mlp, EncoderConfig(Method.INVARIANT, probes=3), torch.Generator())
    assert encoder.probes.shape == (6, 3)  # inputs as patches
    wide = Architecture(
        (Layer("a", CONV, (900, 9, 9, 9)), Layer("b", CONV, (900, 900, 3, 3)), Layer("c", DENSE, (3, 900)))
    )
    size = image_size(wide, chain_of(wide))
    assert size is not None
    assert size.values == 900 * 5 * 5
    assert size.products == 900 * 730 * 25 + 900 * 8101 * 9 + 3 * 901
    large = build_encoder(wide, EncoderConfig(Method.INVARIANT, probes=4), torch.Generator())
    assert large.image is None  # too many multiplications: patches


@pytest.mark.parametrize(("filters", "images"), [(16, 32), (64, 16)])
def test_large_networks_get_fewer_images(filters: int, images: int) -> None:
    architecture = CnnShape(filters).architecture
    encoder = build_encoder(architecture, EncoderConfig(Method.INVARIANT), torch.Generator())
    assert encoder.probes.shape == (images, 1, 9, 9)


def test_an_encoder_of_an_older_version_keeps_its_patches() -> None:
    config = config_from_dict({"method": "invariant"})
    assert (config.probes, config.images) == (16, False)
    assert config_from_dict({"method": "invariant", "images": True, "probes": 4}).images
