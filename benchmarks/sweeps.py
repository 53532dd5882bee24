"""Sweeps as people make them: small networks of one task, trained by several frameworks, with their own files.

    python benchmarks/sweeps.py runs/sweeps  # asks for accelerate, h5py, keras, lightning, timm and transformers

Each folder holds `RUNS` runs of one to three checkpoints. Nothing in them was made for weightsearch: the accuracies
stand where the framework, or its user, writes them. Images are of 8 x 8 pixels, for timm of 16 x 16.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sweeps_timm
import sweeps_trainer
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor, nn

from weightsearch import build_zoo
from weightsearch.datasets.load import load_dataset
from weightsearch.zoo.wild.train import reduced

RUNS = 24
EPOCHS = 4
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Task:
    """Inputs `(n, ...)` float32 and classes `(n,)` int64."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int


def images(name: str, count: int = 1400, side: int = 8) -> Task:
    data = reduced(load_dataset(name), side)
    x, y = data.x_train[:count], data.y_train[:count]
    mean, spread = x.mean(), x.std()
    parts = ((x - mean) / spread, y, (data.x_test[:600] - mean) / spread, data.y_test[:600])
    return Task(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts), classes=data.classes)


def table(loader: Callable[[], Any]) -> Task:
    """One of scikit-learn's tables, standardised, every third row for the test."""
    data = loader()
    x = ((data.data - data.data.mean(0)) / data.data.std(0)).astype(np.float32)
    y, test = data.target.astype(np.int64), np.arange(len(x)) % 3 == 0
    return Task(*(torch.from_numpy(part) for part in (x[~test], y[~test], x[test], y[test])), classes=int(y.max()) + 1)


def recipes(seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Random search, as in a tutorial."""
    for run in range(RUNS):
        rng = np.random.default_rng([seed, run])
        yield (
            run,
            {
                "width": int(rng.choice([8, 16, 32, 64])),
                "depth": int(rng.integers(1, 4)),
                "activation": str(rng.choice(list(ACTIVATIONS))),
                "dropout": float(rng.choice([0.0, 0.1, 0.3])),
                "lr": float(10 ** rng.uniform(-4, -1)),
                "batch_size": int(rng.choice([16, 32, 64])),
                "seed": run,
            },
        )


def mlp(recipe: dict[str, Any], task: Task) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    size = task.x_train[0].numel()
    for _ in range(recipe["depth"]):
        layers += [nn.Linear(size, recipe["width"]), ACTIVATIONS[recipe["activation"]](), nn.Dropout(recipe["dropout"])]
        size = recipe["width"]
    return nn.Sequential(*layers, nn.Linear(size, task.classes))


def cnn(recipe: dict[str, Any], task: Task) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for i in range(recipe["depth"]):
        width = recipe["width"] // 2
        layers += [nn.Conv2d(channels, width, 3, padding=1, stride=1 + (i > 0)), nn.BatchNorm2d(width)]
        layers += [ACTIVATIONS[recipe["activation"]]()]
        channels = width
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(recipe["dropout"]), nn.Linear(4 * channels, task.classes)]
    return nn.Sequential(*layers, *head)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet(nn.Module):
    """Named as in torchvision and timm."""

    def __init__(self, recipe: dict[str, Any], task: Task) -> None:
        super().__init__()
        width = max(8, recipe["width"] // 2)
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stages = recipe["depth"]
        for stage in range(self.stages):
            setattr(self, f"layer{stage + 1}", nn.Sequential(Block(width, width, 1 + (stage > 0))))
        self.fc = nn.Linear(width, task.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


Build = Callable[[dict[str, Any], Task], nn.Module]


def accuracy(network: nn.Module, task: Task) -> float:
    network.eval()
    with torch.no_grad():
        right = network(task.x_test).argmax(1) == task.y_test
    network.train()
    return float(right.float().mean())


def torch_loop(folder: Path, task: Task, build: Build, seed: int) -> None:
    """A loop of one's own: dictionaries with the accuracy in them."""
    for run, recipe in recipes(seed):
        torch.manual_seed(run)
        network = build(recipe, task)
        optimizer = torch.optim.Adam(network.parameters(), recipe["lr"])
        (folder / f"run_{run}").mkdir(parents=True)
        for epoch in range(1, EPOCHS + 1):
            for batch in torch.randperm(len(task.y_train)).split(recipe["batch_size"]):
                optimizer.zero_grad()
                F.cross_entropy(network(task.x_train[batch]), task.y_train[batch]).backward()
                optimizer.step()
            if epoch != 3:
                content = {"model": network.state_dict(), "epoch": epoch, "test_acc": accuracy(network, task)}
                torch.save({**content, "config": recipe}, folder / f"run_{run}" / f"epoch_{epoch}.pt")


def lightning(folder: Path, task: Task, build: Build, seed: int) -> None:
    """`ModelCheckpoint(save_top_k=-1)` and `CSVLogger`."""
    import logging
    import warnings

    import lightning as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader, TensorDataset

    class Module(pl.LightningModule):
        def __init__(self, **recipe: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = build(recipe, task)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), self.hparams["lr"])

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for run, recipe in recipes(seed):
        pl.seed_everything(run, verbose=False)
        trainer = pl.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=CSVLogger(folder, name="sweep", version=run),
            callbacks=[ModelCheckpoint(save_top_k=-1, monitor="val_acc", mode="max")], enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1000,
        )  # fmt: skip
        train = DataLoader(TensorDataset(task.x_train, task.y_train), 4 * recipe["batch_size"], shuffle=True)
        trainer.fit(Module(**recipe), train, DataLoader(TensorDataset(task.x_test, task.y_test), 1000))


def keras(folder: Path, task: Task, seed: int) -> None:
    """`ModelCheckpoint` with the accuracy in the files' names, and `CSVLogger`."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras as k

    x, y, x_test, y_test = (np.asarray(part) for part in (task.x_train, task.y_train, task.x_test, task.y_test))
    x, x_test = (part.transpose(0, 2, 3, 1) for part in (x, x_test))
    for run, recipe in recipes(seed):
        k.utils.set_random_seed(run)
        layers = [k.layers.Input(x.shape[1:])]
        for _ in range(recipe["depth"]):
            layers.append(k.layers.Conv2D(recipe["width"] // 2, 3, padding="same", activation=recipe["activation"]))
        layers += [k.layers.MaxPooling2D(), k.layers.Flatten(), k.layers.Dropout(recipe["dropout"])]
        network = k.Sequential([*layers, k.layers.Dense(task.classes, activation="softmax")])
        optimizer = k.optimizers.SGD(5 * recipe["lr"], 0.9)
        network.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        (folder / f"run-{run}").mkdir(parents=True)
        (folder / f"run-{run}" / "config.json").write_text(json.dumps(recipe))
        named = str(folder / f"run-{run}" / "epoch={epoch:02d}-val_accuracy={val_accuracy:.4f}.keras")
        network.fit(
            x, y, batch_size=4 * recipe["batch_size"], epochs=3, verbose=0, validation_data=(x_test, y_test),
            callbacks=[k.callbacks.ModelCheckpoint(named), k.callbacks.CSVLogger(folder / f"run-{run}" / "log.csv")],
        )  # fmt: skip


def scikit_learn(folder: Path, task: Task, seed: int) -> None:
    """`MLPClassifier`, exported as safetensors in PyTorch's layout, with a table of all runs."""
    import csv

    from sklearn.neural_network import MLPClassifier

    x, y, x_test, y_test = (np.asarray(part) for part in (task.x_train, task.y_train, task.x_test, task.y_test))
    x, x_test = (part.reshape(len(part), -1) for part in (x, x_test))
    rows = []
    folder.mkdir(parents=True)
    for run, recipe in recipes(seed):
        activation = "tanh" if recipe["activation"] == "tanh" else "relu"
        network = MLPClassifier(
            [recipe["width"]] * recipe["depth"], activation=activation, learning_rate_init=recipe["lr"],
            batch_size=recipe["batch_size"], random_state=run,
        )  # fmt: skip
        for epoch in range(1, EPOCHS + 1):
            network.partial_fit(x, y, classes=np.arange(task.classes))
            if epoch == 3:
                continue
            layers = list(zip(network.coefs_, network.intercepts_, strict=True))
            if task.classes == 2:  # one logit for two classes
                layers[-1] = tuple(np.concatenate([-part, part], -1) / 2 for part in layers[-1])
            tensors = {f"layers.{i}.weight": w.T for i, (w, _) in enumerate(layers)}
            tensors |= {f"layers.{i}.bias": b for i, (_, b) in enumerate(layers)}
            name = f"run-{run}/epoch-{epoch}.safetensors"
            (folder / name).parent.mkdir(exist_ok=True)
            save_file({key: np.ascontiguousarray(each, np.float32) for key, each in tensors.items()}, folder / name)
            rows.append({"file": name, "test_accuracy": network.score(x_test, y_test), "epoch": epoch, **recipe})
    with (folder.parent / f"{folder.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _sklearn_table(name: str) -> Task:
    import sklearn.datasets

    return table(getattr(sklearn.datasets, name))


SWEEPS: dict[str, Callable[[Path], object]] = {
    "builder v1, digits": lambda folder: build_zoo(folder, dataset="digits", runs=RUNS, epochs=12, seed=7, workers=1),
    "builder v2, digits": lambda folder: build_zoo(
        folder, dataset="digits", preset="v2", filters=24, epochs=6, runs=RUNS, seed=8, workers=1
    ),
    "torch MLP, digits": lambda folder: torch_loop(folder, images("digits"), mlp, 1),
    "torch CNN, Fashion-MNIST": lambda folder: torch_loop(folder, images("fashion-mnist"), cnn, 2),
    "torch ResNet, USPS": lambda folder: torch_loop(folder, images("usps", 1000), ResNet, 3),
    "torch MLP, wine": lambda folder: torch_loop(folder, _sklearn_table("load_wine"), mlp, 4),
    "Lightning CNN, digits": lambda folder: lightning(folder, images("digits"), cnn, 5),
    "Lightning MLP, Fashion-MNIST": lambda folder: lightning(folder, images("fashion-mnist"), mlp, 6),
    "Trainer ViT, digits": lambda folder: sweeps_trainer.vision(folder, images("digits"), 7, RUNS),
    "timm ResNet, USPS": lambda folder: sweeps_timm.timm(folder, images("usps", 1000, 16), 12, RUNS),
    "Keras CNN, USPS": lambda folder: keras(folder, images("usps"), 8),
    "scikit-learn MLP, USPS": lambda folder: scikit_learn(folder, images("usps"), 9),
    "scikit-learn MLP, breast cancer": lambda folder: scikit_learn(folder, _sklearn_table("load_breast_cancer"), 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="names of sweeps that hold this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, make in SWEEPS.items():
        folder = given.out / name.replace(", ", "-").replace(" ", "-").lower()
        if folder.exists() or (given.only and given.only not in name):
            continue
        start = time.process_time()
        make(folder)
        print(f"{name}: {time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
