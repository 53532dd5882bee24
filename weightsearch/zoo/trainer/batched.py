"""The population as batched matrix products in PyTorch: for accelerators, where one network alone is too small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from weightsearch.datasets.load import ImageDataset
from weightsearch.types import Activation
from weightsearch.zoo.recipes import Optimizer, Recipe
from weightsearch.zoo.trainer import kernels
from weightsearch.zoo.trainer.networks import CnnShape, initialize
from weightsearch.zoo.trainer.plan import (
    PopulationCheckpoint,
    TrainingPlan,
    dropout_keys,
    dropout_threshold,
    epoch_order,
    training_subset,
)
from weightsearch.zoo.trainer.tile import LANES

EVALUATION_BATCH = 512


def train_batched(
    shape: CnnShape,
    recipes: Sequence[Recipe],
    data: ImageDataset,
    plan: TrainingPlan,
    *,
    device: str,
    on_epoch: Callable[[int], None] | None = None,
) -> Iterator[PopulationCheckpoint]:
    """As train_population, on any torch device."""
    height, width = shape.spatial(*data.x_train.shape[2:])[0]
    train, test = (
        (torch.tensor(x[:, :, :height, :width], device=device), torch.tensor(y, device=device))
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
    )
    groups = []
    for fraction in sorted({recipe.train_fraction for recipe in recipes}):
        members = [i for i, recipe in enumerate(recipes) if recipe.train_fraction == fraction]
        members.sort(key=lambda i: recipes[i].optimizer)
        groups.append((members, _Group(shape, [recipes[i] for i in members], train, test, plan)))
    for epoch in range(plan.epochs + 1):
        if epoch > 0:
            for _, group in groups:
                group.train_epoch(epoch)
        if epoch in plan.checkpoint_epochs:
            weights = np.empty((len(recipes), shape.parameters), np.float32)
            metrics = np.empty((4, len(recipes)))
            for members, group in groups:
                weights[members] = group.weights.cpu().numpy()
                metrics[:, members] = group.evaluate()
            yield PopulationCheckpoint(epoch, weights, *metrics)
        if epoch > 0 and on_epoch is not None:
            on_epoch(epoch)


Split = tuple[torch.Tensor, torch.Tensor]  # images (n, channels, H, W) and labels (n,)


class _Group:
    """N runs with as many training images, so that their batches line up; sorted by optimizer."""

    def __init__(self, shape: CnnShape, recipes: list[Recipe], train: Split, test: Split, plan: TrainingPlan) -> None:
        self.shape, self.recipes, self.train, self.test, self.plan = shape, recipes, train, test, plan
        self.device = device = train[0].device
        self.subsets = [training_subset(recipe, len(train[1])) for recipe in recipes]
        self.weights = torch.tensor(np.stack([initialize(shape, recipe) for recipe in recipes]), device=device)
        self.states = torch.zeros((2, *self.weights.shape), device=device)
        self.step = 0
        self.matrices = [  # views of the flat weights, each a leaf of its own for autograd
            self.weights[:, part].unflatten(1, (layer.rows, layer.columns)).detach().requires_grad_()
            for layer, part in zip(shape.architecture.layers, shape.architecture.slices, strict=True)
        ]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]  # (N, 1)

        self.learning_rate = column([recipe.learning_rate for recipe in recipes])
        self.weight_decay = column([recipe.weight_decay for recipe in recipes])
        self.scale = column([1 / (1 - recipe.dropout) for recipe in recipes])[:, :, None]
        self.is_relu = column([recipe.activation is Activation.RELU for recipe in recipes])[:, :, None] > 0
        thresholds = [_signed(dropout_threshold(recipe.dropout)) for recipe in recipes]
        self.threshold = torch.tensor(thresholds, dtype=torch.int32, device=device)[:, None, None] ^ SIGN
        self.any_dropout = any(recipe.dropout > 0 for recipe in recipes)

    def logits(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """`(N, B, classes)` of images `(N, B, channels, H, W)`; in training with dropout's keys `(N, layers, 2)`."""
        n, b = images.shape[:2]
        x = images
        for i, matrix in enumerate(self.matrices[:-1]):
            patches = x.unfold(3, 3, 2).unfold(4, 3, 2).permute(0, 1, 3, 4, 2, 5, 6)  # (N, B, h, w, C, 3, 3)
            h, w = patches.shape[2:4]
            patches = patches.reshape(n, b * h * w, -1)
            z = torch.baddbmm(matrix[:, None, :, -1], patches, matrix[:, :, :-1].transpose(1, 2))  # (N, B*h*w, F)
            y = torch.where(self.is_relu, torch.relu(z), torch.tanh(z))
            if keys is not None and self.any_dropout:
                y = y * self.dropout(y, keys[:, i])
            x = y.unflatten(1, (b, h, w)).permute(0, 1, 4, 2, 3)  # (N, B, F, h, w)
        dense = self.matrices[-1]
        return torch.baddbmm(dense[:, None, :, -1], x.mean((3, 4)), dense[:, :, :-1].transpose(1, 2))

    def dropout(self, y: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """0 or the scale for units `(N, B*h*w, F)`, by the hash that the compiled kernels use."""
        pixels, filters = y.shape[1:]
        padded = -(-filters // LANES) * LANES
        place = torch.arange(pixels, device=self.device)[:, None] * padded + torch.arange(filters, device=self.device)
        bits = hash_bits(place.to(torch.int32), keys[:, 0, None, None], keys[:, 1, None, None])
        return (bits ^ SIGN >= self.threshold) * self.scale

    def train_epoch(self, epoch: int) -> None:
        runs = list(zip(self.recipes, self.subsets, strict=True))
        orders = torch.tensor(np.stack([epoch_order(recipe, epoch, subset) for recipe, subset in runs]))
        batches = orders.to(self.device).split(self.plan.batch_size, 1)
        keys = np.stack([dropout_keys(recipe, epoch, len(batches), self.shape.layers) for recipe in self.recipes])
        for batch, batch_keys in zip(batches, torch.tensor(keys.view(np.int32)).to(self.device).unbind(1), strict=True):
            logits = self.logits(self.train[0][batch], batch_keys)
            losses = F.cross_entropy(logits.flatten(0, 1), self.train[1][batch].flatten(), reduction="sum")
            gradients = torch.autograd.grad(losses / batch.shape[1], self.matrices)
            self.step += 1
            self.update(torch.cat([gradient.flatten(1) for gradient in gradients], 1))

    @torch.no_grad()
    def update(self, gradient: torch.Tensor) -> None:
        """One step of torch.optim's default formulas on the flat weights, L2 added to the gradient."""
        gradient.addcmul_(self.weights, self.weight_decay)
        for optimizer in Optimizer:
            rows = [i for i, recipe in enumerate(self.recipes) if recipe.optimizer is optimizer]
            if not rows:
                continue
            part = slice(rows[0], rows[-1] + 1)
            w, g, (m, v), rate = self.weights[part], gradient[part], self.states[:, part], self.learning_rate[part]
            match optimizer:
                case Optimizer.SGD:
                    m.mul_(self.plan.momentum).add_(g)
                    w.addcmul_(m, rate, value=-1)
                case Optimizer.ADAM:
                    m.lerp_(g, 0.1)
                    v.mul_(0.999).addcmul_(g, g, value=0.001)
                    root = v.sqrt().div_((1 - 0.999**self.step) ** 0.5).add_(1e-8)
                    w.addcdiv_(m * rate, root, value=-1 / (1 - 0.9**self.step))
                case Optimizer.RMSPROP:
                    v.mul_(0.99).addcmul_(g, g, value=0.01)
                    w.addcdiv_(g * rate, v.sqrt().add_(1e-8), value=-1)

    def evaluate(self) -> np.ndarray:
        """Train loss, train accuracy, test loss and test accuracy `(4, N)`."""
        n = len(self.recipes)
        subsets = torch.tensor(np.stack(self.subsets)).to(self.device)
        train = ((self.train[0][part], self.train[1][part]) for part in subsets.split(EVALUATION_BATCH, 1))
        test = (
            (x.expand(n, *x.shape), y.expand(n, *y.shape))
            for x, y in zip(*(split.split(EVALUATION_BATCH) for split in self.test), strict=True)
        )
        return np.concatenate([self._metrics(train), self._metrics(test)])

    @torch.no_grad()
    def _metrics(self, batches: Iterable[Split]) -> np.ndarray:
        """Mean loss and accuracy `(2, N)` over batches of images `(N, B, channels, H, W)` and labels `(N, B)`."""
        sums = torch.zeros((2, len(self.recipes)), device=self.device)
        count = 0
        for images, labels in batches:
            logits = self.logits(images)
            losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            sums += torch.stack([losses.sum(1), (logits.argmax(2) == labels).sum(1)])
            count += labels.shape[1]
        return (sums / count).double().cpu().numpy()


SIGN = -(2**31)  # flips the order of signed numbers to that of unsigned ones: torch computes with signed ones only


def _signed(value: int | np.integer) -> int:
    return int(np.uint32(value).view(np.int32))


M0, M1, M2 = (_signed(value) for value in (kernels.M0, kernels.M1, kernels.M2))


def hash_bits(x: torch.Tensor, key0: torch.Tensor, key1: torch.Tensor) -> torch.Tensor:
    """kernels._hash on int32, which wraps as uint32 does; a shift to the right must lose the copies of the sign."""
    x = x * M0 + key0
    x = (x ^ ((x >> 16) & 0xFFFF)) * M1
    x = x ^ key1
    x = (x ^ ((x >> 15) & 0x1FFFF)) * M2
    return x ^ ((x >> 16) & 0xFFFF)
