"""The space of all architectures in the committed index as a picture: families by shape, accuracy by colour.

python benchmarks/universal_map.py   # -> benchmarks/results/universal-map.png
"""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE

from weightsearch.types import ANY

ROOT = Path(__file__).parent.parent
FAMILIES = {"mlp": ("o", "MLP"), "cnn": ("s", "CNN"), "resnet": ("^", "residual"), "vit": ("D", "transformer"),
            "rnn": ("P", "recurrent")}  # fmt: skip


def main() -> None:
    with duckdb.connect(str(ROOT / "index" / "index.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "SELECT embedding, test_accuracy, recipe FROM checkpoints WHERE architecture = ? ORDER BY number",
            [ANY.fingerprint],
        ).fetchall()
    embedding = np.stack([np.frombuffer(blob, np.float32) for blob, _, _ in rows])
    accuracy = np.array([value for _, value, _ in rows])
    family = np.array([json.loads(recipe)["family"] for _, _, recipe in rows])
    points = TSNE(metric="cosine", init="random", random_state=0, perplexity=30).fit_transform(embedding)
    figure, axes = plt.subplots(figsize=(7, 5.4), layout="constrained")
    for name, (marker, label) in FAMILIES.items():
        own = family == name
        style = {"marker": marker, "s": 22, "edgecolors": "white", "linewidths": 0.3}
        drawn = axes.scatter(*points[own].T, c=accuracy[own], cmap="viridis", vmin=0, vmax=1, **style)
        axes.scatter([], [], c="0.4", label=f"{label} ({own.sum()})", **style)
    axes.legend(loc="center", fontsize=8, frameon=False)
    axes.set(xticks=[], yticks=[], title=f"{len(rows):,} checkpoints in the shipped index's space of all architectures")
    figure.colorbar(drawn, label="test accuracy", shrink=0.8)
    figure.savefig(ROOT / "benchmarks" / "results" / "universal-map.png", dpi=110)


if __name__ == "__main__":
    main()
