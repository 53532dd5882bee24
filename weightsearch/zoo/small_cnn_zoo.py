"""The Small CNN Zoo of Unterthiner et al. 2020, "Predicting Neural Network Accuracy from Weights".

https://github.com/google-research/google-research/tree/master/dnn_predict_accuracy: `weights.npy` has a row per
checkpoint, `metrics.csv.gz` its metrics and hyperparameters in the same order, and `layout.csv` (varname, start_idx,
end_idx, shape) says where each variable lies in a row. Per layer the bias comes first; kernels are Keras', HWIO for
convolutions and (inputs, outputs) for dense layers. `step` is the epoch, `modeldir` the run.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.files import plain
from weightsearch.types import Architecture, Layer, LayerKind
from weightsearch.zoo.import_rows import CheckpointToWrite, RunToWrite
from weightsearch.zoo.schema import METRICS

RENAMED = {"w_init": "initializer", "b_init": "bias_initializer", "random_seed": "seed"}
DATASETS = {"svhn_cropped": "svhn"}  # by TensorFlow Datasets' name; else `_` becomes `-`
_KINDS = {2: LayerKind.DENSE, 3: LayerKind.CONV1D, 4: LayerKind.CONV2D, 5: LayerKind.CONV3D}
_CONFIG = "config."
MAX_LAYOUT_BYTES = 16 * 2**20
MAX_COLUMNS = 10_000_000  # values of one network


def read_layout(path: Path) -> tuple[Architecture, np.ndarray]:
    """The architecture, and for each of our flat weights `(P,)` the column of `weights.npy` that holds it."""
    try:
        if path.stat().st_size > MAX_LAYOUT_BYTES:
            raise ValueError(f"it is over {MAX_LAYOUT_BYTES // 2**20} MiB")
        with path.open(newline="", encoding="utf-8") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: int(row["start_idx"]))
        if sum(int(row["end_idx"]) - int(row["start_idx"]) for row in rows) > MAX_COLUMNS:
            raise ValueError(f"it describes rows of over {MAX_COLUMNS:,} values")
        variables = {row["varname"]: _columns(row) for row in rows}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise WeightsearchError(
            f"{path} cannot be read ({error!r}); it needs the columns varname, start_idx, end_idx and shape"
        ) from None
    layers, columns = [], []
    for module in dict.fromkeys(name.rpartition("/")[0] for name in variables):
        kept_columns = {
            name.rpartition("/")[2].partition(":")[0]: name for name in variables if name.rpartition("/")[0] == module
        }
        kernel = variables[kept_columns["kernel"]] if "kernel" in kept_columns else None
        if kernel is None or kernel.ndim not in _KINDS or set(kept_columns) - {"kernel", "bias"}:
            raise WeightsearchError(
                f"{path}: the layer {module} has the variables {', '.join(kept_columns)}; only a kernel with or "
                "without a bias can be imported"
            )
        weight = np.moveaxis(kernel, (-1, -2), (0, 1))  # (..., inputs, outputs) -> (outputs, inputs, ...)
        parts = [weight.reshape(len(weight), -1)]
        if "bias" in kept_columns:
            bias = variables[kept_columns["bias"]]
            if bias.size != len(parts[0]):
                raise WeightsearchError(f"{path}: the bias of {module} has {bias.size} values for {len(parts[0])} rows")
            parts.append(bias.reshape(-1, 1))
        extras = ("bias",) if "bias" in kept_columns else ()
        layers.append(Layer(module.replace("/", "."), _KINDS[kernel.ndim], weight.shape, extras))
        columns.append(np.concatenate(parts, axis=1).ravel())
    if not layers:
        raise WeightsearchError(f"{path} names no variables")
    return Architecture(tuple(layers)), np.concatenate(columns)


def _columns(row: dict[str, str]) -> np.ndarray:
    """The columns that hold a variable, in its shape."""
    start, end = int(row["start_idx"]), int(row["end_idx"])
    if not 0 <= start <= end <= MAX_COLUMNS:
        raise ValueError(f"{row['varname']} from {start} to {end} is no place in a row")
    shape = tuple(int(number) for number in re.findall(r"\d+", row["shape"]))
    if not shape or start < 0 or math.prod(shape) != end - start:
        raise ValueError(f"{row['varname']} of shape {row['shape']} does not fit {start} to {end}")
    return np.arange(start, end).reshape(shape)


def open_small_cnn_zoo(
    folder: Path, metrics: Path, limit: int | None = None
) -> tuple[Architecture, list[RunToWrite], str | None, Callable[[str], np.ndarray], list[str]]:
    """The architecture, the runs (the first `limit`), the dataset, how to read a source's weights, and notes."""
    architecture, columns = read_layout(folder / "layout.csv")
    path = folder / "weights.npy"
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsearchError(f"{path} cannot be read ({error}); copy or unpack it again") from None
    if stored.ndim != 2 or not np.issubdtype(stored.dtype, np.floating) or stored.shape[1] != len(columns):
        raise WeightsearchError(
            f"{path} is {stored.dtype} of shape {stored.shape}, but {folder / 'layout.csv'} describes rows of "
            f"{len(columns):,} floating-point values; give files of one zoo"
        )
    table = _read_metrics(metrics)
    if len(table["step"]) != len(stored):
        raise WeightsearchError(
            f"{path} has {len(stored):,} rows and {metrics} {len(table['step']):,}; give files of one zoo"
        )
    runs, notes = _runs(table, path, limit, architecture)

    def read(source: str) -> np.ndarray:
        return stored[int(source.rpartition("#")[2])][columns].astype(np.float32)

    names = {str(value) for value in table.get("config.dataset", ())}
    dataset = DATASETS.get(name := names.pop(), name.replace("_", "-")) if len(names) == 1 else None
    return architecture, runs, dataset, read, notes


def _read_metrics(path: Path) -> dict[str, list[Any]]:
    import duckdb

    try:
        with duckdb.connect() as connection:
            relation = connection.execute("SELECT * FROM read_csv(?, header = true, sample_size = -1)", [str(path)])
            columns = {name: np.ma.asarray(column).tolist() for name, column in relation.fetchnumpy().items()}
    except (duckdb.Error, ValueError) as error:
        raise WeightsearchError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    missing = [name for name in ("modeldir", "step", *METRICS) if name not in columns]
    if missing:
        raise WeightsearchError(f"{path} has no column {', '.join(missing)}; it has {', '.join(columns)}")
    return columns


def _runs(
    table: dict[str, list[Any]], weights: Path, limit: int | None, architecture: Architecture
) -> tuple[list[RunToWrite], list[str]]:
    rows: dict[str, dict[int, int]] = {}  # run -> epoch -> row
    repeated = 0
    for row, (run, step) in enumerate(zip(table["modeldir"], table["step"], strict=True)):
        epochs = rows.setdefault(str(run), {})
        repeated += step in epochs
        epochs.setdefault(int(step), row)
    config = {name: RENAMED.get(name.removeprefix(_CONFIG), name.removeprefix(_CONFIG)) for name in table}
    recipe_columns = [name for name in table if name.startswith(_CONFIG)]
    extras = [name for name in table if name not in (*METRICS, "modeldir", "step", *recipe_columns) and _named(name)]
    names = _short(list(rows))
    runs = []
    for run, epochs in list(rows.items())[:limit]:
        first = next(iter(epochs.values()))
        checkpoints = [
            CheckpointToWrite(
                epoch,
                f"{weights}#{row}",
                {key: table[key][row] for key in METRICS if isinstance(table[key][row], int | float)},
                {key: plain(table[key][row]) for key in extras if table[key][row] is not None},
                architecture,
            )
            for epoch, row in sorted(epochs.items())
        ]
        runs.append(
            RunToWrite(names[run], {config[key]: plain(table[key][first]) for key in recipe_columns}, checkpoints)
        )
    return runs, [f"{repeated:,} rows repeat an epoch of their run and were left out"] if repeated else []


def _named(column: str) -> bool:
    """Whether a column is more than the row numbers that pandas writes."""
    return not re.fullmatch(r"(column\d+|Unnamed: \d+|)", column)


def _short(runs: Sequence[str]) -> dict[str, str]:
    """Runs' names without the directories that all share."""
    parts = {run: [part for part in run.split("/") if part] for run in runs}
    shared = 0
    while (
        all(len(words) > shared + 1 for words in parts.values())
        and len({words[shared] for words in parts.values()}) == 1
    ):
        shared += 1
    return {run: "/".join(words[shared:]) for run, words in parts.items()}
