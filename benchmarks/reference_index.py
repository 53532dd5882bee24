"""The committed reference index: make it anew, or recompute what its card says.

    python benchmarks/reference_index.py build   # a zoo of 300 USPS networks, and a wild one -> index/
    python benchmarks/reference_index.py check   # recompute the card's scores from that zoo and index/encoder

`check` needs the USPS zoo; `build` resumes both or builds them from the files in $WEIGHTSEARCH_DATA. `check` writes
benchmarks/results/reference_index.json and ends with 1 where the card and the recomputed scores differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import duckdb
import numpy as np
from scipy.stats import kendalltau
from sklearn.metrics import mean_absolute_error, r2_score

from weightsearch import Index, Zoo, build_zoo, query, train
from weightsearch.cli import render
from weightsearch.cli.common import show
from weightsearch.encoders import load_encoder
from weightsearch.training.options import TrainOptions
from weightsearch.training.represent import represent_zoo
from weightsearch.training.train_universal import train_universal

ROOT = Path(__file__).parent.parent
INDEX = Path("index")  # both below ROOT: the index says where its weights are by paths that hold in any clone
ZOO = Path("runs", "zoos", "usps-v1")
RUNS = 300
RESULT = ROOT / "benchmarks" / "results" / "reference_index.json"
WILD = Path("runs", "zoos", "wild")
WILD_RUNS = 2000
WILD_ROWS = 800  # the last checkpoints of so many runs
TOLERANCE = 0.002  # another processor trains slightly other networks from the same seed


def build() -> None:
    show(render.build_summary(build_zoo(out=ZOO, dataset="usps", preset="v1", runs=RUNS, seed=0)))
    show(render.train_summary(train(ZOO, INDEX, examples=4, replace=True)))
    add_universal()


def add_universal() -> None:
    """The space of all architectures, beside that of the USPS networks."""
    show(render.build_summary(build_zoo(out=WILD, preset="wild", runs=WILD_RUNS, seed=0)))
    options = TrainOptions(add=True, examples=2)
    summary = train_universal(WILD, INDEX, options, from_scratch=True, rows_per_run=1, runs_kept=WILD_ROWS)
    show(render.universal_summary(summary))
    compact()


def compact() -> None:
    """Writes the database anew, without the room that rows took before they were changed."""
    database = INDEX / "index.duckdb"
    new = database.with_suffix(".new")
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{database}' AS old (READ_ONLY)")
        connection.execute(f"ATTACH '{new}' AS compact")
        connection.execute("COPY FROM DATABASE old TO compact")
    new.replace(database)


def check() -> int:
    """Predicts the test runs' checkpoints anew and scores them with scikit-learn's and SciPy's own functions."""
    index, zoo = Index.open(INDEX), Zoo.open(ZOO)
    fingerprint = zoo.architecture.fingerprint
    directory = index.store.encoder_directory(fingerprint)
    notes = json.loads((directory / "encoder.json").read_text())
    table = zoo.table()
    test = np.flatnonzero(np.isin(table.run, notes["split"]["test"]))
    encoder = load_encoder(directory)
    predicted = represent_zoo(zoo, encoder, test).predicted
    truth = table.test_accuracy[test]
    recomputed = {
        "r2": float(r2_score(truth, predicted)),
        "tau": float(kendalltau(truth, predicted).statistic),
        "mae": float(mean_absolute_error(truth, predicted)),
    }
    said = {name: notes["metrics"]["test"][name] for name in recomputed}
    examples = {
        path.name: {"predicted": answer.predicted, "true": answer.stated_accuracy}
        for path in sorted((INDEX / "examples").glob("*.pt"))
        for answer in [query(index, path)]
    }
    result = {"checkpoints": len(test), "card": said, "recomputed": recomputed, "examples": examples}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return int(any(abs(recomputed[name] - said[name]) > TOLERANCE for name in recomputed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "check"])
    os.chdir(ROOT)
    sys.exit(build() if parser.parse_args().what == "build" else check())
