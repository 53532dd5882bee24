"""MLflow's file store: `mlruns/EXPERIMENT/RUN/` with `meta.yaml`, `metrics/`, `params/` and the run's `artifacts/`.

https://mlflow.org/docs/latest/tracking/backend-stores/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import interpret, typed
from weightsearch.checkpoints.metadata_table import read_text
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report
from weightsearch.checkpoints.trackers.yaml_file import read_yaml


def find(folder: Path, report: Report) -> Finder | None:
    if not (folder / "meta.yaml").is_file() or not any((folder / name).is_dir() for name in ("metrics", "params")):
        return None
    about = read_yaml(folder / "meta.yaml")
    parameters = {path.name: typed(read_text(path).strip()) for path in _files(folder / "params")}
    series = {path.relative_to(folder / "metrics").as_posix(): _series(path) for path in _files(folder / "metrics")}
    name = about.get("run_name")

    def label(path: Path, inside: Inside) -> Label:
        at = inside.step if inside.step is not None else inside.epoch
        values: dict[str, Any] = {}
        for metric, points in series.items():
            until_then = [value for step, value in points if at is None or step <= at]
            if until_then:
                values[metric] = until_then[-1]
        extras = {"mlflow_run": name} if isinstance(name, str) else {}
        return Label(interpret({**values, **extras, "params": parameters}, "mlruns"), folder)

    return label


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _series(path: Path) -> list[tuple[float, float]]:
    """Lines of a time stamp, a value and a step, in the order of steps."""
    points = []
    for line in read_text(path).splitlines():
        parts = line.split()
        if len(parts) >= 2:
            points.append((float(parts[2]) if len(parts) > 2 else 0.0, float(parts[1])))
    return sorted(points, key=lambda point: point[0])
