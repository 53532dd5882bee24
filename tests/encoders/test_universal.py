"""The encoder of all architectures: permuted twins are one, batch norms fold as torch runs them, trees as they grew."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.tensors import assert_close
from weightsearch.checkpoints.state_dict import from_state_dict
from weightsearch.encoders.universal.constructions import constructions
from weightsearch.encoders.universal.damage import DamageDetector
from weightsearch.encoders.universal.described import Described, concatenate, describe
from weightsearch.encoders.universal.encoder import UniversalEncoder, load_universal
from weightsearch.encoders.universal.features import TOKEN, WHOLE, _folded
from weightsearch.encoders.universal.graph import graph
from weightsearch.encoders.universal.responses import CLOUDS, RESPONSE, STROKES, _runner, _tensors, drawn_images
from weightsearch.encoders.universal.trees import Trees
from weightsearch.errors import WeightsearchError
from weightsearch.training.universal import UniversalSettings, fit_detector, fit_member, fit_trees
from weightsearch.zoo.wild.networks import build
from weightsearch.zoo.wild.recipes import Family, recipes


def checkpoint(module: nn.Module):
    return from_state_dict(module.state_dict())


def described(module: nn.Module) -> Described:
    found = checkpoint(module)
    return describe(found.weights[None], found.architecture)


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
    return net.eval()


def permuted(net: nn.Sequential, seed: int = 1) -> nn.Sequential:
    """The same function with its hidden units in another order; written for `cnn` alone."""
    rng = np.random.default_rng(seed)
    twin = copy.deepcopy(net)
    a, b, c = (torch.from_numpy(rng.permutation(n)) for n in (6, 8, 12))
    with torch.no_grad():
        for place, order in ((0, a), (3, b)):
            twin[place].weight.copy_(net[place].weight[order])
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(twin[place + 1], name).copy_(getattr(net[place + 1], name)[order])
        twin[0].bias.copy_(net[0].bias[a])
        twin[3].weight.copy_(twin[3].weight[:, a])
        columns = (b[:, None] * 16 + torch.arange(16)).flatten()
        twin[7].weight.copy_(net[7].weight[c][:, columns])
        twin[7].bias.copy_(net[7].bias[c])
        twin[9].weight.copy_(net[9].weight[:, c])
    return twin


def test_permuted_twins_are_described_alike_and_others_are_not():
    net = cnn()
    twin = permuted(net)
    images = torch.randn(4, 1, 8, 8)
    assert_close(net(images), twin(images))  # or it would be no twin
    one, other, stranger = (described(module).pooled() for module in (net, twin, cnn(seed=3)))
    np.testing.assert_allclose(one, other, atol=2e-4)
    assert np.abs(one - stranger).max() > 0.1


def test_a_batch_norm_folds_as_torch_runs_it():
    net = cnn()
    found = checkpoint(net)
    links = graph(found.architecture)
    first, second = links.nodes[:2]
    weights = torch.from_numpy(found.weights[None])
    images = torch.randn(3, 1, 8, 8)
    expected = net[:2](images)
    matrix, bias = _folded(weights, found.architecture, links, first)
    ours = nn.functional.conv2d(images, matrix[0].view(6, 1, 3, 3), bias[0])
    assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    hidden = torch.relu(expected)
    matrix, bias = _folded(weights, found.architecture, links, second)
    ours = nn.functional.conv2d(hidden, matrix[0].view(8, 6, 3, 3), bias[0])
    assert_close(ours, net[3:5](hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(Family))
def test_every_family_is_described_in_finite_numbers(family: Family):
    recipe = next(recipe for recipe in recipes(0, 200) if recipe.family is family)
    torch.manual_seed(0)
    module = build(recipe, 8 if recipe.resolution == "coarse" else 16)
    found = described(module)
    assert found.layers.shape[1] == len(TOKEN)
    assert found.whole.shape == (1, len(WHOLE) + len(RESPONSE))
    assert np.isfinite(found.layers).all()
    assert np.isfinite(found.whole).all()
    assert 1 / found.chance[0] == pytest.approx(recipe.classes)
    assert found.whole[0, -1] == 1  # it could be run


def test_the_head_is_found_though_names_are_sorted():
    torch.manual_seed(0)
    state = {
        "classifier.weight": torch.randn(7, 16), "classifier.bias": torch.randn(7),
        "encoder.0.weight": torch.randn(16, 9), "encoder.0.bias": torch.randn(16),
        "encoder.1.weight": torch.randn(16, 16), "encoder.1.bias": torch.randn(16),
    }  # fmt: skip
    assert graph(from_state_dict(state).architecture).classes == 7


def test_a_layer_in_context_stands_between_its_neighbours():
    networks = [described(cnn()), described(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))]
    rows, width = concatenate(networks).in_context(), len(TOKEN)
    first, last = networks
    np.testing.assert_array_equal(rows[1, :width], first.layers[1])
    np.testing.assert_array_equal(rows[1, width : 2 * width], first.layers[0])
    np.testing.assert_array_equal(rows[1, 2 * width : 3 * width], first.layers[2])
    assert not rows[[0, 4], width : 2 * width].any()  # nothing is before a network's first layer
    assert not rows[[3, 5], 2 * width : 3 * width].any()
    np.testing.assert_allclose(rows[5, 3 * width : 4 * width], last.layers.mean(0), atol=1e-6)
    np.testing.assert_array_equal(rows[5, 4 * width :], last.whole[0])


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "both"), [(nn.RNN, True), (nn.GRU, False), (nn.LSTM, True)])
def test_a_recurrent_net_answers_as_torch_runs_it(cell, both: bool):
    torch.manual_seed(0)
    recurrent = cell(8, 6, 2, batch_first=True, bidirectional=both)
    head = nn.Linear(6 * (1 + both), 5)
    module = nn.ModuleDict({"rnn": recurrent, "fc": head})
    found = checkpoint(module)
    hidden, logits = _runner(found.architecture)(_tensors(torch.from_numpy(found.weights), found.architecture))
    with torch.no_grad():
        states, _ = recurrent(drawn_images(1, 8)[:, 0])
        assert_close(hidden, states[:, -1])
        assert_close(logits, head(states[:, -1]))


def test_strokes_are_drawn_and_moved_a_little():
    images = drawn_images(1, 8)
    strokes, moved = images[CLOUDS : CLOUDS + STROKES], images[CLOUDS + STROKES :]
    for one, other in zip(strokes, moved, strict=True):
        assert not torch.equal(one, other)
        alike = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert alike > 0.5
    others = torch.corrcoef(strokes.flatten(1)) - torch.eye(STROKES)
    assert others.max() < 0.95  # no two are the same


@pytest.mark.slow
def test_each_family_is_built_of_something_of_its_own():
    built: dict[Family, list[frozenset[str]]] = {kind: [] for kind in Family}
    for recipe in recipes(0, 60):
        module = build(recipe, 8 if recipe.resolution == "coarse" else 16)
        built[recipe.family].append(constructions(checkpoint(module).architecture))
    for family, networks in built.items():
        others = frozenset().union(*(words for kind, sets in built.items() if kind is not family for words in sets))
        assert np.mean([not words <= others for words in networks]) > 0.9


def test_constructions_have_no_sizes_and_no_names():
    narrow, wide = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), nn.ModuleDict({"a": nn.Linear(9, 5)})
    wide["b"] = nn.Linear(5, 7)
    assert constructions(checkpoint(narrow).architecture) == constructions(checkpoint(wide).architecture)
    assert "depthwise conv2d, biased, read by the next" in constructions(
        checkpoint(nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1))).architecture
    )


@pytest.mark.slow
def test_what_is_built_otherwise_is_unknown(learned):
    encoder, many, _ = learned
    assert np.mean(encoder.know(many).strangeness > 1) <= 0.05
    torch.manual_seed(0)
    assert encoder.know(described(nn.Sequential(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 5)))).strangeness[0] > 1


def test_one_suspicious_layer_is_enough():
    def stump(feature: int) -> Trees:
        nodes = (np.array([feature, -1, -1], np.int32), np.array([0.5, 0, 0], np.float32))
        return Trees(*nodes, np.array([1, -1, -1], np.int32), np.array([2, -1, -1], np.int32),
                     np.array([0, -2, 3], np.float32), np.array([0], np.int32))  # fmt: skip

    is_head = TOKEN.index("is_head")
    networks = concatenate([described(cnn()), described(cnn(1))])
    pooled = networks.pooled()
    beyond = stump(TOKEN.index("log_rows"))  # of the mean over layers, so true of both networks
    detector = DamageDetector(beyond, stump(is_head), 4.0, 2.0)
    np.testing.assert_allclose(detector.suspicion(networks, pooled), np.exp(1), rtol=1e-6)
    detector = DamageDetector(beyond, stump(is_head), 4.0, 3.5)
    assert (detector.suspicion(networks, pooled) < 1).all()


def test_vectors_alone_are_one_line():
    found = from_state_dict({"scale": torch.randn(4)})
    with pytest.raises(WeightsearchError, match="no layer with a matrix"):
        describe(found.weights[None], found.architecture)


def test_networks_taken_apart_and_together():
    a, b = described(cnn()), described(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    both = concatenate([a, b, a])
    np.testing.assert_array_equal(both.pooled()[[2, 1]], both.take(np.array([0, 1])).pooled())
    np.testing.assert_array_equal(both.take(np.array([1])).layers, b.layers)


@pytest.fixture(scope="module")
def learned():
    """An encoder of features that tell the accuracy, some of which are those of `cnn`'s twins."""
    parts = [described(cnn(seed)) for seed in range(60)]
    many = concatenate(parts)
    pooled = many.pooled()
    column = int(np.argmax(pooled.std(0)))
    values = 0.2 + 0.8 / (1 + np.exp(-(pooled[:, column] - pooled[:, column].mean()) / pooled[:, column].std()))
    runs = np.arange(60)
    member = fit_member(pooled, many.chance, values, runs, UniversalSettings(epochs=20), seed=0)
    trees = fit_trees(pooled, (values - 0.2) / 0.8, _few(), seed=0)
    layer = fit_trees(many.in_context(), np.tile([0.0, 0.0, 0.0, 1.0], 60), _few(), seed=0, classify=True)
    damage = DamageDetector(trees, layer, 0.5, 0.7)
    return UniversalEncoder([member], trees, fit_detector(many, many, runs, axes=10), damage), many, values


def _few():
    from weightsearch.training.universal import TreeSettings

    return TreeSettings(count=20, leaf_networks=3)


@pytest.mark.slow
def test_damage_is_told_of_known_kinds_alone(learned):
    encoder, many, _ = learned
    assert (encoder.know(many).damage > 1).any()
    strange = np.empty(len(many), object)
    strange[:] = [frozenset({"a construction of no known network"})] * len(many)
    known = encoder.know(replace(many, built=strange))
    assert (known.strangeness > 1).all()
    assert (known.damage == 0).all()


@pytest.mark.slow
def test_an_encoder_written_and_read_says_the_same(learned, tmp_path):
    encoder, many, values = learned
    known = encoder.know(many)
    assert np.corrcoef(known.predicted, values)[0, 1] > 0.5
    np.testing.assert_allclose(np.linalg.norm(known.embedding, axis=1), 1, rtol=1e-5)
    encoder.save(tmp_path, {"seed": 5})
    again = load_universal(tmp_path)
    for name, array in vars(again.know(many)).items():
        np.testing.assert_allclose(array, getattr(known, name), rtol=1e-5, atol=1e-6)
    assert again.notes["seed"] == 5
    (tmp_path / "encoder.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsearchError, match="the encoder cannot be read"):
        load_universal(tmp_path)


@pytest.mark.slow
def test_permuted_twins_have_the_same_embedding(learned):
    encoder, _, _ = learned
    net = cnn(seed=70)
    one, other = (encoder.know(described(module)) for module in (net, permuted(net)))
    np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)


@pytest.mark.slow
def test_trees_as_lightgbm_and_scikit_learn_ask_them():
    import lightgbm
    from sklearn.ensemble import RandomForestRegressor

    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 5)).astype(np.float32)
    values = features[:, 0] * features[:, 1] + rng.normal(size=200) / 10
    booster = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(features, values), 20)
    ours = Trees.from_lightgbm(booster)
    np.testing.assert_allclose(ours.predict(features), booster.predict(features), atol=1e-5)
    again = Trees.from_arrays(ours.arrays("t."), "t.")
    np.testing.assert_array_equal(again.predict(features), ours.predict(features))
    forest = RandomForestRegressor(10, random_state=0).fit(features, values)
    np.testing.assert_allclose(Trees.from_forest(forest).predict(features), forest.predict(features), atol=1e-5)
