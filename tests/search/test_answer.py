"""Answers: from files, from memory and from the index itself; filtered, forecast, compared, and honest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.index.test_store import change_rows
from weightsearch import Index, query
from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint
from weightsearch.encoders import activation_code, build_encoder, save_encoder
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.index import remove_rows
from weightsearch.paths import REFERENCE_INDEX
from weightsearch.search import wording as words
from weightsearch.search.answer import Answer
from weightsearch.search.weights_location import read_source
from weightsearch.training.fit_settings import DEFAULTS
from weightsearch.training.summary import TrainSummary
from weightsearch.types import Method
from weightsearch.uncertainty.calibration import Calibration
from weightsearch.uncertainty.conformal import Conformal
from weightsearch.uncertainty.novelty import LayerDifference, describe_layers
from weightsearch.zoo.store import Zoo

pytestmark = pytest.mark.slow  # several encoders are fitted first


@pytest.fixture
def index(trained: TrainSummary) -> Index:
    return Index.open(trained.index)


@pytest.fixture
def example(trained: TrainSummary) -> Path:
    return trained.examples[0].path


def embeddings(index: Index) -> dict[str, np.ndarray]:
    (fingerprint,) = index.architectures
    columns = index.table(fingerprint, ["id", "run", "epoch", "test_accuracy", "predicted_accuracy", "split"])
    vectors = index.embeddings(fingerprint)
    return {**columns, "unit": vectors / np.linalg.norm(vectors, axis=1, keepdims=True)}


def test_files_modules_state_dicts_and_checkpoints_get_the_same_answer(index: Index, example: Path):
    checkpoint = read_checkpoint(example)
    state = torch.load(example)["state_dict"]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("conv1", "conv2", "conv3"):
                rows, channels = state[f"{name}.weight"].shape[:2]
                setattr(self, name, torch.nn.Conv2d(channels, rows, 3))
            self.dense = torch.nn.Linear(16, 10)

    module = Network()
    module.load_state_dict(state)
    answers = [index.query(model, 3, epoch=2) for model in (example, str(example), checkpoint, state, module)]
    assert [answer.path for answer in answers] == [str(example)] * 3 + ["state dict", "Network"]
    for answer in answers:
        assert answer.predicted == answers[0].predicted
        assert answer.neighbours == answers[0].neighbours
        assert answer.layers == answers[0].layers
    with pytest.raises(UsageError, match="int is no network"):
        index.query(3)
    with pytest.raises(UsageError, match="or the id"):
        index.query()


def test_the_encoder_is_told_the_activation(index: Index, example: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch):
    index.query(example, 1)  # loads the encoder
    encoder = index._space(zoo.architecture.fingerprint).encoder
    embed, told = encoder.embed, []
    monkeypatch.setattr(
        encoder, "embed", lambda weights, codes: (told.append(codes.tolist()), embed(weights, codes))[1]
    )
    checkpoint = read_checkpoint(example)
    index.query(checkpoint, 1)
    index.query(replace(checkpoint, metadata={}), 1)
    index.query(replace(checkpoint, metadata={}), 1, activation="tanh")
    stated = checkpoint.metadata["recipe"]["activation"]
    assert told == [[activation_code(stated)], [0.0], [activation_code("tanh")]]
    assert len({activation_code("relu"), activation_code("tanh"), 0.0}) == 3


def test_an_id_answers_as_its_row_without_being_its_own_neighbour(index: Index):
    rows = embeddings(index)
    answer = index.query(id=rows["id"][30][:10], k=4)
    assert answer.id == rows["id"][30]
    assert answer.predicted == rows["predicted_accuracy"][30]
    assert answer.stated_accuracy == rows["test_accuracy"][30]
    assert (answer.run, answer.epoch) == (rows["run"][30], rows["epoch"][30])
    distances = 1 - rows["unit"] @ rows["unit"][30]
    distances[30] = np.inf
    assert [row.id for row in answer.neighbours] == rows["id"][np.argsort(distances, kind="stable")[:4]].tolist()
    assert answer.verdict.startswith("Known ")
    assert (
        f"accuracy {answer.stated_accuracy:.3f}" in answer.verdict or f"{answer.stated_accuracy:.3f}" in answer.verdict
    )
    with pytest.raises(UsageError, match="no checkpoint with id"):
        index.query(id="0123456789abcdef")


def test_an_id_needs_neither_torch_nor_the_zoo(trained: TrainSummary, index: Index):
    id = embeddings(index)["id"][5]
    code = (
        "import sys; from weightsearch import Index\n"
        f"answer = Index.open({str(trained.index)!r}).query(id={id!r})\n"
        "print([m for m in ('torch', 'sympy', 'rich', 'weightsearch.zoo') if m in sys.modules], len(answer.layers))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 4"


def test_loading_any_encoder_imports_no_more_than_torch(tmp_path: Path, zoo: Zoo):
    """Drawing or filling tensors on the meta device, as loading does, may import half of torch and sympy."""
    for method in Method:
        (tmp_path / method).mkdir()
        encoder = build_encoder(zoo.architecture, DEFAULTS[method][0], torch.Generator())
        save_encoder(encoder, tmp_path / method, {})
    code = (
        "import sys; from pathlib import Path; from weightsearch.encoders import load_encoder\n"
        f"for path in Path({str(tmp_path)!r}).iterdir(): load_encoder(path)\n"
        "print([m for m in ('sympy', 'torch._dynamo') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_costs_no_needless_imports(trained: TrainSummary, example: Path):
    code = (
        f"import sys; from weightsearch import query; query({str(trained.index)!r}, {str(example)!r})\n"
        "print([m for m in ('sympy', 'rich', 'sklearn', 'scipy', 'weightsearch.zoo.store') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_filters_reach_the_search(index: Index):
    rows = embeddings(index)
    own = rows["run"] == rows["run"][30]
    distances = 1 - rows["unit"] @ rows["unit"][30]

    def expected(passing: np.ndarray, k: int = 5) -> list[str]:
        order = [i for i in np.argsort(distances, kind="stable") if passing[i] and i != 30]
        return rows["id"][order[:k]].tolist()

    id = rows["id"][30]
    assert [row.id for row in index.query(id=id, k=5, not_run=True).neighbours] == expected(~own)
    late = index.query(id=id, k=5, where="epoch >= 3").neighbours
    assert [row.id for row in late] == expected(rows["epoch"] >= 3)
    good = index.query(id=id, k=5, good="0.5").good
    assert [row.id for row in good] == expected(rows["test_accuracy"] >= 0.5)
    near = index.query(id=id, k=200, within=0.05).neighbours
    assert [row.id for row in near] == expected(distances <= 0.05, 200)
    runs = [row.run for row in index.query(id=id, k=6, per_run=1).neighbours]
    assert len(set(runs)) == len(runs) == 6


def test_the_own_run_comes_from_the_file_or_from_the_user(index: Index, example: Path, tmp_path: Path):
    checkpoint = read_checkpoint(example)
    assert index.query(example, 2, not_run=True).run == checkpoint.metadata["run"]
    write_checkpoint(tmp_path / "bare.pt", checkpoint.weights, checkpoint.architecture)
    with pytest.raises(WeightsearchError, match=r"bare\.pt does not say which run.*--run"):
        index.query(tmp_path / "bare.pt", 2, not_run=True)
    nearest = index.query(tmp_path / "bare.pt", 1).neighbours[0].run
    answer = index.query(tmp_path / "bare.pt", 2, not_run=True, run=nearest)
    assert nearest not in [row.run for row in answer.neighbours]


def test_a_forecast_is_how_the_most_similar_runs_ended(index: Index, trained: TrainSummary):
    rows = embeddings(index)
    position = int(np.flatnonzero(rows["epoch"] == 2)[3])
    answer = index.query(id=rows["id"][position])
    distances = 1 - rows["unit"] @ rows["unit"][position]
    limit = trained.calibration.distance_limit  # farther ones are not similar
    ends: dict[str, float] = {}
    for i in np.argsort(distances, kind="stable"):
        run = rows["run"][i]
        if not 1 <= rows["epoch"][i] <= 3 or run == rows["run"][position]:
            continue
        if distances[i] <= limit and run not in ends and len(ends) < 10:
            of_run = np.flatnonzero(rows["run"] == run)
            ends[run] = rows["test_accuracy"][of_run[np.argmax(rows["epoch"][of_run])]]
    forecast = answer.forecast
    assert forecast is not None
    values = np.array(list(ends.values()))
    assert (forecast.epoch, forecast.runs) == (2, len(ends))
    assert len(ends) >= 3
    assert (forecast.median, forecast.low, forecast.high) == pytest.approx(
        (np.median(values), values.min(), values.max())
    )
    assert forecast.good == (values >= answer.good_threshold).sum()
    assert forecast.bad == (values <= answer.bad_threshold).sum()
    assert f"{len(ends)} runs that looked like this at epoch 2 ended at {forecast.median:.2f}" in words.forecast(answer)


def test_runs_that_are_far_away_do_not_look_like_it():
    """In the shipped space of all architectures what has learned nothing is far from a good network."""
    (example,) = REFERENCE_INDEX.glob("*/examples/cnn-1.pt")
    answer = Index.open(REFERENCE_INDEX).query(example, 10, where="test_accuracy < 0.2", per_run=1)
    assert answer.novelty is not None
    near = [row for row in answer.neighbours if row.distance <= answer.novelty.distance_limit]
    assert len(near) < 3 <= len(answer.neighbours)
    assert answer.forecast is None


def test_no_forecast_without_an_epoch_or_after_the_last(index: Index, example: Path):
    rows = embeddings(index)
    last = rows["id"][np.argmax(rows["epoch"])]
    assert index.query(id=last).forecast is None
    late = np.unique(rows["epoch"])[-2]
    assert index.query(id=rows["id"][np.flatnonzero(rows["epoch"] == late)[0]]).forecast is not None
    checkpoint = replace(read_checkpoint(example), metadata={})
    assert index.query(checkpoint).forecast is None
    assert index.query(checkpoint, epoch=2).forecast is not None


def test_intervals_are_of_networks_that_the_encoder_was_not_fitted_on(index: Index, example: Path, zoo: Zoo):
    space = index._space(zoo.architecture.fingerprint)
    space.calibration = Calibration(Conformal(0.2, 0.9, 12), 0.9, 12, 2.0)
    answer = index.query(example)
    low, high = Conformal(0.2, 0.9, 12).interval(np.array([answer.predicted]))
    assert answer.interval == (low[0], high[0])
    assert f"(90 %: {low[0]:.2f} to {high[0]:.2f})" in " ".join(str(answer).split())
    rows = embeddings(index)
    fitted = index.query(id=rows["id"][rows["split"] == "train"][0])
    assert fitted.interval is None
    assert "fitted on this network's run" in fitted.notes[0]
    assert index.query(id=rows["id"][rows["split"] == "test"][0]).interval is not None


def test_a_broken_network_is_said_to_be_unlike_anything_known(index: Index, example: Path, zoo: Zoo):
    checkpoint = read_checkpoint(example)
    ordinary = index.query(checkpoint)
    assert ordinary.novelty is not None
    assert not ordinary.novelty.outside
    dead = checkpoint.weights.copy()
    dead[zoo.architecture.slices[1]] = 0
    answer = index.query(replace(checkpoint, weights=dead))
    assert answer.novelty is not None
    assert answer.novelty.outside
    assert answer.label == "unlike"
    assert answer.verdict.startswith(f"Broken: layer {zoo.architecture.layers[1].name} is all zero. Test it")
    assert answer.to_dict()["interval"] is None
    assert answer.to_dict()["percentile"] is None
    odd = index.query(replace(checkpoint, weights=np.abs(checkpoint.weights) * 50))
    assert odd.label == "unlike"
    assert odd.verdict.startswith("Unlike anything the index knows: its layers are further")
    assert "would be a guess" in odd.verdict
    assert odd.interval is odd.percentile is None


@pytest.mark.parametrize("method", Method)
def test_a_dead_layer_has_a_finite_embedding(method: Method, zoo: Zoo):
    encoder = build_encoder(zoo.architecture, DEFAULTS[method][0], torch.Generator())
    weights = zoo.weights(np.arange(40, 60))
    encoder.calibrate(encoder.features(torch.from_numpy(weights)))
    for part in zoo.architecture.slices:
        dead = weights.copy()
        dead[:, part] = 0
        assert all(torch.isfinite(tensor).all() for tensor in encoder.embed(torch.from_numpy(dead)))


def test_an_embedding_that_is_not_finite_is_one_line(
    index: Index, example: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
):
    index.query(example, 1)  # loads the encoder
    nothing = (torch.full((1, 64), torch.nan), torch.zeros(1))
    monkeypatch.setattr(index._space(zoo.architecture.fingerprint).encoder, "embed", lambda *_: nothing)
    with pytest.raises(WeightsearchError, match=rf"{example}: .*so large that its embedding is not finite"):
        index.query(example, 1)


def test_layers_are_compared_with_the_nearest_good_and_bad(index: Index, example: Path, zoo: Zoo):
    answer = index.query(example)
    space = index._space(zoo.architecture.fingerprint)
    assert space.familiar is not None
    table = zoo.table()
    weights = [zoo.weights(np.flatnonzero(table.id == rows[0].id)[:1])[0] for rows in (answer.good, answer.bad)]
    own, good, bad = describe_layers(np.stack([read_checkpoint(example).weights, *weights]), zoo.architecture)
    assert answer.layers == space.familiar.compare(zoo.architecture, own, good, bad)
    unlike = max(answer.layers, key=lambda layer: layer.good or 0)
    assert unlike.good_words in words.layers_table(answer).to_text()


def test_prediction_and_neighbours_that_disagree_are_not_to_be_trusted(index: Index, example: Path):
    answer = replace(index.query(example), novelty=None, forecast=None, by_activation={})
    assert answer.neighbours_accuracy == pytest.approx(np.mean([row.value for row in answer.neighbours]))
    assert answer.agrees == (abs(answer.neighbours_accuracy - answer.predicted) <= 0.15)
    for agrees, beginning in ((True, "Probably good: about"), (False, "Unsure: about")):
        judged = replace(answer, agrees=agrees)
        assert words.verdict(replace(judged, label=words.label(judged))).startswith(beginning)


def test_answers_print_as_text_as_html_and_as_json(index: Index, example: Path):
    answer = index.query(example, 2)
    shown = replace(answer, path="<script>.pt", layers=(LayerDifference("<b>", 0.5, None, "larger weights"),))
    page = shown._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;.pt" in page
    assert page.count("<table>") >= 3
    for row in answer.neighbours:
        assert row.id[:8] in page
        assert row.id[:8] in "".join(table.to_text() for table in words.tables(answer))
    for row in answer.runs[:1]:
        assert row.id[:8] in str(answer)
    assert " ".join(str(answer).split()).startswith(answer.verdict)
    assert json.loads(json.dumps(answer.to_dict(), allow_nan=False))["neighbours"][0]["id"] == answer.neighbours[0].id


def test_titles_say_what_good_means(index: Index, example: Path):
    answer = index.query(example, 2, good="q75")

    def listed(given: Answer) -> str:
        return "\n".join(table.to_text() for table in words.tables(given))

    assert f"2 good (accuracy ≥ {answer.good_threshold:.3f})" in listed(answer)
    assert f"2 bad (accuracy ≤ {answer.bad_threshold:.3f})" in listed(answer)
    other = replace(answer, neighbours=(), good=answer.bad, bad=())  # as where each dataset has thresholds of its own
    assert "Nearest 2 good (for their dataset)" in listed(other)
    assert "No checkpoint passes" in listed(other)
    assert "No bad one" in listed(other)
    unknown = replace(answer, good_threshold=float("nan"), bad_threshold=float("nan"), good=(), bad=())
    assert "None is good or not: the index knows no accuracy" in listed(unknown)
    assert words.verdict(replace(unknown, neighbours=(), neighbours_accuracy=None, percentile=None, novelty=None))


def test_a_deep_network_shows_the_layers_least_alike(index: Index, example: Path):
    layers = tuple(LayerDifference(f"block{i}", i / 10, i / 20, "larger weights", "smaller biases") for i in range(40))
    text = words.layers_table(replace(index.query(example), layers=layers)).to_text()
    assert "8 of 40, the least alike" in text
    assert "block39" in text
    assert "block12" not in text


def test_get_writes_back_what_was_indexed(index: Index, zoo: Zoo, tmp_path: Path):
    rows = embeddings(index)
    for suffix in ("pt", "safetensors"):
        path = index.get(rows["id"][9], tmp_path / f"back.{suffix}")
        assert read_checkpoint(path).id == rows["id"][9]
    state = torch.load(tmp_path / "back.pt")
    assert list(state) == [f"{layer.name}.{part}" for layer in zoo.architecture.layers for part in ("weight", "bias")]


def test_a_copy_is_judged_by_the_index_and_what_it_says_of_itself_is_told(index: Index, tmp_path: Path):
    known = embeddings(index)
    id, accuracy = str(known["id"][0]), float(known["test_accuracy"][0])
    written = index.get(id, tmp_path / "known.pt")
    torch.save({"state_dict": torch.load(written), "test_accuracy": 0.999}, tmp_path / "boasting.pt")
    answer = index.query(tmp_path / "boasting.pt")
    assert answer.verdict.startswith("Known ")
    assert f"{accuracy:.3f} on" in answer.verdict
    assert "the file itself says 0.999" in str(answer)


def test_get_says_where_the_weights_should_be(index_copy: Path, tmp_path: Path, index: Index):
    id = embeddings(index)["id"][9]
    gone = tmp_path / "gone"
    change_rows(index_copy, f"UPDATE ix.checkpoints SET source = '{gone}#3/4' WHERE id = '{id}'")
    with pytest.raises(WeightsearchError, match=rf"should be in {gone} \(run 3, epoch 4\), which is not here"):
        Index.open(index_copy).get(id, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_weights_come_from_the_file_they_were_added_from_unless_it_changed(example: Path, tmp_path: Path):
    checkpoint = read_checkpoint(example)
    write_checkpoint(tmp_path / "own.pt", checkpoint.weights, checkpoint.architecture)
    (tmp_path / "index").mkdir()
    found = read_source(
        checkpoint.id, "own.pt", tmp_path / "index", checkpoint.architecture
    )  # beside the index, wherever one is
    assert np.array_equal(found.weights, checkpoint.weights)
    write_checkpoint(tmp_path / "own.pt", checkpoint.weights + 1, checkpoint.architecture)
    with pytest.raises(WeightsearchError, match=r"own\.pt holds other weights by now"):
        read_source(checkpoint.id, "own.pt", tmp_path / "index", checkpoint.architecture)
    with pytest.raises(WeightsearchError, match=r"does not say where its weights came from"):
        read_source(checkpoint.id, None, tmp_path / "index", checkpoint.architecture)


def test_an_unknown_architecture_gets_the_known_ones(index: Index):
    with pytest.raises(WeightsearchError, match=r"dense 2x3.*is not in .*knows conv2d 16x1x3x3"):
        index.query(torch.nn.Linear(3, 2))


def test_an_answer_is_frozen(index: Index, example: Path):
    answer = index.query(example, 1)
    assert isinstance(answer, Answer)
    with pytest.raises(AttributeError):
        answer.verdict = "fine"  # type: ignore[misc]


def test_an_index_of_fewer_rows_than_asked_for_by_default_answers_with_all(tmp_path: Path):
    index, example = tmp_path / "index", REFERENCE_INDEX / "examples" / "good.pt"
    shutil.copytree(REFERENCE_INDEX, index)
    remove_rows(index, where="run IS DISTINCT FROM 'usps-v1/10' OR epoch < 60")
    answer = query(index, example)
    assert {row.run for row in answer.neighbours} == {"usps-v1/10"}
    assert len(answer.neighbours) == 3
    with pytest.raises(UsageError, match="between 1 and 3"):
        query(index, example, k=1000)
