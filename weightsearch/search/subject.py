"""The network that is asked about, from wherever it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import ANY, Activation, Architecture, Checkpoint, LayerKind, activation_named
from weightsearch.uncertainty.novelty import describe_layers

if TYPE_CHECKING:
    from weightsearch.checkpoints.metadata import Metadata
    from weightsearch.training.represent import AnyEncoder

ARCHITECTURES_NAMED = 5
SHUFFLES = 4
LARGEST_SHUFFLED = 1_000_000  # weights; describing larger networks again and again takes too long


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
    dataset: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None
    activation_from: str | None = None  # file, option or index
    by_activation: dict[str, float] = field(default_factory=dict)
    shuffled: np.ndarray | None = None  # descriptions `(n, F)` of its weights, shuffled within layers
    faults: tuple[str, ...] = ()
    copy_of: str | None = None
    architecture: Architecture | None = None  # its own, where its weights are at hand
    strangeness: float | None = None  # over 1: of no kind known to the encoder of all architectures


def described(
    model: Any,
    weights: str | None = None,
    needed: Callable[[Architecture], bool] = lambda architecture: True,
) -> tuple[Checkpoint, Metadata]:
    """What `to_checkpoint` makes of a model, and what is known of it: of a file also what lies beside it.

    Of a file whose architecture is not `needed`, no more than a block of weights is in memory.
    """
    from weightsearch.checkpoints.discovery import CheckpointFile, Sources
    from weightsearch.checkpoints.metadata import interpret
    from weightsearch.checkpoints.remote.paths import as_path

    if isinstance(model, str | Path):
        path = as_path(model)
        record = Sources(weights=weights).read(CheckpointFile(path, path.parent, run=""), needed)
        return record.checkpoint, record.metadata
    checkpoint = to_checkpoint(model, weights)
    return checkpoint, interpret(checkpoint.metadata, "file")


def to_checkpoint(model: Any, weights: str | None = None) -> Checkpoint:
    """A file, a module, a state dict or a `Checkpoint` as a checkpoint. Raises UsageError for anything else."""
    from weightsearch.checkpoints.state_dict import from_state_dict, read_checkpoint

    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, str | Path):
        return read_checkpoint(model, weights)
    if isinstance(model, Mapping):
        return from_state_dict(model, "state dict", weights)
    if callable(getattr(model, "state_dict", None)):
        checkpoint = from_state_dict(model.state_dict(), type(model).__name__)
        activation = module_activation(model)
        return checkpoint if activation is None else replace(checkpoint, metadata={"activation": activation.value})
    raise UsageError(f"a {type(model).__name__} is no network; give a file, a module, a state dict or a Checkpoint")


def may_embed(architecture: Architecture, architectures: Mapping[str, Architecture]) -> bool:
    """Whether one of the encoders may be for networks of an architecture, whatever the order of its layers."""
    sizes = {other.size for other in architectures.values()}
    return ANY.fingerprint in architectures or architecture.size in sizes


def space_of(checkpoint: Checkpoint, path: Path, architectures: Mapping[str, Architecture]) -> str:
    """The fingerprint of the space that a network belongs to: its own architecture's, else that of all.

    Raises WeightsearchError where the index at `path` has neither.
    """
    for fingerprint in (checkpoint.architecture.fingerprint, ANY.fingerprint):
        if fingerprint in architectures:
            return fingerprint
    raise WeightsearchError(unknown_architecture(checkpoint, path, architectures))


def unknown_architecture(checkpoint: Checkpoint, path: Path, architectures: Mapping[str, Architecture]) -> str:
    if not architectures:
        return (
            f"{checkpoint.source}: nothing is predicted, since {path} has no encoder; "
            "`weightsearch train` makes an index that has one"
        )
    described = [architecture.describe() for architecture in architectures.values()]
    if len(described) > ARCHITECTURES_NAMED:
        described = [*described[:ARCHITECTURES_NAMED], f"{len(described) - ARCHITECTURES_NAMED} more"]
    return (
        f"{checkpoint.source}: its architecture, {checkpoint.architecture.describe()}, is not in {path}, "
        f"which knows {'; '.join(described)}; query an index that was trained on networks like it"
    )


def dataset_of(recipe: Mapping[str, Any]) -> str | None:
    """What a recipe says that the network was trained on."""
    named = recipe.get("dataset")
    return named if isinstance(named, str) and named else None


def damage_note(damage: np.ndarray | None) -> tuple[str, ...]:
    """A warning where the encoder of all architectures found damage `(1,)`, of over 1."""
    if damage is None or damage[0] <= 1:
        return ()
    return (
        "damage: these weights look shuffled, noised or partly random, which a prediction does not see; "
        "do not trust it before testing the network",
    )


def activation_note(encoder: AnyEncoder, stated: object) -> tuple[str, ...]:
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


def faults(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Layers that can have learned nothing: their weights are all zero, or all the same."""
    sentences = []
    matrices = checkpoint.architecture.matrices(checkpoint.weights)
    for layer, matrix in zip(checkpoint.architecture.layers, matrices, strict=True):
        weights_alone = matrix[:, : layer.weight_columns]
        if (
            layer.kind in (LayerKind.NORM, LayerKind.OTHER)
            or weights_alone.size < 2
            or weights_alone.min() != weights_alone.max()
        ):
            continue
        sentences.append(f"layer {layer.name} is {'all zero' if weights_alone.flat[0] == 0 else 'constant'}")
    return tuple(sentences)


def shuffled_descriptions(checkpoint: Checkpoint) -> np.ndarray | None:
    """What the layers would be like `(SHUFFLES, F)` if their weights stood in random order; None of a large network.

    An untrained network's are much like that: where these pass for known ones, so would random weights.
    """
    architecture = checkpoint.architecture
    if architecture.size > LARGEST_SHUFFLED:
        return None
    weights = np.repeat(checkpoint.weights[None], SHUFFLES, axis=0)
    generator = np.random.default_rng(0)
    for layer, matrix in zip(architecture.layers, architecture.matrices(weights), strict=True):
        weights_alone = matrix[..., : layer.weight_columns]
        order = generator.permuted(weights_alone.reshape(SHUFFLES, -1), axis=1)
        matrix[..., : layer.weight_columns] = order.reshape(weights_alone.shape)
    return describe_layers(weights, architecture)
