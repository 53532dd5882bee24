"""One file has one embedding and one prediction, whichever way it comes in: `represent` is the only way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsearch.checkpoints.state_dict import read_checkpoint, to_state_dict, write_checkpoint
from weightsearch.encoders import activation_code
from weightsearch.encoders.symmetry import twins
from weightsearch.paths import REFERENCE_INDEX
from weightsearch.search.add import add
from weightsearch.search.index import Index, query
from weightsearch.search.subject import module_activation
from weightsearch.types import Activation, activation_named

SPELLINGS = {
    Activation.RELU: ("relu", "ReLU", "nn.ReLU", "ReLU()", "torch.nn.modules.activation.ReLU", "ReLU(inplace=True)"),
    Activation.TANH: ("tanh", "Tanh", "torch.tanh", "<class 'torch.nn.modules.activation.Tanh'>", torch.nn.Tanh),
    Activation.GELU: ("gelu", "GELU(approximate='none')", "gelu_new", torch.nn.GELU()),
    Activation.LEAKY_RELU: ("leaky_relu", "LeakyReLU", "leaky-relu", "nn.LeakyReLU(negative_slope=0.01)"),
    Activation.SILU: ("SiLU", "swish", "Swish"),
    Activation.ELU: ("elu",),
    Activation.SIGMOID: ("Sigmoid",),
    Activation.IDENTITY: ("Identity()", "linear"),
}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A copy of the reference index, whose encoder is `invariant`."""
    return Path(shutil.copytree(REFERENCE_INDEX, tmp_path / "index"))


def network(state: dict[str, np.ndarray]) -> torch.nn.Module:
    """The examples' architecture as a module whose parts tell its activation."""
    made = torch.nn.Module()
    for name in ("conv1", "conv2", "conv3"):
        rows, channels = state[f"{name}.weight"].shape[:2]
        made.add_module(name, torch.nn.Conv2d(channels, rows, 3, stride=2))
    made.add_module("dense", torch.nn.Linear(state["dense.weight"].shape[1], 10))
    made.add_module("activation", torch.nn.ReLU())
    made.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return made


@pytest.mark.slow
def test_file_module_state_dict_and_added_row_agree(index: Path):
    example = index / "examples" / "very-good.pt"
    checkpoint = read_checkpoint(example)
    assert checkpoint.metadata["recipe"]["activation"] == "relu"
    state = to_state_dict(checkpoint.weights, checkpoint.architecture)
    opened = Index.open(index)
    answers = [
        opened.query(example, 3),
        opened.query(network(state), 3),
        opened.query(state, 3, activation="nn.ReLU"),
    ]
    unstated = opened.query(state, 3)
    assert add([example], index, quiet=True).added == 1
    answers.append(opened.query(id=answers[0].id, k=3))
    assert answers[-1].indexed
    for answer in answers:
        assert answer.predicted == pytest.approx(answers[0].predicted, abs=1e-6)
    # Not because the activation makes no difference: without it, all would be another network's.
    assert abs(unstated.predicted - answers[0].predicted) > 0.01
    embedding = opened.find(answers[0].id).embedding
    again = opened.store.search(answers[0].fingerprint, embedding, 1).neighbours[0]
    assert (again.id, again.distance) == (answers[0].id, pytest.approx(0, abs=1e-6))


@pytest.mark.slow
def test_a_rescaled_twin_of_an_added_network_finds_it_first(index: Path, tmp_path: Path):
    checkpoint = read_checkpoint(index / "examples" / "good.pt")
    activation = Activation(checkpoint.metadata["recipe"]["activation"])
    add([index / "examples" / "good.pt"], index, quiet=True)
    twin = twins(checkpoint.weights[None], checkpoint.architecture, np.random.default_rng(0), activation)[0]
    assert np.abs(twin - checkpoint.weights).max() > 0.1
    write_checkpoint(tmp_path / "twin.pt", twin, checkpoint.architecture, {"activation": activation.value})
    nearest = query(index, tmp_path / "twin.pt", 2).neighbours
    assert nearest[0].id == checkpoint.id
    assert nearest[0].distance < 1e-5 < nearest[1].distance


@pytest.mark.parametrize("activation", SPELLINGS)
def test_an_activation_means_the_same_in_any_spelling(activation: Activation):
    for spelling in SPELLINGS[activation]:
        assert activation_named(spelling) is activation, spelling


def test_unknown_names_are_unknown():
    for name in ("maxout", "", "relu6", "prelu", 3, None):
        assert activation_named(name) is None
        assert activation_code(name) == 0
    assert module_activation(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.ReLU())) is None


@pytest.mark.slow
def test_what_a_file_states_is_understood_or_noted(index: Path):
    checkpoint = read_checkpoint(index / "examples" / "good.pt")
    opened = Index.open(index)

    def stated(name: str | None):
        recipe = {} if name is None else {"activation": name}
        return opened.query(replace(checkpoint, metadata={"recipe": recipe}), 1)

    usual, unknown = stated("relu"), stated(None)
    assert stated("torch.nn.ReLU()").predicted == usual.predicted
    assert unknown.predicted != usual.predicted
    for name, says in (("maxout", "no known name"), ("gelu", "learned relu and tanh alone")):
        answer = stated(name)
        assert answer.predicted == unknown.predicted
        assert any(says in note for note in answer.notes), answer.notes


@pytest.mark.slow
def test_an_opened_index_is_used_as_it_is(index: Path, monkeypatch: pytest.MonkeyPatch):
    import weightsearch.encoders as encoders

    loaded = []
    load = encoders.load_encoder
    monkeypatch.setattr(encoders, "load_encoder", lambda path: (loaded.append(path), load(path))[1])
    opened = Index.open(index)
    for _ in range(3):
        query(opened, index / "examples" / "bad.pt", 1)
    assert len(loaded) == 1
