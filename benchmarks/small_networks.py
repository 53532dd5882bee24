"""Small networks of five families, and their training on digits for seconds each: the parents of `derive.py`'s copies.

Their graph is known (`hidden_units`), so that what keeps the function can be made and checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from weightsearch.optimizers import eager

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
        train_epoch(network, spec, images[:half], labels[:half], seed * 100 + epoch, spec.learning_rate)
        if epoch in (1, 3, 6):
            lineage.states[f"epoch{epoch}"] = tensors_of(network)
    final = lineage.states["final"] = tensors_of(network)
    other = torch.roll(torch.arange(10), seed % 9 + 1)[labels]  # the same head's shape, another task
    lineage.states["tuned-new-data"] = fine_tuned(spec, final, images[half:], labels[half:], seed + 1, 0.3)
    lineage.states["tuned-hard"] = fine_tuned(spec, final, images[half:], labels[half:], seed + 2, 1.0, epochs=5)
    lineage.states["tuned-other-task"] = fine_tuned(spec, final, images[half:], other[half:], seed + 3, 0.5, epochs=3)
    lineage.states["tuned-frozen"] = fine_tuned(spec, final, images[half:], other[half:], seed + 4, 1.0, frozen=0.5)
    for classes, frozen in ((5, 0.0), (2, 1.0)):
        name = f"head{classes}-{'frozen' if frozen else 'tuned'}"
        lineage.states[name] = fine_tuned(
            spec, final, images[half:], labels[half:] % classes, seed + 5 + classes, 0.5, classes=classes, frozen=frozen
        )
    again = FAMILIES[spec.family](spec)
    again.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in start.items()})
    for epoch in range(5):
        train_epoch(again, spec, images[half:], labels[half:], seed * 100 + 50 + epoch, spec.learning_rate)
    lineage.states["same-init"] = tensors_of(again)
    return lineage


def fine_tuned(
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
        train_epoch(
            network, spec, images, labels, seed * 100 + epoch, pace * spec.learning_rate, freeze_norms=frozen == 1
        )
    return tensors_of(network)


def train_epoch(
    network: nn.Module, spec: Spec, images: Tensor, labels: Tensor, seed: int, rate: float, freeze_norms: bool = False
) -> None:
    network.train(not freeze_norms)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = (
        eager(torch.optim.Adam)(parameters, rate)
        if spec.optimizer == "adam"
        else eager(torch.optim.SGD)(parameters, rate, momentum=0.9)
    )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    for batch in order.split(64):
        optimizer.zero_grad()
        functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()


def trained_adapter(
    spec: Spec, tensors: Tensors, rank: int, epochs: int, seed: int, rate: float = 3e-3
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A LoRA adapter (Hu et al. 2021) for another task: A `(rank, in, ...)` and B `(out, rank, 1, ...)` by module."""
    images, labels = (torch.from_numpy(array) for array in digits())
    half = len(images) // 2
    images, labels = images[half:], torch.roll(torch.arange(10), 3)[labels[half:]]
    network = FAMILIES[spec.family](spec)
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in tensors.items()})
    weights = {
        name: value.detach() for name, value in network.named_parameters()
        if name.endswith("weight") and value.ndim >= 2 and len(value) >= 16 and not name.startswith("head")
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, weight in weights.items():
        a = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        factors[name] = a.requires_grad_(), torch.zeros(len(weight), rank).requires_grad_()
    optimizer = torch.optim.Adam([factor for pair in factors.values() for factor in pair], rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            changed = {name: weights[name] + torch.tensordot(b, a, 1) for name, (a, b) in factors.items()}
            optimizer.zero_grad()
            functional.cross_entropy(
                torch.func.functional_call(network, changed, (images[batch],)), labels[batch]
            ).backward()
            optimizer.step()
    ones = {name: [1] * (weights[name].ndim - 2) for name in factors}
    return {
        name.removesuffix(".weight"): (a.detach().numpy(), b.detach().reshape(*b.shape, *ones[name]).numpy())
        for name, (a, b) in factors.items()
    }


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
