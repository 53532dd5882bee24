"""What all encoders share: weights -> features -> embedding -> predicted accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightsearch.types import Architecture, Method


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is made of; saved beside it as JSON.

    `embedding_size` is the width of the embedding (`statistics`) or its share per layer (ComVeX's E).
    `input_noise` is the standard deviation of Gaussian noise on the normalised features while fitting.
    """

    method: Method
    embedding_size: int = 64
    hidden_layers: int = 2
    hidden_size: int = 256
    dropout: float = 0.1
    input_noise: float = 0.0


class Encoder(nn.Module):
    """An encoder with its predictor on top. B networks of P weights each; features F, embedding D.

    Subclasses give `embedding_width`, `features`, `calibrate` and `encode`. Features are what a fit may compute
    once and keep: they have no parameters. `calibrate` sets the normalisation from the training split alone.
    """

    predictor: nn.Sequential

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.config = config

    @property
    def embedding_width(self) -> int:
        raise NotImplementedError

    def features(self, weights: Tensor) -> Tensor:
        """Weights `(B, P)` -> features `(B, F)`; the weights themselves unless a subclass says otherwise."""
        return weights

    def calibrate(self, features: Tensor) -> None:
        """Sets the normalisation from features of the training split `(B, F)`."""
        raise NotImplementedError

    def encode(self, features: Tensor) -> Tensor:
        """Features `(B, F)` -> embedding `(B, D)`."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, F)` -> predicted accuracy `(B,)` in [0, 1]."""
        return self.predict(self.encode(features))

    def predict(self, embedding: Tensor) -> Tensor:
        """Embedding `(B, D)` -> predicted accuracy `(B,)` in [0, 1]."""
        return torch.sigmoid(self.predictor(embedding)).squeeze(-1)

    @torch.no_grad()
    def embed(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(B, P)` -> embedding `(B, D)` and predicted accuracy `(B,)`, dropout and noise off."""
        self.eval()
        embedding = self.encode(self.features(weights))
        return embedding, self.predict(embedding)

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def _make_predictor(self) -> nn.Sequential:
        """Hidden layers (ReLU, dropout) and one output, before its sigmoid."""
        config, width = self.config, self.embedding_width
        layers: list[nn.Module] = []
        for _ in range(config.hidden_layers):
            layers += [nn.Linear(width, config.hidden_size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = config.hidden_size
        return nn.Sequential(*layers, nn.Linear(width, 1))

    def _noisy(self, features: Tensor) -> Tensor:
        """Adds the configured input noise while fitting."""
        if self.training and self.config.input_noise > 0:
            return features + self.config.input_noise * torch.randn_like(features)
        return features
