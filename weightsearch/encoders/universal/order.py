"""The order in which a network's layers run, where its file forgot it and they lie sorted by name."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from weightsearch.checkpoints.readers.limits import natural
from weightsearch.types import Architecture, LayerKind

# Transformers' networks stay as they lie: in order, those of the Trainer's sweep of `benchmarks/sweeps.py` were
# foretold worse (R² .41 instead of .50), and they would pass for a known kind, though they start from other weights.
TRANSFORMERS = re.compile(r"(^|\.)encoder\.layers?\.\d+\.(attention|layernorm_before)\.")
# Parts of layers' names by when they run; what no line knows stands at BODY, by its name, numbers as numbers.
BODY, CONVOLUTIONS = 10, 2
_TIMES = tuple(
    (time, re.compile(rf"(?:{names})", re.IGNORECASE))
    for time, names in (
        (0, r"\w+_token|pos_embed"),
        (1, r"embeddings?|patch_embed|stem|input|input_layer"),
        (CONVOLUTIONS, r"conv_?\d*|bn_?\d*"),  # of a stem or a block, by number; each norm behind its convolution
        (3, r"norm1"),  # of a transformer's block: first norm, attention, second norm, and the rest
        (4, r"attn"),
        (5, r"qkv|query"),
        (6, r"key"),
        (7, r"value"),
        (8, r"norm2"),
        (11, r"norm|fc_norm"),
        (12, r"classifier|head|fc|last_linear|logits|score"),
    )
)


def in_running_order(weights: np.ndarray, architecture: Architecture) -> tuple[np.ndarray, Architecture]:
    """Flat weights `(B, P)` and their architecture with the layers in the order in which they run.

    Names that are not sorted are in that order already, as `torch.save` writes them, and so is what comes back.

    Example:
        >>> from weightsearch.checkpoints.state_dict import from_state_dict
        >>> arrays = {'fc.weight': np.ones((3, 4)), 'hidden.weight': np.ones((4, 9))}
        >>> weights, architecture = in_running_order(np.ones((1, 48)), from_state_dict(arrays).architecture)
        >>> [layer.name for layer in architecture.layers]
        ['hidden', 'fc']
    """
    order = _order(architecture)
    if order is None:
        return weights, architecture
    slices = architecture.slices
    parts = [weights[:, slices[place]] for place in order]
    return np.concatenate(parts, 1), Architecture(tuple(architecture.layers[place] for place in order))


@lru_cache(maxsize=4096)
def _order(architecture: Architecture) -> tuple[int, ...] | None:
    """Places of the layers as they run; None where they lie so already."""
    layers = architecture.layers
    stored = [natural(layer.name if layer.kind is LayerKind.OTHER else f"{layer.name}.") for layer in layers]
    if stored != sorted(stored) or any(TRANSFORMERS.search(layer.name) for layer in layers):
        return None
    order = sorted(range(len(layers)), key=lambda place: _when(layers[place].name))
    return None if order == list(range(len(layers))) else tuple(order)


def _when(name: str) -> list[tuple[int, int, int, list[tuple[int, int, str]]]]:
    """A layer's place in time, part by part of its name."""
    when = []
    for part in name.split("."):
        time = next((time for time, names in _TIMES if names.fullmatch(part)), BODY)
        number = within = 0
        if recurrent := re.fullmatch(r"(weight|bias)_(ih|hh)_l(\d+)(_reverse)?", part):
            number = 2 * int(recurrent[3]) + bool(recurrent[4])
            within = 2 * (recurrent[1] == "bias") + (recurrent[2] == "hh")
        elif time == CONVOLUTIONS:
            number, within = int(re.sub(r"\D", "", part) or 0), int(part.lower().startswith("bn"))
        when.append((time, number, within, natural(part)))
    return when
