"""A zoo of any architectures into an index: the shipped encoder, or one fitted on the zoo, and the zoo's own labels."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.state_dict import write_checkpoint
from weightsearch.encoders.universal.described import Described
from weightsearch.encoders.universal.encoder import METHOD, Known, UniversalEncoder, load_universal
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import Rows, add_architecture, check_addition, check_target, create_index
from weightsearch.index.zoo_rows import run_name, zoo_rows
from weightsearch.metrics import Prediction, score
from weightsearch.paths import REFERENCE_INDEX
from weightsearch.progress import progress_bar
from weightsearch.training.adapt import Adapted, adapt
from weightsearch.training.baselines import recipe_features
from weightsearch.training.data import finite_weights, target_values
from weightsearch.training.options import TrainOptions
from weightsearch.training.summary import Example, UniversalSummary
from weightsearch.training.universal import (
    UniversalSettings,
    describe_damaged,
    describe_zoo_networks,
    fit_damage,
    fit_universal,
)
from weightsearch.types import ANY, Metric, SplitBy, Target
from weightsearch.uncertainty.calibration import Calibration, nearest_distances
from weightsearch.uncertainty.conformal import Conformal, calibrate
from weightsearch.uncertainty.novelty import far
from weightsearch.zoo.splits import FEWEST, Split, make_split
from weightsearch.zoo.store import CheckpointTable, Zoo

MEMBERS = 3
UNKNOWN_SHARE = 0.25  # of a sweep flagged as unknown kinds, beyond which its values are only ranks
DAMAGED_FITTED = 2000  # networks that damage is learned from, at most


def suits(zoo: str | Path, target: Target) -> bool:
    """Whether a zoo is for the encoder of all architectures: it has many, or too few labelled runs to fit another."""
    opened = Zoo.open(zoo)
    if opened.is_mixed:
        return True
    labelled = np.isfinite(target_values(opened.table(), target))
    return target.is_accuracy and len(np.unique(opened.table().run[labelled])) < FEWEST


def shipped_encoder() -> UniversalEncoder:
    """The encoder of all architectures that comes with the package."""
    directory = REFERENCE_INDEX / ANY.fingerprint
    if not (directory / "encoder.json").is_file():
        raise WeightsearchError(
            f"{directory} is missing, which holds the shipped encoder: install weightsearch again, or fit one of your "
            "own with `weightsearch train --from-scratch`"
        )
    return load_universal(directory)


def train_universal(
    zoo: str | Path,
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    from_scratch: bool = False,
    rows_per_run: int | None = None,
    runs_kept: int | None = None,
    quiet: bool = False,
) -> UniversalSummary:
    """Index a zoo of any architectures in the space of all.

    Predictions are the shipped encoder's, calibrated to the zoo's own labelled runs (see `adapt`). With
    `from_scratch`, an encoder is fitted on 85 % of the zoo's runs instead, and its predictions stay as they are; with
    `examples`, that many held-out checkpoints of each family, or of all, are written beside it. `rows_per_run` and
    `runs_kept` limit which rows are kept: the last so many checkpoints of each of so many runs.

    Raises UsageError for options that only encoders of one architecture know.
    """
    options = options or TrainOptions()
    fixed = {"--trials": options.trials, "--per-run": options.per_run, "--device": options.device != "cpu"}
    fixed["--split checkpoint"] = options.split_by is SplitBy.CHECKPOINT
    if named := [flag for flag, given in fixed.items() if given]:
        raise UsageError(f"{named[0]} does not go with the encoder of all architectures; leave it out")
    target, seed, metric = options.target, options.seed, options.metric
    start = time.monotonic()
    opened, directory = Zoo.open(zoo), Path(out)
    if not target.is_accuracy:
        raise UsageError(f"--target {target.column}: the encoder of all architectures predicts accuracies only")
    if options.add:
        check_addition(directory, ANY, target, metric)
    else:
        check_target(directory, options.replace)
    table = opened.table()
    values = target_values(table, target)
    everything = np.arange(len(table))
    usable = everything[finite_weights(opened, everything)]
    if not len(usable):
        raise WeightsearchError(f"{opened.path} holds no checkpoint to index: import or build some first")
    described = describe_zoo_networks(opened, usable)
    split: Split | None = None
    if from_scratch:
        encoder, split = _fit(opened, described, usable, values, seed, quiet)
    else:
        encoder = shipped_encoder()
    knowledge = encoder.know(described)
    adapted, test = _adapted(table, usable, knowledge, values, split, seed)
    names = np.full(len(table), "", object) if split is None else split.names(table)
    held_out = _examples(opened, usable, values, names, options.examples)
    kept = _kept(table, usable, held_out, names, rows_per_run, runs_kept, seed)
    calibration = _calibration(table, usable, knowledge, adapted, values, names, kept, metric, seed)
    rows = _rows(opened, usable[kept], knowledge, adapted, kept, names)
    flagged = float(np.mean(knowledge.strangeness > 1))
    summary = UniversalSummary(
        index=directory,
        zoo=opened.path,
        architectures=len(opened.architectures),
        runs=len(np.unique(table.run[usable])),
        checkpoints=len(rows),
        flagged=flagged,
        damaged=int(np.sum(knowledge.damage > 1)),
        adapted=adapted,
        seconds=time.monotonic() - start,
        test=test,
        examples=tuple(
            Example(
                (directory / ANY.fingerprint if options.add else directory) / "examples" / f"{name}.pt",
                int(table.run[position]),
                int(table.epoch[position]),
                float(values[position]),
            )
            for name, position in held_out.items()
        ),
    )
    notes = {
        "version": version("weightsearch"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "zoo": {key: getattr(opened.info, key) for key in ("name", "dataset", "preset", "seed")},
        "zoo_runs": summary.runs,
        "seed": seed,
        "from_scratch": from_scratch,
        "ranks_only": flagged > UNKNOWN_SHARE and not adapted.is_calibrated,
        "metrics": {"test": test.to_dict() if test else None},
        "adaptation": adapted.to_dict() if adapted.is_calibrated else None,
        "target": asdict(target),
        "calibration": calibration.to_dict(),
    }

    def write_extras(root: Path, encoder_directory: Path) -> None:
        encoder.save(encoder_directory, notes)
        (root / "README.md").write_text(_card(summary, opened))
        for example, position in zip(summary.examples, held_out.values(), strict=True):
            (root / "examples").mkdir(exist_ok=True)
            metadata = {
                "test_accuracy": example.test_accuracy,
                "epoch": example.epoch,
                "run": run_name(opened, example.run),
                "recipe": table.recipes[example.run],
            }
            architecture = opened.architectures[str(opened.fingerprints[position])]
            weights = opened.weights(np.array([position]))[0]
            write_checkpoint(root / "examples" / example.path.name, weights, architecture, metadata)

    make: Any = add_architecture if options.add else partial(create_index, replace=options.replace)
    index_notes = {"dataset": opened.info.dataset, "method": METHOD, "version": version("weightsearch")}
    make(
        directory,
        ANY,
        rows,
        write_extras=write_extras,
        metric=metric,
        factory=options.factory,
        notes={**index_notes, "target": asdict(target)},
    )
    return summary


def _fit(
    zoo: Zoo, described: Described, usable: np.ndarray, values: np.ndarray, seed: int, quiet: bool
) -> tuple[UniversalEncoder, Split]:
    """An encoder fitted on the training and validation parts; the test part decides limits and is scored."""
    table = zoo.table()
    labelled = np.isfinite(values[usable])
    split = make_split(table, seed=seed, usable=usable[labelled])
    fitted = np.isin(usable, np.concatenate([split.train, split.validation]))
    held = np.isin(usable, split.test)
    settings = UniversalSettings()
    with progress_bar("fitting", MEMBERS * settings.epochs, unit="epochs", quiet=quiet) as advance:
        encoder = fit_universal(
            described.take(np.flatnonzero(fitted)), values[usable][fitted], table.run[usable][fitted],
            described.take(np.flatnonzero(held)), table.run[usable][held],
            members=MEMBERS, seed=seed, settings=settings, on_epoch=lambda _, loss: advance(note=f"loss {loss:.4f}"),
        )  # fmt: skip
    some = np.random.default_rng(seed).permutation(np.flatnonzero(fitted))[:DAMAGED_FITTED]
    broken = describe_damaged(zoo, usable[some], seed=seed)
    encoder = fit_damage(encoder, described.take(some), broken, described.take(np.flatnonzero(held)), seed=seed)
    return encoder, split


def _adapted(
    table: CheckpointTable, usable: np.ndarray, knowledge: Known, values: np.ndarray, split: Split | None, seed: int
) -> tuple[Adapted, Prediction | None]:
    if split is None:
        run = table.run[usable]
        recipe = recipe_features(table)[usable]
        return adapt(knowledge.predicted, knowledge.chance, recipe, values[usable], run, seed=seed), None
    held = np.isin(usable, split.test)
    unknown = np.full(len(usable), np.nan)
    plain = adapt(
        knowledge.predicted, knowledge.chance, np.zeros((len(usable), 1)), unknown, table.run[usable], seed=seed
    )
    return plain, score(knowledge.predicted[held], values[usable][held])


def _calibration(
    table: CheckpointTable,
    usable: np.ndarray,
    knowledge: Known,
    adapted: Adapted,
    values: np.ndarray,
    names: np.ndarray,
    kept: np.ndarray,
    metric: Metric,
    seed: int,
) -> Calibration:
    """Intervals from runs held out of the fit, or from leaving out each labelled run of a sweep in turn."""
    interval: Conformal | None = adapted.interval
    test = np.flatnonzero((names[usable] == "test") & np.isfinite(values[usable]))
    run = table.run[usable]
    if len(np.unique(run[test])) >= 9:
        calibrated = calibrate(knowledge.predicted[test], values[usable][test], run[test], seed=seed)
        interval = calibrated if np.isfinite(calibrated.width) else None
    sample = test if len(test) else np.arange(len(usable))
    sample = np.random.default_rng(seed).permutation(sample)[:2000]
    limit = float("inf")
    if len(np.unique(run[kept])) > 1:
        distances = nearest_distances(
            knowledge.embedding[sample], run[sample], knowledge.embedding[kept], run[kept], metric
        )
        distances = distances[np.isfinite(distances)]
        limit = far(distances.tolist()) if len(distances) else limit
    runs = adapted.labelled_runs or len(np.unique(run[test]))
    return Calibration(interval, None, runs, limit)


def _examples(zoo: Zoo, usable: np.ndarray, values: np.ndarray, names: np.ndarray, count: int) -> dict[str, int]:
    """Positions of `count` held-out checkpoints of each family by name, of different runs and spread over accuracy.

    Of the smaller half of the networks, so that they are quickly read.
    """
    chosen: dict[str, int] = {}
    table = zoo.table()
    held = usable[(names[usable] == "test") & np.isfinite(values[usable])]
    sizes = np.array([zoo.architectures[name].size for name in zoo.fingerprints[held].tolist()])
    held = held[sizes <= np.median(sizes)] if len(sizes) else held
    families = np.array([str(table.recipes[int(run)].get("family", "network")) for run in table.run[held]], object)
    for family in sorted(set(families)):
        of_family = held[families == family]
        for i, share in enumerate(np.linspace(0.95, 0.3, count)):
            free = of_family[~np.isin(table.run[of_family], table.run[list(chosen.values())])]
            if len(free):
                wanted = np.quantile(values[of_family], share)
                chosen[f"{family}-{i + 1}"] = int(free[np.argmin(np.abs(values[free] - wanted))])
    return chosen


def _kept(
    table: CheckpointTable,
    usable: np.ndarray,
    held_out: dict[str, int],
    names: np.ndarray,
    per_run: int | None,
    runs_kept: int | None,
    seed: int,
) -> np.ndarray:
    """Places in `usable` of the rows to keep; runs of examples are left out whole."""
    run = table.run[usable]
    keep = ~np.isin(run, table.run[list(held_out.values())])
    if runs_kept is not None:
        drawn = np.random.default_rng(seed).permutation(np.unique(run[keep]))[:runs_kept]
        keep &= np.isin(run, drawn)
    if per_run is not None:
        after = np.array([np.sum((run == one) & (table.epoch[usable] > epoch))
                          for one, epoch in zip(run, table.epoch[usable], strict=True)])  # fmt: skip
        keep &= after < per_run
    return np.flatnonzero(keep)


def _rows(
    zoo: Zoo, positions: np.ndarray, knowledge: Known, adapted: Adapted, kept: np.ndarray, names: np.ndarray
) -> Rows:
    split = np.array([name or None for name in names[positions]], object)
    return zoo_rows(zoo, positions, knowledge.embedding[kept], adapted.predicted[kept], None, split)


def _card(summary: UniversalSummary, zoo: Zoo) -> str:
    info = zoo.info
    runs = len(zoo.table().recipes)
    command = f"weightsearch build-zoo --preset {info.preset} --runs {runs} --seed {info.seed}"
    test = summary.test
    scores = f"On runs held out: R² {test.r2:.3f}, tau {test.tau:.3f} ({test.count:,} checkpoints).\n" if test else ""
    return (
        "# An index of any architecture\n\n"
        f"{summary.checkpoints:,} checkpoints in one space, embedded by the encoder `{METHOD}`, of a zoo of "
        f"{summary.architectures:,} architectures.\n\n"
        + (f"Zoo: `{command}`\n\n" if info.preset == "wild" else f"Zoo: {info.name} ({info.origin})\n\n")
        + scores
    )
