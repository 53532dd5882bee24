"""The page and the API on the reference index: answers, limits, strangers' files, and a browser."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("starlette.testclient")

from starlette.testclient import TestClient

from weightsearch.search.add import add
from weightsearch.search.index import Index
from weightsearch.search.sweep import sweep
from weightsearch.server import ServeOptions, create_app

REFERENCE = Path(__file__).parents[2] / "index"
EXAMPLES = REFERENCE / "examples"

pytestmark = pytest.mark.slow  # each file is read in a process of its own, the first of which loads torch


def client(**options: Any) -> TestClient:
    patient = {"read_seconds": 120.0, "upload_seconds": 120.0} | options  # of a machine that does other things, too
    return TestClient(create_app(REFERENCE, ServeOptions(**patient)), base_url="http://localhost")


@pytest.fixture(scope="module")
def served() -> Iterator[TestClient]:
    with client() as opened:
        yield opened


def left_behind() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("weightsearch-upload-*"))


@pytest.fixture(autouse=True)
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from what others leave in the system's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_the_api_gives_the_answer_of_the_library(served: TestClient):
    path = EXAMPLES / "very-good.pt"
    answer = served.post("/api/query?k=3&name=model.pt", content=path.read_bytes())
    assert answer.status_code == 200, answer.text
    expected = Index.open(REFERENCE).query(path, k=3).to_dict()
    for key in ("id", "predicted", "label", "verdict", "interval", "neighbours", "epoch", "recipe"):
        assert answer.json()[key] == json.loads(json.dumps(expected[key])), key
    assert answer.json()["path"] == "model.pt"
    assert not left_behind()


def test_a_form_with_several_files_is_a_table_and_one_that_fails_a_line_in_it(served: TestClient):
    sent = [("file", ("<b>bad.pt", (EXAMPLES / "bad.pt").read_bytes())), ("file", ("x.pt", b"nothing"))]
    page = served.post("/ask", files=sent)
    assert page.status_code == 200
    assert "&lt;b&gt;bad.pt" in page.text
    assert "<b>bad" not in page.text
    assert "failed" in page.text
    told = served.post("/api/query", files=sent).json()
    assert [set(one) >= {"schema", "error"} for one in told] == [False, True]
    assert not left_behind()


def test_several_files_are_ranked_as_a_sweep_is_and_kept_as_csv(served: TestClient):
    names = ("bad", "very-good", "middling")
    sent = [("file", (f"{name}.pt", (EXAMPLES / f"{name}.pt").read_bytes())) for name in names]
    expected = sweep([EXAMPLES / f"{name}.pt" for name in names], Index.open(REFERENCE))
    kept = served.post("/ask?as=csv", files=sent)
    assert kept.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(kept.text)))
    assert [row["run"] for row in rows] == [run.run for run in expected.runs]
    assert [row["advice"] for row in rows] == [run.advice for run in expected.runs]
    assert [float(row["predicted"]) for row in rows] == pytest.approx([run.predicted for run in expected.runs])
    page = served.post("/ask", files=sent).text
    assert expected.summary() in page
    assert [page.index(run.run) for run in expected.runs] == sorted(page.index(run.run) for run in expected.runs)


def test_the_map_beside_an_answer_joins_it_to_its_neighbours(served: TestClient):
    answer = Index.open(REFERENCE).query(EXAMPLES / "good.pt")
    page = served.get("/examples/good").text
    for row in answer.neighbours:
        assert f'<a href="/checkpoints/{row.id}" aria-label="{row.run}, {row.value:.3f}">' in page
    (star,) = re.findall(r'<polygon class="star" points="([^"]+)"', page)
    x, y = np.mean([[float(number) for number in corner.split(",")] for corner in star.split()], axis=0)
    places = re.findall(r'<circle class="near" cx="([^"]+)" cy="([^"]+)"', page)
    near = np.array(places[:5], float)  # it stands among the nearest
    assert (near.min(axis=0) - 1 <= (x, y)).all()
    assert ((x, y) <= near.max(axis=0) + 1).all()


def test_relations_are_told_where_the_index_keeps_signatures(tmp_path: Path):
    index = tmp_path / "index"
    shutil.copytree(REFERENCE, index)
    kept = shutil.copy(EXAMPLES / "good.pt", tmp_path / "kept.pt")
    add([kept], index, quiet=True)
    with TestClient(create_app(index, ServeOptions(read_seconds=120.0)), base_url="http://localhost") as opened:
        sent = Path(kept).read_bytes()
        told = opened.post("/api/query", content=sent).json()["relations"]
        assert told["relatives"][0]["relation"] == "identical"
        assert told["relatives"][0]["source"].endswith("kept.pt")
        assert tempfile.gettempdir() + "/weightsearch-upload" not in json.dumps(told)
        page = opened.post("/ask", files={"file": ("a.pt", sent)}).text
        assert "<b>identical</b> of" in page


WRITER = """
import sys
from weightsearch.index import update_rows
for number in range(1, 6):
    update_rows(sys.argv[1], {sys.argv[2]: {"run": f"run-{number}", "test_accuracy": number / 10}})
"""


def test_a_reader_beside_a_writer_sees_the_old_or_the_new(tmp_path: Path):
    path = tmp_path / "index"
    shutil.copytree(REFERENCE, path)
    index = Index.open(path)
    id = str(index.table(next(iter(index.architectures)), ["id"])["id"][0])
    seen = []
    with TestClient(create_app(path), base_url="http://localhost") as opened:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), id], cwd=REFERENCE.parent)
        while not seen or writer.poll() is None or seen[-1] != ("run-5", 0.5):
            answer = opened.get(f"/api/checkpoints/{id}")
            assert answer.status_code == 200, answer.text
            seen.append((answer.json()["run"], answer.json()["stated_accuracy"]))
            assert opened.get(f"/checkpoints/{id}").status_code == 200
            assert writer.poll() in (None, 0)
        assert writer.wait() == 0
    written = [one for one in seen if one[0].startswith("run-")]
    assert all(value == int(run[4:]) / 10 for run, value in written)  # never one of them without the other
    assert written == sorted(written)  # nor an older one after a newer


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/weightsearch-was-here",)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + b"\0" * 100, pickle.dumps(Malice()), b"\x93NUMPY" + b"\xff" * 64]
)
def test_hostile_files_are_one_line_and_leave_nothing(served: TestClient, content: bytes):
    answer = served.post("/api/query", content=content)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert "\n" not in error
    assert tempfile.gettempdir() not in error
    assert not Path("/tmp/weightsearch-was-here").exists()
    assert not left_behind()
    assert served.get("/healthz").json() == {"status": "ok"}


def test_what_is_too_large_ends_while_it_is_sent():
    with client(largest_upload=10_000) as small:
        blocks = iter([b"0" * 4_000] * 4)  # of no declared length
        refused = small.post("/api/query", content=blocks)
        assert refused.status_code == 413
        assert refused.headers["connection"] == "close"  # an endless body would be read for ever
        assert small.post("/api/query", content=b"0" * 10_001).status_code == 413
        assert small.post("/ask", files={"file": ("a.pt", b"0" * 20_000)}).status_code == 413
        assert not left_behind()


def test_reading_that_takes_too_long_is_ended():
    with client(read_seconds=0.001) as hasty:
        answer = hasty.post("/api/query", content=(EXAMPLES / "bad.pt").read_bytes())
        assert answer.status_code == 422
        assert "took more" in answer.json()["error"]


def test_others_need_the_token_and_other_origins_are_refused(served: TestClient):
    assert served.get("/", headers={"host": "evil.example"}).status_code == 403
    assert served.post("/ask", headers={"origin": "https://evil.example"}).status_code == 403
    with client(token="secret") as closed:
        assert closed.get("/").status_code == 401
        assert closed.get("/healthz").status_code == 200
        assert closed.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert closed.get("/", headers={"authorization": "Bearer secret"}).status_code == 200
        assert closed.get("/?token=secret").status_code == 200  # by the cookie that this sets
        assert closed.get("/api/info").status_code == 200


def test_every_page_has_a_strict_policy_and_no_inline_script(served: TestClient):
    id = Index.open(REFERENCE).table(next(iter(Index.open(REFERENCE).architectures)), ["id"])["id"][0]
    for address in (
        "/",
        "/examples/good",
        f"/checkpoints/{id}",
        "/runs/usps-v1/35",
        "/search?q=epoch%20%3D%2086",
        "/no",
    ):
        page = served.get(address)
        assert "default-src 'none'" in page.headers["content-security-policy"], address
        assert "unsafe" not in page.headers["content-security-policy"]
        for script in re.findall(r"<script[^>]*>", page.text):
            assert "src=" in script
        assert not re.search(r"\son\w+=|style=", page.text)
    assert served.get(f"/search?q={id[:8]}").url.path == f"/checkpoints/{id[:8]}"
    assert served.get("/search?q=tst_accuracy%20%3E%200.9").status_code == 422
    assert "did you mean test_accuracy" in served.get("/search?q=tst_accuracy%20%3E%200.9").text
    assert served.get("/checkpoints/zzz").status_code == 422
    failed = served.get("/search?q=tst_accuracy%20%3E%200.9").text
    assert "--where" not in failed  # which nobody wrote here
    assert 'value="tst_accuracy &gt; 0.9"' in failed  # to be mended


def test_a_condition_lists_the_best_first_and_a_run_its_recipe_once(served: TestClient):
    page = served.get("/search?q=test_accuracy%20%3E%200.94%20and%20epoch%20%3E%2060").text
    values = [float(value) for value in re.findall(r"<td>(0\.\d{3})</td>", page)]
    assert len(values) > 10
    assert values == sorted(values, reverse=True)
    run = served.get("/runs/usps-v1/35").text
    assert run.count("xavier-normal") == 1
    assert [float(value) for value in re.findall(r"<td>(\d+)</td><td>0\.\d{3}</td>", run)] == [
        0,
        1,
        2,
        3,
        20,
        40,
        60,
        80,
        86,
    ]


def test_what_has_been_asked_is_counted(served: TestClient):
    served.get("/examples/bad")
    text = served.get("/metrics").text
    assert re.search(r'weightsearch_answers_total\{label="early"\} [1-9]', text)
    assert f"weightsearch_index_rows {len(Index.open(REFERENCE))}" in text
    counts = [int(n) for n in re.findall(r"_bucket\{le=\"[^\"]+\"\} (\d+)", text)]
    assert counts == sorted(counts)
    schema = served.get("/api/schema").json()
    assert schema["openapi"].startswith("3.1")
    assert set(schema["paths"]) == {"/api/query", "/api/checkpoints/{id}", "/api/info"}


@pytest.mark.parametrize("later", [0.2, 1.5])
def test_ctrl_c_ends_it_without_a_word_of_its_processes(later: float, tmp_path: Path):
    command = [sys.executable, "-m", "weightsearch", "serve", str(REFERENCE), "--port", "0"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, cwd=REFERENCE.parent, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    while "http://" not in (tmp_path / "said").read_text() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(later)  # while it loads, or starts others
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of its processes get it
    process.wait(200)
    text = (tmp_path / "said").read_text()
    assert "Traceback" not in text, text
    assert "Error" not in text, text
