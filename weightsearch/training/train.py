"""From a zoo to an index: fit the encoders, keep the one that predicts validation runs best, index every checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.state_dict import write_checkpoint
from weightsearch.devices import check_device
from weightsearch.encoders import load_encoder, save_encoder
from weightsearch.index import add_architecture, check_addition, check_target, create_index
from weightsearch.index.zoo_rows import run_name, zoo_rows
from weightsearch.metrics import Prediction, score
from weightsearch.progress import progress_bar
from weightsearch.training.data import Features, finite_weights, target_values, usable_checkpoints
from weightsearch.training.fit import Fit, fit
from weightsearch.training.fit_settings import DEFAULTS, settings_from_dict
from weightsearch.training.index_card import index_card
from weightsearch.training.options import MOST_EXAMPLES, TrainOptions
from weightsearch.training.random_search import search, validation_loss
from weightsearch.training.represent import Representation, represent_zoo
from weightsearch.training.runner import SplitSpec
from weightsearch.training.summary import Example, TrainSummary
from weightsearch.types import Method
from weightsearch.uncertainty.calibration import FAMILIAR, Calibration, calibrate_encoder, familiar_layers
from weightsearch.zoo.splits import Split, make_split
from weightsearch.zoo.store import CheckpointTable, Zoo

log = logging.getLogger("weightsearch")

AUTO = (Method.COMVEX_CONV, Method.STATISTICS, Method.INVARIANT)  # tried when no method is named

# Where the held-out examples lie among the test runs' checkpoints, by quantile of test accuracy or of another target.
EXAMPLES = {"very-good": 1.0, "bad": 0.1, "good": 0.85, "middling": 0.5}
assert len(EXAMPLES) == MOST_EXAMPLES


def train(
    zoo: str | Path, out: str | Path, options: TrainOptions | None = None, *, quiet: bool = False, **changes: Any
) -> TrainSummary:
    """Makes an index of a zoo: fits encoders, keeps the one that predicts validation runs best, adds every checkpoint.

    Splits 70/15/15, by run unless the options say otherwise; half of the test runs then calibrate the intervals instead
    (see `Split.with_calibration`). The test part is scored once, with the method that was kept.

    Args:
        zoo: the zoo's directory.
        out: the index's directory, which must not hold anything yet (but see `replace` and `add` in `TrainOptions`).
        options: how; by default as `TrainOptions()` says.
        changes: fields of `TrainOptions` that differ from `options`.
        quiet: no progress on stderr.

    Raises:
        UsageError: options that make no sense, or do not fit the zoo or the index.
        WeightsearchError: a zoo from which nothing can be learned, or files that cannot be read or written.

    Example:
        >>> train("runs/zoos/usps-v1", "runs/indexes/usps-v1", method="statistics", metric="l2")  # doctest: +SKIP
    """
    options = replace(options or TrainOptions(), **changes)
    opened, directory = Zoo.open(zoo), Path(out)
    _check_place(opened, directory, options)
    sample = _sample(opened, options)
    fits = _fit_methods(opened, sample.split, options, quiet)
    kept = best_method({method: fitted.validation for method, fitted in fits.items()})
    measured = _measure(opened, sample, fits[kept], options)
    summary = _summarise(opened, directory, sample, fits, kept, measured, options)
    _write(opened, sample, fits[kept], measured, summary, options)
    return summary


@dataclass(frozen=True, eq=False)
class _Sample:
    """The zoo's checkpoints as the fit sees them; positions are those of the zoo's table."""

    table: CheckpointTable
    values: np.ndarray  # (n,) of the target, NaN where unknown
    usable: np.ndarray  # positions with a finite target and finite weights
    split: Split


@dataclass(frozen=True, eq=False)
class _Measured:
    """All checkpoints through the encoder that was kept."""

    represented: Representation  # of all n
    split: Split  # with the calibration part taken from the test part
    test: Prediction
    calibration: Calibration
    examples: dict[str, int]  # positions by name
    indexed: np.ndarray  # positions of the index's rows


def _check_place(zoo: Zoo, directory: Path, options: TrainOptions) -> None:
    if options.add:
        check_addition(directory, zoo.architecture, options.target, options.metric)
    else:
        check_target(directory, options.replace)
    check_device(options.device)


def _sample(zoo: Zoo, options: TrainOptions) -> _Sample:
    table = zoo.table()
    values = target_values(table, options.target)
    usable = usable_checkpoints(zoo, options.target)
    split = make_split(table, by=options.split_by, per_run=options.per_run, seed=options.seed, usable=usable)
    return _Sample(table, values, usable, split)


def _fit_methods(zoo: Zoo, split: Split, options: TrainOptions, quiet: bool) -> dict[Method, Fit]:
    """Each method's fit with its default settings, or the best of its trials."""
    methods = AUTO if options.method is None else (options.method,)
    if options.trials:
        return {method: _search(zoo, method, options, quiet) for method in methods}
    return {method: _fit(zoo, split, method, options, quiet) for method in methods}


def best_method(validation: Mapping[Method, Prediction]) -> Method:
    """The one with the highest R² on validation runs."""
    return max(validation, key=lambda method: validation[method].r2)


def _measure(zoo: Zoo, sample: _Sample, best: Fit, options: TrainOptions) -> _Measured:
    """The one time that the test part is looked at, and what the index's intervals are calibrated on."""
    split = sample.split.with_calibration(sample.table, options.seed)
    represented = represent_zoo(zoo, best.encoder, np.arange(len(sample.table)))
    test = score(represented.predicted[split.test], sample.values[split.test])
    examples = _choose_examples(sample.table, options.target.quality(sample.values), split.test, options.examples)
    unknown = np.flatnonzero(~np.isfinite(sample.values))  # searchable all the same
    searchable = np.concatenate([sample.usable, unknown[finite_weights(zoo, unknown)]])
    left_out = np.isin(sample.table.run, sample.table.run[list(examples.values())])
    indexed = np.setdiff1d(searchable, np.flatnonzero(left_out))
    calibration = calibrate_encoder(
        sample.table, split, represented.embedding, represented.predicted, sample.values, indexed,
        metric=options.metric, target=options.target, seed=options.seed,
    )  # fmt: skip
    return _Measured(represented, split, test, calibration, examples, indexed)


def _summarise(
    zoo: Zoo,
    directory: Path,
    sample: _Sample,
    fits: Mapping[Method, Fit],
    kept: Method,
    measured: _Measured,
    options: TrainOptions,
) -> TrainSummary:
    table = sample.table
    beside = directory / zoo.architecture.fingerprint if options.add else directory
    examples = tuple(
        Example(
            beside / "examples" / f"{name}.pt",
            int(table.run[position]),
            int(table.epoch[position]),
            float(table.test_accuracy[position]),
        )
        for name, position in measured.examples.items()
    )
    return TrainSummary(
        index=directory,
        zoo=zoo.path,
        method=kept,
        validation={method: fitted.validation for method, fitted in fits.items()},
        test=measured.test,
        runs=measured.split.runs(table),
        checkpoints=len(measured.indexed),
        examples=examples,
        seconds={method: fitted.seconds for method, fitted in fits.items()},
        split=measured.split.label,
        target=options.target,
        calibration=measured.calibration,
    )


def _write(
    zoo: Zoo, sample: _Sample, best: Fit, measured: _Measured, summary: TrainSummary, options: TrainOptions
) -> None:
    """The index's directory, or one more architecture in it: complete or not at all."""
    represented, indexed = measured.represented, measured.indexed
    layers = represented.layers
    assert layers is not None  # represent_zoo describes them unless told otherwise

    def write_extras(directory: Path, encoder_directory: Path) -> None:
        familiar_layers(layers, measured.split, options.seed).save(encoder_directory / FAMILIAR)
        save_encoder(best.encoder, encoder_directory, _notes(summary, best, measured.split, zoo, options.seed))
        (directory / "README.md").write_text(index_card(summary, zoo, best.encoder))
        _write_examples(zoo, sample, summary, measured, directory / "examples")

    make = add_architecture if options.add else partial(create_index, replace=options.replace)
    make(
        summary.index,
        zoo.architecture,
        zoo_rows(
            zoo, indexed, represented.embedding[indexed], represented.predicted[indexed], layers[indexed],
            measured.split.names(sample.table)[indexed],
        ),
        write_extras=write_extras,
        metric=options.metric,
        factory=options.factory,
        notes={
            "dataset": zoo.info.dataset,
            "method": summary.method.value,
            "version": version("weightsearch"),
            "target": asdict(options.target),
        },
    )  # fmt: skip


def _write_examples(zoo: Zoo, sample: _Sample, summary: TrainSummary, measured: _Measured, directory: Path) -> None:
    """Held-out checkpoints with what is known of them, to query with."""
    target = summary.target.column
    for example, position in zip(summary.examples, measured.examples.values(), strict=True):
        directory.mkdir(exist_ok=True)
        metadata = {
            **({"test_accuracy": example.test_accuracy} if np.isfinite(example.test_accuracy) else {}),
            "epoch": example.epoch,
            "run": run_name(zoo, example.run),
            "recipe": sample.table.recipes[example.run],
            **sample.table.user_columns(position),
            target: float(sample.values[position]),
        }
        weights = zoo.weights(np.array([position]))[0]
        write_checkpoint(directory / example.path.name, weights, zoo.architecture, metadata)


def _fit(zoo: Zoo, split: Split, method: Method, options: TrainOptions, quiet: bool) -> Fit:
    config, settings = DEFAULTS[method]
    held_in = np.concatenate([split.train, split.validation])
    features = Features(zoo, method, split.train, held_in, device=options.device)
    with progress_bar(f"fitting {method}", settings.epochs, unit="epochs", quiet=quiet) as advance:
        return fit(
            zoo, split, config, settings, target=options.target, seed=options.seed, features=features,
            on_epoch=lambda _, loss: advance(note=f"validation RMSE {loss**0.5:.4f}"),
        )  # fmt: skip


def _search(zoo: Zoo, method: Method, options: TrainOptions, quiet: bool) -> Fit:
    protocol = SplitSpec(
        str(zoo.path.absolute()), options.split_by, options.per_run, options.seed, target=options.target
    )
    best = float("inf")
    with progress_bar(f"searching {method}", options.trials, unit="trials", quiet=quiet) as advance:

        def show(result: dict[str, Any]) -> None:
            nonlocal best
            best = min(best, validation_loss(result))
            advance(note=f"best validation RMSE {best**0.5:.4f}")

        searched = search(
            protocol, method, trials=options.trials, workers=options.workers, device=options.device, ray=options.ray,
            on_trial=show,
        )  # fmt: skip
    result = searched.trials[searched.best]
    return Fit(
        load_encoder(searched.encoder_directory),
        settings_from_dict(result["settings"]),
        Prediction(**result["validation"]),
        tuple(result["losses"]),
        sum(trial["seconds"] for trial in searched.trials),
    )


def _choose_examples(table: CheckpointTable, quality: np.ndarray, test: np.ndarray, count: int) -> dict[str, int]:
    """Positions of `count` test checkpoints by name, each of a run of its own, nearest to its quantile."""
    chosen: dict[str, int] = {}
    quality = quality[test]
    for name in list(EXAMPLES)[:count]:
        free = ~np.isin(table.run[test], table.run[list(chosen.values())])
        distance = np.abs(quality - np.quantile(quality, EXAMPLES[name]))
        chosen[name] = int(test[np.argmin(np.where(free, distance, np.inf))])
    return chosen


def _notes(summary: TrainSummary, best: Fit, split: Split, zoo: Zoo, seed: int) -> dict[str, Any]:
    """What `encoder.json` says beside the encoder's own shape."""
    return {
        "version": version("weightsearch"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "zoo": {"name": zoo.info.name, "dataset": zoo.info.dataset, "preset": zoo.info.preset, "seed": zoo.info.seed},
        "seed": seed,
        "settings": asdict(best.settings),
        "epochs": best.epochs,
        "metrics": {
            "validation": {name.value: scores.to_dict() for name, scores in summary.validation.items()},
            "test": summary.test.to_dict(),
        },
        "split": split.to_dict(zoo.table()),
        "target": asdict(summary.target),
        "calibration": summary.calibration and summary.calibration.to_dict(),
    }
