"""What is fitted and probed in worker processes: each leaves a JSON file and arrays, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from weightsearch.encoders import Encoder, EncoderConfig, build_encoder, load_encoder, save_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.evaluation.retrieval import (
    Activations,
    Represent,
    activations_of,
    draw_queries,
    measure_retrieval,
    predict_only,
    raw_weights,
)
from weightsearch.files import plain, replacing, write_whole
from weightsearch.training.baselines import TreeSettings, baseline_features, fit_baseline, load_trees
from weightsearch.training.data import target_values
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.training.represent import represent
from weightsearch.training.runner import SplitSpec, features_of, load_protocol, read_result
from weightsearch.types import Baseline, Method
from weightsearch.zoo.splits import Split
from weightsearch.zoo.store import Zoo

FORMAT = 2  # counts changes of the code after which older results are not comparable
RAW = "raw-weights"
TREES = Baseline.STATISTICS_TREES.value
METHODS = (RAW, *(method.value for method in Method if method is not Method.FC), TREES)
SPEED_ROWS, SPEED_SECONDS = 512, 0.5


@dataclass(frozen=True)
class Task:
    """A method fitted on the training part of `protocol` and probed with its test part.

    With `fitted` (the `out` of such a task on another zoo), nothing is fitted: that one predicts this test part.
    """

    out: str
    protocol: SplitSpec
    method: str
    queries: int
    epochs: int
    fitted: str = ""
    compared_with: tuple[str, ...] = ()  # no task waits for another; what `fitted` names is finished


def fit_task(zoo: str | Path, method: str, seed: int, *, queries: int, epochs: int, root: Path) -> Task:
    """The seeds share the test part of seed 0, and deal the rest into training and validation anew."""
    protocol = SplitSpec(str(zoo), fold=seed)
    key = _key(replace(protocol, fold=0), method, queries, epochs)
    out = root / f"{Path(zoo).name}-{key}" / method / f"seed-{seed}.json"
    return Task(str(out), protocol, method, queries, epochs)


def elsewhere_task(fitted: Task, other: Task) -> Task:
    """`fitted` on the test part that `other`, of the same method and seed on another zoo, is probed with."""
    folder = Path(fitted.out)
    return replace(
        other, out=str(folder.with_name(f"{folder.stem}-on-{Path(other.out).parts[-3]}.json")), fitted=fitted.out
    )


def _key(protocol: SplitSpec, method: str, queries: int, epochs: int) -> str:
    """Ten hex digits over all that decides a result."""
    zoo, split = load_protocol(protocol)
    settings = DEFAULTS[Method(method)] if method in set(Method) else (TreeSettings(),)
    content = {
        "format": FORMAT,
        "checkpoints": hashlib.sha256("".join(zoo.table().id).encode()).hexdigest(),
        "split": split.to_dict(zoo.table()),
        "target": asdict(protocol.target),
        "settings": [asdict(part) for part in settings],
        "queries": queries,
        "epochs": epochs,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def read_arrays(task: Task) -> dict[str, np.ndarray]:
    """What `measure_retrieval` returned, and `queries`, the queries' positions."""
    with np.load(Path(task.out).with_suffix(".npz"), allow_pickle=False) as arrays:
        return dict(arrays)


def run_task(task: Task) -> dict[str, Any]:
    """Writes the arrays, then the result. A fit that diverges is a result, too: one with an `error`."""
    out = Path(task.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(1):
        try:
            result, arrays = _elsewhere(task) if task.fitted else _own(task, out)
        except WeightsearchError as error:
            if "diverged" not in str(error):
                raise
            result, arrays = {"error": str(error)}, {}
    with replacing(out.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    result = plain({"zoo": Path(task.protocol.zoo).name, "method": task.method, "seed": task.protocol.fold, **result})
    write_whole(out, json.dumps(result))
    return result


def _own(task: Task, out: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    zoo, split = load_protocol(task.protocol)
    values = target_values(zoo.table(), task.protocol.target)
    started = time.perf_counter()
    embed, parameters = _fitted(task, zoo, split, values, out)
    seconds = time.perf_counter() - started
    queries = draw_queries(split.test, task.queries, task.protocol.seed)
    arrays = measure_retrieval(zoo, task.protocol.target.quality(values), split, queries, embed, task.protocol.fold)
    cost = {
        "parameters": parameters,
        "fit_seconds": seconds if parameters else None,
        "per_second": _speed(zoo, embed) if parameters else None,
        "training_checkpoints": len(split.train),
    }
    return cost, {**arrays, "queries": queries}


def _elsewhere(task: Task) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    result = read_result(task.fitted)
    if result is None or "error" in result:
        raise WeightsearchError(f"{task.fitted}: the fit diverged")
    zoo, split = load_protocol(task.protocol)
    queries = draw_queries(split.test, task.queries, task.protocol.seed)
    directory = Path(task.fitted).with_suffix("")
    if task.method == TREES:
        embed = _of_trees(zoo, load_trees((directory / "trees.txt").read_text()))
    else:
        embed = _of_encoder(load_encoder(directory))
    return {"fitted_on": result["zoo"]}, {"predicted": predict_only(zoo, queries, embed), "queries": queries}


def _fitted(task: Task, zoo: Zoo, split: Split, values: np.ndarray, out: Path) -> tuple[Represent, int]:
    """The fitted method, kept in a directory beside `out`, and how many parameters it has."""
    directory = out.with_suffix("")
    if task.method == RAW:
        return raw_weights, 0
    directory.mkdir(exist_ok=True)
    if task.method == TREES:
        features = baseline_features(zoo, Baseline.STATISTICS_TREES, np.sort([*split.train, *split.validation]))
        trees = fit_baseline(
            Baseline.STATISTICS_TREES, features, values, split, TreeSettings(), seed=task.protocol.fold
        )
        (directory / "trees.txt").write_text(trees.trees)
        return _of_trees(zoo, trees.predict), trees.parameters
    method = Method(task.method)
    config, settings = DEFAULTS[method]
    fitted = fit(
        zoo, split, config, replace(settings, epochs=min(settings.epochs, task.epochs)),
        target=task.protocol.target, seed=task.protocol.fold, features=features_of(task.protocol, method),
        progress=out.with_suffix(".partial"),
    )  # fmt: skip
    save_encoder(fitted.encoder, directory, {})
    return _of_encoder(fitted.encoder), fitted.encoder.parameters_count


def _of_encoder(encoder: Encoder) -> Represent:
    def embed(weights: np.ndarray, activations: Activations) -> tuple[np.ndarray, np.ndarray]:
        represented = represent(encoder, weights, activations, layers=False)
        return represented.embedding, represented.predicted

    return embed


def _of_trees(zoo: Zoo, predict: Callable[[np.ndarray], np.ndarray]) -> Represent:
    statistics = build_encoder(zoo.architecture, EncoderConfig(Method.STATISTICS), torch.Generator())
    return lambda weights, _: (None, predict(statistics.features(torch.from_numpy(weights)).double().numpy()))


def _speed(zoo: Zoo, embed: Represent) -> float:
    """Checkpoints a second from memory, in one thread."""
    positions = np.arange(min(SPEED_ROWS, len(zoo.table())))
    weights, activations = zoo.weights(positions), activations_of(zoo, positions)
    embed(weights, activations)
    started, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SPEED_SECONDS:
        embed(weights, activations)
        count += len(weights)
    return count / seconds
