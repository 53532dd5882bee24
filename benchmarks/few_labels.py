"""What three, five and ten labelled runs of a sweep make of the shipped encoder, beside the mean and a recipe forest.

    python benchmarks/sweeps.py runs/sweeps
    python benchmarks/few_labels.py runs/sweeps --out benchmarks/results/few_labels.json

Each sweep is imported as it lies there, and asked with the encoder that comes with the package. Runs are drawn to be
labelled, and all is judged on the other runs; the medians are over `DRAWS` draws.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from weightsearch import import_zoo
from weightsearch.checkpoints.discovery import Sources
from weightsearch.encoders.universal.encoder import UniversalEncoder
from weightsearch.metrics import score
from weightsearch.training.adapt import MEAN, RECIPE, TREES, adapt
from weightsearch.training.baselines import recipe_features
from weightsearch.training.train_universal import shipped_encoder
from weightsearch.training.universal import describe_zoo_networks
from weightsearch.zoo.store import Zoo

COUNTS = (3, 5, 10)
DRAWS = 10


def scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    scored = score(predicted, truth)
    return {"r2": round(scored.r2, 3), "tau": round(scored.tau, 3), "mae": round(scored.mae, 4), "n": scored.count}


def opened(folder: Path, scratch: Path) -> Zoo:
    """A sweep as a zoo: one that was built here is one already."""
    if (folder / "zoo.json").is_file():
        return Zoo.open(folder)
    table = folder.parent / f"{folder.name}.csv"
    sources = Sources.make(metadata=table, key="file") if table.is_file() else None
    import_zoo(folder, scratch / folder.name, sources=sources, quiet=True)
    return Zoo.open(scratch / folder.name)


def few_labels(encoder: UniversalEncoder, zoo: Zoo) -> dict[str, object]:
    """A sweep from elsewhere: no label, then some labelled runs, judged on the other runs."""
    table = zoo.table()
    usable = np.flatnonzero(np.isfinite(table.test_accuracy))
    known = encoder.know(describe_zoo_networks(zoo, usable))
    values, run = table.test_accuracy[usable], table.run[usable]
    recipe = recipe_features(table)[usable]
    runs = np.unique(run)
    result: dict[str, object] = {
        "runs": len(runs),
        "checkpoints": len(usable),
        "architectures": len(zoo.architectures),
        "flagged": round(float(np.mean(known.strangeness > 1)), 3),
        "no label": scores(known.predicted, values),
        "epoch alone, tau": scores(table.epoch[usable].astype(float), values)["tau"],
    }
    for count in COUNTS:
        if count > len(runs) - 2:
            continue
        drawn: dict[str, list[float]] = {"calibrated": [], MEAN: [], RECIPE: [], "tau": []}
        for seed in range(DRAWS):
            labelled = np.random.default_rng([seed, count]).permutation(runs)[:count]
            asked = ~np.isin(run, labelled)
            adapted = adapt(known.predicted, known.chance, recipe, np.where(asked, np.nan, values), run, seed=seed)
            forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.6, random_state=seed)
            forest.fit(np.nan_to_num(recipe[~asked], nan=-1), values[~asked])
            spread = np.sum((values[asked] - values[asked].mean()) ** 2)
            predictions = {
                "calibrated": adapted.predicted[asked],
                MEAN: np.full(int(asked.sum()), values[~asked].mean()),
                RECIPE: forest.predict(np.nan_to_num(recipe[asked], nan=-1)),
            }
            for name, predicted in predictions.items():
                drawn[name].append(float(1 - np.sum((predicted - values[asked]) ** 2) / spread))
            drawn["tau"].append(scores(predictions["calibrated"], values[asked])["tau"])
        result[f"{count} labelled runs"] = {name: round(float(np.median(each)), 3) for name, each in drawn.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    encoder = shipped_encoder()
    results: dict[str, object] = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for folder in sorted(path for path in given.sweeps.iterdir() if path.is_dir()):
            if folder.name in results:
                continue
            results[folder.name] = few_labels(encoder, opened(folder, Path(scratch)))
            print(folder.name, json.dumps(results[folder.name]), flush=True)
            given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
