"""Checkpoints on web servers: good ones, poor ones and hostile ones."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote

import numpy as np
import pytest
from safetensors.numpy import save

from weightsearch.checkpoints.discovery import discover
from weightsearch.checkpoints.formats import read_content
from weightsearch.checkpoints.remote.paths import as_path
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.errors import WeightsearchError

GOOD = Path(__file__).parents[3] / "index" / "examples" / "good.pt"


class Handler(BaseHTTPRequestHandler):
    """Files from memory, with or without parts; pages of links; redirects; and lies."""

    files: ClassVar[dict[str, bytes]] = {}
    ranges: ClassVar[bool] = True
    sent: ClassVar[int] = 0
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        cls = type(self)
        path = self.path.partition("?")[0]
        if path.startswith(("/to/", "/loop")):
            self.send_response(302)
            self.send_header("Location", unquote(path.removeprefix("/to/")))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        folder = path if path.endswith("/") else f"{path}/"
        names = {name.removeprefix(folder).split("/")[0] for name in cls.files if name.startswith(folder)}
        if path not in cls.files and names:
            if not path.endswith("/"):
                self.send_response(301)
                self.send_header("Location", folder)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            links = [name if f"{folder}{name}" in cls.files else f"{name}/" for name in sorted(names)]
            links += ["?C=M;O=A", "../", "https://elsewhere.example/model.pt", "/other/model.pt"]
            self.send(200, "".join(f'<a href="{link}">{link}</a>' for link in links).encode(), body, "text/html")
        elif path not in cls.files:
            self.send(404, b"", body, "text/plain")
        else:
            content = cls.files[path]
            tag = hashlib.sha256(content).hexdigest()[:16]
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if path.startswith("/liar/") and match:
                self.send_response(206)
                self.send_header("ETag", f'"{tag}"')
                self.send_header("Connection", "close")
                self.end_headers()
                while True:  # without end, until who asked hangs up
                    try:
                        self.wfile.write(b"x" * 2**16)
                        cls.sent += 2**16
                    except OSError:
                        self.close_connection = True
                        return
            if match and cls.ranges:
                content = content[int(match[1]) : int(match[2]) + 1]
            self.send(206 if match and cls.ranges else 200, content, body, "application/octet-stream", tag)

    def send(self, status: int, content: bytes, body: bool, kind: str, tag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if tag:
            self.send_header("ETag", f'"{tag}"')
        self.end_headers()
        if body:
            try:
                self.wfile.write(content)
                type(self).sent += len(content)
            except OSError:
                self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


@pytest.fixture
def web() -> Iterator[str]:
    Handler.files, Handler.ranges, Handler.sent = {"/sweep/run-1/good.pt": GOOD.read_bytes()}, True, 0
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def error_of(url: str) -> str:
    with pytest.raises(WeightsearchError) as caught:
        read_checkpoint(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_a_folders_page_is_its_listing_and_links_elsewhere_are_not_followed(web: str):
    Handler.files["/sweep/run-2/last.pt"] = GOOD.read_bytes()
    Handler.files["/other/model.pt"] = GOOD.read_bytes()
    for given in (f"{web}/sweep", f"{web}/sweep/", f"{web}/sweep/**/*.pt"):
        found = discover([given])
        assert [str(f.path).removeprefix(web) for f in found.files] == ["/sweep/run-1/good.pt", "/sweep/run-2/last.pt"]
    assert read_checkpoint(found.files[0].path).id == read_checkpoint(GOOD).id


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
def test_parts_where_the_server_sends_them_else_the_whole(web: str, ranges: bool):
    rng = np.random.default_rng(0)
    arrays = {f"{name}.weight": rng.normal(size=(512, 512)).astype(np.float32) for name in "abcdefghijkl"}
    Handler.files["/model.safetensors"] = save(arrays)
    Handler.ranges = ranges
    content = read_content(as_path(f"{web}/model.safetensors"))
    if ranges:
        assert Handler.sent < 100_000
    for name, values in arrays.items():
        assert np.array_equal(content.tree["state_dict"][name].array(), values)
    assert Handler.sent < (14 if ranges else 40) * 2**20


def test_redirects_lead_to_the_web_alone(web: str):
    assert read_checkpoint(f"{web}/to/{quote('/sweep/run-1/good.pt', safe='')}").id == read_checkpoint(GOOD).id
    assert "redirected again and again" in error_of(f"{web}/to/{quote('/loop', safe='')}")
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/model.pt"):
        assert "which is not followed" in error_of(f"{web}/to/{quote(target, safe='')}")


def test_a_server_that_sends_without_end_is_cut_short(web: str):
    Handler.files["/liar/model.safetensors"] = b"x" * 3_000_000
    assert "no sound safetensors" in error_of(f"{web}/liar/model.safetensors")
    assert Handler.sent < 30 * 2**20


def test_changed_missing_and_unreachable(web: str):
    (file,) = discover([f"{web}/sweep"]).files
    first = read_checkpoint(file.path).id
    Handler.files["/sweep/run-1/good.pt"] = GOOD.with_name("bad.pt").read_bytes()
    assert read_checkpoint(str(file.path)).id == read_checkpoint(GOOD.with_name("bad.pt")).id != first
    assert error_of(f"{web}/gone.pt") == f"{web}/gone.pt: there is no such file"
    assert "127.0.0.1:9 cannot be reached" in error_of("http://127.0.0.1:9/model.pt")


@pytest.mark.slow
def test_no_redirect_leads_from_https_to_http(web: str, tmp_path: Path):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "both.pem").write_bytes(private + certificate)
    (tmp_path / "ca.pem").write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secure = f"https://localhost:{server.server_port}"
    code = (
        "import sys; from weightsearch.checkpoints.state_dict import read_checkpoint\n"
        f"print(read_checkpoint('{secure}/sweep/run-1/good.pt').id)\n"
        f"print(read_checkpoint('{secure}/to/{quote(f'{secure}/sweep/run-1/good.pt', safe='')}').id)\n"
        f"try: read_checkpoint('{secure}/to/{quote(f'{web}/sweep/run-1/good.pt', safe='')}')\n"
        "except Exception as error: print(error)"
    )
    environment = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    server.shutdown()
    server.server_close()
    first, second, refused = done.stdout.splitlines()
    assert first == second == read_checkpoint(GOOD).id
    assert "from https to http, which is not followed" in refused
