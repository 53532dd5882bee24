"""Nothing is lost: plans against what is in the files, packs bit for bit, both under kills."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.numpy import save_file

import weightsearch
from tests.conftest import share
from weightsearch.errors import WeightsearchError
from weightsearch.relations import Kind, tidy
from weightsearch.relations.pack import pack, unpack

Networks = dict[str, tuple[Any, dict[str, dict[str, np.ndarray]]]]


@pytest.fixture
def folder(networks: Networks, tmp_path: Path) -> Path:
    states = networks["transformer"][1]
    path = tmp_path / "models"
    (path / "run").mkdir(parents=True)
    save_file(states["base"], path / "base.safetensors")
    save_file(states["tuned"], path / "run" / "tuned.safetensors")
    shutil.copy(path / "base.safetensors", path / "run" / "again.safetensors")
    save_file({n: v.astype(np.float16) for n, v in states["base"].items()}, path / "half.safetensors")
    tensors = {n: torch.from_numpy(v) for n, v in states["tuned"].items()}
    torch.save({"state_dict": tensors, "optimizer": {n: v * 2 for n, v in tensors.items()}}, path / "tuned.pt")
    return path


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def test_a_plan_keeps_all_weights(folder: Path):
    before = contents(folder)
    found = tidy.plan(folder)
    assert contents(folder) == before  # a plan moves nothing
    gone = {removal.path: removal for removal in found.removals}
    assert set(gone) == {"run/again.safetensors", "half.safetensors", "run/tuned.safetensors"}
    assert gone["run/again.safetensors"].relation is Kind.IDENTICAL
    assert gone["run/again.safetensors"].keep == "base.safetensors"
    assert gone["run/tuned.safetensors"].keep == "tuned.pt"  # which has the optimizer's state as well
    assert found.freed == sum((folder / path).stat().st_size for path in gone)


def test_applying_moves_to_the_trash_and_goes_on(folder: Path, tmp_path: Path):
    before = contents(folder)
    found = tidy.plan(folder)
    found.write(tmp_path / "plan.json")
    wanted = tidy.read_plan(tmp_path / "plan.json")
    assert wanted == found
    trash, moved = tidy.apply(wanted)
    assert moved == 3
    after = contents(folder)
    assert {path.removeprefix(f"{tidy.TRASH}/"): digest for path, digest in after.items()} == before
    assert tidy.apply(wanted) == (trash, 3)  # again: nothing more to do
    assert contents(folder) == after
    assert tidy.plan(folder).removals == ()


def test_what_changed_since_the_plan_is_left_alone(folder: Path, networks: Networks):
    wanted = tidy.plan(folder)
    save_file(networks["transformer"][1]["apart"], folder / "half.safetensors")
    (folder / "tuned.pt").write_bytes(b"other")
    with pytest.raises(WeightsearchError, match="2 files changed since the plan"):
        tidy.apply(wanted)
    assert (folder / "half.safetensors").exists()
    assert (folder / "run" / "tuned.safetensors").exists()  # its keeper is gone
    assert not (folder / "run" / "again.safetensors").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"folder": 1}', "no json"])
def test_plans_that_are_none(text: str, tmp_path: Path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(WeightsearchError, match="is no plan"):
        tidy.read_plan(tmp_path / "plan.json")


@pytest.mark.slow
def test_a_pack_gives_every_bit_back(folder: Path, tmp_path: Path):
    summary = pack(folder, tmp_path / "pack")
    assert summary.files == 5
    assert summary.packed_bytes == sum(p.stat().st_size for p in (tmp_path / "pack").rglob("*") if p.is_file())
    assert unpack(tmp_path / "pack", tmp_path / "out") == 5
    assert contents(tmp_path / "out") == contents(folder)
    assert unpack(tmp_path / "pack", tmp_path / "one", "tuned.pt") == 1
    assert contents(tmp_path / "one") == {"tuned.pt": contents(folder)["tuned.pt"]}
    alone = sum(len(zstandard.compress(path.read_bytes(), 9)) for path in folder.rglob("*") if path.is_file())
    assert summary.packed_bytes < 0.8 * alone


@pytest.mark.parametrize("item", [1, 2, 4, 8])
def test_differences_are_undone(item: int, rng: np.random.Generator):
    from weightsearch.relations.pack import _combined, _restored

    old = rng.bytes(64 * item)
    new = bytes(old[:item]) + rng.bytes(62 * item) + b"\xff" * item
    for operation in ("xor", "difference"):
        assert _restored(_combined(new, old, item, operation), old, item, operation) == new


@pytest.mark.slow
def test_a_damaged_pack_says_so(folder: Path, tmp_path: Path):
    pack(folder, tmp_path / "pack")
    for piece in (tmp_path / "pack" / "pieces").iterdir():
        content = bytearray(piece.read_bytes())
        content[-5] ^= 0x10
        piece.write_bytes(content)
    with pytest.raises(WeightsearchError, match="damaged"):
        unpack(tmp_path / "pack", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    (tmp_path / "pack" / "pack.json").unlink()
    with pytest.raises(WeightsearchError, match="no finished pack"):
        unpack(tmp_path / "pack", tmp_path / "out")
    with pytest.raises(WeightsearchError, match="exists already"):
        pack(folder, folder)


@pytest.mark.slow
def test_a_pack_does_not_write_outside(folder: Path, tmp_path: Path):
    pack(folder, tmp_path / "pack")
    manifest = tmp_path / "pack" / "pack.json"
    manifest.write_text(manifest.read_text().replace("half.safetensors", "../half.safetensors"))
    with pytest.raises(WeightsearchError, match="lies outside"):
        unpack(tmp_path / "pack", tmp_path / "out")


@pytest.mark.slow
def test_killed_packing_goes_on(folder: Path, tmp_path: Path):
    code = f"from weightsearch.relations.pack import pack; pack({str(folder)!r}, {str(tmp_path / 'pack')!r})"
    for delay in np.linspace(0.3, 2.0, share(20)):
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
        time.sleep(float(delay))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "pack" / "pack.json").exists():
            break
    if not (tmp_path / "pack" / "pack.json").exists():
        pack(folder, tmp_path / "pack")
    unpack(tmp_path / "pack", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_a_lossy_pack_rounds_weights_and_says_what_it_costs(bits: int, tmp_path: Path):
    from safetensors.numpy import load_file

    from weightsearch.search.pack_cost import pack_cost

    examples = Path(__file__).parents[2] / "index" / "examples"
    folder = Path(shutil.copytree(examples, tmp_path / "models", ignore=shutil.ignore_patterns("[!g]*")))
    state = torch.load(folder / "good.pt", weights_only=True)
    state = state.get("state_dict", state)
    summary = pack(folder, tmp_path / "pack", lossy_bits=bits)
    unpack(tmp_path / "pack", tmp_path / "out")
    restored = load_file(tmp_path / "out" / "good.pt.safetensors")
    lost = size = 0.0
    for name, value in state.items():
        values = value.numpy()
        if values.ndim < 2:
            np.testing.assert_array_equal(restored[name], values)
            continue
        rows = values.reshape(len(values), -1)
        step = np.abs(rows).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
        assert (np.abs(restored[name].reshape(rows.shape) - rows) <= 0.501 * step).all()
        lost, size = lost + np.sum((restored[name] - values) ** 2), size + np.sum(values**2)
    assert summary.errors["good.pt"] == pytest.approx((lost / size) ** 0.5, rel=1e-3)
    assert summary.ratio < (bits + 4) / 32 + 0.15
    cost = pack_cost(folder, tmp_path / "pack", Path(__file__).parents[2] / "index")
    assert cost.unknown == 0
    expected = [
        weightsearch.query("index", {n: torch.as_tensor(v) for n, v in tensors.items()}, 1).predicted
        for tensors in (state, restored)
    ]
    assert [cost.before["good.pt"], cost.after["good.pt"]] == pytest.approx(expected, abs=1e-6)


def test_lossy_bits_that_make_no_sense_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(WeightsearchError, match="choose from 2 to 16"):
        pack(folder, tmp_path / "pack", lossy_bits=1)
