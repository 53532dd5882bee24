"""Population training trades no accuracy: the same recipes one network at a time with torch.optim, side by side.

    python benchmarks/zoo_accuracy.py   # 64 recipes of the preset v1 on USPS, 20 epochs; about two minutes

Initial weights, training subsets and batches are the same on both sides; dropout masks are not, and rounding differs,
so single runs differ. Writes benchmarks/results/zoo_accuracy.json: the mean and spread of the difference in final test
accuracy (population minus one at a time), and a paired t-test. The USPS files are found in $WEIGHTSEARCH_DATA.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_rel

from weightsearch import load_dataset
from weightsearch.zoo.recipes import PRESETS, Recipe, sample
from weightsearch.zoo.trainer.networks import CnnShape
from weightsearch.zoo.trainer.plan import TrainingPlan
from weightsearch.zoo.trainer.population import train_population
from weightsearch.zoo.trainer.reference import train_one

RESULT = Path(__file__).parent / "results" / "zoo_accuracy.json"
RECIPES, EPOCHS, SEED = 64, 20, 1
GROUP = 8


def last_accuracy(together: bool, recipes: list[Recipe]) -> np.ndarray:
    """Final test accuracies `(len(recipes),)`."""
    torch.set_num_threads(1)
    preset, data, shape = PRESETS["v1"], load_dataset("usps"), CnnShape(PRESETS["v1"].filters)
    plan = TrainingPlan(EPOCHS, preset.batch_size, (EPOCHS,), preset.momentum)
    if together:
        (checkpoint,) = train_population(shape, recipes, data, plan)
        return checkpoint.test_accuracy
    return np.concatenate([next(iter(train_one(shape, recipe, data, plan))).test_accuracy for recipe in recipes])


def main() -> None:
    recipes = [sample(PRESETS["v1"].space, SEED, run) for run in range(RECIPES)]
    groups = [recipes[start : start + GROUP] for start in range(0, RECIPES, GROUP)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        population, single = (
            np.concatenate(list(pool.map(partial(last_accuracy, together), groups))) for together in (True, False)
        )
    difference = population - single
    without_dropout_noise = [i for i, recipe in enumerate(recipes) if recipe.dropout < 0.1]
    result = {
        "recipes": RECIPES,
        "epochs": EPOCHS,
        "mean_accuracy_population": population.mean(),
        "mean_accuracy_one_at_a_time": single.mean(),
        "mean_difference": difference.mean(),
        "standard_error": difference.std(ddof=1) / np.sqrt(RECIPES),
        "median_absolute_difference": np.median(np.abs(difference)),
        "largest_absolute_difference": np.abs(difference).max(),
        "median_absolute_difference_dropout_below_0.1": np.median(np.abs(difference[without_dropout_noise])),
        "paired_t_test_p": ttest_rel(population, single).pvalue,
        "population": population.tolist(),
        "one_at_a_time": single.tolist(),
    }
    RESULT.write_text(json.dumps({key: _plain(value) for key, value in result.items()}, indent=1) + "\n")
    for key, value in result.items():
        if not isinstance(value, list):
            print(f"{key}: {value}")


def _plain(value: object) -> object:
    return float(value) if isinstance(value, np.floating) else value


if __name__ == "__main__":
    main()
