"""The network that is asked about, from wherever it comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch.errors import UsageError
from weightsearch.types import Activation, Architecture, Checkpoint, activation_named

if TYPE_CHECKING:
    from weightsearch.encoders import Encoder

ARCHITECTURES_NAMED = 5


@dataclass(frozen=True, eq=False)
class Subject:
    """What is asked about, read from a file, from memory or from the index."""

    path: str
    id: str
    fingerprint: str
    embedding: np.ndarray
    predicted: float
    description: np.ndarray | None  # of its layers, where its weights are at hand
    stated: float | None
    run: str | None
    epoch: int | float | None
    split: str | None = None  # of an indexed one: what part of the encoder's fit it was in
    indexed: bool = False
    notes: tuple[str, ...] = ()


def to_checkpoint(model: Any) -> Checkpoint:
    """A file, a module, a state dict or a `Checkpoint` as a checkpoint. Raises UsageError for anything else."""
    from weightsearch.checkpoints.state_dict import from_state_dict, read_checkpoint

    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, str | Path):
        return read_checkpoint(model)
    if isinstance(model, Mapping):
        return from_state_dict(model, "state dict")
    if callable(getattr(model, "state_dict", None)):
        checkpoint = from_state_dict(model.state_dict(), type(model).__name__)
        activation = module_activation(model)
        return checkpoint if activation is None else replace(checkpoint, metadata={"activation": activation.value})
    raise UsageError(f"a {type(model).__name__} is no network; give a file, a module, a state dict or a Checkpoint")


def unknown_architecture(checkpoint: Checkpoint, path: Path, architectures: Mapping[str, Architecture]) -> str:
    known = [architecture.describe() for architecture in architectures.values()]
    if len(known) > ARCHITECTURES_NAMED:
        known = [*known[:ARCHITECTURES_NAMED], f"{len(known) - ARCHITECTURES_NAMED} more"]
    return (
        f"{checkpoint.source}: its architecture, {checkpoint.architecture.describe()}, is not in {path}, "
        f"which knows {'; '.join(known)}; query an index that was trained on networks like it"
    )


def activation_note(encoder: Encoder, stated: object) -> tuple[str, ...]:
    """What is to be said where an encoder that goes by the activation has not learned the one that is stated."""
    if stated is None or not encoder.activations:
        return ()
    learned = " and ".join(encoder.activations)
    activation = activation_named(stated)
    if activation is None:
        return (f"activation {str(stated)[:40]!r} is no known name; taken as unknown (the encoder learned {learned})",)
    if activation not in encoder.activations:
        return (f"activation {activation}: taken as unknown, since the encoder has learned {learned} alone",)
    return ()


def module_activation(module: Any) -> Activation | None:
    """The activation of a `torch.nn.Module` that has one kind of it among its parts; None where that cannot be told."""
    parts = module.modules() if callable(getattr(module, "modules", None)) else ()
    kinds = {activation_named(type(part).__name__) for part in parts} - {None, Activation.IDENTITY}
    return kinds.pop() if len(kinds) == 1 else None
