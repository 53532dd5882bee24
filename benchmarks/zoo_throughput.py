"""How fast zoos are built, in networks × epochs per second on USPS, beside one-at-a-time training of the same recipes.

    python benchmarks/zoo_throughput.py [--quick]

naive      what one would write first: a DataLoader with per-sample transforms, both splits evaluated whole after every
           epoch, one network at a time, torch's own threads.
tight      `weightsearch.zoo.trainer.reference`: tensors in memory, channels-last, fused optimizers, evaluated on the
           schedule. The faster of two threads (one network at a time) and two single-threaded processes; start-up is
           not counted.
build_zoo  the public function: training, evaluation, writing and start-up.

They take turns, so that a busy spell of the machine hits all of them; still, nothing else should run. `naive` trains
for one epoch only, and of `tight` the slower way too. Writes benchmarks/results/zoo_throughput.json (with --quick only
prints). The USPS files are found in $WEIGHTSEARCH_DATA or the user's cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from weightsearch.datasets.load import ImageDataset, load_dataset
from weightsearch.zoo.build_zoo import build_zoo
from weightsearch.zoo.recipes import PRESETS, Preset, Recipe, sample
from weightsearch.zoo.trainer.networks import CnnShape, initialize
from weightsearch.zoo.trainer.plan import TrainingPlan, training_subset
from weightsearch.zoo.trainer.reference import BaseCnn, make_optimizer, train_one

CORES = 2
RESULT = Path(__file__).parent / "results" / "zoo_throughput.json"
SEED = 0


class Samples(Dataset):
    """One 8-bit image after the other, transformed as torchvision's ToTensor and Normalize do."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.images = [Image.fromarray(image) for image in np.round((x[:, 0] + 1) * 127.5).astype(np.uint8)]
        self.labels = y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(np.array(self.images[i]))[None].float().div(255)
        return (image - 0.5) / 0.5, self.labels[i]


def naive(shape: CnnShape, recipe: Recipe, data: ImageDataset, plan: TrainingPlan) -> None:
    train, test = Samples(data.x_train, data.y_train), Samples(data.x_test, data.y_test)
    subset = Subset(train, training_subset(recipe, len(train)).tolist())
    batches = DataLoader(subset, batch_size=plan.batch_size, shuffle=True)
    network = BaseCnn(shape, recipe.activation, recipe.dropout).load_flat(initialize(shape, recipe), shape)
    optimizer = make_optimizer(network, recipe, plan)
    for _ in range(plan.epochs):
        network.train()
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            for split in (train, test):
                for x, y in DataLoader(split, batch_size=plan.batch_size):
                    logits = network(x)
                    F.cross_entropy(logits, y, reduction="sum").item()
                    (logits.argmax(1) == y).sum().item()


def tight(shape: CnnShape, recipe: Recipe, data: ImageDataset, plan: TrainingPlan) -> None:
    for _ in train_one(shape, recipe, data, plan):
        pass


_worker_data: ImageDataset


def start_worker(data_dir: str | None) -> None:
    global _worker_data
    torch.set_num_threads(1)
    _worker_data = load_dataset("usps", data_dir)


def tight_in_worker(job: tuple[CnnShape, Recipe, TrainingPlan]) -> None:
    shape, recipe, plan = job
    tight(shape, recipe, _worker_data, plan)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matmul(_: int = 0) -> float:
    """FLOP/s of the best of some large matrix products on this process's threads."""
    a, b = torch.rand(2, 1024, 1024)
    return 2 * 1024**3 / min(seconds(lambda: a @ b) for _ in range(30))


def flops(shape: CnnShape, recipes: Iterable[Recipe], data: ImageDataset, plan: TrainingPlan) -> float:
    """Multiplications and additions that the runs ask for: forward, backward (no gradient by images), evaluation."""
    (_, *sizes), f = shape.spatial(*data.x_train.shape[2:]), shape.filters
    inputs = [shape.channels] + [f] * (shape.layers - 1)
    convolutions = [2 * 9 * c * f * h * w for c, (h, w) in zip(inputs, sizes, strict=True)]
    forward = sum(convolutions) + 2 * f * shape.classes
    step = 3 * forward - convolutions[0]
    seen = [len(training_subset(recipe, len(data.y_train))) for recipe in recipes]
    return sum(n * plan.epochs * step + (n + len(data.y_test)) * len(plan.checkpoint_epochs) * forward for n in seen)


class PeakMemory:
    """The most memory, in bytes, that `build_zoo`'s workers hold together; pages they share count for each.

    The process that calls it holds the dataset besides.
    """

    def __enter__(self) -> PeakMemory:
        self.peak, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.1):
            total = 0
            for process in me.children(recursive=True):
                try:
                    if "weightsearch.zoo.workers.worker" in process.cmdline():
                        total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def measure(
    preset: Preset, runs: int, repetitions: int, peak: float, data: ImageDataset, data_dir: str | None
) -> dict[str, Any]:
    shape = CnnShape(preset.filters, preset.layers, data.classes)
    plan = TrainingPlan(preset.epochs, preset.batch_size, preset.schedule, preset.momentum)
    one_epoch = replace(plan, epochs=1, checkpoint_epochs=tuple(e for e in plan.checkpoint_epochs if e <= 1))
    recipes = [sample(preset.space, SEED, run) for run in range(runs)]
    torch.set_num_threads(CORES)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CORES, start_worker, (data_dir,)) as pool:
        jobs = [(shape, recipe, one_epoch) for recipe in recipes]
        pool.map(tight_in_worker, jobs[:CORES], chunksize=1)  # warms up

        def in_processes(plan: TrainingPlan, recipes: list[Recipe]) -> float:
            longest_first = sorted(recipes, key=lambda recipe: -recipe.train_fraction)
            jobs = [(shape, recipe, plan) for recipe in longest_first]
            return seconds(lambda: pool.map(tight_in_worker, jobs, chunksize=1))

        def in_threads(plan: TrainingPlan, recipes: list[Recipe]) -> float:
            return seconds(lambda: [tight(shape, recipe, data, plan) for recipe in recipes])

        first = {"processes": in_processes(one_epoch, recipes), "threads": in_threads(one_epoch, recipes)}
        way = min(first, key=first.__getitem__)
        tight_seconds = {"processes": in_processes, "threads": in_threads}[way]
        built, singles, naives, memory = [], [], [], 0
        for part in range(repetitions):
            with tempfile.TemporaryDirectory() as folder, PeakMemory() as watch:
                summary = build_zoo(
                    out=Path(folder) / "zoo",
                    dataset="usps",
                    runs=runs,
                    preset=preset.name,
                    epochs=preset.epochs,
                    seed=SEED,
                    data_dir=data_dir,
                    quiet=True,
                )
            built.append(summary.seconds)
            memory = max(memory, watch.peak)
            some = recipes[part::repetitions]
            singles.append(tight_seconds(plan, some))
            naives.append(seconds(lambda some=some: [naive(shape, recipe, data, one_epoch) for recipe in some]))
    rates = {
        "naive": runs / sum(naives),
        "tight": runs * plan.epochs / sum(singles),
        "build_zoo": runs * plan.epochs / statistics.median(built),
    }
    work = flops(shape, recipes, data, plan)
    return {
        "runs": runs,
        "epochs": plan.epochs,
        **rates,
        "over_naive": rates["build_zoo"] / rates["naive"],
        "over_tight": rates["build_zoo"] / rates["tight"],
        "tight_way": way,
        "tight_one_epoch_seconds": first,
        "tight_share_of_peak": work / sum(singles) / peak,
        "share_of_peak": work / statistics.median(built) / peak,
        "build_zoo_gflops": work / statistics.median(built) / 1e9,
        "build_zoo_seconds": built,
        "peak_memory_bytes": memory,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute; prints and writes nothing")
    parser.add_argument("--data-dir", help="where the dataset files are, if not in $WEIGHTSEARCH_DATA")
    arguments = parser.parse_args()
    data = load_dataset("usps", arguments.data_dir)
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(CORES, torch.set_num_threads, (1,)) as pool:
        peak = max(sum(pool.map(matmul, range(CORES), chunksize=1)) for _ in range(3))
    # runs, epochs and repetitions; so many runs that build-zoo's parts come out even on two cores
    sizes = {"v1": (6, 20, 1), "v2": (4, 3, 1)} if arguments.quick else {"v1": (32, 86, 3), "v2": (8, 20, 3)}
    with tempfile.TemporaryDirectory() as folder:  # compiles, if need be
        build_zoo(out=Path(folder) / "zoo", runs=1, preset="v1", epochs=1, layers=2, quiet=True)
    result: dict[str, Any] = {
        "unit": "networks × epochs per second",
        "cpu": cpu_name(),
        "cores": CORES,
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "matmul_peak_gflops": peak / 1e9,
    }
    for name, (runs, epochs, repetitions) in sizes.items():
        preset = replace(PRESETS[name], epochs=epochs)
        result[name] = measure(preset, runs, repetitions, peak, data, arguments.data_dir)
    result["seconds"] = time.perf_counter() - start
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if not arguments.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
