"""What people save beside and around weights: it is read, nothing of it is run, and a note says what was met."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests.tensors import assert_close
from weightsearch.checkpoints.named_tensors import read_tensors
from weightsearch.checkpoints.state_dict import align, from_state_dict, read_checkpoint
from weightsearch.errors import WeightsearchError

SIZES = (4, 3, 2)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


STATE = network().state_dict()
OTHER = network(1).state_dict()
EVERYDAY: dict[str, Any] = {
    "NumPy scalar": {"model": STATE, "best": np.float64(0.5)},
    "NumPy array": {"model": STATE, "history": np.array([0.25, 0.5])},
    "Namespace": {"model": STATE, "args": argparse.Namespace(lr=0.1)},
    "path": {"model": STATE, "hyper_parameters": {"data": pathlib.PurePosixPath("/a/b")}},
    "defaultdict": {"model": STATE, "metrics": collections.defaultdict(list, val=[0.1])},
    "datetime": {"model": STATE, "when": datetime.datetime(2026, 1, 2, 3, 4, 5, 6)},
    "set": {"model": STATE, "classes": {1, 2}},
    "random state": {"model": STATE, "rng": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()},
    "whole module": network(),
    "whole module in a dictionary": {"model": network(), "epoch": 1},
    "tuple": (STATE, {"state": {}, "param_groups": []}),
    "compiled": {"state_dict": {f"_orig_mod.{name}": value for name, value in STATE.items()}},
    **{
        key: {key: STATE, "epoch": 2}
        for key in (
            "net",
            "weights",
            "model_state",
            "params",
            "params_ema",
            "ema",
            "model_ema",
            "generator",
            "anything",
        )
    },
    "network and average": {"ema": OTHER, "model": STATE},
    "two networks": {"discriminator": OTHER, "generator": STATE},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", EVERYDAY)
def test_everyday_files_are_read(form: str, legacy: bool, tmp_path: Path):
    torch.save(EVERYDAY[form], tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    arrays = read_tensors(tmp_path / "a.pt").arrays
    assert list(arrays) == list(STATE)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, STATE[name].numpy())


def test_plain_values_are_read_out_of_placeholders(tmp_path: Path):
    saved = {
        "model": STATE,
        **{key: value for form in list(EVERYDAY)[:6] for key, value in EVERYDAY[form].items() if key != "model"},
    }
    torch.save(saved, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").metadata == {
        "best": 0.5,
        "history": [0.25, 0.5],
        "args": {"lr": 0.1},
        "hyper_parameters": {"data": "/a/b"},
        "metrics": {"val": [0.1]},
        "when": "2026-01-02T03:04:05.000006",
    }


def test_of_several_networks_one_is_taken_and_a_key_chooses(tmp_path: Path):
    torch.save({"ema": OTHER, "model": STATE}, tmp_path / "a.pt")
    assert "--weights KEY chooses another: ema" in read_checkpoint(tmp_path / "a.pt").notes[0]
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.pt", "ema").arrays["0.weight"], OTHER["0.weight"].numpy())
    with pytest.raises(WeightsearchError, match="no such weights; there are: ema, model"):
        read_tensors(tmp_path / "a.pt", "teacher")
    torch.save({"first": OTHER, "second": STATE}, tmp_path / "a.pt")
    with pytest.raises(WeightsearchError, match=r"several networks \(first, second\); choose one with --weights KEY"):
        read_checkpoint(tmp_path / "a.pt")


def test_bare_pickles_are_read(tmp_path: Path):
    for protocol in range(2, 6):
        for state in (STATE, {name: value.numpy() for name, value in STATE.items()}):
            (tmp_path / "a.pkl").write_bytes(pickle.dumps(state, protocol=protocol))
            np.testing.assert_array_equal(
                read_tensors(tmp_path / "a.pkl").arrays["2.weight"], STATE["2.weight"].numpy()
            )


def calling_pickles(marker: str) -> dict[str, bytes]:
    """A call of `os.mkdir` by every instruction that can make one; each a pickle that `pickle.loads` obeys."""
    argument = b"X" + len(marker).to_bytes(4, "little") + marker.encode()
    return {
        "REDUCE": b"\x80\x02cos\nmkdir\n" + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"ios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + argument + b"o.",
        "NEWOBJ": b"\x80\x02cos\nmkdir\n" + argument + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\nmkdir\n" + argument + b"\x85}\x92.",
        "BUILD": b"\x80\x02cos\nmkdir\n" + argument + b"\x85R}X\x01\x00\x00\x00aK\x01sb.",
        "EXT1": b"\x80\x02\x82\x01)R.",
        "PERSID": b"Pos.mkdir\n.",
    }


def test_nothing_is_imported_or_called_because_a_file_names_it(tmp_path: Path):
    """Every instruction that can call, in a process whose audit hook notes imports, code and the making of folders."""
    marker = tmp_path / "made"
    pickles = calling_pickles(str(marker))
    obeyed = pickle.loads(pickles["REDUCE"])
    assert obeyed is None
    assert marker.is_dir()  # so the files are as dangerous as they are meant to be
    marker.rmdir()
    for name, content in pickles.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    code = """
import sys
from pathlib import Path
from weightsearch.checkpoints.formats import read_content
import weightsearch.checkpoints.pickle_values
folder = Path(sys.argv[1])
files = sorted(folder.glob("*.pkl"))
watched = []
sys.addaudithook(lambda event, _: watched.append(event) if event in ("import", "os.mkdir", "exec", "compile") else None)
for file in files:
    try:
        read_content(file)
    except Exception as error:
        assert type(error).__name__ == "WeightsearchError", error
print(len(files), watched)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(pickles)} []"
    assert not marker.exists()


def test_one_network_is_one_network():
    weight = torch.arange(6.0).reshape(2, 3)
    plain = from_state_dict({"a.weight": weight, "b.weight": weight + 1})
    shared = torch.arange(6.0).reshape(2, 3)
    again = [
        {"model.a.weight": weight, "model.b.weight": weight + 1, "criterion.weight": torch.ones(3)},
        {"online_model.a.weight": weight, "online_model.b.weight": weight + 1,
         "ema_model.a.weight": weight + 5, "ema_model.b.weight": weight},
        {"a.weight": shared, "b.weight": weight + 1, "c.weight": shared},
        {"module._orig_mod.a.weight": weight, "module._orig_mod.b.weight": weight + 1},
    ]  # fmt: skip
    assert [from_state_dict(state).id for state in again] == [plain.id] * len(again)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", ["weight_norm", "parametrized weight_norm", "spectral_norm", "prune"])
def test_reparametrised_layers_are_those_that_they_compute(wrap: str):
    layer = nn.Conv2d(3, 4, 2)
    if wrap == "weight_norm":
        nn.utils.weight_norm(layer)
    elif wrap == "parametrized weight_norm":
        nn.utils.parametrizations.weight_norm(layer)
    elif wrap == "spectral_norm":
        nn.utils.spectral_norm(layer)
        layer(torch.ones(1, 3, 4, 4))
    else:
        prune.l1_unstructured(layer, "weight", 0.5)
    layer.eval()
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = layer(images)
    checkpoint = from_state_dict(layer.state_dict())
    [matrix] = checkpoint.architecture.matrices(checkpoint.weights)
    rebuilt = nn.Conv2d(3, 4, 2)
    rebuilt.load_state_dict(
        {"weight": torch.from_numpy(matrix[:, :-1].reshape(4, 3, 2, 2)), "bias": torch.from_numpy(matrix[:, -1].copy())}
    )
    assert_close(rebuilt(images), expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_is_the_change_that_it_makes(tmp_path: Path):
    from safetensors.torch import save_file

    a, b = torch.randn(2, 5), torch.randn(3, 2)
    name = "base_model.model.layer.lora_{}.weight"
    save_file({name.format("A"): a, name.format("B"): b}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    read = read_tensors(tmp_path / "adapter_model.safetensors")
    np.testing.assert_allclose(read.arrays["layer.lora_delta"], (4 * b @ a).numpy(), rtol=1e-5)
    assert "LoRA" in " ".join(read.notes)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"l.qweight": torch.ones(2, 2).int(), "l.scales": torch.ones(2).half()}, "quantised"),
        ({"l.W_q": torch.ones(2, 2).byte(), "l.scale": torch.ones(2), "l.zero": torch.ones(2)}, "quantised"),
        ({"l.codes": torch.ones(2, 2).short(), "l.codebooks": torch.ones(1, 4, 1, 2).half()}, "quantised"),
        ({"l.weight": torch.ones(4, 1).byte(), "l.weight.absmax": torch.ones(2)}, "quantised"),
        ({f"l{i}.weight": torch.empty(0) for i in range(3)} | {"norm": torch.ones(2)}, "ZeRO-3"),
    ],
)
def test_leftovers_never_become_a_network(state: dict[str, torch.Tensor], named: str):
    with pytest.raises(WeightsearchError, match=named):
        from_state_dict(state)


def test_a_file_without_order_is_told_by_names_then_by_shapes_then_guessed(tmp_path: Path):
    from safetensors.torch import save_file

    def state(*names: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.full((2, 2), float(i)) for i, name in enumerate(names)}

    known = [from_state_dict(state("one", "two", "three")).architecture]
    save_file(state("one", "two", "three"), tmp_path / "a.safetensors")
    named = align(read_checkpoint(tmp_path / "a.safetensors"), known)
    assert named.weights.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert named.notes == ()
    save_file(state("eins", "zwei", "drei"), tmp_path / "a.safetensors")
    assert "order of its layers is a guess" in align(read_checkpoint(tmp_path / "a.safetensors"), known).notes[0]


def test_the_score_that_a_lightning_callback_watches_is_known(tmp_path: Path):
    watched = {"monitor": "val_acc", "current_score": torch.tensor(0.75), "best_model_score": torch.tensor(0.875)}
    callbacks = {"ModelCheckpoint{'monitor': 'val_acc'}": watched, "EarlyStopping{}": {"wait_count": 1}}
    torch.save({"state_dict": STATE, "callbacks": callbacks, "epoch": 1}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").metadata == {"epoch": 1, "val_acc": 0.75}
