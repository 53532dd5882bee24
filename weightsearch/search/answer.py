"""What an index says of one network, and the words for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from weightsearch.html_template import render_html
from weightsearch.text_table import Table
from weightsearch.types import Neighbour, Plan, Target
from weightsearch.uncertainty.novelty import LayerDifference

LAYERS_SHOWN = 8  # of a deep network, those least like the neighbours'


@dataclass(frozen=True)
class Novelty:
    """How far a network lies from known ones: mean distances from the five nearest, and what 99 in 100 stay below.

    Of embeddings, from all rows of the index, and of layers' descriptions, from networks that the encoder was fitted
    on (None where the index holds no descriptions). Limits are held-out networks' own distances.
    """

    distance: float
    distance_limit: float
    layers_distance: float | None
    layers_limit: float | None
    outside: bool


@dataclass(frozen=True)
class Forecast:
    """How the runs ended that were most like the network at its epoch: accuracies of their last checkpoints."""

    epoch: int | float
    runs: int
    median: float
    low: float  # of all of them
    high: float
    good: int  # how many ended so, among their dataset's rows
    bad: int


@dataclass(frozen=True)
class Answer:
    """What the index says of one network. Accuracies lie in [0, 1]; `percentile`, in [0, 100], is of the index.

    An index that was trained with another `target` predicts that, under the same names. Prints as text, and as tables
    in a notebook.
    """

    path: str
    id: str
    architecture: str
    fingerprint: str
    predicted_accuracy: float
    percentile: float | None  # None where no row's accuracy is known
    stated_accuracy: float | None  # what the file itself says, or the index of an indexed network
    neighbours_accuracy: float | None  # their mean
    neighbours: tuple[Neighbour, ...]
    good: tuple[Neighbour, ...]
    bad: tuple[Neighbour, ...]
    good_threshold: float
    bad_threshold: float
    plan: Plan
    interval: tuple[float, float] | None = None  # holds the truth of `coverage` of all networks from new runs
    coverage: float = 0.9
    agrees: bool | None = None  # whether prediction and neighbours do
    novelty: Novelty | None = None
    forecast: Forecast | None = None
    layers: tuple[LayerDifference, ...] = ()
    run: str | None = None
    epoch: int | float | None = None
    indexed: bool = False
    notes: tuple[str, ...] = ()
    verdict: str = ""
    target: str = "test_accuracy"
    lower_is_better: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them: a threshold that is not known is None."""
        values = asdict(self)
        return {key: None if value != value else value for key, value in values.items()}

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe in one short line; keys that the zoo's own recipes do not have are written as `key value`."""
    known = {
        "optimizer": "{}",
        "learning_rate": "lr {:.1e}",
        "weight_decay": "wd {:.0e}",
        "dropout": "drop {:.2f}",
        "initializer": "{}",
        "init_std": "std {:.1e}",
        "activation": "{}",
        "train_fraction": "data {:.0%}",
    }
    parts = []
    for key, value in recipe.items():
        if value is None or key == "seed":
            continue
        try:
            parts.append(known[key].format(value))
        except (KeyError, ValueError):  # another maker's key, or another kind of value under ours
            parts.append(f"{key} {value}")
    return ", ".join(parts)


def facts(answer: Answer, explain: bool = False) -> list[tuple[str, str]]:
    """Name and text of all that is said before the tables."""
    target = _target(answer)
    predicted = f"{answer.predicted_accuracy:.3f}"
    if answer.interval is not None:
        low, high = answer.interval
        predicted += f", {answer.coverage:.0%} interval {low:.3f} to {high:.3f}"
    if answer.stated_accuracy is not None:
        predicted += f" (the {'index' if answer.indexed else 'file'} says {answer.stated_accuracy:.3f})"
    said = [
        ("network", answer.path),
        ("architecture", answer.architecture),
        (f"predicted {target.label}", predicted),
    ]
    if answer.percentile is not None:
        said.append(("percentile", f"{answer.percentile:.0f} of the indexed checkpoints"))
    if answer.novelty is not None:
        said.append(("familiar", "no" if answer.novelty.outside else "yes"))
    said += [("note", note) for note in answer.notes]
    if explain:
        said.append(("plan", answer.plan.describe()))
    return said


def tables(answer: Answer) -> list[Table]:
    """The nearest, nearest good and nearest bad rows, and the layers beside them."""
    target = _target(answer)
    near = answer.neighbours
    made = [_neighbours(f"Nearest {len(near)}" if near else "No checkpoint passes", near, target)]
    better, worse = ("≤", "≥") if target.lower_is_better else ("≥", "≤")
    sides = (("good", answer.good, better, answer.good_threshold), ("bad", answer.bad, worse, answer.bad_threshold))
    for name, rows, sign, threshold in sides:
        if threshold != threshold:  # NaN
            made.append(Table(f"None is {name} or not: the index knows no {target.label}"))
            continue
        meaning = f"({target.label} {sign} {threshold:.3f})"
        within = [_reaches(row.value, threshold, target.lower_is_better == (name == "good")) for row in rows]
        if not all(within):  # an index of several datasets grades each row among its own
            meaning = "(for their dataset)"
        title = f"Nearest {len(rows)} {name} {meaning}" if rows else f"No {name} one {meaning} passes"
        made.append(Table(f"{title}: the same") if rows and rows == near else _neighbours(title, rows, target))
    return made + ([_layers(answer)] if answer.layers else [])


def _reaches(value: float | None, threshold: float, lower: bool) -> bool:
    return value is not None and (value <= threshold if lower else value >= threshold)


def _neighbours(title: str, rows: tuple[Neighbour, ...], target: Target) -> Table:
    columns = ("distance", target.label, "epoch", "run", "id", "recipe")
    texts = tuple(
        (
            f"{row.distance:.4f}",
            "" if row.value is None else f"{row.value:.3f}",
            "" if row.epoch is None else str(row.epoch),
            row.run or "",
            row.id[:8],
            recipe_text(row.recipe),
        )
        for row in rows
    )
    return Table(title, columns, texts, right=(0, 1, 2), whole=(0, 1, 2, 3, 4)) if rows else Table(title)


def _layers(answer: Answer) -> Table:
    sides = []
    for name, rows in (("good", answer.good), ("bad", answer.bad)):
        others = [row for row in rows if row.id != answer.id]
        if others:
            sides.append(f"the nearest {name} one ({_place(others[0])})")
    shown = answer.layers
    if len(shown) > LAYERS_SHOWN:
        unlike = sorted(shown, key=lambda layer: -max(layer.good or 0, layer.bad or 0))[:LAYERS_SHOWN]
        shown = tuple(layer for layer in answer.layers if layer in unlike)
    texts = tuple(
        (layer.layer, _number(layer.good), layer.good_words, _number(layer.bad), layer.bad_words) for layer in shown
    )
    few = "" if len(shown) == len(answer.layers) else f" ({len(shown)} of {len(answer.layers)}, the least alike)"
    return Table(
        f"Layers, unlike {' and '.join(sides)}{few}",
        ("layer", "unlike good", "it has", "unlike bad", "it has"),
        texts,
        right=(1, 3),
        whole=(0, 1, 3),
        caption="0 is alike; networks of two runs are about 1.3 apart. The order of units does not count.",
    )


def verdict(answer: Answer) -> str:
    """What it probably is, whether the neighbours agree, and what became of runs like it: a few plain sentences."""
    target = _target(answer)
    said = []
    if answer.indexed:
        known = "" if answer.stated_accuracy is None else f", with {target.label} {answer.stated_accuracy:.3f}"
        said.append(f"The index holds this network{known}.")
    if answer.novelty is not None and answer.novelty.outside:
        said.append(
            f"Unlike anything the index knows: {_unlike(answer)}. Its predicted {target.label}, "
            f"{answer.predicted_accuracy:.3f}, is a guess; test it."
        )
        return " ".join(said)
    opening = f"predicted {target.label} {answer.predicted_accuracy:.3f}"
    if answer.percentile is not None:
        opening += f" beats {answer.percentile:.0f} % of the indexed checkpoints"
    nearest = _nearest(answer)
    if answer.agrees is False:
        said.append(f"Unsure: {opening}, but {nearest}, so trust neither before testing it.")
    else:
        label = _label(answer)
        opening = f"Probably {label}: {opening}" if label else opening.capitalize()
        said.append(f"{opening}, and {nearest}." if nearest else f"{opening}; no neighbour of known {target.label}.")
    if answer.forecast is not None:
        said.append(f"{_forecast(answer).capitalize()}.")
    return " ".join(said)


def _label(answer: Answer) -> str:
    quality = _target(answer).quality
    if answer.good_threshold != answer.good_threshold:  # NaN: nothing is known of any row
        return ""
    if quality(answer.predicted_accuracy) >= quality(answer.good_threshold):
        return "good"
    return "bad" if quality(answer.predicted_accuracy) <= quality(answer.bad_threshold) else "middling"


def _nearest(answer: Answer) -> str:
    if answer.neighbours_accuracy is None:
        return ""
    grades = [row.grade for row in answer.neighbours if row.value is not None]
    if len(grades) == 1:
        return f"its nearest has {answer.neighbours_accuracy:.3f}"
    good, bad = grades.count(1), grades.count(-1)
    return f"its {len(grades)} nearest average {answer.neighbours_accuracy:.3f} ({good} good, {bad} bad)"


def _forecast(answer: Answer) -> str:
    found = answer.forecast
    assert found is not None
    ended = f"{found.good} ended good and {found.bad} bad"
    if found.runs in (found.good, found.bad):
        ended = f"all ended {'good' if found.good else 'bad'}"
    return (
        f"of the {found.runs} runs most like it at epoch {found.epoch}, {ended}, "
        f"at {found.median:.3f} in the median ({found.low:.3f} to {found.high:.3f})"
    )


def _unlike(answer: Answer) -> str:
    novelty = answer.novelty
    assert novelty is not None
    layers = novelty.layers_distance is not None and novelty.layers_limit is not None
    if layers and novelty.layers_distance > novelty.layers_limit:  # type: ignore[operator]
        return "its layers are further from known networks' than those of 99 in 100 held-out ones"
    return "its embedding is further from known networks' than those of 99 in 100 held-out ones"


def _place(row: Neighbour) -> str:
    return ", ".join(
        part for part in (row.run or row.id[:8], "" if row.epoch is None else f"epoch {row.epoch}") if part
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _target(answer: Answer) -> Target:
    return Target(answer.target, answer.lower_is_better)


def as_text(answer: Answer, explain: bool = False) -> str:
    """Aligned columns, as wide as they need to be."""
    said = facts(answer, explain)
    width = max(len(name) for name, _ in said)
    lines = [f"{name:<{width}}  {text}" for name, text in said]
    shown = [table.to_text() for table in tables(answer)]
    return "\n\n".join(["\n".join(lines), *shown, answer.verdict])


def as_html(answer: Answer) -> str:
    """Tables, for notebooks."""
    return render_html("answer.html", verdict=answer.verdict, facts=facts(answer), tables=tables(answer))
