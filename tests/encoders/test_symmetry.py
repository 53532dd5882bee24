"""Twins compute what their originals do: both are run, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from weightsearch.encoders.symmetry import hidden_units, twins
from weightsearch.errors import WeightsearchError
from weightsearch.types import Activation, Architecture, Layer, LayerKind
from weightsearch.zoo.trainer.networks import CnnShape


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def base_cnn(act: type[nn.Module]) -> tuple[nn.Sequential, tuple[int, ...]]:
    sizes = [(1, 5), (5, 5), (5, 5)]
    convolutions = itertools.chain(*((nn.Conv2d(i, o, 3, stride=2), act()) for i, o in sizes))
    return nn.Sequential(*convolutions, Pool(), nn.Linear(5, 10)), (1, 17, 17)


def flattened(act: type[nn.Module]) -> tuple[nn.Sequential, tuple[int, ...]]:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), act(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, bias=False), act(), nn.Flatten(),
        nn.Linear(6 * 2 * 3, 7), act(), nn.Linear(7, 2),
    ), (3, 8, 10)  # fmt: skip


def mlp(act: type[nn.Module]) -> tuple[nn.Sequential, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(6, 9), act(), nn.Linear(9, 9, bias=False), act(), nn.Linear(9, 3)), (6,)


def series(act: type[nn.Module]) -> tuple[nn.Sequential, tuple[int, ...]]:
    return nn.Sequential(nn.Conv1d(2, 4, 3), act(), nn.Conv1d(4, 5, 2), act(), nn.Flatten(), nn.Linear(15, 2)), (2, 6)


def normed(act: type[nn.Module]) -> tuple[nn.Sequential, tuple[int, ...]]:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), act(), nn.Conv2d(4, 3, 3), act(), nn.BatchNorm2d(3), nn.Flatten(),
        nn.Linear(12, 5), act(), nn.Linear(5, 2),
    ), (1, 6, 6)  # fmt: skip


NETWORKS = [base_cnn, flattened, mlp, series, normed]
KINDS = {
    nn.Conv1d: LayerKind.CONV1D, nn.Conv2d: LayerKind.CONV2D, nn.Linear: LayerKind.DENSE, nn.BatchNorm2d: LayerKind.NORM
}  # fmt: skip
ACTIVATIONS = {None: nn.SiLU, Activation.RELU: nn.ReLU, Activation.TANH: nn.Tanh}


def extras(module: nn.Module) -> tuple[str, ...]:
    names = ("bias", "running_mean", "running_var")
    return tuple(name for name in names if getattr(module, name, None) is not None)


def layers(network: nn.Sequential) -> list[nn.Module]:
    return [module for module in network if type(module) in KINDS]


def architecture_of(network: nn.Sequential) -> Architecture:
    return Architecture(
        tuple(Layer(str(i), KINDS[type(m)], tuple(m.weight.shape), extras(m)) for i, m in enumerate(layers(network)))
    )


def run(network: nn.Sequential, weights: np.ndarray, inputs: Tensor) -> np.ndarray:
    """The outputs of the network with these flat weights `(P,)`."""
    architecture = architecture_of(network)
    matrices = architecture.matrices(weights)
    with torch.no_grad():
        for module, layer, matrix in zip(layers(network), architecture.layers, matrices, strict=True):
            values = torch.from_numpy(matrix.copy())
            own = layer.columns - len(layer.extras)
            module.weight.copy_(values[:, :own].reshape(module.weight.shape))
            for i, name in enumerate(layer.extras):
                getattr(module, name).copy_(values[:, own + i])
        return network(inputs).numpy()


@pytest.mark.parametrize("activation", list(ACTIVATIONS), ids=str)
@pytest.mark.parametrize("make", NETWORKS)
def test_twins_compute_the_same(make, activation: Activation | None):
    torch.manual_seed(0)
    network, shape = make(ACTIVATIONS[activation])
    network.double().eval()
    inputs = torch.randn(8, *shape, dtype=torch.float64)
    architecture = architecture_of(network)
    weights = np.abs(np.random.default_rng(1).normal(size=(3, architecture.size)))  # positive: variances are, too
    weights -= 0.3 if not any(isinstance(module, nn.BatchNorm2d) for module in network) else 0.0
    before = weights.copy()
    made = twins(weights, architecture, np.random.default_rng(2), activation)
    np.testing.assert_array_equal(weights, before)
    for own, twin in zip(weights, made, strict=True):
        assert np.abs(twin - own).max() > 0.1
        np.testing.assert_allclose(run(network, twin, inputs), run(network, own, inputs), rtol=1e-10, atol=1e-10)
    if activation is None:
        np.testing.assert_allclose(np.sort(made), np.sort(weights))  # only moved
    elif activation is Activation.TANH:
        np.testing.assert_allclose(np.sort(np.abs(made)), np.sort(np.abs(weights)))


def test_each_network_has_its_own_twin_and_all_orders_come():
    architecture = Architecture((Layer("a", LayerKind.DENSE, (3, 1), ()), Layer("b", LayerKind.DENSE, (1, 3), ())))
    weights = np.tile(np.array([1.0, 2, 3, 4, 5, 6]), (6000, 1))
    made = twins(weights, architecture, np.random.default_rng(0))
    rows, counts = np.unique(made, axis=0, return_counts=True)
    assert len(rows) == 6
    assert counts.min() > 850  # of 1000 expected, standard deviation 29
    assert (made[:, 3:] - made[:, :3] == 3).all()  # columns went with their rows


def test_float32_stays_and_the_base_cnn_has_blocks_of_kernels_and_channels():
    architecture = CnnShape(filters=4).architecture
    weights = np.random.default_rng(0).normal(size=(2, architecture.size)).astype(np.float32)
    assert twins(weights, architecture, np.random.default_rng(1), Activation.RELU).dtype == np.float32
    assert [hidden.block for hidden in hidden_units(architecture)] == [9, 9, 1]


def test_what_does_not_follow_one_another_is_refused():
    dense, convolution = LayerKind.DENSE, LayerKind.CONV2D
    for shapes in (
        [(dense, (4, 3)), (dense, (2, 5))],
        [(dense, (4, 3)), (dense, (2, 8))],  # only convolutions are flattened
        [(convolution, (4, 1, 3, 3)), (convolution, (4, 1, 3, 3))],  # one group a channel
        [(convolution, (4, 1, 3, 3)), (dense, (2, 6))],
    ):
        with pytest.raises(WeightsearchError, match="do not follow one another"):
            hidden_units(Architecture(tuple(Layer(str(i), kind, shape) for i, (kind, shape) in enumerate(shapes))))
    with pytest.raises(WeightsearchError, match="no units that can be permuted"):
        hidden_units(Architecture((Layer("a", dense, (4, 3)), Layer("norm", LayerKind.NORM, (4,)))))
