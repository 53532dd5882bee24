"""How long the two-dimensional picture of 20,000 embeddings takes, in a process of its own: compiling included.

Side by side with what `umap-learn` does by itself, seeded (one thread) and not. The embeddings are synthetic: 300
clusters, as wide as encoders make them. Writes `benchmarks/results/umap_time.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from weightsearch.types import Metric
from weightsearch.viz.projection import Projection, project

RESULT = Path(__file__).parent / "results" / "umap_time.json"
WAYS = ("weightsearch, seeded", "umap-learn, seeded", "umap-learn, not seeded")


def embeddings(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    cluster = generator.integers(300, size=count)
    vectors = generator.normal(size=(300, width))[cluster] + 0.6 * generator.normal(size=(count, width))
    return vectors.astype(np.float32), cluster


def one(way: str, count: int, width: int) -> dict[str, float]:
    """Seconds, on the clock and of all cores together; the share of points' ten nearest that are of their cluster."""
    vectors, cluster = embeddings(count, width)
    started, worked = time.perf_counter(), time.process_time()
    if way.startswith("weightsearch"):
        said = [0.0]

        def report(done: int, total: int) -> None:
            if time.perf_counter() - said[0] > 5:
                said[0] = time.perf_counter()
                print(f"{way}, {width} wide: epoch {done} of {total}", file=sys.stderr)

        points = project(vectors, Projection.UMAP, Metric.COSINE, on_epoch=report)
    else:
        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"random_state": 0, "n_jobs": 1} if way.endswith(", seeded") else {}
            points = UMAP(metric="cosine", **options).fit_transform(vectors)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked

    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=11).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    same = float((cluster[near] == cluster[:, None]).mean())
    return {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "same_cluster": round(same, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "WIDTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], options.count, int(options.one[1]))))
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    for way in WAYS:
        results[way] = {}
        for width in (64, 256):
            command = [sys.executable, __file__, "--count", str(options.count), "--one", way, str(width)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[way][str(width)] = json.loads(done.stdout)
            print(way, width, done.stdout.strip(), file=sys.stderr)
    load = round(os.getloadavg()[0], 1)
    content = {"count": options.count, "cores": os.cpu_count(), "load_average": load, "by_width": results}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
