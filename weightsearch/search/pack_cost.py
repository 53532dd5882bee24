"""What rounding cost a pack's checkpoints, in the accuracy that an index predicts of them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from weightsearch.errors import WeightsearchError
from weightsearch.relations.open_files import open_file
from weightsearch.relations.pack import MANIFEST, unpack
from weightsearch.search.index import Index
from weightsearch.types import Target


@dataclass(frozen=True)
class PackCost:
    """What is predicted `before` and `after` rounding by files' paths; `unknown` counts those without a prediction."""

    before: dict[str, float]
    after: dict[str, float]
    unknown: int
    target: Target = field(default_factory=Target)

    def to_text(self) -> str:
        label = f"predicted {self.target.label}"
        if not self.before:
            return f"cost in {label} unknown: the index predicts none of these {self.unknown} files"
        changes = {path: self.after[path] - before for path, before in self.before.items()}
        worst = min(changes, key=lambda path: float(self.target.quality(changes[path])))
        mean = sum(changes.values()) / len(changes)
        text = (
            f"{label} of {len(changes)} files: {mean:+.4f} on average, at worst {changes[worst]:+.4f} "
            f"({worst}: {self.before[worst]:.3f} to {self.after[worst]:.3f})"
        )
        return text + (f"; {self.unknown} files are of architectures that the index does not know" * bool(self.unknown))


def pack_cost(folder: str | Path, packed: str | Path, index: Index | str | Path) -> PackCost:
    """Asks an index of each file of `folder`, and of what its pack made with `lossy_bits` gives back.

    Raises WeightsearchError for an index that cannot be opened.
    """
    opened = index if isinstance(index, Index) else Index.open(index)
    files = json.loads((Path(packed) / MANIFEST).read_text())["files"]
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    unknown = 0
    with tempfile.TemporaryDirectory() as place:
        for file in files:
            if "rounded_to_bits" not in file:
                continue
            unpack(packed, place, file["path"])
            restored = Path(place) / file["path"]
            try:
                first, second = (
                    opened.query(dict(open_file(path).tensors), 1).predicted
                    for path in (Path(folder) / file["original"], restored)
                )
            except WeightsearchError:
                unknown += 1
                continue
            finally:
                restored.unlink()
            before[file["original"]], after[file["original"]] = first, second
    return PackCost(before, after, unknown, opened.target)
