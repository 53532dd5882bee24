"""ComVeX: a small encoder over each layer's weight matrix, concatenated (Liu 2022, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightsearch.encoders.base import Encoder, EncoderConfig
from weightsearch.types import Architecture

KERNEL_ROWS = 3
CLIP = 10.0  # standardised weights beyond this are outliers of runs that all but diverged


class ComvexConv(Encoder):
    """E filters of 3 rows x all columns slide over the rows of each layer matrix; the maximum over positions stays.

    First-layer parameters: `sum_i (3 * columns_i * E + E)`. A layer of fewer than 3 rows is padded with zeros.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__(architecture, config)
        self.filters = nn.ModuleList(
            nn.Linear(KERNEL_ROWS * layer.columns, config.embedding_size) for layer in architecture.layers
        )
        width = sum(layer.columns for layer in architecture.layers)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.predictor = self._make_predictor()

    @property
    def embedding_width(self) -> int:
        return self.config.embedding_size * len(self.architecture.layers)

    def calibrate(self, features: Tensor) -> None:
        """Mean and standard deviation of every column of every layer matrix, over networks and rows."""
        means, scales = [], []
        for matrix in self._matrices(features):
            means.append(matrix.mean(dim=(0, 1)))
            scales.append(matrix.std(dim=(0, 1)).clamp_min(1e-6))
        self.mean.copy_(torch.cat(means))
        self.scale.copy_(torch.cat(scales))

    def encode(self, features: Tensor) -> Tensor:
        columns = [layer.columns for layer in self.architecture.layers]
        means, scales = self.mean.split(columns), self.scale.split(columns)
        codes = []
        for matrix, mean, scale, linear in zip(self._matrices(features), means, scales, self.filters, strict=True):
            matrix = ((matrix - mean) / scale).clamp(-CLIP, CLIP)  # (B, rows, columns)
            missing = KERNEL_ROWS - matrix.shape[1]
            if missing > 0:
                matrix = nn.functional.pad(matrix, (0, 0, 0, missing))
            batch, rows, width = matrix.shape
            # Three neighbouring rows lie behind one another in memory, so all windows are one overlapping view.
            windows = matrix.contiguous().as_strided(
                (batch, rows - KERNEL_ROWS + 1, KERNEL_ROWS * width), (rows * width, width, 1)
            )
            codes.append(linear(windows).amax(dim=1))  # (B, E)
        return torch.cat(codes, dim=1)  # (B, D)

    def _matrices(self, weights: Tensor) -> list[Tensor]:
        return [
            weights[:, part].view(len(weights), layer.rows, layer.columns)
            for part, layer in zip(self.architecture.slices, self.architecture.layers, strict=True)
        ]
