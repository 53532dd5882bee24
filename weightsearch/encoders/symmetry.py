"""Function-preserving twins of a network: other weights that compute exactly the same.

The hidden units of a layer have no order: its rows can be permuted together with the next layer's columns
(Hecht-Nielsen 1990). A ReLU unit can be scaled by c > 0 and a tanh unit be flipped in sign, where the next layer's
columns undo it (Chen et al. 1993; Dinh et al. 2017, https://arxiv.org/abs/1703.04933, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.types import Activation, Architecture, LayerKind

CONVOLUTIONS = (LayerKind.CONV1D, LayerKind.CONV2D, LayerKind.CONV3D)
WEIGHTED = (*CONVOLUTIONS, LayerKind.DENSE)
SCALE = 2.0  # ReLU units are scaled by up to this, or by 1 / this


@dataclass(frozen=True)
class Hidden:
    """The units between two layers: the rows of layer `made_by`, which layer `read_by` has `block` columns each for.

    `norms` are batch normalisations in between, one row a unit. A block has one column after dense layers and after
    global pooling, one per kernel position in a convolution, and one per pixel after flattening.
    """

    made_by: int
    read_by: int
    units: int
    block: int
    norms: tuple[int, ...] = ()


def hidden_units(architecture: Architecture) -> tuple[Hidden, ...]:
    """The hidden units of a network whose layers follow one another in the architecture's order.

    Raises WeightsearchError where shapes do not fit one another, and at layers without such units (attention, layer
    and group norms, embeddings). Shapes cannot tell a network with skip connections from one without.
    """
    hidden: list[Hidden] = []
    made_by: int | None = None
    norms: list[int] = []
    for number, layer in enumerate(architecture.layers):
        if layer.kind is LayerKind.NORM and "running_var" in layer.extras:
            if made_by is None or layer.rows != architecture.layers[made_by].rows:
                raise WeightsearchError(f"layer {layer.name!r}: its {layer.rows} rows do not follow a layer as wide")
            norms.append(number)
            continue
        if layer.kind not in WEIGHTED:
            raise WeightsearchError(f"layer {layer.name!r} ({layer.kind}) has no units that can be permuted")
        if made_by is not None:
            units, inputs = architecture.layers[made_by].rows, layer.shape[1]
            flattened = layer.kind is LayerKind.DENSE and architecture.layers[made_by].kind in CONVOLUTIONS
            if inputs != units and not (flattened and inputs % units == 0):
                raise WeightsearchError(
                    f"layer {layer.name!r} reads {inputs} inputs, but the layer before it makes {units}: "
                    "these layers do not follow one another"
                )
            block = math.prod(layer.shape[1:]) // units
            hidden.append(Hidden(made_by, number, units, block, tuple(norms)))
        made_by, norms = number, []
    return tuple(hidden)


def twins(
    weights: np.ndarray,
    architecture: Architecture,
    generator: np.random.Generator,
    activation: Activation | None = None,
) -> np.ndarray:
    """Networks `(B, P)` of the same dtype that compute what `weights (B, P)` do, each drawn for itself.

    Hidden units are permuted; with `activation`, ReLU units are scaled by up to `SCALE` either way and tanh units
    flipped at random (valid with average pooling, not with maximum pooling), except where a batch norm follows: a scale
    would pass through it or not, by its place.
    """
    twin = weights.copy()
    matrices = architecture.matrices(twin)
    count = len(twin)
    for hidden in hidden_units(architecture):
        order = np.argsort(generator.random((count, hidden.units)), axis=1)  # (B, units)
        factor = np.ones((count, hidden.units))
        if activation is Activation.RELU and not hidden.norms:
            factor = SCALE ** generator.uniform(-1, 1, (count, hidden.units))
        elif activation is Activation.TANH and not hidden.norms:
            factor = generator.choice([-1.0, 1.0], (count, hidden.units))
        for number in (hidden.made_by, *hidden.norms):
            rows = matrices[number]  # (B, units, columns)
            rows[...] = np.take_along_axis(rows, order[:, :, None], axis=1) * factor[:, :, None]
        reader = matrices[hidden.read_by]
        inputs = hidden.units * hidden.block  # without its bias
        columns = reader[:, :, :inputs].reshape(count, -1, hidden.units, hidden.block)
        columns = np.take_along_axis(columns, order[:, None, :, None], axis=2) / factor[:, None, :, None]
        reader[:, :, :inputs] = columns.reshape(count, -1, inputs)
    return twin
