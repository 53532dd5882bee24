"""The part of a build that all presets share: workers train the missing runs, and each finished group is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from weightsearch.errors import Interrupted
from weightsearch.progress import progress_bar
from weightsearch.zoo.options import BuildOptions
from weightsearch.zoo.store import ZooWriter
from weightsearch.zoo.workers.messages import Group, Setup, TrainingJob
from weightsearch.zoo.workers.pool import train_jobs


def train_missing(
    writer: ZooWriter,
    jobs: Sequence[TrainingJob],
    setup: Setup,
    options: BuildOptions,
    *,
    steps: int,
    unit: str,
    title: str,
    quiet: bool,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Train the jobs' runs and publish them in the zoo; returns how many runs that were.

    Args:
        steps: that a worker reports of each run, in the progress bar's `unit`.
        progress: called with the steps that are done and how many there are.

    Raises:
        Interrupted: after Ctrl-C; finished groups are kept.
    """
    missing = sum(len(job.runs) for job in jobs)
    done = 0

    def on_step(networks: int) -> None:
        nonlocal done
        done += networks
        advance(networks)
        if progress is not None:
            progress(done, missing * steps)

    def on_group(job: TrainingJob, group: Group) -> None:
        if options.ray is not None:  # whose tasks tell of no steps
            on_step(len(job.runs) * steps)
        written = Path(job.path) if group.checkpoints else None
        writer.publish(job.part, written, group.runs, group.checkpoints, group.architectures)

    with progress_bar(title, missing * steps, unit=unit, quiet=quiet) as advance:
        try:
            if options.ray is None:
                train_jobs(setup, jobs, options.processes(len(jobs)), on_epoch=on_step, on_group=on_group)
            else:
                from weightsearch.zoo.workers.cluster import train_jobs_on_ray  # which imports the trainer

                train_jobs_on_ray(options.ray, setup, jobs, on_group)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped: {len(writer.runs)} of {options.runs} runs are kept in {writer.path}; "
                "run the same command again to go on"
            ) from None
    return missing
