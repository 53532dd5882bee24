"""Downloads from a server on this machine: whole, broken off, wrong and absent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.datasets.samples import fails, official_as_written, offline, warnings_of, write_mnist
from weightsearch.datasets.load import OFFICIAL, DatasetName, load_dataset


class Server(ThreadingHTTPServer):
    """Serves `files` on this machine and notes the requests; `sends` limits the bytes of the first answer."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.sends: int | None = None
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path[1:]
        self.server.requests.append(name)
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.sends])
        self.server.sends = None

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A tiny MNIST that passes for the official one, behind a dead mirror and a living one."""
    folder = write_mnist(tmp_path / "origin")
    files = {file: (folder / file).read_bytes() for file in OFFICIAL[DatasetName.MNIST].files}
    with official_as_written(DatasetName.MNIST, folder, monkeypatch), serving(Server(files)) as server:
        official = OFFICIAL[DatasetName.MNIST]
        mirrors = ("http://127.0.0.1:9/", server.url)
        monkeypatch.setitem(OFFICIAL, DatasetName.MNIST, replace(official, mirrors=mirrors))
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_download(served: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "data"
    data = load_dataset("mnist", target)
    assert data.x_train.shape == (200, 1, 28, 28)
    assert contents(target / "mnist") == served.files  # and no leftovers
    assert warnings_of(caplog) == []
    assert len(served.requests) == 4
    load_dataset("mnist", target)
    assert len(served.requests) == 4
    (target / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    load_dataset("mnist", target)
    assert served.requests[4:] == ["t10k-labels-idx1-ubyte.gz"]


def test_download_into_the_cache(served: Server, tmp_path: Path) -> None:
    load_dataset("mnist")
    assert contents(tmp_path / "cache" / "weightsearch" / "mnist") == served.files


def test_interrupted_download_leaves_nothing_and_is_repeated(served: Server, tmp_path: Path) -> None:
    served.sends = 100_000
    fails("no download t10k-labels-idx1-ubyte.gz ChunkedEncodingError put", "mnist", tmp_path)
    assert contents(tmp_path / "mnist") == {}
    load_dataset("mnist", tmp_path)
    assert contents(tmp_path / "mnist") == served.files


def test_download_with_a_wrong_checksum_leaves_nothing(served: Server, tmp_path: Path) -> None:
    file = "train-images-idx3-ubyte.gz"
    good = served.files[file]
    served.files[file] = good[:-1] + b"?"
    fails(f"{file} wrong checksum put", "mnist", tmp_path)
    assert contents(tmp_path / "mnist") == {}
    served.files[file] = good
    load_dataset("mnist", tmp_path)


def test_download_of_what_is_gone(served: Server, tmp_path: Path) -> None:
    served.files.clear()
    fails("HTTPError ConnectionError", "mnist", tmp_path)


def test_unofficial_files_are_not_completed(served: Server, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"mine")
    fails("unofficial train-images-idx3-ubyte.gz put t10k-labels-idx1-ubyte.gz", "mnist", tmp_path)
    assert contents(tmp_path / "mnist") == {"train-images-idx3-ubyte.gz": b"mine"}


def test_download_into_what_is_no_folder(served: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails("cannot download --data-dir", "mnist", tmp_path / "file")


@pytest.mark.parametrize("name", OFFICIAL)
def test_offline_says_what_to_put_where(
    name: DatasetName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    offline(monkeypatch)
    fails(f"{name} --data-dir $WEIGHTSEARCH_DATA {tmp_path / name} {' '.join(OFFICIAL[name].files)}", name, tmp_path)
    assert capfd.readouterr() == ("", "")
