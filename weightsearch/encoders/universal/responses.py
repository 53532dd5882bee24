"""What a network answers to drawn images, where it can be run from its weights alone.

Chains, residual nets, vision transformers and recurrent nets can. The images are clouds, strokes on an empty ground,
and the same strokes moved a little: no data are needed. The activation is not in the weights; ReLU stands for all (GELU
in a transformer). Strides are not there either, and are guessed. So the answers are not the network's own, but they
tell a network that answers the same to everything, or otherwise to what is nearly the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsearch.encoders.universal.graph import RECURRENT, Graph, graph
from weightsearch.types import Architecture, LayerKind

CLOUDS, STROKES = 12, 16  # images of either kind; the strokes come once more, moved
MOVED_BY = 0.7  # pixels
SIDE = 8  # pixels of an image
LARGE_STEM = 7  # kernels of a residual net's first layer that is made for large images: it strides, and pools
LARGEST = 30_000_000  # parameters; larger networks are not run
ANSWER = ("across_inputs", "across_classes", "log_scale", "confidence", "mean_entropy", "top_share", "hidden_alike",
          "logit_rank", "hidden_rank", "hidden_active")  # fmt: skip
RESPONSE = (
    *(f"{kind}_{name}" for kind in ("cloud", "stroke") for name in ANSWER),
    "moved_same_class", "moved_overlap", "moved_correlation", "moved_hidden", "is_run",
)  # fmt: skip


@torch.no_grad()
def responses(weights: np.ndarray, architecture: Architecture) -> np.ndarray:
    """Flat weights `(B, P)` -> `(B, len(RESPONSE))` float32, nought where the network cannot be run."""
    answers = np.zeros((len(weights), len(RESPONSE)), np.float32)
    structure = graph(architecture)
    run = _runner(architecture) if structure is not None and architecture.size <= LARGEST else None
    if run is None or structure is None:
        return answers
    for i, flat in enumerate(weights):
        layers = _tensors(torch.from_numpy(np.ascontiguousarray(flat, np.float32)), architecture)
        try:
            hidden, logits = run(layers)
        except (RuntimeError, KeyError):  # shapes that do not fit after all
            return answers * 0
        answers[i] = summary(hidden.flatten(1), logits).numpy()
    return answers


Layers = dict[str, dict[str, Tensor]]
Run = Callable[[Layers], tuple[Tensor, Tensor]]


def _tensors(flat: Tensor, architecture: Architecture) -> Layers:
    """Tensors by layer's name, then by `weight`, `bias`, ...; a lone parameter is its layer's `weight`."""
    layers: Layers = {}
    for layer, place in zip(architecture.layers, architecture.slices, strict=True):
        matrix = flat[place].view(layer.rows, layer.columns)
        width = layer.columns - len(layer.extras)
        named = {name: matrix[:, width + i] for i, name in enumerate(layer.extras)}
        layers[layer.name] = {"weight": matrix[:, :width].reshape(layer.shape), **named}
    return layers


def summary(hidden: Tensor, logits: Tensor) -> Tensor:
    """Hidden values `(S, D)` before the head and logits `(S, K)` of all images -> `(len(RESPONSE),)`."""
    hidden, logits = (torch.nan_to_num(x, 0, 0, 0).clamp(-1e6, 1e6) for x in (hidden, logits))
    logits = logits - logits.mean(1, keepdim=True)
    kinds = (slice(0, CLOUDS), slice(CLOUDS, CLOUDS + STROKES))
    parts = [_answers(hidden[kind], logits[kind]) for kind in kinds]
    moved = slice(CLOUDS + STROKES, None)
    return torch.cat([*parts, _agreement(hidden[kinds[1]], logits[kinds[1]], hidden[moved], logits[moved])])


def _answers(hidden: Tensor, logits: Tensor) -> Tensor:
    """To images of one kind `(S, D)`, `(S, K)` -> `(len(ANSWER),)`."""
    across_inputs = (logits - logits.mean(0)).square().mean().sqrt()
    across_classes = logits.mean(0).square().mean().sqrt()
    scale = logits.square().mean().sqrt()
    soft = torch.softmax(2 * logits / (scale + 1e-6), 1)
    mean = soft.mean(0)
    entropy = -(mean * (mean + 1e-8).log()).sum() / math.log(max(2, len(mean)))
    directions = F.normalize(hidden, dim=1, eps=1e-6)
    alike = (directions.sum(0).square().sum() - directions.square().sum()) / (len(hidden) * (len(hidden) - 1))
    confidence = torch.softmax(logits, 1).amax(1).mean()
    return torch.stack(
        [
            (across_inputs + 1e-4).log(),
            (across_classes + 1e-4).log(),
            (scale + 1e-4).log(),
            confidence,
            entropy,
            mean.amax(),
            alike,
            _effective_rank(logits),
            _effective_rank(hidden),
            (hidden > 0).float().mean(),
        ]
    )


def _effective_rank(values: Tensor) -> Tensor:
    """Log of how many directions `(S, D)` spread over alike: (trace C)^2 / trace C^2 of their covariance C."""
    centred = values - values.mean(0)
    gram = centred @ centred.T
    return (gram.trace().square() / gram.square().sum().clamp_min(1e-20) + 1e-4).log().clamp_min(-1)


def _agreement(hidden: Tensor, logits: Tensor, hidden_moved: Tensor, logits_moved: Tensor) -> Tensor:
    """How alike the answers to images and to the same images moved are -> `(5,)`, the last is one."""
    soft, soft_moved = torch.softmax(logits, 1), torch.softmax(logits_moved, 1)
    centred, centred_moved = logits - logits.mean(0), logits_moved - logits_moved.mean(0)
    correlation = (centred * centred_moved).sum() / (centred.norm() * centred_moved.norm()).clamp_min(1e-9)
    hidden, hidden_moved = hidden - hidden.mean(0), hidden_moved - hidden_moved.mean(0)
    return torch.stack(
        [
            (logits.argmax(1) == logits_moved.argmax(1)).float().mean(),
            torch.minimum(soft, soft_moved).sum(1).mean(),
            correlation,
            (hidden * hidden_moved).sum() / (hidden.norm() * hidden_moved.norm()).clamp_min(1e-9),
            torch.ones(()),
        ]
    )


@lru_cache(maxsize=64)
def drawn_images(channels: int, side: int) -> Tensor:
    """Clouds, strokes and the strokes moved `(S, channels, side, side)`, always the same.

    Clouds, and strokes, are of mean 0 and deviation 1 among themselves.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(CLOUDS, 1, max(2, side // 2), max(2, side // 2), generator=generator)
    clouds = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    clouds = clouds + 0.3 * torch.randn(CLOUDS, 1, side, side, generator=generator)
    ends = 0.15 + 0.7 * torch.rand(STROKES, 2, 3, 2, generator=generator)  # two Bezier curves of three points each
    angle = 2 * math.pi * torch.rand(STROKES, 1, 1, 1, generator=generator)
    shifts = torch.cat([angle.cos(), angle.sin()], 3) * MOVED_BY / side
    strokes = torch.cat([_drawn(ends, side), _drawn(ends + shifts, side)])
    images = torch.cat([(kind - kind.mean()) / kind.std() for kind in (clouds, strokes)])
    return images.expand(-1, channels, -1, -1).contiguous()


def _drawn(ends: Tensor, side: int) -> Tensor:
    """Curves `(n, curves, 3, 2)` in the unit square -> `(n, 1, side, side)`, 0 on the empty ground and 1 on a line."""
    t = torch.linspace(0, 1, 24)
    weights = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # (3, 24)
    points = torch.einsum("ncpd,pt->nctd", ends, weights).flatten(1, 2)  # (n, points, 2)
    centres = (torch.arange(side) + 0.5) / side
    near = (points[:, :, 0, None] - centres).square()[:, :, :, None]
    near = near + (points[:, :, 1, None] - centres).square()[:, :, None, :]  # (n, points, side, side)
    return torch.exp(-near.amin(1, keepdim=True) / (2 * 0.07**2))


@lru_cache(maxsize=4096)
def _runner(architecture: Architecture) -> Run | None:
    structure = graph(architecture)
    assert structure is not None
    names = [layer.name for layer in architecture.layers]
    if any(re.search(r"(^|\.)(attn|attention|self_attn)\.", name) for name in names):
        return _transformer(names)
    if any(RECURRENT.search(name) for name in names):
        return _recurrent(architecture)
    if any(re.search(r"(^|\.)layer\d+\.\d+\.conv\d+$", name) for name in names):
        return _residual(architecture)
    return _chain(architecture, structure)


def _normalise(x: Tensor, norm: dict[str, Tensor]) -> Tensor:
    """Batch norm where there are running statistics, else group norm of two groups, or of a vector's whole."""
    if "running_var" in norm:
        return F.batch_norm(x, norm["running_mean"], norm["running_var"].clamp_min(0), norm["weight"], norm.get("bias"))
    if x.dim() == 4:
        groups = 2 if x.shape[1] % 2 == 0 else 1
        return F.group_norm(x, groups, norm["weight"], norm.get("bias"))
    return F.layer_norm(x, x.shape[-1:], norm["weight"], norm.get("bias"))


def _chain(architecture: Architecture, structure: Graph) -> Run | None:
    """Dense layers and convolutions one after another, each reading the one before it, norms in between."""
    if any(node.next is None for i, node in enumerate(structure.nodes) if i != structure.head):
        return None
    if structure.head != len(structure.nodes) - 1 or any(
        layer.kind not in (LayerKind.DENSE, LayerKind.CONV2D, LayerKind.NORM) for layer in architecture.layers
    ):
        return None
    steps = architecture.layers
    spread = {node.layer: node.spread for node in structure.nodes}
    first = structure.nodes[0]

    def run(layers: Layers) -> tuple[Tensor, Tensor]:
        if first.kind is LayerKind.DENSE:
            side = math.isqrt(first.inputs)
            square = side**2 == first.inputs
            x = drawn_images(1, side).flatten(1) if square else drawn_images(1, side + 1).flatten(1)[:, : first.inputs]
        else:
            x = drawn_images(first.inputs, SIDE)
        hidden, pending = x, False
        for i, layer in enumerate(steps):
            tensors = layers[layer.name]
            if layer.kind is LayerKind.NORM:
                x = _normalise(x, tensors)
                continue
            if pending:
                x = torch.relu(x)
            if layer.kind is LayerKind.DENSE:
                if x.dim() == 4:
                    positions = math.isqrt(tensors["weight"].shape[1] // x.shape[1])
                    x = F.adaptive_avg_pool2d(x, max(1, positions)).flatten(1)
                hidden = x
                x = F.linear(x, tensors["weight"], tensors.get("bias"))
            else:
                kernel = tensors["weight"].shape[2:]
                stride = 2 if x.shape[2] > max(2, math.isqrt(spread[i])) else 1
                padding = (kernel[0] // 2, kernel[1] // 2)
                x = F.conv2d(x, tensors["weight"], tensors.get("bias"), stride, padding)
            pending = True
        return hidden.flatten(1), x

    return run


def _residual(architecture: Architecture) -> Run | None:
    """A residual net with the names of torchvision and timm: conv1, bn1, layer1.0.conv1, ..., fc."""
    names = {layer.name for layer in architecture.layers}
    blocks = sorted({(int(m[1]), int(m[2])) for name in names if (m := re.match(r"layer(\d+)\.(\d+)\.conv1$", name))})
    head = next((name for name in ("fc", "head", "head.fc", "classifier", "linear") if name in names), None)
    if head is None or "conv1" not in names or "bn1" not in names:
        return None
    kinds = {layer.name: layer for layer in architecture.layers}
    channels = kinds["conv1"].shape[1]
    convolutions = {block: [k for k in (1, 2, 3) if f"layer{block[0]}.{block[1]}.conv{k}" in names] for block in blocks}

    def run(layers: Layers) -> tuple[Tensor, Tensor]:
        weight = layers["conv1"]["weight"]
        large = weight.shape[2] >= LARGE_STEM
        images, stride = (drawn_images(channels, 4 * SIDE), 2) if large else (drawn_images(channels, SIDE), 1)
        x = F.conv2d(images, weight, layers["conv1"].get("bias"), stride, weight.shape[2] // 2)
        x = torch.relu(_normalise(x, layers["bn1"]))
        if large:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage, block in blocks:
            prefix = f"layer{stage}.{block}."
            numbers = convolutions[stage, block]
            narrow = f"{prefix}downsample.0" in layers or f"{prefix}shortcut.0" in layers
            first = large and stage == 1  # its downsampling is of channels alone
            stride = 2 if narrow and x.shape[2] > 2 and not first else 1
            strided = 2 if len(numbers) == 3 else 1
            inner = x
            for k in numbers:
                weight = layers[f"{prefix}conv{k}"]["weight"]
                step = stride if k == strided else 1
                inner = F.conv2d(inner, weight, layers[f"{prefix}conv{k}"].get("bias"), step, weight.shape[2] // 2)
                inner = _normalise(inner, layers[f"{prefix}bn{k}"])
                if k != numbers[-1]:
                    inner = torch.relu(inner)
            for name in ("downsample", "shortcut"):
                if f"{prefix}{name}.0" in layers:
                    x = _normalise(F.conv2d(x, layers[f"{prefix}{name}.0"]["weight"], None, stride),
                                   layers[f"{prefix}{name}.1"])  # fmt: skip
            x = torch.relu(x + inner)
        hidden = x.mean((2, 3))
        return hidden, F.linear(hidden, layers[head]["weight"], layers[head].get("bias"))

    return run


def _transformer(names: list[str]) -> Run | None:
    """A vision transformer with the names of timm or of Transformers, norms before the blocks' parts."""
    transformers = any(".attention.attention.query" in name for name in names)
    prefix = r"(?:vit\.)?encoder\.layer\.(\d+)\." if transformers else r"blocks\.(\d+)\."
    numbers = sorted({int(m[1]) for name in names if (m := re.match(prefix, name))})
    if not numbers:
        return None
    stem = "vit." if any(name.startswith("vit.") for name in names) else ""

    def block_names(number: int) -> dict[str, str]:
        if transformers:
            base = f"{stem}encoder.layer.{number}."
            attention = f"{base}attention.attention."
            return {
                "norm1": f"{base}layernorm_before", "norm2": f"{base}layernorm_after", "qkv": "",
                "query": f"{attention}query", "key": f"{attention}key", "value": f"{attention}value",
                "proj": f"{base}attention.output.dense", "fc1": f"{base}intermediate.dense",
                "fc2": f"{base}output.dense",
            }  # fmt: skip
        base = f"blocks.{number}."
        inner = "fc1" if f"{base}mlp.fc1" in names else "0"
        outer = "fc2" if inner == "fc1" else "2"
        return {
            "norm1": f"{base}norm1", "norm2": f"{base}norm2", "qkv": f"{base}attn.qkv", "query": f"{base}attn.query",
            "key": f"{base}attn.key", "value": f"{base}attn.value", "proj": f"{base}attn.proj",
            "fc1": f"{base}mlp.{inner}", "fc2": f"{base}mlp.{outer}",
        }  # fmt: skip

    parts = [block_names(number) for number in numbers]
    patch = f"{stem}embeddings.patch_embeddings.projection" if transformers else "patch_embed"
    patch = patch if patch in names else "patch_embed.proj"
    position = f"{stem}embeddings.position_embeddings" if transformers else "pos_embed"
    token = f"{stem}embeddings.cls_token" if transformers else "cls_token"
    final = f"{stem}layernorm" if transformers else "norm"
    head = "classifier" if transformers else "head"

    def linear(x: Tensor, layer: dict[str, Tensor]) -> Tensor:
        return F.linear(x, layer["weight"], layer.get("bias"))

    def run(layers: Layers) -> tuple[Tensor, Tensor]:
        stem_weight = layers[patch]["weight"]
        size, channels, side = stem_weight.shape[0], stem_weight.shape[1], stem_weight.shape[2]
        table = layers[position]["weight"].view(-1, size)  # (T, D)
        patches = math.isqrt(len(table))
        x = F.conv2d(drawn_images(channels, side * patches), stem_weight, layers[patch].get("bias"), side)
        x = x.flatten(2).transpose(1, 2)  # (S, patches, D)
        if len(table) != x.shape[1]:
            x = torch.cat([layers[token]["weight"].view(1, 1, size).expand(len(x), -1, -1), x], 1)
        x = x + table
        heads = 4 if size % 4 == 0 else 1
        for part in parts:
            y = F.layer_norm(x, (size,), layers[part["norm1"]]["weight"], layers[part["norm1"]].get("bias"))
            if part["qkv"] in layers:
                query, key, value = linear(y, layers[part["qkv"]]).chunk(3, -1)
            else:
                query, key, value = (linear(y, layers[part[name]]) for name in ("query", "key", "value"))
            query, key, value = (z.view(len(x), -1, heads, size // heads).transpose(1, 2) for z in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
            x = x + linear(mixed, layers[part["proj"]])
            y = F.layer_norm(x, (size,), layers[part["norm2"]]["weight"], layers[part["norm2"]].get("bias"))
            x = x + linear(F.gelu(linear(y, layers[part["fc1"]])), layers[part["fc2"]])
        x = F.layer_norm(x, (size,), layers[final]["weight"], layers[final].get("bias"))
        hidden = x[:, 0] if token in layers else x.mean(1)
        return hidden, linear(hidden, layers[head])

    return run


def _recurrent(architecture: Architecture) -> Run | None:
    """torch.nn's RNN, GRU or LSTM, which reads an image row by row, and a dense layer on its last state."""
    shapes = {layer.name: layer.shape for layer in architecture.layers}
    matches = [match for name in shapes if (match := RECURRENT.match(name))]
    heads = [layer.name for layer in architecture.layers if layer.kind is LayerKind.DENSE]
    stem, both = matches[0][1], any(match[3] for match in matches)
    depth = 1 + max(int(match[2]) for match in matches)
    rows, size = next(shape for name, shape in shapes.items() if name.startswith(f"{stem}weight_hh_l0"))
    cell = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}.get(rows // size)
    if cell is None or len(heads) != 1 or f"{stem}weight_ih_l0" not in shapes:
        return None
    inputs = shapes[f"{stem}weight_ih_l0"][1]
    bias = f"{stem}bias_ih_l0" in shapes
    module: nn.Module = cell(inputs, size, depth, bias=bias, batch_first=True, bidirectional=both, device="meta")
    module = module.to_empty(device="cpu")

    def run(layers: Layers) -> tuple[Tensor, Tensor]:
        module.load_state_dict({name: layers[f"{stem}{name}"]["weight"] for name, _ in module.named_parameters()})
        states, _ = module(drawn_images(1, inputs)[:, 0])
        hidden = states[:, -1]
        return hidden, F.linear(hidden, layers[heads[0]]["weight"], layers[heads[0]].get("bias"))

    return run
