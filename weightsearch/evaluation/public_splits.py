"""The literature's number: Kendall's tau on the published split of a public collection, beside published figures."""

from __future__ import annotations

import csv
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np

from weightsearch.checkpoints.discovery import Quarantined
from weightsearch.checkpoints.folder_layouts import Layout
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.encoders.universal.described import Described, concatenate, describe
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.evaluation.public_layouts import (
    FinalCheckpoints,
    ParkCheckpoints,
    read_small_cnn_zoo,
    read_wild_park,
    row_of,
)
from weightsearch.files import plain, write_whole
from weightsearch.metrics import Prediction, score
from weightsearch.progress import progress_bar
from weightsearch.text_table import Table, counted
from weightsearch.training.baselines import TreeSettings, baseline_features, fit_baseline
from weightsearch.training.data import Features
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.training.represent import represent_zoo
from weightsearch.training.universal import UniversalSettings, fit_universal
from weightsearch.types import Architecture, Baseline, Method, Target
from weightsearch.zoo.import_writer import write_runs, zoo_info
from weightsearch.zoo.splits import Split
from weightsearch.zoo.store import Zoo

FILES_TOGETHER = 256  # checkpoint files whose weights are in memory at a time
UNIVERSAL = "universal"


class Collection(StrEnum):
    """The public collections that have a published split.

    Example:
        >>> Collection("wild-park")
        <Collection.WILD_PARK: 'wild-park'>
    """

    SMALL_CNN_ZOO = "small-cnn-zoo"
    WILD_PARK = "wild-park"


METHODS: dict[Collection, tuple[str, ...]] = {
    Collection.SMALL_CNN_ZOO: (Method.STATISTICS, Method.INVARIANT, Baseline.STATISTICS_TREES),
    Collection.WILD_PARK: (UNIVERSAL,),
}


@dataclass(frozen=True)
class PublishedFigure:
    """Kendall's tau that a paper reports. `seen` says where it was read."""

    collection: Collection
    dataset: str
    method: str
    tau: float
    source: str
    seen: str


@dataclass(frozen=True)
class PublicFit:
    """One method with one seed: its scores on the published test part."""

    method: str
    seed: int
    test: Prediction


@dataclass(frozen=True)
class PublicEvaluation:
    """All fits on a collection's published split, the figures of others, and what to know of both.

    `sizes` are the checkpoints of each part that were used.

    Example:
        >>> PublicEvaluation(Collection.WILD_PARK, "cifar10", {"test": 0}, (), (), ()).sizes
        {'test': 0}
    """

    collection: Collection
    dataset: str
    sizes: dict[str, int]
    fits: tuple[PublicFit, ...]
    published: tuple[PublishedFigure, ...]
    notes: tuple[str, ...]


def published_figures(collection: Collection, dataset: str) -> tuple[PublishedFigure, ...]:
    """What papers report on a collection's networks of one dataset; none where no figure is kept."""
    text = (files("weightsearch") / "published_splits.csv").read_text(encoding="utf-8")
    return tuple(
        PublishedFigure(collection, dataset, row["method"], float(row["tau"]), row["source"], row["seen"])
        for row in csv.DictReader(text.splitlines())
        if row["collection"] == collection and row["dataset"] == dataset
    )


def evaluate_public(
    collection: Collection | str,
    folder: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = (),
    seeds: int = 5,
    epochs: int | None = None,
    quiet: bool = False,
) -> PublicEvaluation:
    """Fits methods on the published training and validation parts, and scores them on the published test part.

    Writes `public-COLLECTION.json` and `.md` into `out`. The collection's files are read as they are published and
    stay as they are; see `public_layouts` for what lies where, and which split is whose.

    Args:
        methods: none for all that the collection's networks allow.
        seeds: fits of each method. The split stays.
        epochs: at most, of each fit; None for each method's own default.

    Raises:
        UsageError, WeightsearchError: a wrong option; a file that is missing, damaged or does not fit.

    Example:
        >>> evaluate_public("wild-park", "no-such-folder", "out")
        Traceback (most recent call last):
        weightsearch.errors.UsageError: no-such-folder is no folder; give the one that the published archive unpacks to
    """
    collection, folder, out = Collection(collection), Path(folder), Path(out)
    methods = tuple(methods) or METHODS[collection]
    if unknown := [method for method in methods if method not in METHODS[collection]]:
        raise UsageError(
            f"--method {unknown[0]}: with --public {collection} choose among {', '.join(METHODS[collection])}"
        )
    for flag, value in (("--seeds", seeds), ("--epochs", epochs)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: choose at least 1")
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that the published archive unpacks to")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out takes a directory")
    out.mkdir(parents=True, exist_ok=True)
    if collection is Collection.SMALL_CNN_ZOO:
        done = _small_cnn_zoo(folder, out, methods, seeds, epochs, quiet)
    else:
        done = _wild_park(folder, seeds, epochs, quiet)
    write_whole(out / f"public-{collection}.json", json.dumps(plain(_content(done, folder)), indent=1) + "\n")
    write_whole(out / f"public-{collection}.md", to_table(done).to_markdown("#") + "\n")
    return done


def _content(done: PublicEvaluation, folder: Path) -> dict[str, object]:
    return {"version": version("weightsearch"), "folder": folder.resolve().name, **asdict(done)}


def to_table(done: PublicEvaluation) -> Table:
    """One row a method, ours first, then what papers report."""
    rows = []
    for method in dict.fromkeys(one.method for one in done.fits):
        scores = [one.test for one in done.fits if one.method == method]
        taus = [one.tau for one in scores]
        spread = f" ± {statistics.stdev(taus):.3f}" if len(taus) > 1 else ""
        r2 = statistics.mean(one.r2 for one in scores)
        rows.append((method, f"{statistics.mean(taus):.3f}{spread}", f"{r2:.3f}", f"here, {counted(len(taus), 'fit')}"))
    rows += [(figure.method, f"{figure.tau:.3f}", "–", f"{figure.source} ({figure.seen})") for figure in done.published]
    parts = ", ".join(f"{count:,} {part}" for part, count in done.sizes.items())
    caption = ["± is the standard deviation over seeds.", *done.notes]
    if not done.published:
        caption.append(f"No published figures are kept for {done.dataset}.")
    return Table(
        f"{done.collection}, {done.dataset}: the published split ({parts})",
        ("method", "tau", "R²", "from"),
        tuple(rows),
        right=(1, 2),
        caption=" ".join(caption),
    )


def _small_cnn_zoo(
    folder: Path, out: Path, methods: Sequence[str], seeds: int, epochs: int | None, quiet: bool
) -> PublicEvaluation:
    final = read_small_cnn_zoo(folder)
    with tempfile.TemporaryDirectory(prefix=".final-checkpoints-", dir=out) as directory:
        zoo, left_out = _as_zoo(final, Path(directory) / "zoo", quiet)
        position = {row_of(source): i for i, source in enumerate(zoo.table().source)}
        parts = {
            name: np.array([position[row] for row in rows if row in position]) for name, rows in final.parts.items()
        }
        split = Split(parts["train"], parts["val"], parts["test"])
        fits = []
        with progress_bar("fitting", len(methods) * seeds, unit="fits", quiet=quiet) as advance:
            for method in methods:
                predict_with = (
                    _trees(zoo, split) if method == Baseline.STATISTICS_TREES else _encoder(zoo, split, method, epochs)
                )
                for seed in range(seeds):
                    predicted = predict_with(seed)
                    truth = zoo.table().test_accuracy[split.test]
                    fits.append(PublicFit(str(method), seed, score(predicted, truth)))
                    advance(note=str(method))
    notes = [*final.notes]
    if left_out:
        notes.append(f"{counted(len(left_out), 'final checkpoint')} could not be used ({left_out[0].reason}).")
    sizes = {name: len(part) for name, part in parts.items()}
    published = published_figures(Collection.SMALL_CNN_ZOO, final.dataset)
    return PublicEvaluation(Collection.SMALL_CNN_ZOO, final.dataset, sizes, tuple(fits), published, tuple(notes))


def _as_zoo(final: FinalCheckpoints, path: Path, quiet: bool) -> tuple[Zoo, list[Quarantined]]:
    left_out: list[Quarantined] = []
    info = zoo_info(path, final.architecture, Layout.SMALL_CNN_ZOO, final.dataset, "imported")
    write_runs(path, info, final.runs, final.read, left_out, quiet=quiet)
    return Zoo.open(path), left_out


def _encoder(zoo: Zoo, split: Split, method: str, epochs: int | None) -> Callable[[int], np.ndarray]:
    config, settings = DEFAULTS[Method(method)]
    if epochs is not None:
        settings = replace(settings, epochs=min(epochs, settings.epochs))
    features = Features(zoo, config.method, split.train, np.concatenate([split.train, split.validation]))

    def predict_with(seed: int) -> np.ndarray:
        encoder = fit(zoo, split, config, settings, target=Target(), seed=seed, features=features).encoder
        return _at(split.test, represent_zoo(zoo, encoder, np.unique(split.test), layers=False).predicted)

    return predict_with


def _at(positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of `np.unique(positions)` in the order of `positions`."""
    return values[np.searchsorted(np.unique(positions), positions)]


def _trees(zoo: Zoo, split: Split) -> Callable[[int], np.ndarray]:
    everything = np.unique(np.concatenate([split.train, split.validation, split.test]))
    features = baseline_features(zoo, Baseline.STATISTICS_TREES, everything)
    truth = zoo.table().test_accuracy

    def predict_with(seed: int) -> np.ndarray:
        fitted = fit_baseline(Baseline.STATISTICS_TREES, features, truth, split, TreeSettings(), seed=seed)
        return fitted.predict(features[split.test])

    return predict_with


def _wild_park(folder: Path, seeds: int, epochs: int | None, quiet: bool) -> PublicEvaluation:
    parts = read_wild_park(folder)
    described: dict[str, Described] = {}
    usable: dict[str, np.ndarray] = {}
    notes: list[str] = ["All checkpoints of each trial count, as in the published code."]
    total = sum(len(part.paths) for part in parts.values())
    with progress_bar("reading", total, unit="files", quiet=quiet) as advance:
        for name, part in parts.items():
            described[name], usable[name], reasons = _described(part, advance)
            if reasons:
                notes.append(f"{counted(len(reasons), 'file')} of {name} could not be used, the first: {reasons[0]}.")
    scores = {name: part.scores[usable[name]] for name, part in parts.items()}
    settings = (
        UniversalSettings() if epochs is None else UniversalSettings(epochs=min(epochs, UniversalSettings.epochs))
    )
    fits = []
    with progress_bar("fitting", seeds, unit="fits", quiet=quiet) as advance:
        for seed in range(seeds):
            encoder = fit_universal(
                described["train"], scores["train"], _run_numbers(parts["train"], usable["train"]),
                described["val"], _run_numbers(parts["val"], usable["val"]), seed=seed, settings=settings,
            )  # fmt: skip
            predicted = encoder.know(described["test"]).predicted
            fits.append(PublicFit(UNIVERSAL, seed, score(predicted, scores["test"])))
            advance()
    sizes = {name: len(chosen) for name, chosen in usable.items()}
    published = published_figures(Collection.WILD_PARK, "cifar10")
    return PublicEvaluation(Collection.WILD_PARK, "cifar10", sizes, tuple(fits), published, tuple(notes))


def _run_numbers(part: ParkCheckpoints, usable: np.ndarray) -> np.ndarray:
    return np.unique(np.array(part.trials)[usable], return_inverse=True)[1]


def _described(part: ParkCheckpoints, advance: Callable[..., None]) -> tuple[Described, np.ndarray, list[str]]:
    """A part's networks that can be read, their places in it, and why others cannot."""
    described, places, reasons = [], [], []
    for start in range(0, len(part.paths), FILES_TOGETHER):
        architectures: dict[str, Architecture] = {}
        weights: dict[str, list[np.ndarray]] = {}
        positions: dict[str, list[int]] = {}
        for place in range(start, min(start + FILES_TOGETHER, len(part.paths))):
            advance()
            try:
                checkpoint = read_checkpoint(part.paths[place], "model")
                if not np.isfinite(checkpoint.weights).all():
                    raise WeightsearchError(f"{part.paths[place]}: its weights hold NaN or infinite values")
            except WeightsearchError as error:
                reasons.append(str(error))
                continue
            fingerprint = checkpoint.architecture.fingerprint
            architectures[fingerprint] = checkpoint.architecture
            weights.setdefault(fingerprint, []).append(checkpoint.weights)
            positions.setdefault(fingerprint, []).append(place)
        for fingerprint, architecture in architectures.items():
            described.append(describe(np.stack(weights[fingerprint]), architecture))
            places += positions[fingerprint]
    if not described:
        raise WeightsearchError(reasons[0])
    return concatenate(described), np.array(places), reasons
