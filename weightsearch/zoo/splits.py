"""Which checkpoints train an encoder, which choose its epoch and settings, and which judge it once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.types import SplitBy
from weightsearch.zoo.store import CheckpointTable

HELD_SHARE = 0.15  # of validation and of test each
FEWEST = 8
FEWEST_CALIBRATING = 9  # runs, for a 90 % interval (see `conformal`)
FEWEST_TO_SHARE = 12  # test runs that calibration takes some of


@dataclass(frozen=True, eq=False)
class Split:
    """Positions in a zoo's table, ascending: `(n,)` each. `per_run` checkpoints of each run were drawn (None: all)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    by: SplitBy = SplitBy.RUN
    per_run: int | None = None
    calibration: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # see `with_calibration`

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The calibration part only where there is one."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {**parts, "calibration": self.calibration} if len(self.calibration) else parts

    def with_calibration(self, table: CheckpointTable, seed: int) -> Split:
        """The same split with half of the test part's runs set aside to calibrate intervals, which they do alone.

        A 90 % interval needs nine of them, so nine of a small test part's are taken; of fewer than twelve, none.
        """
        units = table.run[self.test] if self.by is SplitBy.RUN else self.test
        distinct = np.random.default_rng([seed, 2]).permutation(np.unique(units))
        count = max(FEWEST_CALIBRATING, len(distinct) // 2) if len(distinct) >= FEWEST_TO_SHARE else 0
        aside = np.isin(units, distinct[:count])
        return replace(self, test=self.test[~aside], calibration=self.test[aside])

    @property
    def label(self) -> str:
        """For people."""
        drawn = f", {self.per_run} random checkpoint(s) of each run" if self.per_run else ""
        looser = " (looser: other epochs of a test network's own run train the encoder)"
        return f"by {self.by}{looser if self.by is SplitBy.CHECKPOINT else ''}{drawn}"

    def names(self, table: CheckpointTable) -> np.ndarray:
        """The part of each checkpoint of the table `(n,)`, "" where it is in none.

        Split by run, that is its run's part, whether or not the checkpoint itself was drawn.
        """
        names = np.full(len(table), "", dtype=object)
        for name, positions in self.parts.items():
            if self.by is SplitBy.RUN:
                names[np.isin(table.run, table.run[positions])] = name
            else:
                names[positions] = name
        return names

    def runs(self, table: CheckpointTable) -> dict[str, int]:
        """How many runs each part has checkpoints of."""
        return {name: len(np.unique(table.run[positions])) for name, positions in self.parts.items()}

    def limited(self, table: CheckpointTable, count: int, seed: int) -> Split:
        """The same split with the training checkpoints of `count` random runs only; more runs include fewer."""
        order = np.random.default_rng([seed, 1]).permutation(np.unique(table.run[self.train]))
        return replace(self, train=self.train[np.isin(table.run[self.train], order[:count])])

    def to_dict(self, table: CheckpointTable) -> dict[str, Any]:
        """Plain JSON: each part's run numbers, or its (run, epoch) pairs where runs were split."""
        parts = {
            name: np.unique(table.run[positions]).tolist()
            if self.by is SplitBy.RUN
            else np.stack([table.run[positions], table.epoch[positions]], axis=1).tolist()
            for name, positions in self.parts.items()
        }
        return {"by": self.by.value, "per_run": self.per_run, **parts}


def make_split(
    table: CheckpointTable,
    *,
    by: SplitBy = SplitBy.RUN,
    per_run: int | None = None,
    seed: int = 0,
    fold: int = 0,
    usable: np.ndarray | None = None,
) -> Split:
    """Splits the `usable` positions (None: all) 70/15/15 into train, validation and test, shuffled by `seed`.

    Folds share their test part; each shuffles the rest into train and validation anew.
    """
    positions = np.arange(len(table)) if usable is None else np.sort(usable)
    if per_run is not None:
        positions = _draw(table.run, positions, per_run, seed)
    units = table.run[positions] if by is SplitBy.RUN else positions
    distinct = np.unique(units)
    if len(distinct) < FEWEST:
        what = "run(s)" if by is SplitBy.RUN else "checkpoint(s)"
        raise WeightsearchError(
            f"the zoo has {len(distinct)} finished {what} to use; splitting by {by} into train, validation and test "
            f"needs at least {FEWEST}: build or import more runs"
        )
    shuffled = np.random.default_rng(seed).permutation(distinct)
    held = max(1, round(len(distinct) * HELD_SHARE))
    test, rest = shuffled[:held], shuffled[held:]
    if fold:
        rest = np.random.default_rng([seed, fold]).permutation(rest)
    train, validation, judged = (positions[np.isin(units, part)] for part in (rest[held:], rest[:held], test))
    return Split(train, validation, judged, by, per_run)


def _draw(runs: np.ndarray, positions: np.ndarray, per_run: int, seed: int) -> np.ndarray:
    """Up to `per_run` random positions of each run; how many runs the zoo has does not change a run's draw."""
    drawn = []
    for run in np.unique(runs[positions]):
        of_run = positions[runs[positions] == run]
        drawn.append(np.random.default_rng([seed, int(run), per_run]).permutation(of_run)[:per_run])
    return np.sort(np.concatenate(drawn)) if drawn else positions
