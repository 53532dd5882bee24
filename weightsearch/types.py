"""Frozen dataclasses shared by all modules. No imports that cost time, so that `--help` is quick."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from weightsearch.errors import UsageError, WeightsearchError

if TYPE_CHECKING:
    import numpy as np


UNNAMED_DATASET = "unknown"  # of an import that was told none


class LayerKind(StrEnum):
    """What a layer matrix was made of.

    Example:
        >>> LayerKind('dense')
        <LayerKind.DENSE: 'dense'>
    """

    CONV1D = "conv1d"
    CONV2D = "conv2d"
    CONV3D = "conv3d"
    DENSE = "dense"
    NORM = "norm"
    OTHER = "other"


class Method(StrEnum):
    """The encoders, by name.

    Example:
        >>> Method('invariant')
        <Method.INVARIANT: 'invariant'>
    """

    FC = "fc"
    FC_LINEAR = "fc-linear"
    COMVEX_LINEAR = "comvex-linear"
    COMVEX_CONV = "comvex-conv"
    STATISTICS = "statistics"
    INVARIANT = "invariant"


class Baseline(StrEnum):
    """What an encoder is measured against; not encoders, since they give no embedding.

    Example:
        >>> Baseline('mean')
        <Baseline.MEAN: 'mean'>
    """

    STATISTICS_TREES = "statistics-trees"  # boosted trees on the weight statistics (Unterthiner et al. 2020)
    HYPERPARAMETERS = "hyperparameters"  # boosted trees on the recipe and the epoch, without a look at the weights
    MEAN = "mean"  # of the training part


class SplitBy(StrEnum):
    """What is dealt into training, validation and test. Checkpoints of one run are near-copies of each other.

    Example:
        >>> SplitBy('checkpoint')
        <SplitBy.CHECKPOINT: 'checkpoint'>
    """

    RUN = "run"  # all checkpoints of a run lie in one part: the honest protocol
    CHECKPOINT = "checkpoint"  # looser: copies of a test network's earlier or later self are among the training ones


class Metric(StrEnum):
    """How far apart two embeddings are; lower is nearer.

    Example:
        >>> Metric('l2')
        <Metric.L2: 'l2'>
    """

    COSINE = "cosine"  # 1 - cosine similarity, in [0, 2]
    L2 = "l2"  # Euclidean


@dataclass(frozen=True)
class Layer:
    """One layer of an architecture, stored as a layer matrix `(rows, columns)`.

    `shape` is the weight's own shape, `(D_out, D_in, ...)`. The layer matrix is the weight squeezed to
    `(D_out, D_in * ...)` with one further column per name in `extras` (the bias, a norm's running statistics).
    `name` is the module's path in the state dict and does not count for the fingerprint.

    Example:
        >>> layer = Layer('conv1', LayerKind.CONV2D, (16, 1, 3, 3))
        >>> layer.rows, layer.columns
        (16, 10)
    """

    name: str
    kind: LayerKind
    shape: tuple[int, ...]
    extras: tuple[str, ...] = ("bias",)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @cached_property
    def columns(self) -> int:
        return self.weight_columns + len(self.extras)

    @cached_property
    def weight_columns(self) -> int:
        """How many of the columns hold the weight tensor; the others hold the extras."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Architecture:
    """The ordered layers of a network. Equal fingerprints may be compared, whatever the modules are called.

    A network's weights travel as one flat float32 vector of `size` values: its layer matrices, each row-major,
    one after the other. `slices` says where each matrix lies in it.

    Example:
        >>> Architecture((Layer('dense', LayerKind.DENSE, (10, 16)),)).size
        170
    """

    layers: tuple[Layer, ...]

    @cached_property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(layer.size for layer in self.layers)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        ends = accumulate(layer.size for layer in self.layers)
        return tuple(slice(end - layer.size, end) for end, layer in zip(ends, self.layers, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits over kinds, shapes and extras in order; names do not count."""
        content = [[layer.kind.value, list(layer.shape), list(layer.extras)] for layer in self.layers]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def matrices(self, weights: np.ndarray) -> list[np.ndarray]:
        """Views of flat weights `(..., P)` as layer matrices `(..., rows, columns)`."""
        if weights.shape[-1] != self.size:
            raise WeightsearchError(f"expected {self.size} weights, got {weights.shape[-1]}")
        return [
            weights[..., part].reshape(*weights.shape[:-1], layer.rows, layer.columns)
            for part, layer in zip(self.slices, self.layers, strict=True)
        ]

    @property
    def is_any(self) -> bool:
        """Whether it stands for all architectures: see `ANY`."""
        return not self.layers

    def describe(self) -> str:
        """For people, e.g. `conv2d 16x1x3x3 - conv2d 16x16x3x3 - dense 10x16 (4,970 parameters)`."""
        if self.is_any:
            return "any architecture"
        parts = [f"{layer.kind} {'x'.join(map(str, layer.shape))}" for layer in self.layers]
        return f"{' - '.join(parts)} ({self.size:,} parameters)"

    def brief(self) -> str:
        """For people in a hurry, e.g. `3 conv + dense, 4,970 weights`."""
        if self.is_any:
            return "any architecture"
        counts: dict[str, int] = {}
        for layer in self.layers:
            kind = layer.kind.value.removesuffix("1d").removesuffix("2d").removesuffix("3d")
            counts[kind] = counts.get(kind, 0) + 1
        kinds = " + ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counts.items())
        return f"{kinds}, {self.size:,} weights"

    def to_dict(self) -> list[dict[str, Any]]:
        return [
            {"name": layer.name, "kind": layer.kind.value, "shape": list(layer.shape), "extras": list(layer.extras)}
            for layer in self.layers
        ]

    @classmethod
    def from_dict(cls, layers: list[dict[str, Any]]) -> Architecture:
        return cls(
            tuple(
                Layer(layer["name"], LayerKind(layer["kind"]), tuple(layer["shape"]), tuple(layer["extras"]))
                for layer in layers
            )
        )


# Without layers: the space of the encoder that knows all architectures, and of the rows that it embeds.
ANY = Architecture(())


@dataclass(frozen=True)
class Target:
    """The column that is predicted and judged by, and which of its ends is good.

    Example:
        >>> Target('test_loss', lower_is_better=True).quality(0.5)
        -0.5
    """

    column: str = "test_accuracy"
    lower_is_better: bool = False

    @property
    def is_accuracy(self) -> bool:
        """Whether its values lie in [0, 1] by nature."""
        return self.column.endswith("accuracy")

    @property
    def label(self) -> str:
        """For people: `accuracy` for the usual one, else the column's name in words."""
        return "accuracy" if self.column == "test_accuracy" else self.column.replace("_", " ")

    def quality(self, values: Any) -> Any:
        """The values with their sign turned where lower is better, so that higher always is."""
        return -values if self.lower_is_better else values


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights read from a file: flat weights `(P,)` float32, and what the file said beside them.

    Example:
        >>> checkpoint = read_checkpoint('index/examples/good.pt')
        >>> checkpoint.weights.shape, checkpoint.metadata['epoch'] > 0
        ((4970,), True)
    """

    source: str
    architecture: Architecture
    weights: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what was assumed
    ordered: bool = True  # False: its file forgot the order of the layers, and their names were sorted

    @property
    def id(self) -> str:
        return content_hash(self.weights)


def content_hash(weights: np.ndarray) -> str:
    """Sixteen hex digits over the float32 bytes of flat weights `(P,)`: a checkpoint's key in an index."""
    return hashlib.blake2b(weights.astype("<f4", copy=False).tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Neighbour:
    """A row of the index with its distance from the query (lower is nearer) and the recipe of its run.

    `value` is that of the column which the index judges by, the test accuracy unless it was trained with a target.
    `grade` is 1 where that is good and -1 where it is bad among rows of the same dataset, else 0. What is not known is
    None; `metadata` holds the user's own columns.

    Example:
        >>> nearest = query('index', 'index/examples/bad.pt').neighbours[0]
        >>> sorted(nearest.recipe)[:3]
        ['activation', 'dropout', 'init_std']
    """

    id: str
    distance: float
    test_accuracy: float | None
    epoch: int | float | None
    run: str | None
    recipe: dict[str, Any]
    value: float | None
    dataset: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    grade: int = 0
    source: str | None = None  # the file that its weights came from, or `zoo#run/epoch`


@dataclass(frozen=True)
class Selection:
    """Which rows of an index may be neighbours, and which of them count as good and bad.

    Example:
        >>> index = Index.open('index')
        >>> fingerprint, *_ = index.architectures
        >>> vector = index.embeddings(fingerprint)[0]
        >>> found = index.store.search(fingerprint, vector, 3, Selection(where='epoch > 50', per_run=1))
        >>> [row.epoch > 50 for row in found.neighbours]
        [True, True, True]
    """

    where: str | None = None  # a condition in DuckDB's SQL over rows' columns, recipe keys and the user's columns
    good: str | None = None  # at least: a value ("0.9"), or better than that share of rows ("q75")
    bad: str | None = None  # at most ("q25")
    within: float | None = None  # no further than this
    not_run: str | None = None  # not of this run
    per_run: int | None = None  # no more than this many of one run


@dataclass(frozen=True)
class Plan:
    """How a search was done: exactly over all or over the passing rows, or by FAISS's approximate index.

    `seconds` until the rows and distances of all lists were known, a filter's work included.
    """

    name: str
    rows_passing: int
    rows: int
    seconds: float

    def describe(self) -> str:
        """For people, e.g. `exact, passing rows: 120 of 2,664 rows pass, 1.3 ms`."""
        return f"{self.name}: {self.rows_passing:,} of {self.rows:,} rows pass, {1000 * self.seconds:.1f} ms"


def epoch_number(epoch: float | None) -> int | float | None:
    """An epoch as people write it: whole ones without a point, and None where it is not known.

    Example:
        >>> epoch_number(3.0), epoch_number(0.5), epoch_number(float("nan"))
        (3, 0.5, None)
    """
    if epoch is None or math.isnan(epoch):
        return None
    return int(epoch) if epoch == int(epoch) else epoch


class Scaling(StrEnum):
    """What numbers images are given in: from -1 to 1, from 0 to 1, or with mean 0 and deviation 1."""

    SYMMETRIC = "symmetric"
    UNIT = "unit"
    STANDARD = "standard"


class Activation(StrEnum):
    """What stands between a network's layers. Zoos of our own are trained with the first two.

    Example:
        >>> Activation('relu')
        <Activation.RELU: 'relu'>
    """

    RELU = "relu"
    TANH = "tanh"
    GELU = "gelu"
    LEAKY_RELU = "leaky-relu"
    SILU = "silu"
    ELU = "elu"
    SIGMOID = "sigmoid"
    IDENTITY = "identity"


_ACTIVATION_NAMES = {name.value.replace("-", ""): name for name in Activation} | {
    "swish": Activation.SILU,
    "linear": Activation.IDENTITY,
    "none": Activation.IDENTITY,
    "logistic": Activation.SIGMOID,
    "geluactivation": Activation.GELU,
    "newgelu": Activation.GELU,
    "gelunew": Activation.GELU,
}


def activation_named(name: object) -> Activation | None:
    """The activation that a name stands for in any usual spelling; None for one that is not known.

    Case, module paths, arguments and separators do not count.

    Example:
        >>> activation_named("torch.nn.modules.activation.LeakyReLU(negative_slope=0.01)")
        <Activation.LEAKY_RELU: 'leaky-relu'>
        >>> activation_named("maxout") is None
        True
    """
    text = name if isinstance(name, str) else getattr(name, "__name__", None) or type(name).__name__
    text = re.sub(r"\(.*", "", text.strip().strip("<>'\""), flags=re.DOTALL)
    leaf = re.sub(r"[^a-z0-9]", "", text.rpartition(".")[2].strip("'\">").lower())
    return _ACTIVATION_NAMES.get(leaf)


E = TypeVar("E", bound=StrEnum)


def choose(choices: type[E], value: str | E, flag: str, others: str = "") -> E:
    """The member of an enum that a string names. Raises UsageError that lists the choices.

    Example:
        >>> choose(Metric, "l2", "--metric")
        <Metric.L2: 'l2'>
    """
    try:
        return choices(value)
    except ValueError:
        raise UsageError(f"{flag} {value}: choose {others}one of {', '.join(choices)}") from None
