"""The encoder of all architectures: an embedding that is the same for permuted twins, and an accuracy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from weightsearch.encoders.universal.described import Described, describe
from weightsearch.encoders.universal.network import Network, NetworkConfig
from weightsearch.encoders.universal.trees import Trees
from weightsearch.errors import WeightsearchError
from weightsearch.types import Activation, Architecture

METHOD = "universal"
FORMAT = 2
TREES_SHARE = 0.5  # of the prediction; the networks' mean has the rest
BATCH = 1024  # networks at a time
SQUASH = 4.0
UNSEEN = 2.0  # the least strangeness of a network with a construction that no known network has


@dataclass(frozen=True)
class Detector:
    """Tells networks of kinds that the encoder was not fitted on, by what they are built of, and by what is left of
    their features without those directions in which known networks differ.

    centre, scale: `(F,)` of the pooled features. axes: `(F, k)` orthonormal. limit: 95 in 100 held-out networks leave
    less. constructions: all that known networks are built of; None where an older version did not keep it.
    """

    centre: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    limit: float
    constructions: frozenset[str] | None

    def strangeness(self, described: Described, pooled: np.ndarray) -> np.ndarray:
        """`(n,)`, over 1 where a network is of no kind that the encoder knows."""
        strangeness = self.residual(pooled) / self.limit
        if self.constructions is None:
            return strangeness
        unseen = np.array([not built <= self.constructions for built in described.built], bool)
        return np.where(unseen, np.maximum(strangeness, UNSEEN), strangeness)

    def residual(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled features `(n, F)` -> `(n,)`."""
        z = SQUASH * np.tanh((pooled - self.centre) / (SQUASH * self.scale))
        return np.sqrt(((z - (z @ self.axes) @ self.axes.T) ** 2).mean(1))


@dataclass(frozen=True, eq=False)
class Known:
    """What the encoder says of n networks.

    embedding: `(n, D)` float32 of norm 1. predicted: `(n,)` accuracies in [0, 1]. chance: `(n,)` accuracy of a guess.
    strangeness: `(n,)`, over 1 where a network is of no kind that the encoder knows. damage: `(n,)`, over 1 where its
    weights look shuffled, noised or partly random.
    """

    embedding: np.ndarray
    predicted: np.ndarray
    chance: np.ndarray
    strangeness: np.ndarray
    damage: np.ndarray


class UniversalEncoder:
    """An ensemble of networks on layers' features, with trees beside it, and two detectors."""

    activations: tuple[Activation, ...] = ()  # it goes by none

    def __init__(
        self,
        members: list[Network],
        trees: Trees | None,
        detector: Detector | None,
        damage: Trees | None,
        damage_limit: float = 0.0,
        notes: dict[str, Any] | None = None,
    ) -> None:
        self.members = members
        self.trees = trees
        self.detector = detector
        self.damage = damage
        self.damage_limit = damage_limit
        self.notes = notes or {}

    @property
    def width(self) -> int:
        """D, the embedding's number of values."""
        return sum(member.config.embedding for member in self.members)

    def embed(self, weights: np.ndarray, architecture: Architecture) -> Known:
        """Flat weights `(n, P)` of one architecture; raises WeightsearchError where it has no matrix at all."""
        return self.know(describe(weights, architecture))

    @torch.no_grad()
    def know(self, described: Described) -> Known:
        """Described networks, of any architectures."""
        parts = []
        for start in range(0, len(described), BATCH):
            parts.append(self._know(described.take(np.arange(start, min(start + BATCH, len(described))))))
        if not parts:
            empty = np.empty(0)
            return Known(np.empty((0, self.width), np.float32), empty, empty, empty, empty)
        return Known(*(np.concatenate([getattr(part, name) for part in parts]) for name in Known.__annotations__))

    def _know(self, described: Described) -> Known:
        pooled = described.pooled()
        guess = torch.from_numpy(described.chance)
        embeddings, predictions = [], []
        for member in self.members:
            embedding = member.embed(member.normalise(pooled))
            embeddings.append(embedding.numpy())
            predictions.append(member.predict(embedding, guess).double().numpy())
        predicted = np.mean(predictions, axis=0)
        chance = described.chance.astype(np.float64)
        if self.trees is not None:
            grown = chance + (1 - chance) * self.trees.predict(pooled)
            predicted = (1 - TREES_SHARE) * predicted + TREES_SHARE * grown
        strangeness = np.zeros(len(described))
        if self.detector is not None:
            strangeness = self.detector.strangeness(described, pooled)
        damage = np.zeros(len(described))
        if self.damage is not None:
            damage = _sigmoid(self.damage.predict(pooled)) / self.damage_limit
        joined = np.concatenate(embeddings, axis=1) / np.sqrt(len(self.members), dtype=np.float32)
        return Known(joined.astype(np.float32), np.clip(predicted, 0, 1), chance, strangeness, damage)

    def save(self, directory: Path, notes: dict[str, Any]) -> None:
        """Writes `encoder.safetensors` and `encoder.json` into `directory`; `notes` are kept in the JSON."""
        arrays: dict[str, np.ndarray] = {}
        for i, member in enumerate(self.members):
            arrays |= {f"member{i}.{name}": tensor.numpy() for name, tensor in member.state_dict().items()}
        if self.trees is not None:
            arrays |= self.trees.arrays("trees.")
        if self.damage is not None:
            arrays |= self.damage.arrays("damage.")
        if self.detector is not None:
            arrays |= {f"detector.{name}": getattr(self.detector, name) for name in ("centre", "scale", "axes")}
        constructions = self.detector.constructions if self.detector else None
        content = {
            "format": FORMAT,
            "config": {
                "method": METHOD,
                "members": [asdict(member.config) for member in self.members],
                "detector_limit": self.detector.limit if self.detector else None,
                "constructions": sorted(constructions) if constructions is not None else None,
                "damage_limit": self.damage_limit,
            },
            **self.notes,
            **notes,
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        (directory / "encoder.safetensors").write_bytes(save(arrays))
        (directory / "encoder.json").write_text(json.dumps(content, indent=1) + "\n")


def is_universal(directory: Path) -> bool:
    """Whether the encoder in `directory` is one of all architectures."""
    try:
        return json.loads((directory / "encoder.json").read_text())["config"]["method"] == METHOD
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_universal(directory: Path) -> UniversalEncoder:
    """The encoder in `directory`. A missing or damaged file gives one line."""
    try:
        content = json.loads((directory / "encoder.json").read_text())
        config = content["config"]
        arrays = load_file(directory / "encoder.safetensors")
        members = []
        for i, sizes in enumerate(config["members"]):
            with torch.device("meta"):
                member = Network(NetworkConfig(**sizes))
            prefix = f"member{i}."
            own = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
            member.load_state_dict({name: torch.tensor(array) for name, array in own.items()}, assign=True)
            members.append(member.eval())
        detector = None
        if config["detector_limit"] is not None:
            centre, scale, axes = (arrays[f"detector.{name}"] for name in ("centre", "scale", "axes"))
            known = config.get("constructions")
            detector = Detector(
                centre, scale, axes, config["detector_limit"], None if known is None else frozenset(known)
            )
        trees = Trees.from_arrays(arrays, "trees.") if "trees.roots" in arrays else None
        damage = Trees.from_arrays(arrays, "damage.") if "damage.roots" in arrays else None
        notes = {key: value for key, value in content.items() if key not in ("format", "config")}
        return UniversalEncoder(members, trees, detector, damage, config["damage_limit"], notes)
    except Exception as error:  # any fault in these two files has the same fix
        raise WeightsearchError(
            f"{directory}: the encoder cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "make the index again with `weightsearch train`"
        ) from error


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
