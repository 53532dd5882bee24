"""What the first layer tells of a network's inputs: which pixels it looks at, and how bright and varied they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsearch.encoders.universal.graph import TABLES, Graph
from weightsearch.types import Architecture, LayerKind

SIDE = 5  # of the map to which a first layer's energy by pixel is brought
INPUT = (
    *(f"energy_{y}{x}" for y in range(SIDE) for x in range(SIDE)),
    "energy_spread", "second_x", "second_y",
    "brightness", "even_variance", "variance", "variance_fit", "has_statistics",
    "position_rms", "position_spread", "position_border", "position_smooth", "has_positions",
)  # fmt: skip


def inputs(weights: Tensor, architecture: Architecture, structure: Graph) -> Tensor:
    """Flat weights `(B, P)` -> `(B, len(INPUT))`."""
    node = structure.nodes[0]
    layer = architecture.layers[node.layer]
    size = len(weights)
    part = weights[:, structure.slices[node.layer]].view(size, layer.rows, layer.columns)
    matrix = part[:, node.first : node.first + node.rows, : node.columns]
    side = math.isqrt(node.inputs)
    if node.kind is LayerKind.CONV2D and min(node.kernel) > 1:
        image = matrix.reshape(size, -1, *node.kernel)  # (B, rows * channels, h, w)
    elif not node.kernel and side > 3 and side**2 == node.inputs:
        image = matrix.reshape(size, -1, side, side)
    else:
        image = matrix.reshape(size, -1, 1, node.columns)
    energy = image.square().mean(1)  # (B, h, w)
    mean = energy.mean((1, 2)).clamp_min(1e-20)
    logs = (energy / mean[:, None, None] + 1e-3).log()
    shown = F.interpolate(logs[:, None], (SIDE, SIDE), mode="bilinear", align_corners=True).flatten(1)
    second = [_lagged(image, 2, dim) / mean if image.shape[dim] > 2 else weights.new_zeros(size) for dim in (3, 2)]
    summary = torch.stack([logs.std((1, 2), correction=0), *second], 1)
    return torch.cat(
        [
            shown,
            summary,
            _statistics(weights, architecture, structure, image),
            _positions(weights, architecture, structure),
        ],
        1,
    )


def _lagged(image: Tensor, lag: int, dim: int) -> Tensor:
    length = image.shape[dim]
    return (image.narrow(dim, lag, length - lag) * image.narrow(dim, 0, length - lag)).mean((1, 2, 3))


def _statistics(weights: Tensor, architecture: Architecture, structure: Graph, image: Tensor) -> Tensor:
    """From the batch norm after the first layer: its means and variances are those of the inputs, seen by each row."""
    node = structure.nodes[0]
    size = len(weights)
    if node.norm is None:
        return weights.new_zeros(size, 5)
    layer = architecture.layers[node.norm]
    part = weights[:, structure.slices[node.norm]].view(size, layer.rows, layer.columns)
    mean = part[:, :, 1 + layer.extras.index("running_mean")] if "running_mean" in layer.extras else part[:, :, 0] * 0
    variance = part[:, :, 1 + layer.extras.index("running_var")].clamp_min(0)
    rows = image.reshape(size, node.rows, -1)
    even = rows.sum(2)  # what a row makes of an even image of ones
    layer_of_node = architecture.layers[node.layer]
    if "bias" in layer_of_node.extras:
        whole = weights[:, structure.slices[node.layer]].view(size, layer_of_node.rows, layer_of_node.columns)
        mean = mean - whole[:, node.first : node.first + node.rows, node.columns]
    brightness = (mean * even).sum(1) / even.square().sum(1).clamp_min(1e-8)
    design = torch.stack([even.square(), rows.square().sum(2)], 2)  # (B, rows, 2)
    gram = design.transpose(1, 2) @ design
    ridge = 1e-4 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(2) + 1e-10 * torch.eye(2)
    solved = torch.linalg.solve(gram + ridge, design.transpose(1, 2) @ variance[:, :, None])[:, :, 0]
    expected = (design @ solved[:, :, None])[:, :, 0]
    fit = 1 - (variance - expected).square().sum(1) / variance.square().sum(1).clamp_min(1e-12)
    return torch.stack(
        [
            brightness.clamp(-3, 3),
            torch.arcsinh(20 * solved[:, 0]),
            torch.arcsinh(20 * solved[:, 1]),
            fit.clamp(-1, 1),
            torch.ones_like(fit),
        ],
        1,
    )


def _positions(weights: Tensor, architecture: Architecture, structure: Graph) -> Tensor:
    """Of a table of positions, as transformers have it: the places that never differ are never learned."""
    size = len(weights)
    for layer, place in zip(architecture.layers, structure.slices, strict=True):
        if TABLES.search(layer.name) is None or "pos" not in layer.name.lower() or len(layer.shape) < 2:
            continue
        table = weights[:, place].reshape(size, -1, layer.shape[-1])  # (B, T, D)
        side = math.isqrt(table.shape[1])
        if side < 2:
            continue
        table = table[:, table.shape[1] - side * side :]
        energy = table.square().mean(2)  # (B, T)
        mean = energy.mean(1).clamp_min(1e-20)
        grid = (energy / mean[:, None] + 1e-3).log().view(size, side, side)
        border = torch.ones(side, side, dtype=torch.bool)
        border[1:-1, 1:-1] = side < 3
        image = table.view(size, side, side, -1)
        smooth = (image[:, :, 1:] * image[:, :, :-1]).mean((1, 2, 3)) / mean
        return torch.stack(
            [
                (mean.sqrt() + 1e-8).log(),
                grid.std((1, 2), correction=0),
                grid[:, border].mean(1),
                smooth,
                torch.ones_like(mean),
            ],
            1,
        )
    return weights.new_zeros(size, 5)
