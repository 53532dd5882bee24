"""Checkpoints into an index while their run goes on, and where that run stands among the others."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsearch import paths
from weightsearch.checkpoints.discovery import CheckpointFile, Sources, run_of
from weightsearch.checkpoints.metadata import Metadata, interpret, merge
from weightsearch.checkpoints.metadata_table import MetadataTable
from weightsearch.errors import Interrupted, UsageError, WeightsearchError
from weightsearch.files import clean_text, write_whole
from weightsearch.index import IndexStore
from weightsearch.relations.lookups import newest
from weightsearch.search.add import add
from weightsearch.search.answer import Answer
from weightsearch.search.index import Index

LOOKED_AT = 5_000  # files that an index knows by signature alone, whose accuracies are looked for beside them


@dataclass(frozen=True)
class Standing:
    """Where a run stands by its latest checkpoint. Accuracies are in [0, 1]; what is not known is None.

    `best` is the run's best accuracy so far; `rank` is its place, from 1, by that among the `runs` of the index whose
    accuracies are known and that are of no other dataset. `answer` is what the index says of the checkpoint, where it
    has an encoder for it. `problem` says why the checkpoint is not in the index.

    Example:
        >>> print(record('index/examples/good.pt', run='a', epoch=3, accuracy=0.9, index='new', quiet=True))
        a, epoch 3: accuracy 0.900, the best of its run; the only run whose accuracy is known
    """

    run: str
    path: Path
    epoch: float | None = None
    accuracy: float | None = None
    best: float | None = None
    rank: int | None = None
    runs: int = 0
    answer: Answer | None = None
    problem: str | None = None

    def __str__(self) -> str:
        name = self.run if self.epoch is None else f"{self.run}, epoch {self.epoch:g}"
        if self.problem is not None:
            return f"{name}: saved in {self.path}, but not in the index ({self.problem})"
        said = []
        if self.accuracy is not None:
            best = self.best is None or self.accuracy >= self.best
            said.append(
                f"accuracy {self.accuracy:.3f}" + (", the best of its run" if best else f", best {self.best:.3f}")
            )
        elif self.answer is not None and self.answer.label != "unlike":
            low, high = self.answer.interval or (None, None)
            around = f" ({low:.2f}–{high:.2f})" if low is not None else ""
            said.append(f"predicted accuracy {self.answer.predicted:.2f}{around}")
        else:
            said.append("accuracy unknown")
        if self.rank is not None:
            alone = self.runs == 1
            said.append("the only run whose accuracy is known" if alone else f"rank {self.rank} of {self.runs:,} runs")
        forecast = None if self.answer is None else self.answer.forecast
        if forecast is not None:
            said.append(f"runs like it ended at {forecast.median:.2f} ({forecast.low:.2f}–{forecast.high:.2f})")
        return f"{name}: {'; '.join(said)}"


def record(
    model: Any,
    run: str,
    *,
    epoch: float | None = None,
    accuracy: float | None = None,
    recipe: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    index: str | Path | None = None,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Standing:
    """Adds a network to an index as a checkpoint of `run`, and prints on stderr where that run stands.

    A trouble with the index (another writer, a full disk) is said there, too, and ends no training.

    Args:
        model: a `torch.nn.Module` or a state dict, which is saved as `folder/run/epoch=N.pt` with what is known of it
            in a `.json` beside it; or the path of a checkpoint that is saved already.
        epoch: None where a run has one checkpoint.
        accuracy: on test data, or on validation data where those decide; in [0, 1].
        recipe: hyperparameters.
        values: whatever else is to be kept: losses, `train_accuracy`, columns of your own.
        dataset: what the network is trained on; runs are compared within one.
        index: the directory, made where there is none; by default the one that commands would take.
        folder: by default `runs/checkpoints`.

    Raises:
        UsageError: a value that cannot be, such as an accuracy over 1.
        WeightsearchError: the checkpoint cannot be saved.

    Example:
        >>> standing = record('index/examples/bad.pt', run='b', epoch=1, accuracy=0.2, index='new', quiet=True)
        >>> standing.rank, standing.runs
        (1, 1)
    """
    recorder = Recorder(index, dataset=dataset, quiet=quiet)
    told = _told(run, epoch, accuracy, recipe, values, dataset)
    if isinstance(model, str | Path):
        path = Path(model)
        if not path.exists():
            raise UsageError(f"{path}: there is no such checkpoint; give a module, a state dict or a saved file")
    else:
        path = _saved(model, Path(folder) if folder is not None else paths.RUNS / "checkpoints", told)
    return recorder.add(path, interpret(told, "record"))


class Recorder:
    """Adds saved checkpoints to one index and says where their runs stand. `quiet`: it says nothing, but troubles.

    Example:
        >>> recorder = Recorder('new', quiet=True)
        >>> recorder.add('index/examples/good.pt', Metadata(run='a', epoch=1)).run  # doctest: +SKIP
        'a'
    """

    def __init__(self, index: str | Path | None = None, *, dataset: str | None = None, quiet: bool = False) -> None:
        self.index = paths.own_or_new_index(Path("recorded")) if index is None else Path(index)
        self.dataset = dataset
        self.quiet = quiet
        self._labels: dict[str, Metadata] = {}  # by source, of files that are known by their signatures alone

    def add(self, path: str | Path, metadata: Metadata) -> Standing:
        """Adds a saved checkpoint, of which `known` is said by whoever saved it and `known.run` names the run.

        Never raises WeightsearchError: what went wrong is in the result's `problem`.
        """
        path = Path(path)
        run = metadata.run or run_of(path.absolute(), path.absolute().parent.parent)
        metadata = replace(metadata, run=run, dataset=metadata.dataset or self.dataset)
        stated = metadata.value("test_accuracy")
        standing = Standing(run, path, metadata.epoch, None if math.isnan(stated) else stated)
        try:
            key = "/".join(path.absolute().parts[1:])
            sources = Sources(table=MetadataTable(path, {key: metadata}, "path"))
            report = add([path], self.index, sources=sources, dataset=self.dataset, quiet=True)
            if report.quarantined:
                raise WeightsearchError(report.quarantined[0].reason)
            standing = self._stand(standing, path)
        except Interrupted:
            raise KeyboardInterrupt from None  # of the training that this is a part of
        except WeightsearchError as error:
            standing = replace(standing, problem=str(error))
        if not self.quiet or standing.problem is not None:
            print(f"weightsearch: {clean_text(str(standing))}", file=sys.stderr, flush=True)
        return standing

    def _stand(self, standing: Standing, path: Path) -> Standing:
        accuracies, id = self._accuracies(str(path.resolve()))
        if standing.accuracy is not None:
            accuracies.setdefault(standing.run, []).append(standing.accuracy)
        best = {run: max(values) for run, values in accuracies.items() if values}
        answer = None
        if id is not None:
            answer = Index.open(self.index).query(id=id, k=5, run=standing.run, epoch=standing.epoch)
        return replace(
            standing,
            best=best.get(standing.run),
            rank=1 + sum(value > best[standing.run] for value in best.values()) if standing.run in best else None,
            runs=len(best),
            answer=answer,
        )

    def _accuracies(self, source: str) -> tuple[dict[str, list[float]], str | None]:
        """Known accuracies by run, of this dataset or of none told, and the id of `source`'s row, if it has one."""
        store = IndexStore.open(self.index)
        accuracies: dict[str, list[float]] = {}
        rows: set[str] = set()
        id = None

        def take(run: object, accuracy: float, dataset: object) -> None:
            same = dataset is None or self.dataset is None or dataset == self.dataset
            if isinstance(run, str) and accuracy == accuracy and same:
                accuracies.setdefault(run, []).append(accuracy)

        for fingerprint in store.architectures:
            table = store.table(fingerprint, ["id", "source", "run", "test_accuracy", "dataset"])
            for i, place in enumerate(table["source"]):
                rows.add(str(place))
                id = str(table["id"][i]) if place == source else id
                take(table["run"][i], float(table["test_accuracy"][i]), table["dataset"][i])
        sources = Sources()
        for place, run in newest(self.index, LOOKED_AT):
            if place not in rows and place != source:
                metadata = self._label(Path(place), sources)
                take(metadata.run or run, metadata.value("test_accuracy"), metadata.dataset)
        return accuracies, id

    def _label(self, path: Path, sources: Sources) -> Metadata:
        """What lies beside a file that the index has no row of, since it has no encoder for it."""
        if str(path) not in self._labels:
            try:
                told = sources.describe(CheckpointFile(path, path.parent, ""), {}) if path.exists() else Metadata()
            except (WeightsearchError, OSError):
                told = Metadata()
            self._labels[str(path)] = replace(told, run=told.run or None)
        return self._labels[str(path)]


def _told(
    run: str, epoch: float | None, accuracy: float | None, recipe: Mapping[str, Any] | None,
    values: Mapping[str, Any] | None, dataset: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What a caller says, checked, as a sidecar has it."""
    if not isinstance(run, str) or not run.strip() or set(Path(run).parts) & {"..", "/"}:
        raise UsageError(f"run {run!r}: give a name, which is also that of a folder")
    for name, number in (("epoch", epoch), ("accuracy", accuracy)):
        if number is not None and not math.isfinite(float(number)):
            raise UsageError(f"{name} {number!r}: give a finite number, or None where it is not known")
    if accuracy is not None and not 0 <= float(accuracy) <= 1:
        raise UsageError(f"accuracy {accuracy!r}: give a share in [0, 1]; per cent are divided by 100")
    told = {"run": run, "dataset": dataset, "epoch": None if epoch is None else float(epoch)}
    told["test_accuracy"] = None if accuracy is None else float(accuracy)
    told = {**(values or {}), **{name: value for name, value in told.items() if value is not None}}
    return {**told, "recipe": dict(recipe)} if recipe else told


def _saved(model: Any, folder: Path, told: Mapping[str, Any]) -> Path:
    """Writes a module's or a mapping's tensors and what is told of them; the file of weights comes last, complete."""
    import torch

    state = model.state_dict() if callable(getattr(model, "state_dict", None)) else model
    if not isinstance(state, Mapping):
        raise UsageError(f"a {type(model).__name__} is no network; give a module, a state dict or a saved file")
    epoch = told.get("epoch")
    path = folder / told["run"] / ("model.pt" if epoch is None else f"epoch={epoch:g}.pt")
    buffer = io.BytesIO()
    cpu = {name: value.detach().cpu() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    torch.save({"state_dict": cpu}, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_name(f"{path.name}.json"), json.dumps(told, indent=1, default=str))
        write_whole(path, buffer.getbuffer())
    except OSError as error:
        raise WeightsearchError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    return path


def known_of(values: Mapping[str, Any], source: str, recipe: Mapping[str, Any] | None = None, **told: Any) -> Metadata:
    """What a framework says of a checkpoint: metrics by its names, the recipe, and `told` by ours."""
    return merge([interpret(told, source), interpret({**values, "recipe": dict(recipe or {})}, source)])
