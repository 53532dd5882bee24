"""What training frameworks write beside checkpoints: metrics by epoch and step, hyperparameters, and which run it is.

One module per framework. Each has a `find(folder)` that gives, where its files lie in the folder, a function from a
checkpoint's path and what the file itself says to a `Label`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.metadata import Metadata
from weightsearch.checkpoints.walk import HOLDERS, STEP_FOLDER
from weightsearch.errors import WeightsearchError


@dataclass(frozen=True)
class Inside:
    """What a checkpoint's file and name say: its epoch and step, None where unknown, and all plain values."""

    epoch: float | None = None
    step: float | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """What a framework knows of a checkpoint; `run` is the folder of its run."""

    metadata: Metadata
    run: Path | None = None


Finder = Callable[[Path, Inside], Label | None]
Report = Callable[[Path, object], None]  # takes a file that cannot be read, and why
ABOVE = 3  # folders above a file that are looked into: runs/version_0/checkpoints/a.ckpt


def belongs(path: Path, folder: Path) -> bool:
    """Whether a checkpoint is of the run in `folder`: it lies there, or in folders that only hold checkpoints."""
    for place in path.parents:
        if place == folder:
            return True
        if not (HOLDERS.fullmatch(place.name) or STEP_FOLDER.fullmatch(place.name)):
            return False
    return False


class Trackers:
    """Labels for checkpoints below any folders; each folder is looked into once.

    `problems` collects what could not be read, by path: such a file costs its labels and nothing else.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._by_folder: dict[Path, list[tuple[str, Finder]]] = {}
        self._above: dict[tuple[Path, Path], list[tuple[Path, str, Finder]]] = {}

    def labels(self, path: Path, root: Path, inside: Inside) -> list[Label]:
        """What is known of the checkpoint `path`, the nearest folder first. Folders far above `root` are not read."""
        labels = []
        path = path.absolute()
        for place, name, find in self._finders_above(path if path.is_dir() else path.parent, root):
            try:
                label = find(path, inside)
            except (WeightsearchError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self.problems.setdefault(str(place), f"what {name} wrote there cannot be read ({error})")
                continue
            if label is not None:
                labels.append(label)
        return labels

    def _finders_above(self, folder: Path, root: Path) -> list[tuple[Path, str, Finder]]:
        """Those of a folder and of the ones above it, with where each was found."""
        if (folder, root) not in self._above:
            top = root.absolute()
            depth = len(folder.relative_to(top).parts) if folder.is_relative_to(top) else 0
            finders = []
            for above, place in enumerate((folder, *folder.parents)):
                if above > max(depth, ABOVE if depth < 2 else depth) or place == place.parent:
                    break
                finders += [(place, name, find) for name, find in self._finders(place)]
            self._above[folder, root] = finders
        return self._above[folder, root]

    def _finders(self, folder: Path) -> list[tuple[str, Finder]]:
        if folder not in self._by_folder:
            finders: list[tuple[str, Finder]] = []
            for name, look in _modules():
                try:
                    find = look(folder, self._report)
                except (WeightsearchError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    self.problems.setdefault(str(folder), f"what {name} wrote there cannot be read ({error})")
                    continue
                if find is not None:
                    finders.append((name, find))
            self._by_folder[folder] = finders
        return self._by_folder[folder]

    def _report(self, path: Path, problem: object) -> None:
        self.problems.setdefault(str(path), f"it cannot be read ({problem})")

    @property
    def notes(self) -> list[str]:
        return [f"{path}: {problem}; its checkpoints go in without that" for path, problem in self.problems.items()]


def _modules() -> tuple[tuple[str, Callable[[Path, Report], Finder | None]], ...]:
    from weightsearch.checkpoints.trackers import lightning, logs, mlflow, optuna, ray_tune, tensorboard, trainer, wandb

    return (
        ("Ray Tune", ray_tune.find),
        ("Lightning", lightning.find),
        ("the Trainer", trainer.find),
        ("a log of epochs", logs.find),
        ("Optuna", optuna.find),
        ("MLflow", mlflow.find),
        ("Weights & Biases", wandb.find),
        ("TensorBoard", tensorboard.find),
    )
