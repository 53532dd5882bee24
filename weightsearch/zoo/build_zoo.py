"""`build_zoo`: sample recipes, train them in groups over all cores, keep what is good; kill it and it resumes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightsearch.datasets.load import ImageDataset, load_dataset
from weightsearch.errors import Interrupted, UsageError, WeightsearchError
from weightsearch.progress import progress_bar
from weightsearch.zoo.recipes import Preset, RecipeSpace, load_preset, sample
from weightsearch.zoo.store import ZooInfo, ZooWriter, connect, open_writer
from weightsearch.zoo.workers.messages import ARRAYS, Group, Setup, TrainingJob
from weightsearch.zoo.workers.pool import train_jobs

if TYPE_CHECKING:
    from weightsearch.zoo.trainer.networks import CnnShape


class Dtype(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True)
class BuildSummary:
    """What a zoo holds after a build; `trained` runs and `network_epochs` in `seconds` are this build's own.

    Example:
        >>> BuildSummary(Path('zoo'), runs=2, failed=0, checkpoints=4, trained=2, network_epochs=2, seconds=3.5).runs
        2
    """

    path: Path
    runs: int
    failed: int
    checkpoints: int
    trained: int
    network_epochs: int
    seconds: float


def build_zoo(
    *,
    out: str | Path,
    dataset: str = "digits",
    runs: int = 100,
    preset: str = "v1",
    seed: int = 0,
    recipes: str | Path | None = None,
    epochs: int | None = None,
    filters: int | None = None,
    layers: int | None = None,
    batch_size: int | None = None,
    data_dir: str | Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    workers: int | None = None,
    quiet: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BuildSummary:
    """Train networks of random recipes and keep their checkpoints as a zoo in the directory `out`.

    A zoo that is there already is added to until it has `runs` runs; so a killed build resumes where it was, and on
    one machine it ends up the same, bit for bit, as if it had never been killed.

    Args:
        dataset: a name or a path, as `load_dataset` takes it.
        preset: `v1` or `v2`, or `wild`, which has networks of every kind on several datasets and none of the
            other options that decide the content. `recipes` (a TOML file, see `load_preset`) and then the flags
            override parts of the other presets.
        dtype: of the stored weights, `float32` or `float16`.
        device: a torch device; `cpu` trains in one single-threaded process per core.
        workers: processes; by default one per core on `cpu` and one on an accelerator.
        progress: called with the networks × epochs that are done and how many there are.

    Raises:
        WeightsearchError: anything a user can fix; what was in the zoo stays good.
        Interrupted: after Ctrl-C, within two seconds.

    Example:
        >>> build_zoo(out='small', dataset='digits', runs=2, epochs=1, workers=1, quiet=True).runs
        2
    """
    start = time.monotonic()
    for name, value, least in (("runs", runs, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, got {value}")
    if dtype not in list(Dtype):
        raise UsageError(f"--dtype must be float32 or float16, got {dtype!r}")
    if preset == "wild":
        changed = {"dataset": dataset != "digits", "device": device != "cpu", "recipes": recipes, "epochs": epochs}
        changed |= {"filters": filters, "layers": layers, "batch-size": batch_size}
        if named := [name for name, value in changed.items() if value]:
            raise UsageError(f"--{named[0]} does not go with --preset wild, which has datasets and recipes of its own")
        from weightsearch.zoo.wild.build import build_wild

        trained = build_wild(
            Path(out),
            runs=runs,
            seed=seed,
            dtype=dtype,
            data_dir=data_dir,
            workers=workers or _default_workers(device),
            quiet=quiet,
            progress=progress,
        )
        return _summary(Path(out), trained, trained, time.monotonic() - start)
    settings = load_preset(
        preset, recipes=recipes, filters=filters, layers=layers, epochs=epochs, batch_size=batch_size
    )
    if device != "cpu":
        from weightsearch.devices import TRAINING_DEVICES, check_device  # which imports torch

        check_device(device, TRAINING_DEVICES)
    data = load_dataset(dataset, data_dir)
    shape = _shape(settings, data)
    per_part = settings.runs_per_part or _runs_per_part(settings, shape, data, device)
    info = _info(settings, shape, data, seed=seed, dtype=dtype, device=device, per_part=per_part)
    out = Path(out)
    with open_writer(out, info) as writer:
        jobs = _jobs(writer, settings.space, seed, runs, per_part)
        trained = sum(len(job.runs) for job in jobs)
        if jobs:
            count = min(workers or _default_workers(device), len(jobs))
            with (
                progress_bar(
                    f"{runs} runs on {info.dataset}", trained * settings.epochs, unit="epochs", quiet=quiet
                ) as advance,
                _shared(data, shape, settings, device, dtype) as setup,
            ):
                del data  # the workers map the files
                done = 0

                def on_epoch(networks: int) -> None:
                    nonlocal done
                    done += networks
                    advance(networks)
                    if progress is not None:
                        progress(done, trained * settings.epochs)

                def on_group(job: TrainingJob, group: Group) -> None:
                    written = Path(job.path) if group.checkpoints else None
                    writer.publish(job.part, written, group.runs, group.checkpoints)

                try:
                    train_jobs(setup, jobs, count, on_epoch=on_epoch, on_group=on_group)
                except KeyboardInterrupt:
                    raise Interrupted(
                        f"stopped: {len(writer.runs)} of {runs} runs are kept in {out}; "
                        "run the same command again to go on"
                    ) from None
    return _summary(out, trained, trained * settings.epochs, time.monotonic() - start)


def _shape(settings: Preset, data: ImageDataset) -> CnnShape:
    from weightsearch.zoo.trainer.networks import CnnShape

    channels, height, width = data.x_train.shape[1:]
    shape = CnnShape(settings.filters, settings.layers, data.classes, channels)
    shape.spatial(height, width)  # raises where the images are too small
    return shape


def _runs_per_part(settings: Preset, shape: CnnShape, data: ImageDataset, device: str) -> int:
    """How many networks train together: some 15 to 30 seconds of one core's work, or enough to fill an accelerator.

    It depends on the zoo's settings alone, so that a resumed or extended build has the same groups.
    """
    sizes = shape.spatial(*data.x_train.shape[2:])
    inputs = [shape.channels] + [shape.filters] * (shape.layers - 1)
    convolutions = zip(inputs, sizes[1:], strict=True)
    forward = sum(2 * (9 * c + 1) * shape.filters * h * w for c, (h, w) in convolutions)  # FLOP per image
    seen = len(data.y_train) * float(np.mean(settings.space.train_fraction))
    images = 3 * seen * settings.epochs + (seen + len(data.y_test)) * len(settings.schedule)
    weights = 4 * shape.parameters * len(settings.schedule)  # bytes
    if device == "cpu":
        most = min(16, 1e12 / (forward * images), 100e6 / weights)
    else:
        most = min(512, 1e9 / weights)
    return max(1, int(most))


def _info(
    settings: Preset, shape: CnnShape, data: ImageDataset, *, seed: int, dtype: str, device: str, per_part: int
) -> ZooInfo:
    digest = hashlib.blake2b(digest_size=8)
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        digest.update(np.ascontiguousarray(array).data)
    content = {
        "dataset_hash": digest.hexdigest(),
        "image_shape": list(data.x_train.shape[1:]),
        "classes": data.classes,
        "filters": settings.filters,
        "layers": settings.layers,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "momentum": settings.momentum,
        "checkpoint_epochs": list(settings.schedule),
        "runs_per_part": per_part,
        "device": device.split(":")[0],
        **asdict(settings.space),
    }
    return ZooInfo(
        name=f"{data.name}-{settings.name}",
        dataset=data.name,
        preset=settings.name,
        seed=seed,
        dtype=dtype,
        architecture=shape.architecture,
        settings=json.loads(json.dumps(content)),
        version=version("weightsearch"),
    )


def _jobs(writer: ZooWriter, space: RecipeSpace, seed: int, runs: int, per_part: int) -> list[TrainingJob]:
    """The runs that are missing, in groups whose bounds are multiples of `per_part` whatever is there already."""
    jobs = []
    for first in range(0, runs, per_part):
        missing = [run for run in range(first, min(first + per_part, runs)) if run not in writer.runs]
        if missing:
            drawn = [sample(space, seed, run).to_dict() for run in missing]
            jobs.append(TrainingJob(missing[0], missing, drawn, str(writer.temporary(missing[0]))))
    return jobs


def _default_workers(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _shared(data: ImageDataset, shape: CnnShape, settings: Preset, device: str, dtype: str) -> Iterator[Setup]:
    """The workers' set-up, with the dataset in files for them to map."""
    with tempfile.TemporaryDirectory(prefix="weightsearch-", ignore_cleanup_errors=True) as directory:
        try:
            for name in ARRAYS:
                np.save(Path(directory) / f"{name}.npy", getattr(data, name))
        except OSError as error:
            raise WeightsearchError(
                f"cannot write the dataset to {directory} ({error}): free some space there or set TMPDIR"
            ) from None
        plan = {
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "checkpoint_epochs": settings.schedule,
            "momentum": settings.momentum,
        }
        setup = Setup(data.name, data.classes, directory, asdict(shape), plan, device, dtype)
        del data  # as the caller does, so that its memory is free while the workers train
        yield setup


def _summary(path: Path, trained: int, network_epochs: int, seconds: float) -> BuildSummary:
    with connect(path, read_only=True) as connection:
        query = "SELECT count(*), count(*) FILTER (status = 'failed'), (SELECT count(*) FROM checkpoints) FROM runs"
        [(runs, failed, checkpoints)] = connection.execute(query).fetchall()
    return BuildSummary(path, runs, failed, checkpoints, trained, network_epochs, seconds)
