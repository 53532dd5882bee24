"""Numbers that describe each layer of a network, the same for all of its permuted twins.

Per layer: moments, spectrum, cosines of rows and of columns, how smooth its kernels are, its bias and its norm, and how
it hangs together with the layer that reads it: products of each unit's incoming and outgoing weights (Neyshabur et al.
2015, https://arxiv.org/abs/1506.02617) and the agreement of the two layers' Gram matrices, which training brings about
(Du et al. 2018, https://arxiv.org/abs/1806.00900). A batch norm is folded into the layer before it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from weightsearch.encoders.universal.graph import CONVOLUTIONS, Graph, Node, graph
from weightsearch.encoders.universal.inputs import INPUT, inputs
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, LayerKind

EPSILON = 1e-5  # of batch norm, PyTorch's default
POSITIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)  # in the spectrum, by share of its length
LARGEST_GRAM = 4096  # rows; of larger layers, which have that many on either side, spectra are left out
BLOCK = 2**21  # weights at a time

TINY = 1e-8
UNDERFLOW = 80.0  # e to the minus that is nought beside one; processors are slow with numbers that are smaller still

MOMENTS = ("log_rms", "log_gain", "mean", "mean_abs", "skew", "kurtosis", "log_max", "small")
SPECTRUM = (
    "top", "beyond", "stable_rank", "entropy", "log_det", "mean_fourth",
    *(f"lambda_{position:g}" for position in POSITIONS),
)  # fmt: skip
COSINES = tuple(f"{side}_{name}" for side in ("row", "column") for name in ("cosine", "cosine_excess", "mean_cosine"))
NORMS = tuple(f"{side}_norm_{name}" for side in ("row", "input") for name in ("spread", "low", "high", "max"))
SPATIAL = ("smooth_x", "smooth_y", "even_share", "is_spatial")
BIAS = ("bias_rms", "bias_mean", "bias_low", "bias_high", "bias_share", "has_bias")
NORM = ("gain_mean", "gain_spread", "gain_low", "gain_high", "shift_mean", "shift_spread", "log_variance",
        "variance_spread", "running_mean", "seen_log", "seen_spread", "has_norm")  # fmt: skip
PAIR = ("pair_log", "pair_spread", "pair_correlation", "gram_correlation", "gram_off_correlation", "product_log",
        "has_pair")  # fmt: skip
PLACE = ("depth", "from_end", "is_first", "is_head", "is_conv", "is_dense", "log_rows", "log_columns", "log_kernel",
         "log_aspect")  # fmt: skip
TOKEN = (*MOMENTS, *SPECTRUM, *COSINES, *NORMS, *SPATIAL, *BIAS, *NORM, *PAIR, *PLACE)
WHOLE_OWN = ("log_layers", "log_parameters", "log_classes", "chance", "norms_gain", "norms_shift", "norms_gain_spread",
         "norms_count", "share_conv", "share_normed")  # fmt: skip
WHOLE = (*WHOLE_OWN, *INPUT)


def tokens(weights: np.ndarray, architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Flat weights `(B, P)` of one architecture -> layers' features `(B, L, len(TOKEN))` and `(B, len(WHOLE))`.

    Float32. Raises WeightsearchError where the architecture has no matrix at all.
    """
    structure = graph(architecture)
    if structure is None:
        raise WeightsearchError(f"no layer with a matrix of weights among {architecture.describe()}")
    blocks = []
    for start in range(0, len(weights), size := max(1, BLOCK // architecture.size)):
        block = np.ascontiguousarray(weights[start : start + size], np.float32)
        blocks.append(_block(torch.from_numpy(block), architecture, structure))
    if not blocks:
        return np.empty((0, len(structure.nodes), len(TOKEN)), np.float32), np.empty((0, len(WHOLE)), np.float32)
    layers, whole = (torch.cat(parts).numpy() for parts in zip(*blocks, strict=True))
    return layers, whole


def classes(architecture: Architecture) -> int:
    """Rows of the head, at least 2; the chance level is one in so many."""
    structure = graph(architecture)
    return 2 if structure is None else max(2, structure.classes)


@torch.no_grad()
def _block(weights: Tensor, architecture: Architecture, structure: Graph) -> tuple[Tensor, Tensor]:
    folded = [_folded(weights, architecture, structure, node) for node in structure.nodes]
    columns = []
    grams: dict[int, Tensor] = {}
    for i, (node, (matrix, bias)) in enumerate(zip(structure.nodes, folded, strict=True)):
        parts = [
            *_matrix(matrix, node, i == 0, grams, i),
            _bias(matrix, bias),
            _norm(weights, architecture, structure, node),
        ]
        columns.append(torch.cat(parts, 1))
    pairs = [_pair(structure, i, folded, grams) for i in range(len(structure.nodes))]
    size = len(weights)
    rows = [
        torch.cat([column, pair, _place(structure, i).expand(size, -1)], 1)
        for i, (column, pair) in enumerate(zip(columns, pairs, strict=True))
    ]
    layers = torch.stack(rows, 1)  # (B, L, F)
    whole = torch.cat([_whole(weights, architecture, structure), inputs(weights, architecture, structure)], 1)
    return layers.clamp_(-50, 50), whole.clamp_(-50, 50)


def _folded(weights: Tensor, architecture: Architecture, structure: Graph, node: Node) -> tuple[Tensor, Tensor | None]:
    """The node's matrix `(B, rows, columns)` and bias `(B, rows)`, with its batch norm folded in."""
    layer = architecture.layers[node.layer]
    part = weights[:, structure.slices[node.layer]].view(len(weights), layer.rows, layer.columns)
    part = part[:, node.first : node.first + node.rows]
    matrix = part[:, :, : node.columns]
    bias = part[:, :, node.columns] if "bias" in layer.extras else None
    if node.norm is None:
        return matrix, bias
    gain, shift, mean, variance = _norm_columns(weights, architecture, structure, node.norm)
    factor = gain / (variance.clamp_min(0) + EPSILON).sqrt()
    return matrix * factor[:, :, None], shift + ((0 if bias is None else bias) - mean) * factor


def _norm_columns(
    weights: Tensor, architecture: Architecture, structure: Graph, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A norm's gain, shift, running mean and running variance, `(B, rows)` each."""
    layer = architecture.layers[norm]
    part = weights[:, structure.slices[norm]].view(len(weights), layer.rows, layer.columns)
    zero = torch.zeros_like(part[:, :, 0])
    named = {"weight": part[:, :, 0]} | {name: part[:, :, i] for i, name in enumerate(layer.extras, 1)}
    return (
        named["weight"],
        named.get("bias", zero),
        named.get("running_mean", zero),
        named.get("running_var", zero + 1),
    )


def _matrix(matrix: Tensor, node: Node, first: bool, grams: dict[int, Tensor], i: int) -> list[Tensor]:
    """Moments, spectrum, cosines, norms and smoothness of `(B, rows, columns)`, a `(B, n)` tensor each."""
    size, rows, columns = matrix.shape
    squares = matrix.square()
    mean_square = squares.mean((1, 2))
    rms = mean_square.sqrt()
    scale = 1 / rms.clamp_min(1e-20)
    w = matrix * scale[:, None, None]
    room = w.abs()  # for one array after another: to ask for memory takes as long as to fill it
    mean_abs, largest = room.mean((1, 2)), room.amax((1, 2))
    w2 = torch.square(w, out=squares)
    cubes = torch.mul(w2, w, out=room).mean((1, 2))
    fourth = torch.square(w2, out=room).mean((1, 2))
    small = torch.mul(w2, 100, out=room).clamp_max_(UNDERFLOW).neg_().exp_().mean((1, 2))
    moments = torch.stack(
        [
            (rms + TINY).log(),
            (rms * math.sqrt(columns) + TINY).log(),
            w.mean((1, 2)),
            mean_abs,
            _cube_root(cubes),
            fourth.clamp_min(TINY).log(),
            largest.clamp_min(TINY).log(),
            small,
        ],
        1,
    )
    by_row = w2.mean(2)  # (B, rows)
    by_column = w2.mean(1)  # (B, columns)
    by_input = by_column.view(size, node.inputs, -1).mean(2)  # (B, inputs)
    tall = rows > columns
    short = w.transpose(1, 2) if tall else w
    if min(rows, columns) <= LARGEST_GRAM:
        gram = torch.bmm(short, short.transpose(1, 2)) / max(rows, columns)  # (B, m, m), its trace is m
        if not tall:
            grams[i] = gram
        spectrum = _spectrum(gram, rows, columns)
        cosines = torch.cat(
            [_cosines(w, by_row, gram, tall), _cosines(w.transpose(1, 2), by_column, gram, not tall)], 1
        )
    else:
        spectrum, cosines = matrix.new_zeros(size, len(SPECTRUM)), matrix.new_zeros(size, len(COSINES))
    norms = torch.cat([_spread(by_row), _spread(by_input)], 1)
    return [moments, spectrum, cosines, norms, _spatial(w, node, first)]


def _cube_root(values: Tensor) -> Tensor:
    """Signed, and flat around nought, where the root itself would be infinitely steep."""
    return values / (values.abs() + 0.05).pow(2 / 3)


def _spectrum(gram: Tensor, rows: int, columns: int) -> Tensor:
    """Of a Gram matrix `(B, m, m)`, beside what a matrix of noise of that shape has (Marchenko and Pastur 1967)."""
    m = gram.shape[1]
    eigenvalues = _eigenvalues(gram)  # (B, m), descending
    edge = (1 + math.sqrt(min(rows, columns) / max(rows, columns))) ** 2
    share = eigenvalues / eigenvalues.sum(1, keepdim=True).clamp_min(TINY)
    logs = (eigenvalues + 1e-4).log()
    positions = torch.tensor(POSITIONS) * (m - 1)
    below = positions.floor().long()
    picked = torch.lerp(logs[:, below], logs[:, positions.ceil().long()], positions - below)
    return torch.cat(
        [
            (eigenvalues[:, :1] / edge + TINY).log(),
            (eigenvalues - edge).clamp_min(0).sum(1, keepdim=True) / m,
            1 / (m * share[:, :1]).clamp_min(TINY),
            -(share * (share + TINY).log()).sum(1, keepdim=True) / math.log(max(m, 2)),
            logs.mean(1, keepdim=True),
            (m * share.square().sum(1, keepdim=True)).log(),
            picked,
        ],
        1,
    )


def _eigenvalues(gram: Tensor) -> Tensor:
    if gram.shape[1] == 1:
        return gram[:, :, 0]
    try:
        values = torch.linalg.eigvalsh(gram)
    except torch.linalg.LinAlgError:  # it fails for a whole batch where it fails for one
        values = torch.linalg.eigvalsh(gram.double()).float()
    return values.flip(1).clamp_min(0)


def _cosines(w: Tensor, squares: Tensor, gram: Tensor, wide: bool) -> Tensor:
    """How alike the rows of `w (B, n, k)` are, whose mean squares are `squares (B, n)`.

    `wide`: the Gram matrix that is known is not that of these rows but of the others.
    """
    n, k = w.shape[1:]
    inverse = 1 / (squares.sqrt() + 1e-4)
    if wide:
        unit = w * inverse[:, :, None]
        total = torch.bmm(unit.transpose(1, 2), unit).square().sum((1, 2)) / k**2
        diagonal = (squares * inverse.square()).square().sum(1)
    else:
        cosine = gram * inverse[:, :, None] * inverse[:, None, :]
        total = cosine.square().sum((1, 2))
        diagonal = cosine.diagonal(dim1=1, dim2=2).square().sum(1)
        unit = None
    pairs = max(1, n * (n - 1))
    mean_square = ((total - diagonal) / pairs).clamp_min(0)
    direction = (w * inverse[:, :, None]).sum(1).square().sum(1) / k  # (B,)
    mean = (direction - (squares * inverse.square()).sum(1)) / pairs
    return torch.stack([(mean_square + 1e-6).sqrt(), (k * mean_square + 0.05).log(), mean], 1)


def _spread(squares: Tensor) -> Tensor:
    """Mean squares `(B, n)` of rows -> how unequal their norms are."""
    logs = 0.5 * (squares + 1e-4).log()
    ordered = logs.sort(1).values
    n = logs.shape[1]
    low, middle, high = (ordered[:, round(q * (n - 1))] for q in (0.1, 0.5, 0.9))
    return torch.stack([logs.std(1, correction=0), low - middle, high - middle, ordered[:, -1] - middle], 1)


def _spatial(w: Tensor, node: Node, first: bool) -> Tensor:
    """How alike neighbouring weights of a kernel are; a dense layer that reads a square image has such, too."""
    size = len(w)
    if node.kind is LayerKind.CONV2D and min(node.kernel) > 1:
        image = w.view(size, -1, *node.kernel)
    elif first and node.kind is LayerKind.DENSE and (side := math.isqrt(node.inputs)) > 3 and side**2 == node.inputs:
        image = w.view(size, -1, side, side)
    else:
        return w.new_zeros(size, len(SPATIAL))
    energy = image.square().mean((1, 2, 3)).clamp_min(TINY)
    across = (image[..., 1:] * image[..., :-1]).mean((1, 2, 3)) / energy
    down = (image[..., 1:, :] * image[..., :-1, :]).mean((1, 2, 3)) / energy
    even = image.mean((2, 3)).square().mean(1) / energy
    return torch.stack([across, down, even, torch.ones_like(even)], 1)


def _bias(matrix: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return matrix.new_zeros(len(matrix), len(BIAS))
    rms = bias.square().mean(1).sqrt()
    signal = matrix.square().sum(2).mean(1).sqrt()  # of the outputs to inputs of norm 1
    return torch.stack(
        [
            (rms + 1e-4).log(),
            _signed_log(bias.mean(1)),
            _signed_log(bias.amin(1)),
            _signed_log(bias.amax(1)),
            ((rms + 1e-4) / (signal + 1e-4)).log(),
            torch.ones_like(rms),
        ],
        1,
    )


def _signed_log(values: Tensor) -> Tensor:
    return torch.arcsinh(10 * values)


def _norm(weights: Tensor, architecture: Architecture, structure: Graph, node: Node) -> Tensor:
    if node.norm is None:
        return weights.new_zeros(len(weights), len(NORM))
    gain, shift, mean, variance = _norm_columns(weights, architecture, structure, node.norm)
    logs = (variance.clamp_min(0) + EPSILON).log()
    layer = architecture.layers[node.layer]
    raw = weights[:, structure.slices[node.layer]].view(len(weights), layer.rows, layer.columns)
    raw = raw[:, node.first : node.first + node.rows, : node.columns]
    seen = logs - (raw.square().sum(2) + EPSILON).log()  # how much each row's inputs vary
    return torch.stack(
        [
            gain.mean(1),
            gain.std(1, correction=0),
            gain.amin(1),
            gain.amax(1),
            _signed_log(shift.mean(1)),
            _signed_log(shift.std(1, correction=0)),
            logs.mean(1),
            logs.std(1, correction=0),
            _signed_log(mean.square().mean(1).sqrt()),
            seen.mean(1),
            seen.std(1, correction=0),
            torch.ones_like(gain[:, 0]),
        ],
        1,
    )


def _pair(structure: Graph, i: int, folded: list[tuple[Tensor, Tensor | None]], grams: dict[int, Tensor]) -> Tensor:
    """How a node's units and the node that reads them fit together."""
    node = structure.nodes[i]
    matrix = folded[i][0]
    size, rows = matrix.shape[:2]
    if node.next is None or rows > LARGEST_GRAM:
        return matrix.new_zeros(size, len(PAIR))
    reader = structure.nodes[node.next]
    after = folded[node.next][0]
    if node.spread > 1:
        after = after.reshape(size, reader.rows, rows, node.spread)
    else:
        after = after.reshape(size, reader.rows, rows, -1)
    outgoing = after.permute(0, 2, 1, 3).reshape(size, rows, -1)  # (B, units, what reads them)
    scale_in = matrix.square().mean((1, 2)).sqrt().clamp_min(1e-20)
    scale_out = outgoing.square().mean((1, 2)).sqrt().clamp_min(1e-20)
    incoming = matrix / scale_in[:, None, None]
    outgoing = outgoing / scale_out[:, None, None]
    gram_in = grams.get(i)
    if gram_in is None:
        gram_in = torch.bmm(incoming, incoming.transpose(1, 2)) / incoming.shape[2]
    gram_out = torch.bmm(outgoing, outgoing.transpose(1, 2)) / outgoing.shape[2]
    norm_in, norm_out = gram_in.diagonal(dim1=1, dim2=2), gram_out.diagonal(dim1=1, dim2=2)  # (B, units)
    logs_in, logs_out = (0.5 * (norm + 1e-4).log() for norm in (norm_in, norm_out))
    product = logs_in + logs_out
    centred_in, centred_out = (x - x.mean(1, keepdim=True) for x in (logs_in, logs_out))
    spread = (centred_in.square().mean(1) * centred_out.square().mean(1)).sqrt()
    both = (gram_in * gram_out).sum((1, 2))
    same = (norm_in * norm_out).sum(1)
    square_in, square_out = gram_in.square().sum((1, 2)), gram_out.square().sum((1, 2))
    off_in, off_out = square_in - norm_in.square().sum(1), square_out - norm_out.square().sum(1)
    return torch.stack(
        [
            (scale_in * scale_out * math.sqrt(matrix.shape[2] * outgoing.shape[2]) + TINY).log(),
            product.std(1, correction=0),
            (centred_in * centred_out).mean(1) / (spread + 1e-3),
            both / (square_in * square_out).sqrt().clamp_min(TINY),
            (both - same) / ((off_in * off_out).clamp_min(0).sqrt() + 1e-3 * rows),
            (both / rows + TINY).log(),
            torch.ones_like(both),
        ],
        1,
    )


def _place(structure: Graph, i: int) -> Tensor:
    """Where a node stands, and its shape."""
    node, count = structure.nodes[i], len(structure.nodes)
    return torch.tensor(
        [
            i / max(1, count - 1),
            min(4, count - 1 - i),
            i == 0,
            i == structure.head,
            node.kind in CONVOLUTIONS,
            node.kind is LayerKind.DENSE,
            math.log(node.rows),
            math.log(node.columns),
            math.log(max(1, node.columns // node.inputs)),
            math.log(node.rows / node.columns),
        ],
        dtype=torch.float32,
    )


def _whole(weights: Tensor, architecture: Architecture, structure: Graph) -> Tensor:
    size, nodes = len(weights), structure.nodes
    count = max(2, structure.classes)
    gain, shift, spread = weights.new_ones(size), weights.new_zeros(size), weights.new_zeros(size)
    if structure.norms:
        columns = [_norm_columns(weights, architecture, structure, norm) for norm in structure.norms]
        gain = torch.stack([gains.mean(1) for gains, *_ in columns]).mean(0)
        spread = torch.stack([gains.std(1, correction=0) for gains, *_ in columns]).mean(0)
        shift = torch.stack([_signed_log(shifts.square().mean(1).sqrt()) for _, shifts, *_ in columns]).mean(0)
    return torch.stack(
        [
            torch.full_like(gain, math.log(len(nodes))),
            torch.full_like(gain, math.log(architecture.size)),
            torch.full_like(gain, math.log(count)),
            torch.full_like(gain, 1 / count),
            gain,
            shift,
            spread,
            torch.full_like(gain, min(3.0, len(structure.norms) / len(nodes))),
            torch.full_like(gain, sum(node.kind in CONVOLUTIONS for node in nodes) / len(nodes)),
            torch.full_like(gain, sum(node.norm is not None for node in nodes) / len(nodes)),
        ],
        1,
    )


def pooled(layers: np.ndarray, whole: np.ndarray, head: int) -> np.ndarray:
    """Tokens `(B, L, F)` -> one row `(B, 7 F + len(WHOLE))`: mean, deviation, extremes, first, last but one, head."""
    before = max(0, head - 1)
    return np.concatenate(
        [layers.mean(1), layers.std(1), layers.min(1), layers.max(1), layers[:, 0], layers[:, before],
         layers[:, head], whole], axis=1,
    )  # fmt: skip
