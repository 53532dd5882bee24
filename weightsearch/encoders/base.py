"""What all encoders share: weights -> features -> embedding -> predicted accuracy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor, nn

from weightsearch.types import Activation, Architecture, Method

NORMAL_IQR = 1.349  # interquartile range of a standard normal distribution
KNOTS = 257  # points of the empirical distribution kept for each statistic
EMBED_BLOCK = 2**21  # weights at a time: fewer cost calls, more cost memory that is new each time
CLIP = 10.0  # standardised weights beyond this are outliers of runs that all but diverged


class WeightInit(StrEnum):
    """How an encoder's own kernels start; its biases start at zero except with PyTorch's own scheme."""

    PYTORCH = "pytorch"
    XAVIER = "xavier"
    HE = "he"
    ORTHOGONAL = "orthogonal"


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is made of; saved beside it as JSON.

    `embedding_size` is E, the encoding's width per layer of the network (`fc-linear`: times the number of layers,
    `statistics`: of the whole); `fc` has none, its first layer is one more hidden layer of `hidden_size`.
    `input_noise` is the standard deviation of Gaussian noise on the normalised features while fitting.
    `probes` are the learned inputs of `invariant`, of large networks fewer, and `images` says whether they are images
    where networks start with convolutions, or patches as in version 0.1.
    `target` is the column that is predicted, always between `target_low` and `target_high`.
    """

    method: Method
    embedding_size: int = 64
    hidden_layers: int = 2
    hidden_size: int = 256
    dropout: float = 0.1
    input_noise: float = 0.0
    probes: int = 32
    images: bool = True
    initializer: WeightInit = WeightInit.PYTORCH
    target: str = "test_accuracy"
    target_low: float = 0.0
    target_high: float = 1.0


class Encoder(nn.Module, ABC):
    """An encoder with its predictor on top. B networks of P weights each; features F, embedding D.

    Subclasses give `embedding_width`, `features`, `calibrate`, `normalise` and `encode`. A fit may compute the
    normalised features once and keep them: they depend on no parameter, only on what `calibrate` stored, which is
    taken from the training split alone.
    """

    predictor: nn.Sequential
    activations: tuple[Activation, ...] = ()  # that the encoder tells apart; none where it looks at weights alone

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.config = config
        self.generator: torch.Generator | None = None

    @property
    @abstractmethod
    def embedding_width(self) -> int:
        """D."""

    def features(self, weights: Tensor, activations: Tensor | None = None, summaries: Tensor | None = None) -> Tensor:
        """Weights `(B, P)` -> features `(B, F)`; the weights themselves unless a subclass says otherwise.

        `activations (B,)` are the networks' activations as numbers, and `summaries (B, S)` the features' first columns
        where they are known already; most encoders need neither.
        """
        return weights

    @property
    def summary_width(self) -> int:
        """S, how many of the first features cost so much to make that a fit always keeps them in memory."""
        return 0

    @property
    def features_bytes(self) -> int:
        """Of one network's features, 4 F."""
        return 4 * self.features(torch.zeros(1, self.architecture.size)).shape[1]

    @abstractmethod
    def calibrate(self, features: Tensor) -> None:
        """Sets the normalisation from features of the training split `(B, F)`."""

    @abstractmethod
    def normalise(self, features: Tensor) -> Tensor:
        """Features `(B, F)` -> normalised features `(B, F)`, a new tensor."""

    @abstractmethod
    def encode(self, normalised: Tensor) -> Tensor:
        """Normalised features `(B, F)` -> embedding `(B, D)`."""

    def forward(self, normalised: Tensor) -> Tensor:
        """Normalised features `(B, F)` -> predicted accuracy (or other target) `(B,)`."""
        return self.predict(self.encode(normalised))

    def predict(self, embedding: Tensor) -> Tensor:
        """Embedding `(B, D)` -> predicted accuracy (or other target) `(B,)`."""
        low, high = self.config.target_low, self.config.target_high
        return low + (high - low) * torch.sigmoid(self.predictor(embedding)).squeeze(-1)

    @torch.no_grad()
    def embed(self, weights: Tensor, activations: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights `(B, P)` -> embedding `(B, D)` and predicted accuracy `(B,)`, dropout and noise off."""
        self.eval()
        embeddings = []
        for start in range(0, len(weights), size := max(1, EMBED_BLOCK // self.architecture.size)):
            block_activations = None if activations is None else activations[start : start + size]
            embeddings.append(self._embed_block(weights[start : start + size], block_activations))
        embedding = torch.cat(embeddings)
        return embedding, self.predict(embedding)

    def _embed_block(self, weights: Tensor, activations: Tensor | None) -> Tensor:
        """Weights `(B, P)` -> embedding `(B, D)`."""
        return self.encode(self.normalise(self.features(weights, activations)))

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def initialise(self) -> None:
        """Draws every kernel anew by the configured scheme, from torch's global generator."""
        if self.config.initializer is WeightInit.PYTORCH:
            return  # as its modules were made
        for module in self.modules():
            if isinstance(module, nn.Linear):
                match self.config.initializer:
                    case WeightInit.XAVIER:
                        nn.init.xavier_uniform_(module.weight)
                    case WeightInit.HE:
                        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                    case WeightInit.ORTHOGONAL:
                        nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Where dropout and input noise come from while fitting; None: torch's global generator."""
        self.generator = generator
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator

    def _make_predictor(self) -> nn.Sequential:
        """Hidden layers (ReLU, dropout) and one output, before its sigmoid."""
        config, width = self.config, self.embedding_width
        layers: list[nn.Module] = []
        for _ in range(config.hidden_layers):
            layers += [nn.Linear(width, config.hidden_size), nn.ReLU(), Dropout(config.dropout)]
            width = config.hidden_size
        return nn.Sequential(*layers, nn.Linear(width, 1))

    def _noisy(self, normalised: Tensor) -> Tensor:
        """Adds the configured input noise while fitting."""
        if self.training and self.config.input_noise > 0:
            noise = torch.empty_like(normalised).normal_(generator=self.generator)
            return normalised + self.config.input_noise * noise
        return normalised


class WeightEncoder(Encoder):
    """An encoder whose features are the weights themselves, each standardised by the training split and clipped.

    On raw weights a fit easily diverges, and means and standard deviations are those of the few networks trained with
    a large learning rate: so medians and interquartile ranges are taken. They are stored with the encoder as `mean` and
    `scale`; here there is one pair per weight, `(P,)`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, architecture: Architecture, config: EncoderConfig, scales: int | None = None) -> None:
        super().__init__(architecture, config)
        self.register_buffer("mean", torch.zeros(scales or architecture.size))
        self.register_buffer("scale", torch.ones(scales or architecture.size))

    def calibrate(self, features: Tensor) -> None:
        centre, scale = centre_and_scale(features)
        self.mean.copy_(centre)
        self.scale.copy_(scale)

    def normalise(self, features: Tensor) -> Tensor:
        return (features - self.mean).div_(self.scale).clamp_(-CLIP, CLIP)

    def layer_matrices(self, features: Tensor) -> list[Tensor]:
        """Weights `(B, P)` -> a view `(B, rows, columns)` per layer."""
        return [
            features[:, part].view(len(features), layer.rows, layer.columns)
            for part, layer in zip(self.architecture.slices, self.architecture.layers, strict=True)
        ]


class Dropout(nn.Dropout):
    """PyTorch's, with masks from 16 random bits an element instead of a float64: a third of the time on a CPU."""

    generator: torch.Generator | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return inputs
        words = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64, device=inputs.device)
        bits = words.random_(-(2**63), None, generator=self.generator)
        keep = bits.view(torch.int16)[: inputs.numel()].view_as(inputs) >= round(self.p * 2**16) - 2**15
        return inputs * keep.to(inputs.dtype).div_(1 - self.p)


def dense(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """`layer(inputs)` in float32; inputs in bfloat16 are multiplied in bfloat16 and summed up in float32."""
    if inputs.dtype is not torch.bfloat16:
        return layer(inputs)
    return nn.functional.linear(inputs, layer.weight.bfloat16()).float() + layer.bias


def centre_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Median and scale of each column of `values (n, k)`: `(k,)` each.

    The scale is the interquartile range, in standard deviations of a normal distribution; where more than half of the
    values are equal, it is the standard deviation, and 1 where all are.
    """
    low, centre, high = np.quantile(values.numpy(), [0.25, 0.5, 0.75], axis=0)
    scale = (high - low) / NORMAL_IQR
    scale = np.where(scale > 1e-6, scale, values.std(dim=0, correction=0).numpy())
    scale = np.where(scale > 1e-6, scale, 1.0)
    return torch.from_numpy(centre), torch.from_numpy(scale)


def normal_scores(values: Tensor, knots: Tensor) -> Tensor:
    """Each column of `values (B, F)` mapped to a standard normal by its quantiles `knots (F, KNOTS)`, ascending.

    Linear in between the knots; beyond the outermost, as at them.
    """
    values = values.T.contiguous()  # (F, B)
    right = torch.searchsorted(knots, values).clamp(1, KNOTS - 1)
    low, high = knots.gather(1, right - 1), knots.gather(1, right)
    share = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    rank = (right - 1 + share) / (KNOTS - 1)
    edge = 0.5 / KNOTS
    return math.sqrt(2) * torch.erfinv(2 * rank.clamp(edge, 1 - edge) - 1).T


def seven_statistics(block: Tensor) -> Tensor:
    """The seven statistics of each row of `block (B, n)` -> `(B, 7)`; quartiles interpolate linearly."""
    ordered = torch.from_numpy(np.sort(block.numpy(), axis=1))  # several times faster than torch's sort
    position = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]) * (block.shape[1] - 1)
    below = position.floor().long()
    above = position.ceil().long()
    share = position - below
    five = torch.lerp(ordered[:, below], ordered[:, above], share)
    spread = block.std(dim=1, correction=0)
    return torch.cat([five, block.mean(dim=1, keepdim=True), spread[:, None]], dim=1)
