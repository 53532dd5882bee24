"""A callback for the Hugging Face Trainer.

https://huggingface.co/docs/transformers/main_classes/callback
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsearch.checkpoints.discovery import below
from weightsearch.checkpoints.metadata import Metadata
from weightsearch.checkpoints.trackers.trainer import HYPERPARAMETERS
from weightsearch.errors import WeightsearchError
from weightsearch.integrations.recorder import Recorder, known_of

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise WeightsearchError(
        f"TransformersCallback needs the package transformers ({error}): pip install 'weightsearch[integrations]'"
    ) from None


class TransformersCallback(TrainerCallback):
    """Adds every checkpoint that a Trainer saves to an index, and prints on stderr where the run stands.

    The accuracy is `eval_accuracy` of the evaluation before (or what else people call one); the run is named after the
    output directory, and its recipe are the training arguments that decide how a network turns out.

    Args:
        index: the directory, made where there is none; by default the one that commands would take.
        dataset: what is trained on; runs are compared within one.
        run: its name.
        recipe: hyperparameters beside the Trainer's.

    Example:
        >>> trainer = Trainer(..., callbacks=[TransformersCallback("runs/indexes/sweep")])  # doctest: +SKIP
    """

    def __init__(
        self,
        index: str | Path | None = None,
        *,
        dataset: str | None = None,
        run: str | None = None,
        recipe: dict[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        self.recorder = Recorder(index, dataset=dataset, quiet=quiet)
        self.run = run
        self.recipe = dict(recipe or {})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer has written `checkpoint-STEP`."""
        if not state.is_world_process_zero:
            return
        output = Path(args.output_dir)
        folder = output / f"checkpoint-{state.global_step}"
        for path in weights_in(folder):
            self.recorder.add(path, self._known(args, state, output))

    def _known(self, args: Any, state: Any, output: Path) -> Metadata:
        measured: dict[str, Any] = {}
        for row in state.log_history:
            if row.get("step", 0) <= state.global_step:
                measured |= {name: value for name, value in row.items() if name.startswith("eval_")}
        recipe = {
            "batch_size" if name == "per_device_train_batch_size" else name: getattr(value, "value", value)
            for name in HYPERPARAMETERS
            if (value := getattr(args, name, None)) is not None and not (name == "max_steps" and value == -1)
        }
        return known_of(
            {name: value for name, value in measured.items() if not name.endswith(("_runtime", "_per_second"))},
            "trainer_state.json",
            {**recipe, **self.recipe},
            run=self.run or below(output.absolute().parent, output.absolute().name),
            epoch=state.epoch,
            step=state.global_step,
        )


def weights_in(folder: Path) -> list[Path]:
    """The files of weights of a checkpoint's folder; a sharded one is its index alone."""
    from weightsearch.checkpoints.walk import walk

    return list(walk(folder)) if folder.is_dir() else []
