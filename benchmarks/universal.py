"""What the encoder of all architectures is worth: by run, without labels, with few, and what it refuses.

    python benchmarks/universal.py runs/zoos/wild --sweep NAME=FOLDER ... --out benchmarks/results/universal.json

The zoo is made by `weightsearch build-zoo --preset wild --runs 2000`. A sweep is a zoo imported from elsewhere,
with accuracies. Every split is by run; nothing is tuned on the test runs. Leaving out a dataset or a family fits one
member of the ensemble instead of three.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from few_labels import few_labels, scores

from weightsearch.encoders.universal.described import Described
from weightsearch.encoders.universal.encoder import UniversalEncoder
from weightsearch.training.baselines import recipe_features
from weightsearch.training.data import finite_weights
from weightsearch.training.train_universal import DAMAGED_FITTED
from weightsearch.training.universal import (
    TreeSettings,
    describe_damaged,
    describe_zoo_networks,
    fit_damage,
    fit_trees,
    fit_universal,
)
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import CheckpointTable, Zoo

SEEDS = (0, 1, 2)
QUICK = TreeSettings(count=300, learning_rate=0.08)
CURVE = (100, 200, 400, 800, 1600)
PLAIN = ("mlp", "cnn")
LEARNED = 1 / 3  # of the way from a guess to perfection


def nearest(
    rows: np.ndarray, queries: np.ndarray, runs: np.ndarray, values: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Of the ten nearest, one a run: the mean's scores, and how many of a good query's are good, a bad one's bad."""
    low, high = np.quantile(values, [0.25, 0.75])
    means, good, bad = [], [], []
    for query, own in zip(queries, truth, strict=True):
        order = np.argsort(-(rows @ query))
        _, first = np.unique(runs[order], return_index=True)
        ten = values[order[np.sort(first)[:10]]]
        means.append(ten.mean())
        if own >= high:
            good.append(np.mean(ten >= high))
        elif own <= low:
            bad.append(np.mean(ten <= low))
    mean = scores(np.array(means), truth)
    return {**mean, "precision_good": round(float(np.mean(good)), 3), "precision_bad": round(float(np.mean(bad)), 3)}


class Bench:
    def __init__(self, path: Path) -> None:
        self.zoo = Zoo.open(path)
        self.table: CheckpointTable = self.zoo.table()
        everything = np.arange(len(self.table))
        self.usable = everything[finite_weights(self.zoo, everything) & np.isfinite(self.table.test_accuracy)]
        start = time.process_time()
        self.described: Described = describe_zoo_networks(self.zoo, self.usable)
        self.seconds_each = (time.process_time() - start) / len(self.usable)
        self.values = self.table.test_accuracy[self.usable]
        self.run = self.table.run[self.usable]
        recipes = [self.table.recipes[int(run)] for run in self.run]
        self.family = np.array([recipe["family"] for recipe in recipes])
        self.dataset = np.array([recipe["dataset"] for recipe in recipes])
        self.recipe = np.nan_to_num(recipe_features(self.table)[self.usable], nan=-1)

    def fit(self, inside: np.ndarray, outside: np.ndarray, *, seed: int, quick: bool = False) -> UniversalEncoder:
        return fit_universal(
            self.described.take(np.flatnonzero(inside)), self.values[inside], self.run[inside],
            self.described.take(np.flatnonzero(outside)), self.run[outside],
            members=1 if quick else 3, seed=seed, trees=QUICK if quick else None,
        )  # fmt: skip

    def parts(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        split = make_split(self.table, seed=seed, usable=self.usable)
        held = np.isin(self.usable, split.test)
        return ~held, held

    def groups(self, predicted: np.ndarray, held: np.ndarray) -> dict[str, dict[str, float]]:
        families, truth = self.family[held], self.values[held]
        chosen = {
            "all": np.ones(len(truth), bool),
            "plain (MLP, CNN)": np.isin(families, PLAIN),
            "residual nets and transformers": np.isin(families, ("resnet", "vit")),
            **{family: families == family for family in sorted(set(families))},
        }
        return {name: scores(predicted[mask], truth[mask]) for name, mask in chosen.items() if mask.sum() > 5}

    def by_run(self, seed: int) -> dict[str, object]:
        inside, held = self.parts(seed)
        encoder = self.fit(inside, held, seed=seed)
        known, rows = (
            encoder.know(self.described.take(np.flatnonzero(held))),
            encoder.know(self.described.take(np.flatnonzero(inside))),
        )
        trees = fit_trees(self.recipe[inside], self.values[inside], QUICK, seed=seed)
        result: dict[str, object] = {
            "predicted": self.groups(known.predicted, held),
            "recipe trees": self.groups(trees.predict(self.recipe[held].astype(np.float32)), held),
            "ten nearest": nearest(
                rows.embedding, known.embedding, self.run[inside], self.values[inside], self.values[held]
            ),
        }
        result["damage"] = self.damage(encoder, inside, held, seed)
        return result

    def damage(self, encoder: UniversalEncoder, inside: np.ndarray, held: np.ndarray, seed: int) -> dict[str, object]:
        """Limits from half of the held-out runs; false alarms and the share that is found on the other half.

        Of all networks, and of those that have learned something that damage could take away.
        """
        rng = np.random.default_rng(seed)
        fitted = rng.permutation(np.flatnonzero(inside))[:DAMAGED_FITTED]
        broken = describe_damaged(self.zoo, self.usable[fitted], seed=seed)
        halves = rng.permutation(np.unique(self.run[held]))
        first = np.isin(self.run, halves[: len(halves) // 2]) & held
        second = np.flatnonzero(held & ~first)
        encoder = fit_damage(
            encoder, self.described.take(fitted), broken, self.described.take(np.flatnonzero(first)), seed=seed
        )
        sound = encoder.know(self.described.take(second))
        hurt = describe_damaged(self.zoo, self.usable[second], seed=seed + 1)
        flagged = encoder.know(hurt.described).damage > 1
        chance = self.described.chance[second]
        learned = (self.values[second] - chance) / (1 - chance) >= LEARNED
        result: dict[str, object] = {"false alarms": round(float(np.mean(sound.damage > 1)), 3)}
        for name, of in (("all", np.ones(len(second), bool)), ("learned", learned)):
            result[name] = {
                str(kind): round(float(flagged[of & (hurt.kinds == kind)].mean()), 3)
                for kind in sorted(set(hurt.kinds))
            }
        return result

    def left_out(self, out: np.ndarray) -> dict[str, object]:
        """Fitted without the networks of the mask `out`; limits of the unknown from runs of the others."""
        inside, held = self.parts(0)
        encoder = self.fit(inside & ~out, held & ~out, seed=0, quick=True)
        known = encoder.know(self.described.take(np.flatnonzero(out)))
        others = encoder.know(self.described.take(np.flatnonzero(held & ~out)))
        return {
            **scores(known.predicted, self.values[out]),
            "flagged": round(float(np.mean(known.strangeness > 1)), 3),
            "flagged of known ones": round(float(np.mean(others.strangeness > 1)), 3),
        }

    def transfers(self) -> dict[str, dict[str, float]]:
        """Fitted on the runs of one kind alone, asked about all runs of another, or held-out ones of the same."""
        recipes = [self.table.recipes[int(run)] for run in self.run]
        depth = np.array([recipe["depth"] for recipe in recipes])
        normed = np.array([recipe["norm"] == "batch" for recipe in recipes])
        plain, family = np.isin(self.family, PLAIN), self.family
        usps, fashion = (plain & (self.dataset == name) for name in ("usps", "fashion-mnist"))
        inside, held = self.parts(0)
        pairs = {
            "plain networks of USPS and Fashion-MNIST -> held-out ones": (usps | fashion, (usps | fashion) & held),
            "plain networks of USPS -> of Fashion-MNIST": (usps, fashion),
            "plain networks of up to 3 layers -> of more": (plain & (depth <= 3), plain & (depth > 3)),
            "CNN -> MLP": (family == "cnn", family == "mlp"),
            "MLP -> CNN": (family == "mlp", family == "cnn"),
            "plain networks without batch norm -> with it": (plain & ~normed, plain & normed),
            "residual nets alone -> residual nets": (family == "resnet", (family == "resnet") & held),
            "transformers alone -> transformers": (family == "vit", (family == "vit") & held),
        }  # fmt: skip
        results = {}
        for name, (known, asked) in pairs.items():
            encoder = self.fit(inside & known, held & known, seed=0, quick=True)
            told = encoder.know(self.described.take(np.flatnonzero(asked)))
            results[name] = scores(told.predicted, self.values[asked])
        return results

    def unseen(self) -> dict[str, float]:
        """Shares of networks with a construction that no fitted network has: held-out runs, and what was left out."""
        _, held = self.parts(0)
        asked = {"held-out runs": held}
        for kind, column in (("family", self.family), ("dataset", self.dataset)):
            asked |= {f"without {kind} {name}": column == name for name in sorted(set(column))}
        shares = {}
        for name, out in asked.items():
            known = frozenset().union(*self.described.built[~out])
            shares[name] = round(float(np.mean([not built <= known for built in self.described.built[out]])), 3)
        return shares

    def sweep(self, path: Path) -> dict[str, object]:
        return few_labels(self.encoder_of_sweeps, Zoo.open(path))

    @cached_property
    def encoder_of_sweeps(self) -> UniversalEncoder:
        return self.fit(*self.parts(0), seed=0)

    def curve(self) -> dict[int, dict[str, float]]:
        inside, held = self.parts(0)
        order = np.random.default_rng(0).permutation(np.unique(self.run[inside]))
        curve = {}
        for count in CURVE:
            encoder = self.fit(inside & np.isin(self.run, order[:count]), held, seed=0, quick=True)
            known = encoder.know(self.described.take(np.flatnonzero(held)))
            curve[count] = scores(known.predicted, self.values[held])
        return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--sweep", action="append", default=[], metavar="NAME=ZOO")
    parser.add_argument("--out", type=Path, required=True, help="of what is not measured anew it keeps what it has")
    parser.add_argument("--only", nargs="+", default=[""], help="how the parts begin that are measured")
    given = parser.parse_args()
    results: dict[str, object] = json.loads(given.out.read_text()) if given.out.exists() else {}

    def keep(name: str, value: object) -> None:
        results[name] = value
        given.out.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(value), flush=True)

    bench = Bench(given.zoo)
    about = {"runs": len(np.unique(bench.run)), "checkpoints": len(bench.run)}
    keep("zoo", {**about, "architectures": len(bench.zoo.architectures),
                 "milliseconds to describe a network": round(1000 * bench.seconds_each, 1)})  # fmt: skip
    parts: dict[str, Callable[[], object]] = {f"by run, seed {seed}": partial(bench.by_run, seed) for seed in SEEDS}
    for text in given.sweep:
        name, _, path = text.partition("=")
        parts[f"sweep {name}"] = partial(bench.sweep, Path(path))
    for kind, column in (("dataset", bench.dataset), ("family", bench.family)):
        for name in sorted(set(column)):
            parts[f"without {kind} {name}"] = partial(bench.left_out, column == name)
    parts |= {
        "fitted on one kind": bench.transfers, "unseen constructions": bench.unseen, "learning curve": bench.curve
    }  # fmt: skip
    for name, measured in parts.items():
        if name.startswith(tuple(given.only)):
            keep(name, measured())


if __name__ == "__main__":
    main()
