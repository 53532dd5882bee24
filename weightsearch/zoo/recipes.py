"""Recipes: the hyperparameters of one run, the presets' spaces they are drawn from, and users' own spaces."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import Activation, Scaling


class Optimizer(StrEnum):
    SGD = "sgd"
    ADAM = "adam"
    RMSPROP = "rmsprop"


class Initializer(StrEnum):
    """How kernels start; biases start at zero. Only the first two use a recipe's `init_std`."""

    NORMAL = "normal"
    TRUNCATED_NORMAL = "truncated-normal"
    XAVIER_NORMAL = "xavier-normal"
    HE_NORMAL = "he-normal"
    XAVIER_UNIFORM = "xavier-uniform"
    HE_UNIFORM = "he-uniform"
    ORTHOGONAL = "orthogonal"


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one training run of a base network."""

    optimizer: Optimizer
    learning_rate: float
    weight_decay: float  # L2, added to the gradient as torch.optim does
    dropout: float  # probability of dropping a unit, after every activation
    initializer: Initializer
    init_std: float | None  # for `normal` and `truncated-normal`, else None
    activation: Activation
    train_fraction: float  # share of the training split this run sees
    seed: int  # seeds initial weights, the training subset, batches and dropout of this run

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: enums as their strings."""
        return {key: str(value) if isinstance(value, StrEnum) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        enums = {
            "optimizer": Optimizer(values["optimizer"]),
            "initializer": Initializer(values["initializer"]),
            "activation": Activation(values["activation"]),
        }
        return cls(**{**values, **enums})


@dataclass(frozen=True)
class RecipeSpace:
    """What recipes are drawn from: `(low, high)` ranges and tuples of equally likely choices."""

    learning_rate: tuple[float, float]  # log-uniform
    weight_decay: tuple[float, float]  # log-uniform
    dropout: tuple[float, float]  # uniform
    init_std: tuple[float, float]  # log-uniform, where the initializer uses one
    optimizer: tuple[Optimizer, ...]
    initializer: tuple[Initializer, ...]
    activation: tuple[Activation, ...]
    train_fraction: tuple[float, ...]


@dataclass(frozen=True)
class Preset:
    """Everything that decides a zoo's content beside the dataset, the seed and the number of runs."""

    name: str
    space: RecipeSpace
    filters: int
    epochs: int
    batch_size: int
    momentum: float  # of SGD
    checkpoint_epochs: tuple[int, ...] | None  # 0 is the initial weights; None is every epoch from 1 on
    scaling: Scaling = Scaling.SYMMETRIC  # of the images
    layers: int = 3
    runs_per_part: int | None = None  # networks that train together and share a part file; None: by their cost

    @property
    def schedule(self) -> tuple[int, ...]:
        """The epochs whose checkpoints are kept, ascending; the last epoch is always one of them."""
        if self.checkpoint_epochs is None:
            return tuple(range(1, self.epochs + 1))
        return (*(epoch for epoch in self.checkpoint_epochs if epoch < self.epochs), self.epochs)


_FRACTIONS = (0.1, 0.25, 0.5, 1.0)
TRAINED_ACTIVATIONS = (Activation.RELU, Activation.TANH)  # that the trainers compute

# The Small CNN Zoo: Unterthiner et al. 2020, "Predicting Neural Network Accuracy from Weights",
# https://arxiv.org/abs/2002.11448, for which its appendix gives the ranges. Checkpoint epochs, batch size, the five
# initializers (Keras' glorot_normal, he_normal, orthogonal, RandomNormal, TruncatedNormal), zero biases and the
# training fractions were checked against its code and data card, https://github.com/google-research/google-research
# (dnn_predict_accuracy/train_network.py and README.md); the ranges of the numbers could not be checked there.
# Two things in that code are not the same here: Keras' L2 adds l2·Σw² of the kernels to the loss, so its gradient is
# twice a torch weight decay of the same number and leaves biases alone; and colour became gray by the mean.
V1 = Preset(
    name="v1",
    space=RecipeSpace(
        learning_rate=(5e-4, 5e-2),
        weight_decay=(1e-8, 1e-2),
        dropout=(0.0, 0.7),
        init_std=(1e-3, 0.5),
        optimizer=(Optimizer.SGD, Optimizer.ADAM, Optimizer.RMSPROP),
        initializer=(
            Initializer.NORMAL,
            Initializer.TRUNCATED_NORMAL,
            Initializer.XAVIER_NORMAL,
            Initializer.HE_NORMAL,
            Initializer.ORTHOGONAL,
        ),
        activation=TRAINED_ACTIVATIONS,
        train_fraction=_FRACTIONS,
    ),
    filters=16,
    epochs=86,
    batch_size=512,
    momentum=0.0,
    checkpoint_epochs=(0, 1, 2, 3, 20, 40, 60, 80, 86),
)

# The zoo of the ComVeX paper: wider networks, and every epoch's checkpoint.
V2 = Preset(
    name="v2",
    space=RecipeSpace(
        learning_rate=(1e-4, 1e-2),
        weight_decay=(1e-8, 1e-2),
        dropout=(0.0, 0.7),
        init_std=(1e-3, 0.5),  # unused until somebody's own space adds `normal`
        optimizer=(Optimizer.SGD, Optimizer.ADAM),
        initializer=(Initializer.XAVIER_UNIFORM, Initializer.HE_UNIFORM, Initializer.ORTHOGONAL),
        activation=TRAINED_ACTIVATIONS,
        train_fraction=_FRACTIONS,
    ),
    filters=64,
    epochs=20,
    batch_size=128,
    momentum=0.9,
    checkpoint_epochs=None,
)

PRESETS = {preset.name: preset for preset in (V1, V2)}


T = TypeVar("T")


def sample(space: RecipeSpace, seed: int, run: int) -> Recipe:
    """Draw run number `run`'s recipe. It depends on `seed` and `run` alone, never on how many runs there are."""
    rng = np.random.default_rng([seed, run])

    def log_uniform(bounds: tuple[float, float]) -> float:
        low, high = bounds
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)

    def choose(choices: Sequence[T]) -> T:
        return choices[int(rng.random() * len(choices))]

    # Always the same draws in the same order, so that changing one choice of a space leaves the other values alone.
    learning_rate, weight_decay, init_std = map(log_uniform, (space.learning_rate, space.weight_decay, space.init_std))
    dropout = float(rng.uniform(*space.dropout))
    optimizer = choose(space.optimizer)
    initializer = choose(space.initializer)
    activation = choose(space.activation)
    train_fraction = choose(space.train_fraction)
    return Recipe(
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dropout=dropout,
        initializer=initializer,
        init_std=init_std if initializer in (Initializer.NORMAL, Initializer.TRUNCATED_NORMAL) else None,
        activation=activation,
        train_fraction=train_fraction,
        seed=int(rng.integers(2**53)),  # exact in JSON
    )


def load_preset(
    name: str,
    *,
    recipes: str | Path | None = None,
    filters: int | None = None,
    layers: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
) -> Preset:
    """A preset with what a recipe file and then the flags override.

    A recipe file is TOML whose keys are the fields of `RecipeSpace` and `Preset` (but `name`), for example

        epochs = 10
        checkpoint_epochs = "every"      # or a list; 0 is the initial weights
        learning_rate = [1e-3, 1e-2]     # a range
        optimizer = ["adam"]             # choices

    Raises:
        UsageError: an unknown preset, or a number out of range.
        WeightsearchError: a recipe file that cannot be read or has an unknown key or a wrong value.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}, wild")
    preset = PRESETS[name]
    if recipes is not None:
        preset = _overridden(preset, Path(recipes))
    flags: dict[str, Any] = {"filters": filters, "layers": layers, "epochs": epochs, "batch_size": batch_size}
    for key, value in flags.items():
        if value is not None:
            if value < 1:
                raise UsageError(f"--{key.replace('_', '-')} must be at least 1, got {value}")
            preset = replace(preset, **{key: value})
    return preset


_COUNTS = ("filters", "layers", "epochs", "batch_size", "runs_per_part")
_ENUMS: dict[str, type[StrEnum]] = {  # of the space
    "optimizer": Optimizer,
    "initializer": Initializer,
    "activation": Activation,
}
_RANGES = {  # lowest and highest value that makes sense
    "learning_rate": (1e-12, 1e12),
    "weight_decay": (1e-30, 1e6),
    "dropout": (0.0, 0.99),
    "init_std": (1e-12, 1e6),
}
_KEYS = (*_COUNTS, "momentum", "scaling", "checkpoint_epochs", *(field.name for field in fields(RecipeSpace)))


def _overridden(preset: Preset, path: Path) -> Preset:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsearchError(f"cannot read the recipe file {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WeightsearchError(f"the recipe file {path} is not valid TOML: {error}") from None
    outer: dict[str, Any] = {}
    space: dict[str, Any] = {}
    for key, value in content.items():
        try:
            if key in _COUNTS:
                outer[key] = _count(value)
            elif key == "momentum":
                outer[key] = _within(value, 0.0, 0.9999)
            elif key == "scaling":
                outer[key] = _member(Scaling, value)
            elif key == "checkpoint_epochs":
                outer[key] = None if value == "every" else _epochs(value)
            elif key in _RANGES:
                space[key] = _range(value, *_RANGES[key])
            elif key == "train_fraction":
                space[key] = tuple(_within(item, 1e-6, 1.0) for item in _list(value))
            elif key in _ENUMS:
                space[key] = tuple(_member(_ENUMS[key], item) for item in _list(value))
            else:
                raise WeightsearchError(f"{path}: unknown key {key!r}; known are {', '.join(_KEYS)}")
        except ValueError as error:
            raise WeightsearchError(f"{path}: {key} must be {error}, got {value!r}") from None
    return replace(preset, space=replace(preset.space, **space), **outer)


# Each raises ValueError with what the value must be.


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number from 1 on")
    return value


def _within(value: Any, low: float, high: float) -> float:
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"within {low:g} and {high:g}")
    return float(value)


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("a list of choices in square brackets")
    return value


def _epochs(value: Any) -> tuple[int, ...]:
    valid = isinstance(value, list) and all(isinstance(item, int) and item >= 0 for item in value)
    if not valid or any(isinstance(item, bool) for item in value):
        raise ValueError('"every" or a list of epochs from 0 on')
    return tuple(sorted(set(value)))


def _range(value: Any, low: float, high: float) -> tuple[float, float]:
    """`[low, high]`, or one number for a fixed value."""
    pair = [value, value] if _is_number(value) else value
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        raise ValueError("a range [low, high] or one number")
    if not low <= pair[0] <= pair[1] <= high:
        raise ValueError(f"a range [low, high] with {low:g} <= low <= high <= {high:g}")
    return float(pair[0]), float(pair[1])


def _member(enum: type[StrEnum], value: Any) -> StrEnum:
    try:
        return enum(value)
    except ValueError:
        raise ValueError(f"choices of {', '.join(enum)}") from None
