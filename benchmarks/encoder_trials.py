"""What was tried for the `invariant` encoder, and what it gave: on runs that the test part does not hold.

Cross-validation over the runs of training and validation parts; the test part is never looked at. An eighth of each
fold's training runs chooses the epoch. Resumes: each (zoo, variant, fold) is kept in the result file.

    python benchmarks/encoder_trials.py runs/zoos/mnist-v1 runs/zoos/fashion-mnist-v1
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from weightsearch.encoders import invariant
from weightsearch.evaluation.retrieval import with_noise
from weightsearch.files import plain, write_whole
from weightsearch.metrics import score
from weightsearch.training.baselines import TreeSettings, baseline_features, fit_baseline
from weightsearch.training.data import activation_codes
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.training.represent import represent_zoo
from weightsearch.types import Baseline, Method
from weightsearch.zoo.splits import Split, make_split
from weightsearch.zoo.store import Zoo

RESULTS = Path(__file__).parent / "results"
FOLDS = 4
COLUMNS = ("r2", "tau", "good@10", "bad@10", "noise", "kept")

# What differs from the default, as configuration, settings and what is switched off.
VARIANTS: dict[str, tuple[Method | Baseline, dict[str, Any], dict[str, Any], str]] = {
    "trees on 56 statistics": (Baseline.STATISTICS_TREES, {}, {}, ""),
    "MLP on 56 statistics": (Method.STATISTICS, {}, {}, ""),
    "invariant": (Method.INVARIANT, {}, {}, ""),
    "patches instead of images": (Method.INVARIANT, {"images": False, "probes": 16}, {}, ""),
    "16 images": (Method.INVARIANT, {"probes": 16}, {}, ""),
    "64 images": (Method.INVARIANT, {"probes": 64}, {}, ""),
    "without probes": (Method.INVARIANT, {"probes": 0}, {}, ""),
    "without shares of classes": (Method.INVARIANT, {}, {}, "shares"),
    "without canonical scale and sign": (Method.INVARIANT, {}, {}, "canonical"),
    "without summaries": (Method.INVARIANT, {}, {}, "summaries"),
    "1 hidden layer": (Method.INVARIANT, {"hidden_layers": 1}, {}, ""),
    "embedding of 32": (Method.INVARIANT, {"embedding_size": 32}, {}, ""),
    "dropout .3": (Method.INVARIANT, {"dropout": 0.3}, {}, ""),
    "no input noise": (Method.INVARIANT, {"input_noise": 0.0}, {}, ""),
    "input noise .2": (Method.INVARIANT, {"input_noise": 0.2}, {}, ""),
    "20 epochs": (Method.INVARIANT, {}, {"epochs": 20}, ""),
    "60 epochs": (Method.INVARIANT, {}, {"epochs": 60}, ""),
}


def folds(zoo: Zoo) -> list[Split]:
    """The runs outside the test part, dealt into `FOLDS` that judge in turn."""
    table, parts = zoo.table(), make_split(zoo.table(), seed=0)
    positions = np.sort(np.concatenate([parts.train, parts.validation]))
    runs = np.random.default_rng(1).permutation(np.unique(table.run[positions]))
    made = []
    for judged in np.array_split(runs, FOLDS):
        rest = np.setdiff1d(runs, judged)
        chooses = np.random.default_rng(5).permutation(rest)[: max(8, len(rest) // 8)]
        part = [np.isin(table.run[positions], one) for one in (np.setdiff1d(rest, chooses), chooses, judged)]
        made.append(Split(*(positions[one] for one in part)))
    return made


def judge(zoo: Zoo, split: Split, variant: str) -> dict[str, float]:
    method, config, settings, off = VARIANTS[variant]
    truth = zoo.table().test_accuracy
    if isinstance(method, Baseline):
        features = baseline_features(zoo, method, np.arange(len(truth)))
        fitted = fit_baseline(method, features, truth, split, TreeSettings())
        found = score(fitted.predict(features[split.test]), truth[split.test])
        return {"r2": found.r2, "tau": found.tau}
    usual, how = DEFAULTS[method]

    def unchanged(weights: torch.Tensor, *_: Any) -> torch.Tensor:
        return weights

    def nothing(encoder: invariant.Invariant, weights: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(weights), encoder.summary_width)

    def no_shares(outputs: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(outputs)

    with (
        patch.object(invariant, "shares_of_classes", no_shares if off == "shares" else invariant.shares_of_classes),
        patch.object(invariant, "canonical", unchanged if off == "canonical" else invariant.canonical),
        patch.object(
            invariant.Invariant, "_summaries", nothing if off == "summaries" else invariant.Invariant._summaries
        ),
    ):
        encoder = fit(zoo, split, replace(usual, **config), replace(how, **settings)).encoder
        index = represent_zoo(zoo, encoder, split.train, layers=False).embedding
        held_out = represent_zoo(zoo, encoder, split.test, layers=False)
        queries, predicted = held_out.embedding, held_out.predicted
        noisy = with_noise(zoo.weights(split.test), zoo.architecture, np.random.default_rng(0))
        moved, _ = encoder.embed(torch.from_numpy(noisy), activation_codes(zoo.table())[split.test])
    found = score(predicted, truth[split.test])
    near = nearest(queries, index)
    low, high = np.quantile(truth[split.train], [0.25, 0.75])
    values, own = truth[split.train][near], truth[split.test]
    apart = np.median(np.linalg.norm(queries[:300, None] - index[None, :300], axis=2))
    after = nearest(moved.numpy(), index)
    return {
        "r2": found.r2,
        "tau": found.tau,
        "good@10": float((values >= high).mean(axis=1)[own >= high].mean()),
        "bad@10": float((values <= low).mean(axis=1)[own <= low].mean()),
        "noise": float((np.linalg.norm(moved.numpy() - queries, axis=1) / apart).mean()),
        "kept": float(np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(near, after, strict=True)])),
    }


def nearest(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Positions of the ten nearest by cosine `(n, 10)`."""
    unit = index / np.linalg.norm(index, axis=1, keepdims=True)
    return np.argsort(-queries @ unit.T, axis=1)[:, :10]


def markdown(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    lines = ["# What was tried for `invariant`", "", __doc__.split("\n\n")[1].replace("\n", " "), ""]
    lines += [
        "Noise: how far weight noise of 1 % of each layer's norm moves the embedding, in median distances between "
        "networks; kept: the share of the ten neighbours that stay.",
    ]
    for zoo, variants in results.items():
        lines += ["", f"## {zoo}", "", f"| | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
        for variant, found in variants.items():
            means = [np.mean([one[column] for one in found]) if column in found[0] else None for column in COLUMNS]
            lines.append(f"| {variant} | {' | '.join('' if mean is None else f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "encoder_trials.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    for path in options.zoos:
        zoo = Zoo.open(path)
        splits = folds(zoo)
        for variant in VARIANTS:
            found = results.setdefault(path.name, {}).setdefault(variant, [])
            for split in splits[len(found) :]:
                found.append(judge(zoo, split, variant))
                write_whole(options.out, json.dumps(plain(results), indent=1) + "\n")
                write_whole(options.out.with_suffix(".md"), markdown(results))
                print(path.name, variant, found[-1], flush=True)


if __name__ == "__main__":
    main()
