"""On zoos of one architecture: the space of all architectures, fitted there from scratch, beside `invariant`.

    weightsearch train runs/zoos/usps-v1 --method invariant --out runs/indexes/usps-v1   # or index/, the shipped one
    python benchmarks/one_architecture.py usps-v1=runs/zoos/usps-v1:index --out benchmarks/results/one_architecture.json

Both are fitted on runs of the zoo outside of the index's test and calibration parts, and judged on all checkpoints of
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from few_labels import scores

from weightsearch.encoders import load_encoder
from weightsearch.index import IndexStore
from weightsearch.training.data import finite_weights
from weightsearch.training.represent import represent_zoo
from weightsearch.training.universal import describe_zoo_networks, fit_universal
from weightsearch.zoo.store import Zoo


def compare(zoo: Zoo, index: Path) -> dict[str, object]:
    directory = IndexStore.open(index).encoder_directory(zoo.architecture.fingerprint)
    split = json.loads((directory / "encoder.json").read_text())["split"]
    table = zoo.table()
    usable = np.flatnonzero(finite_weights(zoo, np.arange(len(table))) & np.isfinite(table.test_accuracy))
    run, values = table.run[usable], table.test_accuracy[usable]
    fitted = np.isin(run, [*split["train"], *split["validation"]])
    judged = np.isin(run, [*split["test"], *split.get("calibration", [])])
    start = time.process_time()
    described = describe_zoo_networks(zoo, usable)
    inside, held = (described.take(np.flatnonzero(mask)) for mask in (fitted, judged))
    encoder = fit_universal(inside, values[fitted], run[fitted], held, run[judged])
    seconds = time.process_time() - start
    invariant = represent_zoo(zoo, load_encoder(directory), usable[judged], layers=False)
    return {
        "architecture": zoo.architecture.describe(),
        "runs": {"fitted": len(np.unique(run[fitted])), "judged": len(np.unique(run[judged]))},
        "seconds to describe and fit": round(seconds),
        "universal": scores(encoder.know(held).predicted, values[judged]),
        "invariant": scores(invariant.predicted, values[judged]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="+", metavar="NAME=ZOO:INDEX")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    for text in given.zoos:
        name, _, places = text.partition("=")
        zoo, _, index = places.partition(":")
        results[name] = compare(Zoo.open(zoo), Path(index))
        print(name, json.dumps(results[name]), flush=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
