"""Weights & Biases' run folders: `wandb/run-TIME-ID/files/` with `config.yaml` and `wandb-summary.json`.

https://docs.wandb.ai/guides/track/ ; the history is a binary file of its own format, but for `wandb-history.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import interpret
from weightsearch.checkpoints.metadata_table import json_object, read_json, read_text
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report, belongs
from weightsearch.checkpoints.trackers.log_table import LogTable
from weightsearch.checkpoints.trackers.yaml_file import read_yaml

_RUN = re.compile(r"(offline-)?run-\d{8}_\d{6}-(\w+)")


def find(folder: Path, report: Report) -> Finder | None:
    files = folder / "files"
    runs = [folder] if _RUN.fullmatch(folder.name) and files.is_dir() else []
    if not runs:  # a training folder with one run of its own below `wandb`
        runs = [path for path in sorted(folder.glob("wandb/*run-*/")) if _RUN.fullmatch(path.name)]
    if len(runs) != 1:
        return None
    files = runs[0] / "files"
    summary = read_json(files / "wandb-summary.json") if (files / "wandb-summary.json").is_file() else {}
    config = read_yaml(files / "config.yaml") if (files / "config.yaml").is_file() else {}
    settings = {
        key: value["value"] if isinstance(value, Mapping) and "value" in value else value
        for key, value in config.items()
        if not key.startswith(("_wandb", "wandb_"))
    }
    history = files / "wandb-history.jsonl"
    rows = [json_object(line, history.name) for line in read_text(history).splitlines()] if history.is_file() else []
    table = LogTable.of(history.name, [{**row, "step": row.get("_step")} for row in rows])

    def label(path: Path, inside: Inside) -> Label | None:
        if runs[0] != folder and not belongs(path, folder):
            return None
        values: dict[str, Any] = {key: value for key, value in summary.items() if not key.startswith("_")}
        at_end = inside.epoch is None or summary.get("epoch") in (None, inside.epoch)
        of_checkpoint = table.values(inside) if rows else values if at_end else {}
        of_checkpoint = {
            key: value
            for key, value in of_checkpoint.items()
            if not key.startswith("_") and key not in ("epoch", "step")
        }
        return Label(interpret({**of_checkpoint, "config": settings}, "wandb"), folder if runs[0] == folder else None)

    return label
