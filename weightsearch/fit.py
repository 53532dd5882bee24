"""Fitting one encoder on a zoo: split by run, train, stop early on validation runs, score the test runs once."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightsearch.encoders import Encoder, EncoderConfig, build_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.metrics import Prediction, score
from weightsearch.types import Method
from weightsearch.zoo.store import Zoo

SPLIT_SHARES = (0.70, 0.15, 0.15)
EVALUATION_BATCH = 512
FEATURE_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Split:
    """Run numbers of each part of a zoo. All checkpoints of a run lie in one part, since they are near-copies."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def name_of(self, run: int) -> str:
        return "train" if run in self.train else "validation" if run in self.validation else "test"


@dataclass(frozen=True)
class FitSettings:
    """How an encoder is fitted; AdamW on the mean squared error of the accuracy, minibatches reshuffled each epoch."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    batch_size: int = 128
    epochs: int = 300
    patience: int = 20  # epochs without a better validation loss before stopping


@dataclass(frozen=True)
class Fit:
    """A fitted encoder, its best epoch's scores, and its settings."""

    encoder: Encoder
    settings: FitSettings
    validation: Prediction
    epochs: int
    seconds: float


# One setting each that does well on validation runs; a search over many is `tune`.
DEFAULTS: dict[Method, tuple[EncoderConfig, FitSettings]] = {
    Method.COMVEX_CONV: (
        EncoderConfig(Method.COMVEX_CONV, embedding_size=64, hidden_layers=2, hidden_size=256, dropout=0.2),
        FitSettings(learning_rate=5e-4, weight_decay=1e-2),
    ),
    Method.STATISTICS: (
        EncoderConfig(Method.STATISTICS, embedding_size=64, hidden_layers=2, hidden_size=256, input_noise=0.1),
        FitSettings(),
    ),
}


def split_by_run(runs: np.ndarray, seed: int) -> Split:
    """Splits the distinct run numbers among `runs` 70/15/15, shuffled by `seed`."""
    distinct = np.unique(runs)
    if len(distinct) < 8:
        raise WeightsearchError(
            f"the zoo has {len(distinct)} finished run(s); splitting by run into train, validation and test needs "
            "at least 8: build more runs"
        )
    shuffled = np.random.default_rng(seed).permutation(distinct)
    held = max(1, round(len(distinct) * SPLIT_SHARES[1]))
    test, validation, train = shuffled[:held], shuffled[held : 2 * held], shuffled[2 * held :]
    return Split(*(tuple(sorted(part.tolist())) for part in (train, validation, test)))


class Features:
    """The features of a zoo's checkpoints, by position: kept in memory where small, else read as they are needed."""

    def __init__(self, zoo: Zoo, encoder: Encoder, positions: np.ndarray) -> None:
        self._zoo, self._encoder = zoo, encoder
        self._rows: dict[int, int] = {}
        self._kept: Tensor | None = None
        first = self._compute(positions[:1])
        if first.numel() * 4 * len(positions) <= FEATURE_CACHE_BYTES:
            batches = np.array_split(positions, max(1, len(positions) // EVALUATION_BATCH))
            self._kept = torch.cat([self._compute(batch) for batch in batches])
            self._rows = {int(position): row for row, position in enumerate(positions)}

    def __call__(self, positions: np.ndarray) -> Tensor:
        """Features `(len(positions), F)`."""
        if self._kept is None:
            return self._compute(positions)
        return self._kept[[self._rows[int(position)] for position in positions]]

    def _compute(self, positions: np.ndarray) -> Tensor:
        with torch.no_grad():
            return self._encoder.features(torch.from_numpy(self._zoo.weights(positions)))


def fit(
    zoo: Zoo,
    split: Split,
    config: EncoderConfig,
    settings: FitSettings,
    *,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Fit:
    """Fits one encoder on the training runs and keeps the epoch with the lowest validation loss.

    `on_epoch(epoch, validation_loss)` is called after every epoch.
    """
    started = time.perf_counter()
    table = zoo.table()
    truth = torch.from_numpy(table.test_accuracy).float()
    train = np.flatnonzero(np.isin(table.run, split.train))
    validation = np.flatnonzero(np.isin(table.run, split.validation))
    if np.ptp(table.test_accuracy[train]) == 0:
        raise WeightsearchError(f"{zoo.path}: every training run has the same accuracy; there is nothing to learn")

    generator = torch.Generator().manual_seed(seed)
    shuffler = np.random.default_rng(seed)
    encoder = build_encoder(zoo.architecture, config, generator)
    features = Features(zoo, encoder, np.concatenate([train, validation]))
    encoder.calibrate(features(train[:: max(1, len(train) * 4 * zoo.architecture.size // FEATURE_CACHE_BYTES + 1)]))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    best_loss, best_epoch, best_state = float("inf"), 0, copy.deepcopy(encoder.state_dict())
    with torch.random.fork_rng(devices=[]):  # dropout and noise draw from torch's global generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for epoch in range(1, settings.epochs + 1):
            encoder.train()
            order = shuffler.permutation(train)
            for start in range(0, len(order), settings.batch_size):
                batch = order[start : start + settings.batch_size]
                loss = torch.nn.functional.mse_loss(encoder(features(batch)), truth[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            predicted = predict(encoder, features, validation)
            validation_loss = float(np.mean((predicted - table.test_accuracy[validation]) ** 2))
            if validation_loss < best_loss:
                best_loss, best_epoch, best_state = validation_loss, epoch, copy.deepcopy(encoder.state_dict())
            if on_epoch:
                on_epoch(epoch, validation_loss)
            if epoch - best_epoch >= settings.patience:
                break
    encoder.load_state_dict(best_state)
    predicted = predict(encoder, features, validation)
    return Fit(
        encoder.eval(),
        settings,
        score(predicted, table.test_accuracy[validation]),
        epoch,
        time.perf_counter() - started,
    )


def predict(encoder: Encoder, features: Features, positions: np.ndarray) -> np.ndarray:
    """Predicted accuracies `(len(positions),)` in evaluation mode."""
    encoder.eval()
    with torch.no_grad():
        batches = np.array_split(positions, max(1, len(positions) // EVALUATION_BATCH))
        return torch.cat([encoder(features(batch)) for batch in batches]).double().numpy()


def embed_zoo(zoo: Zoo, encoder: Encoder, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `(n, D)` float32 and predicted accuracies `(n,)` of the checkpoints at `positions`."""
    embeddings, predictions = [], []
    for batch in np.array_split(positions, max(1, len(positions) // EVALUATION_BATCH)):
        embedding, predicted = encoder.embed(torch.from_numpy(zoo.weights(batch)))
        embeddings.append(embedding.numpy())
        predictions.append(predicted.double().numpy())
    return np.concatenate(embeddings), np.concatenate(predictions)
