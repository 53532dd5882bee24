"""One network at a time with torch.optim, as one would write it.

No command trains with it: it is the oracle of the tests of population training, and the baseline of its benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from weightsearch.datasets.load import ImageDataset
from weightsearch.types import Activation
from weightsearch.zoo.recipes import Optimizer, Recipe
from weightsearch.zoo.trainer.networks import CnnShape, Stream, initialize, stream
from weightsearch.zoo.trainer.plan import PopulationCheckpoint, TrainingPlan, epoch_order, training_subset

EVALUATION_BATCH = 512  # the fastest of 64 to 4096


class BaseCnn(nn.Module):
    """The base network as one would write it: what the population's kernels are tested against."""

    def __init__(self, shape: CnnShape, activation: Activation = Activation.RELU, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = shape.layers
        for i in range(1, shape.layers + 1):
            inputs = shape.channels if i == 1 else shape.filters
            self.add_module(f"conv{i}", nn.Conv2d(inputs, shape.filters, 3, stride=2))
        self.dense = nn.Linear(shape.filters, shape.classes)
        self.activation = torch.relu if activation is Activation.RELU else torch.tanh
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(B, classes)` of images `(B, channels, H, W)`."""
        x = images
        for i in range(1, self.layers + 1):
            x = self.dropout(self.activation(self.get_submodule(f"conv{i}")(x)))  # (B, filters, H', W')
        return self.dense(x.mean((2, 3)))

    def load_flat(self, weights: np.ndarray, shape: CnnShape) -> BaseCnn:
        """Take flat weights `(P,)`; returns the network itself."""
        state = {}
        architecture = shape.architecture
        for layer, matrix in zip(architecture.layers, architecture.matrices(weights), strict=True):
            state[f"{layer.name}.weight"] = torch.tensor(matrix[:, :-1]).reshape(layer.shape)
            state[f"{layer.name}.bias"] = torch.tensor(matrix[:, -1])
        self.load_state_dict(state)
        return self

    def flat(self, shape: CnnShape) -> np.ndarray:
        """The flat weights `(P,)` float32, in `Architecture.slices`' order."""
        state = self.state_dict()
        matrices = [
            torch.column_stack([state[f"{layer.name}.weight"].flatten(1), state[f"{layer.name}.bias"]])
            for layer in shape.architecture.layers
        ]
        return torch.cat([matrix.flatten() for matrix in matrices]).numpy()


def train_one(
    shape: CnnShape, recipe: Recipe, data: ImageDataset, plan: TrainingPlan
) -> Iterator[PopulationCheckpoint]:
    """What train_population does, for a single run: a checkpoint of N = 1 per checkpoint epoch.

    Initial weights and batches are the population's own; dropout draws from torch's generator instead. As fast as
    torch's own means make it on a CPU (measured): channels-last, fused optimizers, no DataLoader.
    """
    x_train, x_test = (torch.from_numpy(x).to(memory_format=torch.channels_last) for x in (data.x_train, data.x_test))
    y_train, y_test = torch.from_numpy(data.y_train), torch.from_numpy(data.y_test)
    network = BaseCnn(shape, recipe.activation, recipe.dropout).load_flat(initialize(shape, recipe), shape)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, recipe, plan)
    subset = training_subset(recipe, len(y_train))
    x_subset, y_subset = x_train[subset], y_train[subset]
    for epoch in range(plan.epochs + 1):
        if epoch > 0:
            order = torch.from_numpy(epoch_order(recipe, epoch, subset))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(stream(recipe, Stream.DROPOUT, epoch).integers(2**63)))
                train_epoch(network, optimizer, x_train, y_train, order.split(plan.batch_size))
        if epoch in plan.checkpoint_epochs:
            train = evaluate(network, x_subset, y_subset)
            test = evaluate(network, x_test, y_test)
            yield PopulationCheckpoint(epoch, network.flat(shape)[None], *(np.array([v]) for v in (*train, *test)))


def make_optimizer(network: BaseCnn, recipe: Recipe, plan: TrainingPlan) -> torch.optim.Optimizer:
    parameters, rate, decay = network.parameters(), recipe.learning_rate, recipe.weight_decay
    match recipe.optimizer:
        case Optimizer.SGD:
            return torch.optim.SGD(parameters, rate, momentum=plan.momentum, weight_decay=decay, fused=True)
        case Optimizer.ADAM:
            return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
        case Optimizer.RMSPROP:
            return torch.optim.RMSprop(parameters, rate, weight_decay=decay, foreach=True)


def train_epoch(
    network: BaseCnn,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    batches: tuple[torch.Tensor, ...],
) -> None:
    network.train()
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(network: BaseCnn, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean loss and accuracy over all images."""
    network.eval()
    loss = correct = 0.0
    for x, y in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
        logits = network(x)
        loss += F.cross_entropy(logits, y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    return loss / len(labels), correct / len(labels)
