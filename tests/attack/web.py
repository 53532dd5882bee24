"""Hostile requests to `weightsearch serve`, over an index whose rows have strangers' names."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.attack.common import Report, in_child
from tests.attack.files import KEYS, TEXTS, mutated
from weightsearch.files import clean_text

REFERENCE = Path(__file__).parents[2] / "index"
REQUESTS = 200  # of one child
UPLOADS = 0.03  # share of requests with a file, which is read in a process of its own
SECONDS = 60.0  # of one request, on a busy machine
ADDRESSES = ("/", "/search?q={}", "/runs/{}", "/checkpoints/{}", "/api/checkpoints/{}", "/examples/{}", "/static/{}",
             "/api/info", "/api/schema", "/healthz", "/metrics", "/{}", "/api/query?k={}")  # fmt: skip
CONDITIONS = (
    *("epoch = 1", "run = '{}'", "test_accuracy > '{}'", "{} = 1", "1; DROP TABLE ix.checkpoints", "(SELECT 1)"),
    *("repeat('a', 1000000000) = ''", "read_csv('/etc/passwd') = 1", "a < b", "epoch > 1e400", "getenv('HOME') > ''"),
)


class Page(HTMLParser):
    """Collects what a browser would run or fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "script" and not (values.get("src") or "").startswith("/static/"):
            self.faults.append("a script of its own")
        if tag in ("iframe", "object", "embed", "base", "meta") and "http-equiv" in values:
            self.faults.append(f"a {tag}")
        for name, value in attrs:
            if name.startswith("on"):
                self.faults.append(f"{tag} {name}")
            if name in ("href", "src", "action") and (value or "").strip().lower().startswith(("javascript:", "data:")):
                self.faults.append(f"{tag} {name} {value}")


def prepare(path: Path) -> None:
    """In a child: the reference index, whose first runs, datasets and columns have strangers' names."""
    from weightsearch.index import IndexStore, update_rows

    shutil.copytree(REFERENCE, path)
    index = IndexStore.open(path)
    fingerprint = next(iter(index.architectures))
    ids = index.table(fingerprint, ["id"])["id"].tolist()
    changes = {}
    for text, id in zip(TEXTS, ids, strict=False):
        changes[id] = {"run": text, "dataset": text, "source": text, "team": text}
    update_rows(path, changes)


def requests(draw: random.Random, examples: list[bytes]) -> Any:
    """Method, address, headers, and body or files."""
    text = draw.choice((*TEXTS, *KEYS, "../../etc/passwd", "%00", "0" * 16, "q75", "-1", "1e9"))
    headers = {}
    if draw.random() < 0.1:
        headers = {
            draw.choice(("origin", "host", "content-length", "accept", "cookie")): draw.choice(("null", "x", "9"))
        }
    if draw.random() < UPLOADS:
        content = mutated(draw, draw.choice(examples), examples)
        address = draw.choice(("/api/query", "/ask")) + "?name=" + quote(text, errors="replace")
        if draw.random() < 0.5:
            return "POST", address, headers, {"content": content}
        return "POST", address, headers, {"files": {"file": (clean_text(text) or "x", content)}}
    if draw.random() < 0.3:
        text = draw.choice(CONDITIONS).format(text)
    address = draw.choice(ADDRESSES).format(quote(text, safe="", errors="replace"))
    return draw.choice(("GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS")), address, headers, {}


def judge(answer: Any) -> str | None:
    """What is wrong with an answer."""
    if answer.status_code >= 500 and answer.status_code != 503:
        return f"status {answer.status_code}"
    if "script-src 'self'" not in answer.headers.get("content-security-policy", ""):
        return "no policy"
    kind = answer.headers.get("content-type", "")
    if "Traceback" in answer.text:
        return "a traceback"
    if kind.startswith("application/json") and answer.content:
        json.loads(answer.text, parse_constant=lambda name: 1 / 0)
    if kind.startswith("text/html"):
        page = Page()
        page.feed(answer.text)
        return page.faults[0] if page.faults else None
    return None


def ask(index: Path, seed: str, seconds: float, say: Callable[[Any], None]) -> None:
    """In a child: one server, many requests."""
    from starlette.testclient import TestClient

    from weightsearch.server import ServeOptions, create_app

    draw = random.Random(seed)
    examples = [file.read_bytes() for file in sorted((REFERENCE / "examples").glob("*.pt"))[:3]]
    tempfile.tempdir = str(index.parent)
    end = time.monotonic() + seconds
    with TestClient(create_app(index, ServeOptions()), base_url="http://localhost", follow_redirects=False) as client:
        for _ in range(REQUESTS):
            if time.monotonic() > end:
                break
            method, address, headers, body = requests(draw, examples)
            say(["asks", method, address[:300]])
            start = time.monotonic()
            try:
                fault = judge(client.request(method, address, headers=headers, **body))
            except Exception as error:
                fault = f"{type(error).__name__}: {str(error)[:200]}"
            took = time.monotonic() - start
            say(["told", fault if took < SECONDS else f"took over {SECONDS:.0f} s", took])
    left = [file.name for file in index.parent.glob("weightsearch-upload-*")]
    say(["left", left])


def attack(report: Report, folder: Path, draw: random.Random, until: float) -> None:
    """Where the server's libraries are not installed, nothing is done."""
    try:
        import starlette.testclient  # noqa: F401

        import weightsearch.server  # noqa: F401
    except ImportError:
        report.counts["requests"] += 0
        return
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index"
    in_child(lambda say: prepare(index))
    while (left := until - time.monotonic()) > 0:
        seed = f"{draw.random()}"
        ended = in_child(lambda say, seed=seed, left=left: ask(index, seed, left, say), limit=REQUESTS * SECONDS)
        asked = ["", "", "nothing"]
        for said in ended.said:
            if said[0] == "asks":
                asked = said
            elif said[0] == "told":
                report.counts["requests"] += 1
                report.most("seconds of a request", said[2])
                if said[1] is not None:
                    report.finding("web", said[1], " ".join(asked[1:]).encode("utf-8", "replace"), ".txt")
            elif said[0] == "error":
                report.finding("web", f"the server ended: {said[1:]}", str(asked).encode())
            elif said[0] == "left" and said[1]:
                report.finding("web", f"files are left: {said[1]}")
        if not ended.said or ended.said[-1][0] not in ("left", "error"):
            report.finding("web", f"the server's process ended (signal {ended.signal})", str(asked).encode())
