"""The one way from weights to what an index keeps of them: embedding, prediction, and what each layer is like.

Query, add, train, figures and evaluation all go through `represent`, so that one file gets one answer everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from weightsearch import encoders
from weightsearch.devices import fast_processor
from weightsearch.encoders import Encoder, activation_code
from weightsearch.encoders.universal.encoder import UniversalEncoder, is_universal, load_universal
from weightsearch.training.adapt import calibrated
from weightsearch.types import Architecture
from weightsearch.uncertainty.novelty import describe_layers

if TYPE_CHECKING:  # a query has no use for zoos
    from weightsearch.training.data import Features
    from weightsearch.zoo.store import Zoo

PREDICTED_ROWS = 512  # whose features go through an encoder together


AnyEncoder = Encoder | UniversalEncoder


def load_any_encoder(directory: Path) -> AnyEncoder:
    """The encoder in an index's sub-directory, of one architecture or of all."""
    return load_universal(directory) if is_universal(directory) else encoders.load_encoder(directory)


@dataclass(frozen=True, eq=False)
class Representation:
    """What an encoder makes of n networks, which are of one architecture unless the encoder is that of all."""

    embedding: np.ndarray  # (n, D) float32
    predicted: np.ndarray  # (n,) float64: accuracies in [0, 1], or values of the encoder's other target
    layers: np.ndarray | None  # (n, F) float32, see `uncertainty.novelty.describe`; None where it was not asked for
    strangeness: np.ndarray | None = None  # (n,) over 1: of no kind known to the encoder of all architectures
    damage: np.ndarray | None = None  # (n,) over 1: the weights look shuffled, noised or partly random, to that encoder

    @classmethod
    def concatenate(cls, parts: Sequence[Representation]) -> Representation:
        """One after the other."""
        layers = [part.layers for part in parts if part.layers is not None]
        return cls(
            np.concatenate([part.embedding for part in parts]),
            np.concatenate([part.predicted for part in parts]),
            np.concatenate(layers) if layers else None,
        )


def represent(
    encoder: AnyEncoder,
    weights: np.ndarray,
    activations: Sequence[object],
    *,
    layers: bool = True,
    architecture: Architecture | None = None,
) -> Representation:
    """Flat weights `(n, P)` of the encoder's architecture as embeddings, predictions and descriptions of layers.

    Args:
        activations: what each network's own record calls its activation, in any spelling; None where it says nothing.
            An encoder may see through the symmetries that an activation has, where it knows it.
        layers: whether to describe the layers, too; the encoder of all architectures never does.
        architecture: of the weights, which the encoder of all architectures needs to be told.
    """
    if isinstance(encoder, UniversalEncoder):
        assert architecture is not None
        embedded = encoder.embed(weights, architecture)
        predicted = calibrated(encoder.notes.get("adaptation"), embedded.predicted, embedded.chance)
        return Representation(embedded.embedding, predicted, None, embedded.strangeness, embedded.damage)
    codes = torch.tensor([activation_code(activation) for activation in activations])
    return _represent(encoder, weights, codes, layers)


def represent_zoo(zoo: Zoo, encoder: Encoder, positions: np.ndarray, *, layers: bool = True) -> Representation:
    """`represent` for a zoo's checkpoints at `positions (n,)`; never more than a block of weights is in memory."""
    from weightsearch.training.data import activation_codes

    codes = activation_codes(zoo.table())
    parts = [_represent(encoder, weights, codes[block], layers) for block, weights in zoo.blocks(positions)]
    return Representation.concatenate(parts)


def describe_zoo(zoo: Zoo, positions: np.ndarray) -> np.ndarray:
    """Descriptions of layers alone `(len(positions), F)`, where there is no encoder."""
    return np.concatenate([describe_layers(weights, zoo.architecture) for _, weights in zoo.blocks(positions)])


def _represent(encoder: Encoder, weights: np.ndarray, codes: torch.Tensor, layers: bool) -> Representation:
    with fast_processor(encoder.architecture.size, len(weights)):
        embedding, predicted = encoder.embed(torch.from_numpy(weights), codes)
    description = describe_layers(weights, encoder.architecture) if layers else None
    return Representation(embedding.numpy(), predicted.double().numpy(), description)


def predict(encoder: Encoder, features: Features, positions: np.ndarray) -> np.ndarray:
    """Predicted accuracies (or other targets) `(len(positions),)` in evaluation mode."""
    encoder.eval()
    device = next(encoder.parameters()).device
    with torch.no_grad():
        batches = np.array_split(positions, max(1, len(positions) // PREDICTED_ROWS))
        return torch.cat([encoder(features(batch).to(device)) for batch in batches]).double().cpu().numpy()
