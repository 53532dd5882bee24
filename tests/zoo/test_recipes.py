"""Recipes and presets: what is drawn, and what a user's own space may say."""

import math

import numpy as np
import pytest

from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import Scaling
from weightsearch.zoo.recipes import V1, V2, Initializer, Optimizer, Recipe, load_preset, sample


@pytest.fixture(scope="module", params=[V1, V2], ids=["v1", "v2"])
def drawn(request):
    return request.param.space, [sample(request.param.space, 7, run) for run in range(2000)]


def test_ranges_are_log_uniform_and_dropout_uniform(drawn):
    from scipy import stats  # half as long to import as torch

    space, recipes = drawn
    for name, values in (
        ("learning_rate", [recipe.learning_rate for recipe in recipes]),
        ("weight_decay", [recipe.weight_decay for recipe in recipes]),
        ("init_std", [recipe.init_std for recipe in recipes if recipe.init_std is not None]),
    ):
        if values:
            low, high = map(math.log, getattr(space, name))
            assert stats.kstest(np.log(values), "uniform", (low, high - low)).pvalue > 1e-3, name
    dropout = [recipe.dropout for recipe in recipes]
    assert stats.kstest(dropout, "uniform", (0, 0.7)).pvalue > 1e-3


def test_choices_are_equally_likely_and_independent(drawn):
    from scipy import stats

    space, recipes = drawn
    for name in ("optimizer", "initializer", "activation", "train_fraction"):
        choices = getattr(space, name)
        counts = [sum(getattr(recipe, name) == choice for recipe in recipes) for choice in choices]
        assert sum(counts) == len(recipes)
        assert stats.chisquare(counts).pvalue > 1e-3, name
    pairs = [
        [sum(r.optimizer is o and r.activation is a for r in recipes) for a in space.activation]
        for o in space.optimizer
    ]
    assert stats.chi2_contingency(pairs).pvalue > 1e-3
    assert len({recipe.seed for recipe in recipes}) == len(recipes)


def test_init_std_only_where_the_initializer_uses_one(drawn):
    _, recipes = drawn
    for recipe in recipes:
        uses = recipe.initializer in (Initializer.NORMAL, Initializer.TRUNCATED_NORMAL)
        assert (recipe.init_std is not None) == uses


def test_a_recipe_depends_on_seed_and_run_alone():
    assert sample(V1.space, 3, 41) == sample(V1.space, 3, 41)
    assert sample(V1.space, 3, 41) != sample(V1.space, 4, 41)
    assert sample(V1.space, 3, 41) != sample(V1.space, 41, 3)
    # Pinned, so that a zoo of an older version can be extended.
    recipe = sample(V1.space, 0, 0)
    assert (recipe.optimizer, recipe.initializer) == (Optimizer.RMSPROP, Initializer.ORTHOGONAL)
    assert recipe.learning_rate == pytest.approx(0.009394926330749748)
    assert recipe.seed == 4896538617985935


def test_another_choice_leaves_the_other_values_alone(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text('optimizer = ["adam"]')
    mine, preset = sample(load_preset("v1", recipes=path).space, 0, 5), sample(V1.space, 0, 5)
    assert mine.optimizer is Optimizer.ADAM
    assert {**preset.to_dict(), "optimizer": "adam"} == mine.to_dict()


def test_recipe_round_trip():
    for run in range(20):
        recipe = sample(V1.space, 0, run)
        again = Recipe.from_dict(recipe.to_dict())
        assert again == recipe
        assert type(again.optimizer) is Optimizer
        assert type(recipe.to_dict()["optimizer"]) is str


def test_schedules():
    assert V1.schedule == (0, 1, 2, 3, 20, 40, 60, 80, 86)
    assert load_preset("v1", epochs=20).schedule == (0, 1, 2, 3, 20)
    assert load_preset("v1", epochs=25).schedule == (0, 1, 2, 3, 20, 25)
    assert load_preset("v1", epochs=1).schedule == (0, 1)
    assert V2.schedule == tuple(range(1, 21))
    assert load_preset("v2", epochs=3).schedule == (1, 2, 3)


def test_flags_override_the_file_which_overrides_the_preset(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        'filters = 8\nepochs = 5\nmomentum = 0.5\ncheckpoint_epochs = "every"\nruns_per_part = 3\n'
        'scaling = "standard"\n'
        'learning_rate = [1e-3, 1e-2]\ndropout = 0\ninitializer = ["he-uniform", "normal"]\ntrain_fraction = [1]\n'
    )
    preset = load_preset("v1", recipes=path, filters=12, layers=2, batch_size=64)
    assert (preset.filters, preset.layers, preset.epochs, preset.batch_size) == (12, 2, 5, 64)
    assert (preset.momentum, preset.runs_per_part, preset.schedule) == (0.5, 3, (1, 2, 3, 4, 5))
    assert (preset.scaling, V1.scaling) == (Scaling.STANDARD, Scaling.SYMMETRIC)
    space = preset.space
    assert space.learning_rate == (1e-3, 1e-2)
    assert space.dropout == (0.0, 0.0)
    assert space.initializer == (Initializer.HE_UNIFORM, Initializer.NORMAL)
    assert space.train_fraction == (1.0,)
    assert space.weight_decay == V1.space.weight_decay
    assert sample(space, 0, 0).dropout == 0.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("lr = [1e-3, 1e-2]", "unknown key 'lr'; known are filters,"),
        ("learning_rate = [1e-2, 1e-3]", "learning_rate must be a range"),
        ("learning_rate = [0, 1e-3]", "learning_rate must be a range"),
        ("learning_rate = [nan, 1e-3]", "learning_rate must be a range"),
        ("learning_rate = [1e-3]", "learning_rate must be a range"),
        ("dropout = [0, 1]", "dropout must be a range"),
        ('optimizer = ["lion"]', "optimizer must be choices of sgd, adam, rmsprop"),
        ("optimizer = []", "optimizer must be a list of choices"),
        ('optimizer = "adam"', "optimizer must be a list of choices"),
        ("train_fraction = [0.5, 2]", "train_fraction must be within"),
        ("train_fraction = [true]", "train_fraction must be within"),
        ("epochs = 0", "epochs must be a whole number"),
        ("epochs = 1.5", "epochs must be a whole number"),
        ("filters = true", "filters must be a whole number"),
        ("momentum = 1", "momentum must be within"),
        ("checkpoint_epochs = [-1]", 'checkpoint_epochs must be "every" or a list'),
        ('checkpoint_epochs = "some"', 'checkpoint_epochs must be "every" or a list'),
        ("learning_rate = [1e-3", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_file_is_one_line(tmp_path, content, says):
    path = tmp_path / "space.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsearchError) as caught:
        load_preset("v1", recipes=path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_arguments(tmp_path):
    with pytest.raises(UsageError, match="unknown preset 'v3': choose one of v1, v2"):
        load_preset("v3")
    with pytest.raises(UsageError, match="--batch-size must be at least 1, got 0"):
        load_preset("v1", batch_size=0)
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(WeightsearchError, match="cannot read the recipe file"):
            load_preset("v1", recipes=path)
