"""Tables as spreadsheets, programs and people write them: a bad line costs itself, and no file gets another's row."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightsearch.checkpoints.metadata import Metadata
from weightsearch.checkpoints.metadata_table import MetadataTable, read_table
from weightsearch.errors import UsageError, WeightsearchError


def accuracy(metadata: Metadata | None) -> float | None:
    return None if metadata is None or not metadata.metrics else metadata.value("test_accuracy")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"path;acc;note\na.pt;0,91;x\nb.pt;0,5;y\n", {"a.pt": 0.91, "b.pt": 0.5}),
        ("\ufeffpath,acc\r\na.pt,0.91\r\n".encode(), {"a.pt": 0.91}),
        ("path\tacc\na.pt\t0.91\n".encode("utf-16"), {"a.pt": 0.91}),  # a spreadsheet's "Unicode text"
        ("path,acc,note\na.pt,0.91,Größe\n".encode("latin-1"), {"a.pt": 0.91}),
        (b"# made by me\n# yesterday\npath,acc\na.pt,0.91\n", {"a.pt": 0.91}),
        (b"path , acc\na.pt , 0.91\n", {"a.pt": 0.91}),
        (b"Path,Acc\na.pt,0.91\n", {"a.pt": 0.91}),
        (b"path,acc\na.pt,0.91\nb.pt\n\n", {"a.pt": 0.91, "b.pt": None}),
        (b'path,acc,note\n"a.pt",0.91,"two\nlines, and ""so on"""\n', {"a.pt": 0.91}),
        (b",path,acc\n0,a.pt,0.91\n1,b.pt,0.5\n", {"a.pt": 0.91, "b.pt": 0.5}),  # with pandas' index
        (b"path,acc,acc\na.pt,0.91,0.8\n", {"a.pt": 0.91}),
        (b"path,acc,\na.pt,0.91,\n", {"a.pt": 0.91}),
        (b"path,acc\n007.pt,0.1\n7.pt,0.2\n1e3,0.3\n1000,0.4\n", {"007.pt": 0.1, "7.pt": 0.2, "1e3": 0.3, "1000": 0.4}),
        (b"path,acc\n007,0.1\n1e3,0.3\n", {"007": 0.1, "1e3": 0.3}),
        (b"path,acc\n1e3,0.3\n2e3,0.4\n", {"1e3": 0.3, "2e3": 0.4}),
        (b"path,acc\n1.50,0.3\n", {"1.50": 0.3}),
    ],
)  # fmt: skip
def test_text_tables_as_they_are_written(raw: bytes, expected: dict, tmp_path: Path):
    (tmp_path / "t.csv").write_bytes(raw)
    table = MetadataTable.read(tmp_path / "t.csv")
    assert {name: accuracy(table.find(tmp_path / "runs" / name)) for name in expected} == expected
    assert table.notes == []


def test_a_line_of_too_many_cells_is_left_out_and_named(tmp_path: Path):
    """`0,93` without quotes is two cells: neither 0 nor 93 is anybody's accuracy."""
    (tmp_path / "t.csv").write_text("path,acc\na.pt,0,93\nb.pt,0.5\n")
    table = MetadataTable.read(tmp_path / "t.csv")
    assert [accuracy(table.find(tmp_path / name)) for name in ("a.pt", "b.pt")] == [None, 0.5]
    (note,) = table.notes
    assert note.startswith("t.csv: line 2 has more cells than the header's 2 and left out; put quotes around")
    with pytest.raises(WeightsearchError, match="line 2 has more cells"):  # where values are changed, all or nothing
        read_table(tmp_path / "t.csv", "path")


def test_rows_of_one_name_that_differ_are_about_nobody(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,acc\na.pt,0.7\na.pt,0.8\nb.pt,0.9\nc.pt,0.5\n./c.pt,0.5\n")
    table = MetadataTable.read(tmp_path / "t.csv")
    assert [accuracy(table.find(tmp_path / f"{name}.pt")) for name in "abc"] == [None, 0.9, 0.5]
    (note,) = table.notes
    assert note.startswith("t.csv has rows for a.pt that differ: none of them is taken")


def test_a_row_that_two_files_match_is_about_neither(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,acc\nmodel.pt,0.7\nc/net.pt,0.6\n")
    table = MetadataTable.read(tmp_path / "t.csv")
    one, other, third = (tmp_path / "runs" / name for name in ("a/model.pt", "b/model.pt", "c/net.pt"))
    table.expect([(path, tmp_path / "runs") for path in (one, other, third)])
    assert [accuracy(table.find(path)) for path in (one, other, third)] == [None, None, 0.6]
    (note,) = table.notes
    assert note == f"the row model.pt of t.csv may be about {one} and {other}, so it is about none: " + (
        "give more of the path in path"
    )
    top = tmp_path / "runs" / "model.pt"  # whose whole path below the folder it is
    table = MetadataTable.read(tmp_path / "t.csv")
    table.expect([(path, tmp_path / "runs") for path in (one, top, third)])
    assert [accuracy(table.find(path)) for path in (one, top, third)] == [None, 0.7, 0.6]


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", ""), ("t.csv", "path,acc\n"), ("t.json", "[]"), ("t.csv", "path,acc\n,0.5\n")],
)
def test_a_table_without_lines_is_said_to_be_so(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    assert MetadataTable.read(tmp_path / name).notes == [
        f"{name} has no line that names a file, so nothing is taken from it"
    ]


def test_a_header_without_the_key_is_refused_even_without_lines(tmp_path: Path):
    for text in ("file,acc\n", '[{"path":"a.pt","acc":0.9}]'):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UsageError, match="has no such column; it has"):
            MetadataTable.read(tmp_path / "t.csv")
