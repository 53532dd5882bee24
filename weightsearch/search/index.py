"""One network's answer: what the index says of a checkpoint it may never have seen.

Imports what only some questions need where they need it: a question about an indexed checkpoint reads no files of
weights, and has no use for torch.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import refuse_to_overwrite
from weightsearch.index import IndexStore, Row
from weightsearch.index.connection import decoded
from weightsearch.index.manifest import DATABASE
from weightsearch.index.thresholds import thresholds_among
from weightsearch.search import wording
from weightsearch.search.answer import Answer, Forecast, Novelty
from weightsearch.search.forecast import forecast_of
from weightsearch.search.subject import (
    Subject,
    activation_note,
    damage_note,
    dataset_of,
    described,
    faults,
    may_embed,
    shuffled_descriptions,
    space_of,
)
from weightsearch.search.sureness import agree, interval_of
from weightsearch.types import (
    Activation,
    Architecture,
    Metric,
    Neighbour,
    Selection,
    Target,
    activation_named,
    epoch_number,
)
from weightsearch.uncertainty.calibration import FAMILIAR, Calibration, load_calibration
from weightsearch.uncertainty.novelty import NEAREST, Familiar, LayerDifference

if TYPE_CHECKING:
    from weightsearch.training.represent import AnyEncoder

K, NEAREST_RUNS = 10, 5  # rows in each list where nobody says how many; runs that the nearest are told from
FEWEST_COMPARED = 20  # rows of a dataset that good and bad are told from
_OF_THE_STORE = {
    "count", "descriptions", "encoder_directory", "finals", "grades", "keys", "load", "manifest", "newest_cache",
    "prepared", "search", "width",
}  # fmt: skip
REPLACED_ATTEMPTS = 5  # of a question while another index takes this one's place


@dataclass(eq=False)
class _Space:
    """What lies beside an encoder; the encoder itself is only loaded where weights have to be embedded."""

    calibration: Calibration | None
    familiar: Familiar | None
    encoder: AnyEncoder | None = None


class Index:
    """An index of checkpoints, opened for reading: asks about whole networks, and holds no lock between calls.

    Sees what others add, remove or replace meanwhile. `store` has the rows and vectors themselves.

    Example:
        >>> index = Index.open("index")
        >>> answer = index.query("index/examples/good.pt", k=3)
        >>> [neighbour.run for neighbour in answer.neighbours]  # doctest: +ELLIPSIS
        ['usps-v1/...', 'usps-v1/...', 'usps-v1/...']
    """

    def __init__(self, store: IndexStore) -> None:
        self.store = store
        self._spaces: dict[tuple[str, str], _Space] = {}  # by the index's identity and the architecture

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """The index in the directory `path`. Raises WeightsearchError where there is none or it is damaged."""
        return cls(IndexStore.open(path))

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def architectures(self) -> dict[str, Architecture]:
        """Those that the index holds, by fingerprint."""
        return self.store.architectures

    @property
    def target(self) -> Target:
        """What is predicted and judged by."""
        return self.store.target

    @property
    def metric(self) -> Metric:
        return self.store.metric

    def find(self, id: str) -> Row:
        """The row with this id, or with the only id that begins so. Raises UsageError for none or several."""
        return self.store.find(id)

    def table(self, fingerprint: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns `(n,)` of one architecture's rows by name: the index's own, recipe keys and the user's.

        Numbers are float64 with NaN where unknown, texts objects with None.
        """
        return self.store.table(fingerprint, columns)

    def embeddings(self, fingerprint: str) -> np.ndarray:
        """All embeddings `(n, D)` float32 of one architecture's rows, in the order of `table`."""
        return self.store.embeddings(fingerprint)

    def accuracies(self, fingerprint: str) -> np.ndarray:
        """Test accuracies `(n,)` in [0, 1], or the index's other target, in the order of `table`; NaN where unknown."""
        return self.store.accuracies(fingerprint)

    def thresholds(self, fingerprint: str, good: str | None = None, bad: str | None = None) -> tuple[float, float]:
        """Bad at or worse than the first, good at or better than the second: values ("0.9") or quantiles ("q75")."""
        return self.store.thresholds(fingerprint, good, bad)

    def __getattr__(self, name: str) -> Any:
        """The store's methods that were this class's own in version 0.1.0."""
        if name not in _OF_THE_STORE:
            raise AttributeError(f"weightsearch.Index has no {name}")
        return getattr(self.store, name)

    def __len__(self) -> int:
        """Checkpoints of all architectures."""
        return len(self.store)

    def __repr__(self) -> str:
        return f"<weightsearch.Index {self._summary()}>"

    def _repr_html_(self) -> str:
        return f"<p><b>weightsearch.Index</b> {html.escape(self._summary())}</p>"

    def _summary(self) -> str:
        spaces = "1 space" if len(self.architectures) == 1 else f"{len(self.architectures)} spaces"
        age = wording.age(time.time() - (self.path / DATABASE).stat().st_mtime)
        return f"{self.path}: {len(self):,} checkpoints in {spaces}, changed {age} ago"

    def query(
        self,
        model: Any = None,
        k: int = K,
        *,
        id: str | None = None,
        where: str | None = None,
        good: str | float | None = None,
        bad: str | float | None = None,
        within: float | None = None,
        not_run: bool = False,
        per_run: int | None = None,
        run: str | None = None,
        epoch: float | None = None,
        activation: str | None = None,
        weights: str | None = None,
    ) -> Answer:
        """What the index says of a network, with up to `k` rows in each list.

        Args:
            model: a checkpoint file, a `torch.nn.Module`, a state dict, or a `Checkpoint`; or None, and
            id: of an indexed checkpoint, or the beginning of one. It is no neighbour of itself.
            where: a condition that neighbours meet, in DuckDB's SQL.
            good, bad: thresholds of these lists, as values or quantiles ("q75").
            within: the greatest distance of a neighbour.
            not_run: leave out neighbours of the network's own run.
            per_run: at most so many neighbours of one run.
            run, epoch, activation: the network's own, where its file does not say. An encoder may see through the
                symmetries that an activation has (relu: scale, tanh: sign), where it knows it.
            weights: the key of the network in a file that holds several.

        Raises `WeightsearchError` for a file that cannot be read or an architecture that the index does not hold.
        """
        if (model is None) == (id is None):
            raise UsageError("give a network to query with, or the id of an indexed one")
        if activation is not None and activation_named(activation) is None:
            raise UsageError(f"--activation {activation}: choose one of {', '.join(Activation)}")
        selection = Selection(
            where, good=None if good is None else str(good), bad=None if bad is None else str(bad), within=within,
            per_run=per_run,
        )  # fmt: skip
        ask = partial(self._ask, model, k, id, selection, not_run, run, epoch, activation, weights)
        for _ in range(REPLACED_ATTEMPTS):
            self.store.refresh()
            identity = self.store.identity
            try:
                answer = ask()
            except WeightsearchError:
                if self.store.identity == identity:
                    raise
            else:
                self.store.refresh()  # a file of another index may have been read beside this one's rows
                if self.store.identity == identity:
                    return answer
        raise WeightsearchError(f"{self.path} was replaced again and again while it was asked; try again")

    def _ask(
        self, model: Any, k: int, id: str | None, selection: Selection, not_run: bool, run: str | None,
        epoch: float | None, activation: str | None, weights: str | None,
    ) -> Answer:  # fmt: skip
        """One attempt of `query`, right as long as no other index takes this one's place meanwhile."""
        subject = self._indexed(id) if id is not None else self._read(model, activation, weights)
        subject = replace(
            subject, run=subject.run if run is None else run, epoch=subject.epoch if epoch is None else epoch
        )
        if not_run and subject.run is None:
            raise WeightsearchError(
                f"{subject.path} does not say which run it is of, as --not-run needs; give --run NAME"
            )
        if not_run:
            selection = replace(selection, not_run=subject.run)
        return self.store.asked(lambda: self._answer(subject, k, selection, itself=id is None))

    def get(self, id: str, out: str | Path, *, overwrite: bool = False) -> Path:
        """Writes an indexed checkpoint's weights to `out`, as a state dict with the names that they had.

        Raises UsageError where `out` exists, unless `overwrite`; WeightsearchError saying where the weights should be,
        where they are not there any more.
        """
        from weightsearch.checkpoints.state_dict import write_checkpoint
        from weightsearch.search.weights_location import read_source

        refuse_to_overwrite(out, overwrite)
        row = self.store.find(id)
        architecture = self.architectures[row.fingerprint]
        checkpoint = read_source(
            row.columns["id"], row.columns["source"], self.path, None if architecture.is_any else architecture
        )
        write_checkpoint(out, checkpoint.weights, checkpoint.architecture)
        return Path(out)

    def _space(self, fingerprint: str) -> _Space:
        key = (self.store.identity, fingerprint)
        if key not in self._spaces:
            directory = self.store.encoder_directory(fingerprint)
            self._spaces[key] = _Space(load_calibration(directory), Familiar.load(directory / FAMILIAR))
        return self._spaces[key]

    def _read(self, model: Any, activation: str | None, weights: str | None) -> Subject:
        from weightsearch.checkpoints.state_dict import align

        checkpoint, told = described(model, weights, partial(may_embed, architectures=self.architectures))
        checkpoint = align(checkpoint, self.architectures.values())
        fingerprint = space_of(checkpoint, self.path, self.architectures)
        from weightsearch.checkpoints.metadata import as_fractions
        from weightsearch.training.represent import load_any_encoder, represent

        space = self._space(fingerprint)
        if space.encoder is None:
            space.encoder = load_any_encoder(self.store.encoder_directory(fingerprint))
        (metadata,), _ = as_fractions([told])
        stated_activation = activation or metadata.recipe.get("activation")
        represented = represent(
            space.encoder, checkpoint.weights[None], [stated_activation], architecture=checkpoint.architecture
        )
        if not np.isfinite(represented.embedding).all():
            raise WeightsearchError(
                f"{checkpoint.source or 'the network'}: its weights are so large that its embedding is not finite; "
                "such a network is of no use"
            )
        by_activation = {}
        if activation_named(stated_activation) is None and space.encoder.activations:
            names = list(space.encoder.activations)
            repeated = np.repeat(checkpoint.weights[None], len(names), axis=0)
            predicted = represent(space.encoder, repeated, names, layers=False).predicted
            by_activation = dict(zip(map(str, names), predicted.tolist(), strict=True))
        stated = metadata.value(self.target.column)
        if np.isnan(stated):
            other = checkpoint.metadata.get(self.target.column)
            stated = float(other) if isinstance(other, int | float) else np.nan
        subject = Subject(
            path=checkpoint.source or "network in memory",
            id=checkpoint.id,
            fingerprint=fingerprint,
            embedding=represented.embedding[0],
            predicted=float(represented.predicted[0]),
            description=None if represented.layers is None else represented.layers[0],
            stated=None if np.isnan(stated) else float(stated),
            run=metadata.run or None,
            epoch=metadata.epoch,
            dataset=metadata.dataset,
            recipe=dict(metadata.recipe),
            activation=None if stated_activation is None else str(stated_activation),
            activation_from=None if stated_activation is None else "option" if activation else "file",
            by_activation=by_activation,
            shuffled=None if represented.layers is None else shuffled_descriptions(checkpoint),
            faults=faults(checkpoint),
            notes=checkpoint.notes
            + activation_note(space.encoder, stated_activation)
            + damage_note(represented.damage),
            architecture=checkpoint.architecture,
            strangeness=None if represented.strangeness is None else float(represented.strangeness[0]),
        )
        try:
            row = self._indexed(checkpoint.id)
        except UsageError:
            return subject
        differs = subject.stated is not None and (row.stated is None or abs(row.stated - subject.stated) > 5e-4)
        return replace(  # the index knows it, and what the file does not say
            row,
            path=subject.path,
            description=subject.description,
            notes=(*subject.notes, *([f"the file itself says {subject.stated:.3f}"] if differs else ())),
            architecture=subject.architecture,
            run=subject.run or row.run,
            epoch=row.epoch if subject.epoch is None else subject.epoch,
            dataset=row.dataset or subject.dataset,
            copy_of=", ".join(filter(None, (row.id, row.run, "" if row.epoch is None else f"epoch {row.epoch}"))),
            faults=subject.faults,
        )

    def _indexed(self, id: str) -> Subject:
        row = self.store.find(id)
        columns = row.columns
        recipe = decoded(columns["recipe"], dict)
        value = columns.get(self.target.column)
        if value is None:  # a column of the user's
            values = self.store.table(row.fingerprint, ["number", self.target.column])
            value = values[self.target.column][values["number"] == columns["number"]][0]
        return Subject(
            path=f"{columns['id']} in {self.path}",
            id=columns["id"],
            fingerprint=row.fingerprint,
            embedding=row.embedding,
            predicted=float(columns["predicted_accuracy"]),
            description=None,  # read with the neighbours'
            stated=None if np.isnan(value) else float(value),
            run=columns["run"],
            epoch=epoch_number(columns["epoch"]),
            split=columns["split"],
            indexed=True,
            dataset=columns["dataset"],
            recipe=recipe,
            activation=recipe.get("activation"),
            activation_from="index",
        )

    def _answer(self, subject: Subject, k: int, selection: Selection, *, itself: bool) -> Answer:
        fingerprint, space = subject.fingerprint, self._space(subject.fingerprint)
        count = self.store.count(fingerprint)
        k = (min(k, count) or k) if k <= K else k  # few: what there is; thousands of a few rows are a slip
        result = self.store.search(fingerprint, subject.embedding, k if itself else min(k + 1, count), selection)
        near, good, bad = (
            tuple(row for row in rows if itself or row.id != subject.id)[:k]
            for rows in (result.neighbours, result.good, result.bad)
        )
        dataset = subject.dataset or dataset_of(subject.recipe) or self.store.only_dataset(fingerprint)
        values = self._comparable(fingerprint, dataset)
        quality = self.target.quality
        bad_threshold, good_threshold = thresholds_among(self.target, values, selection.good, selection.bad)
        near_values = [row.value for row in near if row.value is not None]
        average = float(np.mean(near_values)) if near_values else None
        interval, notes = interval_of(space.calibration, subject)
        nearest_runs = self.store.search(
            fingerprint, subject.embedding, min(NEAREST_RUNS + 1, count), replace(selection, per_run=1)
        ).neighbours
        unfiltered = selection == Selection(good=selection.good, bad=selection.bad) and k >= NEAREST
        novelty = self._novelty(subject, space, count, result.neighbours[:NEAREST] if unfiltered else None)
        unlike = bool(subject.faults) or (novelty is not None and novelty.outside)
        percentile = 100 * float(np.mean(quality(values) < quality(subject.predicted))) if len(values) else None
        answer = Answer(
            path=subject.path,
            id=subject.id,
            architecture=(subject.architecture or self.architectures[fingerprint]).describe(),
            fingerprint=fingerprint,
            predicted=subject.predicted,
            percentile=None if unlike else percentile,
            stated_accuracy=subject.stated,
            neighbours_accuracy=average,
            neighbours=near,
            good=good,
            bad=bad,
            good_threshold=good_threshold,
            bad_threshold=bad_threshold,
            plan=result.plan,
            interval=None if unlike else interval,
            agrees=None if average is None else agree(average, subject.predicted, interval, values, self.target),
            novelty=novelty,
            forecast=forecast_of(
                self.store, subject, selection, space.calibration.distance_limit if space.calibration else math.inf
            ),
            layers=self._layers(subject, space, *([r for r in rows if r.id != subject.id] for rows in (good, bad))),
            run=subject.run,
            epoch=subject.epoch,
            indexed=subject.indexed,
            notes=subject.notes + notes,
            target=self.target.column,
            lower_is_better=self.target.lower_is_better,
            index=str(self.path),
            dataset=dataset,
            compared=len(values),
            metric=self.metric.value,
            network=(subject.architecture or self.architectures[fingerprint]).brief(),
            recipe=subject.recipe,
            activation=subject.activation,
            activation_from=subject.activation_from,
            by_activation=subject.by_activation,
            runs=tuple(row for row in nearest_runs if itself or row.id != subject.id)[:NEAREST_RUNS],
            faults=subject.faults,
            copy_of=subject.copy_of,
        )
        answer = replace(answer, label=wording.label(answer))
        return replace(answer, verdict=wording.verdict(answer))

    def _comparable(self, fingerprint: str, dataset: str | None) -> np.ndarray:
        """Known values of the rows on the network's own dataset, where these are enough; else of all rows."""
        values = self.store.accuracies(fingerprint)
        if dataset is not None and self.store.only_dataset(fingerprint) is None:
            same = self.store.accuracies(fingerprint, dataset)
            if np.count_nonzero(~np.isnan(same)) >= FEWEST_COMPARED:
                values = same
        return values[~np.isnan(values)]

    def _novelty(
        self, subject: Subject, space: _Space, count: int, nearest: Sequence[Neighbour] | None
    ) -> Novelty | None:
        """None for an indexed network, which is known, and where an index has nothing to compare with.

        `nearest` are the five nearest of all rows, where they have been searched already.
        """
        if subject.indexed or space.calibration is None:
            return None
        if nearest is None:
            nearest = self.store.search(subject.fingerprint, subject.embedding, min(NEAREST, count)).neighbours
        distance, limit = float(np.mean([row.distance for row in nearest])), space.calibration.distance_limit
        outside = distance > limit
        layers = layers_limit = None
        if space.familiar is not None and subject.description is not None:
            layers, layers_limit = space.familiar.distance(subject.description), space.familiar.limit
            outside = outside or layers > layers_limit
        noticed = None
        if space.familiar is not None and subject.shuffled is not None:
            noticed = float(np.mean([space.familiar.distance(one) > space.familiar.limit for one in subject.shuffled]))
        if subject.strangeness is not None:  # by the encoder's own detector, whose limit is 1
            layers, layers_limit, outside = subject.strangeness, 1.0, subject.strangeness > 1
        return Novelty(distance, limit, layers, layers_limit, outside, noticed)

    def _layers(
        self, subject: Subject, space: _Space, good: list[Neighbour], bad: list[Neighbour]
    ) -> tuple[LayerDifference, ...]:
        """The network's layers beside those of the first of `good` and of `bad`."""
        if space.familiar is None:
            return ()
        ids = [rows[0].id if rows else "" for rows in (good, bad)]
        wanted = [subject.id, *ids] if subject.description is None else ids
        descriptions = self.store.descriptions(subject.fingerprint, [id for id in wanted if id])
        described = descriptions.get(subject.id) if subject.description is None else subject.description
        if described is None or not any(id in descriptions for id in ids):
            return ()
        return space.familiar.compare(self.architectures[subject.fingerprint], described, *map(descriptions.get, ids))


def query(
    index: Index | str | Path,
    model: Any = None,
    k: int = K,
    *,
    id: str | None = None,
    where: str | None = None,
    good: str | float | None = None,
    bad: str | float | None = None,
    within: float | None = None,
    not_run: bool = False,
    per_run: int | None = None,
    run: str | None = None,
    epoch: float | None = None,
    activation: str | None = None,
    weights: str | None = None,
) -> Answer:
    """The answer of the index at a path, or of one already opened, which is used as it is; see `Index.query`.

    Example:
        >>> query("index", "index/examples/bad.pt").predicted < 0.5
        True
    """
    opened = index if isinstance(index, Index) else Index.open(index)
    return opened.query(
        model, k, id=id, where=where, good=good, bad=bad, within=within, not_run=not_run, per_run=per_run, run=run,
        epoch=epoch, activation=activation, weights=weights,
    )  # fmt: skip


__all__ = ["Answer", "Forecast", "Index", "Novelty", "query"]
