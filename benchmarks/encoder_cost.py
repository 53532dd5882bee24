"""What encoders cost: checkpoints embedded a second, beside reading them and multiplying alone; a fit.

python benchmarks/encoder_cost.py runs/zoos/usps-v2 [--fit]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from weightsearch.devices import fast_processor
from weightsearch.encoders import build_encoder
from weightsearch.encoders.invariant import Invariant
from weightsearch.files import write_whole
from weightsearch.training.data import activation_codes
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.training.represent import represent_zoo
from weightsearch.types import Method
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import Zoo

RESULT = Path(__file__).parent / "results" / "encoder_cost.json"
COUNT, REPEATS = 512, 5
EPOCHS = 2  # of the fit, features made once for them included


def per_second(action: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Checkpoints a second, the median of `REPEATS`; `before` each is not counted."""
    action()
    seconds = []
    for _ in range(REPEATS):
        before()
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return COUNT / statistics.median(seconds)


def forget(zoo: Zoo) -> None:
    """Let the system forget what it has read of the zoo's weights, so that they come from the disk next time."""
    zoo.release()
    for path in (zoo.path / "weights").iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--fit", action="store_true", help="also time the first epochs of a fit of invariant")
    options = parser.parse_args()
    zoo = Zoo.open(options.zoo)
    positions = np.arange(COUNT)
    weights, codes = torch.from_numpy(zoo.weights(positions)), activation_codes(zoo.table())[positions]
    result: dict[str, object] = {"zoo": options.zoo.name, "threads": torch.get_num_threads(), "embedded_per_second": {}}
    found: dict[str, float] = result["embedded_per_second"]  # type: ignore[assignment]
    with torch.no_grad(), fast_processor(zoo.architecture.size):
        for method, (config, _) in DEFAULTS.items():
            encoder = build_encoder(zoo.architecture, config, torch.Generator()).eval()
            found[method.value] = per_second(lambda encoder=encoder: encoder.embed(weights, codes))  # type: ignore[misc]
            if isinstance(encoder, Invariant) and encoder.probed:
                found["invariant's probes alone"] = per_second(
                    lambda encoder=encoder: [encoder._probe(few, torch.relu) for few in weights.split(32)]  # type: ignore[misc]
                )
                found["invariant, weights read from disk first"] = per_second(
                    lambda encoder=encoder: represent_zoo(zoo, encoder, positions, layers=False),  # type: ignore[misc]
                    lambda: forget(zoo),
                )
        found["reading the weights from page cache"] = per_second(lambda: zoo.weights(positions))
        found["reading the weights from disk"] = per_second(lambda: zoo.weights(positions), lambda: forget(zoo))
    if options.fit:
        split = make_split(zoo.table())
        started = time.perf_counter()
        config, settings = DEFAULTS[Method.INVARIANT]
        fitted = fit(zoo, split, config, replace(settings, epochs=EPOCHS))
        result["fit"] = {
            "checkpoints": len(split.train) + len(split.validation),
            "epochs": fitted.epochs,
            "seconds": time.perf_counter() - started,
        }
    elif RESULT.exists():  # a fit that is not measured now stays as it was
        result["fit"] = json.loads(RESULT.read_text()).get("fit")
    print(json.dumps(result, indent=1))
    write_whole(RESULT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
