"""From layers' features to an embedding and an accuracy: each layer by one network, then what all of them say.

Deep sets (Zaheer et al. 2017, https://arxiv.org/abs/1703.06114) with one round in which each layer also sees the whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsearch.encoders.universal.described import Described

CLIP = 4.0  # standardised features beyond are drawn towards it
BELOW = 0.15  # a network may be worse than a guess, by this share of what lies above it


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of one member of the ensemble."""

    layer_features: int
    whole_features: int
    width: int = 96
    embedding: int = 24
    dropout: float = 0.1


@dataclass(frozen=True)
class Batch:
    """B networks of T layers in all, standardised: layers `(T, F)`, owner `(T,)`, first and head `(B,)` places in T,
    whole `(B, G)`, chance `(B,)`."""

    layers: Tensor
    owner: Tensor
    first: Tensor
    head: Tensor
    whole: Tensor
    chance: Tensor


class Standard(nn.Module):
    """Features to a median of nought and a spread of one, outliers drawn in."""

    centre: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, values: np.ndarray) -> None:
        low, centre, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
        scale = np.maximum((high - low) / 2.56, 0.3 * values.std(0))
        self.centre.copy_(torch.from_numpy(centre.astype(np.float32)))
        self.scale.copy_(torch.from_numpy(np.where(scale > 1e-4, scale, 1.0).astype(np.float32)))

    def forward(self, values: Tensor) -> Tensor:
        return CLIP * torch.tanh((values - self.centre) / (CLIP * self.scale))


class Network(nn.Module):
    """One member: layers' features -> embedding `(B, embedding)` of norm 1 -> accuracy `(B,)`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.layer_standard = Standard(config.layer_features)
        self.whole_standard = Standard(config.whole_features)
        self.layer = nn.Sequential(
            nn.Linear(config.layer_features, width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )
        self.context = nn.Sequential(
            nn.Linear(4 * width + config.whole_features, width), nn.GELU(), nn.Dropout(config.dropout),
            nn.Linear(width, width),
        )  # fmt: skip
        self.summary = nn.Sequential(
            nn.Linear(4 * width + config.whole_features, width), nn.GELU(), nn.Dropout(config.dropout),
            nn.Linear(width, config.embedding),
        )  # fmt: skip
        self.predictor = nn.Sequential(nn.Linear(config.embedding, 32), nn.GELU(), nn.Linear(32, 1))

    def batch(self, described: Described) -> Batch:
        """Standardised, as tensors."""
        starts = torch.from_numpy(np.asarray(described.starts))
        lengths = starts.diff()
        return Batch(
            layers=self.layer_standard(torch.from_numpy(described.layers)),
            owner=torch.repeat_interleave(torch.arange(len(described)), lengths),
            first=starts[:-1],
            head=starts[:-1] + torch.from_numpy(described.head),
            whole=self.whole_standard(torch.from_numpy(described.whole)),
            chance=torch.from_numpy(described.chance),
        )

    def embed(self, batch: Batch) -> Tensor:
        hidden = self.layer(batch.layers)  # (T, width)
        seen = self._pool(hidden, batch)  # (B, 4 width)
        around = torch.cat([seen, batch.whole], 1)
        hidden = F.gelu(hidden + self.context(around)[batch.owner])
        return F.normalize(self.summary(torch.cat([self._pool(hidden, batch), batch.whole], 1)), dim=1)

    def _pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        size = len(batch.first)
        counts = torch.bincount(batch.owner, minlength=size).unsqueeze(1)
        mean = torch.zeros(size, hidden.shape[1]).index_add(0, batch.owner, hidden) / counts
        index = batch.owner.unsqueeze(1).expand_as(hidden)
        largest = torch.full_like(mean, -torch.inf).scatter_reduce(0, index, hidden, "amax")
        return torch.cat([mean, largest, hidden[batch.first], hidden[batch.head]], 1)

    def predict(self, embedding: Tensor, chance: Tensor) -> Tensor:
        share = (1 + BELOW) * torch.sigmoid(self.predictor(embedding).squeeze(1)) - BELOW
        return chance + (1 - chance) * share

    def to_dict(self) -> dict[str, object]:
        return asdict(self.config)
