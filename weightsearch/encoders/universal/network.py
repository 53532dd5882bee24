"""From a network's features, pooled over its layers, to an embedding and an accuracy.

Sets of layers of any size become one row by their mean, deviation and extremes (cf. deep sets, Zaheer et al. 2017,
https://arxiv.org/abs/1703.06114); what reads the row is an ordinary network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP = 4.0  # standardised features beyond are drawn towards it
BELOW = 0.15  # a network may be worse than a guess, by this share of what lies above it


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of one member of the ensemble."""

    features: int
    width: int = 192
    embedding: int = 24
    dropout: float = 0.2


class Network(nn.Module):
    """One member: pooled features `(B, F)` -> embedding `(B, embedding)` of norm 1 -> accuracy `(B,)`."""

    centre: Tensor
    scale: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centre", torch.zeros(config.features))
        self.register_buffer("scale", torch.ones(config.features))
        self.encode = nn.Sequential(
            nn.Linear(config.features, config.width), nn.GELU(), nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width), nn.GELU(), nn.Dropout(config.dropout),
            nn.Linear(config.width, config.embedding),
        )  # fmt: skip
        self.predictor = nn.Sequential(nn.Linear(config.embedding, 32), nn.GELU(), nn.Linear(32, 1))

    def calibrate(self, pooled: np.ndarray) -> None:
        """Sets the normalisation from features of the fitted networks `(n, F)`."""
        centre, scale = centre_and_scale(pooled)
        self.centre.copy_(torch.from_numpy(centre))
        self.scale.copy_(torch.from_numpy(scale))

    def normalise(self, pooled: np.ndarray) -> Tensor:
        values = torch.from_numpy(np.asarray(pooled, np.float32))
        return CLIP * torch.tanh((values - self.centre) / (CLIP * self.scale))

    def embed(self, normalised: Tensor) -> Tensor:
        return F.normalize(self.encode(normalised), dim=1)

    def predict(self, embedding: Tensor, chance: Tensor) -> Tensor:
        """Embedding `(B, embedding)` and the accuracy of a guess `(B,)` -> accuracy `(B,)`."""
        share = (1 + BELOW) * torch.sigmoid(self.predictor(embedding).squeeze(1)) - BELOW
        return chance + (1 - chance) * share


def centre_and_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and spread of each column of `values (n, F)`, float32; the spread is 1 where a column is constant."""
    low, centre, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
    scale = np.maximum((high - low) / 2.56, 0.3 * values.std(0))
    return centre.astype(np.float32), np.where(scale > 1e-4, scale, 1.0).astype(np.float32)
