"""An encoder that sees what a network computes, not how its units happen to be ordered, scaled or signed.

1. Each hidden unit gets a canonical scale (ReLU: a row of norm 1) or sign (tanh), undone in the next layer.
2. Each layer is summed up by moments, extremes and singular values, which no order of rows and columns changes.
3. Learned probes, inputs that the fit finds, go through the layers; what comes out is a function of the function alone
   (after Kahana et al. 2024, "Deep linear probe generators for weight space learning", arXiv:2410.10811). They are
   images where the network starts with convolutions (`encoders.probes`), and patches of inputs otherwise. Batch
   normalisations are folded into the layers before them for it.

An MLP on both gives the embedding, on which the predictor is linear, so that distance follows accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from weightsearch.encoders.base import KNOTS, Dropout, Encoder, EncoderConfig, normal_scores, seven_statistics
from weightsearch.encoders.folding import fold_norms, without_norms
from weightsearch.encoders.probes import answers, image_size
from weightsearch.encoders.symmetry import Hidden, hidden_units
from weightsearch.errors import WeightsearchError
from weightsearch.types import Activation, Architecture, activation_named

FEWEST_SPREAD = 0.02  # that quantiles are drawn apart by at least, in shares of what lies between the outer tenths
SINGULAR_VALUES = 12  # of each layer, evenly spaced from the largest to the smallest
PROBE_SCALE = 2.5  # probes move this much faster than the other parameters
PROBE_PRODUCTS = 2**28  # multiplications that the probes of one network may take; larger networks share patches
IMAGE_PRODUCTS = 5 * 2**22  # of all images of one network, of which larger networks get fewer
FEWEST_IMAGES = 8
PROBE_BLOCK = 2**20  # values of a layer at a time: more would not stay in cache
CODES = {Activation.RELU: 1.0, Activation.TANH: -1.0}  # 0 where the activation is unknown


def activation_code(name: object) -> float:
    """The number that stands for an activation's name, in any spelling; 0 for those that no encoder has learned."""
    activation = None if name is None else activation_named(name)
    return 0.0 if activation is None else CODES.get(activation, 0.0)


class Invariant(Encoder):
    """Canonical scale, summaries of layers, learned probes. B networks of P weights each, S summaries.

    Features are `[summaries (S), activation's code, canonical weights (P)]`. Of images, the outputs and the sorted
    softmax of each count. Where probes are patches of the first layer's inputs (networks without convolutions, very
    large ones, and encoders of version 0.1), a later layer's patch is put together from outputs of the one
    before. Where layers do not follow one another (`chain` is empty), there are summaries alone.
    """

    knots: Tensor
    activations = tuple(CODES)

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__(architecture, config)
        self.folded = _folded(architecture) if config.images else architecture
        self.chain = chain_of(self.folded)
        self.register_buffer("knots", torch.zeros(self.summary_width, KNOTS))  # ascending once calibrated
        width = self.summary_width
        self.probed = bool(self.chain) and config.probes > 0
        self.probe_count = config.probes
        self.image = image_size(self.folded, self.chain) if self.probed and config.images else None
        if self.image:
            self.probe_count = min(config.probes, max(FEWEST_IMAGES, IMAGE_PRODUCTS // self.image.products))
            if self.image.products * self.probe_count > PROBE_PRODUCTS:
                self.image, self.probe_count = None, config.probes
        if self.probed:
            outputs = self.folded.layers[-1].rows
            if self.image:
                self.probes = nn.Parameter(torch.empty(self.probe_count, *self.image.shape))
                self.probe_width = self.probe_count * 2 * outputs
            else:
                self.patches = _patches(self.folded, self.chain, config.probes)
                inputs = self.folded.layers[0].weight_columns
                self.probes = nn.Parameter(torch.empty(inputs, self.patches[0] * config.probes))
                self.probe_width = config.probes * outputs
            if not self.probes.is_meta:  # while loading: drawing would import half of torch for nothing
                nn.init.normal_(self.probes, std=0.7 / PROBE_SCALE)
            width += len(CODES) + self.probe_width
        layers: list[nn.Module] = []
        for _ in range(config.hidden_layers):
            layers += [nn.Linear(width, config.hidden_size), nn.ReLU(), Dropout(config.dropout)]
            width = config.hidden_size
        self.body = nn.Sequential(*layers, nn.Linear(width, config.embedding_size))
        self.predictor = nn.Sequential(nn.Linear(config.embedding_size, 1))

    @property
    def embedding_width(self) -> int:
        return self.config.embedding_size

    @property
    def summary_width(self) -> int:
        """S."""
        return sum(
            7 * (1 + len(layer.extras)) + 4 + min(SINGULAR_VALUES, layer.rows, layer.weight_columns)
            for layer in self.architecture.layers
        )

    def features(self, weights: Tensor, activations: Tensor | None = None, summaries: Tensor | None = None) -> Tensor:
        """`activations (B,)` are codes (see `CODES`; None: all unknown); `summaries (B, S)` saves computing them."""
        if activations is None:
            activations = torch.zeros(len(weights))
        summed_up, probed = self._forms(weights, activations)
        if summaries is None:
            summaries = self._summaries(summed_up)
        return torch.cat([summaries, activations[:, None], probed], dim=1)

    def calibrate(self, features: Tensor) -> None:
        probabilities = torch.linspace(0, 1, KNOTS, dtype=features.dtype)
        knots = torch.quantile(features[:, : self.summary_width], probabilities, dim=0).T
        # Where many networks have almost the same value, knots lie so close that rounding would move one past many.
        spread = knots[:, KNOTS * 9 // 10] - knots[:, KNOTS // 10]
        spread = torch.where(spread > 1e-6, spread, knots[:, -1] - knots[:, 0]).clamp_min(1e-6)
        self.knots.copy_(knots + FEWEST_SPREAD * spread[:, None] * (probabilities - 0.5))

    def normalise(self, features: Tensor) -> Tensor:
        width = self.summary_width
        return torch.cat([normal_scores(features[:, :width], self.knots), features[:, width:]], dim=1)

    def encode(self, normalised: Tensor) -> Tensor:
        return self._encode(*normalised.split([self.summary_width, 1, self.folded.size], dim=1))

    def _encode(self, summaries: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
        """Normalised summaries `(B, S)`, activations' codes `(B, 1)`, canonical weights `(B, P)` -> `(B, D)`."""
        if not self.probed:
            return self.body(self._noisy(summaries))
        kinds = torch.cat([codes == CODES[activation] for activation in CODES], dim=1)  # (B, 2)
        values = self.image.values if self.image else self.patches[0] * self.folded.layers[0].rows
        size = max(1, PROBE_BLOCK // (values * self.probe_count))
        tanh = kinds[:, list(CODES).index(Activation.TANH)]
        blocks: list[Tensor] = []
        groups = [tanh.nonzero()[:, 0], (~tanh).nonzero()[:, 0]]  # positions; the unknown count as ReLU
        for positions, activation in zip(groups, (torch.tanh, torch.relu), strict=True):
            blocks += [self._probe(weights[block], activation) for block in positions.split(size) if len(block)]
        outputs = torch.cat(blocks)[torch.cat(groups).argsort()] if blocks else summaries.new_zeros(0, self.probe_width)
        return self.body(torch.cat([self._noisy(torch.cat([summaries, outputs], dim=1)), kinds.float()], dim=1))

    @torch.no_grad()
    def embed(self, weights: Tensor, activations: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As the base class says; a network of unknown activation gets the mean of its embeddings with each of them."""
        if activations is None:
            activations = torch.zeros(len(weights))
        unknown = activations == 0
        if not self.chain or not (n := int(unknown.sum())):
            return super().embed(weights, activations)
        codes = torch.tensor(list(CODES.values()), dtype=activations.dtype).repeat_interleave(n)
        tried = super().embed(weights[unknown].repeat(len(CODES), 1), codes)[0].view(len(CODES), n, -1)
        embedding = tried.new_empty(len(weights), tried.shape[2])
        embedding[unknown] = tried.mean(dim=0)
        if n < len(weights):
            embedding[~unknown] = super().embed(weights[~unknown], activations[~unknown])[0]
        return embedding, self.predict(embedding)

    def _embed_block(self, weights: Tensor, activations: Tensor | None) -> Tensor:
        """Without putting features together only to take them apart again: large networks' copies take long."""
        codes = torch.zeros(len(weights)) if activations is None else activations
        summed_up, probed = self._forms(weights, codes)
        return self._encode(normal_scores(self._summaries(summed_up), self.knots), codes[:, None], probed)

    def _forms(self, weights: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(B, P)`, activations' codes `(B,)` -> what is summed up `(B, P)`, and what probes go through.

        Where there are norms, their own numbers tell something, too: weights are summed up as they are.
        """
        if self.folded is not self.architecture:
            return weights, canonical(fold_norms(weights, self.architecture), self.folded, self.chain, codes)
        weights = canonical(weights, self.architecture, self.chain, codes) if self.chain else weights
        return weights, weights

    def _summaries(self, weights: Tensor) -> Tensor:
        """Weights `(B, P)` -> summaries `(B, S)`."""
        summaries = []
        for part, layer in zip(self.architecture.slices, self.architecture.layers, strict=True):
            matrix = weights[:, part].view(len(weights), layer.rows, layer.columns)
            inputs = layer.weight_columns
            summaries += [_moments(matrix[:, :, :inputs].flatten(1)), _spectrum(matrix[:, :, :inputs])]
            summaries += [seven_statistics(matrix[:, :, inputs + number]) for number in range(len(layer.extras))]
        return torch.cat(summaries, dim=1)

    def _probe(self, weights: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Canonical weights `(B, P)` -> what the last layer makes of all probes, compressed `(B, probe_width)`."""
        if self.image:
            outputs = answers(self.probes * PROBE_SCALE, weights, self.folded, activation)  # (B, probes, rows)
            return torch.cat([compressed(outputs), shares_of_classes(outputs)], dim=2).flatten(1)
        count, values = len(weights), self.probes * PROBE_SCALE  # (inputs, patches * probes)
        for number, (part, layer) in enumerate(zip(self.folded.slices, self.folded.layers, strict=True)):
            matrix = weights[:, part].view(count, layer.rows, layer.columns)
            inputs = layer.weight_columns
            values = matrix[:, :, :inputs] @ values  # (B, rows, patches * probes)
            if layer.extras:
                values = values + matrix[:, :, inputs:]
            if number == len(self.chain):
                break
            values = activation(values)
            # The reader's patch, of `block` columns a unit, holds that unit's outputs for as many patches.
            block, patches, wanted = self.chain[number].block, self.patches[number], self.patches[number + 1]
            if block * wanted > patches:  # too many to have one each
                values = values.view(count, layer.rows, patches, -1)[:, :, torch.arange(block * wanted) % patches]
            values = values.reshape(count, layer.rows * block, -1)
        return compressed(values.flatten(1))


def shares_of_classes(outputs: Tensor) -> Tensor:
    """Softmax of outputs `(B, probes, rows)`, the largest first: how sure the network is of its answer."""
    return outputs.softmax(dim=2).sort(dim=2, descending=True).values


def compressed(values: Tensor) -> Tensor:
    """The logarithm of each value's size, with its sign; linear near 0."""
    return values.sign() * torch.log1p(values.abs())


def _folded(architecture: Architecture) -> Architecture:
    """Without batch normalisations, where layers follow one another."""
    try:
        folded = without_norms(architecture)
    except WeightsearchError:
        return architecture
    return folded if folded != architecture and chain_of(folded) else architecture


def chain_of(architecture: Architecture) -> tuple[Hidden, ...]:
    """The hidden units between the layers; empty where layers do not follow one another, and where norms stand."""
    try:
        chain = hidden_units(architecture)
    except WeightsearchError:
        return ()
    return () if any(hidden.norms for hidden in chain) else chain


def canonical(weights: Tensor, architecture: Architecture, chain: Sequence[Hidden], codes: Tensor) -> Tensor:
    """The same functions `(B, P)` with each hidden unit scaled to a row of norm 1 (ReLU) or a positive sum (tanh).

    Where the activation is unknown, units stay as they are.
    """
    weights, codes = weights.clone(), codes[:, None]
    matrices = [
        weights[:, part].view(len(weights), layer.rows, layer.columns)
        for part, layer in zip(architecture.slices, architecture.layers, strict=True)
    ]
    for hidden in chain:
        rows, reader = matrices[hidden.made_by], matrices[hidden.read_by]
        # In float64: all of a row shares its norm's error, and float32 cannot hold the squares of a dead unit.
        norm = torch.cat([few.double().norm(dim=2) for few in rows.split(4)]).clamp_min(1e-30).float()  # (B, units)
        sign = torch.where(rows.sum(dim=2) < 0, -1.0, 1.0)
        factor = torch.where(codes > 0, 1 / norm, torch.where(codes < 0, sign, torch.ones_like(norm)))
        rows *= factor[:, :, None]
        reader[:, :, : hidden.units * hidden.block] /= factor.repeat_interleave(hidden.block, dim=1)[:, None]
    return weights


def _patches(architecture: Architecture, chain: Sequence[Hidden], probes: int) -> list[int]:
    """How many patches of each layer's input one probe has: one of the last, a block's worth for each before it."""
    for limit in (4**power for power in range(8, -1, -1)):
        patches = [1]
        for hidden in reversed(chain):
            patches.insert(0, min(limit, patches[0] * hidden.block))
        products = sum(layer.size * count for layer, count in zip(architecture.layers, patches, strict=True))
        if products * probes <= PROBE_PRODUCTS:
            break
    return patches


def _moments(values: Tensor) -> Tensor:
    """Mean, standard deviation, skewness, kurtosis, mean size, minimum and maximum of `values (B, n)`: `(B, 7)`."""
    mean = values.mean(dim=1, keepdim=True)
    centred = values - mean
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)  # faster than `aminmax`
    size = values.abs().mean(dim=1, keepdim=True)
    squares = centred.square()
    deviation = squares.mean(dim=1, keepdim=True).sqrt()
    scale = deviation.clamp_min(1e-9)  # to the fourth, still a float32
    third = centred.mul_(squares).mean(dim=1, keepdim=True) / scale**3
    fourth = squares.square_().mean(dim=1, keepdim=True) / scale**4
    return torch.cat([mean, deviation, third, fourth, size, low, high], dim=1)


def _spectrum(matrix: Tensor) -> Tensor:
    """Of each matrix `(B, rows, columns)`: log norm, stable rank, entropy, participation, and singular values.

    In float64, since the small ones come from the difference of large numbers. Singular values are shares of their sum.
    """
    matrix = matrix.double()
    gram = matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix
    squares = torch.linalg.eigvalsh(gram).clamp_min(0).flip(1)  # (B, n), descending
    total = squares.sum(dim=1, keepdim=True).clamp_min(1e-24)
    share = squares / total
    values = squares.sqrt()
    chosen = torch.linspace(0, values.shape[1] - 1, min(SINGULAR_VALUES, values.shape[1])).round().long()
    return torch.cat(
        [
            total.log() / 2,
            total / squares[:, :1].clamp_min(1e-24),
            -(share * share.clamp_min(1e-12).log()).sum(dim=1, keepdim=True),
            1 / share.square().sum(dim=1, keepdim=True).clamp_min(1e-12),
            torch.log(values[:, chosen] / values.sum(dim=1, keepdim=True).clamp_min(1e-12) + 1e-3),
        ],
        dim=1,
    ).float()
