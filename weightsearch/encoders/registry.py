"""An encoder on disk: `encoder.safetensors` (its tensors) and `encoder.json` (everything else needed to use it)."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from weightsearch.encoders.base import Encoder, EncoderConfig, WeightInit
from weightsearch.encoders.comvex import ComvexConv
from weightsearch.encoders.dense import ComvexLinear, Fc, FcLinear
from weightsearch.encoders.invariant import Invariant
from weightsearch.encoders.statistics import Statistics
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, Method

ENCODERS: dict[Method, type[Encoder]] = {
    Method.FC: Fc,
    Method.FC_LINEAR: FcLinear,
    Method.COMVEX_LINEAR: ComvexLinear,
    Method.COMVEX_CONV: ComvexConv,
    Method.STATISTICS: Statistics,
    Method.INVARIANT: Invariant,
}
FORMAT = 1
_BUILDING = threading.Lock()  # modules draw from the global generator, which all threads share


def build_encoder(architecture: Architecture, config: EncoderConfig, generator: torch.Generator) -> Encoder:
    """A new encoder whose initial parameters are drawn from `generator` alone."""
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        encoder = ENCODERS[config.method](architecture, config)
        encoder.initialise()
        return encoder


def config_from_dict(values: dict[str, Any]) -> EncoderConfig:
    """The inverse of `dataclasses.asdict`; what an older version did not save has its default."""
    initializer = WeightInit(values.get("initializer", WeightInit.PYTORCH))
    older = {"probes": 16, "images": False}  # what versions before these settings did
    return EncoderConfig(**{**older, **values, "method": Method(values["method"]), "initializer": initializer})


def save_encoder(encoder: Encoder, directory: Path, notes: dict[str, Any]) -> None:
    """Writes the two files into `directory`. `notes` (split, metrics, zoo, version) are kept in the JSON."""
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    (directory / "encoder.safetensors").write_bytes(save(tensors))
    content = {
        "format": FORMAT,
        "config": asdict(encoder.config),
        "architecture": encoder.architecture.to_dict(),
        **notes,
    }
    (directory / "encoder.json").write_text(json.dumps(content, indent=1) + "\n")


def load_encoder(directory: Path) -> Encoder:
    """The encoder in `directory`, ready to embed. A missing or damaged file gives one line."""
    try:
        content = json.loads((directory / "encoder.json").read_text())
        config = config_from_dict(content["config"])
        with torch.device("meta"):  # no memory and no random numbers for values that are loaded anyway
            encoder = ENCODERS[config.method](Architecture.from_dict(content["architecture"]), config)
        tensors = load_file(directory / "encoder.safetensors")
        # Copies, since the file's are not aligned, and products of unaligned tensors differ in their last bits.
        encoder.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    except Exception as error:  # any fault in these two files has the same fix
        raise WeightsearchError(
            f"{directory}: the encoder cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "make the index again with `weightsearch train`"
        ) from error
    return encoder.eval()
