"""`build_zoo` for the preset `wild`: the same store, workers and resuming as for a zoo of one architecture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from weightsearch.datasets.load import load_dataset
from weightsearch.errors import WeightsearchError
from weightsearch.zoo.build_runs import train_missing
from weightsearch.zoo.options import BuildOptions
from weightsearch.zoo.store import ZooInfo, ZooWriter, open_writer
from weightsearch.zoo.wild.group import SIZES, dataset_key
from weightsearch.zoo.wild.recipes import (
    ACTIVATIONS,
    CHECKPOINTS,
    DATASETS,
    GROWTH,
    LEARNING_RATES,
    LEAST_TRAIN_FRACTION,
    MOST_LABEL_NOISE,
    SHARES,
    recipes,
)
from weightsearch.zoo.wild.train import SECONDS, reduced
from weightsearch.zoo.workers.messages import ARRAYS, Setup, TrainingJob

RUNS_PER_PART = 20


def build_wild(
    out: Path, options: BuildOptions, quiet: bool, progress: Callable[[int, int], None] | None
) -> tuple[int, int]:
    """Add runs to the zoo at `out` until it has enough; returns how many were trained, twice. See `build_zoo`."""
    with open_writer(out, _info(options.seed, options.dtype)) as writer:
        jobs = _jobs(writer, options.seed, options.runs)
        if not jobs:
            return 0, 0
        with _shared(options.data_dir, options.dtype) as setup:
            trained = train_missing(
                writer, jobs, setup, options, steps=1, unit="runs",
                title=f"{options.runs} wild runs", quiet=quiet, progress=progress,
            )  # fmt: skip
    return trained, trained


def _info(seed: int, dtype: str) -> ZooInfo:
    content = {
        "families": {family.value: share for family, share in SHARES.items()},
        "datasets": DATASETS,
        "activations": ACTIVATIONS,
        "learning_rates": LEARNING_RATES,
        "most_label_noise": MOST_LABEL_NOISE,
        "least_train_fraction": LEAST_TRAIN_FRACTION,
        "checkpoints": CHECKPOINTS,
        "growth": GROWTH,
        "seconds": SECONDS,
        "runs_per_part": RUNS_PER_PART,
    }
    return ZooInfo(
        name="wild",
        dataset="many",
        preset="wild",
        seed=seed,
        dtype=dtype,
        architecture=None,
        settings=json.loads(json.dumps(content)),
        version=version("weightsearch"),
    )


def _jobs(writer: ZooWriter, seed: int, runs: int) -> list[TrainingJob]:
    """The runs that are missing, in groups whose bounds do not depend on what is there already."""
    jobs = []
    all_recipes = recipes(seed, runs)
    for first in range(0, runs, RUNS_PER_PART):
        missing = [run for run in range(first, min(first + RUNS_PER_PART, runs)) if run not in writer.runs]
        if missing:
            chosen = [all_recipes[run].to_dict() for run in missing]
            jobs.append(TrainingJob(missing[0], missing, chosen, str(writer.temporary(missing[0]))))
    return jobs


@contextmanager
def _shared(data_dir: str | Path | None, dtype: str) -> Iterator[Setup]:
    """The workers' set-up, with the reduced datasets in files for them to map."""
    with tempfile.TemporaryDirectory(prefix="weightsearch-", ignore_cleanup_errors=True) as directory:
        for name in DATASETS:
            data = load_dataset(name, data_dir)
            for resolution, size in SIZES.items():
                small = reduced(data, size)
                for array in ARRAYS:
                    file = Path(directory) / f"{dataset_key(name, resolution)}-{array}.npy"
                    try:
                        np.save(file, getattr(small, array))
                    except OSError as error:
                        raise WeightsearchError(
                            f"cannot write the datasets to {directory} ({error}): free some space there or set TMPDIR"
                        ) from None
        yield Setup("wild", 10, directory, {}, {}, "cpu", dtype)
