"""Logs beside checkpoints: timm's `summary.csv` and `args.yaml`, Keras' CSVLogger, and anybody's CSV by epoch."""

from __future__ import annotations

import re
from pathlib import Path

from weightsearch.checkpoints.metadata import Metadata, interpret, is_metric, merge, timm_settings
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report, belongs
from weightsearch.checkpoints.trackers.log_table import LogTable, read_csv
from weightsearch.checkpoints.trackers.yaml_file import read_yaml
from weightsearch.checkpoints.walk import KERAS

MAX_LOGS = 8  # CSV files that are opened in one folder
_SETTINGS = ("args.yaml", "config.yaml", "hparams.yml", "config.yml")
_TELLING_RUNS = re.compile(r"(run|trial|path|file|checkpoint|model|name)(_?(id|name|number))?", re.IGNORECASE)


def find(folder: Path, report: Report) -> Finder | None:
    if folder.name == "files" and folder.parent.name.startswith(("run-", "offline-run-")):
        return None  # Weights & Biases' own
    tables = []
    for path in sorted((*folder.glob("*.csv"), *folder.glob("*.log")))[:MAX_LOGS]:
        if path.name == "metrics.csv" and (folder / "hparams.yaml").is_file():
            continue  # Lightning's
        rows = read_csv(path) if path.is_file() else []
        names = set(rows[0]) if rows else set()
        by_time = {"epoch", "Epoch", "step", "global_step", "iteration"} & names
        if by_time and any(map(is_metric, names)) and not any(map(_TELLING_RUNS.fullmatch, names)):
            tables.append(LogTable.of(path.name, rows))
    settings = next((folder / name for name in _SETTINGS if (folder / name).is_file()), None)
    if not tables and settings is None:
        return None
    recipe = interpret({"hparams": read_yaml(settings)}, settings.name) if settings else Metadata()
    recipe = timm_settings(recipe) if settings and settings.name == "args.yaml" else recipe

    def label(path: Path, inside: Inside) -> Label | None:
        if not belongs(path, folder):
            return None
        keras = path.name.endswith(KERAS)
        logged = []
        for table in tables:
            values = table.values(inside, 1 if keras else 0)
            if any(key.startswith("val_") for key in values):  # Keras calls the training part's plainly
                values = {f"train_{key}" if key in ("accuracy", "acc", "loss") else key: v for key, v in values.items()}
            logged.append(interpret(values, table.name))
        metadata = merge([*logged, recipe])
        if metadata == Metadata():
            return None
        return Label(metadata)

    return label
