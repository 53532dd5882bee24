"""Which network a LoRA adapter was made for, told from the changes B·A that it makes.

A step of training moves a unit along what it is connected to: of the units of one layer, those that were alike in the
network are moved alike. So the Gram matrix of an adapter's change agrees with that of the weight that it was trained
on, unit by unit, which a permutation of the units destroys. A network of other units agrees in its first layer at
most, where the inputs are the same; that is why outputs and inputs have to agree both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightsearch.relations.facts import load
from weightsearch.relations.kinds import Certainty, Comparison, Direction, Kind
from weightsearch.relations.measures import as_units, stouffer
from weightsearch.relations.signature import Signature

Arrays = Mapping[str, np.ndarray]
DELTA = ".lora_delta"  # as `checkpoints` names the change of a module's weight
RELATED = 5.0  # agreement from which a network is said to be the adapter's
MODULES, UNITS, FEATURES, PERMUTATIONS = 8, 256, 2_048, 40
MERGED = 1e-2  # of the adapter's own size, by which a network that it was merged into may differ, for its rounding


@dataclass(frozen=True)
class Agreement:
    """Scores over output and over input units, standard normal where adapter and network have nothing in common."""

    outputs: float
    inputs: float
    modules: int

    @property
    def score(self) -> float:
        return min(self.outputs, self.inputs)


def is_adapter(signature: Signature) -> bool:
    return bool(signature.weights) and all(tensor.name.endswith(DELTA) for tensor in signature.weights)


def modules_of(signature: Signature) -> dict[str, tuple[int, ...]]:
    """The adapted modules' names with their weights' shapes."""
    return {tensor.name.removesuffix(DELTA): tensor.shape for tensor in signature.weights}


def weights_for(adapter: Signature, network: Signature) -> dict[str, str] | None:
    """Names of the network's weights by the adapter's names of its changes; None where one is missing."""
    shapes = {tensor.name: tensor.shape for tensor in network.tensors}
    result = {}
    for module, shape in modules_of(adapter).items():
        fitting = [
            name for name in (f"{module}.weight", module)
            if shapes.get(name) == shape
        ] or [name for name in shapes if name.endswith(f".{module}.weight") and shapes[name] == shape]  # fmt: skip
        if not fitting:
            return None
        result[f"{module}{DELTA}"] = fitting[0]
    return result


def agreement(adapter: Arrays, network: Arrays, names: Mapping[str, str]) -> Agreement:
    """How far the adapter's changes agree with the network's weights, on up to eight modules spread evenly.

    Args:
        names: of the network's weights, by those of the adapter's changes.
    """
    chosen = sorted(names)
    chosen = [chosen[k] for k in sorted({*np.linspace(0, len(chosen) - 1, MODULES).astype(int).tolist()})]
    scores: tuple[list[float], list[float]] = ([], [])
    for name in chosen:
        change, weight = load(adapter, name), load(network, names[name])
        for axis in (0, 1):
            scores[axis].append(_gram_score(as_units(change, axis), as_units(weight, axis)))
    outputs, inputs = map(stouffer, scores)
    return Agreement(outputs, inputs, len(chosen))


def _gram_score(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two Gram matrices of units `(n, features)`, against permutations of one's units; NaN for few units.

    A Mantel test (Mantel 1967) on the matrices with rows' and columns' means taken off.
    """
    rng = np.random.default_rng([len(a), a.shape[1]])
    units = np.sort(rng.choice(len(a), min(len(a), UNITS), replace=False))
    features = np.sort(rng.choice(a.shape[1], min(a.shape[1], FEATURES), replace=False))
    if len(units) < 12:
        return math.nan
    left, right = (_centred_gram(one[np.ix_(units, features)].astype(np.float64)) for one in (a, b))
    orders = [rng.permutation(len(units)) for _ in range(PERMUTATIONS)]
    chance = np.array([np.sum(left[np.ix_(order, order)] * right) for order in orders])
    spread = float(chance.std())
    return float(np.sum(left * right) - chance.mean()) / spread if spread > 0 else math.nan


def _centred_gram(units: np.ndarray) -> np.ndarray:
    units = units - units.mean(axis=0)
    return units @ units.T


def compare_adapter(
    network: Arrays, adapter: Arrays, network_signature: Signature, signature: Signature, *, adapter_first: bool = False
) -> Comparison:
    """What an adapter is to a network, which is `a` unless `adapter_first`."""
    names = weights_for(signature, network_signature)
    if names is None:
        summary = "an adapter of other modules or shapes: it does not fit the network"
        return Comparison(Kind.UNRELATED, (), None, Certainty.VERY_LIKELY, summary, {"adapter": True, "fits": False})
    told = agreement(adapter, network, names)
    evidence = {
        "adapter": True, "fits": True, "score": round(told.score, 2), "score_outputs": round(told.outputs, 2),
        "score_inputs": round(told.inputs, 2), "modules": len(names),
    }  # fmt: skip
    if told.score >= RELATED:
        way = Direction.B_TO_A if adapter_first else Direction.A_TO_B
        summary = f"an adapter that was trained on it, or on a close relative of it (agreement {told.score:.1f})"
        return Comparison(Kind.RELATIVE, (), way, Certainty.LIKELY, summary, evidence)
    summary = "an adapter that fits its shapes; that it was trained on it does not show"
    unseen = "not seen: adapters trained for a few steps, and those of layers with few units"
    return Comparison(Kind.UNRELATED, (), None, Certainty.UNKNOWN, summary, evidence, (), unseen)


def merged_pair(adapter: Arrays, networks: Sequence[tuple[Arrays, Mapping[str, str]]]) -> tuple[int, int] | None:
    """The places of a network and of the one that the adapter makes of it, where both are there; None where not.

    The network with the adapter merged in is the other plus B·A, in every module.
    """
    smallest = min((np.size(adapter[name]), name) for name in adapter if name.endswith(DELTA))[1]
    change = load(adapter, smallest)
    weights = [load(network, names[smallest]) for network, names in networks]
    for i, base in enumerate(weights):
        for j, other in enumerate(weights):
            if i != j and _is_sum(base, change, other):
                (network, names), (merged, merged_names) = networks[i], networks[j]
                pieces = ((load(network, names[n]), load(adapter, n), load(merged, merged_names[n])) for n in names)
                if all(_is_sum(*piece) for piece in pieces):
                    return i, j
    return None


def _is_sum(base: np.ndarray, change: np.ndarray, other: np.ndarray) -> bool:
    return float(np.linalg.norm(other - base - change)) <= MERGED * float(np.linalg.norm(change))
