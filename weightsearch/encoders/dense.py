"""Encoders whose first layer is dense: over all weights at once, or per layer (Liu 2022, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightsearch.encoders.base import Dropout, EncoderConfig, WeightEncoder, dense
from weightsearch.types import Architecture


class Fc(WeightEncoder):
    """All weights flattened, one dense layer of H hidden units with ReLU. First layer: `H + P * H` parameters."""

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__(architecture, config)
        self.first = nn.Linear(architecture.size, config.hidden_size)
        self.dropout = Dropout(config.dropout)
        self.predictor = self._make_predictor()

    @property
    def embedding_width(self) -> int:
        return self.config.hidden_size

    def encode(self, normalised: Tensor) -> Tensor:
        return self.dropout(torch.relu(dense(self.first, self._noisy(normalised))))


class FcLinear(WeightEncoder):
    """All weights flattened, one linear map to E values. First layer: `E + P * E` parameters."""

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__(architecture, config)
        self.first = nn.Linear(architecture.size, self.embedding_width)
        self.predictor = self._make_predictor()

    @property
    def embedding_width(self) -> int:
        return self.config.embedding_size * len(self.architecture.layers)

    def encode(self, normalised: Tensor) -> Tensor:
        return dense(self.first, self._noisy(normalised))


class ComvexLinear(WeightEncoder):
    """One linear map of each flattened layer matrix to E values. First layer: `sum_i (size_i * E + E)` parameters."""

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__(architecture, config)
        self.maps = nn.ModuleList(nn.Linear(layer.size, config.embedding_size) for layer in architecture.layers)
        self.predictor = self._make_predictor()

    @property
    def embedding_width(self) -> int:
        return self.config.embedding_size * len(self.architecture.layers)

    def encode(self, normalised: Tensor) -> Tensor:
        normalised = self._noisy(normalised)
        codes = []
        for layer, part in zip(self.maps, self.architecture.slices, strict=True):
            assert isinstance(layer, nn.Linear)
            codes.append(dense(layer, normalised[:, part]))
        return torch.cat(codes, dim=1)
