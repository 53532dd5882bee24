"""One fitted method before a zoo's held-out runs: what it predicts and finds for each query, as plain arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from weightsearch import distance
from weightsearch.distance import unit_length
from weightsearch.encoders.symmetry import hidden_units, twins
from weightsearch.errors import WeightsearchError
from weightsearch.evaluation.bootstrap import is_bad, is_good
from weightsearch.types import Activation, Architecture, activation_named
from weightsearch.zoo.recipes import TRAINED_ACTIVATIONS
from weightsearch.zoo.splits import Split
from weightsearch.zoo.store import Zoo

log = logging.getLogger("weightsearch")

K = 10
BLOCK_ROWS, BLOCK_BYTES = 512, 1 << 26  # of weights in one block
NOISE = 0.01  # of each layer's Frobenius norm
BINS = 1000  # of similarities, for the AUC
PAIRS = 2000  # drawn for the median distance between checkpoints of different runs
EXACT_WIDTH = 4096  # embeddings up to this width are compared in float64: near-copies differ in the last digits

# Flat weights (n, P) and activations (n,) -> embeddings (n, D), None for a method that only predicts; and predictions
# (n,), NaN for one that only embeds.
Activations = Sequence[Activation | None]
Represent = Callable[[np.ndarray, Activations], tuple[np.ndarray | None, np.ndarray]]


def raw_weights(weights: np.ndarray, activations: Activations) -> tuple[np.ndarray, np.ndarray]:
    """No encoder at all: the weights are the embedding."""
    return weights, np.full(len(weights), np.nan)


def draw_queries(test: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All of the test part's positions, or `most` of them at random, ascending."""
    if len(test) <= most:
        return test
    return np.sort(np.random.default_rng([seed, most]).permutation(test)[:most])


def predict_only(zoo: Zoo, positions: np.ndarray, represent: Represent) -> np.ndarray:
    """Predictions `(len(positions),)`."""
    blocks = _blocks(positions, zoo)
    return np.concatenate([represent(zoo.weights(block), activations_of(zoo, block))[1] for block in blocks])


def measure_retrieval(
    zoo: Zoo, quality: np.ndarray, split: Split, queries: np.ndarray, represent: Represent, seed: int
) -> dict[str, np.ndarray]:
    """Arrays by name, each `(Q, ...)` with one row per query unless said otherwise.

    The index is the training part; no query's run is in it. For `twin_*` and `noise_*` the queries themselves are
    indexed, too.

    - `predicted`
    - `neighbours (Q, 10)`, `run_neighbours (Q, 10)`: positions of the nearest, and of the nearest one of each of the 10
      nearest runs; by cosine distance, -1 where the index has no more
    - `epoch_neighbours (Q, 10)`: of the nearest 10 runs, too, but among checkpoints of about the query's epoch
    - `to_good`, `to_bad`: mean cosine to the index's good and bad ones
    - `same (R, BINS)`, `different (R, BINS)`: counts of pairs by cosine, for each of the queries' runs, ascending
    - `twin_first`, `twin_drift`, `twin_predicted` for permuted units, `rescaled_*` for permuted and rescaled or flipped
      units: whether the original is found first, the embedding's relative change, and the prediction's;
      NaN where no twin can be made
    - `noise_shift`: how far noise of 1 % moves the embedding, as a share of the median distance between runs
    - `noise_kept`: the share of the 10 neighbours that stay
    """
    if represent(zoo.weights(queries[:1]), activations_of(zoo, queries[:1]))[0] is None:
        return {"predicted": predict_only(zoo, queries, represent)}
    stored = _Stored(zoo, np.concatenate([split.train, queries]), represent)
    indexed = len(split.train)
    run, epoch = zoo.table().run, zoo.table().epoch
    good, bad = is_good(quality, split.train), is_bad(quality, split.train)
    twinnable = _can_have_twins(zoo.architecture)
    median = stored.median_distance(run[split.train], np.random.default_rng(seed))
    rows: list[dict[str, np.ndarray]] = []
    cosines: list[np.ndarray] = []
    start = 0
    for block in _blocks(queries, zoo):
        generator = np.random.default_rng([seed, int(block[0])])
        own_positions = indexed + start + np.arange(len(block))  # where the queries lie among the stored
        start += len(block)
        weights = zoo.weights(block)
        block_activations = activations_of(zoo, block)
        embedding, predicted = _embedded(represent, weights, block_activations)
        similarity = stored.cosine(embedding)  # (b, N)
        to_index = similarity[:, :indexed]
        measures = {
            "predicted": predicted,
            "neighbours": _positions(split.train, nearest(to_index)),
            "run_neighbours": _positions(split.train, nearest_runs(to_index, run[split.train])),
            "epoch_neighbours": _positions(
                split.train, nearest_in_time(to_index, run[split.train], epoch[split.train], epoch[block])
            ),
            "to_good": to_index[:, good[split.train]].mean(axis=1),
            "to_bad": to_index[:, bad[split.train]].mean(axis=1),
        }
        kinds: dict[str, list[Activation | None]] = {"twin": [None], "rescaled": [*TRAINED_ACTIVATIONS]}
        for name, activations in kinds.items():
            measures |= {f"{name}_{key}": np.full(len(block), np.nan) for key in ("first", "drift", "predicted")}
            for activation in activations if twinnable else ():
                chosen = np.flatnonzero([activation is None or its is activation for its in block_activations])
                if len(chosen):
                    twin = twins(weights[chosen], zoo.architecture, generator, activation)
                    other, prediction = _embedded(represent, twin, [block_activations[i] for i in chosen])
                    measures[f"{name}_first"][chosen] = stored.is_first(other, own_positions[chosen])
                    measures[f"{name}_drift"][chosen] = _relative(other, embedding[chosen])
                    measures[f"{name}_predicted"][chosen] = np.abs(prediction / predicted[chosen] - 1)
        noisy, _ = _embedded(represent, with_noise(weights, zoo.architecture, generator), block_activations)
        before, after = nearest(similarity), nearest(stored.cosine(noisy))
        measures["noise_shift"] = np.linalg.norm(noisy - embedding, axis=1) / median
        measures["noise_kept"] = np.array([len(np.intersect1d(*pair)) for pair in zip(before, after, strict=True)]) / K
        rows.append(measures)
        cosines.append(to_index.astype(np.float32))
    by_query = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    classes = good.astype(int) - bad  # 1, 0 or -1
    by_query["same"], by_query["different"] = _pair_counts(
        np.concatenate(cosines), classes[queries], classes[split.train], run[queries]
    )
    return by_query


class _Stored:
    """Embeddings of the indexed checkpoints and the queries; kept in memory unless they are the weights themselves."""

    def __init__(self, zoo: Zoo, positions: np.ndarray, represent: Represent) -> None:
        self._zoo, self._positions = zoo, positions
        self._ids = zoo.table().id[positions]
        self._kept: np.ndarray | None = None
        if represent is not raw_weights:
            blocks = _blocks(positions, zoo)
            parts = [_embedded(represent, zoo.weights(block), activations_of(zoo, block))[0] for block in blocks]
            self._kept = unit_length(_wide(np.concatenate(parts)))
            self._length = np.concatenate([np.linalg.norm(_wide(part), axis=1) for part in parts])

    def cosine(self, embedding: np.ndarray) -> np.ndarray:
        """Cosines `(b, N)` of `embedding (b, D)` with all that are stored."""
        unit = unit_length(_wide(embedding))
        if self._kept is not None:
            return unit @ self._kept.T
        blocks = [unit @ unit_length(_wide(self._zoo.weights(b))).T for b in _blocks(self._positions, self._zoo)]
        return np.concatenate(blocks, axis=1)

    def is_first(self, embedding: np.ndarray, own_positions: np.ndarray) -> np.ndarray:
        """Whether stored row `own[i]` is strictly nearest to `embedding[i]`, but for copies of its weights."""
        cosine = self.cosine(embedding)
        rows = np.arange(len(own_positions))
        wanted = cosine[rows, own_positions]
        cosine[self._ids[own_positions][:, None] == self._ids[None, :]] = -np.inf
        return wanted > cosine.max(axis=1)

    def median_distance(self, run: np.ndarray, generator: np.random.Generator) -> float:
        """Median Euclidean distance between indexed checkpoints of different runs, of `PAIRS` random pairs."""
        left, right = generator.integers(len(run), size=(2, PAIRS))
        apart = run[left] != run[right]
        pairs = np.stack([left[apart], right[apart]], axis=1)
        distances = []
        for block in np.array_split(pairs, max(1, len(pairs) // 100)):
            first, second = (self._rows(side) for side in block.T)
            distances.append(np.linalg.norm(first - second, axis=1))
        return float(np.median(np.concatenate(distances)))

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        if self._kept is None:
            return self._zoo.weights(self._positions[rows])
        return self._kept[rows] * self._length[rows, None]


def nearest(similarity: np.ndarray, k: int = K) -> np.ndarray:
    """Columns of the k greatest of each row of `similarity (b, N)`, greatest first; -1 where N < k."""
    columns = distance.nearest(-similarity, k)
    return np.pad(columns, ((0, 0), (0, k - columns.shape[1])), constant_values=-1)


def nearest_runs(similarity: np.ndarray, run: np.ndarray, k: int = K) -> np.ndarray:
    """Columns of the greatest of each row's k greatest runs, `run (N,)`; -1 where there are fewer runs."""
    order = np.argsort(run, kind="stable")
    names, starts = np.unique(run[order], return_index=True)
    best = np.stack(
        [order[part][np.argmax(similarity[:, order[part]], axis=1)] for part in _parts(starts, len(run))], axis=1
    )  # (b, runs) the best column of each run
    chosen = nearest(np.take_along_axis(similarity, best, axis=1), min(k, len(names)))
    nearest_of_run = np.full((len(similarity), k), -1)
    nearest_of_run[:, : chosen.shape[1]] = np.take_along_axis(best, chosen, axis=1)
    return nearest_of_run


def nearest_in_time(
    similarity: np.ndarray, run: np.ndarray, epoch: np.ndarray, asked: np.ndarray, k: int = K
) -> np.ndarray:
    """As `nearest_runs`, among the columns whose `epoch (N,)` is about that of the row, `asked (b,)`.

    That is within a quarter of it, as `query` forecasts a network's end.
    """
    nearest = np.full((len(similarity), k), -1)
    for one in np.unique(asked):
        slack = 0 if one <= 0 else max(1, one // 4)
        columns, rows = np.flatnonzero(np.abs(epoch - one) <= slack), asked == one
        if len(columns):
            near = nearest_runs(similarity[np.ix_(rows, columns)], run[columns], k)
            nearest[rows] = np.where(near >= 0, columns[near], -1)
    return nearest


def with_noise(weights: np.ndarray, architecture: Architecture, generator: np.random.Generator) -> np.ndarray:
    """Weights `(n, P)` with Gaussian noise whose norm is `NOISE` times that of each layer matrix."""
    noisy = weights.copy()
    for part in architecture.slices:
        noise = unit_length(generator.standard_normal((len(weights), part.stop - part.start)))
        noisy[:, part] += NOISE * np.linalg.norm(weights[:, part], axis=1, keepdims=True) * noise
    return noisy


def _embedded(represent: Represent, weights: np.ndarray, activations: Activations) -> tuple[np.ndarray, np.ndarray]:
    embedding, predicted = represent(weights, activations)
    assert embedding is not None
    return embedding, predicted


def _blocks(positions: np.ndarray, zoo: Zoo) -> Iterator[np.ndarray]:
    size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * zoo.architecture.size)))
    for start in range(0, len(positions), size):
        yield positions[start : start + size]
        zoo.release()


def _wide(embedding: np.ndarray) -> np.ndarray:
    return embedding.astype(np.float64) if embedding.shape[1] <= EXACT_WIDTH else embedding


def _relative(changed: np.ndarray, original: np.ndarray) -> np.ndarray:
    return np.linalg.norm(changed - original, axis=1) / np.linalg.norm(original, axis=1)


def _positions(indexed: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.where(columns >= 0, indexed[columns], -1)


def _parts(starts: np.ndarray, end: int) -> Iterator[slice]:
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        yield slice(start, stop)


def activations_of(zoo: Zoo, positions: np.ndarray) -> list[Activation | None]:
    """Of each checkpoint's recipe; None where it is not known."""
    table = zoo.table()
    names = [table.recipes.get(run, {}).get("activation") for run in table.run[positions].tolist()]
    return [None if name is None else activation_named(name) for name in names]


def _can_have_twins(architecture: Architecture) -> bool:
    try:
        hidden_units(architecture)
    except WeightsearchError as error:
        log.warning("no twins: %s", error)
        return False
    return True


def _pair_counts(
    cosines: np.ndarray, queries: np.ndarray, indexed: np.ndarray, run: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts `(R, BINS)` of pairs of one class and of pairs of two, by their cosines, in bins of about equal counts.

    `queries (Q,)` and `indexed (N,)` are 1 for good, -1 for bad, and 0 for those between, which are left out.
    """
    judged, against = np.flatnonzero(queries), np.flatnonzero(indexed)
    names, number = np.unique(run, return_inverse=True)
    same, different = np.zeros((2, len(names), BINS), np.int64)
    if len(judged) and len(against):
        sample = cosines[np.ix_(judged[:: max(1, len(judged) // 200)], against)]
        edges = np.quantile(sample, np.linspace(0, 1, BINS + 1)[1:-1])
        for query in judged:
            place = np.searchsorted(edges, cosines[query, against])
            alike = indexed[against] == queries[query]
            same[number[query]] += np.bincount(place[alike], minlength=BINS)
            different[number[query]] += np.bincount(place[~alike], minlength=BINS)
    return same, different
