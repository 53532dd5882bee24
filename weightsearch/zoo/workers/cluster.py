"""`build_zoo` on a Ray cluster: each group of runs is a task, and its weights come back with it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from weightsearch.ray_tasks import cluster, in_order_of_ending
from weightsearch.zoo.store import write_part
from weightsearch.zoo.workers.messages import Group, Setup, TrainingJob
from weightsearch.zoo.workers.worker import load_arrays, trainer


def train_jobs_on_ray(
    address: str, setup: Setup, jobs: Sequence[TrainingJob], on_group: Callable[[TrainingJob, Group], None]
) -> None:
    """As `pool.train_jobs`, on a cluster whose nodes need to see neither the dataset nor the zoo.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        WeightsearchError, OSError: what went wrong in a task, or the cluster cannot be used.
    """
    try:
        with cluster(address) as executor:
            arrays = load_arrays(setup)
            for job, (group, weights) in in_order_of_ending(executor, train_task, jobs, setup, arrays):
                if weights is not None:
                    write_part(Path(job.path), weights)
                on_group(job, group)
    finally:
        for job in jobs:
            Path(job.path).unlink(missing_ok=True)


@functools.cache
def compile_apart() -> None:
    """Has another process compile what is not in Numba's cache; see `rehearse`. A task cannot start anew."""
    code = "from weightsearch.zoo.trainer.compiled import rehearse; rehearse()"
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)


def train_task(job: TrainingJob, setup: Setup, arrays: Mapping[str, np.ndarray]) -> tuple[Group, np.ndarray | None]:
    """What a worker does: a job's group, and the good checkpoints' weights where there are any."""
    if setup.compiles:
        compile_apart()
    with tempfile.TemporaryDirectory(prefix="weightsearch-") as directory:
        written = Path(directory) / "weights.npy"
        group = trainer(setup, arrays)(replace(job, path=str(written)), lambda _: None)
        return group, np.load(written) if group.checkpoints else None
