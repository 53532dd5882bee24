"""Small networks of five families, trained for seconds on digits, and derivations of them whose truth is exact.

    python benchmarks/derive.py runs/derived --seed 1          # networks of a set, as .npz, about three minutes
    python benchmarks/derive.py runs/derived-held-out --seed 2

`derivations` then makes every kind of copy that people make of a network, from its tensors alone and from a seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

Tensors = dict[str, np.ndarray]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@dataclass(frozen=True)
class Place:
    """Where a hidden unit's numbers lie: along `axis` of a tensor, as `blocks` blocks of (units × `each`) entries.

    `role` says what scaling the unit by c does to them: `out` × c, `in` ÷ c, `square` × c², `none` nothing.
    """

    tensor: str
    axis: int
    role: str
    blocks: int = 1
    each: int = 1


@dataclass(frozen=True)
class Group:
    """Hidden units that may change places together, and be rescaled where `scalable`."""

    places: tuple[Place, ...]
    units: int
    scalable: bool


@dataclass(frozen=True)
class Spec:
    family: str
    width: int
    depth: int
    activation: str
    norm: bool
    optimizer: str
    learning_rate: float


class MLP(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        sizes = [64, *[spec.width] * spec.depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) if spec.norm else nn.Identity() for b in sizes[1:])
        self.act = ACTIVATIONS[spec.activation]()
        self.head = nn.Linear(spec.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.act(norm(layer(x)))
        return self.head(x)


class CNN(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        sizes = [1, *[spec.width] * spec.depth]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) if spec.norm else nn.Identity() for b in sizes[1:])
        self.act = ACTIVATIONS[spec.activation]()
        self.head = nn.Linear(spec.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.act(norm(layer(x)))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        width = spec.width
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(spec.depth))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(spec.depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if spec.norm else nn.Identity() for _ in range(spec.depth))
        self.act = ACTIVATIONS[spec.activation]()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, norm in zip(self.first, self.second, self.norms, strict=True):
            x = x + 0.5 * second(self.act(norm(first(x))))
        return self.head(self.act(x).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, spec.width, spec.depth, batch_first=True)
        self.head = nn.Linear(spec.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


class Block(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)  # (3, n, heads, t, d)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(x.shape)
        x = x + self.proj(mixed)
        return x + self.down(self.act(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.embed = nn.Linear(8, spec.width)
        self.position = nn.Parameter(torch.randn(8, spec.width) * 0.02)
        self.blocks = nn.ModuleList(Block(spec.width, spec.activation) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0]) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


FAMILIES: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "residual": Residual,
    "lstm": Recurrent,
    "transformer": Transformer,
}


def hidden_units(spec: Spec) -> list[Group]:
    """All groups of hidden units of a network, by the names of its tensors."""
    width = spec.width
    relu = spec.activation == "relu"

    def norm_places(name: str) -> tuple[Place, ...]:
        if not spec.norm:
            return ()
        return tuple(
            Place(f"{name}.{leaf}", 0, role)
            for leaf, role in (
                ("weight", "out"), ("bias", "out"), ("running_mean", "none"), ("running_var", "none"),
            )
        )  # fmt: skip

    def linear(name: str, role: str = "out") -> tuple[Place, ...]:
        return (Place(f"{name}.weight", 0, role), Place(f"{name}.bias", 0, role))

    if spec.family in ("mlp", "cnn"):
        groups = []
        for k in range(spec.depth):
            after = f"layers.{k + 1}.weight" if k + 1 < spec.depth else "head.weight"
            own = linear(
                f"layers.{k}", "none" if spec.norm else "out"
            )  # a batch norm takes the scale of its input away
            places = (*own, *norm_places(f"norms.{k}"), Place(after, 1, "in"))
            groups.append(Group(places, width, relu))
        return groups
    if spec.family == "residual":
        stream = [*linear("stem"), Place("head.weight", 1, "in")]
        groups = []
        for k in range(spec.depth):
            stream += [Place(f"first.{k}.weight", 1, "in"), *linear(f"second.{k}")]
            own = linear(f"first.{k}", "none" if spec.norm else "out")
            groups.append(Group((*own, *norm_places(f"norms.{k}"), Place(f"second.{k}.weight", 1, "in")), width, relu))
        # the stream passes a batch norm nowhere and one activation before the head, so it may be rescaled for ReLU
        return [Group(tuple(stream), width, relu), *groups]
    if spec.family == "lstm":
        groups = []
        for k in range(spec.depth):
            gates = [
                Place(f"lstm.{leaf}_l{k}", 0, "none", 4) for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            after = Place(f"lstm.weight_ih_l{k + 1}" if k + 1 < spec.depth else "head.weight", 1, "none")
            groups.append(Group((*gates, Place(f"lstm.weight_hh_l{k}", 1, "none"), after), width, False))
        return groups
    stream = [Place("embed.weight", 0, "none"), Place("embed.bias", 0, "none"), Place("position", 1, "none")]
    stream += [Place("norm.weight", 0, "none"), Place("norm.bias", 0, "none"), Place("head.weight", 1, "none")]
    groups = []
    for k in range(spec.depth):
        block = f"blocks.{k}"
        for leaf in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            stream.append(Place(f"{block}.{leaf}", 0, "none"))
        stream += [Place(f"{block}.qkv.weight", 1, "none"), Place(f"{block}.up.weight", 1, "none")]
        stream += [*linear(f"{block}.proj", "none"), *linear(f"{block}.down", "none")]
        groups.append(Group((*linear(f"{block}.up"), Place(f"{block}.down.weight", 1, "in")), 2 * width, relu))
        heads = (
            Place(f"{block}.qkv.weight", 0, "none", 3, width // 4),
            Place(f"{block}.qkv.bias", 0, "none", 3, width // 4),
            Place(f"{block}.proj.weight", 1, "none", 1, width // 4),
        )
        groups.append(Group(heads, 4, False))
    return [Group(tuple(stream), width, False), *groups]


def tensors_of(network: nn.Module) -> Tensors:
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def outputs(spec: Spec, tensors: Tensors, images: np.ndarray) -> np.ndarray:
    """Logits of the network with these tensors for images `(N, 1, 8, 8)`: the oracle of what keeps the function."""
    network = FAMILIES[spec.family](spec)
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
    with torch.no_grad():
        return network.eval()(torch.from_numpy(images)).numpy()


def permuted(tensors: Tensors, groups: list[Group], rng: np.random.Generator, *, rescale: bool = False) -> Tensors:
    """The same function with its hidden units in another order and, where possible, rescaled by c in [1/4, 4]."""
    result = {name: value.copy() for name, value in tensors.items()}
    for group in groups:
        order = rng.permutation(group.units)
        scale = np.exp2(rng.uniform(-2, 2, group.units)) if rescale and group.scalable else np.ones(group.units)
        for place in group.places:
            value = np.moveaxis(result[place.tensor], place.axis, 0)
            shape = value.shape
            value = value.reshape(place.blocks, group.units, place.each, *shape[1:])[:, order]
            factor = {"out": scale, "in": 1 / scale, "square": scale**2, "none": np.ones(group.units)}[place.role]
            if rescale and group.scalable:
                value = value * factor[order].reshape(1, -1, 1, *[1] * (len(shape) - 1)).astype(np.float32)
            result[place.tensor] = np.ascontiguousarray(np.moveaxis(value.reshape(shape), 0, place.axis))
    return result


def with_gates_reordered(tensors: Tensors) -> Tensors:
    """An LSTM's gates i f g o as i o f g, the way ONNX keeps them."""
    result = dict(tensors)
    for name, value in tensors.items():
        if ".weight_ih" in name or ".weight_hh" in name or ".bias_ih" in name or ".bias_hh" in name:
            i, f, g, o = np.split(value, 4)
            result[name] = np.concatenate([i, o, f, g])
    return result


# ---- derivations that need only the tensors -------------------------------------------------------------------------


def is_weight(name: str, value: np.ndarray) -> bool:
    return value.ndim >= 2 and value.dtype.kind == "f"


def _each_weight(tensors: Tensors, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    return {name: change(value) if is_weight(name, value) else value.copy() for name, value in tensors.items()}


def bfloat16(value: np.ndarray) -> np.ndarray:
    return torch.from_numpy(value).to(torch.bfloat16).float().numpy()


def quantised(tensors: Tensors, bits: int, scheme: str) -> Tensors:
    """Weights rounded to a grid: `tensor` and `row` symmetric about 0, `asymmetric` by row, `group` of 32 in a row."""

    def change(value: np.ndarray) -> np.ndarray:
        rows = value.reshape(1, -1) if scheme == "tensor" else value.reshape(len(value), -1)
        if scheme == "group":
            width = rows.shape[1] // 32 * 32
            if not width:
                return quantised({"w": value}, bits, "row")["w"]
            head = _rounded(rows[:, :width].reshape(-1, 32), bits, False).reshape(len(rows), width)
            tail = rows[:, width:]
            tail = _rounded(tail, bits, False) if tail.size else tail
            return np.concatenate([head, tail], 1).reshape(value.shape).astype(np.float32)
        return _rounded(rows, bits, scheme == "asymmetric").reshape(value.shape).astype(np.float32)

    return _each_weight(tensors, change)


def _rounded(rows: np.ndarray, bits: int, asymmetric: bool) -> np.ndarray:
    rows = rows.astype(np.float32)
    if asymmetric:
        low, high = np.minimum(rows.min(1, keepdims=True), 0), np.maximum(rows.max(1, keepdims=True), 0)
        step = np.maximum((high - low) / np.float32(2**bits - 1), 1e-12)
        zero = np.round(-low / step)
        return (np.clip(np.round(rows / step) + zero, 0, 2**bits - 1) - zero) * step
    top = 2 ** (bits - 1) - 1
    step = np.maximum(np.abs(rows).max(1, keepdims=True) / np.float32(top), 1e-12)
    return np.clip(np.round(rows / step), -top, top) * step


def pruned(tensors: Tensors, share: float, scheme: str) -> Tensors:
    """`magnitude`: the smallest of each tensor to zero; `global`: of all; `rows`: whole rows with the least norm."""
    if scheme == "global":
        limit = np.quantile(np.abs(np.concatenate([v.ravel() for n, v in tensors.items() if is_weight(n, v)])), share)
        return _each_weight(tensors, lambda value: np.where(np.abs(value) < limit, np.float32(0), value))

    def change(value: np.ndarray) -> np.ndarray:
        if scheme == "rows":
            norms = np.linalg.norm(value.reshape(len(value), -1), axis=1)
            keep = norms >= np.quantile(norms, share)
            return value * keep.reshape(-1, *[1] * (value.ndim - 1)).astype(np.float32)
        return np.where(np.abs(value) < np.quantile(np.abs(value), share), np.float32(0), value)

    return _each_weight(tensors, change)


def noised(tensors: Tensors, relative: float, rng: np.random.Generator) -> Tensors:
    """White noise of `relative` times each weight's root mean square."""

    def change(value: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(value.shape) * value.std() * relative
        return (value + noise).astype(np.float32)

    return _each_weight(tensors, change)


def lora_merged(tensors: Tensors, rank: int, relative: float, rng: np.random.Generator) -> Tensors:
    """A product of two thin matrices of `relative` the weight's norm added to each weight that has the room for it."""

    def change(value: np.ndarray) -> np.ndarray:
        rows = value.reshape(len(value), -1)
        if min(rows.shape) < 4 * rank:
            return value.copy()
        product = rng.standard_normal((len(rows), rank)) @ rng.standard_normal((rank, rows.shape[1]))
        product *= relative * np.linalg.norm(rows) / np.linalg.norm(product)
        return (value + product.reshape(value.shape)).astype(np.float32)

    return _each_weight(tensors, change)


def merged(parts: list[tuple[float, Tensors]]) -> Tensors:
    names = parts[0][1]
    return {
        name: sum(w * t[name].astype(np.float64) for w, t in parts).astype(names[name].dtype)  # type: ignore[union-attr]
        for name in names
    }


def slerp(a: Tensors, b: Tensors, share: float) -> Tensors:
    """Spherical interpolation by tensor."""
    result = {}
    for name, x in a.items():
        y = b[name]
        if not is_weight(name, x):
            result[name] = ((1 - share) * x + share * y).astype(x.dtype)
            continue
        u, v = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
        angle = np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))
        first, second = (
            (np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle))
            if angle > 1e-6
            else (1 - share, share)
        )
        result[name] = (first * u + second * v).reshape(x.shape).astype(np.float32)
    return result


def dare(base: Tensors, tuned: list[Tensors], drop: float, rng: np.random.Generator) -> Tensors:
    """Task vectors with a share dropped, the rest scaled up, averaged onto the base (DARE, Yu et al. 2024)."""
    result = {}
    for name, value in base.items():
        if not is_weight(name, value):
            result[name] = value.copy()
            continue
        total = np.zeros(value.shape)
        for other in tuned:
            keep = rng.random(value.shape) >= drop
            total += keep * (other[name].astype(np.float64) - value) / (1 - drop)
        result[name] = (value + total / len(tuned)).astype(np.float32)
    return result


def ties(base: Tensors, tuned: list[Tensors], keep: float) -> Tensors:
    """Task vectors trimmed to the largest, one sign elected, the agreeing averaged (TIES, Yadav et al. 2023)."""
    result = {}
    for name, value in base.items():
        if not is_weight(name, value):
            result[name] = value.copy()
            continue
        vectors = []
        for other in tuned:
            vector = other[name].astype(np.float64) - value
            vectors.append(np.where(np.abs(vector) >= np.quantile(np.abs(vector), 1 - keep), vector, 0))
        stacked = np.stack(vectors)
        agree = (np.sign(stacked) == np.sign(stacked.sum(0))) & (stacked != 0)
        result[name] = (value + (stacked * agree).sum(0) / np.maximum(agree.sum(0), 1)).astype(np.float32)
    return result


def with_batch_norm_folded(spec: Spec, tensors: Tensors) -> Tensors | None:
    """Batch norms multiplied into the layers before them, for the families where one follows directly."""
    if not spec.norm or spec.family not in ("mlp", "cnn"):
        return None
    result = {name: value for name, value in tensors.items() if not name.startswith("norms.")}
    for k in range(spec.depth):
        gain = tensors[f"norms.{k}.weight"] / np.sqrt(tensors[f"norms.{k}.running_var"] + 1e-5)
        weight, bias = tensors[f"layers.{k}.weight"], tensors[f"layers.{k}.bias"]
        result[f"layers.{k}.weight"] = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
        result[f"layers.{k}.bias"] = (bias - tensors[f"norms.{k}.running_mean"]) * gain + tensors[f"norms.{k}.bias"]
    return result


def with_units_removed(spec: Spec, tensors: Tensors, share: float) -> Tensors:
    """Structured pruning: hidden units with the least norm are cut out, so that the shapes shrink."""
    result = {name: value for name, value in tensors.items()}
    for group in hidden_units(spec):
        first = group.places[0]
        if first.blocks != 1 or first.each != 1 or (spec.family == "residual" and "stem" in first.tensor):
            continue
        value = np.moveaxis(tensors[first.tensor], first.axis, 0).reshape(group.units, -1)
        keep = np.sort(np.argsort(np.linalg.norm(value, axis=1))[int(share * group.units) :])
        for place in group.places:
            if place.blocks != 1 or place.each != 1:
                break
        else:
            for place in group.places:
                result[place.tensor] = np.take(result[place.tensor], keep, place.axis)
    return result


def renamed(tensors: Tensors) -> Tensors:
    return {f"module.net_{name.replace('.', '_')}": value for name, value in tensors.items()}


def transposed(tensors: Tensors) -> Tensors:
    """The layout of Keras: dense (in, out), convolutions (height, width, in, out)."""

    def change(value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0))

    return _each_weight(tensors, change)


# ---- training -------------------------------------------------------------------------------------------------------


@dataclass
class Lineage:
    """One network's history: `states` by what they are (`init`, `epoch2`, `final`, `tuned-all`, …)."""

    spec: Spec
    seed: int
    states: dict[str, Tensors] = field(default_factory=dict)


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.images[:, None] / 16).astype(np.float32), data.target.astype(np.int64)


def train_lineage(spec: Spec, seed: int) -> Lineage:
    """Trains the network and its relatives: later epochs, fine-tunes, new heads, the same initialisation anew."""
    torch.manual_seed(seed)
    network = FAMILIES[spec.family](spec)
    lineage = Lineage(spec, seed)
    start = tensors_of(network)
    lineage.states["init"] = start
    images, labels = (torch.from_numpy(array) for array in digits())
    half = len(images) // 2
    for epoch in range(1, 9):
        _epoch(network, spec, images[:half], labels[:half], seed * 100 + epoch, spec.learning_rate)
        if epoch in (1, 3, 6):
            lineage.states[f"epoch{epoch}"] = tensors_of(network)
    final = lineage.states["final"] = tensors_of(network)
    other = torch.roll(torch.arange(10), seed % 9 + 1)[labels]  # the same head's shape, another task
    lineage.states["tuned-new-data"] = _tuned(spec, final, images[half:], labels[half:], seed + 1, 0.3)
    lineage.states["tuned-hard"] = _tuned(spec, final, images[half:], labels[half:], seed + 2, 1.0, epochs=5)
    lineage.states["tuned-other-task"] = _tuned(spec, final, images[half:], other[half:], seed + 3, 0.5, epochs=3)
    lineage.states["tuned-frozen"] = _tuned(spec, final, images[half:], other[half:], seed + 4, 1.0, frozen=0.5)
    for classes, frozen in ((5, 0.0), (2, 1.0)):
        name = f"head{classes}-{'frozen' if frozen else 'tuned'}"
        lineage.states[name] = _tuned(
            spec, final, images[half:], labels[half:] % classes, seed + 5 + classes, 0.5, classes=classes, frozen=frozen
        )
    again = FAMILIES[spec.family](spec)
    again.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in start.items()})
    for epoch in range(5):
        _epoch(again, spec, images[half:], labels[half:], seed * 100 + 50 + epoch, spec.learning_rate)
    lineage.states["same-init"] = tensors_of(again)
    return lineage


def _tuned(
    spec: Spec,
    tensors: Tensors,
    images: Tensor,
    labels: Tensor,
    seed: int,
    pace: float,
    *,
    epochs: int = 2,
    classes: int = 10,
    frozen: float = 0.0,
) -> Tensors:
    torch.manual_seed(seed)
    network = FAMILIES[spec.family](spec)
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in tensors.items()})
    if classes != 10:
        network.head = nn.Linear(network.head.in_features, classes)  # type: ignore[union-attr,arg-type]
    parameters = [p for name, p in network.named_parameters() if not name.startswith("head")]
    for parameter in parameters[: round(frozen * len(parameters))]:
        parameter.requires_grad_(False)
    for epoch in range(epochs):
        _epoch(network, spec, images, labels, seed * 100 + epoch, pace * spec.learning_rate, freeze_norms=frozen == 1)
    return tensors_of(network)


def _epoch(
    network: nn.Module, spec: Spec, images: Tensor, labels: Tensor, seed: int, rate: float, freeze_norms: bool = False
) -> None:
    network.train(not freeze_norms)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, rate)
        if spec.optimizer == "adam"
        else torch.optim.SGD(parameters, rate, momentum=0.9)
    )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    for batch in order.split(64):
        optimizer.zero_grad()
        functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()


def specs(seed: int, per_family: int) -> Iterator[Spec]:
    """Architectures and recipes of a set; another seed gives other ones."""
    rng = np.random.default_rng(seed)
    for family in FAMILIES:
        for _ in range(per_family):
            width = int(rng.choice([16, 24, 32, 48] if family in ("cnn", "residual") else [32, 48, 64, 96]))
            optimizer = str(rng.choice(["adam", "sgd"]))
            yield Spec(
                family,
                width,
                int(rng.integers(1, 3)) if family in ("lstm", "transformer") else int(rng.integers(2, 4)),
                str(rng.choice(list(ACTIVATIONS))),
                bool(rng.random() < 0.4) and family not in ("lstm", "transformer"),
                optimizer,
                float(np.exp(rng.uniform(*np.log([1e-3, 8e-3] if optimizer == "adam" else [0.02, 0.15])))),
            )


def build(out: Path, seed: int, per_family: int, seeds: int) -> None:
    """Every architecture of the set, trained from `seeds` seeds, one .npz and one .json each; resumes."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    numbered = sorted(enumerate(specs(seed, per_family)), key=lambda one: one[0] % per_family)  # all families early
    for k, spec in numbered:
        for repeat in range(seeds):
            path = out / f"{k:02d}-{spec.family}-{repeat}.npz"
            if path.exists():
                continue
            lineage = train_lineage(spec, seed * 10_000 + k * 100 + repeat)
            flat = {f"{state}|{name}": v for state, tensors in lineage.states.items() for name, v in tensors.items()}
            path.with_suffix(".json").write_text(json.dumps({"spec": spec.__dict__, "seed": lineage.seed}))
            np.savez(path.with_suffix(".tmp.npz"), **flat)
            path.with_suffix(".tmp.npz").rename(path)
            print(path, flush=True)


def load(path: Path) -> Lineage:
    about = json.loads(path.with_suffix(".json").read_text())
    lineage = Lineage(Spec(**about["spec"]), about["seed"])
    with np.load(path) as arrays:
        for key in arrays.files:
            state, name = key.split("|")
            lineage.states.setdefault(state, {})[name] = arrays[key]
    return lineage


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-family", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    build(options.out, options.seed, options.per_family, options.seeds)
