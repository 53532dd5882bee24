"""What `train` can be told: the library's keywords and the command's options are these."""

from __future__ import annotations

from dataclasses import dataclass, field

from weightsearch.errors import UsageError
from weightsearch.ray_tasks import check_options
from weightsearch.types import Method, Metric, SplitBy, Target, choose

MOST_EXAMPLES = 4


@dataclass(frozen=True)
class TrainOptions:
    """How an index is made of a zoo. Choices take their strings, too: `TrainOptions(method="statistics")`.

    Raises UsageError for values that make no sense, and names the command's option.

    Example:
        >>> TrainOptions(method='statistics', metric='l2').metric
        <Metric.L2: 'l2'>
    """

    method: Method | None = None  # None: several are tried, and the best on validation runs is kept
    seed: int = 0  # of the split and of the fits
    split_by: SplitBy = SplitBy.RUN
    per_run: int | None = None  # fit on this many random checkpoints of each run; None: all
    target: Target = field(default_factory=Target)  # what is predicted, and what good and bad mean in the index
    trials: int = 0  # search settings at random, this many of each method; a killed search goes on
    workers: int | None = None  # fits at a time in a search; None: one per core
    device: str = "cpu"  # that fits run on, or a graphics card, "cuda"
    ray: str | None = None  # a Ray cluster's address, on which trials are tasks (see `ray_tasks.cluster`)
    examples: int = 0  # test runs kept out of the index, with a checkpoint of each written beside it
    replace: bool = False  # the index that is there already
    add: bool = False  # one more architecture to the index that is there; card and examples go beside its encoder
    metric: Metric = Metric.COSINE
    factory: str | None = None  # FAISS's name for its index's type; None: by size

    def __post_init__(self) -> None:
        if self.method in (None, "auto"):
            object.__setattr__(self, "method", None)
        else:
            object.__setattr__(self, "method", choose(Method, self.method, "--method", "auto or "))
        object.__setattr__(self, "split_by", choose(SplitBy, self.split_by, "--split"))
        object.__setattr__(self, "metric", choose(Metric, self.metric, "--metric"))
        if isinstance(self.target, str):
            object.__setattr__(self, "target", Target(self.target))
        if not 0 <= self.examples <= MOST_EXAMPLES:
            raise UsageError(f"--examples {self.examples}: choose between 0 and {MOST_EXAMPLES}")
        if self.trials < 0:
            raise UsageError(f"--trials {self.trials}: choose at least 1, or 0 for the default settings")
        check_options(self.ray, self.workers, self.device)
        if self.ray is not None and not self.trials:
            raise UsageError("--ray runs trials, and there are none: give --trials as well")
        if self.per_run is not None and self.per_run < 1:
            raise UsageError(f"--per-run {self.per_run}: choose at least 1")
