"""`build_zoo --derive`: copies of a zoo's networks as files, and what each is to its network: a truth to test with."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from weightsearch.checkpoints.state_dict import to_state_dict
from weightsearch.encoders.symmetry import twins
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import DISK_FULL, is_disk_full
from weightsearch.progress import progress_bar
from weightsearch.zoo import derivations
from weightsearch.zoo.derivations import Tensors, is_weight
from weightsearch.zoo.recipes import PRESETS
from weightsearch.zoo.store import Zoo

TRUTH = "truth.json"
FORWARD = "a-to-b"


@dataclass(frozen=True)
class DeriveSummary:
    """What `derive_zoo` wrote: files, and pairs whose relation is known.

    Example:
        >>> DeriveSummary(Path('derived'), networks=2, files=26, pairs=28).pairs
        28
    """

    path: Path
    networks: int
    files: int
    pairs: int


@dataclass(frozen=True)
class Derived:
    """A copy, and what it is to its network: a relation of `weightsearch diff`, and the direction if one is known."""

    name: str
    tensors: Tensors
    relation: str
    direction: str | None = FORWARD


def derive_zoo(
    zoo: str | Path, out: str | Path, *, seed: int = 0, runs: int | None = None, quiet: bool = False
) -> DeriveSummary:
    """Makes copies of the last checkpoint of each run in every way that people do, with the truth in `truth.json`.

    A run's files stand in a folder of their own: `base.safetensors` and the copies of it. `truth.json` lists `pairs` of
    `a`, `b` (paths in `out`), `relation` and `direction`, the networks of neighbouring runs among them, which are
    unrelated. Strengths are drawn with `seed` and the run's number alone.

    Args:
        runs: the first so many; all by default.

    Raises:
        WeightsearchError: `zoo` is none, `out` is there already, or nothing can be written there.

    Example:
        >>> derive_zoo('zoo', 'derived', runs=2, quiet=True).networks
        2
    """
    source, out = Zoo.open(zoo), Path(out)
    if out.exists():
        raise UsageError(f"{out} exists: choose another --out")
    table = source.table()
    last = {run: position for position, run in enumerate(table.run.tolist())}
    positions = [position for _, position in sorted(last.items())][:runs]
    if not positions:
        raise WeightsearchError(f"{source.path} holds no checkpoints: build it first")
    pairs: list[dict[str, str | None]] = []
    bases: list[tuple[str, str]] = []  # file and architecture
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with progress_bar("deriving", len(positions), unit="networks", quiet=quiet) as advance:
            for position in positions:
                run = int(table.run[position])
                place = f"run-{run:05d}"
                (folder / place).mkdir()
                base, copies = _network(source, position, np.random.default_rng([seed, run]))
                base_file = f"{place}/base.safetensors"
                _save(base, folder / base_file)
                bases.append((base_file, str(source.fingerprints[position])))
                for copy in copies:
                    file = f"{place}/{copy.name}.safetensors"
                    _save(copy.tensors, folder / file)
                    pairs.append({"a": base_file, "b": file, "relation": copy.relation, "direction": copy.direction})
                advance()
        files = len(bases) + len(pairs)
        for (a, one), (b, other) in pairwise(bases):
            relation = "independent" if one == other else "unrelated"
            pairs.append({"a": a, "b": b, "relation": relation, "direction": None})
        told = {"zoo": source.info.name, "seed": seed, "pairs": pairs}
        (folder / TRUTH).write_text(json.dumps(told, indent=1) + "\n")
        folder.chmod(0o755)  # of a folder that was temporary
        folder.rename(out)
    except OSError as error:
        reason = DISK_FULL if is_disk_full(error) else error.strerror or error
        raise WeightsearchError(f"cannot write {out}: {reason}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return DeriveSummary(out, len(bases), files, len(pairs))


def _network(zoo: Zoo, position: int, rng: np.random.Generator) -> tuple[Tensors, Iterator[Derived]]:
    """A checkpoint's tensors and its copies."""
    architecture = zoo.architectures[str(zoo.fingerprints[position])]
    weights = zoo.weights([position])
    twin = None
    if zoo.info.preset in PRESETS:  # elsewhere a skip connection may hide that a permutation changes the function
        twin = to_state_dict(twins(weights, architecture, rng)[0], architecture)
    base = to_state_dict(weights[0], architecture)
    return base, (copy for copy in copies_of(base, rng, twin) if _differs(copy, base))


def _differs(copy: Derived, base: Tensors) -> bool:
    """Whether anything became of the network: a weight with nothing to prune or too thin for an adapter stays."""
    same_names = copy.tensors.keys() == base.keys()
    return not same_names or any(
        value.dtype != base[name].dtype or not np.array_equal(value, base[name]) for name, value in copy.tensors.items()
    )


def copies_of(base: Tensors, rng: np.random.Generator, twin: Tensors | None = None) -> Iterator[Derived]:
    """Copies of a network of every kind, with random strengths; `twin` is one that computes the same."""
    same = "same-weights"
    yield Derived("renamed", derivations.renamed(base), same, None)
    if all(value.ndim in (2, 4) for name, value in base.items() if is_weight(name, value)):
        yield Derived("layout", derivations.renamed(derivations.transposed(base)), same, None)
    yield Derived("half", derivations.half_precision(base), same)
    if twin is not None:
        yield Derived("permuted", twin, "same-function", None)
    for bits in (8, 4):
        scheme = str(rng.choice(["tensor", "row", "asymmetric", "group"]))
        yield Derived(f"quantised-{bits}-{scheme}", derivations.quantised(base, bits, scheme), "quantised")
    for scheme in ("magnitude", "global"):
        yield Derived(f"pruned-{scheme}", derivations.pruned(base, float(rng.uniform(0.2, 0.9)), scheme), "pruned")
    yield Derived("noised", derivations.noised(base, float(rng.uniform(0.005, 0.1)), rng), "noised")
    strength = float(rng.uniform(0.02, 0.3))
    yield Derived("lora-merged", derivations.lora_merged(base, 2, strength, rng), "lora-merged")


def _save(tensors: Tensors, path: Path) -> None:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
