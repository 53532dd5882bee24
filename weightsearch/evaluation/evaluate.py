"""The whole evaluation: every method on every zoo with every seed, side by side, and its tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch import paths as runs
from weightsearch.errors import UsageError
from weightsearch.evaluation.report import markdown
from weightsearch.evaluation.scores import Judged, MetricRow, draws, plain_forecasts, prediction_elsewhere, rows_of
from weightsearch.evaluation.tasks import METHODS, RAW, TREES, Task, elsewhere_task, fit_task, read_arrays, run_task
from weightsearch.files import plain, write_whole
from weightsearch.progress import progress_bar
from weightsearch.training.data import target_values
from weightsearch.training.runner import load_protocol, read_result, run_jobs, worker_pool
from weightsearch.types import Method, Target
from weightsearch.zoo.store import Zoo

EPOCHS = 300  # at most, of a fit
QUERIES = 2000  # at most, of a zoo's test part
REFERENCES = (TREES, Method.STATISTICS.value)  # what others are compared with, pairwise
COMPARED = ("prediction.r2", "prediction.tau", "precision@10.good", "precision@10.bad", "neighbours.r2")


@dataclass(frozen=True)
class Evaluation:
    """All rows, and how they were made.

    Example:
        >>> Evaluation(rows=(), settings={'seeds': 1}).settings
        {'seeds': 1}
    """

    rows: tuple[MetricRow, ...]
    settings: dict[str, int]


def evaluate(
    zoos: Sequence[str | Path],
    out: str | Path,
    *,
    methods: Sequence[str] = METHODS,
    seeds: int = 5,
    epochs: int = EPOCHS,
    queries: int = QUERIES,
    workers: int | None = None,
    root: Path | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Measures how true each method's answers are about runs that it has not seen, and writes tables to `out`.

    Each zoo is split 70/15/15 by run. The methods are fitted with their default settings on the training part, which is
    the index, and the test part's checkpoints are the queries. The seeds share the test part, which no choice of
    settings has seen, and deal the rest into training and validation anew. Every finished fit is a file under `root`
    (None: `runs/evaluations`), so that the same call goes on where it was killed, and more seeds, methods or zoos only
    cost what is new. Writes `evaluation.json` and `evaluation.md`.

    Args:
        methods: encoders by name, `raw-weights` and `statistics-trees`.
        queries: at most this many of a test part, drawn at random.

    Example:
        >>> evaluate(['zoo'], 'evaluation', methods=('raw-weights',), seeds=1, queries=20, quiet=True).rows[0].method
        'raw-weights'
    """
    for flag, value in (("--seeds", seeds), ("--epochs", epochs), ("--queries", queries)):
        if value < 1:
            raise UsageError(f"{flag} {value}: choose at least 1")
    allowed = {*METHODS, Method.FC.value}
    if unknown := [method for method in methods if method not in allowed]:
        raise UsageError(f"--method {unknown[0]}: choose among {', '.join(sorted(allowed))}")
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; --out takes a directory")
    opened = {Path(zoo).resolve().name: Zoo.open(zoo) for zoo in zoos}
    if len(opened) < len(zoos) or not zoos or not methods:
        raise UsageError("name at least one zoo and one method, each zoo once and with a name of its own")
    settings = {"seeds": seeds, "epochs": epochs, "queries": queries}
    root = root or runs.RUNS / "evaluations"
    tasks: dict[tuple[str, str], list[Task]] = {}
    rows: list[MetricRow] = []
    kin = [(a, b) for b in opened for a in opened if a != b and _same_architecture(opened[a], opened[b])]
    foreign = [method for method in methods if method != RAW]
    total = (len(zoos) * len(methods) + len(kin) * len(foreign)) * seeds
    bar = progress_bar("evaluating", total, unit="fits", quiet=quiet)
    with worker_pool(workers) as pool, bar as advance:

        def finished(task: Task, _: dict[str, Any]) -> None:
            advance(note=f"{Path(task.protocol.zoo).name}, {task.method}")

        for name, zoo in opened.items():
            for method in methods:
                seed_tasks = [
                    fit_task(zoo.path, method, s, queries=queries, epochs=epochs, root=root) for s in range(seeds)
                ]
                tasks[name, method] = seed_tasks
            method_tasks = [task for method in methods for task in tasks[name, method]]
            run_jobs(method_tasks, pool, finished, run_task)
            rows += _zoo_rows(name, zoo, {method: tasks[name, method] for method in methods})
            _write(target, Evaluation(tuple(rows), settings))
        elsewhere = {
            (a, b, method): [elsewhere_task(*pair) for pair in zip(tasks[a, method], tasks[b, method], strict=True)]
            for a, b in kin
            for method in foreign
        }
        everything = [task for one in elsewhere.values() for task in one]
        run_jobs(everything, pool, finished, run_task)
        for (a, b, method), seed_tasks in elsewhere.items():
            rows += _elsewhere_rows(a, b, method, opened[b], seed_tasks)
    done = Evaluation(tuple(rows), settings)
    _write(target, done)
    return done


def _same_architecture(a: Zoo, b: Zoo) -> bool:
    return a.architecture.fingerprint == b.architecture.fingerprint


def _judged(zoo: Zoo) -> Judged:
    table = zoo.table()
    return Judged(target_values(table, Target()), table.run, table.epoch)


def _succeeded(tasks: Sequence[Task]) -> list[Task]:
    return [task for task in tasks if "error" not in (read_result(task.out) or {"error": "missing"})]


def _zoo_rows(name: str, zoo: Zoo, tasks: dict[str, list[Task]]) -> list[MetricRow]:
    judged, rows = _judged(zoo), []
    draws_by_seed: dict[str, dict[int, dict[str, np.ndarray]]] = {}  # method -> seed -> draws
    for method, seed_tasks in tasks.items():
        draws_by_seed[method] = {}
        for task in _succeeded(seed_tasks):
            result, seed = read_result(task.out) or {}, task.protocol.fold
            _, split = load_protocol(task.protocol)
            draws_by_seed[method][seed] = draws(read_arrays(task), judged, split.train, seed)
            for cost in ("parameters", "per_second", "fit_seconds", "training_checkpoints"):
                if result.get(cost) is not None:
                    draws_by_seed[method][seed][f"cost.{cost}"] = np.array([float(result[cost])])
    for method, by_seed in draws_by_seed.items():
        for metric in dict.fromkeys(metric for one in by_seed.values() for metric in one):
            rows += rows_of(name, method, metric, [(s, one[metric]) for s, one in by_seed.items() if metric in one])
    for task in [task for seed_tasks in tasks.values() for task in _succeeded(seed_tasks)][:1]:
        for method, one in plain_forecasts(judged, read_arrays(task)["queries"]).items():
            for metric, values in one.items():
                rows += rows_of(name, method, metric, [(0, values)])
    for method, reference in [
        (m, r) for m in draws_by_seed for r in REFERENCES if m not in REFERENCES and r in draws_by_seed
    ]:
        for metric in COMPARED:
            pairs = [
                (seed, scores[metric] - other[metric])
                for seed, scores in draws_by_seed[method].items()
                if metric in scores and metric in (other := draws_by_seed[reference].get(seed, {}))
            ]
            if pairs:
                rows += rows_of(name, method, metric, pairs, against=reference)
    return rows


def _elsewhere_rows(fitted_on: str, on: str, method: str, zoo: Zoo, tasks: list[Task]) -> list[MetricRow]:
    judged = _judged(zoo)
    predictions = [(t.protocol.fold, prediction_elsewhere(read_arrays(t), judged)) for t in _succeeded(tasks)]
    rows = []
    for metric in predictions[0][1] if predictions else ():
        rows += rows_of(fitted_on, method, metric, [(seed, one[metric]) for seed, one in predictions], on=on)
    return rows


def _write(out: Path, evaluation: Evaluation) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "version": version("weightsearch"),
        "settings": evaluation.settings,
        "rows": [asdict(row) for row in evaluation.rows],
    }
    lines = json.dumps(plain(content)).replace('{"zoo"', '\n{"zoo"')  # a row a line, so that changes can be read
    write_whole(out / "evaluation.json", lines + "\n")
    write_whole(out / "evaluation.md", markdown(evaluation.rows, evaluation.settings))
