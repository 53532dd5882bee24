"""TensorBoard's event files, by the `tensorboard` package's own reader; without the package they are not read."""

from __future__ import annotations

from pathlib import Path

from weightsearch.checkpoints.metadata import interpret, is_metric
from weightsearch.checkpoints.readers.guard import read_apart
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report, belongs
from weightsearch.errors import WeightsearchError

MAX_BYTES = 64 * 2**20


def find(folder: Path, report: Report) -> Finder | None:
    files = sorted(path for path in folder.glob("events.out.tfevents.*") if path.stat().st_size <= MAX_BYTES)
    if not files:
        return None
    series: dict[str, list[tuple[int, float]]] = {}
    for path in files:
        for tag, points in read_apart("events", path).items():
            series.setdefault(tag, []).extend((int(step), float(value)) for step, value in points)
    if not any(map(is_metric, series)):
        return None
    epochs = {step: value for step, value in series.get("epoch", ())}

    def label(path: Path, inside: Inside) -> Label | None:
        if not belongs(path, folder):
            return None
        values = {}
        for tag, points in series.items():
            if tag == "epoch":
                continue
            if inside.step is not None:
                until_then = [value for step, value in points if step <= inside.step]
            elif inside.epoch is not None:
                until_then = [value for step, value in points if epochs.get(step, step) == inside.epoch]
            else:
                until_then = []
            if until_then:
                values[tag] = until_then[-1]
        return Label(interpret(values, "tfevents"), folder) if values else None

    return label


def read_scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Of each tag the steps and values, in the order in which they were written."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util import tensor_util
    except ImportError:
        raise WeightsearchError(
            "event files need the package tensorboard: pip install 'weightsearch[formats]'"
        ) from None
    series: dict[str, list[tuple[int, float]]] = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                series.setdefault(value.tag, []).append((event.step, float(value.simple_value)))
            elif value.HasField("tensor") and not value.tensor.tensor_shape.dim:
                array = tensor_util.make_ndarray(value.tensor)
                if array.dtype.kind in "fiu" and array.size == 1:
                    series.setdefault(value.tag, []).append((event.step, float(array)))
    return series
