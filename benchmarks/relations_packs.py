"""What packs save, and what rounding costs: two zoos and real files, beside Zstandard alone and half precision.

    python benchmarks/relations_packs.py --v2 runs/zoos/usps-v2 --wheels wheels [--runs 20]

Writes benchmarks/results/relations_packs.json. V1's checkpoints are trained here (four runs of the preset on USPS, as
float32); V2's are taken from a zoo (as float16, as it keeps them); `wheels` are those of `relations_real.py`. The plan
of `tidy` for the real files is kept as well. Accuracies are measured on USPS's test images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import relations_real
import torch
import zstandard
from safetensors.numpy import load_file, save, save_file

from weightsearch import load_dataset
from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.relations import tidy
from weightsearch.relations.pack import pack
from weightsearch.relations.rounding import rounded
from weightsearch.types import Activation
from weightsearch.zoo.recipes import PRESETS, sample
from weightsearch.zoo.store import Zoo
from weightsearch.zoo.trainer.networks import CnnShape
from weightsearch.zoo.trainer.plan import TrainingPlan
from weightsearch.zoo.trainer.population import train_population
from weightsearch.zoo.trainer.reference import BaseCnn, evaluate

RESULT = Path(__file__).parent / "results" / "relations_packs.json"
RUNS, BITS = 4, (4, 6, 8)
Final = tuple[np.ndarray, str]  # flat weights and the activation


def write(folder: Path, run: int, epoch: int, weights: np.ndarray, architecture: Any, kind: str) -> None:
    target = folder / f"run-{run:03d}" / f"epoch-{epoch:02d}.safetensors"
    target.parent.mkdir(exist_ok=True)
    tensors = to_state_dict(weights, architecture)
    save_file({name: np.ascontiguousarray(np.asarray(value), kind) for name, value in tensors.items()}, target)


def make_v1(folder: Path) -> list[Final]:
    preset = PRESETS["v1"]
    shape = CnnShape(preset.filters)
    recipes = [sample(preset.space, 1, run) for run in range(RUNS)]
    plan = TrainingPlan(20, preset.batch_size, tuple(range(1, 21)), preset.momentum)
    for checkpoint in train_population(shape, recipes, load_dataset("usps"), plan):
        for run, weights in enumerate(checkpoint.weights):
            write(folder, run, checkpoint.epoch, weights, shape.architecture, "float32")
    return [(w.copy(), str(r.activation)) for w, r in zip(checkpoint.weights, recipes, strict=True)]


def take_v2(folder: Path, path: Path, runs: int) -> list[Final]:
    zoo = Zoo.open(path)
    table = zoo.table()
    finals = []
    for run in sorted(set(table.run.tolist()))[:runs]:
        positions = np.flatnonzero(table.run == run)
        for position, weights in zip(positions, zoo.weights(positions), strict=True):
            write(folder, run, int(table.epoch[position]), weights, zoo.architecture, "float16")
        finals.append((weights.copy(), str(table.recipes[run]["activation"])))
    return finals


def sizes(folder: Path) -> dict[str, Any]:
    """Bytes of a folder's checkpoints, and what is left of them: alone, packed, as half precision."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    compress = zstandard.ZstdCompressor(level=9).compress
    with tempfile.TemporaryDirectory() as place:
        summary = pack(folder, Path(place) / "exact")
        lossy = pack(folder, Path(place) / "lossy", lossy_bits=8)
    half = {}
    if all(path.suffix == ".safetensors" for path in files):
        bytes_ = sum(len(save({n: v.astype(np.float16) for n, v in load_file(path).items()})) for path in files)
        half["float16"] = round(bytes_ / total, 4)
    return {
        "files": len(files), "bytes": total, **half,
        "zstd": round(sum(len(compress(path.read_bytes())) for path in files) / total, 4),
        "pack": round(summary.ratio, 4), "pack --lossy 8": round(lossy.ratio, 4),
        "kept whole": len(summary.left_out),
    }  # fmt: skip


def rounding(finals: list[Final], shape: CnnShape) -> dict[str, Any]:
    """Measured test accuracy of the runs' last checkpoints before and after rounding."""
    data = load_dataset("usps")
    images, labels = (torch.from_numpy(np.array(array)) for array in (data.x_test, data.y_test))

    def accuracies(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        result = []
        for weights, activation in finals:
            network = BaseCnn(shape, Activation(activation)).load_flat(weights, shape)
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.data = torch.from_numpy(change(parameter.detach().numpy()))
            result.append(evaluate(network, images, labels)[1])
        return np.array(result)

    before = accuracies(lambda values: values)
    changes: dict[str, Any] = {"networks": len(finals), "accuracy": round(float(before.mean()), 4)}
    for bits in BITS:
        after = accuracies(lambda values, bits=bits: rounded(values, bits).values().reshape(values.shape))
        change = after - before
        changes[f"{bits} bits"] = {
            "mean_change": round(float(change.mean()), 4), "worst_change": round(float(change.min()), 4)
        }  # fmt: skip
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--v2", type=Path)
    parser.add_argument("--runs", type=int, default=RUNS, help="that are taken from that zoo")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--without-v1", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        jobs: dict[str, tuple[Callable[[Path], list[Final]], int]] = {}
        if not options.without_v1:
            jobs["V1, float32"] = make_v1, PRESETS["v1"].filters
        if options.v2:
            jobs["V2, float16"] = (lambda folder: take_v2(folder, options.v2, options.runs), PRESETS["v2"].filters)
        for name, (make, filters) in jobs.items():
            folder = Path(place) / name
            folder.mkdir()
            finals = make(folder)
            result[name] = {**sizes(folder), "rounding": rounding(finals, CnnShape(filters))}
            print(name, result[name], flush=True)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
        if options.wheels:
            folder = Path(place) / "models"
            folder.mkdir()
            relations_real.files(options.wheels, folder)
            result["silero-vad and two that ship it"] = sizes(folder)
            plan = tidy.plan(folder)
            rows = [(r.bytes, r.path, r.keep, r.lost) for r in plan.removals]
            result["tidy"] = {"files": plan.files, "bytes": plan.bytes, "freed": plan.freed, "removals": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
