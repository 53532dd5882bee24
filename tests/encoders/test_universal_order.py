"""Files that forget the order of layers are read as the same networks: by names, in the order in which layers run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tensors import assert_close
from weightsearch.checkpoints.readers.limits import natural
from weightsearch.checkpoints.state_dict import from_state_dict
from weightsearch.encoders.universal.described import describe
from weightsearch.encoders.universal.order import in_running_order
from weightsearch.encoders.universal.responses import _runner, _tensors, drawn_images
from weightsearch.zoo.wild.networks import build
from weightsearch.zoo.wild.recipes import recipes


@pytest.mark.slow
def test_networks_of_the_wild_zoo_are_described_as_they_run_though_sorted():
    """In the order of `torch.save` they stay; sorted by name they are put into it, and all numbers are the same."""
    kinds = {
        (each.family, each.variant, each.head, each.norm if each.norm == "two-way" else None, each.depth > 1): each
        for each in recipes(0, 100)
    }
    for recipe in kinds.values():
        module = build(recipe, 8 if recipe.resolution == "coarse" else 16)
        as_run = module.state_dict()
        checkpoint = from_state_dict(as_run)
        weights = checkpoint.weights[None]
        assert in_running_order(weights, checkpoint.architecture)[1] is checkpoint.architecture, recipe
        by_name = from_state_dict({name: as_run[name] for name in sorted(as_run, key=natural)})
        weights, architecture = in_running_order(by_name.weights[None], by_name.architecture)
        assert architecture.layers == checkpoint.architecture.layers, recipe
        np.testing.assert_array_equal(weights[0], checkpoint.weights)
        described = describe(by_name.weights[None], by_name.architecture)
        expected = describe(checkpoint.weights[None], checkpoint.architecture)
        np.testing.assert_array_equal(described.pooled(), expected.pooled())
        assert described.built[0] == expected.built[0]


def test_sorted_residual_nets_and_heads():
    """As timm's weights lie on the Hugging Face hub; and a head whose name comes first in the alphabet."""
    as_run = ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2",
              "layer1.0.downsample.0", "layer1.0.downsample.1", "layer1.10.conv1", "layer1.10.bn1", "fc"]  # fmt: skip
    heads = ["features.0", "features.2", "classifier"]
    plain = ["conv1", "bn1", "conv2", "bn2", "conv10", "fc1", "fc2"]
    for names in (as_run, heads, plain):
        arrays = {f"{name}.weight": np.ones(2 if "bn" in name else (2, 2)) for name in sorted(names, key=natural)}
        checkpoint = from_state_dict(arrays)
        _, architecture = in_running_order(checkpoint.weights[None], checkpoint.architecture)
        assert [layer.name for layer in architecture.layers] == names


class LargeStem(nn.Module):
    """The beginning and end of torchvision's and timm's `ResNet`, two stages of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        for stage, (inputs, outputs, stride) in enumerate([(8, 4, 1), (4, 6, 2)], 1):
            block = nn.Module()
            block.conv1, block.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
            block.conv2, block.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
            block.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.add_module(f"layer{stage}", nn.Sequential(block))
        self.fc = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for block in (self.layer1[0], self.layer2[0]):
            inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
            x = torch.relu(block.downsample(x) + inner)
        return self.fc(x.mean((2, 3)))


def test_a_stem_for_large_images_answers_as_torch_runs_it():
    torch.manual_seed(0)
    net = LargeStem().eval()
    checkpoint = from_state_dict(net.state_dict())
    run = _runner(checkpoint.architecture)
    with torch.no_grad():
        _, logits = run(_tensors(torch.from_numpy(checkpoint.weights), checkpoint.architecture))
        assert_close(logits, net(drawn_images(1, 32)), atol=1e-5, rtol=1e-5)
