"""`evaluate` on a small zoo: what is probed against slow definitions, and that a second call only reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from weightsearch.errors import UsageError
from weightsearch.evaluation import retrieval as probing
from weightsearch.evaluation.bootstrap import auc
from weightsearch.evaluation.evaluate import evaluate
from weightsearch.evaluation.report import markdown
from weightsearch.evaluation.retrieval import (
    draw_queries,
    measure_retrieval,
    nearest,
    nearest_runs,
    raw_weights,
    with_noise,
)
from weightsearch.evaluation.scores import Judged, MetricRow, draws, forecast, interval, plain_forecasts, rows_of
from weightsearch.uncertainty.conformal import calibrate
from weightsearch.zoo.splits import make_split
from weightsearch.zoo.store import Zoo
from weightsearch.zoo.trainer.networks import CnnShape


def sorted_weights(weights: np.ndarray, activations: object) -> tuple[np.ndarray, np.ndarray]:
    """An embedding that no permutation changes, and a prediction from it."""
    embedding = np.sort(weights, axis=1)
    return embedding, 0.5 + embedding.mean(axis=1, dtype=np.float64)


def embedding_of(represent, zoo: Zoo, positions: np.ndarray) -> np.ndarray:
    return represent(zoo.weights(positions), None)[0].astype(np.float64)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize("represent", [raw_weights, sorted_weights])
def test_probe_finds_what_a_loop_finds(zoo: Zoo, represent, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probing, "BLOCK_ROWS", 7)
    table = zoo.table()
    split = make_split(table)
    queries = draw_queries(split.test, 20, seed=0)
    assert len(queries) == 20
    found = measure_retrieval(zoo, table.test_accuracy, split, queries, represent, seed=0)
    index = embedding_of(represent, zoo, split.train)
    asked = embedding_of(represent, zoo, queries)
    accuracy = table.test_accuracy[split.train]
    good, bad = accuracy >= np.quantile(accuracy, 0.75), accuracy <= np.quantile(accuracy, 0.25)
    wins = []
    for i, (query, own) in enumerate(zip(queries, asked, strict=True)):
        similarity = np.array([cosine(own, row) for row in index])
        ordered = split.train[np.argsort(-similarity)]
        by_position = dict(zip(split.train, similarity.round(5), strict=True))  # near-copies tie
        assert [by_position[p] for p in found["neighbours"][i]] == [by_position[p] for p in ordered[:10]]
        one_per_run: dict[int, int] = {}
        for position in ordered:
            one_per_run.setdefault(table.run[position], position)
        nearest_of_each = list(one_per_run.values())[:10]
        assert [by_position[p] for p in found["run_neighbours"][i]] == [by_position[p] for p in nearest_of_each]
        assert len(set(table.run[found["run_neighbours"][i]])) == len(nearest_of_each)
        slack = 0 if table.epoch[query] == 0 else max(1, table.epoch[query] // 4)
        about = [p for p in ordered if abs(table.epoch[p] - table.epoch[query]) <= slack]
        at_its_epoch: dict[int, int] = {}
        for position in about:
            at_its_epoch.setdefault(table.run[position], position)
        then = list(at_its_epoch.values())[:10]
        assert [by_position[p] for p in found["epoch_neighbours"][i]] == [by_position[p] for p in then]
        assert not np.isin(table.run[found["neighbours"][i]], table.run[query]).any()
        assert found["to_good"][i] == pytest.approx(similarity[good].mean(), abs=1e-5)
        assert found["to_bad"][i] == pytest.approx(similarity[bad].mean(), abs=1e-5)
        own_class = 1 if table.test_accuracy[query] >= np.quantile(accuracy, 0.75) else 0
        if own_class or table.test_accuracy[query] <= np.quantile(accuracy, 0.25):
            pairs = (similarity[good], similarity[bad]) if own_class else (similarity[bad], similarity[good])
            wins.append(pairs)
    same, different = (np.concatenate(side) for side in zip(*wins, strict=True))
    expected = (same[:, None] > different).mean()
    assert auc(found["same"], found["different"], np.ones((1, len(found["same"]))))[0] == pytest.approx(
        expected, abs=2e-3
    )


def test_twins_and_noise(zoo: Zoo):
    table = zoo.table()
    split = make_split(table)
    blind = measure_retrieval(zoo, table.test_accuracy, split, split.test, sorted_weights, seed=0)
    assert (blind["twin_first"] == 1).all()
    assert (blind["twin_drift"] == 0).all()
    assert (blind["twin_predicted"] == 0).all()
    assert blind["rescaled_drift"].min() > 0  # weights are scaled or flipped
    raw = measure_retrieval(zoo, table.test_accuracy, split, split.test, raw_weights, seed=0)
    assert raw["twin_first"].mean() < 0.5
    assert raw["twin_drift"].min() > 0.5
    assert np.isnan(raw["predicted"]).all()
    # Raw weights move by 1 % of their norm, and the median distance is measured between runs.
    norm = np.linalg.norm(zoo.weights(split.test), axis=1)
    assert raw["noise_shift"] / norm == pytest.approx(np.full(len(norm), (raw["noise_shift"] / norm)[0]), rel=1e-4)
    everything = zoo.weights(split.train).astype(np.float64)
    apart = table.run[split.train][:, None] != table.run[split.train][None]
    from scipy.spatial.distance import cdist

    distance = cdist(everything, everything)
    assert raw["noise_shift"] / (0.01 * norm) == pytest.approx(1 / np.median(distance[apart]), rel=0.05)
    assert 0.8 < raw["noise_kept"].mean() <= 1


def test_noise_has_one_hundredth_of_each_layers_norm():
    architecture = CnnShape(filters=3).architecture
    weights = np.random.default_rng(0).normal(size=(2, architecture.size)).astype(np.float32)
    noisy = with_noise(weights, architecture, np.random.default_rng(1))
    for before, after in zip(architecture.matrices(weights), architecture.matrices(noisy), strict=True):
        moved = np.linalg.norm(after - before, axis=(1, 2)) / np.linalg.norm(before, axis=(1, 2))
        assert moved == pytest.approx([0.01, 0.01], rel=1e-3)


def test_too_few_to_find_ten():
    similarity = np.array([[0.1, 0.9, 0.5]])
    assert nearest(similarity, 5).tolist() == [[1, 2, 0, -1, -1]]
    assert nearest_runs(similarity, np.array([7, 4, 7]), 5).tolist() == [[1, 2, -1, -1, -1]]


def population() -> tuple[Judged, np.ndarray]:
    """12 runs of 4 epochs, whose accuracy rises; the first 8 are indexed."""
    generator = np.random.default_rng(5)
    run, epoch = np.repeat(np.arange(12), 4), np.tile([0, 1, 2, 9], 12)
    accuracy = 0.1 + generator.uniform(0.1, 0.8, 12)[run] * (1 - (epoch + 1.0) ** -0.7)
    return Judged(accuracy, run, epoch), np.flatnonzero(run < 8)


def test_precision_and_neighbours_accuracy_by_hand():
    judged, indexed = population()
    generator = np.random.default_rng(6)
    queries = np.flatnonzero(judged.run >= 8)
    neighbours = np.stack([generator.permutation(indexed)[:10] for _ in queries])
    neighbours[:, 8:] = -1
    one_each = neighbours.copy()
    counts = np.ones((4, 3), int)
    arrays = {
        "queries": queries, "predicted": np.full(len(queries), np.nan), "neighbours": neighbours,
        "run_neighbours": one_each, "epoch_neighbours": one_each[:, :9],
        "to_good": np.ones(16), "to_bad": -np.ones(16), "same": counts, "different": counts,
        **{f"{kind}_{key}": np.full(16, np.nan) for kind in ("twin", "rescaled") for key in ("first", "drift")},
        "noise_shift": np.full(16, 0.1), "noise_kept": np.full(16, 0.9),
    }  # fmt: skip
    found = {metric: values[0] for metric, values in draws(arrays, judged, indexed, seed=0).items()}
    accuracy = judged.accuracy
    threshold = np.quantile(accuracy[indexed], 0.75)
    shares = [
        np.mean(accuracy[n[:5]] >= threshold)
        for q, n in zip(queries, neighbours, strict=True)
        if accuracy[q] >= threshold
    ]
    assert found["precision@5.good"] == pytest.approx(np.mean(shares))
    tens = [
        np.mean(accuracy[n[:8]] >= threshold)
        for q, n in zip(queries, neighbours, strict=True)
        if accuracy[q] >= threshold
    ]
    assert found["precision@10.good"] == pytest.approx(np.mean(tens))
    assert found["precision.chance.good"] == pytest.approx(np.mean(accuracy[indexed] >= threshold))
    means = np.array([accuracy[n[:8]].mean() for n in one_each])
    error = means - accuracy[queries]
    assert found["neighbours.mae"] == pytest.approx(np.abs(error).mean())
    assert found["neighbours.r2"] == pytest.approx(
        1 - (error**2).sum() / ((accuracy[queries] - accuracy[queries].mean()) ** 2).sum()
    )
    assert (found["separation.auc"], found["separation.good_good"], found["separation.good_bad"]) == (
        0.5,
        1.0,
        pytest.approx(found["separation.good_bad"]),
    )
    middles = np.array([np.median([accuracy[judged.run == judged.run[m]][-1] for m in n[:8]]) for n in one_each])
    finals = np.array([np.mean([accuracy[judged.run == judged.run[m]][-1] for m in n[:8]]) for n in one_each])
    own = np.array([accuracy[judged.run == judged.run[q]][-1] for q in queries])
    early = judged.epoch[queries] < 9
    assert found["forecast.mae_any_epoch"] == pytest.approx(np.abs(finals - own)[early].mean())
    assert found["forecast.mae"] == pytest.approx(np.abs(middles - own)[early].mean())
    assert found["forecast.mae@2"] == pytest.approx(np.abs(middles - own)[judged.epoch[queries] == 2].mean())
    assert not any(metric.startswith(("prediction", "twin", "interval")) for metric in found)


def test_forecasts_from_the_own_curve():
    judged, _ = population()
    queries = np.flatnonzero(judged.run >= 8)
    found = plain_forecasts(judged, queries)
    assert found["stays as it is"]["forecast.mae@0"][0] == pytest.approx(
        np.mean([np.ptp(judged.accuracy[judged.run == run]) for run in range(8, 12)])
    )
    assert found["own curve continued"]["forecast.mae@2"][0] < 0.02  # the curves are power laws
    assert found["own curve continued"]["forecast.mae@0"][0] == found["stays as it is"]["forecast.mae@0"][0]
    assert "forecast.mae@9" not in found["stays as it is"]
    unknown = Judged(np.where(judged.epoch == 9, np.nan, judged.accuracy), judged.run, judged.epoch)
    np.testing.assert_array_equal(unknown.final(), judged.accuracy[judged.epoch == 2][judged.run])
    np.testing.assert_array_equal(unknown.is_last(queries[queries % 4 < 3]), np.tile([False, False, True], 4))
    perfect = forecast(judged.final()[queries], judged, queries, np.ones((1, 4)))
    assert perfect["forecast.mae"][0] == 0


@pytest.mark.slow
def test_intervals_cover_nine_tenths_of_new_runs():
    coverage, width = [], []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        run = np.repeat(np.arange(30), 3)
        predicted = generator.uniform(0.3, 0.7, 90)
        truth = predicted + generator.normal(size=30)[run] * 0.05
        found = interval(predicted, truth, run, np.ones((1, 30)), seed, [2.0, 3.0])  # all in one part
        coverage.append(found["interval.coverage"][0])
        width.append(found["interval.width"][0])
    assert np.mean(coverage) == pytest.approx(0.9, abs=0.02)
    assert np.mean(width) == pytest.approx(2 * 1.645 * 0.05, rel=0.15)
    few = [values[:24] for values in (predicted, truth, run)]
    assert interval(*few, np.ones((1, 8)), 0, [0.4, 0.6]) == {}  # too few runs to calibrate


@pytest.mark.slow
def test_intervals_of_each_third_are_those_of_its_checkpoints():
    """Errors that one third has: its coverage is what a loop over splits, runs and checkpoints counts."""
    generator = np.random.default_rng(3)
    run = np.repeat(np.arange(19), 4)
    truth = generator.uniform(0.3, 0.7, 76)
    predicted = truth + np.where(truth > 0.55, 0.2, 0.02) * generator.normal(size=76)
    weights = np.concatenate([np.ones((1, 19)), generator.integers(0, 3, (1, 19))])
    edges = [0.4, 0.55]
    scores = interval(predicted, truth, run, weights, 5, edges)
    held: dict[tuple[int, str], list[bool]] = {}
    for split in range(20):
        aside = np.random.default_rng([5, split]).permutation(19)[:9]
        mine = np.isin(run, aside)
        calibrated = calibrate(predicted[mine], truth[mine], run[mine], edges=edges, seed=split)
        for one in np.flatnonzero(~mine):
            low, high = calibrated.interval(predicted[[one]])
            name = "lowest" if truth[one] <= 0.4 else "middle" if truth[one] <= 0.55 else "highest"
            held.setdefault((run[one], name), []).append(low[0] <= truth[one] <= high[0])
    for name in ("lowest", "middle", "highest"):
        shares = {one: np.mean(inside) for (one, third), inside in held.items() if third == name}
        for row in range(2):
            expected = np.average(list(shares.values()), weights=weights[row, list(shares)])
            assert scores[f"interval.coverage@{name}"][row] == pytest.approx(expected)
    assert scores["interval.coverage@lowest"][0] > scores["interval.coverage@highest"][0]


def test_pooled_rows_are_the_mean_over_seeds_in_each_sample():
    seeds = [(0, np.array([0.5, 0.4, 0.6])), (1, np.array([0.7, 0.6, 1.0]))]
    first, second, pooled = rows_of("zoo", "some", "metric", seeds)
    assert (first.value, first.seed, second.seed, pooled.seed) == (0.5, 0, 1, None)
    assert pooled.value == pytest.approx(0.6)
    assert (pooled.low, pooled.high) == (pytest.approx(0.5 + 0.3 * 0.025), pytest.approx(0.8 - 0.3 * 0.025))
    assert rows_of("zoo", "some", "metric", [(0, np.array([3.0]))])[0].low is None


@pytest.mark.slow
def test_evaluate_a_small_zoo_and_again_from_its_files(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    twin = shutil.copytree(zoo.path, tmp_path / "digits-copy")
    methods = ("raw-weights", "comvex-conv", "statistics", "statistics-trees")
    options = {"seeds": 2, "epochs": 2, "methods": methods, "root": tmp_path / "fits", "quiet": True}
    done = evaluate([zoo.path, twin], tmp_path / "out", **options)
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["metric"] for row in content["rows"]] == [row.metric for row in done.rows]
    pooled = {
        (row.method, row.metric): row
        for row in done.rows
        if row.zoo == "digits-v1" and row.seed is None and row.on is None and row.against is None
    }
    assert pooled["statistics", "twin.recall"].value == 1.0
    assert pooled["raw-weights", "neighbours.tau"].low is not None
    assert ("raw-weights", "prediction.r2") not in pooled
    assert pooled["statistics-trees", "cost.parameters"].value > 0
    by_hand = np.mean(
        [
            row.value
            for row in done.rows
            if (row.zoo, row.method, row.metric) == ("digits-v1", "statistics", "prediction.r2")
            and row.seed is not None
            and row.on is None
            and row.against is None
        ]
    )
    assert pooled["statistics", "prediction.r2"].value == pytest.approx(by_hand)
    difference = [row for row in done.rows if row.against == "statistics-trees" and row.metric == "prediction.r2"]
    assert {row.method for row in difference} == {"comvex-conv"}
    (one,) = [row for row in difference if row.zoo == "digits-v1" and row.seed is None]
    assert one.value == pytest.approx(
        pooled["comvex-conv", "prediction.r2"].value - pooled["statistics-trees", "prediction.r2"].value
    )
    # The copy has the same networks, so that an encoder predicts them as well as those of its own zoo.
    away = {
        (row.method, row.metric): row.value
        for row in done.rows
        if (row.zoo, row.on, row.seed) == ("digits-v1", "digits-copy", None)
    }
    for method in methods[1:]:
        assert away[method, "prediction.tau"] == pytest.approx(pooled[method, "prediction.tau"].value)
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "### Twins by permutation" in text
    assert "## Elsewhere" in text

    for lost in sorted((tmp_path / "fits").rglob("seed-1.json"))[:1]:  # as if killed before its result was written
        lost.unlink()
    again = evaluate([zoo.path, twin], tmp_path / "out", **options)
    without_times = [row for row in again.rows if not row.metric.startswith("cost.")]
    assert without_times == [row for row in done.rows if not row.metric.startswith("cost.")]

    def refuse(*_: object) -> None:
        raise AssertionError("a finished fit was made again")

    monkeypatch.setattr("weightsearch.training.runner.ProcessPoolExecutor.submit", refuse)
    third = evaluate([zoo.path, twin], tmp_path / "out", **options)
    assert third == again


def test_wrong_arguments_are_one_line(zoo: Zoo, tmp_path: Path):
    with pytest.raises(UsageError, match="--seeds 0"):
        evaluate([zoo.path], tmp_path, seeds=0)
    with pytest.raises(UsageError, match="--method nothing: choose among comvex-conv"):
        evaluate([zoo.path], tmp_path, methods=("nothing",))
    with pytest.raises(UsageError, match="each zoo once"):
        evaluate([zoo.path, zoo.path], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        evaluate([zoo.path], tmp_path / "file")


def test_tables_name_what_is_missing():
    rows = [
        MetricRow("zoo", "some", "prediction.r2", 0.91234, 0.5, 1.0, None),
        MetricRow("zoo", "some", "twin.drift", 3e-8, 1e-8, 4e-8, None),
        MetricRow("zoo", "other", "prediction.tau", -0.25, -0.31, -0.1, None),
        MetricRow("zoo", "other", "prediction.tau", 0.9, 0.8, 1.0, 3),
    ]
    text = markdown(rows, {"epochs": 1, "seeds": 1})
    assert "| some | 0.912 [.50, 1.00] | – |" in text
    assert "| other | – | -0.250 [-.31, -.10] |" in text
    assert "| some | 3e-08 |" in text
    assert "0.9" not in text.replace("0.912", "")
