"""Random search: draw trials from the published spaces, run them side by side, keep the best by validation loss.

A trial is decided by its method, number and seed alone, and stopped early by comparison with trials of lower numbers
alone, so that a search ends up the same however many workers run it and however often it is killed. Optuna's samplers
begin their stream anew where a study is resumed, and so draw the same trials again, and its pruners compare with
whatever trials have ended by then.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch import paths as runs
from weightsearch.encoders import EncoderConfig, WeightInit
from weightsearch.errors import WeightsearchError
from weightsearch.training.baselines import TreeSettings
from weightsearch.training.fit_settings import DEFAULTS, FitOptimizer, FitSettings
from weightsearch.training.runner import FitJob, SplitSpec, load_protocol, read_result, run_jobs, worker_pool
from weightsearch.types import Baseline, Method
from weightsearch.zoo.store import Zoo

FORMAT = 1  # counts changes of the code after which older results are not comparable
LAG = 4  # a trial is judged against those at least this many before it, so that the outcome depends on no timing


@dataclass(frozen=True)
class Space:
    """Ranges of the random search, `(low, high)`; the paper's section 5 and its code."""

    hidden_layers: tuple[int, int]
    hidden_size: tuple[int, int]
    dropout: tuple[float, float]
    weight_decay: tuple[float, float]  # log-uniform
    learning_rate: tuple[float, float] = (2e-5, 2e-3)  # log-uniform
    batch_sizes: tuple[int, ...] = (64, 128, 256, 512)


V1 = Space(hidden_layers=(2, 8), hidden_size=(256, 512), dropout=(0.0, 0.2), weight_decay=(1e-8, 1e-3))
V2 = Space(hidden_layers=(2, 8), hidden_size=(64, 512), dropout=(0.0, 0.7), weight_decay=(1e-5, 1e-2))
V1_SIZE = 20_000  # zoos of other presets take the space of the preset whose networks are as large


def space_of(zoo: Zoo) -> Space:
    presets = {"v1": V1, "v2": V2}
    return presets.get(zoo.info.preset, V1 if zoo.architecture.size < V1_SIZE else V2)


def draw_trial(
    method: Method | Baseline, number: int, space: Space, seed: int, epochs: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and settings of one trial, decided by method, number and seed alone. Trial 0 is the default."""
    generator = np.random.default_rng([seed, number, zlib.crc32(method.encode())])
    if isinstance(method, Baseline):
        return {}, asdict(_draw_trees(generator) if number else TreeSettings())
    if number == 0:
        config, settings = DEFAULTS[method]
        return asdict(config), asdict(replace(settings, epochs=min(epochs, settings.epochs)))

    def uniform(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    def logarithmic(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(math.log(low), math.log(high))))

    config = EncoderConfig(
        method,
        hidden_layers=int(generator.integers(*space.hidden_layers, endpoint=True)),
        hidden_size=int(generator.integers(*space.hidden_size, endpoint=True)),
        dropout=uniform(*space.dropout),
        initializer=list(WeightInit)[generator.integers(len(WeightInit))],
    )
    settings = FitSettings(
        learning_rate=logarithmic(*space.learning_rate),
        weight_decay=logarithmic(*space.weight_decay),
        batch_size=int(generator.choice(space.batch_sizes)),
        optimizer=list(FitOptimizer)[generator.integers(len(FitOptimizer))],
        epochs=epochs,
    )
    if method in (Method.STATISTICS, Method.INVARIANT):  # not the paper's: searched where they work at all
        config = replace(config, hidden_layers=int(generator.integers(1, 5)), input_noise=uniform(0.0, 0.3))
    if method is Method.INVARIANT:
        usual = DEFAULTS[method][1]
        settings = replace(
            settings, learning_rate=logarithmic(5e-4, 5e-3), optimizer=usual.optimizer, one_cycle=True,
            epochs=min(epochs, usual.epochs), patience=usual.patience,
        )  # fmt: skip
    return asdict(config), asdict(settings)


def _draw_trees(generator: np.random.Generator) -> TreeSettings:
    return TreeSettings(
        learning_rate=float(np.exp(generator.uniform(math.log(0.01), math.log(0.15)))),
        leaves=int(generator.integers(7, 64)),
        leaf_checkpoints=int(generator.integers(3, 40)),
        feature_share=float(generator.uniform(0.3, 1.0)),
        row_share=float(generator.uniform(0.5, 1.0)),
        l2=float(np.exp(generator.uniform(math.log(0.01), math.log(30)))),
    )


@dataclass(frozen=True)
class Search:
    """A finished search: its trials' results in order (see `jobs`), and which of them is best."""

    directory: Path
    trials: tuple[dict[str, Any], ...]
    best: int

    @property
    def encoder_directory(self) -> Path:
        """Of the best trial, where the search kept encoders."""
        return Path(trial_path(self.directory, self.best)).with_suffix("")


def trial_path(directory: Path, number: int) -> str:
    return str(directory / f"trial-{number:05d}.json")


def search_directory(protocol: SplitSpec, method: Method | Baseline, epochs: int, root: Path | None = None) -> Path:
    """Where the trials of one method lie: named by the zoo's content and all else that decides a trial's result."""
    zoo, split = load_protocol(protocol)
    content = {
        "format": FORMAT,
        "checkpoints": hashlib.sha256("".join(zoo.table().id).encode()).hexdigest(),
        "split": split.to_dict(zoo.table()),
        "target": asdict(protocol.target),
        "epochs": epochs,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    per_run = f"-{protocol.per_run}-per-run" if protocol.per_run else ""
    return (root or runs.RUNS / "searches").absolute() / f"{zoo.path.name}-by-{protocol.by}{per_run}-{key}" / method


def search_jobs(
    protocol: SplitSpec, method: Method | Baseline, trials: int, *, epochs: int, keep: bool, root: Path | None = None
) -> list[FitJob]:
    """The jobs of a search, in order."""
    directory = search_directory(protocol, method, epochs, root)
    zoo, _ = load_protocol(protocol)
    space = space_of(zoo)
    drawn = [draw_trial(method, number, space, protocol.seed, epochs) for number in range(trials)]
    return [
        FitJob(
            out=trial_path(directory, number),
            protocol=protocol,
            method=method.value,
            config=config,
            settings=settings,
            seed=protocol.seed + number,
            compared_with=tuple(trial_path(directory, rival) for rival in range(max(0, number - LAG + 1))),
            keep=keep and isinstance(method, Method),
        )
        for number, (config, settings) in enumerate(drawn)
    ]


def search(
    protocol: SplitSpec,
    method: Method | Baseline,
    *,
    trials: int,
    epochs: int = 300,
    workers: int | None = None,
    device: str = "cpu",
    ray: str | None = None,
    root: Path | None = None,
    on_trial: Callable[[dict[str, Any]], None] | None = None,
) -> Search:
    """Runs trials 0 to `trials - 1` that have no result yet, and keeps the encoder of the best by validation loss.

    Killed at any point, the same call goes on: each finished trial is a file under `root` (None: `runs/searches`).
    """
    jobs = search_jobs(protocol, method, trials, epochs=epochs, keep=True, root=root)
    drop_others = keeping_best(jobs)

    def finished(job: FitJob, result: dict[str, Any]) -> None:
        drop_others(job, result)
        if on_trial:
            on_trial(result)

    with worker_pool(workers, device, ray) as pool:
        run_jobs(jobs, pool, finished)
        searched = collect(jobs)
        if isinstance(method, Method) and not (searched.encoder_directory / "encoder.json").exists():
            # A search of more trials had removed it: fit it again, to the end.
            again = replace(jobs[searched.best], compared_with=())
            Path(again.out).unlink()
            run_jobs([again], pool)
            searched = collect(jobs)
    return searched


def keeping_best(jobs: list[FitJob]) -> Callable[[FitJob, dict[str, Any]], None]:
    """For `run_jobs`: removes the encoder of every trial that is not its method's best so far by validation loss."""
    best: dict[str, tuple[float, str]] = {}
    for job in jobs:  # of earlier calls, whose encoder may lie there already
        if result := read_result(job.out):
            best[job.method] = min(best.get(job.method, (math.inf, "")), (validation_loss(result), job.out))

    def finished(job: FitJob, result: dict[str, Any]) -> None:
        result_key, before = (validation_loss(result), job.out), best.get(job.method, (math.inf, ""))
        best[job.method] = min(result_key, before)
        worse = max(result_key, before)
        if result_key != before and worse[1]:
            shutil.rmtree(Path(worse[1]).with_suffix(""), ignore_errors=True)

    return finished


def collect(jobs: list[FitJob]) -> Search:
    """The results of finished jobs of one search."""
    results = [read_result(job.out) for job in jobs]
    losses = [math.inf if result is None else validation_loss(result) for result in results]
    if not np.isfinite(losses).any():
        raise WeightsearchError(f"every trial of {jobs[0].method} diverged; give it more --trials")
    return Search(Path(jobs[0].out).parent, tuple(result or {} for result in results), int(np.argmin(losses)))


def validation_loss(result: dict[str, Any]) -> float:
    """Infinite for a trial that diverged."""
    return result["validation"]["mse"] if result.get("validation") else math.inf
