"""Rotten blocks keep a file's size and time: what is noticed, what is left, and what the doctor does about it."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import duckdb
import numpy as np
import pytest

from tests.index.test_store import DENSE, FINGERPRINT, change_rows, make_index, make_rows, write_encoder_files
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.files import exchange, turnstile, when_unlocked
from weightsearch.index import (
    IndexStore,
    State,
    create,
    doctor,
    export,
    info,
    rebuild,
    remove_rows,
    update_rows,
    update_where,
)
from weightsearch.index import writer as writing
from weightsearch.index.connection import TURN
from weightsearch.index.manifest import (
    DATABASE,
    MANIFEST,
    checksum,
    describe_file,
    is_intact,
    read_manifest,
    write_manifest,
)
from weightsearch.index.writer import LOCK
from weightsearch.types import Selection


def rot(path: Path, change) -> None:
    content, before = bytearray(path.read_bytes()), path.stat()
    change(content)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def zero(content: bytearray) -> None:
    content[4096:8192] = bytes(4096)


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 1


def swap(content: bytearray) -> None:
    content[:4096], content[4096:8192] = content[4096:8192], content[:4096]


def last(content: bytearray) -> None:
    content[-1] ^= 128


@pytest.mark.parametrize("change", [zero, flip, swap, last])
@pytest.mark.parametrize("size", [10_001, 3 * 2**20 + 7])
def test_any_damage_is_seen_though_size_and_time_are_as_before(size: int, change, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(size))
    expected = describe_file(path)
    assert is_intact(path, expected)
    os.utime(path, (1, 1))  # copied
    assert is_intact(path, expected)
    rot(path, change)
    assert not is_intact(path, expected)


def test_files_that_older_versions_described_are_compared_by_their_sha256(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    assert is_intact(path, {"bytes": 7, "sha256": sha256(b"weights").hexdigest()})
    path.write_bytes(b"Weights")
    assert not is_intact(path, {"bytes": 7, "sha256": sha256(b"weights").hexdigest()})


@pytest.mark.parametrize(
    ("content", "expected"),  # published ones, https://xxhash.com
    [
        (b"", "99aa06d3014798d86001c324468d497f"),
        (b"a", "a96faf705af16834e6c632b61e964e1f"),
        (b"abc", "06b05ab6733a618578af5f94892f3950"),
    ],
)
def test_checksums_are_xxh3(content: bytes, expected: str, tmp_path: Path):
    (tmp_path / "file").write_bytes(content)
    assert checksum(tmp_path / "file") == expected


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["", "{", "[]", "3"])
def test_a_cell_that_duckdb_takes_for_sound_is_named(cell: str, tmp_path: Path):
    """DuckDB's checksum of a block is the same where its words change places."""
    path, vector = tmp_path / "index", np.random.default_rng(1).standard_normal(8).astype(np.float32)
    make_index(path, make_rows(20))
    change_rows(path, f"UPDATE ix.checkpoints SET recipe = '{cell}'")  # before the index had checksums of its own
    if not cell:  # as where nothing is known
        assert IndexStore.open(path).search(FINGERPRINT, vector, 1).neighbours[0].recipe == {}
        return
    with pytest.raises(WeightsearchError, match=r"index\.duckdb is damaged \(a cell .* holds no JSON object\)"):
        IndexStore.open(path).search(FINGERPRINT, vector, 5)
    assert DATABASE in [finding.what for finding in doctor(path) if finding.state is State.BROKEN]


@pytest.mark.slow
def test_a_rotten_cache_is_left_and_the_answer_stays_right(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path, vector = tmp_path / "index", np.random.default_rng(1).standard_normal(8).astype(np.float32)
    make_index(path, make_rows(500))
    right = [row.id for row in IndexStore.open(path).search(FINGERPRINT, vector, 5).neighbours]
    rot(next(path.rglob("*.faiss")), zero)
    assert [row.id for row in IndexStore.open(path).search(FINGERPRINT, vector, 5).neighbours] == right
    assert "damaged" in caplog.text
    assert State.REPAIRED in {finding.state for finding in doctor(path)}
    caplog.clear()
    assert [row.id for row in IndexStore.open(path).search(FINGERPRINT, vector, 5).neighbours] == right
    assert not caplog.text


@pytest.mark.slow
def test_a_rotten_encoder_is_named_when_it_is_needed_and_a_short_or_lost_one_at_once(tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(9))
    store = IndexStore.open(path)
    file = next(path.rglob("encoder.json"))
    rot(file, flip)
    for needs in (IndexStore.open(path).encoder_directory, store.encoder_directory, lambda _: info(path)):
        with pytest.raises(WeightsearchError, match=r"encoder\.json is missing or damaged"):
            needs(FINGERPRINT)
    rot(file, flip)
    assert store.encoder_directory(FINGERPRINT) == path / FINGERPRINT
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsearchError, match=r"encoder\.json is missing or damaged"):
        IndexStore.open(path)


@pytest.mark.slow
def test_a_held_open_index_takes_the_encoder_of_the_one_that_took_its_place(tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(9))
    store = IndexStore.open(path)

    def write_other_encoder(directory: Path, encoder: Path) -> None:
        write_encoder_files(directory, encoder)
        (encoder / "encoder.json").write_text('{"another": true}')

    create.create_index(path, DENSE, make_rows(9, seed=4), write_extras=write_other_encoder, replace=True)
    assert "another" in (store.encoder_directory(FINGERPRINT) / "encoder.json").read_text()
    assert store.identity == IndexStore.open(path).identity


@pytest.mark.slow
def test_a_rotten_card_is_named_and_an_edited_one_is_not_called_broken(tmp_path: Path):
    def write_card(directory: Path, encoder: Path) -> None:
        write_encoder_files(directory, encoder)
        (directory / "README.md").write_text("# An index\n")

    path = tmp_path / "index"
    create.create_index(path, DENSE, make_rows(9), write_extras=write_card)

    def said() -> tuple[State, str]:
        (finding,) = [finding for finding in doctor(path) if finding.what == "README.md"]
        return finding.state, finding.detail

    assert said() == (State.OK, "checksum agrees")
    rot(path / "README.md", flip)
    assert said()[0] is State.OK
    assert "not as it was written" in said()[1]
    rot(path / "README.md", lambda content: content.__setitem__(slice(2, 6), bytes(4)))
    assert said()[0] is State.BROKEN
    (path / "README.md").unlink()
    assert said()[0] is State.BROKEN
    assert IndexStore.open(path).count(FINGERPRINT) == 9  # answers need no card


def test_a_manifest_that_points_out_is_refused(tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(9))
    (tmp_path / "secret").write_text("x")
    manifest = read_manifest(path)
    write_manifest(path, manifest | {"files": {"../secret": describe_file(tmp_path / "secret")}})
    with pytest.raises(WeightsearchError, match="outside of the index"):
        IndexStore.open(path)
    write_manifest(path, manifest)
    (path / FINGERPRINT).rename(tmp_path / "elsewhere")
    (path / FINGERPRINT).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightsearchError, match="outside of the index"):
        IndexStore.open(path)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "\ud800"])
@pytest.mark.parametrize("place", ["files", "architectures"])
def test_a_manifest_that_names_what_is_no_file_is_damaged(place: str, name: str, tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(9))
    manifest = read_manifest(path)
    write_manifest(path, manifest | {place: manifest[place] | {name: {}}})
    with pytest.raises(WeightsearchError, match="it names"):
        IndexStore.open(path)
    assert doctor(path)[-1].state is State.BROKEN


def test_a_manifest_that_would_be_waited_for_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(WeightsearchError, match="is no file"):
        read_manifest(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}.wal", f"{LOCK}.pid", TURN])
def test_nothing_is_read_or_written_through_a_link_out(name: str, tmp_path: Path):
    path, aim = tmp_path / "index", tmp_path / "aim"
    make_index(path, make_rows(9))
    if name == DATABASE:
        (path / name).rename(aim)
    elif name != TURN:
        aim.write_text("x")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(aim)
    before = aim.read_bytes() if aim.exists() else None
    if name.startswith(DATABASE):
        for use in (lambda: IndexStore.open(path).count(FINGERPRINT), lambda: remove_rows(path, where="epoch > 1")):
            with pytest.raises(WeightsearchError, match="is a link, which is not followed"):
                use()
        assert State.BROKEN in {finding.state for finding in doctor(path)}
    else:
        rebuild(path)
    assert (aim.read_bytes() if aim.exists() else None) == before


@pytest.mark.slow
def test_the_doctor_relearns_the_table_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "index"
    make_index(path, make_rows(50))
    with duckdb.connect(str(path / DATABASE)) as connection:
        connection.execute("DROP TABLE keys")
    findings = doctor(path)
    assert State.BROKEN not in {finding.state for finding in findings}, findings
    assert State.REPAIRED in {finding.state for finding in findings}
    answer = IndexStore.open(path).search(FINGERPRINT, make_rows(50).embedding[3], 1, Selection(where="number = 3"))
    assert answer.neighbours[0].distance < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        "repeat(run, 1000000000) = ''",
        "range(1000000000000) is null",
        "list_transform([1], x -> x)[1] = 1",
        "try_cast(run as INTEGER[1000][1000]) is null",
        "||".join(["recipe"] * 90) + " = ''",
        "[" + ",".join(["recipe"] * 90) + "] is null",
        "json_extract(recipe, [" + ",".join(["'$'"] * 900) + "]) is null",
        "(" * 1500 + "1" + ")" * 1500 + " = 1",
        "run = '\udcff'",
        "x" * 20_000,
    ],
)
def test_a_filter_may_call_functions_of_single_values_alone(where: str, tmp_path: Path):
    make_index(tmp_path / "index", make_rows(9))
    with pytest.raises(UsageError, match="--where"):
        update_where(tmp_path / "index", where, {"team": "x"})


@pytest.mark.slow
def test_many_changes_go_in_steps_and_all_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, rows = tmp_path / "index", make_rows(25)
    make_index(path, rows)
    monkeypatch.setattr(writing, "BATCH", 10)
    with pytest.raises(UsageError, match="no checkpoint with id ffff"):
        update_rows(path, {id: {"team": "a"} for id in [*rows.id.tolist(), "ffff"]})
    assert "team" not in set(IndexStore.open(path).keys())  # nothing was changed
    assert update_where(path, "number >= 0", {"team": "\ud800", "epoch": 7}) == 25
    table = IndexStore.open(path).table(FINGERPRINT, ["team", "epoch"])
    assert set(table["team"]) == {"?"}
    assert set(table["epoch"]) == {7}
    assert writing.remove_rows(path, where="number % 2 = 0") == 13
    assert IndexStore.open(path).count(FINGERPRINT) == 12


@pytest.mark.slow
def test_a_column_may_be_called_anything(tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(5))
    names = ["__0", "__number", "column_0", "value_0", "rowid", "a.b", "back\\slash", "it's", "$", "*", "select"]
    names += ["\\", "ends\\", "\\\\", "~", "~1", "a/b", "0", "[0]", "#", " ", "\\u0041"]
    update_where(path, "number >= 0", {name: i for i, name in enumerate(names)})
    table = IndexStore.open(path).table(FINGERPRINT, names)
    assert [table[name][0] for name in names] == list(range(len(names)))
    assert export(path, tmp_path / "rows.parquet") == 5
    written = duckdb.connect().execute(f"SELECT * FROM '{tmp_path / 'rows.parquet'}'").fetchnumpy()
    assert [written[name][0] for name in names] == list(range(len(names)))
    with pytest.raises(UsageError, match="--force"):
        export(path, tmp_path / "rows.parquet")


def test_readers_wait_for_a_writer_that_waits(tmp_path: Path):
    order: list[str] = []
    path = tmp_path / "turn"

    def read() -> None:
        with turnstile(path, first=False, wait_seconds=10):
            order.append("reader")

    with turnstile(path, first=True, wait_seconds=10):
        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.1)
        order.append("writer")
    reader.join()
    assert order == ["writer", "reader"]
    with turnstile(tmp_path / "none", first=False, wait_seconds=0):  # readers make no files
        assert not (tmp_path / "none").exists()


def test_a_writer_without_a_pause_lets_readers_pass_that_wait_already(tmp_path: Path):
    order: list[str] = []
    path = tmp_path / "turn"
    path.touch()
    waits = threading.Event()

    def read() -> None:
        with turnstile(path, first=False, wait_seconds=10):
            waits.set()
            time.sleep(0.1)  # for the database
            order.append("reader")

    reader = threading.Thread(target=read)
    reader.start()
    assert waits.wait(10)
    with turnstile(path, first=True, wait_seconds=10):
        order.append("writer")
    reader.join()
    assert order == ["reader", "writer"]


def test_a_killed_writer_holds_nobody_up(tmp_path: Path):
    def wait(path: Path) -> None:
        with turnstile(path, first=True, wait_seconds=1):
            os.kill(os.getpid(), 9)

    child = multiprocessing.get_context("fork").Process(target=wait, args=(tmp_path / "turn",))
    child.start()
    child.join()
    start = time.monotonic()
    with turnstile(tmp_path / "turn", first=False, wait_seconds=30):
        assert time.monotonic() - start < 10


def test_directories_change_places_in_one_step(tmp_path: Path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if exchange(tmp_path / "one", tmp_path / "other"):
        assert (tmp_path / "one" / "file").read_text() == "other"
        assert (tmp_path / "other" / "file").read_text() == "one"
    assert not exchange(tmp_path / "one", tmp_path / "missing")


@pytest.mark.slow
def test_thousands_of_columns_no_row_and_a_moved_index(tmp_path: Path):
    path = tmp_path / "index"
    recipe = json.dumps({f"key {i}": i for i in range(5000)})
    rows = replace(make_rows(3), recipe=np.array([recipe] * 3, object))
    make_index(path, rows)
    index = IndexStore.open(path)
    answer = index.search(FINGERPRINT, rows.embedding[1], 1, Selection(where='"key 7" = 7 and number = 1'))
    assert answer.neighbours[0].id == rows.id[1]
    assert len(index.keys()) == 5000
    with pytest.raises(UsageError, match="nothing") as caught:
        index.search(FINGERPRINT, rows.embedding[1], 1, Selection(where="nothing = 7"))
    assert len(str(caught.value)) < 2000
    assert writing.remove_rows(path, where="number >= 0") == 3
    assert {finding.state for finding in doctor(path)} == {State.OK}
    with pytest.raises(UsageError, match="holds no checkpoints"):
        index.search(FINGERPRINT, rows.embedding[1], 1)
    path.rename(tmp_path / "moved")
    with pytest.raises(WeightsearchError, match="does not exist"):
        index.count(FINGERPRINT)
    assert IndexStore.open(tmp_path / "moved").count(FINGERPRINT) == 0


def killed_within(step: int, path: Path) -> int:
    """A replacement by two renames in a child that ends just before its rename number `step`; its PID."""
    pid = os.fork()
    if pid == 0:
        renames = iter(range(step))
        rename = Path.rename

        def stop(old: Path, new: Path) -> Path:
            if old.is_dir() and next(renames, None) is None:
                os._exit(9)
            return rename(old, new)

        Path.rename = stop  # type: ignore[method-assign]
        create.exchange = lambda one, other: False  # type: ignore[attr-defined]
        create.create_index(path, DENSE, make_rows(7, seed=4), write_extras=write_encoder_files, replace=True)
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.slow
def test_a_kill_between_two_renames_is_named_and_put_back_and_leaves_nothing(tmp_path: Path):
    path = tmp_path / "index"
    make_index(path, make_rows(9))
    reader = IndexStore.open(path)
    killed_within(0, path)
    assert reader.count(FINGERPRINT) == 9
    pid = killed_within(1, path)  # the old one has been moved aside, the new one is not there yet
    old = tmp_path / f".index.{pid}.old"
    with pytest.raises(WeightsearchError, match=f"its replacement was interrupted; rename {old} to {path}"):
        IndexStore.open(path)
    old.rename(path)
    assert reader.count(FINGERPRINT) == 9
    assert {finding.state for finding in doctor(path)} == {State.OK}
    (tmp_path / ".index.1.partial").mkdir()  # of a process that runs
    killed_within(2, path)
    assert reader.count(FINGERPRINT) == 7
    assert sorted(file.name for file in tmp_path.iterdir()) == [".index.1.partial", "index"]


def test_a_file_that_is_cut_short_just_now_is_opened_again(tmp_path: Path):
    """And one that stays short is called damaged."""
    outcomes = [duckdb.IOException("IO Error: Could not read enough bytes from file"), "opened"]

    def attempt() -> str:
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, duckdb.Error):
            raise outcome
        return outcome

    assert when_unlocked(attempt, tmp_path, 0.0) == "opened"
    outcomes[:] = [duckdb.IOException("IO Error: Could not read enough bytes from file")]
    with pytest.raises(duckdb.IOException):
        when_unlocked(attempt, tmp_path, 0.0)


@pytest.mark.slow
def test_a_database_that_may_not_be_read_is_not_said_to_be_unwritable():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index")
        make_index(path, make_rows(9))
        Path(folder).chmod(0o755)
        (path / DATABASE).chmod(0)
        child = os.fork()
        if not child:
            try:
                if not os.geteuid():  # root may read everything
                    os.setuid(65534)
                IndexStore.open(path).count(FINGERPRINT)
            except WeightsearchError as error:
                os._exit(0 if f"cannot read {path / DATABASE}: permission denied" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
