"""Sound files of every kind that is read, small enough to be mutated in a moment."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

BESIDE: dict[str, Any] = {
    "epoch": 3, "test_acc": 0.5, "config": {"lr": 0.1, "name": "a"}, "history": [1, 2.5, "x", None],
}  # fmt: skip


def seeds(folder: Path) -> list[Path]:
    """Those that need a library of their own are left out where it is missing."""
    generator = np.random.default_rng(0)
    shapes = {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (2, 3)}
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    _texts(folder)
    _own(folder, arrays)
    for write in (_hdf5, _onnx, _gguf, _flax, _tables, _events):
        with suppress(ImportError):
            write(folder, arrays)
    return sorted(folder.iterdir())


def _texts(folder: Path) -> None:
    (folder / "side.json").write_text(json.dumps(BESIDE))
    state = {"log_history": [{"step": 1, "eval_loss": 0.5}], "global_step": 5, "epoch": 0.5}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "table.csv").write_text("path,test_accuracy,run,lr\na.pt,0.5,r1,0.1\nb.pt,0.75,r2,0.01\n")
    (folder / "table.jsonl").write_text('{"path": "a.pt", "acc": 0.5}\n{"path": "b.pt", "acc": 1, "x": [1]}\n')
    (folder / "layout.csv").write_text(
        'varname,start_idx,end_idx,shape\nd/bias:0,0,2,"(2,)"\nd/kernel:0,2,8,"(3, 2)"\n'
    )
    index = {"weight_map": {"0.weight": "a.safetensors"}, "metadata": {"total_size": 1}}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))


def _own(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Of PyTorch, safetensors and NumPy."""
    import torch
    from safetensors.numpy import save_file

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"state_dict": tensors, **BESIDE}, folder / "zip.pt")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": tensors, "half": torch.randn(3).half(), **BESIDE}, folder / "wrapped.ckpt")
    save_file(arrays, folder / "a.safetensors", metadata={"epoch": "3", "config": json.dumps(BESIDE["config"])})
    np.savez(folder / "a.npz", **arrays)
    np.savez_compressed(folder / "b.npz", **arrays, test_acc=0.5)


def _hdf5(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """A Keras 2 model and Keras 3 weights."""
    import h5py

    with h5py.File(folder / "keras.h5", "w") as file:
        group = file.create_group("model_weights/dense")
        group.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        group["dense/kernel:0"], group["dense/bias:0"] = arrays["0.weight"].T, arrays["0.bias"]
        file["model_weights"].attrs["layer_names"] = [b"dense"]
        file.attrs["model_config"] = json.dumps({"config": {"layers": [{"class_name": "Dense", "config": {}}]}})
    with h5py.File(folder / "keras.weights.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", data=arrays["0.weight"].T, compression="gzip", chunks=(2, 2))
        file["layers/dense/vars/1"] = arrays["0.bias"]


def _onnx(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    held = [numpy_helper.from_array(arrays[name], name) for name in ("0.weight", "0.bias")]
    node = helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["y"], transB=1)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", 4), ("y", 3))]
    save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], held)), str(folder / "m.onnx"))


def _gguf(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(folder / "m.gguf"), "llama")
    writer.add_name("a")
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _flax(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    import msgpack

    def extension(array: np.ndarray) -> Any:
        content = (array.shape, array.dtype.name, array.tobytes())
        return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))

    layer = {"kernel": extension(arrays["0.weight"].T), "bias": extension(arrays["0.bias"])}
    (folder / "m.msgpack").write_bytes(msgpack.packb({"params": {"Dense_0": layer}}, use_bin_type=True))


def _tables(folder: Path, _: dict[str, np.ndarray]) -> None:
    import duckdb

    rows = "SELECT 'a.pt' AS path, 0.5 AS test_accuracy, {'lr': 0.1} AS config, DATE '2026-01-02' AS day"
    duckdb.connect().execute(f"COPY ({rows}) TO '{folder / 'table.parquet'}'")


def _events(folder: Path, _: dict[str, np.ndarray]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    with (folder / "events.out.tfevents.1").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(file_version="brain.Event:2").SerializeToString())
        for step in range(3):
            summary = Summary(value=[Summary.Value(tag="val_acc", simple_value=0.5)])
            writer.write(Event(step=step, summary=summary).SerializeToString())
        writer.flush()
