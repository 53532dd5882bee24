"""Fitting the encoder of all architectures on described networks and their accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightsearch.encoders.universal.described import Described
from weightsearch.encoders.universal.network import Batch, Network, NetworkConfig


@dataclass(frozen=True)
class UniversalSettings:
    """How one member of the ensemble is fitted."""

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 2e-2
    input_noise: float = 0.05  # standard deviations, on standardised features
    neighbours: float = 0.5  # weight of the loss by which near embeddings have like accuracies
    temperature: float = 0.05


def fit_member(
    described: Described,
    accuracy: np.ndarray,
    run: np.ndarray,
    settings: UniversalSettings,
    config: NetworkConfig,
    *,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Network:
    """Fit on n described networks, their accuracies `(n,)` and runs `(n,)`.

    The loss is the squared error of the prediction, and of a prediction from the other networks of the batch, of other
    runs, by their distances (neighbourhood components: Goldberger et al. 2004).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config)
        network.layer_standard.fit(described.layers)
        network.whole_standard.fit(described.whole)
        everything = network.batch(described)
        starts = torch.from_numpy(np.asarray(described.starts))
        targets, runs = torch.from_numpy(accuracy.astype(np.float32)), torch.from_numpy(np.asarray(run, np.int64))
        steps = settings.epochs * math.ceil(len(described) / settings.batch_size)
        optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
        for epoch in range(settings.epochs):
            network.train()
            total = 0.0
            for chosen in torch.randperm(len(described), generator=generator).split(settings.batch_size):
                batch = _take(everything, starts, chosen)
                noisy = Batch(
                    batch.layers + settings.input_noise * torch.randn(batch.layers.shape, generator=generator),
                    batch.owner, batch.first, batch.head,
                    batch.whole + settings.input_noise * torch.randn(batch.whole.shape, generator=generator),
                    batch.chance,
                )  # fmt: skip
                embedding = network.embed(noisy)
                loss = F.mse_loss(network.predict(embedding, batch.chance), targets[chosen])
                if settings.neighbours:
                    loss = loss + settings.neighbours * _neighbour_loss(
                        embedding, targets[chosen], runs[chosen], settings.temperature
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
            if on_epoch is not None:
                on_epoch(epoch, total / len(described))
    return network.eval()


def _take(everything: Batch, starts: Tensor, chosen: Tensor) -> Batch:
    lengths = starts.diff()[chosen]
    ends = lengths.cumsum(0)
    begins = ends - lengths
    owner = torch.repeat_interleave(torch.arange(len(chosen)), lengths)
    rows = torch.arange(int(ends[-1])) - begins[owner] + starts[:-1][chosen][owner]
    head = everything.head[chosen] - everything.first[chosen] + begins
    return Batch(everything.layers[rows], owner, begins, head, everything.whole[chosen], everything.chance[chosen])


def _neighbour_loss(embedding: Tensor, targets: Tensor, runs: Tensor, temperature: float) -> Tensor:
    closeness = embedding @ embedding.T / temperature
    closeness = closeness.masked_fill(runs[:, None] == runs[None, :], -1e9)
    return F.mse_loss(torch.softmax(closeness, 1) @ targets, targets)
