"""Builds the zoos that the benchmarks use into runs/zoos, resuming what is there, and writes what is in them.

    python benchmarks/zoos.py [NAME ...]   # by default all

The dataset files are found in $WEIGHTSEARCH_DATA. `-tenth` is every tenth image of a dataset; `svhn-part` is for files
that hold a part of SVHN, in splits of their own. Writes benchmarks/results/zoos.json; `seconds` is
the time that building took, the parts of a resumed build added up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from weightsearch import build_zoo
from weightsearch.cli import render
from weightsearch.cli.common import show
from weightsearch.datasets.load import load_dataset
from weightsearch.zoo.summary import render_summary, zoo_summary

ROOT = Path(__file__).parent.parent
ZOOS = {
    "usps-v1": {"dataset": "usps", "preset": "v1", "runs": 300},
    "usps-v1-large": {"dataset": "usps", "preset": "v1", "runs": 556},
    "usps-v2": {"dataset": "usps", "preset": "v2", "runs": 300, "epochs": 20},
    "mnist-v1": {"dataset": "mnist", "preset": "v1", "runs": 100, "epochs": 20},
    "fashion-mnist-v1": {"dataset": "fashion-mnist", "preset": "v1", "runs": 100, "epochs": 20},
    "mnist-v1-large": {"dataset": "mnist", "preset": "v1", "runs": 1000, "epochs": 20},
    "fashion-mnist-v1-large": {"dataset": "fashion-mnist", "preset": "v1", "runs": 1000, "epochs": 20},
    "cifar10-v1-large": {"dataset": "cifar10", "preset": "v1", "runs": 1000, "epochs": 20},
    "svhn-part-v1": {"dataset": "svhn-part", "preset": "v1", "runs": 1000, "epochs": 20},
    "usps-v2-large": {"dataset": "usps", "preset": "v2", "runs": 1000, "dtype": "float16"},
    "mnist-tenth-v2": {"dataset": "mnist-tenth", "preset": "v2", "runs": 1000, "dtype": "float16"},
    "fashion-mnist-tenth-v2": {"dataset": "fashion-mnist-tenth", "preset": "v2", "runs": 1000, "dtype": "float16"},
    "cifar10-tenth-v2": {"dataset": "cifar10-tenth", "preset": "v2", "runs": 1000, "dtype": "float16"},
    "svhn-part-v2": {"dataset": "svhn-part", "preset": "v2", "runs": 300},
}
PARTS = {  # of which dataset, and every which image of it
    "svhn-part": ("svhn", 1),
    **{f"{name}-tenth": (name, 10) for name in ("mnist", "fashion-mnist", "cifar10")},
}
RESULT = ROOT / "benchmarks" / "results" / "zoos.json"


def dataset(name: str) -> str:
    """What `build_zoo` takes: a name it knows, or a file of a part, named for it."""
    if name not in PARTS:
        return name
    path = ROOT / "runs" / "data" / f"{name}.npz"
    if not path.exists():
        whole, step = PARTS[name]
        data = load_dataset(whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            kind: np.rint((part[::step] + 1) * 127.5).astype(np.uint8) if kind.startswith("x") else part[::step]
            for kind in ("x_train", "y_train", "x_test", "y_test")
            for part in [getattr(data, kind)]
        }
        np.savez(path, **arrays)
    return str(path)


def main(names: list[str]) -> None:
    results = {zoo["name"]: zoo for zoo in json.loads(RESULT.read_text())} if RESULT.exists() else {}
    for name in names:
        path = ROOT / "runs" / "zoos" / name
        built = build_zoo(**{**ZOOS[name], "out": path, "seed": 0, "dataset": dataset(str(ZOOS[name]["dataset"]))})  # type: ignore[arg-type]
        show(render.build_summary(built))
        summary = zoo_summary(path)
        show(render_summary(summary))
        seconds = built.seconds + (results[name]["seconds"] if built.trained < built.runs and name in results else 0)
        results[name] = {
            "name": name,
            **ZOOS[name],
            "failed": summary.failed,
            "checkpoints": summary.checkpoints,
            "size_bytes": summary.size_bytes,
            "quartiles": summary.quartiles,
            "seconds": seconds,
        }
        RESULT.write_text(json.dumps([results[name] for name in ZOOS if name in results], indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ZOOS))
    chosen = parser.parse_args().names or list(ZOOS)
    if unknown := [name for name in chosen if name not in ZOOS]:
        parser.error(f"unknown zoo {unknown[0]}; choose among {', '.join(ZOOS)}")
    main(chosen)
