"""Small networks of four families, trained for an epoch on some digits, and what `benchmarks` derives from them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def derive() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("derive")


@pytest.fixture(scope="session")
def small_networks(derive: ModuleType) -> ModuleType:
    return sys.modules["small_networks"]


WIDTHS = {"mlp": 32, "residual": 16, "lstm": 32, "transformer": 32}


class Networks(dict[str, tuple[object, dict[str, Tensors]]]):
    """By family: the recipe, and the states `base`, `tuned` (from base on other data) and `apart` (another seed).

    A family is trained once a test asks for it.
    """

    def __init__(self, small_networks: ModuleType) -> None:
        self._module = small_networks

    def __missing__(self, family: str) -> tuple[object, dict[str, Tensors]]:
        module = self._module
        import torch  # here: pytest's first process reads this file, too, and need not wait

        images, labels = (torch.from_numpy(array) for array in module.digits())
        images, labels = images[:600], labels[:600]
        half = len(images) // 2
        recipe = module.Spec(family, WIDTHS[family], 2, "relu", False, "adam", 3e-3)
        states = {}
        for seed, name in ((1, "base"), (2, "apart")):
            torch.manual_seed(seed)
            network = module.FAMILIES[family](recipe)
            module.train_epoch(network, recipe, images[:half], labels[:half], seed, 3e-3)
            states[name] = module.tensors_of(network)
        states["tuned"] = module.fine_tuned(recipe, states["base"], images[half:], labels[half:], 3, 0.3, epochs=1)
        self[family] = recipe, states
        return self[family]


@pytest.fixture(scope="session")
def networks(small_networks: ModuleType) -> Networks:
    return Networks(small_networks)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)
