"""What an answer says, from answers made by hand: the sentence, the few lines, and the keys of its JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from weightsearch.search import wording
from weightsearch.search.answer import Answer, Forecast, Novelty
from weightsearch.types import Neighbour, Plan

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "answer.schema.json").read_text())


def row(number: int, run: str, distance: float, accuracy: float, **recipe: Any) -> Neighbour:
    return Neighbour(f"{number:016x}", distance, accuracy, 10 * number, run, recipe, accuracy, "usps")


NEAR = tuple(
    row(i, f"usps-v1/{i}", i / 1000, 0.9 + i / 100, optimizer="adam", learning_rate=10.0**-i, seed=i)
    for i in range(1, 6)
)
ANSWER = Answer(
    path="sweeps/monday/very-good.pt", id="00", architecture="conv2d 16x1x3x3", fingerprint="f",
    predicted=0.938, percentile=99.2, stated_accuracy=None, neighbours_accuracy=0.93, neighbours=NEAR,
    good=NEAR, bad=(row(9, "usps-v1/9", 1.86, 0.1),), good_threshold=0.8, bad_threshold=0.3,
    plan=Plan("exact", 2664, 2664, 0.001), interval=(0.871, 0.999), agrees=True, index="index", dataset="usps",
    network="3 conv + dense, 4,970 weights", runs=NEAR,
)  # fmt: skip


def judged(**changes: Any) -> Answer:
    answer = replace(ANSWER, **changes)
    answer = replace(answer, label=wording.label(answer))
    return replace(answer, verdict=wording.verdict(answer))


FORECAST = Forecast(epoch=1, runs=10, median=0.88, low=0.69, high=0.93, good=7, bad=0)
OUTSIDE = Novelty(0.5, 0.1, None, None, True)


@pytest.mark.parametrize(
    ("changes", "label", "beginning"),
    [
        ({}, "good", "Probably good: about 0.94 on usps (90 %: 0.87 to 1.00), better than 99 % of 2,664 checkpoints."),
        ({"predicted": 0.5, "interval": (0.4, 0.6)}, "middling", "Probably middling: about 0.50 on usps"),
        ({"dataset": "unknown"}, "good", "Probably good: about 0.94 (90 %"),  # of an import that was told none
        ({"predicted": 0.75, "interval": (0.6, 0.9)}, "middling", "Probably middling, perhaps good: about 0.75 on"),
        ({"predicted": 0.5, "interval": (0.1, 0.9)}, "middling", "Probably middling, perhaps good or bad: about 0.50"),
        (
            {"predicted": 0.75, "interval": (0.6, 0.9), "stated_accuracy": 0.85},
            "good",
            "Good if its file is right, which says 0.850; by its weights about 0.75 on usps (90 %: 0.60 to 0.90)",
        ),
        (
            {"predicted": 0.75, "interval": (0.6, 0.9), "stated_accuracy": 0.95, "percentile": None},
            "unknown",
            "Unsure: the file says 0.950, its weights about 0.75 on usps (90 %: 0.60 to 0.90); one of the two is wrong",
        ),
        (
            {"stated_accuracy": 0.85, "percentile": None},
            "good",
            "Unsure how good: the file says 0.850, its weights about 0.94 on usps (90 %: 0.87 to 1.00); one of the two",
        ),
        (
            {"predicted": 0.1, "interval": (0.05, 0.2), "stated_accuracy": 0.25, "forecast": FORECAST},
            "early",
            "Early: 10 runs that looked like this at epoch 1 ended at 0.88",
        ),
        ({"stated_accuracy": 0.2, "agrees": False}, "unknown", "Unsure: about 0.94 on usps"),
        ({"stated_accuracy": 0.2, "copy_of": "0a"}, "bad", "Known bad: 0.200 on usps in the index"),
        ({"predicted": 0.1, "interval": (0.0, 0.2)}, "bad", "Probably bad: about 0.10 on usps"),
        (
            {"predicted": 0.1, "interval": (0.05, 0.2), "forecast": FORECAST},
            "early",
            "Early: 10 runs that looked like this at epoch 1 ended at 0.88 (0.69 to 0.93); let it train. So far",
        ),
        (
            {"predicted": 0.1, "interval": (0.05, 0.2), "forecast": replace(FORECAST, median=0.15)},
            "bad",
            "Probably bad: about 0.10 on usps",
        ),
        ({"agrees": False}, "unknown", "Unsure: about 0.94 on usps"),
        ({"good_threshold": float("nan")}, "unknown", "About 0.94 on usps"),
        ({"novelty": OUTSIDE, "interval": None, "percentile": None}, "unlike", "Unlike anything the index knows: its"),
        ({"faults": ("layer conv2 is all zero",)}, "unlike", "Broken: layer conv2 is all zero. Test it on data"),
        (
            {"by_activation": {"relu": 0.938, "tanh": 0.1}},
            "unknown",
            "It depends on its activation, which the file does not say: about 0.94 as relu, 0.10 as tanh on usps; give",
        ),
        ({"indexed": True, "stated_accuracy": 0.2}, "bad", "Known bad: 0.200 on usps in the index; by its weights"),
    ],
)
def test_the_sentence_is_of_something_and_the_label_its_word(changes: dict[str, Any], label: str, beginning: str):
    answer = judged(**changes)
    assert answer.label == label
    assert answer.verdict.startswith(beginning)
    assert " ".join(str(answer).split()).startswith(answer.verdict)


def test_a_loss_is_judged_the_other_way_round():
    answer = judged(
        target="test_loss", lower_is_better=True, predicted=0.123, interval=None, good_threshold=0.2,
        bad_threshold=1.5,
    )  # fmt: skip
    assert answer.verdict.startswith("Probably good: test loss about 0.123 on usps")


@pytest.mark.parametrize("width", [80, 120])
def test_the_default_answer_has_fifteen_lines_that_fit(width: int):
    answer = judged(
        recipe={"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-4}, stated_accuracy=0.943, epoch=86,
        run="usps-v1/41", activation="relu", activation_from="file", novelty=Novelty(0.1, 0.5, 1.0, 2.0, False, 0.0),
        path="a/very/long/path/that/goes/on/for/a/while/and/longer/still/model.pt",
    )  # fmt: skip
    lines = wording.lines(answer, width)
    assert len(lines) <= 15
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("model.pt", "epoch 86", "relu (from the file)", "index: index", "the file itself says 0.943"):
        assert part in text
    assert "none is near" in text
    assert "0 the same, 2 opposite" in text
    assert "not noticed here" in text


def test_rows_are_one_a_run_with_the_recipe_keys_that_vary():
    twice = (*NEAR, row(8, "usps-v1/1", 0.02, 0.9))
    text = str(judged(neighbours=twice))
    assert "10 +1  adam" not in text  # all are adam
    assert "10 +1   lr 1e-1" in text
    assert "seed" not in text
    named = replace(NEAR[0], source="sweep/a.pt")
    assert "sweep/a.pt" in str(judged(runs=(named, *NEAR[1:])))


def test_a_short_recipe_says_what_is_whose():
    recipe = {"family": "mlp", "optimizer": "adam", "learning_rate": 0.0042, "initializer": "normal", "dropout": 0.25}
    assert wording.short_recipe(recipe) == "adam 4e-3, mlp, drop 0.25, normal"
    assert wording.short_recipe({"family": "mlp", "learning_rate": 1e-3, "head": "pool"}) == "lr 1e-3, mlp, head pool"


@pytest.mark.parametrize("changes", [{}, {"agrees": False}, {"interval": (0.05, 0.15), "forecast": FORECAST}])
def test_a_file_that_its_weights_contradict_is_told_once(changes: dict[str, Any]):
    for stated in (0.2, 0.3, 0.95):
        answer = judged(stated_accuracy=stated, **({"predicted": 0.1} if "forecast" in changes else {}), **changes)
        within = answer.interval is not None and answer.interval[0] <= stated <= answer.interval[1]
        text = " ".join(str(answer).split())
        assert text.count(f"the file says {stated:.3f}") + text.count(f"the file itself says {stated:.3f}") == 1
        assert text.count("one of the two is wrong") == (0 if within else 1)


@pytest.mark.parametrize("changes", [{}, {"forecast": FORECAST}, {"novelty": OUTSIDE, "bad_threshold": float("nan")}])
def test_json_is_as_the_schema_says(changes: dict[str, Any]):
    given = judged(**changes).to_dict()
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert not list(validator.iter_errors(json.loads(json.dumps(given, allow_nan=False))))
    assert set(SCHEMA["$defs"]["answer"]["properties"]) - {"relations"} == set(given)
    assert list(validator.iter_errors({**given, "label": "superb"}))
    assert not list(validator.iter_errors({"schema": 2, "path": "a.pt", "error": "no checkpoint"}))
    assert list(validator.iter_errors({"path": "a.pt"}))


def test_a_long_run_takes_no_more_room_than_a_path():
    answer = replace(ANSWER, neighbours=(row(1, f"sweeps/{'x' * 5000}", 0.1, 0.9),), good=(), bad=())
    text = "\n".join(table.to_text() for table in wording.tables(answer))
    assert max(map(len, text.splitlines())) < 120
    assert "…xxx" in text
