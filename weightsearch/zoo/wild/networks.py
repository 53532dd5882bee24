"""The preset `wild`'s networks, as people write them: modules are named as in torchvision, timm and Transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsearch.zoo.wild.recipes import Family, WildRecipe

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
HEADS = 4  # of attention


def build(recipe: WildRecipe, size: int) -> nn.Module:
    """A network for images `(B, 1, size, size)`, freshly initialised from torch's global generator."""
    makers: dict[Family, Callable[[WildRecipe, int], nn.Module]] = {
        Family.MLP: _mlp,
        Family.CNN: _cnn,
        Family.RESNET: ResNet,
        Family.VIT: VisionTransformer,
        Family.RNN: Recurrent,
    }
    network = makers[recipe.family](recipe, size)
    _initialise(network, recipe.initializer)
    return network


def _initialise(network: nn.Module, scheme: str) -> None:
    if scheme == "default":
        return
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            match scheme:
                case "he-normal":
                    nn.init.kaiming_normal_(module.weight)
                case "xavier-uniform":
                    nn.init.xavier_uniform_(module.weight)
                case "orthogonal":
                    nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _mlp(recipe: WildRecipe, size: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    inputs, width = size * size, recipe.width
    for _ in range(recipe.depth):
        layers.append(nn.Linear(inputs, width))
        if recipe.norm != "none":
            layers.append(nn.BatchNorm1d(width) if recipe.norm == "batch" else nn.LayerNorm(width))
        layers += [ACTIVATIONS[recipe.activation](), nn.Dropout(recipe.dropout)]
        inputs, width = width, max(10, int(width * (recipe.widening or 1)))
    return nn.Sequential(*layers, nn.Linear(inputs, recipe.classes))


def _cnn(recipe: WildRecipe, size: int) -> nn.Module:
    kernel = recipe.kernel or 3
    layers: list[nn.Module] = []
    inputs, width = 1, recipe.width
    pools = {"max-pool": nn.MaxPool2d, "average-pool": nn.AvgPool2d}
    for i in range(recipe.depth):
        shrink = size >= 4 and (i % 2 == 0 or recipe.depth <= 3)
        stride = 2 if shrink and recipe.downsampling == "stride" else 1
        layers.append(nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=recipe.norm != "batch" or i % 2 == 0))
        if recipe.norm != "none":
            layers.append(nn.BatchNorm2d(width) if recipe.norm == "batch" else nn.GroupNorm(2, width))
        layers.append(ACTIVATIONS[recipe.activation]())
        if shrink:
            size = (size + 1) // 2 if stride == 2 else size // 2
            if stride == 1:
                layers.append(pools[recipe.downsampling or "max-pool"](2))
        if recipe.dropout:
            layers.append(nn.Dropout(recipe.dropout))
        inputs = width
        if shrink:
            width = min(64, 2 * round(width * (recipe.widening or 1) / 2))
    if recipe.head == "pool":
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, recipe.classes))
    inputs *= size * size
    layers.append(nn.Flatten())
    if recipe.head == "hidden":
        layers += [nn.Linear(inputs, 64), ACTIVATIONS[recipe.activation](), nn.Dropout(recipe.dropout)]
        inputs = 64
    return nn.Sequential(*layers, nn.Linear(inputs, recipe.classes))


def _norm(recipe: WildRecipe, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if recipe.norm == "batch" else nn.GroupNorm(2, channels)


class Block(nn.Module):
    """A residual block of two convolutions, or of three with a narrow one in the middle (He et al. 2015,
    https://arxiv.org/abs/1512.03385)."""

    def __init__(self, recipe: WildRecipe, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if recipe.variant == "bottleneck":
            middle = max(2, outputs // 4 * 2)
            sizes = [(inputs, middle, 1, 1), (middle, middle, 3, stride), (middle, outputs, 1, 1)]
        else:
            sizes = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        self.count = len(sizes)
        for i, (before, after, kernel, step) in enumerate(sizes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i}", _norm(recipe, after))
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(recipe, outputs))
        self.act = ACTIVATIONS[recipe.activation]()

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i in range(1, self.count + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            if i < self.count:
                x = self.act(x)
        return self.act(x + (images if self.downsample is None else self.downsample(images)))


class ResNet(nn.Module):
    def __init__(self, recipe: WildRecipe, size: int) -> None:
        super().__init__()
        width = recipe.width
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = _norm(recipe, width)
        self.act = ACTIVATIONS[recipe.activation]()
        self.stages = recipe.depth
        inputs = width
        blocks = 1 if recipe.depth > 2 else 2
        for stage in range(1, recipe.depth + 1):
            stride = 2 if size >= 4 else 1
            size = (size + 1) // stride
            members = [Block(recipe, inputs, width, stride)]
            members += [Block(recipe, width, width, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*members))
            inputs, width = width, min(64, int(width * (recipe.widening or 1)))
        self.dropout = nn.Dropout(recipe.dropout)
        self.fc = nn.Linear(inputs, recipe.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(images)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.dropout(x.mean((2, 3))))


class Attention(nn.Module):
    """Its three projections in one matrix, as timm has them, or apart, as Transformers has them."""

    def __init__(self, size: int, *, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv = nn.Linear(size, 3 * size)
        else:
            self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.proj = nn.Linear(size, size)
        self.fused = fused

    def forward(self, tokens: Tensor) -> Tensor:
        b, t, d = tokens.shape
        parts = self.qkv(tokens).chunk(3, -1) if self.fused else [m(tokens) for m in (self.query, self.key, self.value)]
        query, key, value = (part.view(b, t, HEADS, d // HEADS).transpose(1, 2) for part in parts)  # (B, heads, T, d)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(b, t, d))


class TransformerBlock(nn.Module):
    def __init__(self, recipe: WildRecipe) -> None:
        super().__init__()
        size, hidden = recipe.width, int(recipe.width * (recipe.widening or 1))
        self.norm1 = nn.LayerNorm(size)
        self.attn = Attention(size, fused=recipe.variant == "fused")
        self.norm2 = nn.LayerNorm(size)
        self.mlp = nn.Sequential(
            nn.Linear(size, hidden),
            ACTIVATIONS[recipe.activation](),
            nn.Linear(hidden, size),
            nn.Dropout(recipe.dropout),
        )
        self.before = recipe.norm == "before"

    def forward(self, tokens: Tensor) -> Tensor:
        if self.before:
            tokens = tokens + self.attn(self.norm1(tokens))
            return tokens + self.mlp(self.norm2(tokens))
        tokens = self.norm1(tokens + self.attn(tokens))
        return self.norm2(tokens + self.mlp(tokens))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929, but small."""

    def __init__(self, recipe: WildRecipe, size: int) -> None:
        super().__init__()
        patch, width = recipe.kernel or 2, recipe.width
        self.with_class = recipe.head == "class-token"
        if self.with_class:
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        patches = (size // patch) ** 2
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + self.with_class, width))
        self.patch_embed = nn.Conv2d(1, width, patch, patch)
        self.blocks = nn.Sequential(*(TransformerBlock(recipe) for _ in range(recipe.depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, recipe.classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, patches, D)
        if self.with_class:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.pos_embed))
        return self.head(tokens[:, 0] if self.with_class else tokens.mean(1))


class Recurrent(nn.Module):
    """It reads an image row by row."""

    def __init__(self, recipe: WildRecipe, size: int) -> None:
        super().__init__()
        cells: dict[str | None, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        both = recipe.norm == "two-way"
        self.rnn = cells[recipe.variant](size, recipe.width, recipe.depth, batch_first=True, bidirectional=both)
        self.dropout = nn.Dropout(recipe.dropout)
        self.fc = nn.Linear(recipe.width * (1 + both), recipe.classes)
        self.mean = recipe.head == "mean"

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.rnn(images[:, 0])  # (B, H, width)
        return self.fc(self.dropout(states.mean(1) if self.mean else states[:, -1]))
