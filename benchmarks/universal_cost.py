"""What the encoder of all architectures costs: processor's time of a network, and of a query from a cold start.

    python benchmarks/universal_cost.py --out benchmarks/results/universal_cost.json

Networks of a shape come in one batch, on one core; a second of two cores is two seconds of the processor. The query is
of a checkpoint of 75 thousand parameters, beside a process that imports torch, faiss and duckdb and nothing else, in
turn; medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from weightsearch.checkpoints.state_dict import from_state_dict
from weightsearch.training.train_universal import shipped_encoder

ROUNDS = 5
IMPORTS = "import torch, faiss, duckdb"


def small() -> nn.Module:
    """A network of the preset v2."""
    layers = [nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def large() -> nn.Module:
    """As many parameters as a ResNet-18."""
    widths = (3, 64, 128, 256, 512, 512, 512, 512)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, stride=2), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(512, 512, 3, padding=1), nn.Flatten(), nn.Linear(512, 1000)).eval()


def milliseconds(make: object, count: int) -> float:
    """The least of `ROUNDS`, a network."""
    encoder = shipped_encoder()
    torch.manual_seed(0)
    checkpoints = [from_state_dict(make().state_dict()) for _ in range(count)]  # type: ignore[operator]
    weights = torch.stack([torch.from_numpy(each.weights) for each in checkpoints]).numpy()
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        encoder.embed(weights, checkpoints[0].architecture)
        spent.append(time.process_time() - start)
    return round(1000 * min(spent) / count, 2)


def seconds(*arguments: str) -> float:
    """Of the processor, of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    each = milliseconds(small, 60)
    result = {
        "small": {"parameters": sum(p.numel() for p in small().parameters()), "milliseconds": each},
        "a second on two cores": round(2000 / each),
        "large": {"parameters": sum(p.numel() for p in large().parameters()), "milliseconds": milliseconds(large, 1)},
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(small().state_dict(), Path(folder) / "model.pt")
        query = ("-m", "weightsearch", "query", str(Path(folder) / "model.pt"))
        pairs = [(seconds("-c", IMPORTS), seconds(*query)) for _ in range(ROUNDS)]
    imports, queries = (statistics.median(times) for times in zip(*pairs, strict=True))
    result["cold"] = {"imports": round(imports, 2), "query": round(queries, 2), "ratio": round(queries / imports, 3)}
    print(json.dumps(result, indent=1))
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
