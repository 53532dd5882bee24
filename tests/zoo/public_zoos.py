"""Folders as public zoos and people's sweeps have them, and how an imported zoo is checked."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.tensors import assert_close
from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.zoo.import_zoo import ImportSummary, Layout, import_zoo
from weightsearch.zoo.store import Zoo

IMAGES = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
        )


def assert_runs_like(zoo: Zoo, position: int, seed: int) -> None:
    """The zoo's checkpoint, rebuilt under its own names, answers as the network it was made of."""
    rebuilt = network(seed=1000)
    arrays = to_state_dict(zoo.weights([position])[0], zoo.architecture)
    rebuilt.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    assert_close(rebuilt(IMAGES), network(seed)(IMAGES), rtol=0, atol=0)


def positions(zoo: Zoo) -> dict[tuple[str, int], int]:
    """(run's name, epoch) -> position."""
    table = zoo.table()
    return {(table.names[run], epoch): i for i, (run, epoch) in enumerate(zip(table.run, table.epoch, strict=True))}


def imported(folder: Path, tmp_path: Path, layout: Layout | None = None, **options: Any) -> tuple[Zoo, ImportSummary]:
    summary = import_zoo(folder, tmp_path / "zoo", layout=layout, quiet=True, **options)
    return Zoo.open(summary.path), summary


CONFIG = {
    "config.activation": ["relu", "tanh"],
    "config.dataset": ["svhn_cropped", "svhn_cropped"],
    "config.dropout": [0.0, 0.25],
    "config.l2reg": [1e-4, 1e-8],
    "config.learning_rate": [0.01, 0.002],
    "config.optimizer": ["adam", "sgd"],
    "config.random_seed": [42, 42],
    "config.w_init": ["glorot_normal", "RandomNormal"],
}


STEPS = [0, 1, 86]


def write_layout(folder: Path, filters: int) -> dict[str, tuple[int, ...]]:
    """The Small CNN Zoo's `layout.csv`; returns the variables' shapes in the order of a row's values."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, inputs in enumerate((1, filters, filters)):
        name = f"sequential/conv2d{f'_{i}' if i else ''}"
        shapes |= {f"{name}/bias:0": (filters,), f"{name}/kernel:0": (3, 3, inputs, filters)}
    shapes |= {"sequential/dense/bias:0": (10,), "sequential/dense/kernel:0": (filters, 10)}
    start = 0
    with (folder / "layout.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["varname", "start_idx", "end_idx", "shape", "size"])
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            writer.writerow([name, start, start + size, str(shape), size])
            start += size
    return shapes


def write_small_cnn_zoo(folder: Path, filters: int = 16, broken: int | None = None) -> list[dict[str, np.ndarray]]:
    """Two runs of three checkpoints, rows shuffled as nobody promised an order; returns each row's variables."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = write_layout(folder, filters)
    rows = [{name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()} for _ in range(6)]
    if broken is not None:
        rows[broken]["sequential/dense/bias:0"][3] = np.nan
    np.save(folder / "weights.npy", np.stack([np.concatenate([v.ravel() for v in row.values()]) for row in rows]))
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["", *CONFIG, "modeldir", "step", "test_accuracy", "test_loss", "train_accuracy", "train_loss", "laststep"]
        )
        for i, (step, run) in enumerate((step, run) for step in STEPS for run in (0, 1)):
            config = [values[run] for values in CONFIG.values()]
            metrics = [i / 10, i + 0.25, i / 20, i + 0.5]
            writer.writerow([i, *config, f"/cns/zoo/{run}/model", step, *metrics, step == 86])
    return rows


def write_ray_zoo(folder: Path, *, per_cent: bool, key: str, runs: int = 2, pad: str = "06d") -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"trainset": 1}, folder / "dataset.pt")
    scale = 100 if per_cent else 1
    for run in range(runs):
        trial = folder / f"NN_tune_trainable_0000{run}_seed={run}"
        trial.mkdir()
        settings = {"model::nlin": "tanh", "optim::lr": 0.003, "optim::optimizer": "adam", "seed": run, "cuda": True}
        (trial / "params.json").write_text(json.dumps(settings))
        (trial / "progress.csv").write_text("epoch\n")
        lines = []
        for epoch in range(3):
            accuracy = float("nan") if (run, epoch) == (1, 1) else (0.005 if epoch == 0 else 0.3 * epoch) * scale
            row = {key: epoch, "train_loss": -999 if epoch == 0 else 1.5, "test_loss": 2.5, "test_acc": accuracy}
            lines.append(json.dumps({**row, "config": settings, "time_total_s": 3.5}))
            kept = trial / f"checkpoint_{epoch:{pad}}"
            kept.mkdir()
            torch.save(network(10 * run + epoch).state_dict(), kept / "checkpoints")
            torch.save({"state": {}}, kept / "optimizer")
        (trial / "result.json").write_text("\n".join(lines) + '\n{"train_loss": 1.')  # killed while it wrote


def write_sweep(folder: Path, runs: int = 3, epochs: int = 2) -> None:
    for run in range(runs):
        (folder / f"lr-{run}").mkdir(parents=True)
        for epoch in range(epochs):
            content = {
                "model": network(10 * run + epoch).state_dict(),
                "val_acc": 10.0 * run + epoch,
                "hparams": {"lr": run},
            }
            torch.save(content, folder / f"lr-{run}" / f"epoch_{epoch}.ckpt")
