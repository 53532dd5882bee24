"""Copies of a zoo's networks against the truth that is written beside them, each checked by its own definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from weightsearch.cli import app
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.relations import Kind, diff
from weightsearch.zoo.derive import DeriveSummary, derive_zoo
from weightsearch.zoo.store import Zoo
from weightsearch.zoo.trainer.networks import CnnShape
from weightsearch.zoo.trainer.reference import BaseCnn

pytestmark = pytest.mark.slow  # a zoo is trained first
RUNS = 4
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def derived(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> DeriveSummary:
    return derive_zoo(zoo.path, tmp_path_factory.mktemp("derived") / "out", seed=5, runs=RUNS, quiet=True)


def pairs(derived: DeriveSummary) -> list[dict[str, str]]:
    return json.loads((derived.path / "truth.json").read_text())["pairs"]


def copies(derived: DeriveSummary, kind: str) -> list[tuple[Tensors, Tensors]]:
    chosen = [pair for pair in pairs(derived) if Path(pair["b"]).name.startswith(kind)]
    assert chosen, f"no {kind} copy"
    return [(load_file(derived.path / pair["a"]), load_file(derived.path / pair["b"])) for pair in chosen]


def test_the_base_is_the_last_checkpoint(derived: DeriveSummary, zoo: Zoo):
    table = zoo.table()
    for run in sorted(set(table.run.tolist()))[:RUNS]:
        position = int(np.flatnonzero(table.run == run)[-1])
        base = load_file(derived.path / f"run-{run:05d}" / "base.safetensors")
        assert sorted(np.concatenate([value.ravel() for value in base.values()])) == sorted(zoo.weights([position])[0])


def test_copies_are_what_the_truth_says(derived: DeriveSummary):
    for base, copy in copies(derived, "half"):
        assert all(copy[name].dtype == np.float16 and np.array_equal(copy[name], v.astype(np.float16))
                   for name, v in base.items())  # fmt: skip
    for bits in (4, 8):
        for base, copy in copies(derived, f"quantised-{bits}"):
            for value, other in ((v, copy[n]) for n, v in base.items() if v.ndim > 1):
                rows = other.reshape(len(other), -1)  # one grid for all of a row, or for 32 values of it
                pieces = [row[k : k + 32] for row in rows for k in range(0, len(row), 32)]
                assert max(len(np.unique(piece)) for piece in pieces) <= 2**bits
                assert np.abs(other - value).max() <= np.abs(value).max() / (2 ** (bits - 1) - 1)
    for base, copy in copies(derived, "pruned"):
        assert sum((v == 0).sum() for v in copy.values()) > sum((v == 0).sum() for v in base.values())
        assert all(((copy[name] == value) | (copy[name] == 0)).all() for name, value in base.items())
    for base, copy in copies(derived, "lora-merged"):
        for name in (name for name, value in base.items() if not np.array_equal(copy[name], value)):
            change = (copy[name].astype(np.float64) - base[name]).reshape(len(base[name]), -1)
            assert np.linalg.matrix_rank(change, tol=1e-4 * np.linalg.norm(change)) == 2


def test_a_permuted_copy_computes_the_same(derived: DeriveSummary, zoo: Zoo):
    images = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    shape = CnnShape(zoo.info.settings["filters"])
    for base, copy in copies(derived, "permuted"):
        outputs = []
        for tensors in (base, copy):
            assert any(not np.array_equal(copy[name], value) for name, value in base.items())
            network = BaseCnn(shape, "relu")
            state = network.state_dict()
            network.load_state_dict(
                {name: torch.from_numpy(value).reshape(state[name].shape) for name, value in tensors.items()}
            )
            with torch.no_grad():
                outputs.append(network.eval()(images).numpy())
        np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_relations_tell_the_truth(derived: DeriveSummary):
    """`diff` shares no code with what made the copies."""
    wrong = []
    for pair in pairs(derived):
        assert pair["relation"] in list(Kind)
        told = diff(derived.path / pair["a"], derived.path / pair["b"])
        if (told.relation, told.direction) not in ((pair["relation"], pair["direction"]), (pair["relation"], None)):
            wrong.append((pair["b"], str(told.relation), told.direction))
    assert len(pairs(derived)) == derived.pairs > 10 * RUNS
    assert not wrong


def test_one_seed_makes_the_same_files_and_another_does_not(derived: DeriveSummary, zoo: Zoo, tmp_path: Path):
    again = derive_zoo(zoo.path, tmp_path / "again", seed=5, runs=1, quiet=True)
    other = derive_zoo(zoo.path, tmp_path / "other", seed=6, runs=1, quiet=True)
    names = [path.relative_to(again.path) for path in sorted(again.path.rglob("*.safetensors"))]
    assert all((again.path / name).read_bytes() == (derived.path / name).read_bytes() for name in names)
    noised = "run-00000/noised.safetensors"
    assert (other.path / noised).read_bytes() != (again.path / noised).read_bytes()


def test_the_command(zoo: Zoo, tmp_path: Path):
    def run(*words: object) -> BaseException | None:
        return CliRunner().invoke(app, ["build-zoo", *map(str, words)], standalone_mode=False).exception

    given = ("--derive", zoo.path, "--out", tmp_path / "out")
    assert run(*given, "--runs", 1, "--seed", 3, "--quiet") is None
    assert json.loads((tmp_path / "out" / "truth.json").read_text())["seed"] == 3
    assert "choose another --out" in str(run(*given))
    assert "--epochs does not go with --derive" in str(run(*given, "--epochs", 3))
    assert isinstance(run("--derive", zoo.path), UsageError)
    assert isinstance(run("--derive", tmp_path, "--out", tmp_path / "other"), WeightsearchError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # nothing half made is left
