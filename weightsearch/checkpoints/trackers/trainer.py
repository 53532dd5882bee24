"""Hugging Face: a Trainer's `trainer_state.json` and `training_args.bin`, and a model's `config.json`.

https://huggingface.co/docs/transformers/main_classes/trainer
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.formats import read_content
from weightsearch.checkpoints.metadata import Metadata, interpret, merge, number
from weightsearch.checkpoints.metadata_table import read_json
from weightsearch.checkpoints.pickle_scanner import Placeholder
from weightsearch.checkpoints.pickle_values import plain
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report
from weightsearch.errors import WeightsearchError

# Of the hundred training arguments, those that decide how a network turns out.
HYPERPARAMETERS = (
    *("learning_rate", "weight_decay", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "optim", "seed"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor"),
)
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})")


def find(folder: Path, report: Report) -> Finder | None:
    names = ("trainer_state.json", "training_args.bin", "config.json", "eval_results.json", "all_results.json")
    if not any((folder / name).is_file() for name in names):
        return None
    step = _CHECKPOINT.fullmatch(folder.name)
    run = folder.parent if step else folder
    of_files: list[Metadata] = []
    for name, read in (
        ("trainer_state.json", trainer_state),
        ("eval_results.json", read_json),
        ("all_results.json", read_json),
        ("training_args.bin", lambda path: {"hparams": training_arguments(path)}),
        ("config.json", _configuration),
    ):
        if (folder / name).is_file():
            try:
                content = read(folder / name)
                of_files.append(content if isinstance(content, Metadata) else interpret(content, name))
            except WeightsearchError as error:
                report(folder / name, error)
    metadata = merge(of_files)

    def label(path: Path, inside: Inside) -> Label | None:
        return Label(metadata, run) if path.parent == folder else None

    return label


def trainer_state(path: Path) -> dict[str, Any]:
    """What a Trainer measured last before it saved; its epochs are fractions, its steps whole."""
    state = read_json(path)
    history = state.get("log_history")
    log = [row for row in history if isinstance(row, Mapping)] if isinstance(history, list) else []
    measured: dict[str, Any] = {}
    last = number(state.get("global_step"))
    for row in log:
        step = number(row.get("step", 0))
        if step is not None and (last is None or step <= last):
            measured |= {key: value for key, value in row.items() if str(key).startswith("eval_")}
            if "loss" in row:
                measured["train_loss"] = row["loss"]
    ignored = re.compile(r"eval_(runtime|.*_per_second|.*_time)")
    kept = {key: value for key, value in measured.items() if not ignored.fullmatch(key)}
    return {**kept, "epoch": state.get("epoch"), "step": state.get("global_step")}


def training_arguments(path: Path) -> dict[str, Any]:
    """The swept values of `training_args.bin`, a pickle that is read and not obeyed."""
    tree = read_content(path).tree
    state = tree.state if isinstance(tree, Placeholder) else None
    if not isinstance(state, Mapping):
        return {}
    values = {name: plain(state[name]) for name in HYPERPARAMETERS if name in state}
    return {
        ("batch_size" if name == "per_device_train_batch_size" else name): value
        for name, value in values.items()
        if isinstance(value, str | int | float) and not (name == "max_steps" and value == -1)
    }


def _configuration(path: Path) -> Metadata:
    """A model's configuration: what of it varies between runs belongs to the recipe, which the whole import tells."""
    content = read_json(path)
    settings = {
        key: value
        for key, value in content.items()
        if isinstance(value, str | int | float | bool) and not key.startswith("_") and not key.endswith("_version")
    }
    kind = content.get("model_type")
    return Metadata(config=settings, extras={"model_type": kind} if isinstance(kind, str) else {})
