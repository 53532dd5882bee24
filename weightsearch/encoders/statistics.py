"""Weight statistics through a small MLP: blind to the order of units (Unterthiner et al. 2020, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightsearch.encoders.base import Encoder, EncoderConfig
from weightsearch.types import Architecture

STATISTICS = ("minimum", "quartile 1", "median", "quartile 3", "maximum", "mean", "standard deviation")
KNOTS = 257  # points of the empirical distribution kept for each statistic


class Statistics(Encoder):
    """Seven statistics of each layer's weights and of each extra column (the bias), 56 for four layers.

    Each is mapped to a standard normal by the training split's quantiles, then goes through an MLP whose last layer
    is the embedding.
    """

    knots: Tensor

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__(architecture, config)
        width = len(STATISTICS) * sum(1 + len(layer.extras) for layer in architecture.layers)
        self.register_buffer("knots", torch.zeros(width, KNOTS))  # (F, KNOTS), ascending once calibrated
        self.body = nn.Sequential(
            nn.Linear(width, config.hidden_size),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_size, config.embedding_size),
        )
        self.predictor = self._make_predictor()

    @property
    def embedding_width(self) -> int:
        return self.config.embedding_size

    def features(self, weights: Tensor) -> Tensor:
        blocks = []
        for part, layer in zip(self.architecture.slices, self.architecture.layers, strict=True):
            matrix = weights[:, part].view(len(weights), layer.rows, layer.columns)
            own = layer.columns - len(layer.extras)
            blocks.append(matrix[:, :, :own].flatten(1))  # (B, rows * own)
            blocks += [matrix[:, :, own + i] for i in range(len(layer.extras))]  # (B, rows) each
        return torch.cat([_seven(block) for block in blocks], dim=1)  # (B, F)

    def calibrate(self, features: Tensor) -> None:
        probabilities = torch.linspace(0, 1, KNOTS, dtype=features.dtype)
        self.knots.copy_(torch.quantile(features, probabilities, dim=0).T)

    def encode(self, normalised: Tensor) -> Tensor:
        return self.body(self._noisy(normalised))

    def normalise(self, features: Tensor) -> Tensor:
        """Features `(B, F)` -> standard normal scores, by linear interpolation between the knots."""
        values = features.T.contiguous()  # (F, B)
        right = torch.searchsorted(self.knots, values).clamp(1, KNOTS - 1)
        low, high = self.knots.gather(1, right - 1), self.knots.gather(1, right)
        share = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        rank = (right - 1 + share) / (KNOTS - 1)
        edge = 0.5 / KNOTS
        return math.sqrt(2) * torch.erfinv(2 * rank.clamp(edge, 1 - edge) - 1).T


def _seven(block: Tensor) -> Tensor:
    """The seven statistics of each row of `block (B, n)` -> `(B, 7)`; quartiles interpolate linearly."""
    ordered = block.sort(dim=1).values
    position = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]) * (block.shape[1] - 1)
    below = position.floor().long()
    above = position.ceil().long()
    share = position - below
    five = torch.lerp(ordered[:, below], ordered[:, above], share)
    spread = block.std(dim=1, correction=0)
    return torch.cat([five, block.mean(dim=1, keepdim=True), spread[:, None]], dim=1)
