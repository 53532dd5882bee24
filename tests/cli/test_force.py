"""No command writes over a file of the user's, or through a link, unless told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weightsearch.cli import app
from weightsearch.errors import UsageError
from weightsearch.relations.pack import MANIFEST, pack, unpack

REFERENCE = Path(__file__).parents[2] / "index"
EXAMPLE = REFERENCE / "examples" / "good.pt"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("export FILE --index INDEX", "rows.parquet"),
        ("get ID --out FILE --index INDEX", "model.pt"),
        ("sweep FOLDER --csv FILE --index INDEX", "runs.csv"),
        ("tidy FOLDER --plan FILE", "plan.json"),
        ("report INDEX --out FILE", "report.html"),
        ("viz INDEX --interactive --out FOLDER", "map.html"),
        ("viz INDEX --figure distribution --out FOLDER", "distribution.png"),
    ],
    ids=lambda value: value.split()[0] if " " in value else value,
)
def test_what_is_there_stays(command: str, name: str, kind: str, tmp_path: Path):
    path, other = tmp_path / name, tmp_path / "other"
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(other)
    if kind == "link":
        other.write_text("mine")
    words = {"FILE": str(path), "FOLDER": str(tmp_path), "INDEX": str(REFERENCE), "ID": "0" * 16}
    done = CliRunner().invoke(app, [words.get(word, word) for word in command.split()], standalone_mode=False)
    assert isinstance(done.exception, UsageError), done.output
    assert f"{path} exists; choose another name, or --force to write over it" in str(done.exception)
    assert kind == "dangling link" or path.read_text() == "mine"
    assert path.is_symlink() == (kind != "file")
    assert other.exists() == (kind == "link")


def test_a_file_that_was_changed_since_it_was_packed_stays_and_so_do_all_others(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name in ("a.pt", "b.pt"):
        (tmp_path / "in" / name).write_bytes(EXAMPLE.read_bytes())
    pack(tmp_path / "in", tmp_path / "packed")
    (tmp_path / "in" / "a.pt").unlink()
    (tmp_path / "in" / "b.pt").write_text("mine")
    with pytest.raises(UsageError, match=r"b\.pt exists"):
        unpack(tmp_path / "packed", tmp_path / "in")
    assert [file.name for file in (tmp_path / "in").iterdir()] == ["b.pt"]
    assert unpack(tmp_path / "packed", tmp_path / "in", overwrite=True) == 2
    assert {file.read_bytes() for file in (tmp_path / "in").iterdir()} == {EXAMPLE.read_bytes()}
    manifest = json.loads((tmp_path / "packed" / MANIFEST).read_text())
    manifest["files"][0]["path"] = "../outside.pt"
    (tmp_path / "packed" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="lies outside"):
        unpack(tmp_path / "packed", tmp_path / "new")
    assert not (tmp_path / "outside.pt").exists()
