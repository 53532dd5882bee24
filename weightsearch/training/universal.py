"""Fitting the encoder of all architectures on described networks and their accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightsearch.encoders.universal.described import Described, concatenate, describe
from weightsearch.encoders.universal.encoder import SQUASH, Detector, UniversalEncoder
from weightsearch.encoders.universal.network import Network, NetworkConfig, centre_and_scale
from weightsearch.encoders.universal.trees import Trees
from weightsearch.training.damage import Damage, damaged
from weightsearch.zoo.store import Zoo

BLOCK_VALUES = 2**23  # weights that are described together


@dataclass(frozen=True)
class UniversalSettings:
    """How one member of the ensemble is fitted."""

    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 5e-2
    input_noise: float = 0.1  # standard deviations, on standardised features
    neighbours: float = 0.5  # weight of the loss by which near embeddings have like accuracies
    temperature: float = 0.05


def fit_member(
    pooled: np.ndarray,
    chance: np.ndarray,
    accuracy: np.ndarray,
    run: np.ndarray,
    settings: UniversalSettings,
    *,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Network:
    """Fit on n networks' pooled features `(n, F)`, chance levels, accuracies and runs, `(n,)` each.

    The loss is the squared error of the prediction, and of a prediction from the other networks of the batch, of other
    runs, by their distances (neighbourhood components: Goldberger et al. 2004).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(NetworkConfig(pooled.shape[1]))
        network.calibrate(pooled)
        features, guess = network.normalise(pooled), torch.from_numpy(chance.astype(np.float32))
        targets, runs = torch.from_numpy(accuracy.astype(np.float32)), torch.from_numpy(np.asarray(run, np.int64))
        steps = settings.epochs * math.ceil(len(pooled) / settings.batch_size)
        optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
        network.train()
        for epoch in range(settings.epochs):
            total = 0.0
            for chosen in torch.randperm(len(pooled), generator=generator).split(settings.batch_size):
                noise = torch.randn(len(chosen), features.shape[1], generator=generator)
                embedding = network.embed(features[chosen] + settings.input_noise * noise)
                loss = F.mse_loss(network.predict(embedding, guess[chosen]), targets[chosen])
                near = _neighbour_loss(embedding, targets[chosen], runs[chosen], settings.temperature)
                loss = loss + settings.neighbours * near
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
            if on_epoch is not None:
                on_epoch(epoch, total / len(pooled))
    return network.eval()


def _neighbour_loss(embedding: Tensor, targets: Tensor, runs: Tensor, temperature: float) -> Tensor:
    closeness = embedding @ embedding.T / temperature
    closeness = closeness.masked_fill(runs[:, None] == runs[None, :], -1e9)
    return F.mse_loss(torch.softmax(closeness, 1) @ targets, targets)


@dataclass(frozen=True)
class TreeSettings:
    """LightGBM's, for trees on pooled features."""

    count: int = 350
    learning_rate: float = 0.06
    leaves: int = 15
    leaf_networks: int = 12
    feature_share: float = 0.2
    row_share: float = 0.7


def fit_trees(
    pooled: np.ndarray, values: np.ndarray, settings: TreeSettings, *, seed: int, classify: bool = False
) -> Trees:
    """Boosted trees on pooled features `(n, F)`; values `(n,)` are numbers, or 0 and 1 to tell apart."""
    import lightgbm

    options = {
        "objective": "binary" if classify else "regression",
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.leaf_networks,
        "feature_fraction": settings.feature_share,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "lambda_l2": 1.0,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "verbose": -1,
    }
    # In single precision, as the trees are kept and asked: else a threshold would be rounded to its other side.
    booster = lightgbm.train(options, lightgbm.Dataset(pooled.astype(np.float32), values), settings.count)
    return Trees.from_lightgbm(booster)


def fit_detector(described: Described, held_out: Described, runs: np.ndarray, axes: int = 64) -> Detector:
    """From the fitted networks and from held-out ones with their runs `(m,)`.

    The limit is the 95th percentile of held-out runs' largest residuals.
    """
    pooled = described.pooled()
    centre, scale = centre_and_scale(pooled)
    z = SQUASH * np.tanh((pooled - centre) / (SQUASH * scale))
    _, directions = np.linalg.eigh(z.T @ z / len(z))
    kept = directions[:, ::-1][:, : min(axes, len(z) // 4, z.shape[1])]
    known = frozenset().union(*described.built)
    detector = Detector(centre, scale, kept.astype(np.float32), limit=1.0, constructions=known)
    residual = detector.residual(held_out.pooled())
    worst = np.array([residual[runs == run].max() for run in np.unique(runs)])
    return replace(detector, limit=float(np.quantile(worst, 0.95)))


def fit_universal(
    described: Described,
    accuracy: np.ndarray,
    run: np.ndarray,
    held_out: Described,
    held_out_run: np.ndarray,
    *,
    members: int = 3,
    seed: int = 0,
    settings: UniversalSettings | None = None,
    trees: TreeSettings | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> UniversalEncoder:
    """The whole encoder but for its detector of damage, which needs weights: see `fit_damage`.

    Args:
        described, accuracy, run: n networks to fit on, their accuracies `(n,)` and runs `(n,)`.
        held_out, held_out_run: networks of other runs, which decide what counts as unknown.
        on_epoch: called with the number of an epoch, over all members, and its loss.
    """
    settings = settings or UniversalSettings()
    pooled = described.pooled()
    fitted = []
    for i in range(members):
        before = i * settings.epochs

        def advance(epoch: int, loss: float, before: int = before) -> None:
            if on_epoch is not None:
                on_epoch(before + epoch, loss)

        fitted.append(fit_member(pooled, described.chance, accuracy, run, settings, seed=seed + i, on_epoch=advance))
    share = (accuracy - described.chance) / (1 - described.chance)
    grown = fit_trees(pooled, share, trees or TreeSettings(), seed=seed)
    return UniversalEncoder(fitted, grown, fit_detector(described, held_out, held_out_run), None)


def fit_damage(
    encoder: UniversalEncoder,
    sound: Described,
    broken: Described,
    held_out: Described,
    held_out_run: np.ndarray,
    *,
    seed: int = 0,
) -> UniversalEncoder:
    """The encoder with a detector of damage, fitted on sound networks and damaged copies of them.

    The limit leaves 5 in 100 of the held-out sound runs with a false alarm.
    """
    features = np.concatenate([sound.pooled(), broken.pooled()])
    labels = np.concatenate([np.zeros(len(sound)), np.ones(len(broken))])
    settings = TreeSettings(count=200, learning_rate=0.1)
    trees = fit_trees(features, labels, settings, seed=seed, classify=True)
    score = 1 / (1 + np.exp(-trees.predict(held_out.pooled())))
    worst = np.array([score[held_out_run == run].max() for run in np.unique(held_out_run)])
    limit = float(np.quantile(worst, 0.95))
    return UniversalEncoder(encoder.members, encoder.trees, encoder.detector, trees, limit, encoder.notes)


def describe_zoo_networks(zoo: Zoo, positions: np.ndarray) -> Described:
    """A zoo's checkpoints at `positions`, in that order, of whatever architectures."""
    positions = np.asarray(positions, int)
    parts, order = [], []
    for architecture, places in zoo.groups(positions):
        step = max(1, BLOCK_VALUES // architecture.size)
        for start in range(0, len(places), step):
            chosen = places[start : start + step]
            parts.append(describe(zoo.weights(positions[chosen]), architecture))
            order.append(chosen)
    return concatenate(parts).take(np.argsort(np.concatenate(order)))


def describe_damaged(zoo: Zoo, positions: np.ndarray, *, seed: int = 0) -> tuple[Described, np.ndarray]:
    """One damaged copy of each checkpoint at `positions`, the kinds in turn, and which kind each is `(n,)`."""
    rng = np.random.default_rng([seed, 3])
    kinds = np.array([list(Damage)[i % len(Damage)] for i in range(len(positions))])
    parts, order = [], []
    for architecture, places in zoo.groups(positions):
        weights = zoo.weights(np.asarray(positions)[places])
        broken = [
            damaged(flat, architecture, Damage(kinds[place]), rng) for flat, place in zip(weights, places, strict=True)
        ]
        parts.append(describe(np.stack(broken), architecture))
        order.append(places)
    return concatenate(parts).take(np.argsort(np.concatenate(order))), kinds
