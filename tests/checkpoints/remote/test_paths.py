"""A remote path answers as a path of this machine's disk does."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import fsspec
import pytest

from tests.checkpoints import other_formats
from weightsearch.checkpoints.discovery import discover
from weightsearch.checkpoints.folder_layouts import recognise
from weightsearch.checkpoints.named_tensors import read_tensors
from weightsearch.checkpoints.remote import stores
from weightsearch.checkpoints.remote.paths import RemotePath, as_path, located
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.search.add import add

EXAMPLES = Path(__file__).parents[3] / "index" / "examples"
NAMES = (
    "a/config.json", "a/model.safetensors", "a/b/c.pt", "a/b/d.pt", "a/b/notes.txt", "e.pt", "f/.hidden/g.pt",
    "f/checkpoint_1/x.pt", "f/checkpoint_12/x.pt",
)  # fmt: skip


def upload(folder: Path) -> RemotePath:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe(f"/store/{path.relative_to(folder).as_posix()}", path.read_bytes())
    (remote,) = located(["memory://store"])
    assert isinstance(remote, RemotePath)
    return remote


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, RemotePath]:
    """The same files on the disk and in a store."""
    for name in NAMES:
        path = tmp_path / "disk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((EXAMPLES / "good.pt").read_bytes() if name.endswith(".pt") else name.encode())
    return tmp_path / "disk", upload(tmp_path / "disk")


@pytest.mark.parametrize(
    "pattern", ["*", "*.pt", "**/*.pt", "a/**/*.pt", "f/checkpoint_*/", "**/checkpoint_1*/x.pt", "no/*"]
)
def test_patterns_match_the_same(trees: tuple[Path, RemotePath], pattern: str):
    disk, remote = trees
    assert {p.relative_to(remote) for p in remote.glob(pattern)} == {p.relative_to(disk) for p in disk.glob(pattern)}
    assert {p.relative_to(remote) for p in remote.rglob("*.pt")} == {p.relative_to(disk) for p in disk.rglob("*.pt")}


def test_names_kinds_and_contents_are_the_same(trees: tuple[Path, RemotePath]):
    disk, remote = trees
    for name in (*NAMES, "a", "a/b", "nothing", "a/nothing.pt"):
        there, here = remote / name, disk / name
        assert (there.is_file(), there.is_dir(), there.exists()) == (here.is_file(), here.is_dir(), here.exists()), name
        assert (there.name, there.suffix, there.stem) == (here.name, here.suffix, here.stem)
        if here.is_file():
            assert there.read_bytes() == here.read_bytes()
            assert there.stat().st_size == here.stat().st_size
        elif here.is_dir():
            assert sorted(path.name for path in there.iterdir()) == sorted(path.name for path in here.iterdir())
    walked = {place.removeprefix(str(remote)): (set(f), set(n)) for place, f, n in remote.walk_folders()}
    assert walked == {place.removeprefix(str(disk)): (set(f), set(n)) for place, f, n in os.walk(disk)}
    assert recognise(remote) == recognise(disk)


def test_the_same_files_are_discovered_as_the_same_runs(trees: tuple[Path, RemotePath]):
    disk, remote = trees

    def files(root: Path) -> list[tuple[str, str]]:
        found = discover([root])
        assert found.account.others == discover([root]).account.others
        return [(str(file.path.relative_to(root)), file.run.partition("/")[2]) for file in found.files]

    assert files(remote) == files(disk)
    assert len(discover(["memory://store/**/*.pt"]).files) == len(discover([str(disk / "**/*.pt")]).files)


def test_text_and_parts_of_urls_stay_what_they_are():
    path = as_path("s3://bucket/a/b.tar.gz")
    assert str(path.parent / "c.json") == "s3://bucket/a/c.json"
    assert str(as_path(Path("s3://bucket/a"))) == "s3://bucket/a"  # of which a `Path` takes a slash
    assert pickle.loads(pickle.dumps(path)) == path
    assert str(pickle.loads(pickle.dumps(path))) == str(path)
    assert path.relative_to(as_path("s3://bucket")) == Path("a/b.tar.gz")
    assert type(as_path("s3")) is type(Path("s3"))
    signed = as_path("https://host/model.pt?signature=secret")
    assert (signed.name, str(signed)) == ("model.pt", "https://host/model.pt")
    assert isinstance(signed, RemotePath)
    assert signed.url.endswith("?signature=secret")


@pytest.mark.parametrize(
    "url", ["https://user:password@host/model.pt", "s3://bucket/../other/model.pt", "s3://bucket/a//b.pt"]
)
def test_urls_with_passwords_or_ways_up_are_refused(url: str):
    with pytest.raises(UsageError) as caught:
        as_path(url)
    assert "password" not in str(caught.value).partition(":")[0]


@pytest.mark.parametrize("shape", [(1,), (3, 2, 2), (20, 3), (600, 1)])
def test_a_listing_has_every_file_whatever_the_folders_are_like(shape: tuple[int, ...]):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    folders = [""]
    names = []
    for level, count in enumerate(shape):
        folders = [f"{folder}{level}-{number}/" for folder in folders for number in range(count)]
        names += [f"{folder}{letter}.pt" for folder in folders for letter in "ab"]
    for name in ("top.pt", *names):
        memory.pipe(f"/store/{name}", b"x")
    memory.pipe("/store-2/other.pt", b"x")
    (remote,) = located(["memory://store"])
    assert sorted(path.relative_to(remote).as_posix() for path in remote.rglob("*.pt")) == sorted(["top.pt", *names])


def test_names_that_are_no_paths_are_left_out_and_said(caplog: pytest.LogCaptureFixture):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    from weightsearch.checkpoints.remote import listing
    from weightsearch.checkpoints.remote.stores import Entry

    names = ("a/b.pt", "a//c.pt", "./d.pt", "e/../f.pt", "g..pt")
    listing.keep("s3://bucket", [(f"s3://bucket/{name}", Entry(1, "v")) for name in names])
    assert {str(path) for path in as_path("s3://bucket/x").parent.rglob("*.pt")} == {
        "s3://bucket/a/b.pt", "s3://bucket/g..pt",
    }  # fmt: skip
    assert "s3://bucket: 3 files are left out" in caplog.text


def test_nothing_is_written_there(trees: tuple[Path, RemotePath]):
    _, remote = trees
    for action in (
        remote.mkdir,
        remote.unlink,
        lambda: (remote / "x").write_text("y"),
        lambda: (remote / "x").open("w"),
    ):
        with pytest.raises(WeightsearchError, match="never written"):
            action()


@pytest.mark.slow
def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch):
    import fsspec

    def missing(*arguments: object, **options: object) -> None:
        raise ImportError("Install gcsfs to access GCS")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    monkeypatch.setattr(stores, "_filesystems", {})
    for scheme, extra in (("gs", "gs"), ("az", "az"), ("hf", "hf"), ("s3", "s3"), ("https", "http")):
        with pytest.raises(UsageError, match=rf"pip install 'weightsearch\[{extra}\]'"):
            discover([f"{scheme}://bucket/model.pt"])


@pytest.mark.parametrize(
    "make",
    [
        other_formats.keras_h5,
        other_formats.onnx_model,
        pytest.param(other_formats.distributed, marks=pytest.mark.slow),
        other_formats.adapter,
    ],
)
def test_formats_that_are_read_apart_or_lie_in_several_files(make, tmp_path: Path):
    place = tmp_path / "disk" / "model"
    place.parent.mkdir()
    made = {"keras_h5": "model.h5", "onnx_model": "model.onnx"}.get(make.__name__)
    path = place.with_name(made) if made else place
    make(path)
    remote = upload(tmp_path / "disk")
    for file in discover([tmp_path / "disk"]).files:
        there = remote / file.path.relative_to(tmp_path / "disk").as_posix()
        here, apart = read_tensors(file.path), read_tensors(there)
        assert list(here.arrays) == list(apart.arrays)
        assert all((here.arrays[name] == apart.arrays[name]).all() for name in here.arrays)


@pytest.mark.slow
def test_an_index_keeps_the_urls_and_adds_nothing_twice(tmp_path: Path):
    upload(EXAMPLES)
    index = tmp_path / "index"
    report = add(["memory://store"], index, quiet=True)
    assert (report.signed, report.signed_already) == (4, 0)
    again = add(["memory://store"], index, quiet=True)
    assert (again.signed, again.signed_already) == (0, 4)
    from weightsearch.relations.store import read_known

    assert sorted(read_known(index)["source"]) == [f"memory://store/{p.name}" for p in sorted(EXAMPLES.glob("*.pt"))]
