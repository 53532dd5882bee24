"""Shards as tasks on a Ray cluster of two workers of this machine, which are killed at random moments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.search.test_shards import ROOT, added, assert_same, copy_of_index, sweep
from weightsearch.search.record_writer import AddReport
from weightsearch.search.shards import collect

__all__ = ["added", "sweep"]  # fixtures

pytest.importorskip("ray", reason="weightsearch[ray] is not installed")

# Kills each worker once, while it reads: `killed` holds what has happened so far.
ON_RAY = """
import random, sys, threading, time
import psutil, ray
from weightsearch.search import shards
from weightsearch.search.ray_tasks import connect
from weightsearch.search.shards import embed

sweep, parts, index, kills = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
shards.TASK_FILES = 2
chance, killed = random.Random(0), []

def kill():
    while len(killed) < kills:
        time.sleep(chance.uniform(0, 0.1))
        workers = [one for one in psutil.process_iter(["name", "cmdline"])
                   if one.ppid() in ours() and "ray::read_task" in " ".join(one.info["cmdline"] or [])]
        if workers:
            chance.choice(workers).kill()
            killed.append(1)

def ours():
    return {one.pid for one in psutil.Process().children(recursive=True)}

connect(ray, "local", 2)
threading.Thread(target=kill, daemon=True).start()
report = embed([sweep], parts, index=index, dataset="usps", ray="local", quiet=True)
print(report.files, report.read, len(report.parts), len(killed))
again = embed([sweep], parts, index=index, dataset="usps", ray="local", quiet=True)
print(again.read, again.already)
ray.shutdown()
"""


@pytest.mark.slow
def test_workers_killed_on_ray_change_nothing(sweep: Path, added: tuple[Path, AddReport], tmp_path: Path):
    index, parts = copy_of_index(tmp_path / "index"), tmp_path / "parts"
    command = [sys.executable, "-c", ON_RAY, str(sweep), str(parts), str(index), "2"]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",  # else it writes a token into the home directory
        "RAY_worker_niceness": "0",  # else workers wait for every other test
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line[:1].isdigit()]  # Ray tells of the dead as well
    assert told == ["21 21 11 2", "0 21"]
    collect(parts, index, quiet=True)
    assert_same(index, added[0])
