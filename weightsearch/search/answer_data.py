"""What an index says of one network, as data alone: what both the words for it and `Answer`, which has them, go by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from weightsearch.types import Neighbour, Plan
from weightsearch.uncertainty.novelty import LayerDifference

SCHEMA = 2  # of `Answer.to_dict`: keys are only added within one; docs/answer.schema.json


@dataclass(frozen=True)
class Novelty:
    """How far a network lies from known ones: mean distances from the five nearest, and what 99 in 100 stay below.

    Of embeddings, from all rows of the index, and of layers' descriptions, from networks that the encoder was fitted
    on (None where the index holds no descriptions). Limits are held-out networks' own distances.

    Example:
        >>> query('index', 'index/examples/good.pt').novelty.outside
        False
    """

    distance: float
    distance_limit: float
    layers_distance: float | None
    layers_limit: float | None
    outside: bool
    shuffled_noticed: float | None = None  # share of the network's own weights, shuffled, that lie outside as well


@dataclass(frozen=True)
class Forecast:
    """How the runs ended that were most like the network at its epoch: accuracies of their last checkpoints.

    Example:
        >>> query('index', 'index/examples/good.pt').forecast.runs
        10
    """

    epoch: int | float
    runs: int
    median: float
    low: float  # of all of them
    high: float
    good: int  # how many ended so, among their dataset's rows
    bad: int


@dataclass(frozen=True)
class AnswerData:
    """The values of an `Answer`, which says what they are."""

    path: str
    id: str
    architecture: str
    fingerprint: str
    predicted: float  # the target, an accuracy unless another was asked for
    percentile: float | None  # None where no row's accuracy is known
    stated_accuracy: float | None  # what the file itself says, or the index of an indexed network
    neighbours_accuracy: float | None  # their mean
    neighbours: tuple[Neighbour, ...]
    good: tuple[Neighbour, ...]
    bad: tuple[Neighbour, ...]
    good_threshold: float
    bad_threshold: float
    plan: Plan
    interval: tuple[float, float] | None = None  # holds the truth of `coverage` of all networks from new runs
    coverage: float = 0.9
    agrees: bool | None = None  # whether prediction and neighbours do
    novelty: Novelty | None = None
    forecast: Forecast | None = None
    layers: tuple[LayerDifference, ...] = ()
    run: str | None = None
    epoch: int | float | None = None
    indexed: bool = False
    notes: tuple[str, ...] = ()
    verdict: str = ""
    target: str = "test_accuracy"
    lower_is_better: bool = False
    label: str = "unknown"
    index: str = ""  # the directory
    dataset: str | None = None  # that the accuracies are on: what the file says, else the index's only one
    metric: str = "cosine"
    network: str = ""  # the architecture in a few words
    recipe: dict[str, Any] = field(default_factory=dict)  # the network's own, where known
    activation: str | None = None
    activation_from: str | None = None  # file, option or index
    by_activation: dict[str, float] = field(default_factory=dict)  # predictions, where it matters and is not known
    runs: tuple[Neighbour, ...] = ()  # the nearest checkpoint of each of the nearest runs
    faults: tuple[str, ...] = ()  # layers that are all zero or constant
    copy_of: str | None = None  # id of the indexed checkpoint with the same weights
    compared: int | None = None  # indexed checkpoints that percentile and thresholds are of: its dataset's, if known
    schema: int = SCHEMA
