"""`build_zoo`: sample recipes, train them in groups over all cores, keep what is good; kill it and it resumes."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch.datasets.load import ImageDataset, load_dataset
from weightsearch.errors import WeightsearchError
from weightsearch.types import Scaling
from weightsearch.zoo.build_runs import train_missing
from weightsearch.zoo.options import WILD, BuildOptions
from weightsearch.zoo.recipes import Preset, RecipeSpace, load_preset, sample
from weightsearch.zoo.store import ZooInfo, ZooWriter, connect, open_writer
from weightsearch.zoo.workers.messages import ARRAYS, Setup, TrainingJob

if TYPE_CHECKING:
    from weightsearch.zoo.trainer.networks import CnnShape


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
    out: str | Path,
    options: BuildOptions | None = None,
    *,
    quiet: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> BuildSummary:
    """Train networks of random recipes and keep their checkpoints as a zoo in the directory `out`.

    A zoo that is there already is added to until it has as many runs as the options say; so a killed build resumes
    where it was, and on one machine it ends up the same, bit for bit, as if it had never been killed.

    Args:
        options: which networks; by default as `BuildOptions()` says.
        quiet: no progress on stderr.
        progress: called with the networks × epochs that are done and how many there are.
        changes: fields of `BuildOptions` that differ from `options`.

    Raises:
        UsageError: options that make no sense.
        WeightsearchError: anything else that a user can fix; what was in the zoo stays good.
        Interrupted: after Ctrl-C, within two seconds.

    Example:
        >>> build_zoo('small', dataset='digits', runs=2, epochs=1, workers=1, quiet=True).runs
        2
    """
    start = time.monotonic()
    options = replace(options or BuildOptions(), **changes)
    if options.preset == WILD:
        from weightsearch.zoo.wild.build import build_wild as build
    else:
        build = _build
    trained, network_epochs = build(Path(out), options, quiet, progress)
    return _summary(Path(out), trained, network_epochs, time.monotonic() - start)


def _build(
    out: Path, options: BuildOptions, quiet: bool, progress: Callable[[int, int], None] | None
) -> tuple[int, int]:
    """Networks, and networks × epochs, that were trained to complete the zoo at `out`."""
    settings = load_preset(
        options.preset,
        recipes=options.recipes,
        filters=options.filters,
        layers=options.layers,
        epochs=options.epochs,
        batch_size=options.batch_size,
    )
    if options.device != "cpu":
        from weightsearch.devices import TRAINING_DEVICES, check_device  # which imports torch

        check_device(options.device, TRAINING_DEVICES)
    data = load_dataset(options.dataset, options.data_dir).scaled(settings.scaling)
    shape = _shape(settings, data)
    per_part = settings.runs_per_part or _runs_per_part(settings, shape, data, options.device)
    info = _info(settings, shape, data, options, per_part)
    with open_writer(out, info) as writer:
        jobs = _jobs(writer, settings.space, options.seed, options.runs, per_part)
        if not jobs:
            return 0, 0
        with _shared(data, shape, settings, options) as setup:
            del data  # the workers map the files
            trained = train_missing(
                writer, jobs, setup, options, steps=settings.epochs, unit="epochs",
                title=f"{options.runs} runs on {info.dataset}", quiet=quiet, progress=progress,
            )  # fmt: skip
    return trained, trained * settings.epochs


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


def _info(settings: Preset, shape: CnnShape, data: ImageDataset, options: BuildOptions, per_part: int) -> ZooInfo:
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
        **({"scaling": settings.scaling.value} if settings.scaling is not Scaling.SYMMETRIC else {}),
        "device": options.device.split(":")[0],
        **asdict(settings.space),
    }
    return ZooInfo(
        name=f"{data.name}-{settings.name}",
        dataset=data.name,
        preset=settings.name,
        seed=options.seed,
        dtype=options.dtype,
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


@contextmanager
def _shared(data: ImageDataset, shape: CnnShape, settings: Preset, options: BuildOptions) -> Iterator[Setup]:
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
        setup = Setup(data.name, data.classes, directory, asdict(shape), plan, options.device, options.dtype)
        del data  # as the caller does, so that its memory is free while the workers train
        yield setup


def _summary(path: Path, trained: int, network_epochs: int, seconds: float) -> BuildSummary:
    with connect(path, read_only=True) as connection:
        query = "SELECT count(*), count(*) FILTER (status = 'failed'), (SELECT count(*) FROM checkpoints) FROM runs"
        [(runs, failed, checkpoints)] = connection.execute(query).fetchall()
    return BuildSummary(path, runs, failed, checkpoints, trained, network_epochs, seconds)
