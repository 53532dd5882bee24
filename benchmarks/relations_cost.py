"""What signatures, comparisons, searches and packs cost, in processor time of one core.

    OMP_NUM_THREADS=1 python benchmarks/relations_cost.py

Writes benchmarks/results/relations_cost.json. Seconds are the process's own (a busy machine does not count), so that
waiting for a disk is not in them; files are read from the system's cache.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from weightsearch.relations import SignatureIndex, compare, sign
from weightsearch.relations.open_files import open_file
from weightsearch.relations.store import Known

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
    found: dict[str, Any] = {"numbers": LAYERS * WIDTH**2}
    found["compare a relative, signatures known"] = seconds(lambda: compare(a, tuned, signatures[0], signatures[1]))
    found["compare a relative, from nothing"] = seconds(lambda: compare(a, tuned), 1)
    found["compare a copy in half precision, from nothing"] = seconds(lambda: compare(a, half), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file(a, path)
        found["read and hash the file's bytes (SHA-256)"] = seconds(lambda: hashlib.sha256(path.read_bytes()).digest())
        found["open and sign the file"] = seconds(lambda: open_file(path).sign())
    found["open and sign, over reading and hashing"] = (
        found["open and sign the file"] / found["read and hash the file's bytes (SHA-256)"]
    )
    found |= search(signatures[1])
    found = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
    RESULT.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def search(signature: Any) -> dict[str, float]:
    """The look through 100,000 sketches for one, without reading tensors of candidates."""
    rng = np.random.default_rng(1)
    sketches = rng.standard_normal((SIGNATURES, 512), np.float32)
    sketches /= np.linalg.norm(sketches, axis=1, keepdims=True)
    index = SignatureIndex.__new__(SignatureIndex)
    texts = np.array([f"{k:032x}" for k in range(SIGNATURES)], object)
    index.known = Known(
        {
            **{name: texts for name in ("source", "content", "exact", "float16", "bfloat16", "shapes", "file_hash")},
            "number": np.arange(SIGNATURES),
        },
        sketches.astype(np.float16),
    )
    index._sketches = sketches
    import weightsearch.relations.search as module

    module.sharing = lambda path, hashes: {}  # the database's part is measured by itself
    index.path = Path()
    return {f"candidates among {SIGNATURES:,} signatures, seconds": seconds(lambda: index.candidates(signature))}


if __name__ == "__main__":
    main()
