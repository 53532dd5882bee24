"""Fitting the encoder of all architectures on described networks and their accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightsearch.encoders.universal.damage import DamageDetector
from weightsearch.encoders.universal.described import Described, concatenate, describe
from weightsearch.encoders.universal.detector import Detector
from weightsearch.encoders.universal.encoder import UniversalEncoder
from weightsearch.encoders.universal.graph import graph
from weightsearch.encoders.universal.network import Network, NetworkConfig, centre_and_scale
from weightsearch.encoders.universal.order import in_running_order
from weightsearch.encoders.universal.trees import Trees
from weightsearch.optimizers import eager
from weightsearch.training.damage import Damage, damaged
from weightsearch.zoo.store import Zoo

BLOCK_VALUES = 2**23  # weights that are described together
FALSE_ALARMS = 0.05  # of held-out runs as unknown, of held-out networks as damaged
AXES = 128  # in which known networks may differ
LEAST_USUAL = 0.05  # of a residual: features that never differ among known networks are not infinitely telling


@dataclass(frozen=True)
class UniversalSettings:
    """How one member of the ensemble is fitted."""

    epochs: int = 25
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 5e-2
    input_noise: float = 0.3  # standard deviations, on standardised features
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
        rate, decay = settings.learning_rate, settings.weight_decay
        optimizer = eager(torch.optim.AdamW)(network.parameters(), lr=rate, weight_decay=decay)
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

    count: int = 600
    learning_rate: float = 0.05
    leaves: int = 15
    leaf_networks: int = 20
    feature_share: float = 0.2
    row_share: float = 0.7
    random_thresholds: bool = True  # as in extremely randomized trees: a run's checkpoints are near-copies


DAMAGE_TREES = TreeSettings(count=250, learning_rate=0.1, leaves=24, leaf_networks=12, random_thresholds=False)


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
        "extra_trees": settings.random_thresholds,
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


def fit_detector(described: Described, held_out: Described, runs: np.ndarray, axes: int = AXES) -> Detector:
    """From the fitted networks and from held-out ones with their runs `(m,)`.

    The limit is the 95th percentile of held-out runs' largest residuals.
    """
    pooled = described.pooled()
    centre, scale = centre_and_scale(pooled)
    constructions = frozenset().union(*described.built)
    plain = Detector(centre, scale, np.zeros((len(centre), 0), np.float32), np.ones_like(centre), 1.0, constructions)
    z = plain.standardised(pooled)
    _, directions = np.linalg.eigh(z.T @ z / len(z))
    kept = directions[:, ::-1][:, : min(axes, len(z) // 4, z.shape[1])]
    detector = replace(plain, axes=kept.astype(np.float32))
    usual = np.sqrt((detector.left(pooled) ** 2).mean(0) + LEAST_USUAL**2).astype(np.float32)
    detector = replace(detector, usual=usual)
    residual = detector.residual(held_out.pooled())
    largest = [residual[runs == run].max() for run in np.unique(runs)]
    return replace(detector, limit=float(np.quantile(largest, 1 - FALSE_ALARMS)))


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
    broken: Broken,
    held_out: Described,
    *,
    seed: int = 0,
) -> UniversalEncoder:
    """The encoder with a detector of damage, fitted on sound networks and damaged copies of them.

    The limits leave at most 5 in 100 of the held-out sound networks with a false alarm.
    """
    described = broken.described
    networks = np.concatenate([sound.pooled(), described.pooled()])
    network = fit_trees(
        networks, np.repeat([0.0, 1.0], [len(sound), len(described)]), DAMAGE_TREES, seed=seed, classify=True
    )
    layers = np.concatenate([sound.in_context(), described.in_context()])
    labels = np.concatenate([np.zeros(len(sound.layers)), broken.layers])
    layer = fit_trees(layers, labels, DAMAGE_TREES, seed=seed, classify=True)
    detector = DamageDetector(network, layer, 0.0, 0.0)
    limits = [float(np.quantile(of, 1 - FALSE_ALARMS / 2)) for of in detector.logits(held_out, held_out.pooled())]
    detector = replace(detector, network_limit=limits[0], layer_limit=limits[1])
    return UniversalEncoder(encoder.members, encoder.trees, encoder.detector, detector, encoder.notes)


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


@dataclass(frozen=True)
class Broken:
    """Damaged copies of n networks with T layers in all: kinds `(n,)`, and which of the layers are damaged `(T,)`."""

    described: Described
    kinds: np.ndarray
    layers: np.ndarray


def describe_damaged(zoo: Zoo, positions: np.ndarray, *, seed: int = 0) -> Broken:
    """One damaged copy of each checkpoint at `positions`, the kinds in turn."""
    rng = np.random.default_rng([seed, 3])
    kinds = np.array([list(Damage)[i % len(Damage)] for i in range(len(positions))])
    parts, order, layers = [], [], {}
    for architecture, places in zoo.groups(positions):
        weights, architecture = in_running_order(zoo.weights(np.asarray(positions)[places]), architecture)
        links = graph(architecture)
        copies = []
        for flat, place in zip(weights, places, strict=True):
            copy, touched = damaged(flat, architecture, Damage(kinds[place]), rng)
            copies.append(copy)
            layers[int(place)] = [node.layer in touched for node in (links.nodes if links else ())]
        parts.append(describe(np.stack(copies), architecture))
        order.append(places)
    described = concatenate(parts).take(np.argsort(np.concatenate(order)))
    return Broken(described, kinds, np.concatenate([layers[i] for i in range(len(positions))]))
