"""Fitting one encoder on a zoo: train, stop early on the validation part, keep the best epoch."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsearch.devices import fast_processor
from weightsearch.encoders import Encoder, EncoderConfig, build_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.files import replacing
from weightsearch.metrics import Prediction, score
from weightsearch.training.data import Features, target_values
from weightsearch.training.represent import predict
from weightsearch.types import Method, Target
from weightsearch.zoo.splits import Split
from weightsearch.zoo.store import Zoo

PROGRESS_SECONDS = 120.0  # between savings of an unfinished fit


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


@dataclass(frozen=True)
class Fit:
    """A fitted encoder, its best epoch's scores, and its settings. `losses` are validation losses by epoch."""

    encoder: Encoder
    settings: FitSettings
    validation: Prediction
    losses: tuple[float, ...]
    seconds: float
    stopped: bool = False  # by `on_epoch`

    @property
    def epochs(self) -> int:
        return len(self.losses)


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


def fit(
    zoo: Zoo,
    split: Split,
    config: EncoderConfig,
    settings: FitSettings,
    *,
    target: Target | None = None,
    seed: int = 0,
    features: Features | None = None,
    on_epoch: Callable[[int, float], bool | None] | None = None,
    progress: Path | None = None,
) -> Fit:
    """Fits one encoder on the training part and keeps the epoch with the lowest validation loss.

    Args:
        features: of an earlier fit of the same method on the same split, to save making them again; the fit runs on
            their device. The encoder comes back to the processor.
        on_epoch: called with the epoch (from 1) and its validation loss; a true answer ends the fit.
        progress: a file that an unfinished fit is saved in every two minutes; the next call goes on from there.
    """
    started = time.perf_counter()
    target = target or Target()
    values = target_values(zoo.table(), target)
    low, high = _target_range(zoo, values[split.train], target)
    config = replace(config, target=target.column, target_low=low, target_high=high)
    if features is None:
        features = Features(zoo, config.method, split.train, np.concatenate([split.train, split.validation]))
    device = features.device
    truth = torch.from_numpy(values.clip(low, high)).float().to(device)

    generator = torch.Generator().manual_seed(seed)
    shuffler = np.random.default_rng(seed)
    encoder = build_encoder(zoo.architecture, config, generator)
    features.calibrate(encoder)
    encoder.to(device)
    noise = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    encoder.draw_from(noise)
    optimizer = make_optimizer(encoder, settings)
    losses: list[float] = []
    best_loss, best_epoch, best_state = float("inf"), 0, copy.deepcopy(encoder.state_dict())
    stopped = False
    with fast_processor(zoo.architecture.size) if device.type == "cpu" else nullcontext():
        saved = time.perf_counter()
        if progress is not None and progress.exists():
            losses, best_state = _resume(progress, encoder, optimizer, shuffler, noise)
            best_epoch = int(np.argmin(losses)) + 1
            best_loss = losses[best_epoch - 1]
        for epoch in range(len(losses) + 1, settings.epochs + 1):
            encoder.train()
            order = shuffler.permutation(split.train)
            for start in range(0, len(order), settings.batch_size):
                batch = order[start : start + settings.batch_size]
                error = (encoder(features(batch)) - truth[batch]) / (high - low)
                loss = error.square().mean()
                if settings.one_cycle:
                    share = (epoch - 1 + start / len(order)) / settings.epochs
                    for group in optimizer.param_groups:
                        group["lr"] = settings.learning_rate * one_cycle(share)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(
                float(np.mean((predict(encoder, features, split.validation) - values[split.validation]) ** 2))
            )
            if losses[-1] < best_loss:
                best_loss, best_epoch, best_state = losses[-1], epoch, copy.deepcopy(encoder.state_dict())
            stopped = bool(on_epoch and on_epoch(epoch, losses[-1]))
            if stopped or epoch - best_epoch >= settings.patience or not np.isfinite(losses[-1]):
                break
            if progress is not None and time.perf_counter() - saved > PROGRESS_SECONDS:
                _save(progress, encoder, optimizer, shuffler, noise, losses, best_state)
                saved = time.perf_counter()
    if best_epoch == 0:
        raise WeightsearchError(f"fitting {config.method} diverged (its loss is NaN); choose a lower learning rate")
    encoder.load_state_dict(best_state)
    encoder.draw_from(None)
    encoder.cpu()
    scores = score(predict(encoder, features, split.validation), values[split.validation])
    if progress is not None:
        progress.unlink(missing_ok=True)
    return Fit(encoder.eval(), settings, scores, tuple(losses), time.perf_counter() - started, stopped)


def _target_range(zoo: Zoo, training: np.ndarray, target: Target) -> tuple[float, float]:
    """What the encoder can predict: [0, 1] for accuracies, else the training part's values without the worst 1 %.

    A loss has no upper end, and one network that all but diverged would otherwise squeeze all others together.
    """
    if np.ptp(training) == 0:
        raise WeightsearchError(
            f"{zoo.path}: every training checkpoint has the same {target.column}; there is nothing to learn"
        )
    if target.is_accuracy and training.min() >= 0 and training.max() <= 1:
        return 0.0, 1.0
    quantiles = (0.0, 0.99) if target.lower_is_better else (0.01, 1.0)
    low, high = (float(value) for value in np.quantile(training, quantiles))
    return (low, high) if high > low else (float(training.min()), float(training.max()))


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
            return torch.optim.Adam(encoder.parameters(), fused=True, **options)
        case FitOptimizer.ADAMW:
            return torch.optim.AdamW(encoder.parameters(), fused=True, **options)
        case FitOptimizer.ADAMAX:
            return torch.optim.Adamax(encoder.parameters(), **options)
        case FitOptimizer.NADAM:
            return torch.optim.NAdam(encoder.parameters(), **options)
        case FitOptimizer.RADAM:
            return torch.optim.RAdam(encoder.parameters(), **options)


def _save(
    path: Path,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    shuffler: np.random.Generator,
    noise: torch.Generator,
    losses: list[float],
    best_state: dict[str, Tensor],
) -> None:
    content = {
        "encoder": encoder.state_dict(),
        "best": best_state,
        "optimizer": optimizer.state_dict(),
        "shuffler": json.dumps(shuffler.bit_generator.state),
        "noise": noise.get_state(),
        "losses": losses,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _resume(
    path: Path,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    shuffler: np.random.Generator,
    noise: torch.Generator,
) -> tuple[list[float], dict[str, Tensor]]:
    """Sets encoder, optimizer and generators as `_save` found them; returns the losses and the best epoch's state."""
    content = torch.load(path, weights_only=True, map_location="cpu")
    encoder.load_state_dict(content["encoder"])
    optimizer.load_state_dict(content["optimizer"])
    shuffler.bit_generator.state = json.loads(content["shuffler"])
    noise.set_state(content["noise"])
    return content["losses"], content["best"]


def settings_from_dict(values: dict[str, Any]) -> FitSettings:
    """The inverse of `dataclasses.asdict`."""
    return FitSettings(**{**values, "optimizer": FitOptimizer(values["optimizer"])})
