"""One run of the preset `wild`: torch's own layers and optimizers on one core, with four checkpoints on its way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsearch.datasets.load import ImageDataset, centre_and_spread
from weightsearch.optimizers import eager
from weightsearch.types import Scaling
from weightsearch.zoo.wild.networks import build
from weightsearch.zoo.wild.recipes import CHECKPOINTS, GROWTH, WildRecipe

SECONDS = 2.4  # about what the longest run may take of one core, evaluations not counted
FLOPS = 1.2e10  # of one core, about
MODULE_SECONDS = 2e-4  # a module costs about this much a step whatever its size, forward and backward
MOST_STEPS = 2000
MOST_TEST_IMAGES = 1000
MOST_TRAINING_IMAGES = 12_000
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class WildCheckpoint:
    """A network at one moment of a run; `number` counts from 1, and `step` is how many batches it has seen."""

    number: int
    step: int
    state: dict[str, np.ndarray]
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


def reduced(data: ImageDataset, most: int) -> ImageDataset:
    """The dataset with images that train quickly: at most `most` pixels wide, averaged over squares of 2 x 2."""
    x_train, x_test = data.x_train[:MOST_TRAINING_IMAGES], data.x_test[: 3 * MOST_TEST_IMAGES]
    while x_train.shape[2] > most:
        x_train, x_test = (
            x.reshape(len(x), 1, x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5)) for x in (x_train, x_test)
        )
    y_train, y_test = data.y_train[: len(x_train)], data.y_test[: len(x_test)]
    return ImageDataset(data.name, x_train, y_train, x_test, y_test, data.classes)


def train(recipe: WildRecipe, data: ImageDataset) -> Iterator[WildCheckpoint]:
    """Train the recipe's network on the reduced dataset; a checkpoint whose loss is not finite ends the run.

    All randomness comes from the recipe's seed; torch's global generator is left as it was.
    """
    rng = np.random.default_rng(recipe.seed)
    x_train, y_train, x_test, y_test = _images(recipe, data, rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        network = build(recipe, data.x_train.shape[2])
        steps = max(24, round(recipe.effort * _most_steps(network, x_train[: recipe.batch_size])))
        moments = {max(1, round(steps / GROWTH**k)): CHECKPOINTS - k for k in reversed(range(CHECKPOINTS))}
        optimizer = _optimizer(network, recipe)
        order, place = np.empty(0, int), 0
        for step in range(1, steps + 1):
            if place + recipe.batch_size > len(order):
                order, place = rng.permutation(max(len(y_train), recipe.batch_size)) % len(y_train), 0
            batch = torch.from_numpy(order[place : place + recipe.batch_size])
            place += recipe.batch_size
            if recipe.schedule == "cosine":
                rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
                optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            F.cross_entropy(network(x_train[batch]), y_train[batch]).backward()
            optimizer.step()
            if step in moments:
                seen = slice(0, MOST_TEST_IMAGES // 3)
                train_scores, test_scores = (
                    _evaluate(network, x_train[seen], y_train[seen]),
                    _evaluate(network, x_test, y_test),
                )
                if not np.isfinite([*train_scores, *test_scores]).all():
                    return
                state = {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}
                yield WildCheckpoint(moments[step], step, state, *train_scores, *test_scores)


def _images(recipe: WildRecipe, data: ImageDataset, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images and labels as the recipe wants them."""
    train = np.flatnonzero(data.y_train < recipe.classes)
    train = rng.permutation(train)[: max(2 * recipe.classes, int(len(train) * recipe.train_fraction))]
    test = np.flatnonzero(data.y_test < recipe.classes)[:MOST_TEST_IMAGES]
    labels = data.y_train[train].copy()
    noisy = rng.random(len(labels)) < recipe.label_noise
    labels[noisy] = rng.integers(recipe.classes, size=int(noisy.sum()))
    centre, spread = centre_and_spread(Scaling(recipe.scaling), data.x_train)
    x_train, x_test = (torch.from_numpy((x - centre) / spread) for x in (data.x_train[train], data.x_test[test]))
    return x_train.float(), torch.from_numpy(labels), x_test.float(), torch.from_numpy(data.y_test[test])


def _optimizer(network: nn.Module, recipe: WildRecipe) -> torch.optim.Optimizer:
    parameters, rate, decay = list(network.parameters()), recipe.learning_rate, recipe.weight_decay
    match recipe.optimizer:
        case "sgd":
            return eager(torch.optim.SGD)(parameters, rate, weight_decay=decay, fused=True)
        case "momentum":
            return eager(torch.optim.SGD)(parameters, rate, momentum=0.9, weight_decay=decay, fused=True)
        case "adam":
            return eager(torch.optim.Adam)(parameters, rate, weight_decay=decay, fused=True)
        case "adamw":
            return eager(torch.optim.AdamW)(parameters, rate, weight_decay=decay, fused=True)
        case "rmsprop":
            return eager(torch.optim.RMSprop)(parameters, rate, weight_decay=decay, foreach=True)
    raise ValueError(recipe.optimizer)


def _most_steps(network: nn.Module, images: Tensor) -> int:
    """From the network's size alone, so that a run is the same on any machine."""
    work: dict[str, float] = {"flops": 0.0, "modules": 0.0}

    def count(module: nn.Module, _: object, output: object) -> None:
        work["modules"] += 1
        if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(output, Tensor):
            positions = output.numel() / module.weight.shape[0]
            work["flops"] += 2 * positions * module.weight.numel()
        elif isinstance(module, nn.RNNBase):
            length = images.shape[2]
            work["flops"] += 2 * len(images) * length * sum(p.numel() for p in module.parameters())
            work["modules"] += length * module.num_layers

    hooks = [module.register_forward_hook(count) for module in network.modules() if not list(module.children())]
    with torch.no_grad():
        network.eval()
        network(images)
        network.train()
    for hook in hooks:
        hook.remove()
    return int(min(MOST_STEPS, SECONDS / (3 * work["flops"] / FLOPS + MODULE_SECONDS * work["modules"])))


@torch.no_grad()
def _evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy, with dropout off and the norms' running statistics."""
    network.eval()
    logits = torch.cat([network(batch) for batch in images.split(EVALUATION_BATCH)])
    network.train()
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
