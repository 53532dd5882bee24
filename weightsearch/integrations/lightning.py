"""A callback for Lightning, under whichever of its two names it is installed.

https://lightning.ai/docs/pytorch/stable/extensions/callbacks.html
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.discovery import below
from weightsearch.checkpoints.metadata import Metadata
from weightsearch.errors import WeightsearchError
from weightsearch.integrations.recorder import Recorder, known_of

NAMES = ("lightning.pytorch", "pytorch_lightning")


def _callback_class() -> Any:
    """Lightning's `Callback`: of the package that is in use already, else of the one that is installed."""
    for name in sorted(NAMES, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise WeightsearchError("LightningCallback needs the package lightning: pip install 'weightsearch[integrations]'")


class LightningCallback(_callback_class()):  # type: ignore[misc]
    """Adds every checkpoint that a `ModelCheckpoint` saves to an index, and prints on stderr where the run stands.

    The accuracy is what was logged as such (`val_acc`, `test_accuracy`, …) when it was saved; the run is named after
    the logger's directory, and its recipe is what `save_hyperparameters` kept.

    Args:
        index: the directory, made where there is none; by default the one that commands would take.
        dataset: what is trained on; runs are compared within one.
        run: its name.
        recipe: hyperparameters beside the module's.

    Example:
        >>> trainer = Trainer(callbacks=[LightningCallback("runs/indexes/sweep")])  # doctest: +SKIP
    """

    def __init__(
        self,
        index: str | Path | None = None,
        *,
        dataset: str | None = None,
        run: str | None = None,
        recipe: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        self.recorder = Recorder(index, dataset=dataset, quiet=quiet)
        self.run = run
        self.recipe = dict(recipe or {})
        self._seen: set[str] = set()
        self._pending: Metadata | None = None  # of the checkpoint that is being written

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """A checkpoint is about to be written: what is known now is about it."""
        if trainer.is_global_zero:
            measured = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
            self._pending = known_of(
                measured,
                "callback_metrics",
                {**dict(getattr(pl_module, "hparams", {})), **self.recipe},
                run=self.run or self._run_of(trainer),
                epoch=checkpoint.get("epoch"),
                step=checkpoint.get("global_step"),
            )

    def _run_of(self, trainer: Any) -> str:
        folder = Path(trainer.log_dir or trainer.default_root_dir).absolute()
        return below(folder.parent, folder.name)

    def _flush(self, trainer: Any) -> None:
        """The hook after the one that saved: by now the files are there."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        saved: dict[str, None] = {}
        for callback in trainer.checkpoint_callbacks:
            saved_by_callback = [*getattr(callback, "best_k_models", {}), getattr(callback, "best_model_path", "")]
            last = getattr(callback, "last_model_path", "")
            saved |= dict.fromkeys(filter(None, saved_by_callback if any(saved_by_callback) else [last]))
        for path in saved:
            if path not in self._seen and Path(path).exists():
                self._seen.add(path)
                self.recorder.add(path, pending)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._flush(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._flush(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._flush(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._flush(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._flush(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._flush(trainer)
