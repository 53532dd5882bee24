"""From a zoo to an index: fit the encoders, keep the one that predicts validation runs best, index every checkpoint."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.state_dict import write_checkpoint
from weightsearch.devices import check_device
from weightsearch.encoders import load_encoder, save_encoder
from weightsearch.errors import UsageError
from weightsearch.index import add_architecture, check_addition, check_target, create_index
from weightsearch.index.zoo_rows import run_name, zoo_rows
from weightsearch.metrics import Prediction, score
from weightsearch.progress import progress_bar
from weightsearch.training.data import Features, finite_weights, target_values, usable_checkpoints
from weightsearch.training.fit import DEFAULTS, Fit, fit, settings_from_dict
from weightsearch.training.index_card import index_card
from weightsearch.training.random_search import search, validation_loss
from weightsearch.training.represent import represent_zoo
from weightsearch.training.runner import Protocol
from weightsearch.training.summary import Example, TrainSummary
from weightsearch.types import Method, Metric, SplitBy, Target
from weightsearch.uncertainty.calibration import FAMILIAR, calibrate_encoder, familiar_layers
from weightsearch.zoo.splits import Split, make_split
from weightsearch.zoo.store import CheckpointTable, Zoo

log = logging.getLogger("weightsearch")

AUTO = (Method.COMVEX_CONV, Method.STATISTICS, Method.INVARIANT)  # tried when no method is named

# Where the held-out examples lie among the test runs' checkpoints, by quantile of test accuracy or of another target.
EXAMPLES = {"very-good": 1.0, "bad": 0.1, "good": 0.85, "middling": 0.5}


def train(
    zoo: str | Path,
    out: str | Path,
    *,
    method: Method | None = None,
    seed: int = 0,
    split_by: SplitBy = SplitBy.RUN,
    per_run: int | None = None,
    target: Target | None = None,
    trials: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    examples: int = 0,
    replace: bool = False,
    add: bool = False,
    metric: Metric = Metric.COSINE,
    factory: str | None = None,
    quiet: bool = False,
) -> TrainSummary:
    """Fits `method` (None: those in `AUTO`, keeping the best on validation runs) and writes an index to `out`.

    Splits 70/15/15 with `seed`, by run unless `split_by` says otherwise; half of the test runs then calibrate the
    intervals instead (see `Split.with_calibration`). With `per_run`, that many random checkpoints
    of each run take part in the fit. With `trials`, settings are searched at random (see `tune`), `workers` fits at a
    time; a search that was killed goes on when called again. Fits run on `device`, "cpu" or a graphics card, "cuda".
    With `examples` of 1 to 4, that many checkpoints of test runs are written to `out/examples/` and their runs are left
    out of the index; all others are indexed.
    The test part is scored once, with the method that was kept. `target` is what is predicted, and what good and bad
    mean in the index (None: test accuracy). With `add`, the index at `out` gets one more architecture; its card and
    examples then lie in the architecture's sub-directory. `factory` is FAISS's name for its index's type (None: by
    size).
    """
    opened, directory = Zoo.open(zoo), Path(out)
    if not 0 <= examples <= len(EXAMPLES):
        raise UsageError(f"--examples {examples}: choose between 0 and {len(EXAMPLES)}")
    target = target or Target()
    if add:
        check_addition(directory, opened.architecture, target, metric)
    else:
        check_target(directory, replace)
    check_device(device)
    if trials < 0:
        raise UsageError(f"--trials {trials}: choose at least 1, or 0 for the default settings")
    if per_run is not None and per_run < 1:
        raise UsageError(f"--per-run {per_run}: choose at least 1")
    table = opened.table()
    values = target_values(table, target)
    usable = usable_checkpoints(opened, target)
    split = make_split(table, by=split_by, per_run=per_run, seed=seed, usable=usable)

    protocol = Protocol(str(opened.path), split_by, per_run, seed, target=target)
    fits = {
        name: _search(protocol, name, trials, workers, device, quiet)
        if trials
        else _fit(opened, split, name, target, seed, device, quiet)
        for name in ([method] if method else AUTO)
    }
    kept = max(fits, key=lambda name: fits[name].validation.r2)
    best = fits[kept]

    split = split.with_calibration(table, seed)
    everything = np.arange(len(table))
    found = represent_zoo(opened, best.encoder, everything)
    embedding, predicted, descriptions = found.embedding, found.predicted, found.layers
    assert descriptions is not None
    test_scores = score(predicted[split.test], values[split.test])
    held_out = _choose_examples(table, target.quality(values), split.test, examples)
    unknown = np.flatnonzero(~np.isfinite(values))  # searchable all the same
    searchable = np.concatenate([usable, unknown[finite_weights(opened, unknown)]])
    indexed = np.setdiff1d(searchable, np.flatnonzero(np.isin(table.run, table.run[list(held_out.values())])))
    calibration = calibrate_encoder(
        table, split, embedding, predicted, values, indexed, metric=metric, target=target, seed=seed
    )

    summary = TrainSummary(
        index=directory,
        zoo=opened.path,
        method=kept,
        validation={name: fitted.validation for name, fitted in fits.items()},
        test=test_scores,
        runs=split.runs(table),
        checkpoints=len(indexed),
        examples=tuple(
            Example(
                (directory / opened.architecture.fingerprint if add else directory) / "examples" / f"{name}.pt",
                int(table.run[position]),
                int(table.epoch[position]),
                float(table.test_accuracy[position]),
            )
            for name, position in held_out.items()
        ),
        seconds={name: fitted.seconds for name, fitted in fits.items()},
        split=split.label,
        target=target,
        calibration=calibration,
    )

    def write_extras(directory: Path, encoder_directory: Path) -> None:
        familiar_layers(descriptions, split, seed).save(encoder_directory / FAMILIAR)
        save_encoder(best.encoder, encoder_directory, _notes(summary, best, split, opened, seed))
        (directory / "README.md").write_text(index_card(summary, opened, best.encoder))
        for example, position in zip(summary.examples, held_out.values(), strict=True):
            (directory / "examples").mkdir(exist_ok=True)
            metadata = {
                **({"test_accuracy": example.test_accuracy} if np.isfinite(example.test_accuracy) else {}),
                "epoch": example.epoch,
                "run": run_name(opened, example.run),
                "recipe": table.recipes[example.run],
                **table.user_columns(position),
                target.column: float(values[position]),
            }
            weights = opened.weights(np.array([position]))[0]
            write_checkpoint(directory / "examples" / example.path.name, weights, opened.architecture, metadata)

    make = add_architecture if add else partial(create_index, replace=replace)
    make(
        summary.index,
        opened.architecture,
        zoo_rows(
            opened, indexed, embedding[indexed], predicted[indexed], descriptions[indexed], split.names(table)[indexed]
        ),
        write_extras=write_extras,
        metric=metric,
        factory=factory,
        notes={
            "dataset": opened.info.dataset,
            "method": kept.value,
            "version": version("weightsearch"),
            "target": asdict(target),
        },
    )
    return summary


def _fit(zoo: Zoo, split: Split, method: Method, target: Target, seed: int, device: str, quiet: bool) -> Fit:
    config, settings = DEFAULTS[method]
    features = Features(zoo, method, split.train, np.concatenate([split.train, split.validation]), device=device)
    with progress_bar(f"fitting {method}", settings.epochs, unit="epochs", quiet=quiet) as advance:
        return fit(
            zoo, split, config, settings, target=target, seed=seed, features=features,
            on_epoch=lambda _, loss: advance(note=f"validation RMSE {loss**0.5:.4f}"),
        )  # fmt: skip


def _search(protocol: Protocol, method: Method, trials: int, workers: int | None, device: str, quiet: bool) -> Fit:
    best = float("inf")
    with progress_bar(f"searching {method}", trials, unit="trials", quiet=quiet) as advance:

        def show(result: dict[str, Any]) -> None:
            nonlocal best
            best = min(best, validation_loss(result))
            advance(note=f"best validation RMSE {best**0.5:.4f}")

        found = search(protocol, method, trials=trials, workers=workers, device=device, on_trial=show)
    result = found.trials[found.best]
    return Fit(
        load_encoder(found.encoder_directory),
        settings_from_dict(result["settings"]),
        Prediction(**result["validation"]),
        tuple(result["losses"]),
        sum(trial["seconds"] for trial in found.trials),
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
