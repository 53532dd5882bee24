"""What keeps the encoder of all architectures from predicting better: what weights alone do not tell.

    python benchmarks/universal_limits.py runs/zoos/wild --out benchmarks/results/universal_limits.json

A network is run on drawn images by a guess at its activation, its strides and the scale of its inputs, none of which
is in a state dict. Here each network of the wild zoo is built as it was trained, and run on the same drawn images, on
those in the scale of its data, and on test images without their labels. Boosted trees on the features and these answers
predict the accuracy, in five folds by run. Nothing here is part of the product, and nothing was chosen by it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from few_labels import scores
from torch import Tensor, nn
from universal import QUICK, Bench

from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.datasets.load import ImageDataset, Scaling, centre_and_spread, load_dataset
from weightsearch.encoders.universal.responses import CLOUDS, RESPONSE, STROKES, drawn_images, summary
from weightsearch.training.universal import fit_trees
from weightsearch.zoo.wild.group import SIZES, dataset_key
from weightsearch.zoo.wild.networks import build
from weightsearch.zoo.wild.recipes import DATASETS, WildRecipe
from weightsearch.zoo.wild.train import reduced

FOLDS = 5
DRAWN, SCALED, TEST = "drawn images", "drawn images in the data's scale", "test images without labels"


def rebuilt(recipe: WildRecipe, weights: dict[str, np.ndarray], side: int) -> nn.Module:
    """The network with its own activation and strides; tensors go by their order, since like shapes share names."""
    network = build(recipe, side)
    names = [name for name in network.state_dict() if "num_batches_tracked" not in name]
    tensors = (torch.from_numpy(np.ascontiguousarray(value)) for value in weights.values())
    network.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return network.eval()


def answers(network: nn.Module, images: Tensor) -> np.ndarray:
    hidden: list[Tensor] = []
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    hook = head.register_forward_hook(lambda _module, inputs, _output: hidden.append(inputs[0].flatten(1)))
    with torch.no_grad():
        logits = network(images)
    hook.remove()
    return summary(hidden[0], logits).numpy()


def images_of(data: ImageDataset, recipe: WildRecipe) -> dict[str, Tensor]:
    """Three sets of CLOUDS + 2 STROKES images; the last STROKES of each are those before, moved."""
    centre, spread = centre_and_spread(Scaling(recipe.scaling), data.x_train)
    drawn = drawn_images(1, data.x_train.shape[-1])
    like_data = drawn * float(data.x_train.std()) + float(data.x_train.mean())
    test = np.flatnonzero(data.y_test < recipe.classes)[: CLOUDS + STROKES]
    real = (torch.from_numpy(data.x_test[test]).float() - centre) / spread
    real = torch.cat([real, torch.roll(real[CLOUDS:], 1, -1)])
    return {DRAWN: drawn, SCALED: ((like_data - centre) / spread).float(), TEST: real.float()}


def all_answers(bench: Bench, data_dir: Path | None) -> dict[str, np.ndarray]:
    datasets = {
        dataset_key(name, resolution): reduced(load_dataset(name, data_dir), size)
        for name in DATASETS
        for resolution, size in SIZES.items()
    }
    found = {name: np.zeros((len(bench.usable), len(RESPONSE)), np.float32) for name in (DRAWN, SCALED, TEST)}
    for i, position in enumerate(bench.usable):
        recipe = WildRecipe.from_dict(bench.table.recipes[int(bench.run[i])])
        data = datasets[dataset_key(recipe.dataset, recipe.resolution)]
        architecture = bench.zoo.architectures[str(bench.zoo.fingerprints[position])]
        weights = to_state_dict(bench.zoo.weights(np.array([position]))[0], architecture)
        network = rebuilt(recipe, weights, data.x_train.shape[-1])
        for name, images in images_of(data, recipe).items():
            found[name][i] = answers(network, images)
    return found


def folds(bench: Bench, features: np.ndarray) -> dict[str, float]:
    runs = np.unique(bench.run)
    fold_of = dict(zip(runs, np.random.default_rng(0).integers(FOLDS, size=len(runs)), strict=True))
    fold = np.array([fold_of[run] for run in bench.run])
    predicted = np.empty(len(bench.values))
    for held in range(FOLDS):
        trees = fit_trees(features[fold != held], bench.values[fold != held], QUICK, seed=0)
        predicted[fold == held] = trees.predict(features[fold == held].astype(np.float32))
    return scores(predicted, bench.values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.zoo)
    pooled = bench.described.pooled()
    own = pooled[:, : -len(RESPONSE)]
    found = all_answers(bench, given.data_dir)
    results = {
        "runs": len(np.unique(bench.run)),
        "checkpoints": len(bench.run),
        "features of layers alone": folds(bench, own),
        "and answers to drawn images, structure guessed": folds(bench, pooled),
    }
    for name, rows in found.items():
        results[f"and the true network's answers to {name}"] = folds(bench, np.concatenate([own, rows], 1))
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
