"""What a fit sees of a zoo: the checkpoints that can take part, their targets, and their features."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from weightsearch.devices import SMALL, multiplies_bfloat16
from weightsearch.encoders import Encoder, EncoderConfig, WeightEncoder, activation_code, build_encoder
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.types import Method, Target
from weightsearch.zoo.store import CheckpointTable, Zoo

log = logging.getLogger("weightsearch")


CACHE_BYTES = 1 << 30  # features are kept in memory up to this much, else read anew for every batch


SAMPLE_BYTES = 1 << 27  # of the training part, from which the normalisation is taken


def target_values(table: CheckpointTable, target: Target) -> np.ndarray:
    """The target of every checkpoint `(n,)` float64, NaN where unknown."""
    columns = {**table.extras, **vars(table)}
    values = columns.get(target.column)
    if not _is_numbers(values):
        numeric = [name for name, column in columns.items() if _is_numbers(column)]
        raise UsageError(f"--target {target.column}: the zoo has no such column; choose among {', '.join(numeric)}")
    return values


def _is_numbers(column: Any) -> TypeGuard[np.ndarray]:
    return isinstance(column, np.ndarray) and column.dtype == np.float64


def usable_checkpoints(zoo: Zoo, target: Target) -> np.ndarray:
    """Positions of the checkpoints with a finite target and finite weights; one warning tells of the others."""
    table = zoo.table()
    labelled = np.isfinite(target_values(table, target))
    if len(labelled) and not labelled.any():
        columns = {**table.extras, **vars(table)}.items()
        others = [name for name, values in columns if _is_numbers(values) and np.isfinite(values).any()]
        raise WeightsearchError(
            f"{zoo.path}: no checkpoint has a {target.column}; choose another --target"
            + (f" among {', '.join(others)}" if others else ", or import the zoo again with --metadata")
        )
    finite = finite_weights(zoo, np.arange(len(labelled)))
    left_out = [
        f"{count:,} without a {target.column}" if why == "target" else f"{count:,} with NaN or infinite weights"
        for why, count in (("target", int((~labelled).sum())), ("weights", int((~finite).sum())))
        if count
    ]
    if left_out:
        log.warning("%s: checkpoints that take no part in the fit: %s", zoo.path, ", ".join(left_out))
    return np.flatnonzero(labelled & finite)


def finite_weights(zoo: Zoo, positions: np.ndarray) -> np.ndarray:
    """Which of the checkpoints at `positions` have finite weights `(len(positions),)`."""
    finite = np.ones(len(zoo.table()), bool)
    for block, weights in zoo.blocks(positions):
        finite[block] = np.isfinite(weights).all(axis=1)
    return finite[positions]


def activation_codes(table: CheckpointTable) -> Tensor:
    """The activation of each checkpoint's network as its recipe names it `(n,)`, as `encoders.activation_code`s."""
    codes = {run: activation_code(recipe.get("activation")) for run, recipe in table.recipes.items()}
    return torch.tensor([codes[run] for run in table.run.tolist()])


class Features:
    """Normalised features of a zoo's checkpoints, for all encoders of one method.

    The normalisation is taken from the training part alone. Features are kept in memory where all of `positions` fit
    into `cache_bytes`, else they are made from the memory-mapped weights whenever they are asked for.

    Raw weights of large networks come in bfloat16 where the device multiplies that: half the memory, and the first
    layer, nearly all of a fit's work, takes half the time. Its parameters and everything behind it stay float32.
    They are made on the processor; `device` is where they are kept and come from, and `images` as in `EncoderConfig`.
    """

    def __init__(
        self,
        zoo: Zoo,
        method: Method,
        train: np.ndarray,
        positions: np.ndarray,
        cache_bytes: int = CACHE_BYTES,
        device: str = "cpu",
        images: bool = True,
    ) -> None:
        self.device = torch.device(device)
        self._zoo = zoo
        smallest = EncoderConfig(method, embedding_size=1, hidden_layers=0, hidden_size=1, images=images)
        self._encoder = build_encoder(zoo.architecture, smallest, torch.Generator())
        self._activations = activation_codes(zoo.table())
        self._row = torch.zeros(len(zoo.table()), dtype=torch.int64)
        self._row[positions] = torch.arange(len(positions))
        self._summaries: Tensor | None = None  # (len(positions), S)
        self._kept: Tensor | None = None  # (len(positions), F), normalised
        large = isinstance(self._encoder, WeightEncoder) and zoo.architecture.size >= SMALL
        halved = large and (self.device.type != "cpu" or multiplies_bfloat16())
        self._dtype = torch.bfloat16 if halved else torch.float32
        if width := self._encoder.summary_width:
            # Copies: a slice would keep all of a block's features, which are as large as the zoo.
            self._summaries = torch.cat([raw[:, :width].clone() for _, raw in self._raw_blocks(positions)])
            self._encoder.calibrate(self._summaries[self._row[train]])
        else:
            stride = max(1, -(-self._encoder.features_bytes * len(train) // SAMPLE_BYTES))
            self._encoder.calibrate(self._raw(train[::stride]))
        width = self._encoder.features_bytes // 4
        if width * self._dtype.itemsize * len(positions) <= cache_bytes:
            self._kept = torch.empty(len(positions), width, dtype=self._dtype)
            for block, raw in self._raw_blocks(positions):
                self._kept[self._row[block]] = self._encoder.normalise(raw).to(self._dtype)
            self._kept = self._kept.to(self.device)

    def calibrate(self, encoder: Encoder) -> None:
        """Gives `encoder` the normalisation that these features have."""
        ours = dict(self._encoder.named_buffers())
        for name, buffer in encoder.named_buffers():
            buffer.copy_(ours[name])

    def __call__(self, positions: np.ndarray) -> Tensor:
        """Normalised features `(len(positions), F)` float32, or bfloat16, on `device`."""
        if self._kept is None:
            return self._encoder.normalise(self._raw(positions)).to(self.device, self._dtype)
        return self._kept.index_select(0, self._row[positions].to(self.device))

    def _raw(self, positions: np.ndarray) -> Tensor:
        blocks = [raw for _, raw in self._raw_blocks(positions)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    @torch.no_grad()
    def _raw_blocks(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Positions `(b,)` with features `(b, F)` that are not normalised."""
        for block, weights in self._zoo.blocks(positions):
            summaries = None if self._summaries is None else self._summaries[self._row[block]]
            yield block, self._encoder.features(torch.from_numpy(weights), self._activations[block], summaries)
