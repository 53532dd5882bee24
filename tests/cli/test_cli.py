"""The command line on real artefacts: what it prints, and one line for whatever goes wrong."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import Run
from weightsearch import cli
from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint
from weightsearch.index import IndexStore
from weightsearch.search.index import query
from weightsearch.training.summary import TrainSummary
from weightsearch.types import content_hash
from weightsearch.zoo.store import Zoo


def fails(result: tuple[int, str, str], code: int, *words: str) -> None:
    """One line on stderr (beside the one that says which index or zoo), nothing on stdout, no traceback."""
    assert result[0] == code, result
    assert result[1] == ""
    lines = [line for line in result[2].splitlines() if not line.startswith(("index: ", "zoo: "))]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.slow
def test_query_prints_all_of_the_answer(run: Run, trained: TrainSummary):
    example = trained.examples[0]
    code, out, err = run("query", example.path, "--index", trained.index, "-k", 3, "--all", "--layers")
    answer = query(trained.index, example.path, 3)
    assert code == 0, err
    assert "3 conv + dense, 4,970 weights" in out
    assert f"about {answer.predicted:.2f} on digits" in " ".join(out.split())
    assert " ".join(out.split()).startswith(answer.verdict)
    assert "Layers, unlike the nearest good one" in out
    for row in (*answer.neighbours, *answer.good, *answer.bad):
        line = next(line for line in out.splitlines() if f"{row.distance:.4f}" in line and row.run in line)
        assert f"{row.test_accuracy:.3f}" in line
        assert row.recipe["optimizer"] in line


@pytest.mark.slow
def test_query_json_is_one_object_a_line_and_nothing_else(run: Run, trained: TrainSummary):
    paths = [example.path for example in trained.examples]
    code, out, err = run("query", *paths, "--index", trained.index, "--k", 2, "--json")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["path"] for answer in answers] == [str(path) for path in paths]
    for answer, path in zip(answers, paths, strict=True):
        keys = {"path", "architecture", "predicted", "percentile", "neighbours", "good", "bad", "verdict"}
        keys |= {"schema", "index", "dataset", "label"}
        assert keys <= set(answer)
        assert answer["predicted"] == pytest.approx(query(trained.index, path).predicted)
        assert answer["predicted_accuracy"] == answer["predicted"]
        for row in answer["neighbours"] + answer["good"] + answer["bad"]:
            assert {"id", "distance", "test_accuracy", "epoch", "run", "recipe"} <= set(row)
            assert row["recipe"]["optimizer"] in ("sgd", "adam", "rmsprop")


def test_an_indexed_checkpoint_finds_itself_and_its_percentile_is_counted(
    zoo: Zoo, trained: TrainSummary, tmp_path: Path
):
    held_out = {example.run for example in trained.examples}
    table = zoo.table()
    position = next(i for i in range(40, len(table.run)) if table.run[i] not in held_out)
    write_checkpoint(tmp_path / "own.safetensors", zoo.weights(np.array([position]))[0], zoo.architecture, {})
    answer = query(trained.index, tmp_path / "own.safetensors", k=1)
    assert answer.neighbours[0].distance == pytest.approx(0, abs=1e-5)
    assert answer.neighbours[0].run == f"{zoo.info.name}/{table.run[position]}"
    assert answer.neighbours[0].epoch == table.epoch[position]
    indexed = [table.test_accuracy[i] for i in range(len(table.run)) if table.run[i] not in held_out]
    below = sum(accuracy < answer.predicted for accuracy in indexed)
    assert answer.percentile == pytest.approx(100 * below / len(indexed))


@pytest.mark.slow
def test_examples_are_not_in_the_index(trained: TrainSummary):
    for example in trained.examples:
        answer = query(trained.index, example.path, k=trained.checkpoints)
        assert answer.stated_accuracy == example.test_accuracy
        assert all(row.run.rpartition("/")[2] != str(example.run) for row in answer.neighbours)
        assert answer.neighbours[0].distance > 1e-6


@pytest.mark.slow
def test_the_four_commands_find_what_the_last_one_made(run: Run):
    code, out, err = run("build-zoo", "--runs", 12, "--epochs", 3, "--batch-size", 64)
    assert code == 0, err
    assert "12 runs" in out
    code, out, err = run("train", "--examples", 1)
    assert code == 0, err
    assert "zoo: runs/zoos/digits-v1" in err
    assert "kept" in out
    code, _, err = run("query", "runs/indexes/digits-v1/examples/very-good.pt", "--k", 2)
    assert code == 0, err
    assert "index: runs/indexes/digits-v1" in err
    code, out, err = run("viz")
    assert code == 0, err
    for line in out.splitlines():
        assert Path(line).read_bytes().startswith(b"\x89PNG")
    assert [Path(line).stem for line in out.splitlines()] == ["distribution", "embedding", "similarity", "training"]
    code, out, err = run("train", "--method", "statistics", "--quiet")  # nothing is overwritten
    assert code == 0, err
    assert "runs/indexes/digits-v1-2" in out
    code, out, err = run("zoo", "info")
    assert code == 0, err
    assert "adam" in out


def test_without_anything_made_the_reference_index_answers(run: Run):
    reference = Path(__file__).parents[2] / "index"
    code, out, err = run("query", next(reference.glob("examples/good.pt")), "--json")
    assert code == 0, err
    assert f"index: {reference}" in err
    assert json.loads(out)["neighbours"]


class Malice:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran-code",)


def bad_files(directory: Path, example: Path) -> dict[str, tuple[Path, str]]:
    """Files that must be refused, each with a word that its line must hold."""
    whole = example.read_bytes()
    state = torch.load(example, weights_only=True)
    state = state.get("state_dict", state)

    def write(name: str, content: bytes) -> Path:
        (directory / name).write_bytes(content)
        return directory / name

    nan = {name: tensor.clone() for name, tensor in state.items()}
    next(iter(nan.values())).view(-1)[0] = float("nan")
    torch.save(nan, directory / "nan.pt")
    torch.save(torch.nn.Linear(3, 2).state_dict(), directory / "other.pt")
    (directory / "folder.pt").mkdir()
    return {
        "missing": (directory / "missing.pt", "missing.pt"),
        "directory": (directory / "folder.pt", "folder"),
        "empty": (write("empty.pt", b""), "empty"),
        "truncated": (write("truncated.pt", whole[: len(whole) // 2]), "truncated.pt"),
        "text": (write("text.pt", b"accuracy,0.9\n" * 50), "text.pt"),
        "pickle": (write("pickle.pt", pickle.dumps({"state_dict": Malice()})), "system"),
        "nan": (directory / "nan.pt", "nan.pt"),
        "architecture": (directory / "other.pt", "architecture"),
    }


@pytest.mark.parametrize(
    "name", ["missing", "directory", "empty", "truncated", "text", "pickle", "nan", "architecture"]
)
def test_a_bad_model_file_is_one_line_and_changes_nothing(name: str, run: Run, trained: TrainSummary, tmp_path: Path):
    path, word = bad_files(tmp_path, trained.examples[0].path)[name]
    before = snapshot(trained.index) | snapshot(tmp_path)
    fails(run("query", path, "--index", trained.index), 1, path.name, word)
    assert snapshot(trained.index) | snapshot(tmp_path) == before


@pytest.mark.slow
def test_bad_flags_are_one_line_and_exit_code_2(run: Run, trained: TrainSummary, tmp_path: Path):
    example, index = trained.examples[0].path, trained.index
    fails(run("query", example, "--index", index, "--k", 0), 2, "--k 0")
    fails(run("query", example, "--index", index, "--k", 10**6), 2, "between 1 and")
    fails(run("query", example, "--index", index, "--k", "many"), 2, "--k", "integer")
    fails(run("query", "--index", index), 2, "MODEL")
    fails(run("query", example, "--indx", index), 2, "--indx", "--help")
    fails(run("frobnicate"), 2, "frobnicate")
    fails(run("train", trained.zoo, "--method", "magic"), 2, "magic", "statistics")
    fails(run("train", trained.zoo, "--examples", 9), 2, "--examples 9")
    fails(run("train", trained.zoo, "--out", index), 2, "--replace")
    fails(run("viz", "--index", index, "--figure", "portrait"), 2, "portrait", "similarity")
    fails(run("viz", "--index", index, "--out", example), 2, example.name)
    fails(run("viz", index, "--format", "gif"), 2, "gif", "svg")
    fails(run("viz", index, "--projection", "mds"), 2, "mds", "umap")
    fails(run("viz", index, "--part", "half"), 2, "half", "test")
    fails(run("viz", index, "--figure", "efficiency"), 2, "tables.json")
    fails(run("viz", index, "--interactive", "--out", example), 1, example.name)
    fails(run("viz", index, "--run", "99", "--figure", "training"), 2, "--run 99")
    fails(run("tables", trained.zoo, "--trials", "many"), 2, "--trials many", "METHOD=N")
    fails(run("tables", trained.zoo, "--trials", "magic=3"), 2, "--trials magic=3", "comvex-conv")
    fails(run("tables", trained.zoo, "--trials", "fc=0"), 2, "--trials 0")
    fails(run("build-zoo", "--preset", "v9"), 2, "v9")
    fails(run("build-zoo", "--runs", 0), 2, "runs")
    fails(run("build-zoo", "--dataset", "imagenet"), 2, "imagenet")


@pytest.mark.slow
def test_bad_directories_are_one_line(run: Run, trained: TrainSummary, tmp_path: Path, index_copy: Path):
    example = trained.examples[0].path
    fails(run("query", example, "--index", tmp_path / "none"), 1, "does not exist", "weightsearch train")
    (index_copy / "manifest.json").unlink()
    fails(run("query", example, "--index", index_copy), 1, "half written")
    fails(run("viz", "--index", index_copy), 1, "half written")
    fails(run("train"), 1, "weightsearch build-zoo")
    fails(run("train", tmp_path / "none"), 1, "none")
    fails(run("zoo", "info", tmp_path), 1, "zoo.json")
    assert not (tmp_path / "runs").exists()


def test_one_bad_file_among_several_does_not_stop_the_others(run: Run, trained: TrainSummary, tmp_path: Path):
    good = [example.path for example in trained.examples]
    code, out, err = run("query", good[0], tmp_path / "missing.pt", good[1], "--index", trained.index, "--json")
    assert code == 1
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["path"] for answer in answers if "error" not in answer] == [str(path) for path in good]
    assert [Path(answer["path"]).name for answer in answers if "error" in answer] == ["missing.pt"]
    assert "missing.pt" in err
    assert "1 of 3 networks" in err


def test_a_bug_is_one_line_too(run: Run, trained: TrainSummary, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(IndexStore, "open", broken)
    fails(run("query", trained.examples[0].path, "--index", trained.index), 1, "internal", "first line", "bug")


@pytest.mark.slow
def test_figures_are_drawn_for_whatever_the_index_holds(run: Run, trained: TrainSummary, tmp_path: Path):
    code, _, err = run(
        "viz", "--index", trained.index, "--figure", "distribution", "--figure", "similarity", "--out", "drawn"
    )
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["distribution.png", "similarity.png"]
    shutil.rmtree(tmp_path / "drawn")


@pytest.mark.slow
def test_another_target_turns_good_and_bad_around_everywhere(run: Run, trained: TrainSummary, tmp_path: Path):
    options = ("--method", "statistics", "--examples", 2, "--target", "test_loss", "--lower-is-better")
    code, _, err = run("train", trained.zoo, "--out", "losses", *options)
    assert code == 0, err
    index = IndexStore.open("losses")
    (fingerprint,) = index.architectures
    losses = index.accuracies(fingerprint)
    bad, good = index.thresholds(fingerprint)
    assert (good, bad) == tuple(np.quantile(losses, [0.25, 0.75]))
    code, out, err = run("query", "losses/examples/very-good.pt", "--index", "losses", "--k", 3, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert all(row["value"] <= good for row in answer["good"])
    assert all(row["value"] >= bad for row in answer["bad"])
    assert answer["percentile"] == pytest.approx(100 * np.mean(losses > answer["predicted"]))
    assert answer["stated_accuracy"] > 0
    _, out, _ = run("query", "losses/examples/bad.pt", "--index", "losses", "--k", 3, "--all")
    assert re.search(r"test loss (about )?\d", " ".join(out.splitlines()[:3]))
    assert f"(test loss ≤ {good:.3f})" in out
    code, _, err = run("viz", "--index", "losses", "--figure", "distribution", "--figure", "similarity", "--out", "f")
    assert code == 0, err
    fails(run("train", trained.zoo, "--target", "f1"), 2, "--target f1", "test_loss")


@pytest.mark.slow
def test_query_takes_ids_and_folders_and_explains(run: Run, trained: TrainSummary, tmp_path: Path):
    for example in trained.examples:
        (tmp_path / "sweep" / example.path.stem).mkdir(parents=True)
        shutil.copy(example.path, tmp_path / "sweep" / example.path.stem / "model.pt")
    index = IndexStore.open(trained.index)
    id = str(index.table(next(iter(index.architectures)), ["id"])["id"][20])
    code, out, err = run("query", "sweep", "--id", id, "--index", trained.index, "--k", 2, "--json", "--not-run")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert sorted(answer["path"] for answer in answers[:2]) == [
        f"sweep/{name}/model.pt" for name in ("bad", "very-good")
    ]
    assert answers[2]["id"] == id
    assert all(row["run"] != answers[2]["run"] for row in answers[2]["neighbours"])
    code, out, _ = run("query", "--id", id[:9], "--index", trained.index, "--where", "epoch > 3", "--explain")
    assert code == 0
    passing = int((index.table(next(iter(index.architectures)), ["epoch"])["epoch"] > 3).sum())
    assert f"{passing:,} of {len(index):,} rows pass" in out


def test_get_writes_a_file_and_prints_where(run: Run, trained: TrainSummary, tmp_path: Path):
    index = IndexStore.open(trained.index)
    id = str(index.table(next(iter(index.architectures)), ["id"])["id"][20])
    code, out, err = run("get", id[:9], "--out", "back.pt", "--index", trained.index)
    assert (code, out.strip()) == (0, "back.pt"), err
    assert content_hash(read_checkpoint(tmp_path / "back.pt").weights) == id


@pytest.mark.slow
def test_wrong_questions_are_one_line(run: Run, trained: TrainSummary, tmp_path: Path):
    example, index = trained.examples[0].path, ("--index", trained.index)
    fails(run("query", *index), 2, "--id")
    fails(run("query", "--id", "xyz", *index), 2, "xyz", "hexadecimal")
    fails(run("query", "--id", "0" * 16, *index), 2, "no checkpoint with id")
    fails(run("query", example, *index, "--where", "epoch >"), 2, "--where")
    fails(run("query", example, *index, "--good", "excellent"), 2, "--good excellent", "q0")
    fails(run("query", example, *index, "--within", "-1"), 2, "--within")
    fails(run("query", example, *index, "--per-run", 0), 2, "--per-run 0")
    fails(run("get", "0" * 16, "--out", "m.pt", *index), 2, "no checkpoint with id")
    fails(run("get", "0" * 16, *index), 2, "--out")
    (tmp_path / "empty").mkdir()
    fails(run("query", "empty", *index), 1, "empty", "it holds no file of weights")


def test_one_command_alone_is_made_for_a_question_and_reads_as_among_all(command: Run, monkeypatch: pytest.MonkeyPatch):
    assert [each.callback.__name__ for each in cli._asked(["query", "x.pt"]).registered_commands] == ["query"]
    assert cli._asked(["zoo", "list"]) is cli._asked(["--help"]) is cli._asked([]) is cli._asked(["quarry"]) is cli.app
    shown = [command("import", "--help")]
    monkeypatch.setattr(cli, "_asked", lambda arguments: cli.app)
    shown.append(command("import", "--help"))
    assert shown[0] == shown[1]
    assert "--metadata" in shown[0][1]


def test_ctrl_c_that_python_turns_into_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Up to 3.11 it says RuntimeError of whatever ends a `__set_name__`, while a module is imported, say."""

    class Field:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_asked", lambda arguments: lambda **options: type("Table", (), {"column": Field()}))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted; ")
