"""Recipes of the preset `wild`: which network, on which images, trained how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np


class Family(StrEnum):
    """A kind of network. Its members differ in depth, width and much else."""

    MLP = "mlp"
    CNN = "cnn"
    RESNET = "resnet"
    VIT = "vit"
    RNN = "rnn"


# Each family's share of the runs.
SHARES = {Family.MLP: 0.26, Family.CNN: 0.27, Family.RESNET: 0.20, Family.VIT: 0.19, Family.RNN: 0.08}
DATASETS = ("digits", "usps", "mnist", "fashion-mnist", "cifar10")
ACTIVATIONS = ("relu", "leaky-relu", "gelu", "silu", "tanh")
CHECKPOINTS = 4
GROWTH = 2.4  # each checkpoint lies so many times as far along the run as the one before it

MOST_LABEL_NOISE = 0.4  # in about one run in seven; the others have none
LEAST_TRAIN_FRACTION = 0.1

# Ranges of the learning rate, three decades each.
LEARNING_RATES = {
    "sgd": (2e-3, 2.0),
    "momentum": (7e-4, 7e-1),
    "adam": (8e-5, 8e-2),
    "adamw": (8e-5, 8e-2),
    "rmsprop": (5e-5, 5e-2),
}


@dataclass(frozen=True)
class WildRecipe:
    """One run. Fields that do not concern its family hold None; `depth` and `width` mean what the family makes of them.

    depth: hidden layers (MLP), convolutions (CNN), stages (ResNet), blocks (ViT), recurrent layers (RNN).
    width: units (MLP, RNN), channels of the first convolution (CNN, ResNet), size of a token (ViT).
    """

    family: Family
    dataset: str
    classes: int  # the dataset's first so many classes take part
    resolution: str  # of the images: `coarse`, at most 8 x 8, or `fine`, at most 16 x 16
    scaling: str  # of the images: `symmetric` [-1, 1], `unit` [0, 1], `standard` mean 0 and deviation 1
    depth: int
    width: int
    activation: str
    norm: str
    dropout: float
    kernel: int | None  # CNN: size of the kernels; ViT: of the patches
    downsampling: str | None  # CNN: `stride`, `max-pool`, `average-pool`
    head: str | None  # CNN: `pool`, `flatten`, `hidden`; ViT: `class-token`, `mean`; RNN: `last`, `mean`
    variant: str | None  # ResNet: `basic`, `bottleneck`; ViT: `fused`, `separate` projections; RNN: the cell
    widening: float | None  # MLP, CNN: each layer's width over the one before; ViT: hidden over token size
    initializer: str
    optimizer: str
    learning_rate: float
    weight_decay: float
    batch_size: int
    schedule: str  # `constant`, `cosine`
    train_fraction: float
    label_noise: float  # share of the training labels that are drawn anew
    effort: float  # share of the most steps that a run of this cost may take
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: str(value) if isinstance(value, StrEnum) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WildRecipe:
        return cls(**{**values, "family": Family(values["family"])})


T = TypeVar("T")


def recipes(seed: int, runs: int) -> list[WildRecipe]:
    """The recipes of `runs` runs. A run's recipe never depends on how many runs there are.

    A draw that leaves too little to be learned from the weights, the accuracy being decided by the labels or by a few
    dozen images, is passed over.

    Example:
        >>> recipes(seed=0, runs=3)[1] == recipes(seed=0, runs=2)[1]
        True
    """
    drawn = map(partial(_draw, seed), count())
    usual = (r for r in drawn if r.label_noise <= MOST_LABEL_NOISE and r.train_fraction >= LEAST_TRAIN_FRACTION)
    return list(islice(usual, runs))


def _draw(seed: int, number: int) -> WildRecipe:
    rng = np.random.default_rng([seed, number])

    def choose(choices: Sequence[T], shares: Sequence[float] | None = None) -> T:
        edges = np.cumsum(np.ones(len(choices)) if shares is None else shares)
        return choices[int(np.searchsorted(edges[:-1], rng.random() * edges[-1], side="right"))]

    def log_uniform(low: float, high: float) -> float:
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)

    def even(low: float, high: float, step: int) -> int:
        return max(step, round(log_uniform(low, high) / step) * step)

    family = choose(list(SHARES), list(SHARES.values()))
    fine = rng.random() < 0.3
    shape: dict[str, Any] = dict.fromkeys(("kernel", "downsampling", "head", "variant", "widening"))
    match family:
        case Family.MLP:
            shape |= {"depth": choose((1, 2, 3, 4, 5)), "width": even(16, 256, 8), "widening": choose((0.5, 1.0, 1.0))}
            shape["norm"] = choose(("none", "batch", "layer"), (5, 3, 2))
        case Family.CNN:
            shape |= {"depth": choose((2, 3, 4, 5, 6)), "width": even(6, 40, 2), "widening": choose((1.0, 1.5, 2.0))}
            shape |= {"kernel": choose((3, 3, 3, 5)), "downsampling": choose(("stride", "max-pool", "average-pool"))}
            shape |= {"head": choose(("pool", "flatten", "hidden"), (4, 3, 3))}
            shape["norm"] = choose(("none", "batch", "group"), (5, 4, 1))
        case Family.RESNET:
            shape |= {"depth": choose((2, 3, 4)), "width": even(6, 32, 2), "widening": choose((1.0, 2.0))}
            shape |= {"variant": choose(("basic", "bottleneck"), (3, 1)), "norm": choose(("batch", "group"), (3, 2))}
        case Family.VIT:
            shape |= {"depth": choose((1, 2, 3, 4)), "width": even(16, 72, 8), "widening": choose((1.0, 2.0, 4.0))}
            shape |= {"kernel": 4 if fine else 2, "head": choose(("class-token", "mean"))}
            shape |= {"variant": choose(("fused", "separate")), "norm": choose(("before", "after"), (4, 1))}
        case Family.RNN:
            shape |= {"depth": choose((1, 2)), "width": even(16, 96, 8), "head": choose(("last", "mean"))}
            shape |= {"variant": choose(("rnn", "gru", "lstm")), "norm": choose(("one-way", "two-way"))}
    optimizer = choose(list(LEARNING_RATES))
    few_classes = rng.random() < 0.15
    return WildRecipe(
        family=family,
        dataset=choose(DATASETS, (1, 1, 1, 1.2, 0.7)),
        classes=choose((2, 3, 4, 5, 6, 8)) if few_classes else 10,
        resolution="fine" if fine else "coarse",
        scaling=choose(("symmetric", "unit", "standard")),
        **shape,
        activation=choose(ACTIVATIONS, (3, 1, 1.5, 1, 1.5)),
        dropout=choose((0.0, float(rng.uniform(0.05, 0.5)))),
        initializer=choose(("default", "he-normal", "xavier-uniform", "orthogonal"), (6, 1, 1, 1)),
        optimizer=optimizer,
        learning_rate=log_uniform(*LEARNING_RATES[optimizer]),
        weight_decay=choose((0.0, log_uniform(1e-6, 1e-1 if optimizer == "adamw" else 1e-2)), (1, 3)),
        batch_size=choose((32, 64, 128)),
        schedule=choose(("constant", "cosine")),
        train_fraction=choose((1.0, 0.3, 0.1, 0.03), (5, 2, 2, 1)),
        label_noise=choose((0.0, float(rng.uniform(0.05, 0.9))), (7, 3)),
        effort=log_uniform(0.2, 1.0),
        seed=int(rng.integers(2**53)),  # exact in JSON
    )
