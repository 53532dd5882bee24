"""Files of an index damaged as disks and copies damage them, with their old time: a wrong answer is never silent."""

from __future__ import annotations

import io
import logging
import os
import random
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.common import Report, in_child
from tests.index.test_store import DENSE, make_index, make_rows
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore, State, doctor
from weightsearch.types import Selection

WAYS = ("flip", "zero", "truncate", "grow", "exchange", "exchange in a block", "remove", "noise")
HEADERS, BLOCK = 3 * 4096, 2**18  # of a DuckDB file; a block's checksum adds its words up, and comes first
ROWS, WIDTH = 3000, 64  # a FAISS file of 750 KB


def damage(draw: random.Random, content: bytes, way: str) -> bytes | None:
    """None: the file is gone."""
    changed = bytearray(content)
    at = draw.randrange(len(changed))
    if way == "flip":
        changed[at] ^= 1 << draw.randrange(8)
    elif way == "zero":
        end = min(len(changed), at + draw.choice((512, 4096, 2**16)))
        changed[at:end] = bytes(end - at)
    elif way == "truncate":
        del changed[at:]
    elif way == "grow":
        changed += draw.randbytes(draw.choice((1, 512, 4096)))
    elif way == "exchange" and len(changed) > 8192:
        size = 4096
        one, other = (draw.randrange(len(changed) // size) * size for _ in range(2))
        changed[one : one + size], changed[other : other + size] = (
            changed[other : other + size],
            changed[one : one + size],
        )
    elif way == "exchange in a block" and len(changed) >= HEADERS + BLOCK:
        size = draw.choice((8, 8, 64, 512, 4096))
        start = HEADERS + draw.randrange((len(changed) - HEADERS) // BLOCK) * BLOCK + 8
        one, other = sorted(start + draw.randrange((BLOCK - 8) // size) * size for _ in range(2))
        part = changed[one : one + size]
        changed[one : one + size] = changed[other : other + size]
        changed[other : other + size] = part
    elif way == "remove":
        return None
    else:
        changed[at : at + 64] = draw.randbytes(len(changed[at : at + 64]))
    return bytes(changed)


def ask(path: Path, say: Callable[[Any], None]) -> None:
    """In a child: answers to fixed questions, and what was said about damage."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger("weightsearch").addHandler(handler)
    try:
        index = IndexStore.open(path)
        generator = np.random.default_rng(3)
        answers = []
        for where in (None, "number % 3 = 0", "optimizer = 'adam'"):
            vector = generator.standard_normal(WIDTH).astype(np.float32)
            answer = index.search(DENSE.fingerprint, vector, 5, Selection(where=where))
            lists = (answer.neighbours, answer.good, answer.bad)
            answers.append([[row.id, round(row.distance, 4), row.run] for rows in lists for row in rows])
        answers.append([index.count(DENSE.fingerprint), index.find(answers[0][0][0]).columns["run"]])
        table = index.table(DENSE.fingerprint, ["id", "epoch", "train_loss", "split", "recipe"])
        answers.append([sha256(repr(column.tolist()).encode()).hexdigest() for column in table.values()])
        answers.append([sha256(index.embeddings(DENSE.fingerprint)).hexdigest()])
        encoder = index.encoder_directory(DENSE.fingerprint)
        answers.append([sha256(file.read_bytes()).hexdigest() for file in sorted(encoder.glob("encoder.*"))])
        say(["answers", answers, heard.getvalue()[:300]])
    except WeightsearchError as error:
        say(["refused", str(error)[:300]])


def examine(path: Path, say: Callable[[Any], None]) -> None:
    """In a child: what the doctor calls broken; where that is nothing, the answers afterwards."""
    broken = [finding.what for finding in doctor(path) if finding.state is State.BROKEN]
    if broken:
        say(["broken", broken])
    else:
        ask(path, say)


def attack(report: Report, folder: Path, draw: random.Random, until: float) -> None:
    """Each damage is done to a fresh copy."""
    folder.mkdir(parents=True, exist_ok=True)
    sound, path = folder / "sound", folder / "index"
    in_child(lambda say: make_index(sound, make_rows(ROWS, WIDTH)))
    right = in_child(lambda say: ask(sound, say)).said[-1]
    assert right[0] == "answers", right
    files = [file.relative_to(sound) for file in sound.rglob("*") if file.is_file() and "lock" not in file.name]
    while time.monotonic() < until:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(sound, path)
        name, way = draw.choice(files), draw.choice(WAYS)
        file = path / name
        before = file.stat()
        changed = damage(draw, file.read_bytes(), way)
        if changed is None:
            file.unlink()
        else:
            if changed == file.read_bytes():
                continue
            file.write_bytes(changed)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        report.counts["damages"] += 1
        place = f"{way} of {name.name if 'vectors' not in name.name else 'vectors' + name.suffix}"
        ended = in_child(lambda say: ask(path, say))
        verdict = ended.said[-1] if ended.said else ["died", ended.signal]
        if verdict[0] == "answers" and verdict[1] != right[1]:
            report.finding("damages", f"{place}: a wrong answer{', with a warning' if verdict[2] else ''}", changed)
        elif verdict[0] not in ("answers", "refused"):
            report.finding("damages", f"{place}: {verdict[:4]}", changed)
        report.counts["damages refused in a line"] += verdict[0] == "refused"
        report.counts["damages without consequence"] += verdict[0] == "answers"
        looked = in_child(lambda say: examine(path, say))
        said = looked.said[-1] if looked.said else ["died", looked.signal]
        if said[0] == "broken":
            continue
        if said[0] not in ("answers", "refused"):
            report.finding("damages", f"{place}: doctor: {said[:4]}", changed)
            continue
        report.counts["damages that doctor repaired"] += verdict != right
        if said[:2] != right[:2]:
            report.finding("damages", f"{place}: doctor calls it sound, and a query says {said}"[:200], changed)
