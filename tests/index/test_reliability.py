"""What an index promises when processes are killed, files are damaged, disks are full and others read and write.

`make test` samples a tenth of the kills, damages and random programs; `make test-all` does all.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.conftest import share
from tests.index.test_store import FINGERPRINT, change_rows, make_index, make_rows, more_rows
from tests.index.test_writer import by_id, check
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore, State, add_rows, doctor, rebuild, remove_rows, update_rows, vectors
from weightsearch.index import writer as writing
from weightsearch.index.manifest import DATABASE
from weightsearch.types import Selection

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

# Says what it is about to do, does it, and acknowledges it, until it is killed.
WRITER = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from tests.index.test_store import FINGERPRINT, more_rows
from weightsearch.index import add_rows, rebuild, remove_rows, vectors, writer
writer.STALE_ROWS = 10  # so that FAISS files are written all the time
path, first, generator = sys.argv[2], int(sys.argv[3]), np.random.default_rng(int(sys.argv[4]))
vectors.EXACT_LIMIT = int(sys.argv[5])
held = sys.argv[6:]
def say(*words):
    print(json.dumps(words), flush=True)
say("ready")
while True:
    action = generator.choice(["add", "add", "remove", "rebuild"])
    if action == "add":
        count = int(generator.integers(1, 30))
        say("add", first, count)
        rows = more_rows(count, first, seed=first)
        add_rows(path, FINGERPRINT, rows)
        held += rows.id.tolist()
        first += count
    elif action == "remove" and len(held) > 40:
        ids = generator.choice(held, int(generator.integers(1, 20)), replace=False).tolist()
        say("remove", ids)
        remove_rows(path, ids=ids)
        held = [id for id in held if id not in ids]
    elif action == "rebuild":
        say("rebuild")
        rebuild(path)
    else:
        continue
    say("done")
"""


def apply(action: list, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if action[0] == "add":
        return rows | by_id(more_rows(action[2], action[1], seed=action[1]))
    if action[0] == "remove":
        return {id: embedding for id, embedding in rows.items() if id not in action[1]}
    return rows


@pytest.mark.parametrize(("kills", "limit"), [(100, vectors.EXACT_LIMIT), (60, 40)])
def test_kills_at_random_moments_lose_nothing_acknowledged(
    kills: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of an index whose vectors FAISS has, and of one that has many rows for its `limit`: codes and mapped vectors."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", limit)
    path, generator = tmp_path / "index", np.random.default_rng(0)
    first = make_rows(50)
    make_index(path, first)
    expected, next_id, midway = by_id(first), 50, 0
    for kill in range(share(kills)):
        arguments = [str(ROOT), str(path), str(next_id), str(kill), str(limit), *expected]
        command = [sys.executable, "-c", WRITER, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == '["ready"]\n'
            time.sleep(generator.uniform(0, 0.5))
            writer.send_signal(signal.SIGKILL)
            said = [json.loads(line) for line in writer.stdout.read().splitlines() if line.endswith("]")]
        under_way = None
        for words in said:
            if words == ["done"]:
                expected = apply(under_way, expected)
                under_way = None
            else:
                under_way = words
                next_id = max(next_id, words[1] + words[2]) if words[0] == "add" else next_id
        if under_way is not None:
            midway += 1
            held = set(IndexStore.open(path).table(FINGERPRINT, ["id"])["id"])
            if held != set(expected):  # as a whole or not at all
                expected = apply(under_way, expected)
        check(path, expected)
        for id in list(expected)[-3:]:  # found by search
            assert IndexStore.open(path).search(FINGERPRINT, expected[id], 1).neighbours[0].distance < 1e-5
    assert midway > share(kills) // 4
    assert State.BROKEN not in {finding.state for finding in doctor(path)}
    assert {finding.state for finding in doctor(path)} == {State.OK}
    check(path, expected)
    assert not [file.name for file in path.rglob(".*.tmp")]


# Damages the files of an index in every way it is told, and says what came of it.
DAMAGER = """
import json, logging, os, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from tests.index.test_store import DENSE
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore
logging.disable()
path, file = Path(sys.argv[2]), Path(sys.argv[3])
whole = file.read_bytes()
def answer():
    index = IndexStore.open(path)
    index.encoder_directory(DENSE.fingerprint)  # as a question about a file does
    answer = index.search(DENSE.fingerprint, np.arange(8.0), 300)
    table = index.table(DENSE.fingerprint, ["id", "run", "test_accuracy", "recipe", "dataset"])
    lists = repr((answer.neighbours, answer.good, answer.bad))
    columns = {name: column.tolist() for name, column in table.items()}
    return lists, columns, index.embeddings(DENSE.fingerprint).tobytes()
truth = answer()
for line in sys.stdin:
    kind, place, bit = json.loads(line)
    content = bytearray(whole)
    if kind == "flip":
        content[place] ^= 1 << bit
    else:
        del content[place:]
    file.unlink()  # never over a mapped file
    file.write_bytes(content)
    try:
        print(json.dumps("same" if answer() == truth else "other"), flush=True)
    except WeightsearchError as error:
        print(json.dumps(str(error)), flush=True)
"""


@pytest.mark.parametrize("name", ["manifest.json", "index.duckdb", "encoder.json", "vectors-1.faiss", "vectors-1.json"])
def test_a_flipped_bit_or_a_truncation_changes_no_answer_unnamed(name: str, tmp_path: Path):
    """Either the answer is as before, from what is whole, or one line names the file."""
    path, generator = tmp_path / "index", np.random.default_rng(len(name))
    make_index(path, make_rows(300))
    file = next(path.rglob(name))
    size, count = file.stat().st_size, share(200)
    damages = [("flip", int(generator.integers(size)), int(generator.integers(8))) for _ in range(count)]
    damages += [("truncate", int(generator.integers(size)), 0) for _ in range(count // 4)] + [("truncate", 0, 0)]
    if name == "index.duckdb":
        damages += [("flip", place, bit) for bit, place in enumerate((8, 40, 4100, 4130, 8200, 8230, 12300))]  # headers
    command = [sys.executable, "-c", DAMAGER, str(ROOT), str(path), str(file)]
    lines = "".join(json.dumps(damage) + "\n" for damage in damages)
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(damages)
    named = 0
    for damage, answer in zip(damages, answers, strict=True):
        assert answer != "other", damage
        assert answer == "same" or (name in answer and "\n" not in answer), (damage, answer)
        named += answer != "same"
    if name in ("manifest.json", "encoder.json"):
        assert named == len(damages)
    if name == "index.duckdb":
        assert named > 0


@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "flip, as old"])
@pytest.mark.parametrize("name", ["manifest.json", "index.duckdb", "encoder.json", "vectors-1.faiss", "vectors-1.json"])
def test_the_doctor_repairs_or_names_every_damage(name: str, how: str, tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(300)
    make_index(path, rows)
    file = next(path.rglob(name))
    content, before = bytearray(file.read_bytes()), file.stat()
    place = 12288 + 100 if name == "index.duckdb" else len(content) // 2  # a block in use
    content[place] ^= 4
    if how == "truncate":
        os.truncate(file, place)
    else:
        file.unlink()
    if how.startswith("flip"):
        file.write_bytes(content)
    if how == "flip, as old":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    findings = doctor(path)
    wrong = [finding for finding in findings if finding.state is not State.OK]
    assert len(wrong) >= 1, findings
    if "vectors" in name:
        assert {finding.state for finding in wrong} == {State.REPAIRED}
        assert {finding.state for finding in doctor(path)} == {State.OK}
        check(path, by_id(rows))
    else:
        assert [finding.state for finding in wrong] == [State.BROKEN]
        assert name in wrong[0].what + wrong[0].detail
        assert "\n" not in wrong[0].detail


def test_the_doctor_finds_vectors_that_are_not_the_databases(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(50)
    make_index(path, rows)
    make_index(tmp_path / "other", make_rows(50, seed=5))
    for ending in ("faiss", "json"):  # sound in itself
        shutil.copy2(tmp_path / "other" / FINGERPRINT / f"vectors-1.{ending}", path / FINGERPRINT)
    assert [finding.state for finding in doctor(path) if "not the database's" in finding.detail] == [State.REPAIRED]
    check(path, by_id(rows))


def test_the_doctor_does_not_take_rotten_vectors_of_the_database_for_the_truth(tmp_path: Path):
    """DuckDB's checksum of a block is the same where words of it change places."""
    path, rows = tmp_path / "index", make_rows(50)
    make_index(path, rows)
    before = {file: file.read_bytes() for file in path.rglob("vectors-1.*")}
    taken = "(SELECT embedding FROM ix.checkpoints WHERE number = 8)"
    change_rows(path, f"UPDATE ix.checkpoints SET embedding = {taken} WHERE number = 7")  # before there were checksums
    (broken,) = (finding for finding in doctor(path) if finding.state is not State.OK)
    assert broken.state is State.BROKEN
    assert broken.what == DATABASE
    assert "1 rows' vectors" in broken.detail
    assert "number 7" in broken.detail
    assert {file: file.read_bytes() for file in path.rglob("vectors-1.*")} == before


def test_the_doctor_removes_what_killed_writers_left(tmp_path: Path):
    path, rows = tmp_path / "index", make_rows(50)
    make_index(path, rows)
    left = [path / ".manifest.json.77.tmp", path / FINGERPRINT / ".vectors-2.faiss.77.tmp"]
    left += [path / FINGERPRINT / "vectors-3.faiss", path / FINGERPRINT / "vectors-4.json"]  # one without the other
    for file in left:
        file.write_text("half")
    assert [finding.state for finding in doctor(path) if finding.what == "leftovers"] == [State.REPAIRED]
    assert not any(file.exists() for file in left)
    assert {finding.state for finding in doctor(path)} == {State.OK}
    check(path, by_id(rows))


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A process that has said that it is ready; ended afterwards."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert "ready" in running.stdout.readline()
        try:
            yield running
        finally:
            running.kill()


def test_readers_beside_a_busy_writer_wait_little_and_see_whole_states(tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(50))
    adder = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.index.test_store import FINGERPRINT, more_rows\n"
        "from weightsearch.index import add_rows, writer as writing\n"
        "writing.STALE_ROWS = 300\n"
        "print('ready', flush=True)\n"
        "for i in range(1000): add_rows(sys.argv[2], FINGERPRINT, more_rows(100, 50 + 100 * i, seed=i))\n"
    )
    reader, counts, longest = IndexStore.open(path), [], 0.0
    vector = np.random.default_rng(3).standard_normal(8)
    with process(adder, str(ROOT), str(path)):
        end = time.monotonic() + 6
        while time.monotonic() < end:
            for index in (reader, IndexStore.open(path)):
                start = time.monotonic()
                answer = index.search(FINGERPRINT, vector, 20)
                longest = max(longest, time.monotonic() - start)
                counts.append(answer.plan.rows)
                ids = [int(row.id, 16) for row in answer.neighbours]
                assert len(ids) == 20
                assert max(ids) < answer.plan.rows
    assert {count % 100 for count in counts} == {50}
    assert counts == sorted(counts)
    assert len(set(counts)) > 3  # it did write meanwhile
    assert longest < 2.5


HOLDER = """
import sys, time
from weightsearch.index.writer import writing
with writing(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_second_writer_waits_and_then_names_the_first(tmp_path: Path, monkeypatch):
    path = tmp_path / "index"
    make_index(path, make_rows(20))
    with process(HOLDER, str(path), "0.5"):
        assert add_rows(path, FINGERPRINT, more_rows(5, 20)).added == 5
    monkeypatch.setattr(writing, "WRITER_WAIT_SECONDS", 0.3)
    with process(HOLDER, str(path), "60") as holder:
        for change in (
            lambda: add_rows(path, FINGERPRINT, more_rows(5, 30)),
            lambda: remove_rows(path, ids=[f"{1:016x}"]),
            lambda: rebuild(path),
        ):
            with pytest.raises(WeightsearchError, match=rf"another process \(PID {holder.pid}\)") as caught:
                change()
            assert "\n" not in str(caught.value)
        assert len(IndexStore.open(path).search(FINGERPRINT, np.ones(8), 5).neighbours) == 5  # readers are not held up
    assert IndexStore.open(path).count(FINGERPRINT) == 25


LIMITED = """
import logging, resource, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.index.test_store import FINGERPRINT, more_rows
from weightsearch.errors import WeightsearchError
from weightsearch.index import add_rows, rebuild
logging.basicConfig(format="%(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
done = 0
try:
    for i in range(100):
        add_rows(sys.argv[2], FINGERPRINT, more_rows(1000, 50 + 1000 * i, seed=i))
        done += 1
except WeightsearchError as error:
    print(done, error)
"""


@pytest.mark.parametrize("limit", [700_000, 1_600_000, 3_000_000])
def test_a_full_disk_is_one_line_and_what_was_there_stays_good(limit: int, tmp_path: Path):
    """A limit on the size of files stands for the full disk."""
    path, rows = tmp_path / "index", make_rows(50)
    make_index(path, rows)
    command = [sys.executable, "-c", LIMITED, str(ROOT), str(path), str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr
    count, _, message = ended.stdout.rstrip("\n").partition(" ")
    assert "the disk is full; what is there stays good" in message, (ended.stdout, ended.stderr)
    assert "\n" not in message
    expected = by_id(rows)
    for i in range(int(count)):
        expected |= by_id(more_rows(1000, 50 + 1000 * i, seed=i))
    check(path, expected)
    assert add_rows(path, FINGERPRINT, more_rows(1000, 10**6)).added == 1000  # there is room again
    check(path, expected | by_id(more_rows(1000, 10**6)))
    assert {finding.state for finding in doctor(path)} == {State.OK}


READ_ONLY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tests.index.test_store import FINGERPRINT, more_rows
from weightsearch.errors import WeightsearchError
from weightsearch.index import IndexStore, State, add_rows, doctor
if os.getuid() == 0:  # root may write everywhere
    os.setgid(65534)
    os.setuid(65534)
answer = IndexStore.open(sys.argv[2]).search(FINGERPRINT, np.ones(8), 7)
print(len(answer.neighbours), len(IndexStore.open(sys.argv[2]).table(FINGERPRINT, ["id"])["id"]))
try:
    add_rows(sys.argv[2], FINGERPRINT, more_rows(5, 50))
except WeightsearchError as error:
    print(error)
for finding in doctor(sys.argv[2]):
    if finding.what.endswith("search") or finding.state is not State.OK:
        print(finding.what, finding.state.value, finding.detail)
"""


def test_a_read_only_directory_is_read_and_writing_to_it_is_one_line():
    root = Path(tempfile.mkdtemp())  # pytest's own is closed to other users
    try:
        make_index(root / "index", make_rows(50))
        for file in (root, *root.rglob("*")):
            file.chmod(0o555 if file.is_dir() else 0o444)
        ended = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(ROOT), str(root / "index")], capture_output=True, text=True
        )
        assert ended.stderr == ""
        refusal = f"cannot write {root / 'index'}: the directory is read-only; copy the index elsewhere to change it"
        found = f"changes broken {refusal}\n{FINGERPRINT}/search ok a row finds itself\n"
        assert ended.stdout == f"7 50\n{refusal}\n{found}"
    finally:
        for file in (root, root / "index", root / "index" / FINGERPRINT):
            file.chmod(0o755)
        shutil.rmtree(root)


class Programs(RuleBasedStateMachine):
    """Random programs of changes and queries, against a dict and brute force."""

    @initialize(seed=st.integers(0, 5), stale=st.sampled_from([0, 20, 10_000]))
    def begin(self, seed: int, stale: int) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "index"
        writing.STALE_ROWS = stale
        rows = make_rows(30, seed=seed)
        make_index(self.path, rows)
        self.rows = by_id(rows)
        self.accuracy = dict(zip(rows.id.tolist(), rows.test_accuracy.tolist(), strict=True))
        self.index = IndexStore.open(self.path)

    @rule(start=st.integers(0, 60), count=st.integers(1, 20), seed=st.integers(0, 3))
    def add(self, start: int, count: int, seed: int) -> None:
        rows = more_rows(count, start, seed)
        new = {id for id in rows.id.tolist() if id not in self.rows}
        summary = add_rows(self.path, FINGERPRINT, rows)
        assert (summary.added, summary.already) == (len(new), count - len(new))
        for i, id in enumerate(rows.id.tolist()):
            if id in new:
                self.rows[id], self.accuracy[id] = rows.embedding[i], float(rows.test_accuracy[i])

    @rule(share_of=st.integers(2, 9))
    def remove(self, share_of: int) -> None:
        ids = [id for id in self.rows if int(id, 16) % share_of == 1]
        if len(ids) < len(self.rows):
            assert remove_rows(self.path, ids=ids) == len(ids)
            for id in ids:
                del self.rows[id], self.accuracy[id]

    @rule(share_of=st.integers(2, 9), accuracy=st.floats(0, 1) | st.none())
    def update(self, share_of: int, accuracy: float | None) -> None:
        ids = [id for id in self.rows if int(id, 16) % share_of == 1]
        update_rows(self.path, {id: {"test_accuracy": accuracy, "mark": share_of} for id in ids})
        self.accuracy |= dict.fromkeys(ids, np.nan if accuracy is None else accuracy)

    @rule()
    def reopen(self) -> None:
        self.index = IndexStore.open(self.path)

    @rule()
    def anew(self) -> None:
        rebuild(self.path)

    @rule(seed=st.integers(0, 99), k=st.integers(1, 12), least=st.floats(0, 1), filtered=st.booleans())
    def query(self, seed: int, k: int, least: float, filtered: bool) -> None:
        vector = np.random.default_rng(seed).standard_normal(8)
        ids = [id for id in self.rows if not filtered or self.accuracy[id] >= least]
        vectors = np.array([self.rows[id] for id in ids], np.float64).reshape(len(ids), 8)
        distances = 1 - vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
        order = np.argsort(distances, kind="stable")[:k]
        selection = Selection(where=f"test_accuracy >= {least!r}" if filtered else None)
        answer = self.index.search(FINGERPRINT, vector, min(k, len(self.rows)), selection)
        assert answer.plan.rows_passing == len(ids)
        np.testing.assert_allclose([row.distance for row in answer.neighbours], distances[order], atol=1e-5)
        for row in answer.neighbours:
            expected = self.accuracy[row.id]
            assert row.test_accuracy == expected or (row.test_accuracy is None and np.isnan(expected))

    @invariant()
    def holds_what_it_should(self) -> None:
        table = self.index.table(FINGERPRINT, ["id", "test_accuracy"])
        assert sorted(table["id"]) == sorted(self.rows)
        np.testing.assert_array_equal(table["test_accuracy"], [self.accuracy[id] for id in table["id"]])
        np.testing.assert_array_equal(self.index.embeddings(FINGERPRINT), [self.rows[id] for id in table["id"]])

    def teardown(self) -> None:
        shutil.rmtree(self.directory)


def test_random_programs(monkeypatch):
    monkeypatch.setattr(writing, "STALE_ROWS", writing.STALE_ROWS)  # put back afterwards
    machine = Programs.TestCase
    machine.settings = settings(max_examples=share(60), stateful_step_count=15, deadline=None)
    machine("runTest").runTest()
