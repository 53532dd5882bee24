"""What `build_zoo` can be told: the library's keywords and the command's options are these."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from weightsearch.errors import UsageError
from weightsearch.ray_tasks import check_options
from weightsearch.types import choose

WILD = "wild"


class Dtype(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True)
class BuildOptions:
    """Which networks a zoo is made of, and what trains them. Choices take their strings, too.

    The preset is `v1` or `v2`, or `wild`, which has networks of every kind on several datasets and none of the other
    options that decide the content. `recipes` (a TOML file, see `load_preset`) and then `epochs`, `filters`, `layers`
    and `batch_size` override parts of the other presets.

    Raises UsageError for values that make no sense, and names the command's option.

    Example:
        >>> BuildOptions(dataset='usps', preset='v2', dtype='float16').dtype
        <Dtype.FLOAT16: 'float16'>
    """

    dataset: str = "digits"  # a name or a path, as `load_dataset` takes it
    preset: str = "v1"
    runs: int = 100  # that the zoo has in the end
    seed: int = 0  # of recipes, weights, batches and dropout
    recipes: str | Path | None = None
    epochs: int | None = None
    filters: int | None = None
    layers: int | None = None
    batch_size: int | None = None
    data_dir: str | Path | None = None  # where the dataset's files are; None: $WEIGHTSEARCH_DATA, else a cache
    dtype: Dtype = Dtype.FLOAT32  # of the stored weights
    device: str = "cpu"  # a torch device; `cpu` trains in one single-threaded process a core
    workers: int | None = None  # processes; None: one per core on `cpu` and one on an accelerator
    ray: str | None = None  # a Ray cluster's address, on which groups of runs are tasks (see `ray_tasks.cluster`)

    def __post_init__(self) -> None:
        for name, value, least in (("runs", self.runs, 1), ("seed", self.seed, 0), ("workers", self.workers, 1)):
            if value is not None and value < least:
                raise UsageError(f"--{name} must be at least {least}, got {value}")
        check_options(self.ray, self.workers, self.device)
        object.__setattr__(self, "dtype", choose(Dtype, self.dtype, "--dtype"))
        if self.preset == WILD:
            changed = {
                "dataset": self.dataset != "digits", "device": self.device != "cpu", "recipes": self.recipes,
                "epochs": self.epochs, "filters": self.filters, "layers": self.layers, "batch-size": self.batch_size,
            }  # fmt: skip
            if named := [name for name, value in changed.items() if value]:
                raise UsageError(
                    f"--{named[0]} does not go with --preset wild, which has datasets and recipes of its own"
                )

    def processes(self, jobs: int) -> int:
        """How many workers train `jobs` groups of runs."""
        if self.workers is not None:
            most = self.workers
        elif self.device != "cpu":
            most = 1
        else:
            most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(most, jobs)
