"""Each encoder against a slow, obvious NumPy version; parameter counts against the formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tensors import assert_close
from weightsearch.encoders import EncoderConfig, WeightInit, build_encoder, load_encoder, save_encoder
from weightsearch.encoders.base import CLIP, Dropout, centre_and_scale
from weightsearch.encoders.comvex import slide_and_max
from weightsearch.encoders.statistics import KNOTS, STATISTICS
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, Layer, LayerKind, Method
from weightsearch.zoo.trainer.networks import CnnShape

TINY = Architecture(
    (
        Layer("a", LayerKind.CONV2D, (5, 2, 3, 3)),
        Layer("b", LayerKind.DENSE, (2, 5)),  # fewer than three rows: padded
        Layer("c", LayerKind.DENSE, (4, 3), extras=()),  # no bias
    )
)


def make(method: Method, architecture: Architecture = TINY, **changes):
    return build_encoder(architecture, EncoderConfig(method, **changes), torch.Generator().manual_seed(0))


def some_weights(architecture: Architecture, n: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_normal((n, architecture.size)).astype(np.float32))


def test_comvex_conv_equals_loops_over_windows():
    encoder = make(Method.COMVEX_CONV, embedding_size=6)
    weights = some_weights(TINY, 7)
    weights[0] *= 30  # beyond the clip
    encoder.calibrate(weights)
    embedding, predicted = encoder.embed(weights)
    assert embedding.shape == (7, 18)
    assert embedding.shape[1] == encoder.embedding_width

    expected = np.zeros((7, 18))
    matrices = TINY.matrices(weights.numpy().astype(np.float64))
    for layer, matrix in enumerate(matrices):
        rows = matrix.reshape(-1, matrix.shape[-1])
        mean = np.median(rows, axis=0)
        scale = (np.percentile(rows, 75, axis=0) - np.percentile(rows, 25, axis=0)) / 1.349
        kernel = encoder.filters[layer].weight.detach().numpy()  # (E, 3 * columns)
        bias = encoder.filters[layer].bias.detach().numpy()
        for b in range(7):
            rows = np.clip((matrix[b] - mean) / scale, -CLIP, CLIP)
            if len(rows) < 3:
                rows = np.vstack([rows, np.zeros((3 - len(rows), rows.shape[1]))])
            for e in range(6):
                filtered = [(rows[i : i + 3] * kernel[e].reshape(3, -1)).sum() + bias[e] for i in range(len(rows) - 2)]
                expected[b, 6 * layer + e] = max(filtered)
    np.testing.assert_allclose(embedding.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(encoder(encoder.normalise(encoder.features(weights))).detach(), predicted, atol=1e-6)
    assert ((predicted > 0) & (predicted < 1)).all()


def standardised(weights: torch.Tensor) -> np.ndarray:
    values = weights.numpy().astype(np.float64)
    scale = (np.percentile(values, 75, axis=0) - np.percentile(values, 25, axis=0)) / 1.349
    return np.clip((values - np.median(values, axis=0)) / scale, -CLIP, CLIP)


def test_columns_that_hardly_vary_are_scaled_by_what_they_vary():
    values = torch.zeros(100, 2)
    values[:10, 0] = 5.0
    centre, scale = centre_and_scale(values)
    assert centre.tolist() == [0, 0]
    np.testing.assert_allclose(scale, [values[:, 0].numpy().std(), 1])


def dense(module: torch.nn.Linear, values: np.ndarray) -> np.ndarray:
    return values @ module.weight.detach().numpy().T + module.bias.detach().numpy()


def test_dense_encoders_equal_numpy():
    weights = some_weights(TINY, 20)
    weights[0] *= 300  # beyond the clip
    values = standardised(weights)
    assert abs(values).max() < 300
    ends = np.cumsum([layer.size for layer in TINY.layers])

    def embedded(method: Method):
        encoder = make(method, embedding_size=6, hidden_size=11, initializer=WeightInit.XAVIER)
        encoder.calibrate(weights)
        embedding, predicted = encoder.embed(weights)
        hidden = embedding.numpy().astype(np.float64)
        for layer in encoder.predictor:
            if isinstance(layer, torch.nn.Linear):
                hidden = dense(layer, hidden if layer is encoder.predictor[0] else np.maximum(hidden, 0))
        np.testing.assert_allclose(predicted, 1 / (1 + np.exp(-hidden[:, 0])), rtol=1e-4)
        assert embedding.shape == (20, encoder.embedding_width)
        return encoder, embedding

    encoder, embedding = embedded(Method.FC)
    np.testing.assert_allclose(embedding, np.maximum(dense(encoder.first, values), 0), rtol=1e-4, atol=1e-5)
    encoder, embedding = embedded(Method.FC_LINEAR)
    assert encoder.embedding_width == 18
    np.testing.assert_allclose(embedding, dense(encoder.first, values), rtol=1e-4, atol=1e-5)
    encoder, embedding = embedded(Method.COMVEX_LINEAR)
    parts = [dense(linear, part) for linear, part in zip(encoder.maps, np.split(values, ends[:-1], 1), strict=True)]
    np.testing.assert_allclose(embedding, np.concatenate(parts, 1), rtol=1e-4, atol=1e-5)


def test_slide_and_max_has_the_values_and_gradients_of_conv2d():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 9, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    ours = slide_and_max(matrix, weight, bias)
    theirs = torch.nn.functional.conv2d(matrix[:, None], weight.view(5, 1, 3, 4), bias).amax(dim=(2, 3))
    assert_close(ours, theirs)
    expected = torch.autograd.grad((theirs * outer).sum(), (weight, bias))
    gradients = torch.autograd.grad((ours * outer).sum(), (weight, bias))
    for gradient, its_expected in zip(gradients, expected, strict=True):
        assert_close(gradient, its_expected)
    with pytest.raises(ValueError, match="data"):
        slide_and_max(matrix.requires_grad_(), weight, bias)


def test_of_equal_windows_the_first_has_the_gradient_and_nan_is_no_error():
    rows = torch.tensor([1.0, 2.0, 4.0, 0.0, 1.0, 2.0, 4.0, 0.0])[:, None]  # windows 0 and 4 have the highest sum
    weight, bias = torch.ones(1, 3, requires_grad=True), torch.zeros(1, requires_grad=True)
    slide_and_max(rows[None], weight * torch.tensor([1.0, 1.0, 2.0]), bias).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0, 8.0]]
    broken = torch.full((1, 3), torch.nan, requires_grad=True)
    value = slide_and_max(rows[None], broken, bias).sum()
    value.backward()
    assert value.isnan()


def test_dropout_drops_its_share_and_scales_the_rest():
    layer, inputs = Dropout(0.3), torch.full((1001, 333), 2.0, requires_grad=True)
    torch.manual_seed(0)
    outputs = layer(inputs)
    dropped = outputs == 0
    deviation = (0.3 * 0.7 / inputs.numel()) ** 0.5
    assert abs(dropped.float().mean().item() - 0.3) < 4 * deviation
    assert dropped.float().mean(dim=0).std().item() == pytest.approx((0.3 * 0.7 / 1001) ** 0.5, rel=0.15)
    assert_close(outputs[~dropped], torch.full_like(outputs[~dropped], 2 / 0.7))
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    assert_close(gradient, outputs / 2)
    torch.manual_seed(0)
    assert torch.equal(layer(inputs), outputs)
    assert layer.eval()(inputs) is inputs
    assert Dropout(0.0)(inputs) is inputs


@pytest.mark.slow
@pytest.mark.parametrize("filters", [16, 64])
def test_first_layers_have_the_papers_number_of_parameters(filters: int):
    architecture = CnnShape(filters=filters).architecture
    sizes = [layer.size for layer in architecture.layers]
    rows = [layer.rows for layer in architecture.layers]

    def first(method: Method) -> int:
        encoder = make(method, architecture, embedding_size=64, hidden_size=128, hidden_layers=3)
        width = encoder.embedding_width
        above = width * 128 + 128 + 2 * (128 * 128 + 128) + 128 + 1
        return encoder.parameters_count - above

    assert first(Method.FC) == 128 + sum(sizes) * 128
    assert first(Method.FC_LINEAR) == 256 + sum(sizes) * 256
    assert first(Method.COMVEX_LINEAR) == sum(size * 64 + 64 for size in sizes)
    assert first(Method.COMVEX_CONV) == sum(3 * size // row * 64 + 64 for size, row in zip(sizes, rows, strict=True))
    if filters == 64:
        assert first(Method.COMVEX_LINEAR) == 4_809_600
        assert first(Method.COMVEX_CONV) == 236_224


@pytest.mark.slow
def test_initialisers_have_their_variance_and_no_bias():
    config = {"hidden_size": 300, "hidden_layers": 2}
    for initializer, expected in (
        (WeightInit.XAVIER, 1 / 300),
        (WeightInit.HE, 2 / 300),
        (WeightInit.ORTHOGONAL, 1 / 300),
    ):
        encoder = make(Method.COMVEX_CONV, initializer=initializer, **config)
        layer = encoder.predictor[3]  # the second hidden one, 300 x 300
        assert layer.weight.var().item() == pytest.approx(expected, rel=0.02)
        assert not layer.bias.any()
    identity = layer.weight @ layer.weight.T
    assert_close(identity, torch.eye(300), rtol=0, atol=1e-4)


def test_statistics_are_seven_numbers_of_each_layers_weights_and_biases():
    encoder = make(Method.STATISTICS)
    weights = some_weights(TINY, 4)
    features = encoder.features(weights).numpy()
    expected = []
    for matrix, layer in zip(TINY.matrices(weights.numpy().astype(np.float64)), TINY.layers, strict=True):
        parts = [matrix[:, :, : matrix.shape[2] - len(layer.extras)].reshape(4, -1)]
        parts += [matrix[:, :, -1]] if layer.extras else []
        for part in parts:
            expected += [*np.percentile(part, [0, 25, 50, 75, 100], axis=1), part.mean(1), part.std(1)]
    assert features.shape == (4, len(STATISTICS) * 5)
    np.testing.assert_allclose(features, np.stack(expected, 1), rtol=1e-4, atol=1e-5)
    assert make(Method.STATISTICS, CnnShape().architecture).features(torch.zeros(1, 4970)).shape == (1, 56)


def test_statistics_normalise_by_the_training_quantiles():
    from scipy.stats import norm  # half as long to import as torch

    encoder = make(Method.STATISTICS)
    features = torch.from_numpy(np.random.default_rng(1).exponential(size=(2000, 35)).astype(np.float32))
    encoder.calibrate(features)
    normal = encoder.normalise(features).numpy()
    ranks = (features.numpy().argsort(0).argsort(0) + 0.5) / 2000
    inside = (ranks > 5 / KNOTS) & (ranks < 1 - 5 / KNOTS)  # the outermost knots are far apart
    np.testing.assert_allclose(normal[inside], norm.ppf(ranks)[inside], atol=0.05)
    beyond = encoder.normalise(torch.full((1, 35), 1e9)).numpy()
    np.testing.assert_allclose(beyond, norm.ppf(1 - 0.5 / KNOTS), rtol=1e-4)


def test_statistics_do_not_see_the_order_of_units():
    architecture = CnnShape().architecture
    weights = some_weights(architecture, 3)
    permuted = weights.clone()
    order = np.random.default_rng(0).permutation(16)
    for row in range(3):
        first, second, *_ = architecture.matrices(permuted[row].numpy())
        first[:] = first[order]
        inputs = second[:, :-1].reshape(16, 16, 9)
        inputs[:] = inputs[:, order].copy()
    assert not torch.equal(weights, permuted)
    encoder = make(Method.STATISTICS, architecture)
    encoder.calibrate(encoder.features(weights))
    np.testing.assert_allclose(encoder.embed(weights)[0], encoder.embed(permuted)[0], rtol=1e-3, atol=1e-4)


def test_dropout_and_noise_are_off_when_embedding_and_one_network_is_a_batch():
    for method in Method:
        encoder = make(method, dropout=0.5, input_noise=0.5).train()
        weights = some_weights(TINY, 5)
        encoder.calibrate(encoder.features(weights))
        embedding, predicted = encoder.embed(weights)
        alone, one = encoder.embed(weights[2:3])
        np.testing.assert_allclose(alone[0], embedding[2], atol=1e-5)
        assert one.shape == (1,)
        np.testing.assert_allclose(one[0], predicted[2], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in Method if method is not Method.INVARIANT])
def test_a_step_makes_no_tensor_on_another_device(method: Method):
    """On `meta`, whose tensors cannot be mixed with the processor's, like a card's. They have no values, by which
    `invariant` sorts its batch, so that it has no test.
    """
    encoder = make(method, dropout=0.2, input_noise=0.1).to("meta").train()
    features = encoder.features_bytes // 4 if method is Method.STATISTICS else TINY.size
    encoder(torch.zeros(3, features, device="meta")).sum().backward()
    assert all(parameter.grad.device.type == "meta" for parameter in encoder.parameters())


def test_initial_parameters_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = make(Method.COMVEX_CONV).state_dict()
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == drawn  # the global generator was not touched
    second = make(Method.COMVEX_CONV).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", list(Method))
def test_saved_and_loaded_encoders_agree_to_the_bit(method: Method, tmp_path: Path):
    encoder = make(method, hidden_layers=3, initializer=WeightInit.HE)
    weights = some_weights(TINY, 5)
    encoder.calibrate(encoder.features(weights))
    save_encoder(encoder, tmp_path, {"note": "kept"})
    loaded = load_encoder(tmp_path)
    assert loaded.config == encoder.config
    assert loaded.architecture == TINY
    for ours, theirs in zip(encoder.embed(weights), loaded.embed(weights), strict=True):
        assert torch.equal(ours, theirs)


def test_an_encoder_saved_before_there_were_initialisers_still_loads(tmp_path: Path):
    encoder = make(Method.COMVEX_CONV)
    save_encoder(encoder, tmp_path, {})
    content = json.loads((tmp_path / "encoder.json").read_text())
    del content["config"]["initializer"]
    (tmp_path / "encoder.json").write_text(json.dumps(content))
    assert load_encoder(tmp_path).config == encoder.config


@pytest.mark.parametrize("damage", ["encoder.json", "encoder.safetensors"])
def test_a_damaged_encoder_is_one_line(damage: str, tmp_path: Path):
    save_encoder(make(Method.STATISTICS), tmp_path, {})
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:100])
    with pytest.raises(WeightsearchError, match="cannot be read") as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)
