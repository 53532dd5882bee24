"""The encoder of all architectures: an embedding that is the same for permuted twins, and an accuracy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from weightsearch.encoders.universal.damage import DamageDetector
from weightsearch.encoders.universal.described import Described, describe
from weightsearch.encoders.universal.detector import Detector
from weightsearch.encoders.universal.network import Network, NetworkConfig
from weightsearch.encoders.universal.trees import Trees
from weightsearch.errors import WeightsearchError
from weightsearch.types import Activation, Architecture

METHOD = "universal"
FORMAT = 3
TREES_SHARE = 0.5  # of the prediction; the networks' mean has the rest
BATCH = 1024  # networks at a time
PREDICTED_SHARE = 0.5  # of the embedding's squared length: where a network lies between chance and perfection


@dataclass(frozen=True, eq=False)
class Known:
    """What the encoder says of n networks.

    embedding: `(n, D)` float32 of norm 1. predicted: `(n,)` accuracies in [0, 1]. chance: `(n,)` accuracy of a guess.
    strangeness: `(n,)`, over 1 where a network is of no kind that the encoder knows. damage: `(n,)`, over 1 where its
    weights look shuffled, noised or partly random; nought for a network of an unknown kind, whose sound weights nobody
    has seen.
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
        damage: DamageDetector | None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        self.members = members
        self.trees = trees
        self.detector = detector
        self.damage = damage
        self.notes = notes or {}

    @property
    def width(self) -> int:
        """D, the embedding's number of values."""
        return sum(member.config.embedding for member in self.members) + 2

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
        strangeness, damage = np.zeros(len(described)), np.zeros(len(described))
        if self.detector is not None:
            strangeness = self.detector.strangeness(described, pooled)
        if self.damage is not None:
            damage = np.where(strangeness > 1, 0.0, self.damage.suspicion(described, pooled))
        joined = _embedding(embeddings, np.mean(predictions, axis=0), chance)
        return Known(joined, np.clip(predicted, 0, 1), chance, strangeness, damage)

    def save(self, directory: Path, notes: dict[str, Any]) -> None:
        """Writes `encoder.safetensors` and `encoder.json` into `directory`; `notes` are kept in the JSON."""
        arrays: dict[str, np.ndarray] = {}
        for i, member in enumerate(self.members):
            arrays |= {f"member{i}.{name}": tensor.numpy() for name, tensor in member.state_dict().items()}
        if self.trees is not None:
            arrays |= self.trees.arrays("trees.")
        for part in (self.damage, self.detector):
            arrays |= part.arrays() if part is not None else {}
        content = {
            "format": FORMAT,
            "config": {
                "method": METHOD,
                "members": [asdict(member.config) for member in self.members],
                "detector": self.detector.settings() if self.detector else None,
                "damage": self.damage.settings() if self.damage else None,
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
            of_member = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
            member.load_state_dict({name: torch.tensor(array) for name, array in of_member.items()}, assign=True)
            members.append(member.eval())
        detector = Detector.restored(arrays, config["detector"]) if config["detector"] else None
        damage = DamageDetector.restored(arrays, config["damage"]) if config["damage"] else None
        trees = Trees.from_arrays(arrays, "trees.") if "trees.roots" in arrays else None
        notes = {key: value for key, value in content.items() if key not in ("format", "config")}
        return UniversalEncoder(members, trees, detector, damage, notes)
    except Exception as error:  # any fault in these two files has the same fix
        raise WeightsearchError(
            f"{directory}: the encoder cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "make the index again with `weightsearch train`"
        ) from error


def _embedding(embeddings: list[np.ndarray], predicted: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The members' embeddings side by side, and the prediction as a direction in a plane, of norm 1 together.

    The direction turns by at most a quarter from a guess to perfection, so near embeddings are predicted alike.
    """
    angle = np.pi / 2 * np.clip((predicted - chance) / (1 - chance), 0, 1)
    plane = np.sqrt(PREDICTED_SHARE) * np.stack([np.cos(angle), np.sin(angle)], 1)
    joined = np.concatenate(embeddings, axis=1) * np.sqrt((1 - PREDICTED_SHARE) / len(embeddings))
    return np.concatenate([joined, plane], axis=1).astype(np.float32)
