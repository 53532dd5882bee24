"""An answer in words: the sentence that comes first, the few lines of a terminal, the tables of all lists."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightsearch.html_template import render_html
from weightsearch.search.answer_data import AnswerData
from weightsearch.text_table import Table, printable
from weightsearch.types import ANY, UNNAMED_DATASET, Neighbour, Target

LINES = 15  # that an answer has room for
WIDTH = 80
RUNS_SHOWN = 5
PLAIN = ("family", "dataset", "kind", "model", "arch", "architecture")  # keys whose values say what they are
GRADES = ("good", "middling", "bad")
LAYERS_SHOWN = 8  # of a deep network, those least like the neighbours'
SELDOM = (0.0, 0.25)  # shares of four tries
FAR_COSINE = 1.0  # beyond this two embeddings are rather opposite than alike
MOST = 1e300  # that is written as a floating-point number
RECIPE = {
    "optimizer": "{}",
    "learning_rate": "lr {:.1e}",
    "weight_decay": "wd {:.0e}",
    "dropout": "drop {:.2f}",
    "initializer": "{}",
    "init_std": "std {:.1e}",
    "activation": "{}",
    "train_fraction": "data {:.0%}",
}


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe in one short line; keys that the zoo's own recipes do not have are written as `key value`."""
    parts = []
    for key, value in recipe.items():
        if value is None or key == "seed":
            continue
        try:
            parts.append(RECIPE[key].format(value))
        except (KeyError, ValueError, TypeError, OverflowError):  # another maker's key or kind of value
            parts.append(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts).replace("e-0", "e-").replace("e+0", "e+")


def short_recipe(recipe: dict[str, Any]) -> str:
    """A recipe for a narrow column: the optimizer with its learning rate first, names without their keys."""
    optimizer, rate = recipe.get("optimizer"), recipe.get("learning_rate")
    first = "" if optimizer is None else str(optimizer)
    left = {key: value for key, value in recipe.items() if key not in ("optimizer", "learning_rate")}
    if isinstance(rate, int | float) and abs(rate) <= MOST:
        first = f"{first or 'lr'} {rate:.0e}".replace("e-0", "e-")
    elif rate is not None:
        left["learning_rate"] = rate
    texts = {key: value for key, value in left.items() if isinstance(value, str) and key in (*RECIPE, *PLAIN)}
    theirs = [value for key, value in texts.items() if key not in RECIPE]
    usual = [value for key, value in texts.items() if key in RECIPE]
    numbers = recipe_text({key: value for key, value in left.items() if key not in texts})
    return ", ".join(filter(None, (first, *theirs, numbers, *usual)))


def varying(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values differ among recipes; all keys of a single one. The seed does not count."""
    keys = [key for key in dict.fromkeys(key for one in recipes for key in one) if key != "seed"]
    if len(recipes) < 2:
        return keys
    return [key for key in keys if len({repr(one.get(key)) for one in recipes}) > 1]


def grade(value: float | None, answer: AnswerData) -> str:
    """good, middling or bad by the answer's thresholds; unknown where nothing is known to judge by."""
    quality = target_of(answer).quality
    if value is None or answer.good_threshold != answer.good_threshold:  # NaN
        return "unknown"
    if quality(value) >= quality(answer.good_threshold):
        return "good"
    return "bad" if quality(value) <= quality(answer.bad_threshold) else "middling"


def label(answer: AnswerData) -> str:
    """The verdict in a word, see `Answer`."""
    if answer.faults or (answer.novelty is not None and answer.novelty.outside):
        return "unlike"
    if answer.indexed or answer.copy_of is not None:
        if answer.stated_accuracy is not None:
            return grade(answer.stated_accuracy, answer)
    elif depends_on_activation(answer) or answer.agrees is False or _two_grades(answer):
        return "unknown"
    own_grade = grade(best_known(answer), answer)
    if answer.forecast is not None and own_grade in ("bad", "middling") and _becomes_better(answer):
        return "early"
    return own_grade


def contradicted(answer: AnswerData) -> bool:
    """Whether the interval around what the weights let expect does not hold what the file says of itself."""
    stated, interval = answer.stated_accuracy, answer.interval
    if answer.indexed or answer.copy_of is not None or stated is None or interval is None:
        return False
    return not interval[0] <= stated <= interval[1]


def _two_grades(answer: AnswerData) -> bool:
    """Whether the file's word makes another grade than its weights, which contradict it."""
    return contradicted(answer) and grade(answer.stated_accuracy, answer) != grade(answer.predicted, answer)


def best_known(answer: AnswerData) -> float:
    """What the file says that it reached, where its weights do not contradict that, else what they let expect."""
    if answer.stated_accuracy is None or answer.interval is None or contradicted(answer):
        return answer.predicted
    return answer.stated_accuracy


def _goes_by_file(answer: AnswerData) -> bool:
    """Whether the label is what the file's own words make it, where the prediction alone would make it another."""
    return answer.label in GRADES and not answer.indexed and answer.label != grade(answer.predicted, answer)


def _file_or_weights(answer: AnswerData) -> bool:
    """Whether the verdict is that either the file's word or its weights are wrong."""
    doubts = answer.agrees is False or depends_on_activation(answer)
    return contradicted(answer) and not doubts and answer.label not in ("early", "unlike")


def _verdict_tells_stated(answer: AnswerData) -> bool:
    return _goes_by_file(answer) or _file_or_weights(answer)


def _perhaps(answer: AnswerData) -> str:
    """The other grades that the interval reaches into, where no file says more."""
    if answer.interval is None or answer.stated_accuracy is not None:
        return ""
    reached = {grade(value, answer) for value in (*answer.interval, answer.predicted)}
    if {"good", "bad"} <= reached:
        reached.add("middling")
    others = [name for name in GRADES if name in reached and name != answer.label]
    return f", perhaps {' or '.join(others)}" if others else ""


def _becomes_better(answer: AnswerData) -> bool:
    """Whether runs like it ended better than the network can be expected to be now."""
    quality = target_of(answer).quality
    assert answer.forecast is not None
    now = answer.interval or (answer.predicted, answer.predicted)
    return bool(quality(answer.forecast.median) > max(map(quality, now)))


def depends_on_activation(answer: AnswerData) -> bool:
    """Whether the activation, which is not known, makes another verdict."""
    return len({grade(value, answer) for value in answer.by_activation.values()}) > 1


def verdict(answer: AnswerData) -> str:
    """What it probably is, of what, how sure that is, and what became of runs like it: one or two plain sentences."""
    word, predicted = answer.label, number(answer, answer.predicted)
    dataset = "" if answer.dataset == UNNAMED_DATASET else answer.dataset
    on = f" on {dataset}" if dataset else ""
    name = "" if answer.target == "test_accuracy" else f"{target_of(answer).label} "
    if word == "unlike":
        why = (
            f"Broken: {'; '.join(answer.faults)}"
            if answer.faults
            else f"Unlike anything the index knows: {_unlike(answer)}"
        )
        return f"{why}. Test it on data; {name}{predicted}{on} would be a guess."
    about = f"{name}about {predicted}{on}"
    if answer.interval is not None:
        low, high = answer.interval
        about += f" ({answer.coverage:.0%}: {number(answer, low)} to {number(answer, high)})".replace("%", " %")
    if answer.percentile is not None:
        among = answer.plan.rows if answer.compared is None else answer.compared
        whose = f"{dataset} checkpoints" if among < answer.plan.rows and dataset else "checkpoints"
        share = 100 if answer.percentile == 100 else min(99, round(answer.percentile))  # all is not nearly all
        about += f", better than {share} % of {among:,} {whose}"
    if answer.indexed or answer.copy_of is not None:
        if answer.stated_accuracy is None:
            return f"The index holds these weights, without {target_of(answer).label}; by the weights {about}."
        opening = f"Known {word}" if word != "unknown" else "Known"
        return f"{opening}: {name}{answer.stated_accuracy:.3f}{on} in the index; by its weights {about}."
    if word == "unknown":
        if depends_on_activation(answer):
            each = ", ".join(f"{number(answer, value)} as {key}" for key, value in answer.by_activation.items())
            return (
                f"It depends on its activation, which the file does not say: {name}about {each}{on}; give --activation."
            )
        if answer.agrees is False:
            nearest = f"its nearest average {number(answer, answer.neighbours_accuracy)}"
            return f"Unsure: {about} by its weights, but {nearest}; test it before you trust either."
        if _file_or_weights(answer):
            return f"Unsure: {_two_words(answer, about)}; test it before you trust either."
        return f"{about[0].upper()}{about[1:]}; the index knows nothing to judge that by."
    ended = "" if answer.forecast is None else forecast(answer)
    if answer.forecast is not None and word == "early":
        advice = "; let it train" if grade(answer.forecast.median, answer) == "good" else ""
        return f"Early: {ended}{advice}. So far {about}."
    if _file_or_weights(answer):
        return f"Unsure how {word}: {'; '.join(filter(None, (_two_words(answer, about), ended)))}."
    about = "; ".join(filter(None, (about, ended)))
    if _goes_by_file(answer):
        said = f"{word.capitalize()} if its file is right, which says {answer.stated_accuracy:.3f}"
        return f"{said}; by its weights {about}."
    return f"Probably {word}{_perhaps(answer)}: {about}."


def _two_words(answer: AnswerData, about: str) -> str:
    """The file's word of itself beside that of its weights, of which one is wrong."""
    return f"the file says {answer.stated_accuracy:.3f}, its weights {about}; one of the two is wrong"


def forecast(answer: AnswerData) -> str:
    """How runs like it ended."""
    ended = answer.forecast
    assert ended is not None
    median, low, high = (number(answer, value) for value in (ended.median, ended.low, ended.high))
    return f"{ended.runs} runs that looked like this at epoch {ended.epoch} ended at {median} ({low} to {high})"


def number(answer: AnswerData, value: float | None) -> str:
    """An accuracy with two decimals, another target's value with three digits."""
    return "?" if value is None else f"{value:.2f}" if target_of(answer).is_accuracy else f"{value:.3g}"


def about(answer: AnswerData) -> list[str]:
    """What was asked about: file, architecture, epoch, activation, run, and which index says all this."""
    parts = [_short_path(answer.path), answer.network or answer.architecture]
    if answer.run is not None:
        parts.append(f"run {answer.run}")
    if answer.epoch is not None:
        parts.append(f"epoch {answer.epoch}")
    if answer.activation is not None:
        source = {"file": " (from the file)", "option": " (as you say)"}.get(answer.activation_from or "", "")
        parts.append(f"{answer.activation}{source}")
    if answer.index and not answer.indexed:
        parts.append(f"index: {_short_path(answer.index)}")
    return parts


def remarks(answer: AnswerData) -> list[str]:
    """What else is to be known before the number is used, a line each."""
    said = []
    if answer.copy_of is not None:
        said.append(f"the index holds the same weights as {answer.copy_of}")
    elif answer.stated_accuracy is not None and not (answer.indexed or _verdict_tells_stated(answer)):
        doubt = ", outside that interval: one of the two is wrong" if contradicted(answer) else ""
        said.append(f"the file itself says {answer.stated_accuracy:.3f}{doubt}")
    if answer.by_activation and answer.label != "unlike" and not depends_on_activation(answer):
        each = ", ".join(f"{number(answer, value)} as {key}" for key, value in answer.by_activation.items())
        said.append(f"its activation is unknown: {each} (--activation NAME)")
    if answer.novelty is not None and not answer.novelty.outside and answer.novelty.shuffled_noticed in SELDOM:
        said.append("not noticed here: weights in random order, as an untrained network has")
    return said + list(answer.notes)


def lines(answer: AnswerData, width: int = WIDTH, most: int = LINES) -> list[str]:
    """The default answer, in at most `most` lines of at most `width` columns where notes leave room for a row."""
    said = textwrap.wrap(answer.verdict, width)
    said += _joined(about(answer), width)
    if answer.recipe:
        said.append(_cut_at_comma(f"  its recipe: {short_recipe(answer.recipe)}", width))
    for remark in remarks(answer):
        said += textwrap.wrap(remark, width, initial_indent="  ", subsequent_indent="  ")
    ending = [_cut(line, width) for line in _opposites(answer)]
    ending.append(_cut("More: --layers · --all lists · --json · weightsearch get ID writes its weights", width))
    room = max(1, most - len(said) - len(ending) - 2)
    return [_cut(printable(line), width) for line in (*said, "", *_most_like(answer, room, width), *ending)]


def _most_like(answer: AnswerData, room: int, width: int) -> list[str]:
    rows = answer.runs[: min(room, RUNS_SHOWN)]
    if not rows:
        return ["No checkpoint passes"]
    near: dict[str | None, int] = {}
    for row in answer.neighbours:
        near[row.run] = near.get(row.run, 0) + 1
    shown = {row.id for row in answer.neighbours}
    keys = varying([row.recipe for row in rows])
    cells = []
    for row in rows:
        more = near.get(row.run, 0) - (row.id in shown) if row.run is not None else 0
        parts = [short_recipe({key: row.recipe[key] for key in keys if key in row.recipe})]
        if row.source and "#" not in row.source:
            parts.insert(0, row.source)
        epoch = "" if row.epoch is None else f"{row.epoch}"
        cells.append(
            (
                row.run or "",
                row.id[:8],
                f"{row.distance:.4f}",
                "" if row.value is None else f"{row.value:.3f}",
                f"{epoch} +{more}" if more > 0 else epoch,
                " · ".join(filter(None, parts)),
            )
        )
    title = "Most like it, one per run"
    epochs = "epochs" if any("+" in row[4] for row in cells) else "epoch"
    header = ("", "", "away", target_of(answer).label, epochs, "")
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    widths[0] = max(len(title) - widths[1] - 2, min(widths[0], width - sum(widths[1:5]) - 12 - 12))

    def line(row: tuple[str, ...]) -> str:
        run = row[0] if len(row[0]) <= widths[0] else f"…{row[0][1 - widths[0] :]}"
        texts = (run.ljust(widths[0]), row[1].ljust(widths[1]), row[2].rjust(widths[2]), row[3].rjust(widths[3]))
        return _cut_at_comma("  ".join(("", *texts, row[4].ljust(widths[4]), row[5])), width).rstrip()

    heading = f"{title}{line((*header[:5], 'what varies'))[len(title) :]}"
    return [heading, *map(line, cells)]


def _opposites(answer: AnswerData) -> list[str]:
    sides = {"good": ("bad",), "bad": ("good",), "early": ("good",)}.get(answer.label, ("good", "bad"))
    said: list[str] = []
    for side in sides:
        rows = [row for row in getattr(answer, side) if row.id != answer.id]
        if not rows:
            continue
        row = rows[0]
        far = answer.metric == "cosine" and row.distance > FAR_COSINE
        scale = "" if said else " (0 the same, 2 opposite)" if answer.metric == "cosine" else " (0 the same)"
        what = "none is near" if far else ", ".join(filter(None, (place(row), row.id[:8])))
        said.append(f"Nearest {side} one: {row.distance:.2f} away{scale}: {what}.")
    return said


def tables(answer: AnswerData) -> list[Table]:
    """The nearest, nearest good and nearest bad rows, and the layers beside them."""
    target = target_of(answer)
    near = answer.neighbours
    shown = [_neighbours(f"Nearest {len(near)}" if near else "No checkpoint passes", near, target)]
    better, worse = ("≤", "≥") if target.lower_is_better else ("≥", "≤")
    sides = (("good", answer.good, better, answer.good_threshold), ("bad", answer.bad, worse, answer.bad_threshold))
    for name, rows, sign, threshold in sides:
        if threshold != threshold:  # NaN
            shown.append(Table(f"None is {name} or not: the index knows no {target.label}"))
            continue
        meaning = f"({target.label} {sign} {threshold:.3f})"
        within = [_reaches(row.value, threshold, target.lower_is_better == (name == "good")) for row in rows]
        if not all(within):  # an index of several datasets grades each row among its own
            meaning = "(for their dataset)"
        title = f"Nearest {len(rows)} {name} {meaning}" if rows else f"No {name} one {meaning} passes"
        shown.append(Table(f"{title}: the same") if rows and rows == near else _neighbours(title, rows, target))
    return shown


def _reaches(value: float | None, threshold: float, lower: bool) -> bool:
    return value is not None and (value <= threshold if lower else value >= threshold)


def _neighbours(title: str, rows: tuple[Neighbour, ...], target: Target) -> Table:
    columns: tuple[str, ...] = ("distance", target.label, "epoch", "run", "id", "recipe", "file")
    texts: tuple[tuple[str, ...], ...] = tuple(
        (
            f"{row.distance:.4f}",
            "" if row.value is None else f"{row.value:.3f}",
            "" if row.epoch is None else str(row.epoch),
            _short_path(row.run or ""),
            row.id[:8],
            recipe_text(row.recipe),
            "" if row.source is None or "#" in row.source else row.source,  # a place in a zoo is its run and epoch
        )
        for row in rows
    )
    if not any(row[-1] for row in texts):
        columns, texts = columns[:-1], tuple(row[:-1] for row in texts)
    return Table(title, columns, texts, right=(0, 1, 2), whole=(0, 1, 2, 3, 4)) if rows else Table(title)


def layers_table(answer: AnswerData) -> Table:
    """How unlike its layers are those of the nearest good and bad one, and in what."""
    if not answer.layers:
        return Table("Layers: the index keeps nothing to compare them with")
    sides = []
    for name, rows in (("good", answer.good), ("bad", answer.bad)):
        others = [row for row in rows if row.id != answer.id]
        if others:
            sides.append(f"the nearest {name} one ({place(others[0])})")
    shown = answer.layers
    if len(shown) > LAYERS_SHOWN:
        unlike = sorted(shown, key=lambda layer: -max(layer.good or 0, layer.bad or 0))[:LAYERS_SHOWN]
        shown = tuple(layer for layer in answer.layers if layer in unlike)

    def unlikeness(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    texts = tuple(
        (layer.layer, unlikeness(layer.good), layer.good_words, unlikeness(layer.bad), layer.bad_words)
        for layer in shown
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


def _unlike(answer: AnswerData) -> str:
    novelty = answer.novelty
    assert novelty is not None
    if answer.fingerprint == ANY.fingerprint:
        return "its layers are less like known networks' than those of 95 in 100 held-out ones"
    layers = novelty.layers_distance is not None and novelty.layers_limit is not None
    if layers and novelty.layers_distance > novelty.layers_limit:  # type: ignore[operator]
        return "its layers are further from known networks' than those of 99 in 100 held-out ones"
    return "its embedding is further from known networks' than those of 99 in 100 held-out ones"


def place(row: Neighbour) -> str:
    """A neighbour's run and epoch."""
    return ", ".join(
        part for part in (_short_path(row.run or row.id[:8]), "" if row.epoch is None else f"epoch {row.epoch}") if part
    )


def target_of(answer: AnswerData) -> Target:
    return Target(answer.target, answer.lower_is_better)


def _short_path(path: str, most: int = 44) -> str:
    if len(path) <= most:
        return path
    parts = Path(path).parts
    for start in range(1, len(parts)):
        if len(short := "/".join(("…", *parts[start:]))) <= most:
            return short
    return f"…{path[1 - most :]}"


def _joined(parts: list[str], width: int) -> list[str]:
    """Parts with dots between them, broken between parts."""
    said, line = [], ""
    for part in parts:
        longer = f"{line} · {part}" if line else f"  {part}"
        if line and len(longer) > width:
            said.append(line)
            longer = f"  {part}"
        line = longer
    return [*said, _cut(line, width)]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _cut_at_comma(line: str, width: int) -> str:
    """Cut between two settings, where there is one to cut at."""
    if len(line) <= width:
        return line
    whole = line[: width - 1].rpartition(", ")[0]
    return f"{whole}, …" if len(whole) > width // 2 else _cut(line, width)


def as_text(answer: AnswerData, width: int = WIDTH) -> str:
    """The default answer."""
    return "\n".join(lines(answer, width))


def as_html(answer: AnswerData) -> str:
    """The sentence, what else is known, and tables, for notebooks and pages."""
    shown = [" · ".join(about(answer)), *remarks(answer)]
    if answer.recipe:
        shown.insert(1, f"its recipe: {recipe_text(answer.recipe)}")
    listed = [*tables(answer), *([layers_table(answer)] if answer.layers else [])]
    return render_html("answer.html", verdict=answer.verdict, label=answer.label, remarks=shown, tables=listed)


def age(seconds: float) -> str:
    """In the largest unit of which there is one.

    Example:
        >>> age(7300)
        '2 hours'
    """
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "less than a minute"
