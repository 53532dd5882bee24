"""Ray Tune: a trial's folder has `params.json`, `result.json` with a line per report, and `checkpoint_N` folders.

https://docs.ray.io/en/latest/tune/ ; the same layout, with other numbers, in the zoos of
https://github.com/ModelZoos/ModelZooDataset and https://github.com/HSG-AIML/WeightCLIP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import Metadata, interpret, merge
from weightsearch.checkpoints.metadata_table import json_object, read_json, read_text
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report
from weightsearch.errors import WeightsearchError

UNKNOWN = -999  # what the ModelZoos project logs for a training metric before the first epoch
RENAMED = {"lr": "learning_rate", "wd": "weight_decay", "nlin": "activation", "init_type": "initializer"}
BOOKKEEPING = {  # what Ray logs of itself
    *("config", "done", "trial_id", "experiment_id", "experiment_tag", "date", "timestamp", "pid", "hostname"),
    *("node_ip", "training_iteration", "epoch", "iterations_since_restore", "time_since_restore"),
    *("timesteps_since_restore", "timesteps_total", "episodes_total", "warmup_time", "should_checkpoint"),
    "checkpoint_dir_name",
}
_CHECKPOINT = re.compile(r"checkpoint_(\d{1,9})")


def find(folder: Path, report: Report) -> Finder | None:
    described = [folder / name for name in ("params.json", "result.json") if (folder / name).is_file()]
    if not described or not any(_CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoint_*/")):
        return None
    settings: dict[str, Any] = {}
    lines: list[Mapping[str, Any]] = []
    try:
        settings = trial_settings(folder / "params.json") if (folder / "params.json").is_file() else {}
        lines = result_lines(folder / "result.json") if (folder / "result.json").is_file() else []
    except WeightsearchError as error:
        report(folder, error)
    by_checkpoint = match_results(
        [path.name for path in folder.glob("checkpoint_*/") if _CHECKPOINT.fullmatch(path.name)], lines
    )

    def label(path: Path, inside: Inside) -> Label | None:
        place = path.relative_to(folder).parts
        number = _CHECKPOINT.fullmatch(place[0]) if place else None
        if number is None:
            return None
        line = by_checkpoint.get(place[0])
        epoch = int(number[1]) if line is None else _iteration(line, int(number[1]))
        measured = {key: value for key, value in (line or {}).items() if key not in BOOKKEEPING and value != UNKNOWN}
        metadata = merge([Metadata(epoch=epoch, recipe=settings), interpret(measured, "result.json")])
        return Label(metadata, folder)

    return label


def match_results(checkpoints: list[str], lines: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each checkpoint's line: the one that names it, else the one of its number, else the one of its place in order.

    A run that went on after a stop may have reported an iteration twice: the last counts.
    """
    named = {str(line["checkpoint_dir_name"]): line for line in lines if line.get("checkpoint_dir_name")}
    if named:
        return named
    numbers = {name: int(name.rpartition("_")[2]) for name in checkpoints}
    by_iteration = {_iteration(line, i): line for i, line in enumerate(lines)}
    if 0 in numbers.values() and 0 not in by_iteration and len(by_iteration) == len(numbers):
        ordered = sorted(numbers, key=numbers.__getitem__)
        return dict(zip(ordered, (by_iteration[key] for key in sorted(by_iteration)), strict=True))
    return {name: by_iteration[number] for name, number in numbers.items() if number in by_iteration}


def _iteration(line: Mapping[str, Any], default: int) -> int:
    value = line.get("training_iteration", line.get("epoch", default))
    return value if isinstance(value, int) else default


def trial_settings(path: Path) -> dict[str, Any]:
    """A trial's recipe: `optim::lr` is the learning rate, `model::nlin` the activation."""
    content = read_json(path)
    shorts = [key.rpartition("::")[2] for key in content]
    return {
        RENAMED.get(short, short) if shorts.count(short) == 1 and "::" in key else key: value
        for (key, value), short in zip(content.items(), shorts, strict=True)
    }


def result_lines(path: Path) -> list[Mapping[str, Any]]:
    """The reports; a last line that was cut while it was written is left out."""
    results: list[Mapping[str, Any]] = []
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    for i, line in enumerate(lines):
        try:
            results.append(json_object(line, path.name))
        except WeightsearchError as error:
            if i == len(lines) - 1:
                break
            raise WeightsearchError(f"line {i + 1}: {error}") from None
    return results
