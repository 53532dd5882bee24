"""The same work as tasks on a Ray cluster of two workers of this machine, which are killed at random moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EVERYTHING, share
from tests.search.test_shards import ROOT, added, assert_same, copy_of_index, sweep
from tests.zoo.test_build_zoo import built, content, tiny
from weightsearch.errors import UsageError
from weightsearch.search.record_writer import AddReport
from weightsearch.search.shards import collect
from weightsearch.training.options import TrainOptions
from weightsearch.training.random_search import search
from weightsearch.training.runner import SplitSpec
from weightsearch.types import Method
from weightsearch.zoo.options import BuildOptions
from weightsearch.zoo.store import Zoo

__all__ = ["added", "built", "sweep", "tiny"]  # fixtures

# Kills a worker that is at a task, `KILLS` times for each kind of work, and says how often it did.
ON_RAY = """
import json, os, random, sys, threading, time
from pathlib import Path
import psutil, ray
from weightsearch.ray_tasks import connect
from weightsearch.search import shards
from weightsearch.training.random_search import search
from weightsearch.training.runner import SplitSpec
from weightsearch.types import Method
from weightsearch.zoo.build_zoo import build_zoo

place, kills = Path(sys.argv[1]), int(sys.argv[2])
sweep, zoo, recipes = sys.argv[3:]
shards.TASK_FILES = 2
chance, killed = random.Random(0), {}

def kill(task):
    killed[task] = 0
    while killed[task] < kills and not ended.wait(chance.uniform(0, 0.1)):
        ours = {one.pid for one in psutil.Process().children(recursive=True)}
        workers = [one for one in psutil.process_iter(["cmdline"])
                   if one.ppid() in ours and "ray::" + task in " ".join(one.info["cmdline"] or [])]
        if workers:
            chance.choice(workers).kill()
            killed[task] += 1

def under_kills(task, call):
    global ended
    ended = threading.Event()
    killer = threading.Thread(target=kill, args=[task], daemon=True)
    killer.start()
    result = call()
    ended.set()
    killer.join()
    return result

connect(ray, "local", 2)
embed = lambda: shards.embed(
    [sweep], place / "parts", index=place / "index", dataset="usps", ray="local", quiet=True)
report = under_kills("read_task", embed)
steps = []
built = under_kills("train_task", lambda: build_zoo(
    place / "zoo", runs=5, seed=3, recipes=recipes, ray="local", quiet=True, progress=lambda *now: steps.append(now)))
searched = under_kills("run_job", lambda: search(
    SplitSpec(zoo), Method.STATISTICS, trials=6, epochs=15, ray="local", root=place / "searches"))
again = embed()
ray.shutdown()
print(json.dumps({
    "killed": killed, "embed": [report.files, report.read, len(report.parts)], "again": [again.read, again.already],
    "built": [built.runs, built.trained], "last step": steps[-1], "best": searched.best,
    "losses": [trial["losses"] for trial in searched.trials],
}))
"""


@pytest.mark.slow
def test_workers_killed_on_ray_change_nothing(
    sweep: Path,
    added: tuple[Path, AddReport],
    tiny: Path,
    built: tuple[Path, object, object],
    zoo: Zoo,
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="weightsearch[ray] is not installed")
    index, kills = copy_of_index(tmp_path / "index"), share(20)
    command = [sys.executable, "-c", ON_RAY, str(tmp_path), str(kills), str(sweep), str(zoo.path), str(tiny)]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",  # else it writes a token into the home directory
        "RAY_worker_niceness": "0",  # else workers wait for every other test
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])  # Ray tells of the dead as well
    assert min(report["killed"].values()) >= 1
    assert report["killed"]["read_task"] == kills
    assert report["embed"] == [21, 21, 11]
    assert report["again"] == [0, 21]
    collect(tmp_path / "parts", index, quiet=True)
    assert_same(index, added[0])

    assert report["built"] == [5, 5]
    assert report["last step"] == [10, 10]
    assert content(tmp_path / "zoo") == content(built[0])

    local = search(SplitSpec(str(zoo.path)), Method.STATISTICS, trials=6, epochs=15, workers=1, root=tmp_path / "local")
    assert report["losses"] == [trial["losses"] for trial in local.trials]
    assert report["best"] == local.best
    [kept] = (tmp_path / "searches").rglob("encoder.safetensors")
    assert kept.read_bytes() == (local.encoder_directory / "encoder.safetensors").read_bytes()


# A cluster of three nodes on this machine; one of them is killed, with all its processes, while a task runs there.
ON_NODES = """
import json, sys, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from weightsearch.search import shards

place, sweep = Path(sys.argv[1]), sys.argv[2]
shards.TASK_FILES = 2
memory = {"num_cpus": 1, "object_store_memory": 2**27}
cluster = Cluster(initialize_head=True, head_node_args=memory | {"include_dashboard": False})
nodes = [cluster.add_node(**memory) for _ in range(2)]
cluster.wait_for_nodes()
lost = []

def kill_the_first_that_works():
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
    while not lost and not ended.wait(0.005):
        for one in psutil.process_iter(["ppid", "cmdline"]):
            if one.info["ppid"] in raylets and "ray::read_task" in " ".join(one.info["cmdline"] or []):
                lost.append(raylets[one.info["ppid"]].unique_id)
                cluster.remove_node(raylets[one.info["ppid"]], allow_graceful=False)
                return

ended = threading.Event()
killer = threading.Thread(target=kill_the_first_that_works, daemon=True)
killer.start()
report = shards.embed(
    [sweep], place / "parts", index=place / "index", dataset="usps", ray=cluster.address, quiet=True)
ended.set()
killer.join()
cluster.shutdown()
print(json.dumps({"lost": len(lost), "embed": [report.files, report.read, len(report.parts)]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not EVERYTHING, reason="three nodes take long to start: of `make test-all`")
def test_a_node_killed_changes_nothing(sweep: Path, added: tuple[Path, AddReport], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="weightsearch[ray] is not installed")
    index = copy_of_index(tmp_path / "index")
    command = [sys.executable, "-c", ON_NODES, str(tmp_path), str(sweep)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"lost": 1, "embed": [21, 21, 11]}
    collect(tmp_path / "parts", index, quiet=True)
    assert_same(index, added[0])


def test_options_of_local_work_do_not_go_with_ray() -> None:
    for changes, words in (({"workers": 2}, "--workers"), ({"device": "cuda"}, "--device cuda")):
        with pytest.raises(UsageError, match=words):
            BuildOptions(ray="local", **changes)
        with pytest.raises(UsageError, match=words):
            TrainOptions(ray="local", trials=3, **changes)
    with pytest.raises(UsageError, match="give --trials"):
        TrainOptions(ray="local")
