"""The invariant encoder: against loops over a network's own patches, and against twins that compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tensors import assert_close
from weightsearch.encoders import EncoderConfig, activation_code, build_encoder
from weightsearch.encoders.invariant import PROBE_SCALE, SINGULAR_VALUES, Invariant, canonical, chain_of
from weightsearch.encoders.symmetry import twins
from weightsearch.types import Activation, Architecture, Layer, LayerKind, Method
from weightsearch.zoo.recipes import TRAINED_ACTIVATIONS
from weightsearch.zoo.trainer.networks import CnnShape

CNN = Architecture(
    (
        Layer("a", LayerKind.CONV2D, (4, 1, 2, 2)),
        Layer("b", LayerKind.CONV2D, (5, 4, 3, 1)),
        Layer("c", LayerKind.DENSE, (3, 10)),  # flattened: two pixels a unit
        Layer("d", LayerKind.DENSE, (2, 3), extras=()),
    )
)
MLP = Architecture((Layer("a", LayerKind.DENSE, (20, 6)), Layer("b", LayerKind.DENSE, (3, 20))))
RESIDUAL = Architecture((Layer("a", LayerKind.DENSE, (4, 6)), Layer("b", LayerKind.DENSE, (3, 9))))
NORM = ("bias", "running_mean", "running_var")
NORMED = Architecture(
    (
        Layer("a", LayerKind.CONV2D, (4, 1, 3, 3), extras=()),
        Layer("a_norm", LayerKind.NORM, (4,), NORM),
        Layer("b", LayerKind.CONV2D, (5, 4, 3, 3)),
        Layer("b_norm", LayerKind.NORM, (5,), NORM),
        Layer("c", LayerKind.DENSE, (3, 5)),
    )
)
FUNCTIONS = {Activation.RELU: lambda x: np.maximum(x, 0), Activation.TANH: np.tanh}


def make(architecture: Architecture, **changes) -> Invariant:
    config = EncoderConfig(Method.INVARIANT, hidden_layers=1, hidden_size=16, **{"probes": 3, **changes})
    return build_encoder(architecture, config, torch.Generator().manual_seed(0)).eval()


def some_weights(architecture: Architecture, n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, architecture.size)).astype(np.float32))


def codes(activation: Activation | None, n: int) -> torch.Tensor:
    return torch.full((n,), activation_code(activation))


@pytest.mark.parametrize("activation", TRAINED_ACTIVATIONS)
@pytest.mark.parametrize("architecture", [CNN, MLP], ids=["cnn", "mlp"])
def test_probes_go_through_the_layers_as_patches_of_patches(architecture: Architecture, activation: Activation):
    encoder = make(architecture, images=False)
    weights = some_weights(architecture, 4)
    matrices = [matrix.astype(np.float64) for matrix in architecture.matrices(weights.numpy())]
    probes = (encoder.probes.detach().numpy() * PROBE_SCALE).reshape(-1, encoder.patches[0], 3)

    def units(network: int, depth: int, patch: int, probe: int) -> np.ndarray:
        """What layer `depth` makes of its patch number `patch`, by recursion."""
        layer, matrix = architecture.layers[depth], matrices[depth][network]
        if depth == 0:
            inputs = probes[:, patch, probe]
        else:
            block = encoder.chain[depth - 1].block
            # A patch of the layer takes one patch of the layer before for each position in it.
            parts = [units(network, depth - 1, i * encoder.patches[depth] + patch, probe) for i in range(block)]
            inputs = FUNCTIONS[activation](np.stack(parts, axis=1)).ravel()  # unit by unit
        own = layer.columns - len(layer.extras)
        return matrix[:, :own] @ inputs + matrix[:, own:].sum(axis=1)

    last = len(architecture.layers) - 1
    outputs = np.stack(
        [np.stack([units(n, last, 0, probe) for probe in range(3)], axis=1).ravel() for n in range(4)]
    )  # (B, rows * probes)
    made = encoder._probe(weights, getattr(torch, activation)).detach().numpy()
    np.testing.assert_allclose(made, np.sign(outputs) * np.log1p(np.abs(outputs)), rtol=1e-4, atol=1e-5)


def test_summaries_are_moments_spectra_and_the_biases_statistics():
    encoder, weights = make(RESIDUAL), some_weights(RESIDUAL, 3)
    assert encoder.chain == ()  # nine inputs do not come from four units: summaries alone, of the weights as they are
    made = encoder.features(weights)[:, : encoder.summary_width].numpy()
    for network in range(3):
        expected: list[float] = []
        for matrix in RESIDUAL.matrices(weights[network].numpy().astype(np.float64)):
            own, bias = matrix[:, :-1], matrix[:, -1]
            z = (own - own.mean()) / own.std()
            expected += [own.mean(), own.std(), (z**3).mean(), (z**4).mean(), np.abs(own).mean(), own.min(), own.max()]
            values = np.linalg.svd(own, compute_uv=False)
            share = values**2 / (values**2).sum()
            expected += [np.log(np.linalg.norm(own)), 1 / share.max(), -(share * np.log(share)).sum()]
            expected += [1 / (share**2).sum(), *np.log(values / values.sum() + 1e-3)]
            expected += [*np.quantile(bias, [0, 0.25, 0.5, 0.75, 1]), bias.mean(), bias.std()]
        np.testing.assert_allclose(made[network], expected, rtol=1e-4, atol=1e-5)
    assert SINGULAR_VALUES >= 4


@pytest.mark.parametrize("activation", [*TRAINED_ACTIVATIONS, None])
@pytest.mark.parametrize("images", [True, False], ids=["images", "patches"])
@pytest.mark.parametrize(
    "architecture",
    [CNN, MLP, CnnShape(16).architecture, RESIDUAL, NORMED],
    ids=["cnn", "mlp", "v1", "residual", "normed"],
)
def test_twins_get_the_same_embedding_and_prediction(
    architecture: Architecture, images: bool, activation: Activation | None
):
    encoder, weights = make(architecture, images=images), some_weights(architecture, 20) * 0.3
    encoder.calibrate(encoder.features(some_weights(architecture, 300, seed=9) * 0.3, codes(activation, 300)))
    if architecture is RESIDUAL:  # any order of rows and of columns, since it is not known which belong together
        rows, columns = np.random.default_rng(1).permutation(4), np.random.default_rng(2).permutation(6)
        twin = weights.numpy().copy()
        matrix = architecture.matrices(twin)[0]
        matrix[:, :, :6] = matrix[:, :, columns]
        matrix[...] = matrix[:, rows]
    else:
        twin = twins(weights.numpy(), architecture, np.random.default_rng(3), activation)
    assert not np.allclose(twin, weights, atol=1e-2)
    embedding, predicted = encoder.embed(weights, codes(activation, 20))
    its, its_predicted = encoder.embed(torch.from_numpy(twin), codes(activation, 20))
    drift = (its - embedding).norm(dim=1) / embedding.norm(dim=1)
    assert drift.max() < 1e-4
    assert_close(its_predicted, predicted, rtol=1e-4, atol=1e-6)
    others = (embedding[1:] - embedding[:-1]).norm(dim=1) / embedding[1:].norm(dim=1)
    assert others.min() > 1e-2  # and other networks another one


@pytest.mark.parametrize("activation", TRAINED_ACTIVATIONS)
def test_a_canonical_network_computes_the_same(activation: Activation):
    weights = some_weights(MLP, 5)
    made = canonical(weights, MLP, chain_of(MLP), codes(activation, 5))
    x = np.random.default_rng(1).standard_normal(6)
    for before, after in zip(weights.numpy(), made.numpy(), strict=True):
        outputs = []
        for network in (before, after):
            first, second = MLP.matrices(network)
            hidden = FUNCTIONS[activation](first @ np.append(x, 1))
            outputs.append(second @ np.append(hidden, 1))
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    rows = MLP.matrices(made.numpy())[0]
    if activation is Activation.RELU:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1, rtol=1e-5)
    else:
        assert (rows.sum(axis=2) >= 0).all()


def test_a_network_of_unknown_activation_lies_between_its_two_possible_places():
    encoder, weights = make(MLP), some_weights(MLP, 3)
    encoder.calibrate(encoder.features(weights, codes(Activation.RELU, 3)))
    one, other = (encoder.embed(weights, codes(activation, 3))[0] for activation in TRAINED_ACTIVATIONS)
    assert_close(encoder.embed(weights)[0], (one + other) / 2)
    mixed = torch.tensor([activation_code("relu"), activation_code("gelu"), activation_code("tanh")])
    found, _ = encoder.embed(weights, mixed)
    assert_close(found, torch.stack([one[0], (one[1] + other[1]) / 2, other[2]]))


def test_large_networks_share_patches():
    wide = Architecture(
        (
            Layer("a", LayerKind.CONV2D, (64, 3, 3, 3)),
            *(Layer(name, LayerKind.CONV2D, (64, 64, 3, 3)) for name in "bcde"),
            Layer("f", LayerKind.DENSE, (10, 64)),
        )
    )
    encoder = make(wide, probes=16, images=False)
    assert max(encoder.patches) < 9**4  # what one probe would take if each position had a patch of its own
    weights = some_weights(wide, 2) * 0.1
    embedding, _ = encoder.embed(weights, codes(Activation.RELU, 2))
    assert torch.isfinite(embedding).all()
    twin = torch.from_numpy(twins(weights.numpy(), wide, np.random.default_rng(0), Activation.RELU))
    assert_close(
        encoder._probe(weights, torch.relu),
        encoder._probe(twin, torch.relu),
        rtol=1e-3,
        atol=1e-3,
    )


def test_an_unknown_activation_promises_permutations_only():
    encoder, weights = make(CNN), some_weights(CNN, 40)
    encoder.calibrate(encoder.features(weights))
    rng = np.random.default_rng(0)
    permuted = torch.from_numpy(twins(weights.numpy(), CNN, rng))
    rescaled = torch.from_numpy(twins(weights.numpy(), CNN, rng, Activation.RELU))
    unknown, relu = codes(None, 40), codes(Activation.RELU, 40)
    as_unknown, as_relu = (encoder.embed(weights, known)[0] for known in (unknown, relu))
    assert_close(encoder.embed(permuted, unknown)[0], as_unknown, rtol=1e-3, atol=1e-4)
    assert_close(encoder.embed(rescaled, relu)[0], as_relu, rtol=1e-3, atol=1e-4)
    assert (encoder.embed(rescaled, unknown)[0] - as_unknown).abs().max() > 0.01


def test_where_the_activation_is_unknown_units_stay_as_they_are():
    weights = some_weights(CNN, 5)
    encoder = make(CNN)
    assert torch.equal(canonical(weights, CNN, encoder.chain, codes(None, 5)), weights)
    assert not torch.equal(canonical(weights, CNN, encoder.chain, codes(Activation.RELU, 5)), weights)
