"""The preset wild: recipes that depend on seed and run alone, runs that repeat, a zoo that resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsearch.datasets.load import ImageDataset
from weightsearch.errors import UsageError
from weightsearch.zoo.build_zoo import build_zoo
from weightsearch.zoo.store import Zoo, open_writer
from weightsearch.zoo.wild.build import _info
from weightsearch.zoo.wild.group import dataset_key, train_group
from weightsearch.zoo.wild.recipes import (
    CHECKPOINTS,
    DATASETS,
    LEARNING_RATES,
    MOST_LABEL_NOISE,
    Family,
    WildRecipe,
    recipes,
)
from weightsearch.zoo.wild.train import reduced, train
from weightsearch.zoo.workers.messages import Group, TrainingJob


def small(name: str = "digits", size: int = 8) -> ImageDataset:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    images = rng.normal(0, 0.1, (200, 1, size, size)).astype(np.float32) + (labels / 5 - 1)[:, None, None, None]
    return ImageDataset(name, images.astype(np.float32), labels, images.astype(np.float32), labels, 10)


def test_recipes_are_drawn_by_seed_and_run_alone():
    drawn = recipes(0, 400)
    assert drawn[:150] == recipes(0, 150)
    assert drawn[:20] != recipes(1, 20)
    assert {recipe.family for recipe in drawn} == set(Family)
    assert {recipe.dataset for recipe in drawn} == set(DATASETS)
    for recipe in drawn:
        low, high = LEARNING_RATES[recipe.optimizer]
        assert low <= recipe.learning_rate <= high
        assert recipe.label_noise <= MOST_LABEL_NOISE
        assert recipe.train_fraction in (0.1, 0.3, 1.0)
        assert WildRecipe.from_dict(recipe.to_dict()) == recipe


def test_images_are_averaged_over_squares():
    data = small(size=28)
    small_images = reduced(data, 8).x_train
    assert small_images.shape == (200, 1, 7, 7)
    np.testing.assert_allclose(small_images[3, 0, 1, 2], data.x_train[3, 0, 4:8, 8:12].mean(), rtol=1e-5)


@pytest.mark.slow
def test_a_group_of_runs_repeats_and_is_stored_by_architecture(tmp_path):
    datasets = {dataset_key(name, r): small(name, s) for name in DATASETS for r, s in (("coarse", 8), ("fine", 16))}
    drawn = recipes(0, 300)
    runs = [run for run, recipe in enumerate(drawn) if recipe.family in (Family.MLP, Family.CNN)][:3]

    def trained(name: str) -> tuple[Group, bytes]:
        job = TrainingJob(runs[0], runs, [drawn[run].to_dict() for run in runs], str(tmp_path / name))
        torch.manual_seed(len(name))
        before = torch.random.get_rng_state()
        group = train_group(job, datasets, dtype="float32", on_run=lambda: None)
        assert torch.equal(torch.random.get_rng_state(), before)
        return group, (tmp_path / name).read_bytes()

    (group, content), (again, same) = trained("a"), trained("other")
    assert content == same
    assert [row.id for row in group.checkpoints] == [row.id for row in again.checkpoints]
    group = Group.from_dict(group.to_dict())
    with open_writer(tmp_path / "zoo", _info(0, "float32")) as writer:
        writer.publish(runs[0], tmp_path / "a", group.runs, group.checkpoints, group.architectures)
    zoo = Zoo.open(tmp_path / "zoo")
    table = zoo.table()
    assert zoo.is_mixed
    assert len(table) == len(group.checkpoints) <= len(runs) * CHECKPOINTS
    recipe = drawn[runs[0]]
    states = [saved.state for saved in train(recipe, datasets[dataset_key(recipe.dataset, recipe.resolution)])]
    own = np.flatnonzero(table.run == runs[0])
    weights = zoo.weights(own)
    first = next(iter(states[-1]))
    count = states[-1][first].size
    columns = next(zoo.groups(own))[0].layers[0].columns
    rows = weights[-1][: states[-1][first].shape[0] * columns].reshape(-1, columns)
    np.testing.assert_array_equal(rows[:, : columns - 1].ravel(), states[-1][first].ravel()[:count])


def test_options_of_other_presets_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--epochs does not go with --preset wild"):
        build_zoo(out=tmp_path / "zoo", preset="wild", epochs=3)
