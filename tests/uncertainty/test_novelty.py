"""Descriptions of layers: what they leave alone, what they notice, and who is unlike everything known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weightsearch.encoders.symmetry import twins
from weightsearch.errors import WeightsearchError
from weightsearch.training.represent import describe_zoo
from weightsearch.training.summary import TrainSummary
from weightsearch.types import Architecture, Layer, LayerKind
from weightsearch.uncertainty.calibration import FAMILIAR
from weightsearch.uncertainty.novelty import EXTRA, WEIGHTS, Familiar, describe_layers, far, slices
from weightsearch.zoo.store import Zoo


def one_layer(rows: int = 6, columns: int = 9) -> Architecture:
    return Architecture((Layer("fc", LayerKind.DENSE, (rows, columns)),))


def test_each_number_is_its_formula():
    architecture = one_layer()
    matrix = np.random.default_rng(0).normal(0.1, 2.0, (6, 10)).astype(np.float32)
    (found,) = describe_layers(matrix.reshape(1, -1), architecture)
    weights, bias = matrix[:, :9].astype(float), matrix[:, 9].astype(float)
    size = np.sqrt((weights**2).mean())
    scaled = weights / size
    singular = np.linalg.svd(weights / np.linalg.norm(weights), compute_uv=False)
    expected = [
        np.log(size),
        scaled.mean(),
        np.log(np.abs(scaled).mean()),
        np.log((singular**4).sum() ** (1 / 2)),
        np.log((singular**8).sum() ** (1 / 2) / (singular**4).sum() ** (1 / 2)),
        np.linalg.norm(scaled, axis=1).std() / 3,
        np.linalg.norm(scaled, axis=0).std() / np.sqrt(6),
        np.log(np.sqrt((bias**2).mean()) / size + 1e-3),
        np.arcsinh(bias.mean() / size),
    ]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_permuted_twin_has_the_same_description(zoo: Zoo):
    weights = zoo.weights(np.arange(40, 48))
    permuted = twins(weights, zoo.architecture, np.random.default_rng(0))
    assert np.abs(permuted - weights).max() > 0.01
    assert describe_layers(permuted, zoo.architecture) == pytest.approx(
        describe_layers(weights, zoo.architecture), abs=1e-4
    )


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30, 3e38])
def test_any_finite_weights_have_a_finite_description(factor: float):
    weights = np.random.default_rng(0).uniform(-1, 1, (3, 60)).astype(np.float32) * np.float32(factor)
    assert np.isfinite(describe_layers(weights, one_layer())).all()


def test_the_changed_layer_is_named_and_how(zoo: Zoo):
    descriptions = describe_zoo(zoo, np.arange(len(zoo.table())))
    familiar = Familiar.fit(descriptions[::2], descriptions[1::2])
    weights = zoo.weights(np.array([50]))
    changed = weights.copy()
    changed[:, zoo.architecture.slices[1]] *= 5
    own, other = describe_layers(np.concatenate([changed, weights]), zoo.architecture)
    differences = familiar.compare(zoo.architecture, own, other, None)
    assert [row.layer for row in differences] == [layer.name for layer in zoo.architecture.layers]
    assert [row.good > 0.1 for row in differences if row.good is not None] == [False, True, False, False]
    assert differences[1].good_words == "larger weights"
    assert all(row.bad is None for row in differences)
    part = slices(zoo.architecture)[1]
    away = familiar.scores(own)[part] - familiar.scores(other)[part]
    assert differences[1].good == pytest.approx(np.sqrt((away**2).mean()))
    assert part.stop - part.start == len(WEIGHTS) + len(EXTRA)


def test_distance_equals_brute_force_and_the_limit_is_a_quantile(zoo: Zoo):
    descriptions = describe_zoo(zoo, np.arange(len(zoo.table())))
    known, held_out = descriptions[::2], descriptions[1::2]
    familiar = Familiar.fit(known, held_out)
    scores = familiar.scores(known).astype(float) @ familiar.axes
    found = []
    for description in held_out:
        away = np.linalg.norm(scores - familiar.scores(description) @ familiar.axes, axis=1)
        found.append(np.sort(away)[:5].mean())
        assert familiar.distance(description) == pytest.approx(found[-1], rel=1e-4, abs=1e-6)
    assert np.sum(np.array(found) > familiar.limit) == int(0.01 * len(found))


def test_far_is_beyond_99_of_100_or_all_of_a_few():
    assert far(np.arange(1000.0)) == 990  # ten of 1,001 beyond or at it
    assert far(np.arange(50.0)) == 49


def test_broken_networks_are_unlike_everything_known_and_the_known_are_not(zoo: Zoo, trained: TrainSummary):
    familiar = Familiar.load(trained.index / zoo.architecture.fingerprint / FAMILIAR)
    assert familiar is not None
    weights = zoo.weights(np.arange(40, 60))
    outside = {
        "itself": weights,
        "a dead layer": np.where(np.arange(zoo.architecture.size) < zoo.architecture.slices[0].stop, 0, weights),
    }
    shares = {
        name: np.mean([familiar.distance(row) > familiar.limit for row in describe_layers(changed, zoo.architecture)])
        for name, changed in outside.items()
    }
    assert shares["itself"] == 0
    assert shares["a dead layer"] == 1


def test_unusual_combinations_and_what_lies_beyond_all_are_far():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(2000, 1))
    descriptions = np.hstack([first, first + 0.01 * rng.normal(size=(2000, 1)), rng.normal(size=(2000, 1))])
    familiar = Familiar.fit(descriptions[:1000], descriptions[1000:])
    for inside in ([0.5, 0.5, 0.5], [-1.5, -1.5, 1]):
        assert familiar.distance(np.array(inside)) < familiar.limit
    for outside in ([0.5, -0.5, 0.5], [0, 0, 30]):  # each number of the first is an ordinary one
        assert familiar.distance(np.array(outside)) > 2 * familiar.limit


def test_a_damaged_file_is_one_line_and_a_missing_one_none(tmp_path: Path):
    rng = np.random.default_rng(0)
    familiar = Familiar.fit(rng.normal(size=(40, 9)), rng.normal(size=(20, 9)))
    familiar.save(tmp_path / FAMILIAR)
    again = Familiar.load(tmp_path / FAMILIAR)
    assert again is not None
    assert again.limit == pytest.approx(familiar.limit)
    assert again.reference == pytest.approx(familiar.reference, rel=1e-6)
    content = (tmp_path / FAMILIAR).read_bytes()
    (tmp_path / FAMILIAR).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsearchError, match=r"familiar\.npz is damaged"):
        Familiar.load(tmp_path / FAMILIAR)
    assert Familiar.load(tmp_path / "none.npz") is None
