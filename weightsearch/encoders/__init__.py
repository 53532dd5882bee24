"""Encoders: from a network's weights to its embedding, and on to its predicted accuracy. Torch only."""

from weightsearch.encoders.base import Encoder, EncoderConfig, WeightEncoder, WeightInit
from weightsearch.encoders.invariant import activation_code
from weightsearch.encoders.registry import build_encoder, config_from_dict, load_encoder, save_encoder

__all__ = [
    "Encoder",
    "EncoderConfig",
    "WeightEncoder",
    "WeightInit",
    "activation_code",
    "build_encoder",
    "config_from_dict",
    "load_encoder",
    "save_encoder",
]
