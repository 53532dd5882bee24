"""Weight statistics through a small MLP: blind to the order of units (Unterthiner et al. 2020, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightsearch.encoders.base import KNOTS, Dropout, Encoder, EncoderConfig, normal_scores, seven_statistics
from weightsearch.types import Architecture

STATISTICS = ("minimum", "quartile 1", "median", "quartile 3", "maximum", "mean", "standard deviation")


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
            Dropout(config.dropout),
            nn.Linear(config.hidden_size, config.embedding_size),
        )
        self.predictor = self._make_predictor()

    @property
    def embedding_width(self) -> int:
        return self.config.embedding_size

    def features(self, weights: Tensor, activations: Tensor | None = None, summaries: Tensor | None = None) -> Tensor:
        blocks = []
        for part, layer in zip(self.architecture.slices, self.architecture.layers, strict=True):
            matrix = weights[:, part].view(len(weights), layer.rows, layer.columns)
            inputs = layer.weight_columns
            blocks.append(matrix[:, :, :inputs].flatten(1))  # (B, rows * own)
            blocks += [matrix[:, :, inputs + i] for i in range(len(layer.extras))]  # (B, rows) each
        return torch.cat([seven_statistics(block) for block in blocks], dim=1)  # (B, F)

    def calibrate(self, features: Tensor) -> None:
        probabilities = torch.linspace(0, 1, KNOTS, dtype=features.dtype)
        self.knots.copy_(torch.quantile(features, probabilities, dim=0).T)

    def encode(self, normalised: Tensor) -> Tensor:
        return self.body(self._noisy(normalised))

    def normalise(self, features: Tensor) -> Tensor:
        return normal_scores(features, self.knots)
