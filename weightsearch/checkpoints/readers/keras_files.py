"""Keras: `.keras`, `.weights.h5` and the older `.h5`. Configurations are read as JSON; no layer is built, no code run.

Layouts: https://github.com/keras-team/keras/blob/master/keras/src/saving/saving_lib.py and
https://github.com/keras-team/keras/blob/master/keras/src/legacy/saving/legacy_h5_format.py
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.readers.channels_last import NORM_NAMES, after_flatten, kernel_to_torch
from weightsearch.checkpoints.readers.libraries import library
from weightsearch.checkpoints.readers.limits import Allowance, natural
from weightsearch.checkpoints.tensors import Content
from weightsearch.errors import WeightsearchError

# What the variables of a layer are, in the order in which Keras 3 numbers them.
_VARIABLES = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
    "GroupNormalization": ("gamma", "beta"),
    "Embedding": ("embeddings",),
    "SeparableConv1D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
}
_BY_FLAG = {"gamma": "scale", "beta": "center", "bias": "use_bias"}
MAX_DEPTH = 20


def read_keras_file(path: Path) -> Content:
    """A `.keras` zip, whose sizes were checked: `config.json` and `model.weights.h5`."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json")) if "config.json" in archive.namelist() else None
        return _read(BytesIO(archive.read("model.weights.h5")), config, archive.getinfo("model.weights.h5").file_size)


def read_h5(path: Path) -> Content:
    """An HDF5 file of a model or of weights alone, by Keras 2 or 3."""
    return _read(path, None, path.stat().st_size)


def _read(source: Any, config: Any, size: int) -> Content:
    h5py = library("h5py", "HDF5 files")
    try:
        with h5py.File(source, "r") as file:
            if config is None and "model_config" in file.attrs:
                text = file.attrs["model_config"]
                config = json.loads(text.decode() if isinstance(text, bytes) else text)
            root = file.get("model_weights", file)
            variables = list(_variables(h5py, root, "", Allowance(size), 0))
            if "layer_names" in root.attrs:
                return _older(root, dict(variables), config)
            return _newer(variables, config)
    except (OSError, KeyError, RuntimeError) as error:
        raise WeightsearchError(f"the HDF5 file is damaged ({shown(str(error))}); copy or save it again") from None


def _variables(h5py: Any, group: Any, place: str, allowance: Allowance, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays below a group, by path. Links to other files are not followed."""
    if depth > MAX_DEPTH:
        raise WeightsearchError("its groups are nested too deeply; save it again")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        item = group[name]
        path = f"{place}{name}"
        if isinstance(item, h5py.Group):
            yield from _variables(h5py, item, f"{path}/", allowance, depth + 1)
        elif isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and not item.is_virtual and not item.external:
            allowance.spend(item.size * item.dtype.itemsize)
            yield path, np.asarray(item[()])


def _layers(config: Any) -> list[Mapping[str, Any]]:
    inner = config.get("config") if isinstance(config, Mapping) else None
    layers = inner.get("layers") if isinstance(inner, Mapping) else None
    return [layer for layer in layers if isinstance(layer, Mapping)] if isinstance(layers, list) else []


def _newer(variables: list[tuple[str, np.ndarray]], config: Any) -> Content:
    """Keras 3: `layers/conv2d_1/vars/0`, named by the layer's class and its place among those of its class."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for path, array in variables:
        layer, _, number = path.rpartition("/vars/")
        if layer and not layer.startswith("optimizer") and "/seed_generator" not in layer:
            groups.setdefault(layer, {})[number] = array
    collected = _Collected()
    seen: set[str] = set()
    for place, kind, settings in _places(_layers(config), ""):
        if kind == "Flatten":
            collected.flatten()
        for layer in sorted((name for name in groups if name == place or name.startswith(f"{place}/")), key=natural):
            if layer in seen:
                continue
            seen.add(layer)
            prefix = kind if layer == place else ""
            collected.add(_short(layer), prefix or _kind_of(layer), _named(groups[layer], prefix, settings))
    rest = sorted(set(groups) - seen, key=natural)
    collected.guesses = not seen
    for layer in rest:
        kind = _kind_of(layer)
        collected.add(_short(layer), kind, _named(groups[layer], kind, {}))
    return Content({"state_dict": collected.tensors}, tuple(collected.notes), ordered=not rest)


def _places(layers: list[Mapping[str, Any]], prefix: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Where Keras 3 puts each layer of a configuration: its path, class and settings."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = str(layer.get("class_name"))
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", kind)).lower()
        number = counts.get(snake, 0)
        counts[snake] = number + 1
        place = f"{prefix}layers/{snake}{f'_{number}' if number else ''}"
        settings = layer.get("config")
        if _layers(layer):
            yield from _places(_layers(layer), f"{place}/")
        else:
            yield place, kind, settings if isinstance(settings, Mapping) else {}


def _short(path: str) -> str:
    return ".".join(part for part in path.split("/") if part not in ("layers", "_layer_checkpoint_dependencies"))


def _kind_of(path: str) -> str:
    name = re.sub(r"(_\d+)+$", "", path.rpartition("/")[2])
    return (
        "".join(part.capitalize() for part in name.split("_"))
        .replace("1d", "1D")
        .replace("2d", "2D")
        .replace("3d", "3D")
    )


def _named(numbered: Mapping[str, np.ndarray], kind: str, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables by what they are, where their numbers tell."""
    arrays = [numbered[key] for key in sorted(numbered, key=natural)]
    names = _VARIABLES.get(kind)
    if names is None:
        names = (
            ("kernel", "recurrent_kernel", "bias")
            if len(arrays) > 2 or kind.endswith(("Cell", "RNN"))
            else ("kernel", "bias")
        )
    else:
        names = tuple(name for name in names if settings.get(_BY_FLAG.get(name, ""), True))
    if len(arrays) > len(names):
        names = (*names, *(f"variable_{i}" for i in range(len(names), len(arrays))))
    if len(arrays) == 1 and arrays[0].ndim == 1 and names[0] == "kernel":
        names = ("bias",)
    return dict(zip(names, arrays, strict=False))


def _older(root: Any, variables: Mapping[str, np.ndarray], config: Any) -> Content:
    """Keras 2: a group per layer, whose attributes name its weights: `conv2d/kernel:0`."""
    kinds = {}
    for described in _layers(config):
        settings = described.get("config")
        kinds[settings.get("name") if isinstance(settings, Mapping) else None] = str(described.get("class_name"))
    collected = _Collected()
    for raw in root.attrs["layer_names"]:
        layer = raw.decode() if isinstance(raw, bytes) else str(raw)
        if kinds.get(layer) == "Flatten" or (not kinds and layer.startswith("flatten")):
            collected.flatten()
        by_module: dict[str, dict[str, np.ndarray]] = {}
        for raw_name in root[layer].attrs.get("weight_names", ()):
            name = raw_name.decode() if isinstance(raw_name, bytes) else str(raw_name)
            array = variables.get(f"{layer}/{name}")
            if array is not None:
                module, _, leaf = name.rpartition("/")
                by_module.setdefault(module, {})[leaf.partition(":")[0]] = array
        for module, named in by_module.items():
            collected.add(module.replace("/", ".") or layer, kinds.get(layer) or _kind_of(layer), named)
    return Content({"state_dict": collected.tensors}, tuple(collected.notes))


class _Collected:
    """Layers' arrays as they are added, in PyTorch's layout and under its names."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self.guesses = False  # whether nothing tells which dense layer stands behind a Flatten
        self._channels = 0  # of the last convolution
        self._flattened = False

    def flatten(self) -> None:
        """The layer that comes next sees all places of all channels."""
        self._flattened = self._channels > 0

    def add(self, module: str, kind: str, named: Mapping[str, np.ndarray]) -> None:
        for name, array in named.items():
            if (
                "kernel" in name
                and name.startswith(("kernel", "depthwise", "pointwise", "recurrent"))
                and array.ndim >= 2
            ):
                leaf = {"kernel": "weight", "recurrent_kernel": "weight_hh_l0"}.get(name, f"{name}.weight")
                if name == "kernel" and ("LSTM" in kind.upper() or "GRU" in kind.upper()):
                    leaf = "weight_ih_l0"
                depthwise = name == "depthwise_kernel" or (kind.startswith("Depthwise") and name == "kernel")
                weight = kernel_to_torch(array, depthwise=depthwise)
                if weight.ndim == 2 and leaf == "weight":
                    weight = self._unflattened(module, weight)
                if "GRU" in kind.upper() and weight.ndim == 2:  # update, reset, new -> reset, update, new
                    update, reset, new = np.split(weight, 3)
                    weight = np.concatenate([reset, update, new])
                if weight.ndim > 2:
                    self._channels = weight.shape[1] if "Transpose" in kind else weight.shape[0]
                self.tensors[f"{module}.{leaf}"] = np.ascontiguousarray(weight)
            elif name == "bias" and "LSTM" in kind.upper():
                self.tensors[f"{module}.bias_ih_l0"] = array
            else:
                leaf = "weight" if name == "embeddings" else NORM_NAMES.get(name, name)
                self.tensors[f"{module}.{leaf}"] = array

    def _unflattened(self, module: str, weight: np.ndarray) -> np.ndarray:
        """A dense weight for channels that come first, if it stands behind a flattened convolution."""
        channels, self._channels = self._channels, 0
        guessed = self.guesses and channels > 0 and weight.shape[1] > channels and weight.shape[1] % channels == 0
        if guessed:
            self.notes.append(f"{module} is taken to stand behind a flattened convolution, channels last")
        if not (self._flattened or guessed):
            return weight
        self._flattened = False
        return after_flatten(weight, channels)
