"""How a network will probably end: as the runs did that looked like it at its epoch."""

from __future__ import annotations

from weightsearch.index import IndexStore
from weightsearch.search.answer_data import Forecast
from weightsearch.search.subject import Subject
from weightsearch.types import Selection

FORECAST_RUNS = 10
FEWEST_RUNS = 3  # that a forecast is made from


def forecast_of(store: IndexStore, subject: Subject, asked: Selection, limit: float) -> Forecast | None:
    """From other runs' checkpoints of about the same epoch, one a run, where those runs went on.

    Those farther than `limit` do not look like it, even where no others have its epoch.
    """
    if subject.epoch is None:
        return None
    slack = 0 if subject.epoch <= 0 else max(1, subject.epoch // 4)
    condition = f"epoch BETWEEN {subject.epoch - slack} AND {subject.epoch + slack}"
    if asked.where is not None:
        condition = f"({asked.where}) AND {condition}"
    selection = Selection(condition, not_run=subject.run, per_run=1)
    count = min(FORECAST_RUNS, store.count(subject.fingerprint))
    like = store.search(subject.fingerprint, subject.embedding, count, selection).neighbours
    like = tuple(row for row in like if row.distance <= limit)
    runs = [row.run for row in like if row.run is not None]
    last = store.finals(subject.fingerprint, runs, asked.good, asked.bad)
    went_on = any(epoch > subject.epoch for epoch, _, _ in last.values())
    ends = sorted(last[row.run][1] for row in like if row.run in last)
    if len(ends) < FEWEST_RUNS or not went_on:
        return None
    grades = [grade for _, _, grade in last.values()]
    return Forecast(
        epoch=subject.epoch,
        runs=len(ends),
        median=(ends[(len(ends) - 1) // 2] + ends[len(ends) // 2]) / 2,
        low=ends[0],
        high=ends[-1],
        good=grades.count(1),
        bad=grades.count(-1),
    )
