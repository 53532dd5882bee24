"""An epoch of `comvex-conv`, against a plain PyTorch version (`nn.Conv2d`, `DataLoader`), side by side on this CPU.

    python benchmarks/fit_throughput.py [--preset v1 v2] [--threads 1] [--checkpoints 1024] [--repeats 3]

Both train the same network from the same initial parameters on the same random weights (speed does not depend on their
values), in alternating epochs; their predictions are compared first. Then an epoch of each of the paper's methods, with
and without the settings of `weightsearch.devices`, alternating. Writes benchmarks/results/fit_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from weightsearch.devices import fast_processor
from weightsearch.encoders import EncoderConfig, build_encoder
from weightsearch.training.data import Features
from weightsearch.training.fit_settings import DEFAULTS, FitSettings, make_optimizer
from weightsearch.types import Activation, Architecture, Method, content_hash
from weightsearch.zoo.recipes import Initializer, Optimizer, Recipe
from weightsearch.zoo.store import CheckpointRow, RunRow, Zoo, ZooInfo, open_writer, write_part
from weightsearch.zoo.trainer.networks import CnnShape

RESULT = Path(__file__).parent / "results" / "fit_throughput.json"
RECIPE = Recipe(Optimizer.ADAM, 1e-3, 0.0, 0.0, Initializer.HE_NORMAL, None, Activation.RELU, 1.0, 0)  # of no matter
FILTERS = {"v1": 16, "v2": 64}
PAPER = (Method.FC, Method.FC_LINEAR, Method.COMVEX_LINEAR, Method.COMVEX_CONV)


class Checkpoints(Dataset):
    """One network an item, as a list of layer matrices."""

    def __init__(self, weights: np.ndarray, accuracy: np.ndarray, architecture: Architecture) -> None:
        self.weights, self.accuracy, self.architecture = weights, accuracy, architecture

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, position: int) -> tuple[list[Tensor], float]:
        return [torch.from_numpy(m) for m in self.architecture.matrices(self.weights[position])], self.accuracy[
            position
        ]


class Plain(nn.Module):
    """ComVeX-Conv as one would write it first: a `Conv2d` per layer matrix and the maximum over positions."""

    def __init__(self, architecture: Architecture, config: EncoderConfig) -> None:
        super().__init__()
        self.filters = nn.ModuleList(
            nn.Conv2d(1, config.embedding_size, (3, layer.columns)) for layer in architecture.layers
        )
        width = config.embedding_size * len(architecture.layers)
        layers: list[nn.Module] = []
        for _ in range(config.hidden_layers):
            layers += [nn.Linear(width, config.hidden_size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = config.hidden_size
        self.predictor = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, matrices: list[Tensor]) -> Tensor:
        codes = [conv(m[:, None]).amax(dim=(2, 3)) for conv, m in zip(self.filters, matrices, strict=True)]
        return torch.sigmoid(self.predictor(torch.cat(codes, dim=1))).squeeze(-1)


def make_zoo(path: Path, architecture: Architecture, count: int) -> Zoo:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((count, architecture.size), np.float32)
    info = ZooInfo("random", "random", "random", 0, "float32", architecture, {}, "0")
    accuracy = generator.random(count)
    with open_writer(path, info) as writer:
        write_part(writer.temporary(0), weights)
        rows = [CheckpointRow(content_hash(weights[i]), 0, i, 0.0, 0.0, 0.0, float(accuracy[i])) for i in range(count)]
        writer.publish(0, writer.temporary(0), [RunRow(0, RECIPE.to_dict(), None, 0.0)], rows)
    return Zoo.open(path)


def compare(preset: str, count: int, repeats: int) -> dict[str, object]:
    architecture = CnnShape(filters=FILTERS[preset]).architecture
    config, settings = DEFAULTS[Method.COMVEX_CONV]
    with tempfile.TemporaryDirectory() as directory:
        zoo = make_zoo(Path(directory) / "zoo", architecture, count)
        positions = np.arange(count)
        truth = torch.from_numpy(zoo.table().test_accuracy).float()
        encoder = build_encoder(architecture, config, torch.Generator().manual_seed(0))
        started = time.perf_counter()
        features = Features(zoo, Method.COMVEX_CONV, positions, positions)
        features.calibrate(encoder)
        preparation = time.perf_counter() - started

        plain = Plain(architecture, config)
        for ours, theirs in zip(encoder.filters, plain.filters, strict=True):
            theirs.weight.data.copy_(ours.weight.data.view_as(theirs.weight))
            theirs.bias.data.copy_(ours.bias.data)
        plain.predictor.load_state_dict(encoder.predictor.state_dict())
        normalised = features(positions).float().numpy()
        dataset = Checkpoints(normalised, truth.numpy(), architecture)
        loader = DataLoader(dataset, batch_size=settings.batch_size, shuffle=True)
        plain_optimizer = torch.optim.AdamW(
            plain.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        optimizer = make_optimizer(encoder, settings)

        def plain_epoch() -> None:
            plain.train()
            for matrices, accuracy in loader:
                loss = nn.functional.mse_loss(plain(matrices), accuracy)
                plain_optimizer.zero_grad()
                loss.backward()
                plain_optimizer.step()

        def epoch() -> None:
            with fast_processor(architecture.size):
                our_epoch(encoder, features, truth, optimizer, settings.batch_size)

        difference = _check(encoder, plain, features, dataset, settings)
        times: dict[str, list[float]] = {"plain": [], "weightsearch": []}
        plain_epoch()
        epoch()
        for _ in range(repeats):
            for name, run in (("plain", plain_epoch), ("weightsearch", epoch)):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
        methods = {method.value: with_and_without(zoo, method, truth, repeats) for method in PAPER}
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "checkpoints": count,
        "weights": architecture.size,
        "largest_difference_of_predictions": difference,
        "epoch_seconds": seconds,
        "checkpoints_per_second": {name: count / value for name, value in seconds.items()},
        "speedup": seconds["plain"] / seconds["weightsearch"],
        "preparation_seconds": preparation,  # once for a fit, or for a whole search
        "epoch_seconds_by_settings": methods,
    }


def our_epoch(
    encoder: nn.Module, features: Features, truth: Tensor, optimizer: torch.optim.Optimizer, batch_size: int
) -> None:
    """An epoch as `weightsearch.training.fit` does it."""
    encoder.train()
    order = np.random.default_rng(0).permutation(len(truth))
    for start in range(0, len(truth), batch_size):
        batch = order[start : start + batch_size]
        loss = (encoder(features(batch)) - truth[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def with_and_without(zoo: Zoo, method: Method, truth: Tensor, repeats: int) -> dict[str, float]:
    """Seconds an epoch with and without the settings of `fast_processor`, medians of alternating epochs."""
    config, settings = DEFAULTS[method]
    positions = np.arange(len(truth))
    encoder = build_encoder(zoo.architecture, config, torch.Generator().manual_seed(0))
    features = Features(zoo, method, positions, positions)
    features.calibrate(encoder)
    optimizer = make_optimizer(encoder, settings)
    times: dict[str, list[float]] = {"without": [], "with": []}
    for repeat in range(repeats + 1):
        for name in times:
            context = fast_processor(zoo.architecture.size) if name == "with" else nullcontext()
            with context:
                started = time.perf_counter()
                our_epoch(encoder, features, truth, optimizer, settings.batch_size)
                seconds = time.perf_counter() - started
            if repeat:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _check(encoder: nn.Module, plain: Plain, features: Features, dataset: Checkpoints, settings: FitSettings) -> float:
    encoder.eval()
    plain.eval()
    batch = np.arange(min(settings.batch_size, len(dataset)))
    matrices = [torch.from_numpy(m) for m in dataset.architecture.matrices(dataset.weights[batch])]
    with torch.no_grad():
        difference = float((encoder(features(batch).float()) - plain(matrices)).abs().max())
    if difference > 1e-5:
        raise SystemExit(f"the two versions predict differently, by up to {difference}")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=list(FILTERS), default=list(FILTERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "presets": {name: compare(name, arguments.checkpoints, arguments.repeats) for name in arguments.preset},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
