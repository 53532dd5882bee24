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
from weightsearch.errors import Interrupted, WeightsearchError
from weightsearch.progress import progress_bar
from weightsearch.zoo.store import ZooInfo, ZooWriter, open_writer
from weightsearch.zoo.wild.group import SIZES, dataset_key
from weightsearch.zoo.wild.recipes import ACTIVATIONS, CHECKPOINTS, DATASETS, GROWTH, LEARNING_RATES, SHARES, sample
from weightsearch.zoo.wild.train import SECONDS, reduced
from weightsearch.zoo.workers.messages import ARRAYS, Group, Setup, TrainingJob
from weightsearch.zoo.workers.pool import train_jobs

RUNS_PER_PART = 20


def build_wild(
    out: Path,
    *,
    runs: int,
    seed: int,
    dtype: str,
    data_dir: str | Path | None,
    workers: int,
    quiet: bool,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Add runs to the zoo at `out` until it has `runs`; returns how many were trained. See `build_zoo`."""
    with open_writer(out, _info(seed, dtype)) as writer:
        jobs = _jobs(writer, seed, runs)
        missing = sum(len(job.runs) for job in jobs)
        if not jobs:
            return 0
        with (
            progress_bar(f"{runs} wild runs", missing, unit="runs", quiet=quiet) as advance,
            _shared(data_dir, dtype) as setup,
        ):
            done = 0

            def on_run(count: int) -> None:
                nonlocal done
                done += count
                advance(count)
                if progress is not None:
                    progress(done, missing)

            def on_group(job: TrainingJob, group: Group) -> None:
                written = Path(job.path) if group.checkpoints else None
                writer.publish(job.part, written, group.runs, group.checkpoints, group.architectures)

            try:
                train_jobs(setup, jobs, min(workers, len(jobs)), on_epoch=on_run, on_group=on_group)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped: {len(writer.runs)} of {runs} runs are kept in {out}; run the same command again to go on"
                ) from None
    return missing


def _info(seed: int, dtype: str) -> ZooInfo:
    content = {
        "families": {family.value: share for family, share in SHARES.items()},
        "datasets": DATASETS,
        "activations": ACTIVATIONS,
        "learning_rates": LEARNING_RATES,
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
    for first in range(0, runs, RUNS_PER_PART):
        missing = [run for run in range(first, min(first + RUNS_PER_PART, runs)) if run not in writer.runs]
        if missing:
            drawn = [sample(seed, run).to_dict() for run in missing]
            jobs.append(TrainingJob(missing[0], missing, drawn, str(writer.temporary(missing[0]))))
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
