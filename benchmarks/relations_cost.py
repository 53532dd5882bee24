"""What signatures, comparisons, searches and packs cost, in processor time of one core.

    OMP_NUM_THREADS=1 python benchmarks/relations_cost.py

Writes benchmarks/results/relations_cost.json. To make compiled code takes a tenth of a second once 4 million numbers
were signed, and is not in them. Seconds are the process's own (a busy machine does not count), so that waiting for a
disk is not in them; files are read from the system's cache.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from weightsearch.index.create import create_empty
from weightsearch.index.writer import writing
from weightsearch.relations import Signature, SignatureIndex, compare, sign
from weightsearch.relations.lookups import read_heads
from weightsearch.relations.open_files import open_file
from weightsearch.relations.signature import SKETCH_WIDTH
from weightsearch.relations.store import SCHEME, Signed, add_signatures, read_signatures

RESULT = Path(__file__).parent / "results" / "relations_cost.json"
LAYERS, WIDTH = 10, 1_000  # 10 million numbers
SIGNATURES = 100_000


def seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    rng = np.random.default_rng(0)
    a = {f"layers.{k}.weight": rng.standard_normal((WIDTH, WIDTH), np.float32) for k in range(LAYERS)}
    change = {name: np.outer(*rng.standard_normal((2, WIDTH))) + rng.standard_normal((WIDTH, WIDTH)) for name in a}
    tuned = {name: (value + 0.1 * change[name]).astype(np.float32) for name, value in a.items()}
    half = {name: value.astype(np.float16) for name, value in a.items()}
    signatures = [sign(tensors) for tensors in (a, tuned, half)]
    result: dict[str, Any] = {"numbers": LAYERS * WIDTH**2}
    result["compare a relative, signatures known"] = seconds(lambda: compare(a, tuned, signatures[0], signatures[1]))
    result["compare a relative, from nothing"] = seconds(lambda: compare(a, tuned))
    result["compare a copy in half precision, from nothing"] = seconds(lambda: compare(a, half))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file(a, path)
        reading, signing = float("inf"), float("inf")
        for _ in range(10):  # in turn, so that a busy machine slows both
            reading = min(reading, seconds(lambda: hashlib.sha256(path.read_bytes()).digest(), 1))
            signing = min(signing, seconds(lambda: open_file(path).sign(), 1))
        result["read and hash the file's bytes (SHA-256)"], result["open and sign the file"] = reading, signing
    result["open and sign, over reading and hashing"] = (
        result["open and sign the file"] / result["read and hash the file's bytes (SHA-256)"]
    )
    if "--without-search" in sys.argv:
        before = json.loads(RESULT.read_text())
        result |= {name: value for name, value in before.items() if "signatures" in name and name not in result}
    else:
        result |= search(signatures[1])
    result = {name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def search(signature: Signature) -> dict[str, float]:
    """100,000 signatures of six tensors each: opening the index, and what one query costs until files are opened."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        create_empty(path)
        first = Signed("/models/known.safetensors", signature)
        add_signatures(path, [first])
        for start in range(0, SIGNATURES, 20_000):
            fill(path, rng, start + 1, 20_000)
        index = SignatureIndex(path)
        nearest = next(iter(index.candidates(signature)))
        assert read_heads(path, [nearest])[nearest].source == first.source

        def ask() -> None:
            read_signatures(path, list(index.candidates(signature)))

        return {
            f"open an index of {SIGNATURES:,} signatures": seconds(lambda: SignatureIndex(path)),
            f"query {SIGNATURES:,} signatures": seconds(ask, 7),
        }


def fill(path: Path, rng: np.random.Generator, start: int, count: int) -> None:
    """Adds signatures of random networks with six tensors each, as rows of the database's tables."""
    sketches = rng.standard_normal((count, SKETCH_WIDTH), np.float32)
    sketches /= np.linalg.norm(sketches, axis=1, keepdims=True)
    text = np.array([f"{k:032x}" for k in range(start, start + count)], object)
    sources = np.array([f"/models/{one}" for one in text], object)
    blobs = np.array([row.tobytes() for row in sketches.astype("<f2")], object)
    numbers = np.arange(start, start + count)
    tensors = 6 * count
    repeated = {"name": [f"layers.{k}.weight" for k in range(6)], "shape": ["[1000, 1000]"] * 6}
    with writing(path) as writer, writer.transaction() as connection:
        heads = {
            "number": numbers, "scheme": np.full(count, SCHEME), "source": sources,
            **{name: text for name in ("content", "exact", "float16", "bfloat16", "shapes", "file_hash")},
            "file_bytes": numbers, "modified": numbers, "numbers": numbers, "epoch": np.zeros(count),
            "sketch": blobs, "raw_sketch": np.array([row.tobytes() for row in sketches], object),
        }  # fmt: skip
        hashes = {
            n: rng.integers(2**63, size=tensors, dtype=np.uint64) for n in ("exact", "float16", "bfloat16", "unordered")
        }
        parts = {
            "signature": np.repeat(numbers, 6), "place": np.tile(np.arange(6), count),
            **{name: np.tile(np.array(values, object), count) for name, values in repeated.items()},
            "dtype": np.full(tensors, "float32", object), "role": np.full(tensors, "weight", object), **hashes,
            **{name: np.ones(tensors) for name in ("norm", "mean", "kurtosis", "largest")},
            "zeros": np.zeros(tensors, np.int64),
        }  # fmt: skip
        for table, columns in (("signatures", heads), ("tensors", parts)):
            connection.register("fresh", columns)
            connection.execute(f"INSERT INTO ix.{table} BY NAME SELECT * FROM fresh")
            connection.unregister("fresh")


if __name__ == "__main__":
    main()
