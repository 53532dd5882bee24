"""The peer of benchmarks/peers.py, where its package is installed: it must not see the order of units."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsearch.encoders.symmetry import twins
from weightsearch.zoo.trainer.networks import CnnShape

pytest.importorskip("nfn")


def test_the_peer_is_invariant_to_permutations_and_counts_its_parameters():
    path = Path(__file__).parents[2] / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    assert spec is not None
    assert spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    architecture = CnnShape(filters=6).architecture
    torch.manual_seed(0)
    network = peers.Nfn(architecture, [(0.1, 0.1)] * 4).eval()
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(3, architecture.size)).astype(np.float32)
    with torch.no_grad():
        own = network(torch.from_numpy(weights)).numpy()
        twin = network(torch.from_numpy(twins(weights, architecture, generator))).numpy()
        other = network(torch.from_numpy(weights[:, ::-1].copy())).numpy()
    np.testing.assert_allclose(twin, own, atol=1e-5)
    assert np.abs(other - own).min() > 1e-4
    kernels, biases = network.parts(torch.from_numpy(weights)).weights, network.parts(torch.from_numpy(weights)).biases
    assert sum(part[0].numel() for part in (*kernels, *biases)) == architecture.size
