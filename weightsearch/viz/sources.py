"""What figures are drawn of: the checkpoints of a zoo through several encoders, or of an index through its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch import paths as runs
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import IndexStore, database
from weightsearch.progress import progress_bar
from weightsearch.search.index import Index
from weightsearch.types import Architecture, Checkpoint, Method, Metric, SplitBy, Target
from weightsearch.viz.projection import NEIGHBOURS
from weightsearch.zoo.schema import METRICS
from weightsearch.zoo.store import Zoo

if TYPE_CHECKING:
    from weightsearch.encoders import Encoder
    from weightsearch.training.represent import AnyEncoder, Representation

RAW = "raw weights"  # the flat weights themselves, without an encoder
# What a zoo is drawn through: the paper's three, and whatever came after it and embeds raw weights.
METHODS: tuple[str, ...] = (RAW, *(m for m in Method if m not in (Method.FC, Method.STATISTICS)))
GOOD_SHARE = 0.25


class Part(StrEnum):
    """Which checkpoints are drawn.

    Example:
        >>> Part('test')
        <Part.TEST: 'test'>
    """

    TEST = "test"  # of runs that no encoder was fitted to: what a picture promises of new networks
    ALL = "all"


@dataclass(frozen=True, eq=False)
class Sample:
    """Positions `(n,)` of a source's checkpoints that are drawn, and in words how many of how many."""

    positions: np.ndarray
    label: str


class Source(ABC):
    """The checkpoints of one architecture of a zoo or an index; positions count from 0 in the order of `columns`."""

    path: Path
    dataset: str
    preset: str
    architecture: Architecture
    target: Target
    metric: Metric
    methods: tuple[str, ...]  # through which `vectors` sees the checkpoints
    default_part: Part

    @property
    @abstractmethod
    def columns(self) -> dict[str, np.ndarray]:
        """`(n,)` each: run, epoch, the four metrics, split ("train", "validation", "test" or ""), recipe (JSON)."""

    @abstractmethod
    def vectors(self, method: str, positions: np.ndarray) -> np.ndarray:
        """`(len(positions), D)` float32."""

    @abstractmethod
    def predictions(self, method: str, positions: np.ndarray) -> np.ndarray | None:
        """What the encoder predicts of them, `(len(positions),)` float64; None where there is no encoder."""

    @abstractmethod
    def embed(self, method: str, checkpoint: Checkpoint) -> np.ndarray:
        """The vector `(D,)` of a network that need not be among the source's."""

    def predict(self, method: str, checkpoint: Checkpoint) -> float | None:
        """What the encoder predicts of a network that need not be among the source's; None where there is none."""
        return None

    @abstractmethod
    def prepare(self, methods: Sequence[str], *, quiet: bool) -> None:
        """Does beforehand what `vectors` needs for `methods`, with progress."""

    @property
    def title(self) -> str:
        return f"{self.dataset} {self.preset}".strip()

    @cached_property
    def runs(self) -> np.ndarray:
        """The run of each checkpoint, `(n,)` texts; one without a run is its own."""
        return np.array(
            [f"#{row}" if run is None else str(run) for row, run in enumerate(self.columns["run"].tolist())]
        )

    def neighbours(self, sample: Sample) -> int:
        """For UMAP's graph: some beyond a run's own checkpoints, or each run would be an island of its own."""
        counts = np.unique(self.runs[sample.positions], return_counts=True)[1]
        return max(NEIGHBOURS, 3 * int(np.median(counts)))

    @property
    def values(self) -> np.ndarray:
        """What the checkpoints are judged by, `(n,)` float64."""
        return self.columns[self.target.column]

    @property
    def thresholds(self) -> tuple[float, float]:
        """Bad at or worse than the first, good at or better than the second: quartiles of all checkpoints."""
        low, high = np.nanquantile(self.values, [GOOD_SHARE, 1 - GOOD_SHARE])
        return (float(high), float(low)) if self.target.lower_is_better else (float(low), float(high))

    def sample(self, part: Part | None, most: int, seed: int) -> Sample:
        """The checkpoints of `part` (None: the source's default), or `most` of them, drawn with `seed`."""
        part = part or self.default_part
        chosen = np.isfinite(self.values)
        if part is Part.TEST:
            chosen &= self.columns["split"] == "test"
        positions = np.flatnonzero(chosen)
        if len(positions) < 3:
            fix = "choose --part all" if part is Part.TEST else "add some: three are the fewest"
            raise WeightsearchError(f"{self.path}: {len(positions)} checkpoints of {part} to draw; {fix}")
        whose = "of held-out runs" if part is Part.TEST else "in all"
        label = f"{len(positions):,} networks {whose}"
        if len(positions) > most:
            drawn = np.random.default_rng(seed).choice(positions, most, replace=False)
            positions, label = np.sort(drawn), f"{most:,} of {label}, drawn at random"
        return Sample(positions, label)


class IndexSource(Source):
    """One architecture of an index, through the encoder that the index was made with."""

    default_part = Part.ALL

    def __init__(self, index: IndexStore, fingerprint: str) -> None:
        self._index, self._fingerprint = index, fingerprint
        self.path, self.architecture = index.path, index.architectures[fingerprint]
        self.target, self.metric = index.target, index.metric
        notes = self.notes
        entry = index.manifest.get("architectures", {}).get(fingerprint, {})
        named = entry.get("dataset") or notes.get("zoo", {}).get("dataset") or index.manifest.get("dataset")
        self.dataset = "many datasets" if named == "many" else named or "unknown dataset"
        self.preset = notes.get("zoo", {}).get("preset", "")
        self.methods = (notes.get("config", {}).get("method", "unknown encoder"),)
        self._is_one_of_several = len(index.architectures) > 1

    @property
    def title(self) -> str:
        return f"{super().title}, {self.architecture.brief()}" if self._is_one_of_several else super().title

    @cached_property
    def notes(self) -> dict[str, Any]:
        """What `encoder.json` says of the encoder and its fit; empty where it cannot be read."""
        try:
            return json.loads((self._index.encoder_directory(self._fingerprint) / "encoder.json").read_text())
        except (OSError, ValueError):
            return {}

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        names = ("id", "run", "epoch", *METRICS, "predicted_accuracy", "dataset", "split", "recipe")
        columns = self._index.table(self._fingerprint, names)
        in_recipes = {key for text in set(columns["recipe"]) if text for key in json.loads(text)}
        user_keys = [name for name in self._index.keys() if name not in in_recipes]  # noqa: SIM118 - not a dict
        values = self._index.accuracies(self._fingerprint)
        return {**columns, **self._index.table(self._fingerprint, user_keys), self.target.column: values}

    @property
    def generation(self) -> int:
        """How many times the index was changed."""
        with self._index.connection() as connection:
            return database.generation(connection)

    @property
    def thresholds(self) -> tuple[float, float]:
        return self._index.thresholds(self._fingerprint)

    @cached_property
    def _embeddings(self) -> np.ndarray:
        return self._index.embeddings(self._fingerprint)

    @cached_property
    def _encoder(self) -> AnyEncoder:
        from weightsearch.training.represent import load_any_encoder

        return load_any_encoder(self._index.encoder_directory(self._fingerprint))

    def prepare(self, methods: Sequence[str], *, quiet: bool) -> None:
        pass

    def vectors(self, method: str, positions: np.ndarray) -> np.ndarray:
        return self._embeddings[positions]

    def predictions(self, method: str, positions: np.ndarray) -> np.ndarray | None:
        return self.columns["predicted_accuracy"][positions]

    def embed(self, method: str, checkpoint: Checkpoint) -> np.ndarray:
        return _represent(self._encoder, checkpoint).embedding[0]

    def predict(self, method: str, checkpoint: Checkpoint) -> float | None:
        return float(_represent(self._encoder, checkpoint).predicted[0])


class ZooSource(Source):
    """A zoo through raw weights and encoders that are fitted for the figures, split by run, and kept under `root`."""

    default_part = Part.TEST
    metric = Metric.COSINE

    def __init__(self, zoo: Zoo, methods: Sequence[str] = METHODS, *, seed: int = 0, root: Path | None = None) -> None:
        self.zoo, self._seed, self._root = zoo, seed, root or runs.RUNS / "fits"
        self.path, self.architecture, self.methods = zoo.path, zoo.architecture, tuple(methods)
        self.dataset, self.preset = zoo.info.dataset, zoo.info.preset
        self.target = Target()
        self._encoders: dict[str, Encoder] = {}

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        from weightsearch.training.runner import load_protocol

        table = self.zoo.table()
        _, split = load_protocol(self._protocol)
        recipes = {run: json.dumps(recipe) for run, recipe in table.recipes.items()}
        named = {name: getattr(table, name) for name in ("id", "epoch", *METRICS)}
        return {
            **table.extras,
            **named,
            "run": np.array([f"{self.zoo.info.name}/{run}" for run in table.run.tolist()]),
            "split": split.names(table),
            "recipe": np.array([recipes[run] for run in table.run.tolist()], object),
        }

    @property
    def _protocol(self) -> Any:
        from weightsearch.training.runner import SplitSpec

        return SplitSpec(str(self.zoo.path), SplitBy.RUN, None, self._seed, target=self.target)

    def prepare(self, methods: Sequence[str], *, quiet: bool) -> None:
        """Fits what has not been fitted before, side by side, with the default settings."""
        from weightsearch.encoders import load_encoder
        from weightsearch.training.random_search import search_jobs
        from weightsearch.training.runner import read_result, run_jobs, worker_pool

        epochs = 300
        jobs = [
            search_jobs(self._protocol, Method(method), 1, epochs=epochs, keep=True, root=self._root)[0]
            for method in methods
            if method != RAW and method not in self._encoders
        ]
        missing = [job for job in jobs if read_result(job.out) is None]
        if missing:
            bar = progress_bar(f"fitting encoders on {self.title}", len(missing), unit="fits", quiet=quiet)
            with worker_pool(min(2, len(missing))) as pool, bar as advance:
                advance(0, note=", ".join(job.method for job in missing))
                run_jobs(missing, pool, lambda job, _: advance(note=job.method))
        for job in jobs:
            if not (read_result(job.out) or {}).get("validation"):
                raise WeightsearchError(f"{self.path}: the fit of {job.method} diverged; leave it out with --method")
            self._encoders[job.method] = load_encoder(Path(job.out).with_suffix(""))

    def vectors(self, method: str, positions: np.ndarray) -> np.ndarray:
        return self.zoo.weights(positions) if method == RAW else self._embedded(method, positions)[0]

    def predictions(self, method: str, positions: np.ndarray) -> np.ndarray | None:
        return None if method == RAW else self._embedded(method, positions)[1]

    def _embedded(self, method: str, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from weightsearch.training.represent import represent_zoo

        self.prepare([method], quiet=True)
        represented = represent_zoo(self.zoo, self._encoders[method], positions, layers=False)
        return represented.embedding, represented.predicted

    def embed(self, method: str, checkpoint: Checkpoint) -> np.ndarray:
        if method == RAW:
            return checkpoint.weights
        self.prepare([method], quiet=True)
        return _represent(self._encoders[method], checkpoint).embedding[0]

    def predict(self, method: str, checkpoint: Checkpoint) -> float | None:
        if method == RAW:
            return None
        self.prepare([method], quiet=True)
        return float(_represent(self._encoders[method], checkpoint).predicted[0])


def _represent(encoder: AnyEncoder, checkpoint: Checkpoint) -> Representation:
    from weightsearch.checkpoints.metadata import interpret
    from weightsearch.training.represent import represent

    activation = interpret(checkpoint.metadata, "file").recipe.get("activation")
    return represent(
        encoder, checkpoint.weights[None], [activation], architecture=checkpoint.architecture, layers=False
    )


def networks_in(sources: Sequence[Source], paths: Sequence[str | Path]) -> list[list[tuple[Path, Checkpoint]]]:
    """For each source the files that are drawn into it: those of its architecture, else into the space of all.

    Raises WeightsearchError for a file that is no checkpoint, and for one that no source holds networks like.
    """
    from weightsearch.checkpoints.remote.paths import as_path
    from weightsearch.checkpoints.state_dict import align, read_checkpoint

    drawn: list[list[tuple[Path, Checkpoint]]] = [[] for _ in sources]
    for path in paths:
        checkpoint = read_checkpoint(path)
        aligned = [align(checkpoint, [source.architecture]) for source in sources]
        fitting = [
            number
            for number, source in enumerate(sources)
            if aligned[number].architecture.fingerprint == source.architecture.fingerprint
        ] or [number for number, source in enumerate(sources) if source.architecture.is_any]
        if not fitting:
            raise WeightsearchError(
                f"{checkpoint.source}: its architecture, {checkpoint.architecture.describe()}, is not that of "
                f"{sources[0].path}, {sources[0].architecture.describe()}; draw it into networks like it"
            )
        for number in fitting:
            drawn[number].append((as_path(path), aligned[number]))
    return drawn


def open_sources(
    path: Index | Zoo | str | Path, methods: Sequence[str] | None = None, *, seed: int = 0, root: Path | None = None
) -> list[Source]:
    """A zoo, or each architecture of an index, as something to draw."""
    if isinstance(path, str | Path):
        path = Path(path)
        path = Zoo.open(path) if (path / "zoo.json").exists() else Index.open(path)
    if isinstance(path, Index):
        return [IndexSource(path.store, fingerprint) for fingerprint in path.architectures]
    chosen = METHODS if methods is None else tuple(methods)
    names = (RAW, *Method)
    if unknown := [method for method in chosen if method not in names]:
        raise UsageError(f"--method {unknown[0]}: choose among {', '.join(names)}")
    return [ZooSource(path, chosen, seed=seed, root=root)]
