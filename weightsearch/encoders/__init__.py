"""Encoders: from a network's weights to its embedding, and on to its predicted accuracy. Torch only."""

from weightsearch.encoders.base import Encoder, EncoderConfig
from weightsearch.encoders.files import build_encoder, load_encoder, save_encoder

__all__ = ["Encoder", "EncoderConfig", "build_encoder", "load_encoder", "save_encoder"]
