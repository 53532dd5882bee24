"""What each layer of a network is like, in a few numbers that do not change when hidden units are permuted.

An embedding is made to tell good from bad, and forgets the rest: networks of random weights, or with a dead layer, come
to lie among real ones. These descriptions forget less. They say which layer of a network is unlike another's, and
whether a network is unlike everything that an encoder has seen.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from weightsearch.distance import smallest_distances
from weightsearch.errors import WeightsearchError
from weightsearch.types import Architecture, Layer

# Of a layer matrix's weights W (rows, columns): name, and what more and less of it is called.
WEIGHTS = (
    ("size", "larger weights", "smaller weights"),  # log root mean square
    ("balance", "weights more positive", "weights more negative"),  # mean, in root mean squares, as all below
    ("evenness", "weights of more equal size", "a few weights that dominate"),  # log mean absolute value
    ("concentration", "fewer directions that matter", "more directions that matter"),  # log Schatten-4 norm
    ("peak", "one direction that dominates", "no direction that dominates"),  # log Schatten-8 by Schatten-4 norm
    ("rows", "units more unlike in size", "units more alike in size"),  # deviation of the rows' root mean squares
    ("columns", "inputs more unlike in weight", "inputs more alike in weight"),  # the same of the columns
)
EXTRA = (
    ("size", "larger {}", "smaller {}"),  # log of the root mean square, in those of W
    ("balance", "{} more positive", "{} more negative"),  # inverse hyperbolic sine of the mean, in the same
)
LARGEST_GRAM = 2048  # rows or columns, whichever are fewer; the spectrum of a larger layer is left out
TINY = 1e-12
CACHED = 2**20  # weights that are described together: as many as stay in a processor's cache, thrice as fast
REFERENCE_VALUES = 1_000_000  # kept to measure distances from
NEAREST = 5  # of them
FAR_QUANTILE = 0.99  # of held-out networks' distances: what lies farther is unlike everything known
SHRINKAGE = 0.1  # by this over the networks for each number is every direction's variance raised: few say little
OUTSIDE = 4.0  # spreads for each time the whole known range that a number lies beyond it


def width(layer: Layer) -> int:
    """How many numbers describe_layers a layer."""
    return len(WEIGHTS) + len(EXTRA) * len(layer.extras)


def slices(architecture: Architecture) -> tuple[slice, ...]:
    """Where each layer's numbers lie in a description."""
    ends = np.cumsum([width(layer) for layer in architecture.layers]).tolist()
    return tuple(slice(end - width(layer), end) for end, layer in zip(ends, architecture.layers, strict=True))


def describe_layers(weights: np.ndarray, architecture: Architecture) -> np.ndarray:
    """Weights `(n, P)` -> descriptions `(n, F)` float32, the numbers of `WEIGHTS` and `EXTRA` for every layer."""
    size = max(1, CACHED // max(1, architecture.size))
    if len(weights) > size:
        blocks = [weights[start : start + size] for start in range(0, len(weights), size)]
        return np.concatenate([describe_layers(block, architecture) for block in blocks])
    numbers: list[np.ndarray] = []
    for layer, matrix in zip(architecture.layers, architecture.matrices(weights), strict=True):
        inputs = layer.weight_columns
        with np.errstate(over="ignore", invalid="ignore"):  # weights near the end of float32; cleaned up below
            size = np.sqrt(np.square(matrix[..., :inputs], dtype=np.float64).mean(axis=(1, 2))) + TINY  # (n,)
            scaled = (matrix[..., :inputs] / size[:, None, None]).astype(np.float32)  # root mean square 1
            concentration, peak = _spectrum(scaled)
            squares = scaled**2
            numbers += [
                np.log(size),
                scaled.mean(axis=(1, 2)),
                np.log(np.abs(scaled).mean(axis=(1, 2)) + TINY),
                concentration,
                peak,
                np.sqrt(squares.mean(axis=2)).std(axis=1),
                np.sqrt(squares.mean(axis=1)).std(axis=1),
            ]
            for column in range(inputs, layer.columns):
                extra = matrix[..., column] / size[:, None]  # (n, rows)
                numbers += [np.log(np.sqrt((extra**2).mean(axis=1)) + 1e-3), np.arcsinh(extra.mean(axis=1))]
    return np.nan_to_num(np.stack(numbers, axis=1), nan=0.0, posinf=1e3, neginf=-1e3).astype(np.float32)


def _spectrum(scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How unequal the singular values are, `(n,)` twice, from moments of the Gram matrix: no eigenvalue problem."""
    n, rows, columns = scaled.shape
    if min(rows, columns) > LARGEST_GRAM:
        return np.zeros(n), np.zeros(n)
    wide = scaled if rows <= columns else scaled.transpose(0, 2, 1)
    gram = wide @ wide.transpose(0, 2, 1) / (rows * columns)  # trace 1
    fourth = np.sqrt((gram**2).sum(axis=(1, 2))) + TINY
    eighth = np.sqrt(((gram @ gram) ** 2).sum(axis=(1, 2))) + TINY
    return np.log(fourth), np.log(eighth / fourth)


def far(distances: Sequence[float] | np.ndarray) -> float:
    """The distance that a network's is beyond with probability 0.01, by held-out networks' own; of few, the largest."""
    share = min(1.0, FAR_QUANTILE * (len(distances) + 1) / len(distances))
    return float(np.quantile(distances, share, method="higher"))


@dataclass(frozen=True)
class LayerDifference:
    """How unlike a layer is that of the nearest good and of the nearest bad neighbour, and in what most.

    In units of the spread among the networks that the encoder was fitted on: 0 is the same, 1 as far as two of them
    often are. None where there is no such neighbour, or its weights were never described.
    """

    layer: str
    good: float | None
    bad: float | None
    good_words: str = ""  # e.g. "larger weights": what this network has, beside the neighbour
    bad_words: str = ""


@dataclass(frozen=True, eq=False)
class Familiar:
    """What descriptions of known networks are like: their centre and spread, and where many of them lie.

    Spreads are of the quarter to the three quarters, and large deviations count by their logarithm, up to the ends of
    what is known: runs that all but diverged would otherwise make everything else look alike. `axes` turns these
    scores into uncorrelated directions of equal spread, so that an unusual combination is far away too. How far the
    nearest known ones are is compared with held-out networks' distances: detection of what is out of distribution by
    nearest neighbours (Sun et al. 2022, https://arxiv.org/abs/2204.06507).
    """

    centre: np.ndarray  # (F,)
    spread: np.ndarray  # (F,)
    ends: np.ndarray  # (2, F), the least and greatest known
    axes: np.ndarray  # (F, F)
    reference: np.ndarray  # (m, F), along the axes
    limit: float  # distances above this are unlike everything known

    @classmethod
    def fit(cls, described: np.ndarray, held_out: np.ndarray, seed: int = 0) -> Familiar:
        """From descriptions of known networks `(n, F)` and of others like them, of other runs, `(h, F)`."""
        low, centre, high = np.quantile(described, [0.25, 0.5, 0.75], axis=0)
        spread = (high - low) / 1.349  # as a normal distribution's standard deviation
        spread = np.where(spread > 1e-6, spread, described.std(axis=0))
        spread = np.where(spread > 1e-6, spread, 1.0)
        ends = np.stack([described.min(axis=0), described.max(axis=0)])
        size = described.shape[1]
        familiar = cls(centre, spread, ends, np.eye(size), np.empty((0, size)), limit=np.inf)
        scores = familiar.scores(described)
        variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(scores.T)))
        axes = directions / np.sqrt(np.maximum(variances, 0) + SHRINKAGE * size / len(described)) / np.sqrt(size)
        drawn = np.random.default_rng(seed).permutation(len(described))[: max(NEAREST, REFERENCE_VALUES // size)]
        familiar = replace(familiar, axes=axes, reference=scores[drawn] @ axes)
        distances = [familiar.distance(description) for description in held_out]
        return replace(familiar, limit=1.001 * far(distances))  # to be the same in single precision

    def scores(self, descriptions: np.ndarray) -> np.ndarray:
        """Descriptions `(..., F)` in spreads from the centre."""
        within = np.clip(descriptions, *self.ends)
        beyond = (descriptions - within) / np.maximum(np.ptp(self.ends, axis=0), self.spread)
        return np.arcsinh((within - self.centre) / self.spread) + OUTSIDE * beyond

    def distance(self, description: np.ndarray) -> float:
        """Of one description `(F,)`: the mean over the known networks nearest to it."""
        squares = ((self.reference - self.scores(description) @ self.axes) ** 2).sum(axis=1)
        return float(np.sqrt(smallest_distances(squares, NEAREST)).mean())

    def compare(
        self, architecture: Architecture, described: np.ndarray, good: np.ndarray | None, bad: np.ndarray | None
    ) -> tuple[LayerDifference, ...]:
        """A description `(F,)` beside those of a good and a bad neighbour, layer by layer."""
        differences = []
        for layer, part in zip(architecture.layers, slices(architecture), strict=True):
            sides: list[tuple[float | None, str]] = []
            for other in (good, bad):
                if other is None:
                    sides.append((None, ""))
                    continue
                deviation = self.scores(described)[part] - self.scores(other)[part]
                sides.append((float(np.sqrt(np.mean(deviation**2))), _words(layer, deviation)))
            (from_good, good_words), (from_bad, bad_words) = sides
            differences.append(LayerDifference(layer.name, from_good, from_bad, good_words, bad_words))
        return tuple(differences)

    def save(self, path: Path) -> None:
        """In single precision."""
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **{name: np.float32(value) for name, value in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> Familiar | None:
        """None where an index was made before there were descriptions."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = {column.name: content[column.name] for column in fields(cls)}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise WeightsearchError(f"{path} is damaged; make the index again with `weightsearch train`") from error
        return cls(**{**arrays, "limit": float(arrays["limit"])})


def _words(layer: Layer, deviation: np.ndarray) -> str:
    """The number that differs most, in words."""
    phrases = [phrase[1:] for phrase in WEIGHTS]
    for extra in layer.extras:
        plural = {"bias": "biases", "running_mean": "running means", "running_var": "running variances"}.get(
            extra, extra
        )
        phrases += [(more.format(plural), less.format(plural)) for _, more, less in EXTRA]
    most = int(np.argmax(np.abs(deviation)))
    return phrases[most][0 if deviation[most] > 0 else 1]
