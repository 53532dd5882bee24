"""Batch normalisations folded into the layers before them: against PyTorch's own modules as they are used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tensors import assert_close
from weightsearch.checkpoints.state_dict import from_state_dict
from weightsearch.encoders import EncoderConfig, build_encoder
from weightsearch.encoders.folding import fold_norms, without_norms
from weightsearch.encoders.invariant import chain_of
from weightsearch.encoders.probes import answers
from weightsearch.types import Method


def trained(*, biases: bool) -> nn.Sequential:
    """A network whose norms have seen something."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=biases), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=biases),
        nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    network(3 * torch.randn(50, 2, 9, 9) + 1)
    with torch.no_grad():
        for norm in (network[1], network[4]):
            norm.weight.copy_(torch.randn(norm.num_features))
            norm.bias.copy_(torch.randn(norm.num_features))
    return network.eval()


@pytest.mark.parametrize("biases", [True, False])
def test_a_folded_network_computes_the_same(biases: bool) -> None:
    torch.manual_seed(0)
    networks = [trained(biases=biases) for _ in range(3)]
    checkpoints = [from_state_dict(network.state_dict()) for network in networks]
    architecture = checkpoints[0].architecture
    weights = torch.stack([torch.from_numpy(checkpoint.weights) for checkpoint in checkpoints])
    folded = without_norms(architecture)
    assert [layer.shape for layer in folded.layers] == [(4, 2, 3, 3), (5, 4, 3, 3), (3, 5)]
    assert chain_of(architecture) == ()
    images = torch.randn(6, 2, 9, 9)
    made = answers(images, fold_norms(weights, architecture), folded, torch.relu)
    for network, outputs in zip(networks, made, strict=True):
        assert_close(outputs, network(images), rtol=1e-4, atol=1e-5)
    encoder = build_encoder(architecture, EncoderConfig(Method.INVARIANT, probes=3), torch.Generator())
    assert encoder.probed
    older = build_encoder(architecture, EncoderConfig(Method.INVARIANT, probes=3, images=False), torch.Generator())
    assert not older.probed  # as encoders before this one
