"""The population as batched matrix products in PyTorch: for accelerators, where one network alone is too small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from weightsearch.datasets import ImageDataset
from weightsearch.zoo.networks import CnnShape, initialize
from weightsearch.zoo.population import PopulationCheckpoint, TrainingPlan, epoch_order, training_subset
from weightsearch.zoo.recipes import Activation, Optimizer, Recipe


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
    groups = []
    for fraction in sorted({recipe.train_fraction for recipe in recipes}):
        members = [i for i, recipe in enumerate(recipes) if recipe.train_fraction == fraction]
        members.sort(key=lambda i: list(Optimizer).index(recipes[i].optimizer))
        groups.append((members, Group(shape, [recipes[i] for i in members], data, plan, device)))
    for epoch in range(plan.epochs + 1):
        if epoch > 0:
            for _, group in groups:
                group.train_epoch(epoch)
        if epoch in plan.checkpoint_epochs:
            weights = np.empty((len(recipes), shape.parameters), np.float32)
            metrics = np.empty((4, len(recipes)))
            for members, group in groups:
                weights[members] = group.weights.cpu().numpy()
                metrics[:2, members] = group.evaluate_train()
                metrics[2:, members] = group.evaluate_test()
            yield PopulationCheckpoint(epoch, weights, *metrics)
        if epoch > 0 and on_epoch is not None:
            on_epoch(epoch)


class Group:
    """Runs with the same number of training images, so that their batches line up; sorted by optimizer."""

    def __init__(
        self, shape: CnnShape, recipes: list[Recipe], data: ImageDataset, plan: TrainingPlan, device: str
    ) -> None:
        self.shape, self.recipes, self.plan, self.device = shape, recipes, plan, device
        self.images = torch.tensor(data.x_train, device=device)
        self.labels = torch.tensor(data.y_train, device=device)
        self.test_images = torch.tensor(data.x_test, device=device)
        self.test_labels = torch.tensor(data.y_test, device=device)
        self.subsets = [training_subset(recipe, len(data.y_train)) for recipe in recipes]
        self.weights = torch.tensor(np.stack([initialize(shape, recipe) for recipe in recipes]), device=device)
        self.states = torch.zeros((2, *self.weights.shape), device=device)
        self.step = 0
        self.matrices = [  # views of the flat weights, each a leaf of its own for autograd
            self.weights[:, part].unflatten(1, (layer.rows, layer.columns)).detach().requires_grad_()
            for layer, part in zip(shape.architecture.layers, shape.architecture.slices, strict=True)
        ]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self.learning_rate = column([recipe.learning_rate for recipe in recipes])
        self.weight_decay = column([recipe.weight_decay for recipe in recipes])
        self.keep = column([1 - recipe.dropout for recipe in recipes])[:, :, None]
        self.is_relu = column([recipe.activation is Activation.RELU for recipe in recipes])[:, :, None] > 0
        self.generators = [torch.Generator(device).manual_seed(recipe.seed) for recipe in recipes]

    def logits(self, images: torch.Tensor, training: bool) -> torch.Tensor:
        """`(N, B, classes)` of images `(N, B, C, H, W)`."""
        n, b = images.shape[:2]
        x = images
        for matrix in self.matrices[:-1]:
            patches = x.unfold(3, 3, 2).unfold(4, 3, 2).permute(0, 1, 3, 4, 2, 5, 6)  # (N, B, h, w, C, 3, 3)
            h, w = patches.shape[2:4]
            patches = patches.reshape(n, b * h * w, -1)
            z = torch.baddbmm(matrix[:, None, :, -1], patches, matrix[:, :, :-1].transpose(1, 2))  # (N, Bhw, F)
            y = torch.where(self.is_relu, torch.relu(z), torch.tanh(z))
            if training:
                y = y * self.mask(y)
            x = y.unflatten(1, (b, h, w)).permute(0, 1, 4, 2, 3)
        pooled = x.mean((3, 4))
        dense = self.matrices[-1]
        return torch.baddbmm(dense[:, None, :, -1], pooled, dense[:, :, :-1].transpose(1, 2))

    def mask(self, y: torch.Tensor) -> torch.Tensor:
        draws = torch.stack([torch.rand(y.shape[1:], generator=g, device=y.device) for g in self.generators])
        return (draws < self.keep) / self.keep

    def train_epoch(self, epoch: int) -> None:
        orders = torch.tensor(
            np.stack([epoch_order(r, epoch, s) for r, s in zip(self.recipes, self.subsets, strict=True)]),
            device=self.device,
        )
        for batch in orders.split(self.plan.batch_size, 1):
            logits = self.logits(self.images[batch], training=True)
            losses = F.cross_entropy(logits.flatten(0, 1), self.labels[batch].flatten(), reduction="sum")
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

    def evaluate_train(self) -> np.ndarray:
        subsets = torch.tensor(np.stack(self.subsets), device=self.device)
        return self.evaluate([(self.images[p], self.labels[p]) for p in subsets.split(512, 1)])

    def evaluate_test(self) -> np.ndarray:
        n = len(self.recipes)
        chunks = zip(self.test_images.split(512), self.test_labels.split(512), strict=True)
        return self.evaluate([(x.expand(n, *x.shape), y.expand(n, *y.shape)) for x, y in chunks])

    @torch.no_grad()
    def evaluate(self, chunks: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
        """Loss and accuracy `(2, N)` over chunks of images `(N, B, C, H, W)` and labels `(N, B)`."""
        sums = torch.zeros((2, len(self.recipes)), dtype=torch.float64, device=self.device)
        for images, labels in chunks:
            logits = self.logits(images, training=False)
            losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            sums[0] += losses.sum(1, dtype=torch.float64)
            sums[1] += (logits.argmax(2) == labels).sum(1)
        return (sums / sum(labels.shape[1] for _, labels in chunks)).cpu().numpy()
