"""How long a frame of the interactive map takes while panning over 100,000 networks, in headless Chromium.

Writes the result to `benchmarks/results/map_frames.json`. Without a graphics card, Chromium draws WebGL on the
processor (SwiftShader), so that this is the worst case. `--plotly plotly-gl2d.min.js` (npm's plotly.js-gl2d-dist-min)
measures the same points in Plotly's WebGL scatter beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from weightsearch.types import Architecture, Metric, Target
from weightsearch.viz.figures import Options
from weightsearch.viz.map import interactive
from weightsearch.viz.projection import Projection
from weightsearch.viz.sources import Part, Source

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.viz.browser import open_browser

RESULT = Path(__file__).parent / "results" / "map_frames.json"
MOVES = 60

# Drags the picture to and fro, a little each frame, and gives the times between frames in milliseconds.
PAN = """
const [target, moves, done] = [document.querySelector(arguments[0]), arguments[1], arguments[2]];
const box = target.getBoundingClientRect();
const at = (i) => ({ clientX: box.left + box.width / 2 + 120 * Math.sin(i / 8),
  clientY: box.top + box.height / 2 + 80 * Math.cos(i / 8), bubbles: true, cancelable: true, buttons: 1 });
const fire = (type, i, on) => on.dispatchEvent(new MouseEvent(type, at(i)));
fire("mousemove", 0, target); fire("mousedown", 0, target);
const times = [];
let i = 0, last = performance.now();
requestAnimationFrame(function step(now) {
  times.push(now - last); last = now;
  if (++i > moves) { fire("mouseup", i, window); fire("mouseup", i, target); done(times.slice(5)); return; }
  fire("mousemove", i, target); fire("mousemove", i, window);
  requestAnimationFrame(step);
});
"""


class Synthetic(Source):
    """Networks that never were: points in 300 clusters, nine a run."""

    path, dataset, preset = Path("synthetic"), "synthetic", ""
    architecture, target, metric = Architecture(()), Target(), Metric.COSINE
    methods, default_part = ("random",), Part.ALL

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        centres = generator.normal(size=(300, 16))
        cluster = generator.integers(300, size=count)
        self._vectors = (centres[cluster] + 0.3 * generator.normal(size=(count, 16))).astype(np.float32)
        accuracy = np.clip(cluster / 300 + 0.1 * generator.normal(size=count), 0, 1)
        run = np.arange(count) // 9
        recipes = np.array([json.dumps({"optimizer": "adam", "learning_rate": 10.0 ** -(k % 5)}) for k in range(97)])
        self._columns = {
            "run": np.char.add("synthetic/", run.astype(str)),
            "epoch": np.arange(count) % 9,
            **{name: accuracy for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")},
            "split": np.full(count, "train"),
            "recipe": recipes[run % 97].astype(object),
        }

    @property
    def columns(self) -> dict[str, np.ndarray]:
        return self._columns

    def vectors(self, method: str, positions: np.ndarray) -> np.ndarray:
        return self._vectors[positions]

    def predictions(self, method: str, positions: np.ndarray) -> None:
        return None

    def embed(self, method: str, checkpoint: Any) -> np.ndarray:
        raise NotImplementedError

    def prepare(self, methods: Any, *, quiet: bool) -> None:
        pass


def summary(times: list[float]) -> dict[str, float]:
    found = np.array(times)
    return {
        "frames": len(found),
        "median_ms": round(float(np.median(found)), 1),
        "p95_ms": round(float(np.quantile(found, 0.95)), 1),
    }


def processor_seconds() -> float:
    """Of this process's children, the browser: on a busy machine, the measure that can be trusted."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def plotly_page(library: Path, source: Source) -> str:
    points = source.vectors("random", np.arange(len(source.values)))[:, :2]
    trace = {
        "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "mode": "markers", "type": "scattergl",
        "marker": {"size": 3, "color": source.values.tolist(), "colorscale": "Viridis"},
    }  # fmt: skip
    return (
        "<meta charset=utf-8><div id=plot style='width:940px;height:700px'></div>"
        f"<script>{library.read_text()}</script><script>"
        f"window.ready = Plotly.newPlot('plot', [{json.dumps(trace)}], {{dragmode: 'pan'}})</script>"
    )


def measure(html: str, ready: str, target: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        path = Path(folder) / "page.html"
        path.write_text(html, encoding="utf-8")
        started = time.perf_counter()
        browser.set_script_timeout(300)
        browser.get(path.as_uri())
        browser.execute_async_script(f"{ready}.then(() => requestAnimationFrame(() => arguments[0]()))")
        loaded = time.perf_counter() - started
        before = processor_seconds()
        times = browser.execute_async_script(PAN, target, MOVES)
        worked = 1000 * (processor_seconds() - before) / MOVES
        return {
            "processor_ms": round(worked, 1),
            "megabytes": round(len(html) / 1e6, 1),
            "load_seconds": round(loaded, 2),
            **summary(times),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--plotly", type=Path)
    options = parser.parse_args()
    source = Synthetic(options.points)
    result: dict[str, Any] = {"points": options.points, "cores": os.cpu_count()}
    for name, count in (("map", options.points), ("map of 1,000", 1000)):  # the second is what any picture costs
        page = interactive([Synthetic(count)], Options(projection=Projection.PCA), print)
        result[name] = measure(page, "weightsearchMap.ready", "#points")
    if options.plotly:
        result["plotly scattergl"] = measure(plotly_page(options.plotly, source), "ready", ".nsewdrag")
    result["load_average"] = round(os.getloadavg()[0], 1)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
