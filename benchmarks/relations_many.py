"""What `duplicates` and `lineage` take on an index of very many signatures: seconds of a core, and memory of their own.

    OMP_NUM_THREADS=1 python benchmarks/relations_many.py [--signatures 100000 1000000]

Writes benchmarks/results/relations_many.json; of what is not measured anew it keeps what it has. The signatures are of
random networks of six tensors; a tenth hold the same weights as another, a quarter belong to runs of five epochs, and
their files are not there. Memory is the most that was the process's own, seconds are processor time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from relations_cost import fill
from relations_large import measured

from weightsearch.index.create import create_empty
from weightsearch.index.writer import writing
from weightsearch.relations import sign
from weightsearch.relations.store import Signed, add_signatures, publish_sketches

RESULT = Path(__file__).parent / "results" / "relations_many.json"
TOGETHER = 20_000


CHANGES = (
    "exact = printf('%032x', number - 1) WHERE number % 10 = 1",
    "run = 'run ' || number // 5, epoch = number % 5, shapes = 'same' WHERE number % 20 >= 15",
)


def make(path: Path, signatures: int) -> None:
    create_empty(path)
    rng = np.random.default_rng(1)
    add_signatures(path, [Signed("/models/0", sign({"weight": rng.standard_normal((40, 50), np.float32)}))])
    for start in range(1, signatures, TOGETHER):
        fill(path, rng, start, min(TOGETHER, signatures - start))
    with writing(path) as writer:
        with writer.transaction() as connection:
            for change in CHANGES:
                connection.execute(f"UPDATE ix.signatures SET {change}")
        publish_sketches(writer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signatures", type=int, nargs="+", default=[100_000])
    options = parser.parse_args()
    rows = json.loads(RESULT.read_text()) if RESULT.exists() else []
    for signatures in options.signatures:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            make(path, signatures)
            for command in ("duplicates", "lineage"):
                program = (sys.executable, "-m", "weightsearch", command, str(path), "--json")
                output, seconds, _, memory = measured(*program)
                content = json.loads(output)
                told = len(content["groups"] if command == "duplicates" else content["edges"])
                row = {
                    "signatures": signatures, "command": command, "told": told, "seconds": seconds, "memory_mb": memory,
                    "output_mb": round(len(output) / 1e6, 1),
                }  # fmt: skip
                print(row, flush=True)
                rows = [one for one in rows if (one["signatures"], one["command"]) != (signatures, command)] + [row]
                RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
