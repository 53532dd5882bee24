"""A process of `build_zoo` that trains one group of runs after another: `python -m weightsearch.zoo.workers.worker`.

It reads JSON lines from stdin (one set-up, unless that is an argument, then jobs) and answers in JSON lines on stdout.
Not `multiprocessing`, so that a caller's script needs no `__main__` guard; and the end of stdin, which comes however
the parent ends, ends the worker at once, in the middle of a job too.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from threadpoolctl import threadpool_limits

from weightsearch.datasets.load import ImageDataset
from weightsearch.errors import WeightsearchError
from weightsearch.types import content_hash
from weightsearch.zoo.recipes import Recipe
from weightsearch.zoo.schema import METRICS, CheckpointRow, RunRow
from weightsearch.zoo.store import write_part
from weightsearch.zoo.trainer.networks import CnnShape
from weightsearch.zoo.trainer.plan import TrainingPlan
from weightsearch.zoo.trainer.population import train_population
from weightsearch.zoo.workers.messages import ARRAYS, Group, Setup, TrainingJob


def train_group(
    job: TrainingJob,
    shape: CnnShape,
    plan: TrainingPlan,
    data: ImageDataset,
    *,
    device: str,
    dtype: str,
    on_epoch: Callable[[int], None],
) -> Group:
    """Train a job's runs together and write the good checkpoints' weights, ordered by run and epoch, to its file.

    From its first checkpoint that is not finite on, a run has failed; its checkpoints before that are kept.
    """
    start = time.monotonic()
    recipes = [Recipe.from_dict(recipe) for recipe in job.recipes]
    n, epochs = len(recipes), plan.checkpoint_epochs
    weights = np.empty((n, len(epochs), shape.parameters), dtype)
    metrics = np.empty((n, len(epochs), len(METRICS)))
    good = np.empty((n, len(epochs)), bool)
    population = train_population(shape, recipes, data, plan, device=device, on_epoch=on_epoch)
    for k, checkpoint in enumerate(population):
        with np.errstate(over="ignore"):  # beyond float16 becomes Inf, which is not good
            weights[:, k] = checkpoint.weights
        metrics[:, k] = np.stack([getattr(checkpoint, metric) for metric in METRICS], 1)
        good[:, k] = np.isfinite(weights[:, k]).all(1) & np.isfinite(metrics[:, k]).all(1)
    good = np.logical_and.accumulate(good, axis=1)
    rows = weights[good]  # (rows, P)
    if len(rows):
        write_part(Path(job.path), rows)
    seconds = (time.monotonic() - start) / n
    return Group(
        runs=[
            RunRow(run, recipe.to_dict(), _failure(good[i], epochs), seconds)
            for i, (run, recipe) in enumerate(zip(job.runs, recipes, strict=True))
        ],
        checkpoints=[
            CheckpointRow(
                content_hash(row), job.runs[i], epochs[k], **dict(zip(METRICS, metrics[i, k].tolist(), strict=True))
            )
            for row, (i, k) in zip(rows, np.argwhere(good), strict=True)
        ],
    )


def _failure(good: np.ndarray, epochs: Sequence[int]) -> str | None:
    """Why a run whose checkpoints are `good` `(epochs,)` or not has failed."""
    return None if good.all() else f"weights or loss not finite by epoch {epochs[int(np.argmin(good))]}"


def trainer(setup: Setup, arrays: Mapping[str, np.ndarray]) -> Callable[[TrainingJob, Callable[[int], None]], Group]:
    """What trains one job after another; it calls back with how many networks have advanced by a step.

    `arrays` are the set-up's, by name. Training is in one thread: the same bits wherever a processor is the same.
    """
    threadpool_limits(1)
    if setup.dataset == "wild":
        return _wild_trainer(setup, arrays)
    shape = CnnShape(**setup.shape)
    plan = TrainingPlan(**{**setup.plan, "checkpoint_epochs": tuple(setup.plan["checkpoint_epochs"])})
    data = ImageDataset(name=setup.dataset, classes=setup.classes, **arrays)

    def train(job: TrainingJob, on_step: Callable[[int], None]) -> Group:
        return train_group(
            job, shape, plan, data, device=setup.device, dtype=setup.dtype, on_epoch=lambda _: on_step(len(job.runs))
        )

    return train


def _wild_trainer(
    setup: Setup, arrays: Mapping[str, np.ndarray]
) -> Callable[[TrainingJob, Callable[[int], None]], Group]:
    import torch

    from weightsearch.zoo.wild.group import SIZES, dataset_key
    from weightsearch.zoo.wild.group import train_group as train_wild_group
    from weightsearch.zoo.wild.recipes import DATASETS

    torch.set_num_threads(1)
    datasets = {}
    for name in DATASETS:
        for resolution in SIZES:
            key = dataset_key(name, resolution)
            of_dataset = {array: arrays[f"{key}-{array}"] for array in ARRAYS}
            datasets[key] = ImageDataset(name=name, classes=setup.classes, **of_dataset)

    def train(job: TrainingJob, on_step: Callable[[int], None]) -> Group:
        return train_wild_group(job, datasets, dtype=setup.dtype, on_run=lambda: on_step(1))

    return train


def load_arrays(setup: Setup) -> dict[str, np.ndarray]:
    """The set-up's files by name: copy-on-write maps, shared between the workers, and writable as torch wants them."""
    return {file.stem: np.load(file, mmap_mode="c") for file in Path(setup.data).glob("*.npy")}


def serve(lines: queue.Queue[str], out: TextIO) -> None:
    """Answer the set-up and then one job after another."""

    def answer(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        told = sys.argv[1] if len(sys.argv) > 1 else lines.get()
        setup = Setup(**json.loads(told))
        if setup.compiles and len(sys.argv) == 1:
            from weightsearch.zoo.trainer.compiled import rehearse

            if not rehearse():
                start_anew(told, out)
        train = trainer(setup, load_arrays(setup))
        answer(kind="ready")
        while True:
            job = TrainingJob(**json.loads(lines.get()))
            group = train(job, lambda networks: answer(kind="epoch", networks=networks))
            answer(kind="done", group=group.to_dict())
    except WeightsearchError as error:
        answer(kind="error", text=str(error))
    except OSError as error:
        answer(kind="os-error", errno=error.errno, text=error.strerror or str(error))
    except Exception as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):  # torch has its own for each device
            text = "out of memory: use fewer --workers, or a smaller runs_per_part in a file for --recipes"
            answer(kind="error", text=text)
        else:
            answer(kind="bug", text=traceback.format_exc())


def start_anew(told: str, out: TextIO) -> None:
    """This process from its beginning, with the set-up that it was told; what it has compiled is in the cache now."""
    os.dup2(out.fileno(), sys.stdout.fileno())
    os.execv(sys.executable, [sys.executable, "-m", "weightsearch.zoo.workers.worker", told])


def main() -> None:
    # Whatever a library prints must not get between the answers.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    serve(lines, out)


if __name__ == "__main__":
    main()
