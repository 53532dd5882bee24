"""A peer on the same zoos and splits: permutation-equivariant neural functionals, `nfn` (Zhou et al. 2023).

    pip install 'weightsearch[peers]'
    python benchmarks/peers.py runs/zoos/usps-v1 [--seeds 3] [--epochs 50] [--methods comvex-conv statistics]

The network is the one of arXiv:2302.14040, section 4.1, with statistics pooling: three HNP layers of 16, 16 and 5
channels, ReLU after each; mean, variance and quartiles of every channel of every layer; an MLP of two hidden layers of
1,000; a sigmoid. It is fitted as its authors do (Adam at 1e-3, batches of 8, cross-entropy, the epoch that is best on
validation runs), but on weights standardised layer by layer, since a few runs here all but diverged. The other methods
are fitted with their defaults. All take one thread; seconds are of CPU. Splits are those of `weightsearch evaluate`.
Writes benchmarks/results/peers.json; each finished fit is kept at once.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightsearch.files import write_whole
from weightsearch.metrics import score
from weightsearch.training.data import target_values
from weightsearch.training.fit import fit
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.training.represent import represent_zoo
from weightsearch.training.runner import SplitSpec, load_protocol
from weightsearch.types import Architecture, Method, Target
from weightsearch.zoo.splits import Split
from weightsearch.zoo.store import Zoo

RESULT = Path(__file__).parent / "results" / "peers.json"
CHANNELS, HIDDEN, BATCH, LEARNING_RATE, PATIENCE = (16, 16, 5), 1000, 8, 1e-3, 15
CLIP = 10.0  # standard deviations


class Nfn(nn.Module):
    """HNP layers, statistics of what they give, an MLP. Flat standardised weights `(B, P)` -> logits `(B,)`."""

    def __init__(self, architecture: Architecture, spread: list[tuple[float, float]]) -> None:
        from nfn.common import network_spec_from_wsfeat
        from nfn.layers import HNPLinear, StatFeaturizer, TupleOp

        super().__init__()
        self.architecture, self.spread = architecture, spread
        spec = network_spec_from_wsfeat(self.parts(torch.zeros(1, architecture.size)))
        layers: list[nn.Module] = []
        width = 1
        for channels in CHANNELS:
            layers += [HNPLinear(spec, width, channels), TupleOp(nn.ReLU())]
            width = channels
        pooled = width * StatFeaturizer.get_num_outs(spec)
        self.body = nn.Sequential(*layers, StatFeaturizer(), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(pooled, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def parts(self, weights: Tensor) -> Any:
        """Flat weights -> nfn's lists of weights `(B, 1, out, in, ...)` and biases `(B, 1, out)`, standardised."""
        from nfn.common import WeightSpaceFeatures

        kernels, biases = [], []
        slices = zip(self.architecture.slices, self.architecture.layers, self.spread, strict=True)
        for part, layer, (kernel_scale, bias_scale) in slices:
            matrix = weights[:, part].view(len(weights), layer.rows, layer.columns)
            kernels.append((matrix[:, None, :, :-1] / kernel_scale).clamp(-CLIP, CLIP).reshape(-1, 1, *layer.shape))
            biases.append((matrix[:, None, :, -1] / bias_scale).clamp(-CLIP, CLIP))
        return WeightSpaceFeatures(kernels, biases)

    def forward(self, weights: Tensor) -> Tensor:
        return self.head(self.body(self.parts(weights))).squeeze(-1)


def batches(zoo: Zoo, positions: np.ndarray, size: int, device: str) -> Iterator[tuple[np.ndarray, Tensor]]:
    for start in range(0, len(positions), size):
        batch = positions[start : start + size]
        yield batch, torch.from_numpy(zoo.weights(batch)).to(device)
    zoo.release()


def spreads(zoo: Zoo, train: np.ndarray) -> list[tuple[float, float]]:
    """A scale of each layer's weights and of its biases: from interquartile ranges, which diverged runs leave alone."""
    sample = zoo.weights(train[:: max(1, len(train) // 200)])
    found = []
    for matrix in zoo.architecture.matrices(sample):
        scales = [np.subtract(*np.quantile(part, [0.75, 0.25])) / 1.349 for part in (matrix[..., :-1], matrix[..., -1])]
        found.append((max(float(scales[0]), 1e-6), max(float(scales[1]), 1e-6)))
    return found


def fit_nfn(zoo: Zoo, split: Split, values: np.ndarray, seed: int, epochs: int, device: str) -> dict[str, Any]:
    torch.manual_seed(seed)
    shuffler = np.random.default_rng(seed)
    network = Nfn(zoo.architecture, spreads(zoo, split.train)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    truth = torch.from_numpy(values).float().to(device)

    @torch.no_grad()
    def predict(positions: np.ndarray) -> np.ndarray:
        network.eval()
        found = [
            network(weights).sigmoid().double().cpu().numpy() for _, weights in batches(zoo, positions, 32, device)
        ]
        return np.concatenate(found)

    best, best_epoch, best_state, seconds = -np.inf, 0, network.state_dict(), []
    for epoch in range(1, epochs + 1):
        started = time.process_time()  # of this one thread, so that others' work does not count
        network.train()
        for batch, weights in batches(zoo, shuffler.permutation(split.train), BATCH, device):
            loss = nn.functional.binary_cross_entropy_with_logits(network(weights), truth[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.process_time() - started)
        validation = score(predict(split.validation), values[split.validation])
        print(f"  epoch {epoch}: validation R² {validation.r2:.3f}, {seconds[-1]:.1f} s", flush=True)
        if validation.r2 > best:
            best, best_epoch, best_state = validation.r2, epoch, copy.deepcopy(network.state_dict())
        if epoch - best_epoch >= PATIENCE:
            break
    network.load_state_dict(best_state)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": len(seconds),
        "seconds_per_epoch": float(np.median(seconds)),
        **score(predict(split.test), values[split.test]).to_dict(),
    }


def fit_ours(method: Method, zoo: Zoo, split: Split, values: np.ndarray, seed: int) -> dict[str, Any]:
    started = time.process_time()
    fitted = fit(zoo, split, *DEFAULTS[method], seed=seed)
    seconds = time.process_time() - started
    predicted = represent_zoo(zoo, fitted.encoder, split.test).predicted
    return {
        "parameters": fitted.encoder.parameters_count,
        "epochs": fitted.epochs,
        "seconds_per_epoch": seconds / fitted.epochs,
        **score(predicted, values[split.test]).to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50, help="of nfn, at most")
    parser.add_argument("--device", default="cpu", help="of nfn")
    parser.add_argument(
        "--methods", nargs="*", default=[m.value for m in Method if m.value in ("statistics", "invariant")]
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else []
    done = {(one["zoo"], one["method"], one["seed"]) for one in results}
    for path in options.zoos:
        for seed in range(options.seeds):
            zoo, split = load_protocol(SplitSpec(str(path), fold=seed))
            values = target_values(zoo.table(), Target())
            for name in ("nfn", *options.methods):
                if (path.name, name, seed) in done:
                    continue
                print(f"{path.name}, {name}, seed {seed}", flush=True)
                if name == "nfn":
                    one = fit_nfn(zoo, split, values, seed, options.epochs, options.device)
                else:
                    one = fit_ours(Method(name), zoo, split, values, seed)
                results.append({"zoo": path.name, "method": name, "seed": seed, **one})
                print(f"  test R² {one['r2']:.3f}, tau {one['tau']:.3f}", flush=True)
                write_whole(RESULT, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
