"""What an encoder makes of a zoo's checkpoints: embeddings, predictions, descriptions of layers."""

from __future__ import annotations

import numpy as np
import torch

from weightsearch.devices import fast_processor
from weightsearch.encoders import Encoder
from weightsearch.training.data import Features, activation_codes
from weightsearch.uncertainty.novelty import describe
from weightsearch.zoo.store import BLOCK_ROWS, Zoo


def predict(encoder: Encoder, features: Features, positions: np.ndarray) -> np.ndarray:
    """Predicted accuracies (or other targets) `(len(positions),)` in evaluation mode."""
    encoder.eval()
    device = next(encoder.parameters()).device
    with torch.no_grad():
        batches = np.array_split(positions, max(1, len(positions) // BLOCK_ROWS))
        return torch.cat([encoder(features(batch).to(device)) for batch in batches]).double().cpu().numpy()


def embed_zoo(zoo: Zoo, encoder: Encoder, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `(n, D)` float32 and predicted accuracies (or other targets) `(n,)` of those checkpoints."""
    embeddings, predictions = [], []
    activations = activation_codes(zoo.table())
    with fast_processor(zoo.architecture.size):
        for block, weights in zoo.blocks(positions):
            embedding, predicted = encoder.embed(torch.from_numpy(weights), activations[block])
            embeddings.append(embedding.numpy())
            predictions.append(predicted.double().numpy())
    return np.concatenate(embeddings), np.concatenate(predictions)


def describe_zoo(zoo: Zoo, positions: np.ndarray) -> np.ndarray:
    """Descriptions of layers `(len(positions), F)`; never more than a block of weights is in memory."""
    return np.concatenate([describe(weights, zoo.architecture) for _, weights in zoo.blocks(positions)])
