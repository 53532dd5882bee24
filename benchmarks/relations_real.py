"""What the rules say of real files of three publishers, beside what is known of them.

    pip download --no-deps -d wheels silero-vad==5.1.2       # and 6.0.0, 6.2.0, 6.2.3, livekit-plugins-silero==1.8.9,
    python benchmarks/relations_real.py wheels               # faster-whisper==1.2.1

Writes benchmarks/results/relations_real.json and .md. Files are read by the `onnx` package and by `torch.jit`; a
network of several in one file is taken by the beginning of its tensors' names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

from weightsearch.relations import Comparison, compare, sign

RESULTS = Path(__file__).parent / "results"
Tensors = dict[str, np.ndarray]


def read(path: Path) -> Tensors:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".jit":
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
        return {name: value.float().numpy() for name, value in state.items() if value.is_floating_point()}
    found: Tensors = {}
    _collect(onnx.load(str(path)).graph, "", found)
    return found


def _collect(graph: onnx.GraphProto, prefix: str, found: Tensors) -> None:
    """Initialisers and constants of a graph and of the branches of its conditions."""
    for initializer in graph.initializer:
        _keep(prefix + initializer.name, initializer, found)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and node.op_type == "Constant":
                _keep(prefix + node.output[0], attribute.t, found)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    _collect(inner, f"{prefix}{node.name or node.op_type}.{attribute.name}.", found)


def _keep(name: str, tensor: onnx.TensorProto, found: Tensors) -> None:
    values = numpy_helper.to_array(tensor)
    if values.dtype.kind == "f" and values.size > 1:
        found[name] = values


def files(wheels: Path, folder: Path) -> dict[str, Path]:
    """Models by `package version/file`."""
    found = {}
    for wheel in sorted(wheels.glob("*.whl")):
        package, version = wheel.name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.endswith((".onnx", ".jit", ".safetensors")) and ".data/" not in member:
                    target = folder / f"{package}-{version}" / Path(member).name
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(archive.read(member))
                    found[f"{package} {version}/{target.name}"] = target
    return found


# a, b, what is known, relations that say so; None where nothing is known
QUESTIONS = [
    ("livekit_plugins_silero 1.8.9/silero_vad.onnx", "silero_vad 6.2.0/silero_vad.onnx",
     "two publishers, one file", {"identical"}),
    ("silero_vad 5.1.2/silero_vad_half.onnx", "silero_vad 6.0.0/silero_vad_half.onnx",
     "a stale file", {"identical"}),
    ("silero_vad 5.1.2/silero_vad_half.onnx", "silero_vad 6.2.3/silero_vad_half.onnx",
     "a stale file", {"identical"}),
    ("silero_vad 5.1.2/silero_vad_half.onnx", "silero_vad 5.1.2/silero_vad.onnx",
     "v5's 16 kHz branch in half precision", {"contains"}),
    ("silero_vad 6.0.0/silero_vad_half.onnx", "silero_vad 6.0.0/silero_vad.onnx",
     "of another training than its release", {"shares"}),
    ("silero_vad 6.0.0/silero_vad_16k_op15.onnx", "faster_whisper 1.2.1/silero_vad_v6.onnx",
     "the same, gates re-ordered", {"same-function", "same-weights"}),
    ("silero_vad 5.1.2/silero_vad.jit", "silero_vad 5.1.2/silero_vad.onnx",
     "one release in two formats", {"same-weights", "same-function"}),
    ("silero_vad 6.0.0/silero_vad.jit", "silero_vad 6.0.0/silero_vad.onnx",
     "one release in two formats", {"same-weights", "same-function"}),
    ("silero_vad 6.2.0/silero_vad.jit", "silero_vad 6.2.0/silero_vad.onnx",
     "one release in two formats", {"same-weights", "same-function"}),
    ("silero_vad 5.1.2/silero_vad.onnx", "silero_vad 6.0.0/silero_vad.onnx",
     "trained independently, one Fourier basis", {"shares"}),
    ("silero_vad 6.0.0/silero_vad.onnx", "silero_vad 6.2.0/silero_vad.onnx",
     "trained independently, one Fourier basis", {"shares"}),
    ("silero_vad 5.1.2/silero_vad.onnx", "silero_vad 6.2.0/silero_vad.onnx",
     "trained independently, one Fourier basis", {"shares"}),
    ("silero_vad 6.2.0/silero_vad.onnx", "silero_vad 6.2.3/silero_vad.onnx",
     "two releases", None),
    ("silero_vad 6.2.3/silero_vad_16k.safetensors", "silero_vad 6.2.3/silero_vad_16k_op15.onnx",
     "a relative, cosines .90 to .98", {"relative"}),
    ("silero_vad 6.2.3/silero_vad_16k.safetensors", "silero_vad 6.2.3/silero_vad.onnx",
     "a relative of its 16 kHz network", {"relative"}),
    ("silero_vad 6.2.3/silero_vad_16k_op15.onnx", "silero_vad 6.2.3/silero_vad_16k_sequence.onnx",
     "one release, two graphs", None),
    ("silero_vad 6.2.3/silero_vad_16k_op15.onnx", "silero_vad 6.2.3/silero_vad_openvino_16k.onnx",
     "one release, two graphs", None),
    ("silero_vad 6.2.3/silero_vad_op18_ifless.onnx", "silero_vad 6.2.3/silero_vad.onnx",
     "one release, two graphs", None),
]  # fmt: skip


def ask(a: Path, b: Path) -> Comparison:
    left, right = read(a), read(b)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b)]
    return compare(left, right, sign(left, file_hash=hashes[0]), sign(right, file_hash=hashes[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        known = files(options.wheels, Path(folder))
        for a, b, truth, accepted in QUESTIONS:
            start = time.perf_counter()
            answer = ask(known[a], known[b])
            seconds = time.perf_counter() - start
            right = None if accepted is None else str(answer.relation) in accepted
            rows.append(
                {
                    "a": a, "b": b, "known": truth, "relation": str(answer.relation), "summary": answer.summary,
                    "right": right, "evidence": answer.evidence, "seconds": round(seconds, 3),
                }
            )  # fmt: skip
            print(
                "ok   " if right else "     " if right is None else "WRONG",
                a,
                "|",
                b,
                "|",
                answer.relation,
                "|",
                answer.summary,
            )
    (RESULTS / "relations_real.json").write_text(json.dumps(rows, indent=1))
    lines = ["| a | b | known | said | why |", "|---|---|---|---|---|"]
    lines += [f"| {r['a']} | {r['b']} | {r['known']} | {r['relation']} | {r['summary']} |" for r in rows]
    (RESULTS / "relations_real.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
