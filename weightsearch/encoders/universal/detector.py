"""Which networks are of no kind that the encoder was fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsearch.encoders.universal.described import Described

SQUASH = 4.0  # standardised features beyond are drawn towards it
LARGEST = 5.0  # how many usual residuals a feature counts for at most
UNSEEN = 2.0  # the least strangeness of a network with a construction that no known network has


@dataclass(frozen=True)
class Detector:
    """Tells a network of an unknown kind by what it is built of, or by what is left of its pooled features without
    those directions in which known networks differ.

    centre, scale: `(F,)` of the pooled features. axes: `(F, k)` orthonormal. usual: `(F,)`, what known networks leave.
    limit: 95 in 100 held-out runs leave less. constructions: all that known networks are built of.
    """

    centre: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    usual: np.ndarray
    limit: float
    constructions: frozenset[str]

    def standardised(self, pooled: np.ndarray) -> np.ndarray:
        return SQUASH * np.tanh((pooled - self.centre) / (SQUASH * self.scale))

    def left(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled features `(n, F)` -> what the axes leave of them, standardised, `(n, F)`."""
        z = self.standardised(pooled)
        return z - (z @ self.axes) @ self.axes.T

    def residual(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled features `(n, F)` -> `(n,)`."""
        return np.sqrt((np.minimum(np.abs(self.left(pooled)) / self.usual, LARGEST) ** 2).mean(1))

    def unseen(self, described: Described) -> np.ndarray:
        """Whether each network has a construction that no known one has, `(n,)`."""
        return np.array([not built <= self.constructions for built in described.built], bool)

    def strangeness(self, described: Described, pooled: np.ndarray) -> np.ndarray:
        """`(n,)`, over 1 where a network is of no kind that the encoder knows."""
        strangeness = self.residual(pooled) / self.limit
        return np.where(self.unseen(described), np.maximum(strangeness, UNSEEN), strangeness)

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"detector.{name}": getattr(self, name) for name in ("centre", "scale", "axes", "usual")}

    def settings(self) -> dict[str, Any]:
        return {"limit": self.limit, "constructions": sorted(self.constructions)}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> Detector:
        """From what `arrays` and `settings` gave."""
        named = {name: arrays[f"detector.{name}"] for name in ("centre", "scale", "axes", "usual")}
        return cls(**named, limit=settings["limit"], constructions=frozenset(settings["constructions"]))
