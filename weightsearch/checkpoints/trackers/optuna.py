"""Optuna: a study's SQLite file, with the trials' parameters, values by step and user attributes.

https://optuna.readthedocs.io/en/stable/reference/storages.html
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import Measured, Metadata, interpret, merge
from weightsearch.checkpoints.trackers import Finder, Inside, Label, Report
from weightsearch.errors import WeightsearchError

SUFFIXES = (".db", ".sqlite", ".sqlite3")
MAX_STUDIES = 8  # database files that are opened in one folder
_TRIAL = re.compile(r"trial[_=-]?(\d{1,9})(?!\d)", re.IGNORECASE)


@dataclass
class Trial:
    number: int
    state: str
    params: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    by_step: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One study's trials by number; `metric` is the objective's name, `accuracy` whether its values look like one."""

    path: Path
    name: str
    metric: str
    accuracy: bool
    trials: Mapping[int, Trial]


def find(folder: Path, report: Report) -> Finder | None:
    files = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())[:MAX_STUDIES]
    studies: list[Study] = []
    for path in files:
        try:
            studies += read_studies(path) if _is_sqlite(path) else []
        except WeightsearchError as error:
            report(path, error)
    return finder(studies, folder) if studies else None


def finder(studies: list[Study], folder: Path) -> Finder:
    """Labels by the trial that a path names (`trial_13/model.pt`), or that names the path in a user attribute."""
    by_attribute = {
        end: (study, trial)
        for study in studies
        for trial in study.trials.values()
        for value in trial.attributes.values()
        if isinstance(value, str) and "/" in value
        for end in ["/".join(Path(value).parts[-2:])]
    }

    def label(path: Path, inside: Inside) -> Label | None:
        if trial_of_path := by_attribute.get("/".join(path.parts[-2:])):
            return _label(*trial_of_path, path, inside, folder)
        place = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
        numbers = [int(match[1]) for match in _TRIAL.finditer(place)]
        matching = [study for study in studies if numbers and numbers[-1] in study.trials]
        if len(matching) > 1:  # the study that the path names
            matching = [study for study in matching if study.name in Path(place).parts]
        return _label(matching[0], matching[0].trials[numbers[-1]], path, inside, folder) if matching else None

    return label


def _label(study: Study, trial: Trial, path: Path, inside: Inside, folder: Path) -> Label:
    name = study.path.name
    attributes = interpret(trial.attributes, name)
    metadata = Metadata(recipe=trial.params)
    step = inside.epoch if inside.epoch is not None else inside.step
    value, origin = None, ""
    if trial.by_step:
        if step is not None and int(step) in trial.by_step:
            value, origin = trial.by_step[int(step)], f"{name}'s value_by_step"
    elif step is None or trial.value is not None:
        value, origin = trial.value, f"{name}'s {study.metric}"
    if value is not None:
        if study.accuracy:
            metadata = merge([metadata, Metadata({"test_accuracy": Measured(value, origin)})])
        else:
            metadata = merge([metadata, Metadata(extras={study.metric: value})])
    run = next((place for place in path.parents if _TRIAL.search(place.name) and place != folder), None)
    return Label(merge([metadata, attributes, Metadata(extras={"trial": trial.number})]), run)


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def read_studies(path: Path) -> list[Study]:
    """The studies of a SQLite file, [] where it is another program's. Raises WeightsearchError where it is damaged."""
    # A study that is being written has its last trials in a log beside it, which an immutable file cannot have.
    log = path.with_name(f"{path.name}-wal")
    how = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"studies", "trials", "trial_params"} <= tables:
                return []
            studies = connection.execute("SELECT study_id, study_name FROM studies").fetchall()
            return [_study(connection, path, id, name, tables) for id, name in studies]
    except sqlite3.Error as error:
        raise WeightsearchError(f"{path.name} cannot be read ({error})") from None


def _study(connection: sqlite3.Connection, path: Path, id: int, name: str, tables: set[str]) -> Study:
    def rows(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query, (id,)).fetchall()

    trials = {
        trial: Trial(number, state)
        for trial, number, state in rows("SELECT trial_id, number, state FROM trials WHERE study_id = ?")
    }
    of_study = "trial_id IN (SELECT trial_id FROM trials WHERE study_id = ?)"
    for trial, key, value, kind in rows(
        f"SELECT trial_id, param_name, param_value, distribution_json FROM trial_params WHERE {of_study}"
    ):
        trials[trial].params[key] = _parameter(value, json.loads(kind))
    for trial, key, text in rows(f"SELECT trial_id, key, value_json FROM trial_user_attributes WHERE {of_study}"):
        trials[trial].attributes[key] = json.loads(text)
    if "trial_values" in tables:
        for trial, value in rows(f"SELECT trial_id, value FROM trial_values WHERE objective = 0 AND {of_study}"):
            trials[trial].value = value
    if "trial_intermediate_values" in tables:
        for trial, step, value in rows(
            f"SELECT trial_id, step, intermediate_value FROM trial_intermediate_values WHERE {of_study}"
        ):
            if value is not None:
                trials[trial].by_step[step] = value
    directions = rows("SELECT direction FROM study_directions WHERE study_id = ? ORDER BY objective")
    named = rows("SELECT value_json FROM study_system_attributes WHERE study_id = ? AND key = 'study:metric_names'")
    metric = json.loads(named[0][0])[0] if named else "value"
    values = [trial.value for trial in trials.values() if trial.value is not None]
    maximised = bool(directions) and directions[0][0] == "MAXIMIZE"
    accuracy = maximised and bool(values) and min(values) >= 0 and max(values) <= 100 and "loss" not in metric.lower()
    return Study(path, name, metric, accuracy, {trial.number: trial for trial in trials.values()})


def _parameter(value: float, distribution: Mapping[str, Any]) -> Any:
    attributes = distribution.get("attributes", {})
    kind = distribution.get("name", "")
    if kind == "CategoricalDistribution":
        return attributes["choices"][int(value)]
    return int(value) if kind.startswith("Int") else value
