"""PyTorch Lightning: `hparams.yaml`, and `metrics.csv` of its CSVLogger, above the folder `checkpoints`.

https://lightning.ai/docs/pytorch/stable/extensions/logging.html
"""

from __future__ import annotations

from pathlib import Path

from weightsearch.checkpoints.metadata import Metadata, interpret, merge
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report, belongs
from weightsearch.checkpoints.trackers.log_table import LogTable, read_csv
from weightsearch.checkpoints.trackers.yaml_file import read_yaml


def find(folder: Path, report: Report) -> Finder | None:
    settings, metrics = folder / "hparams.yaml", folder / "metrics.csv"
    has_settings = settings.is_file()
    rows = read_csv(metrics) if metrics.is_file() else []
    if not has_settings and not (rows and {"epoch", "step"} <= set(rows[0])):
        return None
    recipe = interpret({"hparams": read_yaml(settings)}, "hparams.yaml") if has_settings else Metadata()
    table = LogTable.of("metrics.csv", rows)

    def label(path: Path, inside: Inside) -> Label | None:
        if not belongs(path, folder):
            return None
        return Label(merge([interpret(table.values(inside), "metrics.csv"), recipe]), folder)

    return label
