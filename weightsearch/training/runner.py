"""Fits as jobs: each leaves one JSON file, so that whatever is killed goes on where it was; run side by side.

On the processor each worker is a process; on a graphics card all are threads of this process, with one copy of the
features.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from weightsearch.devices import check_device
from weightsearch.encoders import Encoder, config_from_dict, load_encoder, save_encoder
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import plain, write_whole
from weightsearch.metrics import score
from weightsearch.ray_tasks import cluster
from weightsearch.training.baselines import TreeSettings, baseline_features, fit_baseline
from weightsearch.training.data import CACHE_BYTES, Features, target_values, usable_checkpoints
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import settings_from_dict
from weightsearch.training.represent import predict
from weightsearch.types import Baseline, Method, SplitBy, Target
from weightsearch.zoo.splits import Split, make_split
from weightsearch.zoo.store import Zoo

STOP_GRACE = 10  # epochs before a fit may be called below_median, and
STOP_STEPS = 200  # optimizer steps: a small zoo's epochs are short, and deep predictors start slowly
STOP_FEWEST = 4  # finished trials to compare with
CARD_WORKERS = 4  # fits at a time on a graphics card
SCORES = ("parameters", "validation", "losses", "stopped")  # of a fit, beside its `test` scores


@dataclass(frozen=True)
class SplitSpec:
    """Which split of which zoo: all that decides what a fit sees. `runs` limits the training part (None: all)."""

    zoo: str
    by: SplitBy = SplitBy.RUN
    per_run: int | None = None
    seed: int = 0
    fold: int = 0
    runs: int | None = None
    target: Target = Target()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class FitJob:
    """One fit, and the file `out` that its result is written to (a `.json`; the encoder lies in a directory beside it).

    `compared_with` are results of the same search that decide whether this fit goes on; they are finished before it
    starts. Only jobs with `score_test` look at the test part.
    """

    out: str
    protocol: SplitSpec
    method: str  # a Method or a Baseline
    config: dict[str, Any]
    settings: dict[str, Any]
    seed: int = 0
    compared_with: tuple[str, ...] = ()
    score_test: bool = False
    keep: bool = False  # the encoder
    repeats: str = ""  # result of a fit that this one would repeat: if it went to its end and was kept, it is judged


def read_result(path: str | Path) -> dict[str, Any] | None:
    """A finished job's result; None where there is none, or a damaged one."""
    try:
        result = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None


class Pool(NamedTuple):
    """What runs jobs; see `worker_pool`."""

    executor: Executor
    workers: int


@contextmanager
def worker_pool(workers: int | None = None, device: str = "cpu", ray: str | None = None) -> Iterator[Pool]:
    """Processes that run jobs, each in one thread; `workers` None: one per core. They start with the first job.

    On a graphics card (`device` "cuda") they are threads; `workers` None: `CARD_WORKERS`. With the address of a Ray
    cluster they are that cluster's, whose nodes have to see the zoo and the results' folder under the same paths.
    """
    if ray is not None:
        with cluster(ray, initializer=_start_worker) as executor:
            yield Pool(executor, executor.workers)
        return
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: choose at least 1")
    if check_device(device) != "cpu":
        with thread_pool(workers or CARD_WORKERS, device) as threads:
            yield threads
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or cores
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(count, context, _start_process, (os.getpid(), count)) as executor:
        try:
            yield Pool(executor, count)
        except BaseException:  # Ctrl-C included: what is unfinished is done again by the next call
            for process in list((executor._processes or {}).values()):
                process.terminate()
            raise


@contextmanager
def thread_pool(workers: int, device: str) -> Iterator[Pool]:
    """Threads of this process that run jobs on `device`."""
    global _device
    before, _device = _device, device
    _interrupted.clear()
    try:
        with ThreadPoolExecutor(workers) as executor:
            try:
                yield Pool(executor, workers)
            except BaseException:
                _interrupted.set()  # threads cannot be killed: their fits end with the epoch they are in
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        _device = before


class Job(Protocol):
    """What `run_jobs` knows of a job: the file of its result, and the files of those that must be finished before."""

    @property
    def out(self) -> str: ...

    @property
    def compared_with(self) -> tuple[str, ...]: ...


AnyJob = TypeVar("AnyJob", bound=Job)


def run_jobs(
    jobs: Sequence[AnyJob],
    pool: Pool,
    on_done: Callable[[AnyJob, dict[str, Any]], None] | None = None,
    run: Callable[[AnyJob], dict[str, Any]] | None = None,
) -> None:
    """Runs the jobs whose result is missing, by `run` (None: `run_job`). A job waits for those it is compared with.

    `on_done` is called in this process with every result, old ones first.
    """
    work: Any = run or run_job
    results = {job.out: read_result(job.out) for job in jobs}
    waiting = [job for job in jobs if results[job.out] is None]
    finished = {out for out, result in results.items() if result is not None}
    for job in jobs:
        if on_done and (result := results[job.out]) is not None:
            on_done(job, result)
    running: dict[Future[dict[str, Any]], AnyJob] = {}
    try:
        while waiting or running:
            ready = [job for job in waiting if finished.issuperset(job.compared_with)]
            for job in ready[: pool.workers - len(running)]:  # in order, so that features are made once
                waiting.remove(job)
                running[pool.executor.submit(work, job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                result = future.result()
                finished.add(job.out)
                if on_done:
                    on_done(job, result)
    except BrokenProcessPool:
        raise WeightsearchError(
            "a worker was killed, probably for want of memory: use fewer --workers and run the same command again"
        ) from None


_cache_bytes = CACHE_BYTES
_device = "cpu"
_interrupted = threading.Event()
_loading = threading.RLock()  # threads share what is kept of zoos and features


def _start_worker(beside: int | None = None) -> None:
    """Makes a process ready for jobs, with `beside` such processes on this machine (None: one per core)."""
    global _cache_bytes
    _cache_bytes = CACHE_BYTES * 3 // 2 // (beside or os.cpu_count() or 1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("weightsearch").setLevel(logging.ERROR)  # the parent has warned already


def _start_process(parent: int, beside: int) -> None:
    _start_worker(beside)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the parent was killed

    threading.Thread(target=watch, daemon=True).start()


def run_job(job: FitJob) -> dict[str, Any]:
    """Fits, and writes the result atomically. A fit that diverges is a result, too: one without scores."""
    started = time.perf_counter()
    out = Path(job.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    common = {"method": job.method, "config": job.config, "settings": job.settings, "seed": job.seed}
    try:
        with torch.cuda.stream(torch.cuda.Stream(_device)) if _device.startswith("cuda") else nullcontext():
            result = _fit_baseline(job) if job.method in set(Baseline) else _fit_encoder(job, out)
    except _Diverged as error:
        result = {"error": str(error), "validation": None, "parameters": None}
    result = {**common, **result, "seconds": time.perf_counter() - started}
    write_whole(out, json.dumps(plain(result)))
    return plain(result)


class _Diverged(WeightsearchError):
    pass


def _fit_encoder(job: FitJob, out: Path) -> dict[str, Any]:
    zoo, split = load_protocol(job.protocol)
    config, settings = config_from_dict(job.config), settings_from_dict(job.settings)
    features = features_of(job.protocol, config.method)
    target = job.protocol.target
    values = target_values(zoo.table(), target)

    def judged(encoder: Encoder) -> dict[str, Any]:
        return score(predict(encoder, features, split.test), values[split.test]).to_dict()

    earlier = read_result(job.repeats) if job.repeats else None
    if earlier and not earlier["stopped"] and (kept := Path(job.repeats).with_suffix("")).exists():
        return {key: earlier[key] for key in SCORES} | {"test": judged(load_encoder(kept))}
    curves = [
        result["losses"] for rival in job.compared_with if (result := read_result(rival)) and result.get("losses")
    ]
    grace = max(STOP_GRACE, math.ceil(STOP_STEPS * settings.batch_size / len(split.train)))
    best: list[float] = []

    def below_median(epoch: int, loss: float) -> bool:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        best.append(min([*best[-1:], loss if math.isfinite(loss) else math.inf]))
        return epoch >= grace and is_hopeless(best[-1], epoch, curves)

    progress = out.with_suffix(".partial")
    try:
        fitted = fit(
            zoo, split, config, settings, target=target, seed=job.seed, features=features,
            on_epoch=below_median, progress=progress,
        )  # fmt: skip
    except WeightsearchError as error:
        if "diverged" in str(error):
            raise _Diverged(str(error)) from error
        raise
    result = {
        "parameters": fitted.encoder.parameters_count,
        "validation": fitted.validation.to_dict(),
        "losses": list(fitted.losses),
        "stopped": fitted.stopped,
    }
    if job.score_test:
        result["test"] = judged(fitted.encoder)
    if job.keep:
        directory = out.with_suffix("")
        directory.mkdir(exist_ok=True)
        save_encoder(fitted.encoder, directory, {})
    return result


def _fit_baseline(job: FitJob) -> dict[str, Any]:
    zoo, split = load_protocol(job.protocol)
    baseline, values = Baseline(job.method), target_values(zoo.table(), job.protocol.target)
    features = _baseline_features(replace(job.protocol, runs=None), baseline)
    fitted = fit_baseline(baseline, features, values, split, TreeSettings(**job.settings), seed=job.seed)
    result: dict[str, Any] = {"parameters": fitted.parameters, "validation": fitted.validation.to_dict()}
    if job.score_test:
        result["test"] = score(fitted.predict(features[split.test]), values[split.test]).to_dict()
    return result


def is_hopeless(best: float, epoch: int, curves: Sequence[Sequence[float]]) -> bool:
    """Median stopping: whether `best`, the lowest loss until `epoch`, is above the median of the others' at that epoch.

    Those that ended earlier count with their lowest loss (Golovin et al. 2017, Google Vizier, section 3.2.2).
    """
    if len(curves) < STOP_FEWEST:
        return False
    others = [min(loss if loss is not None else math.inf for loss in curve[:epoch]) for curve in curves]
    return best > float(np.median(others))


@lru_cache(maxsize=1)
def _open(zoo: str, target: Target) -> tuple[Zoo, np.ndarray]:
    opened = Zoo.open(zoo)
    return opened, usable_checkpoints(opened, target)


def load_protocol(protocol: SplitSpec) -> tuple[Zoo, Split]:
    """The zoo and its split."""
    with _loading:
        return _load_protocol(protocol)


@lru_cache(maxsize=1)
def _load_protocol(protocol: SplitSpec) -> tuple[Zoo, Split]:
    zoo, usable = _open(protocol.zoo, protocol.target)
    table = zoo.table()
    split = make_split(
        table, by=protocol.by, per_run=protocol.per_run, seed=protocol.seed, fold=protocol.fold, usable=usable
    )
    if protocol.runs is not None:
        split = split.limited(table, protocol.runs, seed=protocol.seed)
    return zoo, split


def features_of(protocol: SplitSpec, method: Method) -> Features:
    """Of all three parts, on the workers' device."""
    with _loading:
        return _features_of(protocol, method, _device)


@lru_cache(maxsize=1)  # trials of one method follow one another, and features can be large
def _features_of(protocol: SplitSpec, method: Method, device: str) -> Features:
    zoo, split = load_protocol(protocol)
    positions = np.concatenate([split.train, split.validation, split.test])
    features = Features(zoo, method, split.train, positions, _cache_bytes, device)
    if features.device.type == "cuda":
        torch.cuda.synchronize(features.device)  # other threads' streams use them next
    return features


@lru_cache(maxsize=2)
def _baseline_features(protocol: SplitSpec, baseline: Baseline) -> np.ndarray:
    zoo, split = load_protocol(protocol)
    return baseline_features(zoo, baseline, np.sort(np.concatenate(list(split.parts.values()))))
