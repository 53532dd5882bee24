"""Small networks of four families, trained for an epoch on some digits, and what `benchmarks` derives from them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

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


@pytest.fixture(scope="session")
def networks(small_networks: ModuleType) -> dict[str, tuple[object, dict[str, Tensors]]]:
    """By family: the recipe, and the states `base`, `tuned` (from base on other data) and `apart` (another seed)."""
    images, labels = (torch.from_numpy(array) for array in small_networks.digits())
    images, labels = images[:600], labels[:600]
    half = len(images) // 2
    found = {}
    for family, width in (("mlp", 32), ("residual", 16), ("lstm", 32), ("transformer", 32)):
        recipe = small_networks.Spec(family, width, 2, "relu", False, "adam", 3e-3)
        states = {}
        for seed, name in ((1, "base"), (2, "apart")):
            torch.manual_seed(seed)
            network = small_networks.FAMILIES[family](recipe)
            small_networks.train_epoch(network, recipe, images[:half], labels[:half], seed, 3e-3)
            states[name] = small_networks.tensors_of(network)
        states["tuned"] = small_networks.fine_tuned(
            recipe, states["base"], images[half:], labels[half:], 3, 0.3, epochs=1
        )
        found[family] = (recipe, states)
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)
