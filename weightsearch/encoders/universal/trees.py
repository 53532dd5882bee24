"""Fitted trees as arrays: kept without pickles, used without the library that grew them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Trees:
    """A sum of trees over features. Nodes of all trees lie one after another.

    feature: `(nodes,)` int32, -1 at a leaf. threshold: `(nodes,)` float32, left where the feature is at most that.
    left, right: `(nodes,)` int32 places of the children. value: `(nodes,)` float32, of leaves.
    roots: `(trees,)` int32. base: what the sum starts from.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    base: float = 0.0

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Features `(n, F)` -> `(n,)` float64. NaN goes to the right."""
        count = len(features)
        at = np.broadcast_to(self.roots, (count, len(self.roots))).copy()  # (n, trees)
        rows = np.arange(count)[:, None]
        while True:
            split = self.feature[at]
            inner = split >= 0
            if not inner.any():
                return self.base + self.value[at].sum(1, dtype=np.float64)
            with np.errstate(invalid="ignore"):
                below = features[rows, np.maximum(split, 0)] <= self.threshold[at]
            at = np.where(inner, np.where(below, self.left[at], self.right[at]), at)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """By name, for a file of tensors; `from_arrays` is the inverse."""
        named = {name: getattr(self, name) for name in ("feature", "threshold", "left", "right", "value", "roots")}
        return {
            f"{prefix}{name}": array for name, array in (named | {"base": np.array([self.base], np.float32)}).items()
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], prefix: str) -> Trees:
        names = ("feature", "threshold", "left", "right", "value", "roots")
        named = {name: np.asarray(arrays[f"{prefix}{name}"]) for name in names}
        return cls(**named, base=float(arrays[f"{prefix}base"][0]))

    @classmethod
    def from_lightgbm(cls, booster: Any) -> Trees:
        """Of a booster on numbers without categories."""
        builder = _Builder()
        for tree in booster.dump_model()["tree_info"]:
            builder.roots.append(builder.lightgbm(tree["tree_structure"]))
        return builder.build(0.0)

    @classmethod
    def from_forest(cls, forest: Any) -> Trees:
        """Of a scikit-learn forest of regressors, whose trees are averaged."""
        builder = _Builder()
        share = 1 / len(forest.estimators_)
        for estimator in forest.estimators_:
            builder.roots.append(builder.sklearn(estimator.tree_, share))
        return builder.build(0.0)


class _Builder:
    def __init__(self) -> None:
        self.feature: list[int] = []
        self.threshold: list[float] = []
        self.left: list[int] = []
        self.right: list[int] = []
        self.value: list[float] = []
        self.roots: list[int] = []

    def _add(self, feature: int, threshold: float, value: float) -> int:
        self.feature.append(feature)
        self.threshold.append(threshold)
        self.left.append(-1)
        self.right.append(-1)
        self.value.append(value)
        return len(self.feature) - 1

    def lightgbm(self, node: dict[str, Any]) -> int:
        if "split_feature" not in node:
            return self._add(-1, 0.0, node["leaf_value"])
        place = self._add(node["split_feature"], node["threshold"], 0.0)
        self.left[place] = self.lightgbm(node["left_child"])
        self.right[place] = self.lightgbm(node["right_child"])
        return place

    def sklearn(self, tree: Any, share: float) -> int:
        root = len(self.feature)
        for i in range(tree.node_count):
            leaf = tree.children_left[i] < 0
            self._add(
                -1 if leaf else int(tree.feature[i]), float(tree.threshold[i]), share * float(tree.value[i, 0, 0])
            )
        for i in range(tree.node_count):
            if tree.children_left[i] >= 0:
                self.left[root + i] = root + int(tree.children_left[i])
                self.right[root + i] = root + int(tree.children_right[i])
        return root

    def build(self, base: float) -> Trees:
        return Trees(
            np.array(self.feature, np.int32),
            np.array(self.threshold, np.float32),
            np.array(self.left, np.int32),
            np.array(self.right, np.int32),
            np.array(self.value, np.float32),
            np.array(self.roots, np.int32),
            base,
        )
