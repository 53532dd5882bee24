"""Hostile files: sound ones of every kind, mutated, and metadata that no honest program writes."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.attack.common import Ended, Report, in_child, peak_mib, reset_peak
from tests.attack.seeds import seeds
from weightsearch.checkpoints import read_checkpoint
from weightsearch.checkpoints.discovery import as_cell
from weightsearch.checkpoints.metadata import Metadata, as_fractions, interpret, stand_ins
from weightsearch.checkpoints.metadata_table import MetadataTable, read_json
from weightsearch.checkpoints.readers.guard import read_apart
from weightsearch.checkpoints.trackers.trainer import trainer_state
from weightsearch.errors import WeightsearchError
from weightsearch.search.wording import recipe_text
from weightsearch.text_table import Table
from weightsearch.zoo.small_cnn_zoo import read_layout

FILE_SECONDS = 20.0  # of the processor's, for one file
CHILD_SECONDS = 600.0  # of all files of a child, on a busy machine
FILE_MIB = 700.0  # more than before it was opened
AT_A_TIME = 1000
# What reading a file never does. https://docs.python.org/3/library/audit_events.html
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.remove", "os.rename")
TEXTS = (
    *("\ud800", "a\0b", "\x1b]52;c;aGE=\x1b\\", "\x1b[2J", "[/foo]", "[bold]x", "=1+1", "@SUM(A1)", "\u202egnp.exe"),
    *("line\nbreak", "", " ", "'", '"', "\\", "$", "*", "a.b", "__0", "__number", "number", "x" * 5000, "é" * 300),
    *("NaN", "Infinity", "1e999", "0x10", "١٢", "<script>alert(1)</script>", "|", "%s", "{}", "{0.__class__}"),
)
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**12, 10**400, 0.1, 1e308, -0.0, math.nan, math.inf, True, None)
KEYS = (
    *("run", "epoch", "dataset", "test_accuracy", "val_acc", "config", "metrics", "learning_rate", "recipe", "id"),
    *("hyper_parameters", "args", "step", "global_step", "log_history", "training_iteration", "activation", "seed"),
    *("optimizer", "embedding", "architecture", "metadata", "state_dict", "weight_map"),
)


def value(draw: random.Random, depth: int = 0) -> Any:
    """A JSON value such as nobody should write."""
    kind = draw.random()
    if depth < 3 and kind < 0.2:
        return {draw.choice(KEYS + TEXTS): value(draw, depth + 1) for _ in range(draw.randrange(4))}
    if depth < 3 and kind < 0.35:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind < 0.37:
        nested: Any = 1
        for _ in range(draw.choice((30, 600))):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        return nested
    return draw.choice(TEXTS) if kind < 0.65 else draw.choice(NUMBERS)


def mutated(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """One to four changes."""
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(changed) + 1)
        length = min(draw.choice((1, 2, 4, 8, 64, 512)), len(changed) - at)
        match draw.randrange(8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at : at + length] = bytes(length)
            case 2:
                changed[at : at + length] = draw.randbytes(length)
            case 3:
                del changed[at:]
            case 4:
                changed[at:at] = changed[at : at + length] * draw.choice((1, 2, 100))
            case 5:
                other = draw.choice(others)
                changed[at:] = other[draw.randrange(len(other)) :]
            case 6:
                number = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                width = draw.choice((4, 8))
                changed[at : at + width] = number.to_bytes(8, "little")[:width]
            case _:
                del changed[at : at + length]
    return bytes(changed)


def hostile(draw: random.Random, seed: Path, others: list[bytes]) -> bytes:
    """A mutant of a seed; of those in JSON, half have values of other kinds in their places."""
    content = seed.read_bytes()
    if seed.suffix == ".json" and draw.random() < 0.6:
        tree = json.loads(content)
        for _ in range(draw.randrange(1, 4)):
            tree[draw.choice([*tree, *KEYS, *TEXTS])] = value(draw)
        return json.dumps(tree, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if seed.name == "table.jsonl" and draw.random() < 0.6:
        row = {"path": draw.choice(TEXTS), draw.choice(KEYS + TEXTS): value(draw)}
        return content + json.dumps(row).encode("utf-8", "surrogatepass") + b"\n"
    if seed.name == "table.csv" and draw.random() < 0.6:
        cells = [str(draw.choice(TEXTS + NUMBERS[:8])).replace("\n", " ") for _ in range(4)]
        return content + ",".join(cells).encode("utf-8", "replace") + b"\n"
    return mutated(draw, content, others)


def judge(path: Path) -> None:
    """Reads a file as weightsearch would; raises AssertionError where more than one line of error comes of it."""
    try:
        read = _read(path)
    except WeightsearchError as error:
        if "\n" in str(error):
            raise AssertionError("an error of several lines") from error
        return
    for metadata in read:
        kept = {"run": metadata.run, "dataset": metadata.dataset, "recipe": metadata.recipe, "extras": metadata.extras}
        text = json.dumps(kept, allow_nan=False, ensure_ascii=False)
        text.encode()  # as a database does
        assert "\0" not in text, "NUL is kept"
        assert metadata.epoch is None or math.isfinite(metadata.epoch), "an endless epoch"
        shown = Table("", ("run", "recipe"), ((metadata.run or "", recipe_text(dict(metadata.recipe))),))
        for said in (shown.to_text(), as_cell(metadata.run or "")):
            assert all(line.isprintable() for line in said.split("\n")) or said == as_cell(metadata.run or "")
        assert as_cell(metadata.run or "")[:1] not in ("=", "+", "-", "@"), "a formula"
    as_fractions(read)
    assert all(isinstance(note, str) for note in stand_ins(read))


def _read(path: Path) -> list[Metadata]:
    if path.name.endswith("layout.csv"):
        read_layout(path)
        return []
    if path.name.endswith("trainer_state.json"):
        return [interpret(trainer_state(path), "trainer_state.json")]
    if ".tfevents." in path.name:
        return [interpret({tag: points[-1][1] for tag, points in read_apart("events", path).items()}, "tfevents")]
    if path.name.endswith(".index.json") or path.suffix not in (".json", ".csv", ".jsonl", ".parquet"):
        return [interpret(read_checkpoint(path).metadata, "file")]
    if path.suffix == ".json":
        return [interpret(read_json(path), "sidecar")]
    rows = MetadataTable.read(path)._rows.values()
    return [row if isinstance(row, Metadata) else interpret(row, "table") for row in rows]


def examine(paths: list[Path], say: Callable[[Any], None]) -> None:
    """In a child: judges each file, and says what came of it, in how many seconds and MiB."""
    armed = False

    def watch(event: str, arguments: Any) -> None:
        is_reader = event == "subprocess.Popen" and any("readers.child" in str(part) for part in arguments)
        if armed and event in FORBIDDEN and not is_reader:
            raise AssertionError(f"it caused {event}")

    sys.addaudithook(watch)
    for number, path in enumerate(paths):
        say([number, "begins"])
        reset_peak()
        before, start, fault = peak_mib(), time.process_time(), None
        armed = True
        try:
            judge(path)
        except Exception as error:
            fault = f"{type(error).__name__}: {str(error)[:200]}"
        armed = False
        say([number, fault, time.process_time() - start, peak_mib() - before])


def faults(paths: list[Path], ended: Ended, report: Report | None = None) -> dict[int, str]:
    """Of each faulty file what is wrong with it, from what the child said."""
    by_number: dict[int, str] = {}
    begun = -1
    for said in ended.said:
        if said[1] == "begins":
            begun = said[0]
            continue
        if said[0] == "error":
            by_number[begun] = f"the child ended: {said[1:]}"
            continue
        number, fault, seconds, mib = said
        begun = -1
        if report is not None:
            report.most("seconds of a file", seconds)
            report.most("MiB of a file", mib)
        if fault is not None:
            by_number[number] = fault
        elif seconds > FILE_SECONDS:
            by_number[number] = f"took over {FILE_SECONDS:.0f} s"
        elif mib > FILE_MIB:
            by_number[number] = f"took over {FILE_MIB:.0f} MiB"
    if begun >= 0 and begun not in by_number:
        by_number[begun] = f"ended the process (signal {ended.signal})"
    return by_number


def shrink(content: bytes, name: str, fault: str, folder: Path, seconds: float = 20.0) -> bytes:
    """The smallest file found within `seconds` that shows the same fault: parts are left out as long as it does."""
    kind = fault.partition(":")[0]
    deadline = time.monotonic() + seconds
    size = len(content) // 2
    path = folder / f"shrink-{name}"
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(content) and time.monotonic() < deadline:
            shorter = content[:at] + content[at + size :]
            path.write_bytes(shorter)
            again = faults([path], in_child(lambda say: examine([path], say), limit=FILE_SECONDS))
            if again.get(0, "").partition(":")[0] == kind:
                content = shorter
            else:
                at += size
        size //= 2
    return content


def attack(report: Report, folder: Path, draw: random.Random, until: float) -> None:
    """Mutants by the hundred, some hundreds in a child."""
    folder.mkdir(parents=True, exist_ok=True)
    sound = folder / "seeds"
    sound.mkdir()
    in_child(lambda say: seeds(sound))
    kinds = sorted(sound.iterdir())
    contents = [kind.read_bytes() for kind in kinds]
    for module in ("torch", "duckdb", "safetensors.numpy"):  # once, not in each child
        import_module(module)
    broken = faults(kinds, in_child(lambda say: examine(kinds, say)), report)
    assert kinds, "no seeds could be made"
    assert not broken, f"the seeds themselves: {broken}"
    while time.monotonic() < until:
        paths = []
        for number in range(AT_A_TIME):
            kind = draw.choice(kinds)
            path = folder / f"{number}-{kind.name}"
            path.write_bytes(hostile(draw, kind, contents))
            paths.append(path)
        ended = in_child(lambda say, paths=paths: examine(paths, say), limit=CHILD_SECONDS)
        wrong = faults(paths, ended, report)
        report.counts["files"] += sum(said[1] != "begins" for said in ended.said)
        for number, fault in wrong.items():
            path = paths[number]
            if all(kept["text"] != fault for kept in report.findings):
                small = shrink(path.read_bytes(), path.name, fault, folder)
                report.finding("files", fault, small, f"-{path.name}")
        for path in paths:
            path.unlink()
