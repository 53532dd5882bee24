"""The random search: drawn by trial number, resumed after a kill, stopped when below_median, the best kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weightsearch.encoders import load_encoder
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.metrics import score
from weightsearch.training.random_search import V1, V2, draw_trial, search, search_directory, search_jobs
from weightsearch.training.represent import represent_zoo
from weightsearch.training.runner import (
    SCORES,
    FitJob,
    SplitSpec,
    is_hopeless,
    load_protocol,
    read_result,
    run_jobs,
    thread_pool,
    worker_pool,
)
from weightsearch.types import Baseline, Method, SplitBy
from weightsearch.zoo.store import Zoo


@pytest.mark.slow
def test_trials_are_drawn_by_their_number_from_the_published_spaces():
    for method in (Method.FC, Method.COMVEX_CONV):
        for space in (V1, V2):
            drawn = [draw_trial(method, number, space, seed=0, epochs=300) for number in range(1, 400)]
            assert drawn[7] == draw_trial(method, 8, space, seed=0, epochs=300)
            assert drawn[7] != draw_trial(method, 8, space, seed=1, epochs=300)
            configs, settings = zip(*drawn, strict=True)
            assert {config["hidden_layers"] for config in configs} == set(range(2, 9))
            sizes = [config["hidden_size"] for config in configs]
            assert space.hidden_size[0] <= min(sizes) < max(sizes) <= space.hidden_size[1]
            rates = np.array([setting["learning_rate"] for setting in settings])
            assert 2e-5 <= rates.min() < rates.max() <= 2e-3
            assert np.median(rates) == pytest.approx(2e-4, rel=0.25)  # log-uniform
            assert {setting["batch_size"] for setting in settings} == {64, 128, 256, 512}
            assert len({setting["optimizer"] for setting in settings}) == 5
            assert len({config["initializer"] for config in configs}) == 4
            decays = [setting["weight_decay"] for setting in settings]
            assert space.weight_decay[0] <= min(decays) < max(decays) <= space.weight_decay[1]


def test_hopeless_is_above_the_median_of_the_others_best_until_then():
    curves = [[0.5, 0.3, 0.4] + [0.1] * 20, [0.2] * 5, [0.6] * 30, [0.4] * 30]
    assert not is_hopeless(0.9, 15, curves[:3])  # too few to compare with
    assert is_hopeless(0.31, 15, curves)  # the median of .1, .2, .6, .4 is .3
    assert not is_hopeless(0.29, 15, curves)


@pytest.mark.slow
def test_a_search_keeps_the_best_encoder_and_more_trials_add_to_it(zoo: Zoo, tmp_path: Path):
    protocol = SplitSpec(str(zoo.path), seed=2)  # where the first trial is not the best
    few = search(protocol, Method.STATISTICS, trials=3, epochs=15, workers=2, root=tmp_path)
    losses = [trial["validation"]["mse"] for trial in few.trials]
    assert few.best == int(np.argmin(losses)) > 0
    assert [path.name for path in few.directory.glob("trial-*/")] == [few.encoder_directory.name]
    _, split = load_protocol(protocol)
    predicted = represent_zoo(zoo, load_encoder(few.encoder_directory), split.validation).predicted
    again = score(predicted, zoo.table().test_accuracy[split.validation])
    assert again.mse == pytest.approx(losses[few.best])
    assert "test" not in few.trials[few.best]  # the test part was not looked at

    refit = few.encoder_directory / "encoder.safetensors"
    made = refit.stat().st_mtime_ns
    search(protocol, Method.STATISTICS, trials=3, epochs=15, workers=1, root=tmp_path)
    assert refit.stat().st_mtime_ns == made
    seen: list[float] = []
    more = search(
        protocol, Method.STATISTICS, trials=5, epochs=15, workers=1, root=tmp_path,
        on_trial=lambda result: seen.append(result["seconds"]),
    )  # fmt: skip
    assert more.trials[:3] == few.trials
    assert seen[:3] == [trial["seconds"] for trial in few.trials]
    fresh = search(protocol, Method.STATISTICS, trials=5, epochs=15, workers=2, root=tmp_path / "fresh")
    assert [trial["losses"] for trial in fresh.trials] == [trial["losses"] for trial in more.trials]
    assert search_directory(replace(protocol, by=SplitBy.CHECKPOINT), Method.FC, 15) != few.directory


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.COMVEX_CONV, Method.INVARIANT])
def test_threads_that_share_a_device_fit_the_same_as_processes(method: Method, zoo: Zoo, tmp_path: Path):
    """With dropout and noise on, whose generators are each fit's own."""
    found = []
    for name, pool in (("processes", worker_pool(2)), ("threads", thread_pool(3, "cpu"))):
        jobs = search_jobs(SplitSpec(str(zoo.path)), method, 5, epochs=4, keep=False, root=tmp_path / name)
        jobs = [
            replace(job, compared_with=(), config={**job.config, "dropout": 0.3, "input_noise": 0.1}) for job in jobs
        ]
        with pool as workers:
            run_jobs(jobs, workers)
        found.append([(read_result(job.out) or {})["losses"] for job in jobs])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.slow
def test_interrupted_threads_end_and_leave_no_result(zoo: Zoo, tmp_path: Path):
    jobs = search_jobs(SplitSpec(str(zoo.path)), Method.COMVEX_CONV, 1, epochs=10**6, keep=False, root=tmp_path)
    jobs = [replace(job, settings={**job.settings, "epochs": 10**6, "patience": 10**6}) for job in jobs]
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), thread_pool(2, "cpu") as pool:
        run_jobs(jobs, pool)
    assert not Path(jobs[0].out).exists()


def test_a_device_that_is_not_there_is_one_line():
    for device, words in (("cuda:99", "graphics cards"), ("tpu", "choose cpu"), ("cuda:x", "cuda:1"), ("cpu:0", "cpu")):
        with pytest.raises(UsageError, match=f"--device {device}.*{words}"), worker_pool(1, device):
            pass


@pytest.mark.slow
def test_a_search_goes_on_after_kill_9_and_leaves_no_process(zoo: Zoo, tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from weightsearch.training.random_search import search\n"
        "from weightsearch.training.runner import SplitSpec\n"
        "from weightsearch.types import Method\n"
        "search(SplitSpec(sys.argv[1]), Method.STATISTICS, trials=60, epochs=40, workers=2, root=Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(zoo.path), str(tmp_path)], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("trial-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while True:  # the workers notice and end
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = {path: path.read_text() for path in tmp_path.rglob("trial-*.json")}
    assert 3 <= len(done) < 60
    found = search(
        SplitSpec(str(zoo.path)), Method.STATISTICS, trials=len(done) + 2, epochs=40, workers=2, root=tmp_path
    )
    assert len(found.trials) == len(done) + 2
    assert all(path.read_text() == text for path, text in done.items())
    assert (found.encoder_directory / "encoder.safetensors").exists()


@pytest.mark.slow
def test_a_diverged_trial_is_a_result_and_a_judged_one_knows_its_test_part(zoo: Zoo, tmp_path: Path):
    protocol = SplitSpec(str(zoo.path), per_run=1)
    config, settings = draw_trial(Method.STATISTICS, 0, V1, 0, 5)
    trees = draw_trial(Baseline.HYPERPARAMETERS, 1, V1, 0, 5)
    jobs = [
        FitJob(str(tmp_path / "a.json"), protocol, "statistics", config, {**settings, "learning_rate": 1e38}),
        FitJob(str(tmp_path / "b.json"), protocol, "statistics", config, settings, score_test=True),
        FitJob(str(tmp_path / "c.json"), protocol, "hyperparameters", *trees, score_test=True),
    ]
    with worker_pool(1) as pool:
        run_jobs(jobs, pool)
    diverged, encoder, baseline = (read_result(job.out) for job in jobs)
    assert diverged is not None and "diverged" in diverged["error"] and diverged["validation"] is None  # noqa: PT018
    assert encoder is not None and encoder["test"]["count"] == 4  # noqa: PT018
    assert baseline is not None and baseline["test"]["count"] == 4  # noqa: PT018
    assert "NaN" not in Path(jobs[2].out).read_text()
    json.loads(Path(jobs[0].out).read_text())


@pytest.mark.slow
def test_judging_a_kept_trial_gives_what_fitting_it_again_gives(zoo: Zoo, tmp_path: Path):
    protocol = SplitSpec(str(zoo.path))
    config, settings = draw_trial(Method.COMVEX_CONV, 1, V1, 0, 3)
    trial = FitJob(str(tmp_path / "trial.json"), protocol, "comvex-conv", config, settings, keep=True)
    anew = replace(trial, out=str(tmp_path / "anew.json"), keep=False, score_test=True)
    # With another seed, a fit would give something else.
    kept = replace(anew, out=str(tmp_path / "kept.json"), repeats=trial.out, seed=99)
    other = replace(kept, out=str(tmp_path / "other.json"), repeats="")
    with worker_pool(1) as pool:
        run_jobs([trial, anew, kept, other], pool)
    fitted, expected, found, another = (read_result(job.out) for job in (trial, anew, kept, other))
    assert fitted and expected and found and another  # noqa: PT018
    assert found["test"] == expected["test"]
    assert {key: found[key] for key in SCORES} == {key: fitted[key] for key in SCORES}
    assert another["test"] != expected["test"]

    Path(kept.out).unlink()  # a fit that was stopped as below_median is fitted to its end
    Path(trial.out).write_text(json.dumps({**fitted, "stopped": True}))
    with worker_pool(1) as pool:
        run_jobs([kept], pool)
    assert (read_result(kept.out) or {})["test"] == another["test"]


@pytest.mark.slow
def test_errors_of_a_worker_are_the_users_one_line(zoo: Zoo, tmp_path: Path):
    config, settings = draw_trial(Method.STATISTICS, 0, V1, 0, 5)
    job = FitJob(str(tmp_path / "a.json"), SplitSpec(str(tmp_path / "none")), "statistics", config, settings)
    with pytest.raises(WeightsearchError, match="none is missing"), worker_pool(1) as pool:
        run_jobs([job], pool)
    with pytest.raises(UsageError, match="--workers 0"), worker_pool(0):
        pass
