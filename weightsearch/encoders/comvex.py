"""ComVeX-Conv: a few filters sliding over each layer's weight matrix, concatenated (Liu 2022, section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weightsearch.encoders.base import CLIP, EncoderConfig, WeightEncoder, centre_and_scale
from weightsearch.types import Architecture

KERNEL_ROWS = 3


class ComvexConv(WeightEncoder):
    """E filters of 3 rows x all columns slide over the rows of each layer matrix; the maximum over positions stays.

    First-layer parameters: `sum_i (3 * columns_i * E + E)`. A layer of fewer than 3 rows is padded with zeros.
    Standardised by column, since the order of a layer's rows (its units) means nothing.
    """

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__(architecture, config, scales=sum(layer.columns for layer in architecture.layers))
        self.filters = nn.ModuleList(
            nn.Linear(KERNEL_ROWS * layer.columns, config.embedding_size) for layer in architecture.layers
        )
        self.predictor = self._make_predictor()

    @property
    def embedding_width(self) -> int:
        return self.config.embedding_size * len(self.architecture.layers)

    def calibrate(self, features: Tensor) -> None:
        """Centre and scale of every column of every layer matrix, over networks and rows."""
        scalings = [centre_and_scale(matrix.flatten(0, 1)) for matrix in self.layer_matrices(features)]
        self.mean.copy_(torch.cat([centre for centre, _ in scalings]))
        self.scale.copy_(torch.cat([scale for _, scale in scalings]))

    def normalise(self, features: Tensor) -> Tensor:
        columns = [layer.columns for layer in self.architecture.layers]
        repeats = [layer.rows for layer in self.architecture.layers]
        mean, scale = (
            torch.cat([part.repeat(rows) for part, rows in zip(buffer.split(columns), repeats, strict=True)])
            for buffer in (self.mean, self.scale)
        )  # (P,)
        return (features - mean).div_(scale).clamp_(-CLIP, CLIP)

    def encode(self, normalised: Tensor) -> Tensor:
        codes = []
        for matrix, linear in zip(self.layer_matrices(self._noisy(normalised)), self.filters, strict=True):
            missing = KERNEL_ROWS - matrix.shape[1]
            if missing > 0:
                matrix = nn.functional.pad(matrix, (0, 0, 0, missing))
            assert isinstance(linear, nn.Linear)
            codes.append(slide_and_max(matrix, linear.weight, linear.bias))
        return torch.cat(codes, dim=1)  # (B, D)


class _SlideAndMax(torch.autograd.Function):
    """The convolution and its maximum in one step, several times faster than `Conv2d` and `amax` on a CPU.

    Forward is one product of the rows with the three rows of every filter; the windows' sums are shifted additions,
    so that no window is ever copied. Backward uses that only the window of the maximum has a gradient: the filters'
    gradient is a weighted sum of B windows each instead of a second product as large as the first.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        batch, rows, columns = matrix.shape
        filters = len(weight)
        table = matrix.reshape(batch * rows, columns)
        by_row = weight.view(filters, KERNEL_ROWS, columns).transpose(0, 1).reshape(-1, columns)  # (3E, columns)
        products = (table @ by_row.to(table.dtype).T).view(batch, rows, KERNEL_ROWS, filters)
        sums = products[:, :-2, 0].float() + products[:, 1:-1, 1]
        sums += products[:, 2:, 2]  # (B, rows - 2, E) float32
        values = sums.amax(dim=1)  # (B, E)
        # Where the first maximum is, at a quarter of the time of `max(dim=1)`; the clamp is for NaN, equal to nothing.
        backwards = torch.arange(rows - 2, 0, -1.0, device=sums.device)[:, None]
        where = rows - 2 - sums.eq_(values[:, None]).mul_(backwards).amax(dim=1).clamp_(min=1).long()  # (B, E)
        ctx.save_for_backward(table, where)
        ctx.rows = rows
        return values + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        table, where = ctx.saved_tensors
        (gradient,) = gradients  # (B, E)
        batch, filters = gradient.shape
        device = where.device
        first = where + ctx.rows * torch.arange(batch, device=device)[:, None]  # (B, E) of each maximum's window
        windows = first.T + torch.arange(KERNEL_ROWS, device=device)[:, None, None]  # (3, E, B)
        weights = gradient.T.expand(KERNEL_ROWS, filters, batch)
        by_row = nn.functional.embedding_bag(
            windows.reshape(-1, batch), table, mode="sum", per_sample_weights=weights.reshape(-1, batch).to(table.dtype)
        )  # (3E, columns)
        kernel = by_row.float().view(KERNEL_ROWS, filters, -1).transpose(0, 1).reshape(filters, -1)
        return None, kernel, gradient.sum(dim=0)


def slide_and_max(matrix: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer matrices `(B, rows >= 3, columns)`, filters `(E, 3 * columns)` and `(E,)` -> maxima `(B, E)` float32.

    Differentiable in the filters only: the matrices are data, in float32 or bfloat16.
    """
    if matrix.requires_grad:
        raise ValueError("expected layer matrices without gradient: they are data")
    return _SlideAndMax.apply(matrix, weight, bias)


__all__ = ["KERNEL_ROWS", "ComvexConv", "slide_and_max"]
