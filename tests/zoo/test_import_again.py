"""Importing again repairs in place: new values for what is there, nothing doubled, later epochs in their runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.zoo.public_zoos import network
from weightsearch.checkpoints.discovery import Sources
from weightsearch.errors import WeightsearchError
from weightsearch.zoo.import_zoo import import_zoo
from weightsearch.zoo.store import Zoo


def save(path: Path, seed: int, **beside: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": network(seed).state_dict(), **beside}, path)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for run in range(2):
        for epoch in (1, 2):
            save(tmp_path / "sweep" / f"run-{run}" / f"epoch{epoch}.pt", 10 * run + epoch)
    return tmp_path / "sweep"


def rows(path: Path) -> dict[tuple[str, float], float]:
    table = Zoo.open(path).table()
    return {
        (table.names[run], float(epoch)): float(value)
        for run, epoch, value in zip(table.run, table.epoch, table.test_accuracy, strict=True)
    }


@pytest.mark.slow
def test_a_table_that_comes_later_sets_what_is_there(sweep: Path, tmp_path: Path):
    out = tmp_path / "zoo"
    import_zoo(sweep, out, quiet=True)
    assert np.isnan(list(rows(out).values())).all()
    (tmp_path / "t.csv").write_text(
        "path,acc,team\nrun-0/epoch1.pt,11.5,red\nrun-0/epoch2.pt,12,red\nrun-1/epoch1.pt,80,blue\nrun-1/epoch2.pt,91,blue\n"
    )
    again = import_zoo(sweep, out, sources=Sources.make(tmp_path / "t.csv"), quiet=True)
    assert (again.added, again.later, again.changed, again.runs, again.checkpoints) == (0, 0, 8, 2, 4)
    assert any(f"changed: 8 cells of what {out} had already; new: team" in note for note in again.notes)
    assert rows(out) == pytest.approx({("run-0", 1): 0.115, ("run-0", 2): 0.12, ("run-1", 1): 0.8, ("run-1", 2): 0.91})
    table = Zoo.open(out).table()
    assert table.extras["team"].tolist() == ["red", "red", "blue", "blue"]
    assert import_zoo(sweep, out, quiet=True).changed == 0  # what nobody tells any more stays
    assert rows(out)["run-1", 2] == pytest.approx(0.91)
    expected = Zoo.open(import_zoo(sweep, tmp_path / "anew", quiet=True).path)
    np.testing.assert_array_equal(Zoo.open(out).weights(slice(None)), expected.weights(slice(None)))


@pytest.mark.slow
def test_later_epochs_join_their_runs(sweep: Path, tmp_path: Path):
    out = tmp_path / "zoo"
    import_zoo(sweep, out, quiet=True)
    save(sweep / "run-1" / "epoch3.pt", 13, acc=0.5)
    save(sweep / "run-2" / "epoch1.pt", 21)
    again = import_zoo(sweep, out, quiet=True)
    assert (again.added, again.later, again.runs, again.checkpoints) == (1, 1, 3, 6)
    assert "1 checkpoint joined runs that were there" in again.notes
    zoo = Zoo.open(out)
    where = {
        (zoo.table().names[r], e): i for i, (r, e) in enumerate(zip(zoo.table().run, zoo.table().epoch, strict=True))
    }
    assert set(where) == {(f"run-{run}", epoch) for run in range(2) for epoch in (1, 2)} | {("run-1", 3), ("run-2", 1)}
    for (name, epoch), position in where.items():
        expected = network(10 * int(name[4:]) + epoch).state_dict()
        weights = zoo.weights([position])[0]
        for layer, matrix in zip(zoo.architecture.layers, zoo.architecture.matrices(weights), strict=True):
            stored = expected[f"{layer.name}.weight"].numpy()
            np.testing.assert_array_equal(matrix[:, :-1], stored.reshape(len(stored), -1))
            np.testing.assert_array_equal(matrix[:, -1], expected[f"{layer.name}.bias"].numpy())
    assert import_zoo(sweep, out, quiet=True).later == 0


@pytest.mark.slow
def test_runs_that_get_other_names_move_and_are_not_doubled(sweep: Path, tmp_path: Path):
    out = tmp_path / "zoo"
    import_zoo(sweep, out, quiet=True)
    lines = [f"run-{run}/epoch{epoch}.pt,both,{2 * run + epoch}" for run in range(2) for epoch in (1, 2)]
    (tmp_path / "t.csv").write_text("\n".join(["path,group,epoch", *lines]))
    again = import_zoo(sweep, out, sources=Sources.make(tmp_path / "t.csv", run_column="group"), quiet=True)
    assert (again.runs, again.checkpoints) == (1, 4)
    assert sorted(rows(out)) == [("both", 1), ("both", 2), ("both", 3), ("both", 4)]


@pytest.mark.slow
def test_another_folders_run_of_the_same_name_is_named(sweep: Path, tmp_path: Path):
    out = tmp_path / "zoo"
    import_zoo(sweep, out, quiet=True)
    save(tmp_path / "other" / "run-0" / "epoch7.pt", 7)
    save(sweep / "run-1" / "epoch2.pt", 99)  # trained anew
    summary = import_zoo(tmp_path / "other", out, quiet=True)
    assert "the zoo has a run run-0 from another folder" in summary.quarantined[0].reason
    summary = import_zoo(sweep, out, quiet=True)
    assert "the zoo's run run-1 has other weights of epoch 2" in summary.quarantined[0].reason
    assert sorted(rows(out)) == [(f"run-{run}", epoch) for run in range(2) for epoch in (1, 2)]


@pytest.mark.slow
def test_a_folder_that_moved_is_the_same(sweep: Path, tmp_path: Path):
    out = tmp_path / "zoo"
    import_zoo(sweep, out, quiet=True)
    shutil.move(sweep, tmp_path / "moved")
    again = import_zoo(tmp_path / "moved", out, dataset="toy", quiet=True)
    assert (again.added, again.later, again.changed, again.checkpoints) == (0, 0, 0, 4)
    assert all(str(tmp_path / "moved") in source for source in Zoo.open(out).table().source)
    assert Zoo.open(out).info.dataset == "toy"
    with pytest.raises(WeightsearchError, match="dataset: toy -> svhn"):
        import_zoo(tmp_path / "moved", out, dataset="svhn", quiet=True)
