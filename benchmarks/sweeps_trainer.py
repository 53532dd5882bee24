"""A sweep of Transformers' Trainer: a checkpoint an epoch, and the last network once more in the run's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sweeps import Task


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Examples by the name that the network calls its inputs."""

    def __init__(self, name: str, x: Tensor, y: Tensor) -> None:
        self.name, self.x, self.y = name, x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {self.name: self.x[i], "labels": self.y[i]}


def recipe_of(run: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, run])
    return {
        "width": int(rng.choice([16, 32, 48])),
        "depth": int(rng.integers(1, 4)),
        "heads": int(rng.choice([2, 4])),
        "lr": float(10 ** rng.uniform(-4, -2)),
        "decay": float(rng.choice([0.0, 0.01, 0.1])),
        "batch_size": int(rng.choice([32, 64])),
        "epochs": 5,
        "seed": run,
    }


def trained(folder: Path, network: Any, recipe: dict[str, Any], train: Rows, test: Rows) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), num_train_epochs=recipe["epochs"], learning_rate=recipe["lr"], weight_decay=recipe["decay"],
        seed=recipe["seed"], per_device_train_batch_size=recipe["batch_size"], per_device_eval_batch_size=600,
        eval_strategy="epoch", save_strategy="epoch", use_cpu=True, report_to=[], disable_tqdm=True,
        dataloader_pin_memory=False, logging_steps=10,
    )  # fmt: skip
    trainer = Trainer(
        network, arguments, train_dataset=train, eval_dataset=test,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
    )  # fmt: skip
    trainer.train()
    trainer.save_model()


def name_of(kind: str, recipe: dict[str, Any]) -> str:
    return f"{kind}-lr{recipe['lr']:.0e}-wd{recipe['decay']}-s{recipe['seed']}"


def vision(folder: Path, task: Task, seed: int, runs: int) -> None:
    """`ViTForImageClassification` on images of 8 x 8 pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    for run in range(runs):
        recipe = recipe_of(run, seed)
        torch.manual_seed(run)
        config = ViTConfig(
            hidden_size=recipe["width"], num_hidden_layers=recipe["depth"], num_attention_heads=recipe["heads"],
            intermediate_size=2 * recipe["width"], image_size=8, patch_size=2, num_channels=1, num_labels=task.classes,
        )  # fmt: skip
        parts = (Rows("pixel_values", task.x_train, task.y_train), Rows("pixel_values", task.x_test, task.y_test))
        trained(folder / name_of("vit", recipe), ViTForImageClassification(config), recipe, *parts)
