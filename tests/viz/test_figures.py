"""Figures: projections against oracles, what the headings say, and pictures of real zoos and indexes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from weightsearch.checkpoints.state_dict import write_checkpoint
from weightsearch.distance import prepare
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.evaluation import block_means
from weightsearch.evaluation.comparison import TOP, top_trials
from weightsearch.search.index import query
from weightsearch.training.summary import TrainSummary
from weightsearch.types import Method, Metric
from weightsearch.viz import Format, Part, Projection, draw, figures
from weightsearch.viz.figures import Options
from weightsearch.viz.projection import nearest, place, project, spread
from weightsearch.viz.sources import Source, open_sources
from weightsearch.zoo.store import Zoo


def texts(figure: Figure) -> str:
    """All that is written in a figure."""
    parts = [figure, *figure.subfigs] if hasattr(figure, "subfigs") else [figure]
    headings = [part._suptitle.get_text() for part in parts if part._suptitle]
    labels = [text for axes in figure.axes for text in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel())]
    return "\n".join([*headings, *labels])


def clusters(count: int, each: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors `(count * each, width)` around `count` far centres, and the cluster of each."""
    generator = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(count), each)
    vectors = 10 * generator.normal(size=(count, width))[cluster] + generator.normal(size=(count * each, width))
    return vectors.astype(np.float32), cluster


@pytest.fixture
def source(trained: TrainSummary) -> Source:
    (opened,) = open_sources(trained.index)
    return opened


@pytest.mark.parametrize("metric", Metric)
def test_nearest_is_brute_force(metric: Metric):
    generator = np.random.default_rng(1)
    vectors, queries = generator.normal(size=(50, 7)), generator.normal(size=(4, 7))
    found, distances = nearest(prepare(queries, metric), prepare(vectors, metric), 6, metric)
    if metric is Metric.COSINE:
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
        expected = 1 - queries @ vectors.T / lengths
    else:
        expected = np.linalg.norm(queries[:, None] - vectors, axis=2)
    assert (found == np.argsort(expected, axis=1)[:, :6]).all()
    assert distances == pytest.approx(np.sort(expected, axis=1)[:, :6], abs=1e-5)


@pytest.mark.slow
def test_pca_is_that_of_the_singular_vectors():
    vectors = np.random.default_rng(2).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1]
    points = project(vectors, Projection.PCA, Metric.L2)
    centred = vectors - vectors.mean(axis=0)
    expected = centred @ np.linalg.svd(centred)[2][:2].T
    assert np.abs(points) == pytest.approx(np.abs(expected), abs=1e-4)
    assert (project(vectors[:1], Projection.PCA, Metric.L2) == np.zeros((1, 2))).all()  # without a warning


@pytest.mark.slow
@pytest.mark.parametrize("projection", [Projection.UMAP, Projection.TSNE])
def test_projections_keep_neighbourhoods_and_follow_the_seed(projection: Projection):
    vectors, cluster = clusters(5, 30, 12)
    epochs: list[int] = []
    threads = torch.get_num_threads()
    points = project(vectors, projection, Metric.COSINE, seed=3, on_epoch=lambda done, total: epochs.append(done))
    assert points.shape == (150, 2)
    found, _ = nearest(points, points, 10, Metric.L2)
    assert (cluster[found] == cluster[:, None]).mean() > 0.98
    assert (project(vectors, projection, Metric.COSINE, seed=3) == points).all()
    assert epochs or projection is Projection.TSNE
    assert torch.get_num_threads() == threads  # or whoever trains afterwards would wait for threads at each step


def test_a_new_vector_is_placed_among_its_neighbours():
    vectors, cluster = clusters(4, 20, 9)
    corners = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])[cluster] + 0.0
    assert place(vectors[[5, 45]], vectors, corners, Metric.COSINE) == pytest.approx(corners[[5, 45]])
    # The nearest counts 1, one at the mean excess distance exp(-1).
    line = np.array([[0.0], [1.0], [3.0], [4.0], [8.0], [100.0]])
    where = place(np.array([[0.0]]), line, np.hstack([line, line]), Metric.L2)
    weights = np.exp(-np.array([0, 1, 3, 4, 8]) / 3.2)
    assert where[0] == pytest.approx(np.full(2, weights @ [0, 1, 3, 4, 8] / weights.sum()), rel=1e-5)


@pytest.mark.slow
def test_few_networks_have_a_picture_too():
    for count in (3, 4, 5, 9):
        vectors = np.random.default_rng(count).normal(size=(count, 8))
        assert np.isfinite(project(vectors, Projection.UMAP, Metric.COSINE)).all()


@pytest.mark.slow
def test_a_sample_is_seeded_and_said(source: Source):
    total = len(source.values)
    whole = source.sample(None, total, 0)
    assert whole.label == f"{total:,} networks in all"
    drawn = source.sample(None, 10, 7)
    assert drawn.label == f"10 of {total:,} networks in all, drawn at random"
    assert len(set(drawn.positions.tolist())) == 10
    assert (drawn.positions == source.sample(None, 10, 7).positions).all()
    assert (drawn.positions != source.sample(None, 10, 8).positions).any()
    held_out = source.sample(Part.TEST, total, 0)
    assert set(source.columns["split"][held_out.positions]) == {"test"}
    assert "of held-out runs" in held_out.label


@pytest.mark.slow
def test_similarity_is_the_sorted_cosine_matrix_with_its_block_means(source: Source):
    figure = figures.similarity([source], Options(part=Part.ALL), lambda _: None)
    order = np.argsort(-source.values, kind="stable")
    unit = source.vectors(source.methods[0], order)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    (image,) = figure.axes[0].get_images()
    assert np.asarray(image.get_array()) == pytest.approx(unit @ unit.T, abs=1e-5)
    assert image.get_clim() == (-1, 1)
    bad, good = source.thresholds
    means = block_means(source.vectors(source.methods[0], np.arange(len(order))), source.values, good, bad)
    written = texts(figure)
    assert f"good–good {means.good_good:+.2f}" in written
    assert f"bad–bad {means.bad_bad:+.2f}" in written
    assert f"good–bad {means.good_bad:+.2f}" in written
    assert f"digits v1: {len(order)} networks in all, good ≥ {good:.2f}, bad ≤ {bad:.2f}" in written


@pytest.mark.slow
def test_a_run_is_followed_through_the_picture(source: Source, trained: TrainSummary):
    run = str(source.columns["run"][0])
    options = Options(projection=Projection.PCA, run=run.rpartition("/")[2])
    figure = figures.training([source], options, lambda _: None)
    axes = figure.axes[0]
    own = np.flatnonzero(source.columns["run"] == run)
    points = project(source.vectors(source.methods[0], np.arange(len(source.values))), Projection.PCA, Metric.COSINE)
    order = own[np.argsort(source.columns["epoch"][own])]
    dots = [np.asarray(drawn.get_offsets()) for drawn in axes.collections if not hasattr(drawn, "get_segments")]
    projected, points = points, np.empty_like(points)
    points[np.argsort(source.values, kind="stable")] = dots[0]  # all networks, the best on top
    assert np.hypot(*((points - projected) / np.ptp(projected, axis=0)).T).max() < 0.1
    assert [dot for dot in dots if dot.shape == points[order].shape and dot == pytest.approx(points[order])]
    (steps,) = [drawn.get_segments() for drawn in axes.collections if hasattr(drawn, "get_segments")]
    lengths = np.hypot(*(np.diff(points[order], axis=0) / np.ptp(points, axis=0)).T)
    assert len(steps) == (lengths < 0.25).sum()  # none across empty space
    epochs = np.sort(source.columns["epoch"][own])
    named = [text.get_text() for text in axes.texts]
    assert {f"{epochs[0]:g}", f"{epochs[-1]:g}"} <= set(named)
    assert len(named) <= 5
    assert f"run {run}" in texts(figure)
    with pytest.raises(UsageError, match="--run nobody"):
        figures.training([source], Options(run="nobody"), lambda _: None)


def test_dots_at_one_place_are_moved_apart_and_others_are_not():
    generator = np.random.default_rng(0)
    lonely = np.stack([np.linspace(0, 10, 21), np.tile([0.0, 4.0], 11)[:21]], axis=1)
    island = np.tile([[5.2, 2.0]], (9, 1))  # a run's epochs
    points = np.concatenate([lonely, island + generator.normal(scale=1e-6, size=island.shape)])
    moved = (spread(points, 0.03) - points) / np.ptp(points, axis=0)
    assert np.hypot(*moved[:21].T).max() < 1e-3
    scaled = spread(points, 0.03)[21:] / np.ptp(points, axis=0)
    gaps = np.hypot(*(scaled[:, None] - scaled[None]).transpose(2, 0, 1)) + np.eye(9)
    assert gaps.min() > 0.8 * 0.03  # each shows, in little more than the room that nine dots take
    assert np.hypot(*moved[21:].T).max() < 3 * 0.03


@pytest.mark.slow
def test_a_network_is_joined_to_its_nearest(source: Source, trained: TrainSummary):
    options = Options(projection=Projection.PCA, networks=(trained.examples[0].path,))
    figure = figures.embedding([source], options, lambda _: None)
    (lines,) = [drawn for drawn in figure.axes[0].collections if hasattr(drawn, "get_segments")]
    assert len(lines.get_segments()) == 5
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    for segment in lines.get_segments():
        assert np.abs(points - segment[1]).sum(axis=1).min() < 1e-5
    answer = query(trained.index, trained.examples[0].path)
    (label,) = figure.axes[0].texts
    assert label.get_text() == f"{trained.examples[0].path.name}, {answer.predicted:.2f} predicted"
    figure.canvas.draw()
    inside = figure.axes[0].get_window_extent()
    written = label.get_window_extent()
    assert inside.x0 <= written.x0 <= written.x1 <= inside.x1
    assert inside.y0 <= written.y0 <= written.y1 <= inside.y1


@pytest.mark.slow
def test_white_is_zero_and_more_than_six_pictures_wrap(source: Source, monkeypatch: pytest.MonkeyPatch):
    figure = figures.similarity([source], Options(part=Part.ALL), lambda _: None)
    (image,) = figure.axes[0].get_images()
    assert np.asarray(image.cmap(image.norm(0.0)))[:3] == pytest.approx(1, abs=0.04)
    monkeypatch.setattr(source, "methods", source.methods * 8)
    figure = figures.embedding([source], Options(projection=Projection.PCA), lambda _: None)
    figure.canvas.draw()
    tops = {round(axes.get_position().y1, 2) for axes in figure.axes if axes.get_title()}
    assert len(tops) == 2


def test_a_network_of_another_architecture_is_one_line(source: Source, tmp_path: Path):
    import torch

    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsearchError, match="its architecture"):
        figures.embedding([source], Options(networks=(tmp_path / "other.pt",)), lambda _: None)


@pytest.mark.slow
def test_distribution_counts_every_network(source: Source):
    figure = figures.distribution([source], Options(), lambda _: None)
    bars = figure.axes[0].patches
    assert sum(bar.get_height() for bar in bars) == len(source.values)
    dots = np.asarray(figure.axes[1].collections[0].get_offsets())
    assert dots == pytest.approx(np.stack([source.columns["train_accuracy"], source.values], axis=1))


def trial(method: Method, r2: float) -> dict[str, object]:
    return {"method": method.value, "parameters": 1000, "validation": {"r2": r2}}


@pytest.mark.slow
def test_efficiency_draws_the_best_trials(tmp_path: Path):
    results = [trial(Method.FC, r2) for r2 in np.linspace(0, 0.9, 30)] + [{}, {"validation": None}]
    best = top_trials(results)
    assert [each["validation_r2"] for each in best] == sorted(np.linspace(0, 0.9, 30), reverse=True)[:TOP]
    zoo = {"dataset": "usps", "preset": "v1", "runs": 3, "top_trials": best}
    (tmp_path / "tables.json").write_text(json.dumps({"zoos": [zoo]}))
    (written,) = draw(tmp_path / "tables.json", tmp_path / "out", quiet=True)
    assert written.name == "efficiency.png"
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(WeightsearchError, match=r"broken\.json"):
        draw(tmp_path / "broken.json", tmp_path / "out", quiet=True)


@pytest.mark.slow
def test_formats_and_themes(trained: TrainSummary, tmp_path: Path):
    (light,) = draw(trained.index, tmp_path / "light", ["distribution"], quiet=True)
    (dark,) = draw(trained.index, tmp_path / "dark", ["distribution"], dark=True, quiet=True)
    assert imread(light)[0, 0, :3].min() > 0.95
    assert imread(dark)[0, 0, :3].max() < 0.2
    (svg,) = draw(trained.index, tmp_path, ["distribution"], format=Format.SVG, quiet=True)
    assert svg.name == "distribution.svg"
    assert "digits v1: all" in svg.read_text()
    first = svg.read_bytes()
    draw(trained.index, tmp_path, ["distribution"], format=Format.SVG, quiet=True)
    assert svg.read_bytes() == first


def test_wrong_arguments_are_one_line(trained: TrainSummary, tmp_path: Path):
    with pytest.raises(UsageError, match="portrait"):
        draw(trained.index, tmp_path, ["portrait"], quiet=True)
    with pytest.raises(UsageError, match="efficiency"):
        draw(trained.index, tmp_path, ["efficiency"], quiet=True)
    with pytest.raises(UsageError, match="at least one"):
        draw([], tmp_path, quiet=True)
    with pytest.raises(UsageError, match="--method magic"):
        draw(trained.zoo, tmp_path, methods=["magic"], quiet=True)


@pytest.mark.slow
def test_a_zoo_is_drawn_through_encoders_that_are_fitted_once(
    zoo: Zoo, trained: TrainSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (position,) = np.flatnonzero(zoo.table().run == zoo.table().run[-1])[-1:]
    write_checkpoint(tmp_path / "own.pt", zoo.weights([position])[0], zoo.architecture, {})
    options = {"methods": ["raw weights", "statistics"], "root": tmp_path, "quiet": True}
    written = draw([zoo, trained.index], tmp_path / "out", networks=[tmp_path / "own.pt"], **options)
    assert [path.stem for path in written] == ["distribution", "embedding", "similarity", "training"]
    assert list(tmp_path.glob("fits/digits-v1-by-run-*/statistics/*/encoder.safetensors"))

    def refuse(*_: object) -> None:
        raise AssertionError("a fit was made again")

    monkeypatch.setattr("weightsearch.training.runner.ProcessPoolExecutor.submit", refuse)
    first = {path: path.read_bytes() for path in written}
    again = draw([zoo, trained.index], tmp_path / "out", networks=[tmp_path / "own.pt"], **options)
    assert {path: path.read_bytes() for path in again} == first
