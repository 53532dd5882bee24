"""ZeRO-3 folders: weights are joined from the ranks' states, or their absence is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from weightsearch.checkpoints.discovery import discover
from weightsearch.checkpoints.named_tensors import read_tensors
from weightsearch.errors import WeightsearchError


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 7))


def save(folder: Path, ranks: int) -> dict[str, torch.Tensor]:
    """As DeepSpeed partitions parameters: each flat, filled up to a multiple of the ranks, and cut into that many."""
    folder.mkdir()
    state = network().state_dict()
    parameters = dict(network().named_parameters())
    groups = [["0.weight", "0.bias", "1.weight"], ["1.bias", "2.weight", "2.bias"]]
    placeholders = {name: torch.empty(0) if name in parameters else value for name, value in state.items()}
    shapes = [{name: parameters[name].shape for name in group} for group in groups]
    for rank in range(ranks):
        parts = []
        for group in groups:
            flat = []
            for name in group:
                values = state[name].flatten()
                filled = torch.cat([values, torch.full((-len(values) % ranks,), torch.nan)])
                flat.append(filled.chunk(ranks)[rank])
            parts.append(torch.cat(flat))
        model = {"module": placeholders, "param_shapes": shapes, "global_steps": 12, "ds_version": "0.15"}
        torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        optimizer = {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": parts, "state": {}}
        torch.save({"optimizer_state_dict": optimizer}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return state


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_partitions_are_joined(ranks: int, tmp_path: Path):
    state = save(tmp_path / "global_step12", ranks)
    discovery = discover([tmp_path])
    assert [file.path.name for file in discovery.files] == ["zero_pp_rank_0_mp_rank_00_model_states.pt"]
    assert discovery.account.others["parts of ZeRO-3 checkpoints (read by their first)"] == ranks - 1
    found = read_tensors(discovery.files[0].path)
    expected = {name: value for name, value in state.items() if value.is_floating_point()}
    assert list(found.arrays) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found.arrays[name], value.numpy())
    assert any(f"joined from the states of {ranks} ranks" in note for note in found.notes)


def test_missing_partitions_are_named(tmp_path: Path):
    folder = tmp_path / "global_step12"
    save(folder, 2)
    first = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    with pytest.raises(WeightsearchError, match="a part of a ZeRO-3 checkpoint; give zero_pp_rank_0_mp_rank_00"):
        read_tensors(folder / "zero_pp_rank_1_mp_rank_00_model_states.pt")
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(WeightsearchError, match="saved by 2 ranks, and 1 of their states are here"):
        read_tensors(first)
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(WeightsearchError, match="empty placeholders, as ZeRO-3 leaves them"):
        read_tensors(first)
