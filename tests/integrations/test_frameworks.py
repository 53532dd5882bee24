"""The callbacks in the real frameworks (`make test-all` installs them): what they save is in the index, as it was.

Without them, the same is done with the folders that they wrote (`test_written_folders`).
"""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.checkpoints.test_sweeps import sweeps as sweeps
from tests.checkpoints.test_sweeps import trainer as accuracies_of_trainer
from tests.conftest import EVERYTHING
from weightsearch.integrations import Recorder
from weightsearch.integrations.recorder import known_of
from weightsearch.relations.store import read_known
from weightsearch.search.add import add

with_frameworks = pytest.mark.skipif(not EVERYTHING, reason="make test-all trains with the real frameworks")


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=generator)
    return x, (x[:, 0] > 0).long()


@pytest.mark.slow
def test_written_folders(sweeps: Path, tmp_path: Path):
    """As the Trainer's callback would have: each checkpoint of a run when it was saved, and the same once more."""
    recorder = Recorder(tmp_path / "index", quiet=True)
    truth = accuracies_of_trainer(sweeps / "hf-bert")
    best = 0.0
    for path, accuracy in sorted(truth.items(), key=lambda item: int(Path(item[0]).parent.name.rpartition("-")[2])):
        state = json.loads((Path(path).parent / "trainer_state.json").read_text())
        known = known_of({"eval_accuracy": accuracy}, "callback", run="bert", epoch=state["epoch"])
        standing = recorder.add(path, known)
        best = max(best, accuracy)
        assert (standing.problem, standing.accuracy, standing.best) == (None, accuracy, best)
        assert (standing.rank, standing.runs) == (1, 1)
    signed = read_known(tmp_path / "index")
    assert set(signed["run"]) == {"bert"}
    assert len(signed) == len(truth)


@with_frameworks
@pytest.mark.slow
def test_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as pl
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import CSVLogger

        from weightsearch.integrations import LightningCallback

        class Module(pl.LightningModule):
            def __init__(self, lr: float = 0.1) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

            def training_step(self, batch: Any, _: int) -> Any:
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def validation_step(self, batch: Any, _: int) -> None:
                self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), self.hparams["lr"])

        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=32)
        trainer = pl.Trainer(
            max_epochs=3,
            logger=CSVLogger(tmp_path, "logs"),
            callbacks=[
                LightningCallback(tmp_path / "index"),
                ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=-1, filename="{epoch}-{step}"),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(Module(), loader, loader)
    saved = sorted(tmp_path.rglob("*.ckpt"))
    assert len(saved) == 3
    with (tmp_path / "logs/version_0/metrics.csv").open(newline="") as file:
        truth = {int(row["epoch"]): float(row["val_acc"]) for row in csv.DictReader(file) if row["val_acc"]}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("weightsearch: ")]
    assert len(lines) == 3
    for epoch, line in enumerate(lines):
        assert line.startswith(f"weightsearch: logs/version_0, epoch {epoch}: accuracy {truth[epoch]:.3f}")
    signed = read_known(tmp_path / "index")
    assert {(run, epoch) for run, epoch in zip(signed["run"], signed["epoch"], strict=True)} == {
        ("logs/version_0", epoch) for epoch in range(3)
    }
    assert add([tmp_path / "logs"], tmp_path / "index", quiet=True).signed == 0


@with_frameworks
@pytest.mark.slow
def test_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

        from weightsearch.integrations import TransformersCallback

        config = BertConfig(
            vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
        )
        generator = torch.Generator().manual_seed(0)
        items = []
        for _ in range(32):
            words = torch.randint(0, 16, (5,), generator=generator)
            items.append({"input_ids": words, "labels": int(words[0] > 7)})
        arguments = TrainingArguments(
            str(tmp_path / "bert"), num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch", report_to="none",
            learning_rate=3e-3, use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(
            BertForSequenceClassification(config),
            arguments,
            train_dataset=items,
            eval_dataset=items,
            compute_metrics=lambda given: {"accuracy": float((given.predictions.argmax(1) == given.label_ids).mean())},
            callbacks=[TransformersCallback(tmp_path / "index")],
        )
        trainer.train()
    states = [json.loads(path.read_text()) for path in tmp_path.glob("bert/checkpoint-*/trainer_state.json")]
    truth = {
        state["epoch"]: [row["eval_accuracy"] for row in state["log_history"] if "eval_accuracy" in row][-1]
        for state in states
    }
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("weightsearch: ")]
    assert len(lines) == len(truth) == 2
    for line, (epoch, accuracy) in zip(lines, sorted(truth.items()), strict=True):
        assert line.startswith(f"weightsearch: {tmp_path.name}/bert, epoch {epoch:g}: accuracy {accuracy:.3f}")
    assert sorted(read_known(tmp_path / "index")["epoch"]) == sorted(truth)
