"""A sweep of residual nets as timm's `train.py` leaves it: `.pth.tar` by `CheckpointSaver`, `summary.csv`, `args.yaml`.

The loop is that of timm 1.0's script, short of devices and data files; its parts are timm's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

if TYPE_CHECKING:
    from sweeps import Task

DEPTHS = ((1, 1, 1, 1), (1, 2, 1, 1), (2, 2, 1, 1))
DEFAULTS: dict[str, Any] = {  # of timm's train.py, those that matter here
    "amp": False, "checkpoint_hist": 10, "clip_grad": None, "cooldown_epochs": 0, "data_dir": "data", "dataset": "",
    "decay_rate": 0.1, "drop": 0.0, "epochs": 4, "eval_metric": "top1", "experiment": "", "gp": None, "img_size": 16,
    "in_chans": 1, "input_size": None, "mean": None, "min_lr": 0, "mixup": 0.0, "model": "resnet", "momentum": 0.9,
    "num_classes": 10, "opt": "sgd", "opt_betas": None, "output": "", "pretrained": False, "resume": "",
    "sched": "cosine", "smoothing": 0.1, "warmup_epochs": 0, "warmup_lr": 1e-05, "workers": 4,
}  # fmt: skip


def arguments(run: int, seed: int) -> argparse.Namespace:
    """Learning rates over three decades, fractions of the data, depth and width."""
    rng = np.random.default_rng([seed, run])
    opt = str(rng.choice(["sgd", "adamw"]))
    width = int(rng.choice([8, 16, 32]))
    swept = {
        "opt": opt,
        "lr": float(10 ** rng.uniform(-3, 0) * (1 if opt == "sgd" else 0.03)),
        "weight_decay": float(rng.choice([0, 2e-5, 1e-3, 0.05])),
        "batch_size": int(rng.choice([32, 64])),
        "drop": float(rng.choice([0.0, 0.2])),
        "train_num_samples": int(rng.choice([150, 400, 1000])),
        "seed": run,
        "model_kwargs": {
            "layers": list(DEPTHS[rng.integers(len(DEPTHS))]),
            "channels": [width, 2 * width, 2 * width, 2 * width],
        },
    }
    return argparse.Namespace(**DEFAULTS | swept)


def timm(folder: Path, task: Task, seed: int, runs: int) -> None:
    """Networks of `timm.models.resnet` with a stem of seven pixels; a checkpoint an epoch, the best and the last."""
    from timm.models.resnet import BasicBlock, ResNet
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter, CheckpointSaver, accuracy, get_outdir, update_summary

    def evaluated(network: ResNet) -> dict[str, float]:
        network.eval()
        with torch.no_grad():
            logits: Tensor = network(task.x_test)
        network.train()
        top1, top5 = accuracy(logits, task.y_test, topk=(1, 5))
        return {"loss": float(F.cross_entropy(logits, task.y_test)), "top1": float(top1), "top5": float(top5)}

    for run in range(runs):
        args = arguments(run, seed)
        torch.manual_seed(args.seed)
        network = ResNet(
            BasicBlock, num_classes=task.classes, in_chans=1, drop_rate=args.drop,
            layers=tuple(args.model_kwargs["layers"]), channels=tuple(args.model_kwargs["channels"]),
        )  # fmt: skip
        optimizer = create_optimizer_v2(
            network, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=args.momentum
        )
        scheduler, _ = create_scheduler_v2(optimizer, sched=args.sched, num_epochs=args.epochs)
        out = get_outdir(str(folder), f"20261128-10{run:02d}00-{args.model}-{args.img_size}")
        saver = CheckpointSaver(network, optimizer, args, checkpoint_dir=out, recovery_dir=out, max_history=10)
        Path(out, "args.yaml").write_text(yaml.safe_dump(vars(args), default_flow_style=False))
        best: float | None = None
        for epoch in range(args.epochs):
            losses = AverageMeter()
            for batch in torch.randperm(args.train_num_samples).split(args.batch_size):
                loss = F.cross_entropy(
                    network(task.x_train[batch]), task.y_train[batch], label_smoothing=args.smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.update(loss.item(), len(batch))
            measured = evaluated(network)
            rates = [group["lr"] for group in optimizer.param_groups]
            update_summary(
                epoch, {"loss": losses.avg}, measured, filename=str(Path(out, "summary.csv")),
                lr=sum(rates) / len(rates), write_header=best is None,
            )  # fmt: skip
            best, _ = saver.save_checkpoint(epoch, metric=measured[args.eval_metric])
            scheduler.step(epoch + 1, measured[args.eval_metric])
