"""Which networks have weights that look shuffled, noised or partly random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsearch.encoders.universal.described import Described
from weightsearch.encoders.universal.trees import Trees


@dataclass(frozen=True)
class DamageDetector:
    """Looks at a network as a whole, and at each of its layers among the others, where one alone may be damaged.

    network, layer: trees on `Described.pooled` and on `Described.in_context` whose sums are logits. The limits are
    such sums, which few sound networks reach.
    """

    network: Trees
    layer: Trees
    network_limit: float
    layer_limit: float

    def logits(self, described: Described, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each network as a whole and of its most suspicious layer, `(n,)` each."""
        layers = self.layer.predict(described.in_context())
        return self.network.predict(pooled), np.maximum.reduceat(layers, described.starts[:-1])

    def suspicion(self, described: Described, pooled: np.ndarray) -> np.ndarray:
        """`(n,)`, over 1 where the weights look damaged."""
        whole, layer = self.logits(described, pooled)
        return np.exp(np.clip(np.maximum(whole - self.network_limit, layer - self.layer_limit), -20, 20))

    def arrays(self) -> dict[str, np.ndarray]:
        return self.network.arrays("damage.network.") | self.layer.arrays("damage.layer.")

    def settings(self) -> dict[str, Any]:
        return {"network_limit": self.network_limit, "layer_limit": self.layer_limit}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> DamageDetector:
        """From what `arrays` and `settings` gave."""
        network, layer = (Trees.from_arrays(arrays, f"damage.{name}.") for name in ("network", "layer"))
        return cls(network, layer, **settings)
