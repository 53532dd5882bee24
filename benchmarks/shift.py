"""What an index predicts of networks that another trainer made, and how often its intervals hold the truth.

    python benchmarks/shift.py [--zoos runs/zoos] [--indexes runs/shift] [--seeds 5]

Builds 300 runs of V1 on USPS, and 60 runs of each of four other trainers: images standardised by mean and deviation,
uniform initialisers, batches of 64 with momentum, and all of these together; goes on with what is there. Then trains an
index by `invariant` of the first zoo for each seed of the split, or takes the one that is there, calibrates its
interval, with a width for each third of accuracies and with one width for all, and asks it about the others. Writes
benchmarks/results/shift.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch import build_zoo, train
from weightsearch.encoders import load_encoder
from weightsearch.metrics import score
from weightsearch.training.represent import represent_zoo
from weightsearch.uncertainty.conformal import calibrate, thirds
from weightsearch.zoo.store import Zoo

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "shift.json"
UNIFORM = 'initializer = ["xavier-uniform", "he-uniform"]\n'
TRAINERS = {
    "standardised images": 'scaling = "standard"\n',
    "uniform initialisers": UNIFORM,
    "batches of 64, momentum .9": "batch_size = 64\nmomentum = 0.9\n",
    "all of these, batches of 128": f'scaling = "standard"\nbatch_size = 128\nmomentum = 0.9\n{UNIFORM}',
}


def build(folder: Path) -> dict[str, Zoo]:
    """By name; the first is the one that indexes are trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    zoos = {}
    for number, (name, recipes) in enumerate({"the zoo's own": "", **TRAINERS}.items()):
        path = folder / f"usps-v1-trainer-{number}"
        (folder / f"{path.name}.toml").write_text(recipes)
        build_zoo(
            out=path, dataset="usps", preset="v1", runs=60 if number else 300, seed=5 if number else 0,
            recipes=folder / f"{path.name}.toml",
        )  # fmt: skip
        zoos[name] = Zoo.open(path)
    return zoos


def measure(zoos: dict[str, Zoo], index: Path, seed: int) -> dict[str, dict[str, float]]:
    """An index of the first zoo, asked about its own test runs and about all runs of the others."""
    home, *_ = zoos.values()
    if not index.exists():
        train(home.path, index, method="invariant", examples=0, seed=seed)
    directory = index / home.architecture.fingerprint
    encoder, split = load_encoder(directory), json.loads((directory / "encoder.json").read_text())["split"]
    table = home.table()
    aside, learned = (np.flatnonzero(np.isin(table.run, split[part])) for part in ("calibration", "train"))
    predicted = represent_zoo(home, encoder, aside, layers=False).predicted
    of_thirds, of_all = (
        calibrate(predicted, table.test_accuracy[aside], table.run[aside], edges=edges, seed=seed)
        for edges in (thirds(table.test_accuracy[learned]), ())
    )
    measured = {}
    for name, zoo in zoos.items():
        table = zoo.table()
        asked = np.isfinite(table.test_accuracy)
        if zoo is home:
            asked &= np.isin(table.run, split["test"])
        positions = np.flatnonzero(asked)
        truth, runs = table.test_accuracy[positions], table.run[positions]
        predicted = represent_zoo(zoo, encoder, positions, layers=False).predicted
        scores = asdict(score(predicted, truth))
        measured[name] = {
            "checkpoints": len(positions),
            "r2": scores["r2"],
            "tau": scores["tau"],
            "bias": float(np.mean(predicted - truth)),
        }
        for suffix, calibrated in (("", of_thirds), ("_of_one_width", of_all)):
            low, high = calibrated.interval(predicted)
            inside = (low <= truth) & (truth <= high)
            measured[name] |= {
                f"coverage{suffix}": float(np.mean([inside[runs == run].mean() for run in np.unique(runs)])),
                f"width{suffix}": float(np.mean(high - low)),
            }
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", type=Path, default=ROOT / "runs" / "zoos")
    parser.add_argument("--indexes", type=Path, default=ROOT / "runs" / "shift")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    zoos = build(options.zoos)
    options.indexes.mkdir(parents=True, exist_ok=True)
    by_seed = [measure(zoos, options.indexes / f"seed-{seed}", seed) for seed in range(options.seeds)]
    result: dict[str, Any] = {"seeds": options.seeds, "trainers": {}}
    for name in zoos:
        values = {key: [seed[name][key] for seed in by_seed] for key in by_seed[0][name]}
        result["trainers"][name] = {key: round(float(np.mean(of_seeds)), 4) for key, of_seeds in values.items()}
        for suffix in ("", "_of_one_width"):
            coverages = [round(value, 3) for value in values[f"coverage{suffix}"]]
            result["trainers"][name][f"coverages{suffix}"] = coverages
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
