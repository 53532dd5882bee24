"""Baselines printed beside every encoder: boosted trees on weight statistics or on the recipe alone, and the mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from weightsearch.encoders import EncoderConfig, build_encoder
from weightsearch.metrics import Prediction, score
from weightsearch.types import Baseline, Method
from weightsearch.zoo.splits import Split
from weightsearch.zoo.store import CheckpointTable, Zoo


@dataclass(frozen=True)
class TreeSettings:
    """LightGBM's main settings; the number of trees is found on the validation part."""

    learning_rate: float = 0.05
    leaves: int = 31
    leaf_checkpoints: int = 10  # fewest checkpoints in a leaf
    feature_share: float = 0.7  # of the features, drawn for each tree
    row_share: float = 0.8  # of the checkpoints, drawn for each tree
    l2: float = 1.0
    trees: int = 3000  # at most
    patience: int = 100


@dataclass(frozen=True)
class BaselineFit:
    """A fitted baseline. `parameters` counts the trees' split thresholds and leaf values."""

    validation: Prediction
    parameters: int
    predict: Callable[[np.ndarray], np.ndarray]  # features (n, F) -> (n,)
    trees: str = ""  # as LightGBM writes them; see `load_trees`


def baseline_features(zoo: Zoo, baseline: Baseline, positions: np.ndarray) -> np.ndarray:
    """Features `(len(zoo.table()), F)` float64; only the rows at `positions` are filled."""
    table = zoo.table()
    match baseline:
        case Baseline.STATISTICS_TREES:
            encoder = build_encoder(zoo.architecture, EncoderConfig(Method.STATISTICS), torch.Generator())
            features = np.zeros((len(table), encoder.features_bytes // 4))
            for block in np.array_split(positions, max(1, len(positions) * zoo.architecture.size // 10_000_000)):
                features[block] = encoder.features(torch.from_numpy(zoo.weights(block))).numpy()
            zoo.release()
            return features
        case Baseline.HYPERPARAMETERS:
            return recipe_features(table)
        case Baseline.MEAN:
            return np.zeros((len(table), 1))


def recipe_features(table: CheckpointTable) -> np.ndarray:
    """The recipe of each checkpoint's run, and its epoch, as numbers `(n, F)`; choices are one-hot, unknowns NaN.

    Not the seed, which would only name the run.
    """
    recipes = [table.recipes[run] for run in table.run.tolist()]
    keys = sorted({key for recipe in recipes for key in recipe} - {"seed"})
    columns = [table.epoch.astype(np.float64)]
    for key in keys:
        values = [recipe.get(key) for recipe in recipes]
        choices = sorted({value for value in values if isinstance(value, str)})
        columns += [np.array([value == choice for value in values], np.float64) for choice in choices]
        if any(isinstance(value, int | float) for value in values):
            columns.append(np.array([_number(value) for value in values]))
    return np.stack(columns, axis=1)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def fit_baseline(
    baseline: Baseline, features: np.ndarray, values: np.ndarray, split: Split, settings: TreeSettings, *, seed: int = 0
) -> BaselineFit:
    """Fits on the training part; trees are added until the validation part gets no better. One thread, by the seed."""
    train, validation = split.train, split.validation
    if baseline is Baseline.MEAN:
        mean = float(values[train].mean())
        return BaselineFit(
            score(np.full(len(validation), mean), values[validation]), 1, lambda x: np.full(len(x), mean)
        )

    import lightgbm

    options = {
        "objective": "regression",
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.leaf_checkpoints,
        "feature_fraction": settings.feature_share,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "lambda_l2": settings.l2,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "verbose": -1,
    }
    training = lightgbm.Dataset(features[train], values[train])
    booster = lightgbm.train(
        options,
        training,
        num_boost_round=settings.trees,
        valid_sets=[lightgbm.Dataset(features[validation], values[validation], reference=training)],
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False)],
    )
    trees = booster.best_iteration or booster.current_iteration()
    structure = booster.dump_model(num_iteration=trees)["tree_info"]
    parameters = sum(2 * tree["num_leaves"] - 1 for tree in structure)

    predict = load_trees(text := booster.model_to_string(num_iteration=trees))
    return BaselineFit(score(predict(features[validation]), values[validation]), parameters, predict, text)


def load_trees(text: str) -> Callable[[np.ndarray], np.ndarray]:
    """The prediction of trees that `BaselineFit.trees` holds."""
    import lightgbm

    booster = lightgbm.Booster(model_str=text)

    def predict(x: np.ndarray) -> np.ndarray:
        return np.asarray(booster.predict(x, num_threads=1))

    return predict
