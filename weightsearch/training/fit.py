"""Fitting one encoder on a zoo: train, stop early on the validation part, keep the best epoch."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from weightsearch.devices import fast_processor
from weightsearch.encoders import Encoder, EncoderConfig, build_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.files import replacing
from weightsearch.metrics import Prediction, score
from weightsearch.training.data import Features, target_values
from weightsearch.training.fit_settings import FitSettings, make_optimizer, one_cycle
from weightsearch.training.represent import predict
from weightsearch.types import Target
from weightsearch.zoo.splits import Split
from weightsearch.zoo.store import Zoo

PROGRESS_SECONDS = 120.0  # between savings of an unfinished fit


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
        both = np.concatenate([split.train, split.validation])
        features = Features(zoo, config.method, split.train, both, images=config.images)
    fitting = _Fitting(zoo, split, values, config, settings, features, seed)
    on_processor = features.device.type == "cpu"
    with fast_processor(zoo.architecture.size) if on_processor else nullcontext():
        stopped = fitting.run(on_epoch, progress)
    encoder = fitting.best_encoder()
    scores = score(predict(encoder, features, split.validation), values[split.validation])
    if progress is not None:
        progress.unlink(missing_ok=True)
    return Fit(encoder.eval(), settings, scores, tuple(fitting.losses), time.perf_counter() - started, stopped)


class _Fitting:
    """A fit under way: everything that one epoch changes, which is what a saved fit goes on from."""

    def __init__(
        self,
        zoo: Zoo,
        split: Split,
        values: np.ndarray,
        config: EncoderConfig,
        settings: FitSettings,
        features: Features,
        seed: int,
    ) -> None:
        self.split, self.values, self.settings, self.features = split, values, settings, features
        low, self.span = config.target_low, config.target_high - config.target_low
        self.truth = torch.from_numpy(values.clip(low, config.target_high)).float().to(features.device)
        generator = torch.Generator().manual_seed(seed)
        self.shuffler = np.random.default_rng(seed)
        self.encoder = build_encoder(zoo.architecture, config, generator)
        features.calibrate(self.encoder)
        self.encoder.to(features.device)
        seed_of_noise = int(torch.randint(2**62, (), generator=generator))
        self.noise = torch.Generator(features.device).manual_seed(seed_of_noise)
        self.encoder.draw_from(self.noise)
        self.optimizer = make_optimizer(self.encoder, settings)
        self.losses: list[float] = []  # on the validation part, by epoch
        self.best_epoch, self.best_state = 0, copy.deepcopy(self.encoder.state_dict())

    def run(self, on_epoch: Callable[[int, float], bool | None] | None, progress: Path | None) -> bool:
        """Epoch after epoch until there are enough, none gets better, or `on_epoch` says stop: whether it did."""
        saved = time.perf_counter()
        if progress is not None and progress.exists():
            try:
                self._resume(progress)
            except Exception as error:  # whatever a rotten file makes of it
                raise WeightsearchError(
                    f"{progress} is damaged ({type(error).__name__}); remove it, and the fit starts anew"
                ) from error
        for epoch in range(len(self.losses) + 1, self.settings.epochs + 1):
            self._train(epoch)
            self.losses.append(self._validate())
            if self.losses[-1] < (self.losses[self.best_epoch - 1] if self.best_epoch else float("inf")):
                self.best_epoch, self.best_state = epoch, copy.deepcopy(self.encoder.state_dict())
            if on_epoch and on_epoch(epoch, self.losses[-1]):
                return True
            if epoch - self.best_epoch >= self.settings.patience or not np.isfinite(self.losses[-1]):
                break
            if progress is not None and time.perf_counter() - saved > PROGRESS_SECONDS:
                self._save(progress)
                saved = time.perf_counter()
        return False

    def best_encoder(self) -> Encoder:
        """As of the best epoch, on the processor."""
        if self.best_epoch == 0:
            method = self.encoder.config.method
            raise WeightsearchError(f"fitting {method} diverged (its loss is NaN); choose a lower learning rate")
        self.encoder.load_state_dict(self.best_state)
        self.encoder.draw_from(None)
        return self.encoder.cpu()

    def _train(self, epoch: int) -> None:
        """One pass over the training part, in a new order."""
        self.encoder.train()
        order = self.shuffler.permutation(self.split.train)
        for start in range(0, len(order), self.settings.batch_size):
            batch = order[start : start + self.settings.batch_size]
            error = (self.encoder(self.features(batch)) - self.truth[batch]) / self.span
            loss = error.square().mean()
            if self.settings.one_cycle:
                share = (epoch - 1 + start / len(order)) / self.settings.epochs
                for group in self.optimizer.param_groups:
                    group["lr"] = self.settings.learning_rate * one_cycle(share)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _validate(self) -> float:
        """The mean squared error on the validation part, in the target's own units."""
        positions = self.split.validation
        return float(np.mean((predict(self.encoder, self.features, positions) - self.values[positions]) ** 2))

    def _save(self, path: Path) -> None:
        content = {
            "encoder": self.encoder.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "shuffler": json.dumps(self.shuffler.bit_generator.state),
            "noise": self.noise.get_state(),
            "losses": self.losses,
        }
        with replacing(path) as temporary:
            torch.save(content, temporary)

    def _resume(self, path: Path) -> None:
        """Sets everything as `_save` found it."""
        content = torch.load(path, weights_only=True, map_location="cpu")
        self.encoder.load_state_dict(content["encoder"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.shuffler.bit_generator.state = json.loads(content["shuffler"])
        self.noise.set_state(content["noise"])
        self.losses, self.best_state = content["losses"], content["best"]
        self.best_epoch = int(np.argmin(self.losses)) + 1


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
