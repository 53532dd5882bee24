"""Mutants of sound files of every other format: one line or a checkpoint, no code, no crash, no gigabyte.

Those of PyTorch's files, safetensors, `.npz` and metadata are in `tests.attack.files`, which has the harness.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.attack.common import in_child
from tests.attack.files import AT_A_TIME, examine, faults, mutated
from tests.checkpoints.other_formats import WRITERS
from tests.conftest import share

EACH = -(-20_000 // len(WRITERS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_mutants(name: str, tmp_path: Path):
    sound = tmp_path / name
    try:
        WRITERS[name](sound)
    except ImportError as error:
        pytest.skip(f"{error}: weightsearch[formats]")
    files = sorted(file for file in sound.iterdir() if file.is_file()) if sound.is_dir() else [sound]
    assert not faults([sound], in_child(lambda say: examine([sound], say)))
    contents = [file.read_bytes() for file in files]
    draw = random.Random(name + os.environ.get("WEIGHTSEARCH_SEED", ""))
    left = share(EACH)
    while left:
        paths = []
        for number in range(min(left, AT_A_TIME)):
            file = draw.choice(files)
            mutant = tmp_path / f"{number}-{name}"
            content = mutated(draw, file.read_bytes(), contents)
            if sound.is_dir():
                shutil.copytree(sound, mutant)
                (mutant / file.name).write_bytes(content)
                paths.append(mutant / "adapter_model.safetensors" if name == "adapter" else mutant)
            else:
                mutant.write_bytes(content)
                paths.append(mutant)
        ended = in_child(lambda say, paths=paths: examine(paths, say))
        wrong = faults(paths, ended)
        if wrong:
            number, fault = next(iter(wrong.items()))
            where = Path(os.environ.get("WEIGHTSEARCH_MUTANTS", tmp_path)) / f"fault-{paths[number].name}"
            if paths[number].is_file():
                shutil.copy(paths[number], where)
            raise AssertionError(f"{where}: {fault} (and {len(wrong) - 1} more)")
        left -= len(paths)
        for number in range(len(paths)):
            mutant = tmp_path / f"{number}-{name}"
            shutil.rmtree(mutant) if mutant.is_dir() else mutant.unlink()
