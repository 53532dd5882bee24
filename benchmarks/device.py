"""A graphics card against processor cores: training zoos, fitting encoders, embedding, and whether answers are equal.

    python benchmarks/device.py [--device cuda] [--cores 2] [--minutes 8] [--quick]

trainers    networks × epochs a second: the batched population trainer on the device, the compiled one on the cores, one
            process a core. Random images: speed does not depend on what they show. Without the evaluation of epochs.
fits        seconds an epoch of each method's fit, on the device and on the processor with a thread a core, and what a
            fit of the same seed says on each.
embedding   networks a second from weights in memory to embedding and prediction.
answers     the largest difference between the device's and the processor's embeddings and predictions, by the same
            encoder; at most 1e-4 is asked for.

Every part has its share of the minutes and stops in time; a part that fails is written down and the others go on. The
result is written after each part to benchmarks/results/device.json (with --quick only printed: the smallest form, which
runs anywhere with `--device cpu --quick`). Ends with 1 where a part failed or answers differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightsearch.datasets.load import ImageDataset
from weightsearch.devices import TRAINING_DEVICES, check_device
from weightsearch.encoders import Encoder, EncoderConfig, activation_code, build_encoder
from weightsearch.errors import WeightsearchError
from weightsearch.training.data import Features
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.types import Activation, Method, content_hash
from weightsearch.zoo.recipes import PRESETS, Recipe, sample
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import CheckpointRow, RunRow, Zoo, ZooInfo, open_writer, write_part
from weightsearch.zoo.trainer.batched import train_batched
from weightsearch.zoo.trainer.compiled import train_compiled
from weightsearch.zoo.trainer.networks import CnnShape
from weightsearch.zoo.trainer.plan import TrainingPlan

RESULT = Path(__file__).parent / "results" / "device.json"
TOLERANCE = 1e-4
SHARES = {"trainers": 0.4, "fits": 0.35, "embedding": 0.1}  # of the minutes; the rest is for starting up


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    presets: tuple[str, ...] = ("v1", "v2")
    images: int = 8192
    networks: tuple[tuple[str, int], ...] = (("v1", 512), ("v2", 64))  # side by side on the device
    epochs: int = 20  # of training networks, at most
    checkpoints: int = 2048  # of the zoo that encoders are fitted on
    fit_epochs: int = 6
    embedded: int = 2048


QUICK = Sizes(("v1",), 128, (("v1", 2),), 2, 40, 2, 16)


class OutOfTimeError(Exception):
    """A part's share of the minutes is over."""


def random_images(count: int) -> ImageDataset:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (count, 1, 28, 28)).astype(np.float32)
    y = rng.integers(0, 10, count)
    return ImageDataset("random", x, y, x[:16], y[:16], 10)


def epoch_rate(
    train: Callable[[Callable[[int], None]], Any], networks: int, budget: float, wait: Callable[[], None]
) -> float:
    """Networks × epochs a second, after the first, which warms up; as many as the budget allows."""
    ends: list[float] = []
    start = time.perf_counter()

    def on_epoch(_: int) -> None:
        wait()
        ends.append(time.perf_counter())
        if len(ends) > 1 and ends[-1] - start > budget:
            raise OutOfTimeError

    with suppress(OutOfTimeError):
        train(on_epoch)
    return networks * (len(ends) - 1) / (ends[-1] - ends[0])


def compiled_rate(job: tuple[CnnShape, list[Recipe], TrainingPlan, int, float]) -> float:
    """In a worker process, one core: the rate of `train_compiled`."""
    shape, recipes, plan, images, budget = job
    torch.set_num_threads(1)
    data = random_images(images)
    return epoch_rate(
        lambda on_epoch: list(train_compiled(shape, recipes, data, plan, on_epoch=on_epoch)),
        len(recipes), budget, lambda: None,
    )  # fmt: skip


def trainers(device: str, cores: int, sizes: Sizes, budget: float) -> dict[str, Any]:
    result = {}
    each = budget / (2 * len(sizes.presets))
    for name in sizes.presets:
        preset = PRESETS[name]
        shape = CnnShape(preset.filters, preset.layers, 10)
        plan = TrainingPlan(sizes.epochs, preset.batch_size, (), preset.momentum)
        count = dict(sizes.networks)[name]
        recipes = [sample(preset.space, 0, run) for run in range(count)]
        beside = [recipes[core : 4 * cores : cores] or recipes[:1] for core in range(cores)]
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            jobs = [(shape, some, plan, sizes.images, each) for some in beside]
            compiled = sum(pool.map(compiled_rate, jobs, chunksize=1))
        data = random_images(sizes.images)
        batched = epoch_rate(
            lambda on_epoch, shape=shape, recipes=recipes, data=data, plan=plan: list(
                train_batched(shape, recipes, data, plan, device=device, on_epoch=on_epoch)
            ),
            count, each, lambda: synchronise(device),
        )  # fmt: skip
        result[name] = {
            "networks_on_device": count,
            "images": sizes.images,
            "batched_on_device": batched,
            "compiled_on_cores": compiled,
            "times_faster": batched / compiled,
        }
    return result


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def random_zoo(path: Path, shape: CnnShape, count: int) -> Zoo:
    """Networks of four checkpoints a run, whose accuracy is the scale of their weights."""
    rng = np.random.default_rng(0)
    architecture = shape.architecture
    scales = rng.uniform(0.1, 0.9, count).astype(np.float32)
    weights = rng.standard_normal((count, architecture.size), np.float32) * scales[:, None]
    recipe = replace(sample(PRESETS["v1"].space, 0, 0), activation=Activation.RELU)
    with open_writer(path, ZooInfo("random", "random", "random", 0, "float32", architecture, {}, "0")) as writer:
        write_part(writer.temporary(0), weights)
        rows = [
            CheckpointRow(content_hash(weights[i]), i // 4, i % 4, 0.0, 0.0, 0.0, float(scales[i]))
            for i in range(count)
        ]
        runs = [RunRow(run, recipe.to_dict(), None, 0.0) for run in range(-(-count // 4))]
        writer.publish(0, writer.temporary(0), runs, rows)
    return Zoo.open(path)


def fits(device: str, cores: int, sizes: Sizes, budget: float) -> dict[str, Any]:
    """The universal encoder is not among them: its fit takes no device."""
    torch.set_num_threads(cores)
    result: dict[str, Any] = {}
    each = budget / (2 * len(sizes.presets) * len(DEFAULTS))
    for name in sizes.presets:
        shape = CnnShape(PRESETS[name].filters, PRESETS[name].layers, 10)
        with tempfile.TemporaryDirectory() as directory:
            zoo = random_zoo(Path(directory) / "zoo", shape, sizes.checkpoints)
            split = make_split(zoo.table())
            for method, (config, settings) in DEFAULTS.items():
                if sizes is QUICK and method in (Method.FC, Method.FC_LINEAR, Method.COMVEX_LINEAR):
                    continue
                few = replace(settings, epochs=sizes.fit_epochs, patience=sizes.fit_epochs)
                row: dict[str, Any] = {}
                for place, where in (("device", device), ("cores", "cpu")):
                    ends: list[float] = []
                    start = time.perf_counter()

                    def on_epoch(_: int, __: float, ends: list[float] = ends, start: float = start) -> bool:
                        ends.append(time.perf_counter())
                        return len(ends) > 1 and ends[-1] - start > each

                    positions = np.concatenate([split.train, split.validation])
                    features = Features(zoo, method, split.train, positions, device=where)
                    fitted = fit(zoo, split, config, few, features=features, on_epoch=on_epoch)
                    row[f"epoch_seconds_on_{place}"] = (ends[-1] - ends[0]) / max(1, len(ends) - 1)
                    row[f"validation_r2_on_{place}"] = fitted.validation.r2
                row["times_faster"] = row["epoch_seconds_on_cores"] / row["epoch_seconds_on_device"]
                result[f"{name}/{method}"] = row
    return result


def embedding(device: str, cores: int, sizes: Sizes, budget: float) -> dict[str, Any]:
    """Networks a second, and how far the device's answers are from the processor's."""
    torch.set_num_threads(cores)
    result: dict[str, Any] = {}
    each = budget / (2 * len(sizes.presets) * len(DEFAULTS))
    for name in sizes.presets:
        architecture = CnnShape(PRESETS[name].filters, PRESETS[name].layers, 10).architecture
        weights = torch.randn(sizes.embedded, architecture.size, generator=torch.Generator().manual_seed(0)) * 0.2
        codes = torch.full((sizes.embedded,), int(activation_code("relu")))
        for method, (config, _) in DEFAULTS.items():
            encoder = calibrated(architecture, config, weights, codes)
            answers, row = {}, {}
            for place, where in (("cores", "cpu"), ("device", device)):
                encoder.to(where)
                given = (weights.to(where), codes.to(where))
                with torch.no_grad():
                    answers[place] = [part.cpu() for part in encoder.embed(*given)]  # warms up, too
                    start, rounds = time.perf_counter(), 0
                    while rounds == 0 or (rounds < 20 and time.perf_counter() - start < each):
                        encoder.embed(*given)
                        synchronise(where)
                        rounds += 1
                row[f"a_second_on_{place}"] = rounds * sizes.embedded / (time.perf_counter() - start)
            pairs = zip(answers["device"], answers["cores"], strict=True)
            embedding_gap, prediction_gap = (float((a - b).abs().max()) for a, b in pairs)
            row |= {"embedding_difference": embedding_gap, "prediction_difference": prediction_gap}
            row["equal"] = max(embedding_gap, prediction_gap) <= TOLERANCE
            result[f"{name}/{method}"] = row
    return result


def calibrated(architecture: Any, config: EncoderConfig, weights: torch.Tensor, codes: torch.Tensor) -> Encoder:
    encoder = build_encoder(architecture, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder.features(weights[:256], codes[:256])
        encoder.calibrate(features[:, : encoder.summary_width] if encoder.summary_width else features)
    return encoder.eval()


def about(device: str) -> dict[str, Any]:
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    return {"device": device, "card": card, "torch": torch.__version__, "cuda": torch.version.cuda}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cores", type=int, default=2, help="processor cores to compare with")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most, for all parts")
    parser.add_argument("--quick", action="store_true", help="the smallest form; prints and writes nothing")
    parser.add_argument("--part", choices=list(SHARES), action="append", help="only this part; repeatable")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    try:
        device = check_device(arguments.device, TRAINING_DEVICES)
    except WeightsearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes = QUICK if arguments.quick else Sizes()
    seconds = 2.0 if arguments.quick else 60 * arguments.minutes
    start = time.perf_counter()
    result: dict[str, Any] = {
        **about(device),
        "cores": arguments.cores,
        "sizes": "quick" if arguments.quick else "full",
    }
    failed = False
    for part, measure in (("trainers", trainers), ("fits", fits), ("embedding", embedding)):
        if arguments.part and part not in arguments.part:
            continue
        try:
            result[part] = measure(device, arguments.cores, sizes, SHARES[part] * seconds)
        except Exception as error:
            traceback.print_exc()
            result[part] = {"error": f"{type(error).__name__}: {error}"}
            failed = True
        result["seconds"] = time.perf_counter() - start
        if not arguments.quick:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    unequal = [name for name, row in result.get("embedding", {}).items() if isinstance(row, dict) and not row["equal"]]
    result["answers_equal"] = None if "error" in result.get("embedding", {"error": "not run"}) else not unequal
    text = json.dumps(result, indent=1)
    if not arguments.quick:
        arguments.out.write_text(text + "\n")
    print(text)
    if unequal:
        print(f"answers differ by more than {TOLERANCE}: {', '.join(unequal)}", file=sys.stderr)
    return int(failed or bool(unequal))


if __name__ == "__main__":
    sys.exit(main())
