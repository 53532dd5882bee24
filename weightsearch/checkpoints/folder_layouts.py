"""How public zoos and people's own folders lay out checkpoint files: what there is to read, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.discovery import Found, Quarantined, run_of, walk
from weightsearch.checkpoints.formats import natural
from weightsearch.checkpoints.metadata import Metadata, interpret, merge
from weightsearch.checkpoints.metadata_table import json_object, read_json, read_text
from weightsearch.errors import WeightsearchError

UNKNOWN = -999  # what the ModelZoos project logs for a training metric before the first epoch
RENAMED = {"lr": "learning_rate", "wd": "weight_decay", "nlin": "activation", "init_type": "initializer"}
# What Ray logs of itself in `result.json`.
BOOKKEEPING = {
    *(
        "config",
        "done",
        "trial_id",
        "experiment_id",
        "experiment_tag",
        "date",
        "timestamp",
        "pid",
        "hostname",
        "node_ip",
    ),
    *("training_iteration", "epoch", "iterations_since_restore", "time_since_restore", "timesteps_since_restore"),
    *("timesteps_total", "episodes_total", "warmup_time", "should_checkpoint"),
}
COMVEX_NAME = re.compile(r"(\d{8,})_(\d{1,9})\.pt")


class Layout(StrEnum):
    """The layouts of folders that are recognised.

    Example:
        >>> Layout('folder')
        <Layout.FOLDER: 'folder'>
    """

    SMALL_CNN_ZOO = "small-cnn-zoo"
    RAY_TUNE = "ray-tune"
    COMVEX = "comvex"
    HUGGINGFACE = "huggingface"
    FOLDER = "folder"


def recognise(folder: Path) -> Layout:
    """The layout of a folder; `FOLDER` is anybody's."""
    if all((folder / name).is_file() for name in ("weights.npy", "layout.csv")) and metrics_file(folder):
        return Layout.SMALL_CNN_ZOO
    if next(_trials(folder), None):
        return Layout.RAY_TUNE
    names = [path.name for path in folder.glob("*.pt")]
    if names and all(COMVEX_NAME.fullmatch(name) for name in names):
        return Layout.COMVEX
    if any(True for path in folder.rglob("config.json") if _hub_files(path.parent)):
        return Layout.HUGGINGFACE
    return Layout.FOLDER


def metrics_file(folder: Path) -> Path | None:
    """The Small CNN Zoo's table of metrics."""
    return next((path for name in ("metrics.csv.gz", "metrics.csv") if (path := folder / name).is_file()), None)


def find(folder: Path, layout: Layout) -> tuple[list[Found], list[Quarantined]]:
    """The checkpoint files of a folder, and what of its metadata cannot be read."""
    finders: Mapping[Layout, Callable[[Path, list[Quarantined]], Iterator[Found]]] = {
        Layout.RAY_TUNE: _ray_tune,
        Layout.COMVEX: _comvex,
        Layout.HUGGINGFACE: _huggingface,
        Layout.FOLDER: _folder,
    }
    quarantined: list[Quarantined] = []
    return list(finders[layout](folder, quarantined)), quarantined


def _folder(folder: Path, _: list[Quarantined]) -> Iterator[Found]:
    for path in walk(folder):
        yield Found(path, folder, run_of(path, folder))


def _trials(folder: Path) -> Iterator[Path]:
    """Ray Tune's trials: folders with `checkpoint_*` folders beside their settings or results."""
    for described in (*folder.rglob("params.json"), *folder.rglob("result.json")):
        if next(described.parent.glob("checkpoint_*/"), None):
            yield described.parent


def _ray_tune(folder: Path, quarantined: list[Quarantined]) -> Iterator[Found]:
    """The layout of https://github.com/ModelZoos/ModelZooDataset and https://github.com/HSG-AIML/WeightCLIP.

    `checkpoint_N` goes with the line of `result.json` whose training_iteration, or else epoch, is N.
    """
    for trial in sorted(set(_trials(folder)), key=lambda path: natural(str(path))):
        settings: dict[str, Any] = {}
        results: dict[int, Metadata] = {}
        try:
            if (trial / "params.json").is_file():
                settings = _settings(trial / "params.json")
            if (trial / "result.json").is_file():
                results = _results(trial / "result.json")
        except WeightsearchError as error:
            quarantined.append(Quarantined(str(trial), f"{error}; its checkpoints are imported without that"))
        place = trial.relative_to(folder).as_posix()
        run = folder.resolve().name if place == "." else place
        for kept in sorted(trial.glob("checkpoint_*/"), key=lambda path: natural(path.name)):
            if number := re.fullmatch(r"checkpoint_(\d{1,9})", kept.name):
                epoch = int(number[1])
                # The trial's own name and epoch count before whatever its results say.
                known = merge([Metadata(epoch=epoch, run=run, recipe=settings), results.get(epoch, Metadata())])
                for path in walk(kept):
                    yield Found(path, folder, run, known)


def _settings(path: Path) -> dict[str, Any]:
    """A trial's recipe: `optim::lr` is the learning rate, `model::nlin` the activation."""
    content = read_json(path)
    shorts = [key.rpartition("::")[2] for key in content]
    return {
        RENAMED.get(short, short) if shorts.count(short) == 1 else key: value
        for (key, value), short in zip(content.items(), shorts, strict=True)
    }


def _results(path: Path) -> dict[int, Metadata]:
    """The metrics of each epoch. A run that went on after a stop may have logged an epoch twice: the last counts."""
    results = {}
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    for i, line in enumerate(lines):
        try:
            row = json_object(line, path.name)
        except WeightsearchError as error:
            if i == len(lines) - 1:  # killed while it wrote
                break
            raise WeightsearchError(f"line {i + 1}: {error}") from None
        number = row.get("training_iteration", row.get("epoch", i))
        row = {key: value for key, value in row.items() if key not in BOOKKEEPING and value != UNKNOWN}
        if isinstance(number, int):
            results[number] = interpret(row, "result.json")
    return results


def _comvex(folder: Path, _: list[Quarantined]) -> Iterator[Found]:
    """The files of https://github.com/chrisliu298/comvex: `<timestamp>_<epoch>.pt`, by the time of saving.

    Their runs are told by `comvex_runs` when all have been read.
    """
    for path in sorted(folder.glob("*.pt"), key=lambda path: natural(path.name)):
        if match := COMVEX_NAME.fullmatch(path.name):
            yield Found(path, folder, "", Metadata(epoch=int(match[2])))


def comvex_runs(names: Sequence[str], known: Sequence[Metadata]) -> list[str]:
    """Each file's run. The files name none: those of one seed are one run, in order of time while the epoch goes up."""
    runs = [""] * len(names)
    latest: dict[Any, tuple[str, int]] = {}  # seed -> the run that goes on, and its epoch
    for i in sorted(range(len(names)), key=lambda i: natural(names[i])):
        seed, epoch = known[i].recipe.get("seed"), known[i].epoch or 0
        run, before = latest.get(seed, ("", epoch))
        if epoch <= before:
            started = names[i].partition("_")[0]
            run = started if seed is None else f"seed-{seed}-{started}"
        runs[i] = run
        latest[seed] = run, epoch
    return runs


def _hub_files(folder: Path) -> list[Path]:
    """A model's weights in a folder such as the Hugging Face hub has, in the best format there is of them."""
    files = [path for path in walk(folder) if path.parent == folder]
    for pattern in (r".*\.safetensors(\.index\.json)?", r"pytorch_model.*\.bin"):
        if matching := [path for path in files if re.fullmatch(pattern, path.name)]:
            return matching
    return []


def _huggingface(folder: Path, quarantined: list[Quarantined]) -> Iterator[Found]:
    """Folders of `config.json` and weights; `checkpoint-N` folders of a Trainer are epochs of the folder above."""
    for config in sorted(folder.rglob("config.json"), key=lambda path: natural(str(path))):
        model = config.parent
        step = re.fullmatch(r"checkpoint-(\d{1,9})", model.name)
        known = []
        for name, read in (
            ("trainer_state.json", _trainer_state),
            ("eval_results.json", read_json),
            ("all_results.json", read_json),
            ("config.json", lambda path: {"config": read_json(path)}),
        ):
            if (model / name).is_file():
                try:
                    known.append(interpret(read(model / name), name))
                except WeightsearchError as error:
                    quarantined.append(Quarantined(str(model / name), f"{error}; its model is imported without it"))
        run = (model.parent if step else model).relative_to(folder).as_posix()
        if run == ".":
            run = folder.resolve().name
        metadata = merge([Metadata(run=run), *known])
        for path in _hub_files(model):
            yield Found(path, folder, run, metadata)


def _trainer_state(path: Path) -> dict[str, Any]:
    """What a Trainer measured last before it saved; its epochs are fractions, its steps whole."""
    state = read_json(path)
    history = state.get("log_history")
    log = [row for row in history if isinstance(row, Mapping)] if isinstance(history, list) else []
    saved = _step(state.get("global_step"))
    measured: dict[str, Any] = {}
    for row in log:
        if _step(row.get("step")) <= saved:
            measured |= {key: value for key, value in row.items() if str(key).startswith("eval_")}
    return {**measured, "epoch": state.get("epoch"), "step": state.get("global_step")}


def _step(value: Any) -> int:
    """A Trainer's count of steps; 0 for whatever else stands in its place."""
    return value if isinstance(value, int) else 0
