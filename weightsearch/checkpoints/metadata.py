"""What is known of a checkpoint beside its weights, from whatever its maker wrote down.

Makers call the same thing by many names: `interpret` finds accuracies, losses, the epoch, the run and the recipe in a
mapping, and keeps all else as users' columns. Several mappings about one checkpoint are merged, the surest first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.plain_values import MAX_METADATA_DEPTH, PlainValues
from weightsearch.errors import WeightsearchError
from weightsearch.files import plain
from weightsearch.text_table import counted

RECIPE_KEYS = ("recipe", "hyper_parameters", "hyperparameters", "hparams", "config", "params", "args")
HYPERPARAMETERS = frozenset(  # of the recipe wherever they stand
    {
        *("lr", "learning_rate", "optimizer", "optim", "momentum", "nesterov", "beta1", "beta2", "scheduler"),
        *("wd", "weight_decay", "l2", "l2reg", "dropout", "label_smoothing", "batch_size", "batchsize", "augmentation"),
        *(
            "activation",
            "initializer",
            "init",
            "init_type",
            "init_std",
            "train_fraction",
            "epochs",
            "max_epochs",
            "seed",
        ),
    }
)
NUMBERS = HYPERPARAMETERS - {  # of these, what is no word
    *("optimizer", "optim", "nesterov", "scheduler", "augmentation", "activation", "initializer", "init", "init_type")
}
# Of the hundred and fifty arguments of timm's script, those that are of the recipe though all runs have them alike.
TIMM_RECIPE = HYPERPARAMETERS | {"model", "opt", "sched", "drop", "smoothing", "warmup_epochs", "train_num_samples"}
LEFT_OUT_LISTED = 8
GROUP_KEYS = ("metrics", "results", "result", "evaluation", "eval", "scores")  # of metrics, maybe of more groups

# What people call an accuracy and a loss, behind the part of the data that it is of; the surest first.
_ACCURACIES = (
    *("accuracy", "acc", "top1", "acc1", "top1_accuracy", "top_1_accuracy", "top1_acc", "acc_top1", "accuracy_top1"),
    *("mean_accuracy", "categorical_accuracy", "sparse_categorical_accuracy", "binary_accuracy", "multiclassaccuracy"),
    *("binaryaccuracy", "multiclass_accuracy"),
)


def _of(parts: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """`test_acc`, and as others write it, `acc_test` (`Accuracy/test`)."""
    return tuple(f"{part}_{name}" for part in parts for name in names) + tuple(
        f"{name}_{part}" for part in parts for name in names
    )


# A column and its other names, the surest first; compared in lower case, all but letters and digits as one `_`.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "train_loss": _of(("train", "training"), ("loss",)),
    "train_accuracy": _of(("train", "training"), _ACCURACIES),
    "test_loss": _of(("test", "eval"), ("loss",)),
    "test_accuracy": (*_of(("test", "eval"), _ACCURACIES), *_ACCURACIES),
}
# Stand in for a test metric that is unknown, and stay users' columns besides.
STAND_INS: dict[str, tuple[str, ...]] = {
    "test_loss": _of(("val", "valid", "validation", "dev"), ("loss",)),
    "test_accuracy": _of(("val", "valid", "validation", "dev"), _ACCURACIES),
}
_COLUMNS = {name: column for column, names in SYNONYMS.items() for name in names}
_RANKS = {name: rank for names in SYNONYMS.values() for rank, name in enumerate(names)}
_STANDING = {name for names in STAND_INS.values() for name in names}
ACCURACIES = ("train_accuracy", "test_accuracy")
ROUNDING = 1e-6  # that an accuracy of 1, or of 100 %, may be over it
PERCENT = " in %"  # behind the origin of a value that was per cent by its own sign
RESERVED = frozenset(  # columns of an index: users' columns of these names get a `_` behind
    {
        *("number", "id", "architecture", "dataset", "run", "epoch", "predicted_accuracy", "split", "recipe"),
        *("embedding", "source", "metadata", "value", *SYNONYMS),
    }
)


@dataclass(frozen=True)
class Measured:
    """A number and where it came from: the kind of source and its maker's name for it, such as `file's val_acc`."""

    value: float
    origin: str


@dataclass(frozen=True)
class Metadata:
    """What is known of a checkpoint. `metrics` has only those of `SYNONYMS` that are known; all else may be None.

    `config` are settings of which only those that vary between runs belong to the recipe (see `vary`); `unread` says of
    a metric whose value is no number what it is instead.
    """

    metrics: Mapping[str, Measured] = field(default_factory=dict)
    epoch: float | None = None  # a fraction where a trainer counts so
    run: str | None = None
    dataset: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  # cells that nobody could keep, and why
    config: Mapping[str, Any] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)

    def value(self, column: str) -> float:
        """A metric's value, NaN where it is unknown."""
        return self.metrics[column].value if column in self.metrics else float("nan")


def interpret(values: Mapping[Any, Any], source: str) -> Metadata:
    """Sorts one mapping's items; `source` names its kind (`file`, `sidecar`, `table`) in a metric's origin.

    What a stranger wrote is cleaned first: a cell that is too deep, too long or no plain value costs that cell.
    """
    values, left_out = _cleaned(values, source)
    numbers: dict[str, list[tuple[int, str, float]]] = {}  # column -> rank, name and value of its candidates
    epoch: float | None = None
    run = dataset = None
    recipe: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    unread: dict[str, str] = {}
    percents: set[str] = set()
    is_timm = {"metric", "arch", "args"} <= set(values) and isinstance(values["args"], Mapping)
    values = _with_timm_metric(values) if is_timm else values

    def take(key: str, value: Any) -> None:
        name = _normal(key)
        measured = measured_value(value)
        if name in _COLUMNS and measured is not None:
            measured_as, percent = measured
            numbers.setdefault(_COLUMNS[name], []).append((_RANKS[name], key, measured_as))
            if percent:
                percents.add(key)
            return
        if (name in _COLUMNS or name in _STANDING) and measured is None and isinstance(value, str) and value.strip():
            unread[f"{source}'s {key}"] = value
        extras.setdefault(key, value)

    for key, value in values.items():
        name = _normal(key)
        prefix, _, rest = key.replace("/", ".").partition(".")
        if name in RECIPE_KEYS and isinstance(value, Mapping):
            recipe |= {k: v for k, v in flat(value).items() if k not in recipe}
        elif rest and prefix.lower() in RECIPE_KEYS:  # a table's column `config.lr`
            recipe[rest] = value
        elif name in HYPERPARAMETERS and isinstance(value, str | int | float | Decimal) and value == value:
            recipe.setdefault(key, value)
        elif name in GROUP_KEYS and isinstance(value, Mapping):
            for inner, item in flat(value, "_").items():
                take(inner, item)
        elif name in ("epoch", "current_epoch") and (told := _epoch(value)) is not None:
            epoch = told
        elif name == "epoch" and value not in (None, "") and value == value:
            unread[f"{source}'s {key}"] = str(value)
            extras.setdefault(key, value)
        elif name == "run" and (told_run := _run(value)) is not None:
            run = told_run
        elif name == "dataset" and isinstance(value, str):
            dataset = value
        else:
            take(key, value)
    metrics = {}
    for column, candidates in numbers.items():
        candidates.sort()
        _, key, measured_as = candidates[0]
        metrics[column] = Measured(measured_as, f"{source}'s {key}{PERCENT if key in percents else ''}")
        extras |= {other: value for _, other, value in candidates[1:]}
    for column, names in STAND_INS.items():
        standing = [(names.index(_normal(key)), key) for key in extras if _normal(key) in names]
        for _, key in sorted(standing):
            if column not in metrics and (number_of := measured_value(extras[key])) is not None:
                metrics[column] = Measured(number_of[0], f"{source}'s {key}{PERCENT if number_of[1] else ''}")
    named = {f"{key}_" if key in RESERVED else key: plain(value) for key, value in extras.items()}
    interpreted = Metadata(
        metrics, epoch, run, dataset,
        recipe={key: plain(_setting(key, value)) for key, value in recipe.items()},
        extras={key: value for key, value in named.items() if value is not None},
        left_out=left_out,
        unread=unread,
    )  # fmt: skip
    return timm_settings(interpreted) if is_timm else interpreted


def timm_settings(metadata: Metadata) -> Metadata:
    """The same with those of timm's arguments in `config` that are of the recipe only where they vary between runs."""
    of_recipe = {
        key: value
        for key, value in metadata.recipe.items()
        if _normal(key) in TIMM_RECIPE or key.startswith("model_kwargs.")
    }
    rest = {key: value for key, value in metadata.recipe.items() if key not in of_recipe}
    return replace(metadata, recipe=of_recipe, config={**rest, **metadata.config})


def _cleaned(values: Mapping[Any, Any], source: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What can be kept, and of what cannot its name and why."""
    cleaner = PlainValues()
    left_out = []

    def clean(values: Mapping[Any, Any], prefix: str, depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in values.items():
            try:
                if isinstance(value, Mapping) and depth < MAX_METADATA_DEPTH:
                    name, inner = cleaner.clean(key, None)[0], clean(value, f"{prefix}{key}.", depth + 1)
                    if inner or not value:
                        kept.setdefault(name, inner)
                else:
                    kept.setdefault(*cleaner.clean(key, value))
            except WeightsearchError as error:
                left_out.append(f"{source}'s {shown(f'{prefix}{key}')} ({error})")
        return kept

    return clean(values, "", 0), tuple(left_out)


def merge(parts: Sequence[Metadata]) -> Metadata:
    """One account out of several, the surest first."""
    merged = Metadata()
    for other in parts:
        # A later source's test accuracy counts before an earlier one's validation accuracy: it is what was asked for.
        metrics = {**other.metrics, **merged.metrics}
        for column, metric in other.metrics.items():
            if _stands_in(merged.metrics.get(column)) and not _stands_in(metric):
                metrics[column] = metric
        merged = Metadata(
            metrics,
            other.epoch if merged.epoch is None else merged.epoch,
            other.run if merged.run is None else merged.run,
            other.dataset if merged.dataset is None else merged.dataset,
            {**other.recipe, **merged.recipe},
            {**other.extras, **merged.extras},
            (*merged.left_out, *other.left_out),
            {**other.config, **merged.config},
            {**other.unread, **merged.unread},
        )
    return merged


def as_fractions(of_files: Sequence[Metadata]) -> tuple[list[Metadata], list[str]]:
    """The same with all accuracies in [0, 1], and what to warn of.

    Accuracies of one origin are judged together, since 0.9 may be per cent if its neighbours are 55 and 80: they are
    per cent if any is over 1. A value below 0, or over 100 beside shares, is no accuracy and becomes unknown; beside
    values of 1 to 100 one over 100 means that they count something else, and all become unknown.
    """
    origins: dict[str, list[float]] = {}
    for metadata in of_files:
        for column in ACCURACIES:
            if column in metadata.metrics:
                origins.setdefault(metadata.metrics[column].origin, []).append(metadata.metrics[column].value)
    scales: dict[str, float | None] = {}
    warnings = []
    for origin, values in origins.items():
        if origin.endswith(PERCENT):  # by its own sign, and a fraction already
            scales[origin] = 1.0
            continue
        inside = [value for value in values if 0 <= value <= 100 + ROUNDING]
        outside = [value for value in values if not 0 <= value <= 100 + ROUNDING]
        high = max(inside, default=0.0)
        if not inside or (max(values) > 100 + ROUNDING and high > 1 + ROUNDING):
            scales[origin] = None
            warnings.append(
                f"{origin} is no accuracy (it goes from {min(values):g} to {max(values):g}), so those are unknown"
            )
            continue
        if outside:
            cells = counted(len(outside), "file")
            warnings.append(f"{origin} is no accuracy in {cells}, such as {outside[0]:g}, so it is unknown there")
        scales[origin] = 0.01 if high > 1 + ROUNDING else 1.0
        if high > 1 + ROUNDING:
            warnings.append(f"{origin} goes up to {high:g}: taken as per cent and divided by 100")

    def scaled(metadata: Metadata) -> Metadata:
        metrics = dict(metadata.metrics)
        for column in ACCURACIES:
            if column in metrics:
                scale = scales[metrics[column].origin]
                share = math.nan if scale is None else metrics[column].value * scale
                if not 0 <= share <= 1 + ROUNDING:
                    del metrics[column]
                elif share > 1 or scale != 1:
                    metrics[column] = replace(metrics[column], value=min(share, 1.0))
        return metadata if metrics == metadata.metrics else replace(metadata, metrics=metrics)

    return [scaled(metadata) for metadata in of_files], warnings


def vary(of_files: Sequence[Metadata], runs: Sequence[str]) -> list[Metadata]:
    """The same with what varies of their `config` between runs in their recipes: `runs` names each one's."""
    seen: dict[str, dict[str, str]] = {}  # key -> run -> value
    for metadata, run in zip(of_files, runs, strict=True):
        for key, value in metadata.config.items():
            seen.setdefault(key, {})[run] = repr(value)
    varying = {key for key, by_run in seen.items() if len(set(by_run.values())) > 1}
    return [
        replace(metadata, recipe={**{k: v for k, v in metadata.config.items() if k in varying}, **metadata.recipe})
        if varying
        else metadata
        for metadata in of_files
    ]


def unread(of_files: Iterable[Metadata]) -> list[str]:
    """What to tell people about metrics that are no numbers."""
    columns: dict[str, list[str]] = {}
    for metadata in of_files:
        for origin, text in metadata.unread.items():
            columns.setdefault(origin, []).append(text)
    return [
        f"{origin} is no number in {counted(len(texts), 'file')}, such as '{texts[0][:40]}': it is not taken"
        for origin, texts in columns.items()
    ]


def told(of_files: Sequence[Metadata]) -> list[str]:
    """How many accuracies were found, and from where."""
    origins: dict[str, int] = {}
    for metadata in of_files:
        if (measured := metadata.metrics.get("test_accuracy")) is not None:
            origins[measured.origin] = origins.get(measured.origin, 0) + 1
    if not of_files:
        return []
    if not origins:
        return ["no accuracies were found; give them with --metadata TABLE, which names each file in a column `path`"]
    places = ", ".join(
        dict.fromkeys("{1} in {0}".format(*origin.removesuffix(PERCENT).split("'s ", 1)) for origin in origins)
    )
    return [f"accuracy for {sum(origins.values()):,} of {len(of_files):,}, from {places}"]


def stand_ins(of_files: Iterable[Metadata]) -> list[str]:
    """What to tell people about test metrics that are validation ones, and about cells that were left out."""
    counts: dict[tuple[str, str], int] = {}
    for metadata in of_files:
        for column, metric in metadata.metrics.items():
            if _stands_in(metric):
                counts[column, metric.origin] = counts.get((column, metric.origin), 0) + 1
    notes = [
        f"{origin} stands in for {column} ({counted(count, 'file')})" for (column, origin), count in counts.items()
    ]
    left_out = Counter(text for metadata in of_files for text in metadata.left_out)
    listed = [f"left out {text} ({counted(count, 'file')})" for text, count in left_out.most_common(LEFT_OUT_LISTED)]
    more = len(left_out) - len(listed)
    return notes + listed + ([f"left out {more:,} more cells"] if more else [])


def flat(values: Mapping[Any, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _normal(name: str) -> str:
    normal = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return normal.removesuffix("_epoch") if normal != "current_epoch" else normal  # as Lightning logs an epoch's mean


def is_metric(name: str) -> bool:
    """Whether people call an accuracy or a loss by this name."""
    return _normal(name) in _COLUMNS or _normal(name) in _STANDING or _normal(name) == "loss"


def _stands_in(metric: Measured | None) -> bool:
    return metric is not None and _normal(metric.origin.removesuffix(PERCENT).rpartition("'s ")[2]) in _STANDING


def number(value: Any) -> float | None:
    """A finite number, also as text, with a decimal comma too; diverged training writes NaN, which says nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    if isinstance(value, str):
        value = value.strip()
        if re.fullmatch(r"[+-]?\d+,\d+", value):
            value = value.replace(",", ".")
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def typed(text: str) -> Any:
    """A number where a text is one, else the text: integers exact up to 64 bits, larger ones as text."""
    if re.fullmatch(r"[+-]?(0|[1-9]\d{0,18})", text):
        whole = int(text)
        return whole if abs(whole) < 2**63 else text
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", text):
        parsed = float(text)
        return parsed if math.isfinite(parsed) else text
    return {"true": True, "false": False}.get(text.lower(), text)


def measured_value(value: Any) -> tuple[float, bool] | None:
    """A metric's value, and whether it was per cent by its own sign: `93.1%` is 0.931."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([^%\s]+)\s*%\s*", value)):
        share = number(match[1])
        return None if share is None else (share / 100, True)
    parsed = number(value)
    return None if parsed is None else (parsed, False)


def _setting(name: str, value: Any) -> Any:
    """A number that was written as text: `1e-3`, which is one to YAML, and of settings that are numbers any."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _normal(name.rpartition(".")[2]) in NUMBERS:
        parsed = typed(text)
        return number(text) if re.fullmatch(r"[+-]?\d+,\d+", text) else value if isinstance(parsed, str) else parsed
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]\d{1,2}", text) else value


def _epoch(value: Any) -> float | None:
    """A number of epochs, whole ones as int; of `12/90` the first, of `epoch=03-step=120` 3."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(?:(?:epoch|ep)[\s=_:-]*)?(\d+(?:\.\d+)?)\s*/\s*\d+\s*", value, re.IGNORECASE)
        match = match or re.match(r"\s*(?:epoch|ep)[\s=_:-]*(\d+(?:\.\d+)?)(?![\w.])", value, re.IGNORECASE)
        value = match[1] if match else value
    parsed = number(value)
    if parsed is None or abs(parsed) > 2**53:
        return None
    return int(parsed) if parsed == int(parsed) else parsed


def _run(value: Any) -> str | None:
    """A run's name of whatever type: `1.0`, as pandas writes whole numbers beside a gap, is 1."""
    if isinstance(value, bool) or value is None or isinstance(value, Mapping | list | tuple):
        return None
    if isinstance(value, float):
        return None if not math.isfinite(value) else str(int(value)) if value == int(value) else repr(value)
    return str(value) or None


def _with_timm_metric(values: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """timm's checkpoints hold their evaluation metric as `metric`, and its name, if another one, in their arguments."""
    name = values["args"].get("eval_metric", "top1")
    named = {key: value for key, value in values.items() if key != "metric"}
    return {**named, f"eval_{name}": values["metric"]}
