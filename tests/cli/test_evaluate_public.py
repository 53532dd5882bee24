"""`evaluate --public`: one line for what does not go together, and a JSON object a fit and a figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.evaluation.test_public_splits import write_zoo


@pytest.mark.slow
def test_what_does_not_go_together_is_one_line(run: Run, tmp_path: Path):
    for arguments, message in (
        (("--public", "zoo"), "--public zoo: choose one of small-cnn-zoo, wild-park"),
        (("--public", "wild-park", "--workers", 2), "--workers does not go with --public wild-park"),
        (("--public", "wild-park", "another"), "takes one folder, and 2 are given"),
        (("--public", "wild-park", "--method", "fc"), "choose among universal"),
        (("--public", "wild-park"), "no folder"),
    ):
        code, out, err = run("evaluate", "folder", *arguments)
        assert code != 0
        assert out == ""
        assert message in err
        assert "Traceback" not in err


@pytest.mark.slow
def test_fits_and_published_figures_are_printed(run: Run, tmp_path: Path):
    write_zoo(tmp_path / "zoo")
    options = ("--public", "small-cnn-zoo", "--method", "statistics-trees", "--quick", "--quiet", "--out", "out")
    code, out, err = run("evaluate", "zoo", *options, "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0]["method"] == "statistics-trees"
    assert rows[0]["test"]["count"] == 60
    assert {row["tau"] for row in rows[1:]} == {0.914, 0.934, 0.935, 0.936, 0.957}
    assert json.loads((tmp_path / "out" / "public-small-cnn-zoo.json").read_text())["sizes"]["test"] == 60
