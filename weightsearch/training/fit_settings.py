"""How an encoder is fitted: settings, one good set of them for each method, and the optimizer they ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from weightsearch.encoders import Encoder, EncoderConfig
from weightsearch.optimizers import eager
from weightsearch.types import Method


class FitOptimizer(StrEnum):
    ADAM = "adam"
    ADAMW = "adamw"
    ADAMAX = "adamax"
    NADAM = "nadam"
    RADAM = "radam"


@dataclass(frozen=True)
class FitSettings:
    """How an encoder is fitted: on the mean squared error, minibatches reshuffled each epoch."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    batch_size: int = 128
    epochs: int = 300
    patience: int = 20  # epochs without a better validation loss before stopping
    optimizer: FitOptimizer = FitOptimizer.ADAMW
    one_cycle: bool = False  # the learning rate rises, then falls to nothing at the last epoch


# One setting each that does well on validation runs; a search over many is `tune`.
DEFAULTS: dict[Method, tuple[EncoderConfig, FitSettings]] = {
    **{
        method: (EncoderConfig(method, hidden_layers=2, hidden_size=256, dropout=0.2), FitSettings(2e-4, 1e-2))
        for method in (Method.FC, Method.FC_LINEAR, Method.COMVEX_LINEAR)
    },
    Method.COMVEX_CONV: (
        EncoderConfig(Method.COMVEX_CONV, hidden_layers=2, hidden_size=256, dropout=0.2),
        FitSettings(learning_rate=5e-4, weight_decay=1e-2),
    ),
    Method.STATISTICS: (
        EncoderConfig(Method.STATISTICS, embedding_size=64, hidden_layers=2, hidden_size=256, input_noise=0.1),
        FitSettings(),
    ),
    Method.INVARIANT: (
        EncoderConfig(Method.INVARIANT, embedding_size=64, hidden_layers=2, hidden_size=256, input_noise=0.1),
        FitSettings(learning_rate=2e-3, weight_decay=1e-2, batch_size=32, epochs=30, patience=30, one_cycle=True),
    ),
}


def one_cycle(share: float) -> float:
    """The learning rate after this `share` of a fit, in [0, 1], relative to its highest: up in a tenth, then a cosine.

    Smith and Topin 2017, "Super-convergence", https://arxiv.org/abs/1708.07120.
    """
    rising = 0.1
    return (share / rising + 0.01) / 1.01 if share < rising else (1 + math.cos(math.pi * (share - rising) / 0.9)) / 2


def make_optimizer(encoder: Encoder, settings: FitSettings) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    match settings.optimizer:
        case FitOptimizer.ADAM:
            return eager(torch.optim.Adam)(encoder.parameters(), fused=True, **options)
        case FitOptimizer.ADAMW:
            return eager(torch.optim.AdamW)(encoder.parameters(), fused=True, **options)
        case FitOptimizer.ADAMAX:
            return eager(torch.optim.Adamax)(encoder.parameters(), **options)
        case FitOptimizer.NADAM:
            return eager(torch.optim.NAdam)(encoder.parameters(), **options)
        case FitOptimizer.RADAM:
            return eager(torch.optim.RAdam)(encoder.parameters(), **options)


def settings_from_dict(values: dict[str, Any]) -> FitSettings:
    """The inverse of `dataclasses.asdict`."""
    return FitSettings(**{**values, "optimizer": FitOptimizer(values["optimizer"])})
