"""An index without an encoder: signatures, search, duplicates, lineage, merges."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import weightsearch
from weightsearch.errors import WeightsearchError
from weightsearch.index import State, doctor
from weightsearch.index.manifest import DATABASE
from weightsearch.relations import Kind, SignatureIndex, compare
from weightsearch.relations.lookups import read_heads
from weightsearch.relations.merges import find_merge
from weightsearch.relations.signature import sign
from weightsearch.relations.store import read_known, read_signatures, remove_signatures

Networks = dict[str, tuple[Any, dict[str, dict[str, np.ndarray]]]]


@pytest.fixture(scope="session")
def folder(networks: Networks, derive: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people have them: three formats, copies, a half-precision copy, a fine-tune, a merge, strangers."""
    path = tmp_path_factory.mktemp("models")
    recipe, states = networks["mlp"]
    base, tuned = states["base"], states["tuned"]
    save_file(base, path / "base.safetensors")
    shutil.copy(path / "base.safetensors", path / "copy of base.safetensors")
    torch.save({"state_dict": {n: torch.from_numpy(v) for n, v in base.items()}, "epoch": 3}, path / "base.pt")
    save_file({name: value.astype(np.float16) for name, value in base.items()}, path / "half.safetensors")
    save_file(tuned, path / "tuned.safetensors")
    save_file(derive.merged([(0.6, base), (0.4, tuned)]), path / "merge.safetensors")
    twin = derive.permuted(base, derive.hidden_units(recipe), np.random.default_rng(0))
    save_file(twin, path / "permuted.safetensors")
    save_file(states["apart"], path / "apart.safetensors")
    save_file(networks["transformer"][1]["base"], path / "other.safetensors")
    return path


@pytest.fixture(scope="session")
def relations_index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "models"
    report = weightsearch.add([folder], path, quiet=True)
    assert (report.added, report.signed) == (0, 9)
    return path


def name(source: str) -> str:
    return Path(source).name


@pytest.mark.slow
def test_adding_twice_signs_once(relations_index: Path, folder: Path, tmp_path: Path):
    index = Path(shutil.copytree(relations_index, tmp_path / "index"))
    report = weightsearch.add([folder], index, quiet=True)
    assert (report.signed, report.signed_already) == (0, 9)
    assert len(read_known(index)) == 9
    assert remove_signatures(index, [str((folder / "base.pt").resolve())]) == 1
    assert len(read_known(index)) == 8


@pytest.mark.slow
def test_signatures_come_back_as_they_were(relations_index: Path, networks: Networks):
    known = read_known(relations_index)
    row = [name(source) for source in known["source"]].index("tuned.safetensors")
    number = int(known["number"][row])
    found = read_signatures(relations_index, [number])[number]
    expected = sign(dict(sorted(networks["mlp"][1]["tuned"].items())))
    assert sorted(found.tensors, key=lambda t: t.name) == sorted(expected.tensors, key=lambda t: t.name)
    np.testing.assert_allclose(found.sketch, expected.sketch, atol=1e-3)
    np.testing.assert_array_equal(found.raw_sketch, expected.raw_sketch)
    assert (found.content, found.rounded_content) == (expected.content, expected.rounded_content)


def test_duplicates(relations_index: Path):
    (group,) = weightsearch.duplicates(relations_index)
    by_name = dict(zip(map(name, group.sources), group.how, strict=True))
    assert set(by_name) == {"base.safetensors", "copy of base.safetensors", "base.pt", "half.safetensors"}
    assert name(group.sources[0]) == "base.pt"  # full precision, and more than weights
    assert by_name["half.safetensors"] is Kind.SAME_WEIGHTS
    assert group.freed == sum(Path(source).stat().st_size for source in group.sources[1:])


@pytest.mark.slow
def test_relatives_of_a_file(relations_index: Path, folder: Path):
    answer = weightsearch.relatives(folder / "tuned.safetensors", relations_index)
    found = {name(relative.source): relative.comparison.relation for relative in answer.relatives}
    assert found["base.safetensors"] is Kind.RELATIVE
    assert found["permuted.safetensors"] is Kind.PERMUTED_RELATIVE
    assert "tuned.safetensors" not in found
    assert not any(
        relation.is_related
        for source, relation in found.items()
        if source in ("apart.safetensors", "other.safetensors")
    )


@pytest.mark.slow
def test_a_merge_has_its_parents(relations_index: Path, folder: Path):
    answer = weightsearch.relatives(folder / "merge.safetensors", relations_index)
    parents = {name(r.source): r for r in answer.relatives if r.comparison.relation is Kind.MERGE}
    assert "tuned.safetensors" in parents
    assert len(parents) == 2
    assert parents["tuned.safetensors"].comparison.evidence["share"] == pytest.approx(0.4, abs=1e-3)
    assert answer.summary.startswith("merge of")


def test_strangers_have_no_relatives(relations_index: Path, networks: Networks):
    answer = weightsearch.relatives(networks["lstm"][1]["base"], relations_index)
    assert not answer.relatives
    assert "no relation found" in answer.summary
    assert answer.unseen


@pytest.mark.slow
def test_without_its_files_an_index_says_what_signatures_tell(
    relations_index: Path, networks: Networks, tmp_path: Path
):
    index = Path(shutil.copytree(relations_index, tmp_path / "index"))
    from weightsearch.index.connection import Database

    with Database(index / "index.duckdb").open(read_only=False) as connection:
        connection.execute("UPDATE ix.signatures SET source = '/gone' || source, head_hash = NULL")
    states = networks["mlp"][1]
    answer = weightsearch.relatives(states["tuned"], index)
    best = {name(relative.source): relative for relative in answer.relatives}
    assert best["tuned.safetensors"].comparison.relation is Kind.SAME_WEIGHTS
    assert best["base.safetensors"].comparison.relation is Kind.RELATIVE
    assert not best["base.safetensors"].opened


@pytest.mark.slow
def test_lineage(relations_index: Path):
    graph = weightsearch.lineage(relations_index)
    names = [name(node.source) for node in graph.nodes]
    assert len(names) == 6
    joined = {frozenset((names[edge.a], names[edge.b])) for edge in graph.edges}
    base = next(n for n in names if "base" in n or n == "half.safetensors")
    assert any("tuned.safetensors" in pair for pair in joined)
    assert frozenset((base, "permuted.safetensors")) in joined
    assert not any(pair & {"apart.safetensors", "other.safetensors"} for pair in joined)
    merges = {names[edge.a] for edge in graph.edges if edge.relation is Kind.MERGE}
    assert merges == {base, "tuned.safetensors"}
    assert all(edge.directed for edge in graph.edges if edge.relation is Kind.MERGE)
    assert "2 without relatives" in graph.to_text()
    assert graph.to_dot().count("->") == len(graph.edges)
    assert "<script" not in graph.to_html()
    bom = graph.to_cyclonedx()
    assert (bom["bomFormat"], len(bom["components"])) == ("CycloneDX", 6)
    merge = next(c for c in bom["components"] if c["name"].endswith("merge.safetensors"))
    assert len(merge["pedigree"]["ancestors"]) == 2
    json.dumps([graph.to_dict(), bom])


@pytest.mark.slow
def test_the_bill_of_materials_is_valid_cyclonedx(relations_index: Path):
    import jsonschema
    from referencing import Registry, Resource

    folder = files("cyclonedx") / "schema" / "_res"
    schemas = {
        name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text())
        for name in ("bom-1.6", "jsf-0.82", "spdx")
    }
    registry = Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in schemas.values())
    validator = jsonschema.Draft7Validator(schemas["bom-1.6"], registry=registry)
    bom = json.loads(json.dumps(weightsearch.lineage(relations_index).to_cyclonedx()))
    assert not list(validator.iter_errors(bom))
    bom["components"][0]["type"] = "network"
    assert list(validator.iter_errors(bom))  # it is the schema that judges


@pytest.mark.slow
def test_merges_of_all_kinds(networks: Networks, derive: ModuleType):
    states = networks["residual"][1]
    one, other = states["tuned"], states["apart"]
    for child in (
        derive.merged([(0.25, one), (0.75, other)]),
        {n: v.astype(np.float16) for n, v in derive.merged([(0.5, one), (0.5, other)]).items()},
        derive.slerp(one, other, 0.4),
    ):
        merge = find_merge(child, [one, other], sign(child))
        assert merge is not None
        assert sum(merge.shares) == pytest.approx(1, abs=0.05) or merge.how == "by tensor"
    for child in (
        states["base"],
        one,
        derive.noised(derive.merged([(0.5, one), (0.5, other)]), 1e-3, np.random.default_rng(0)),
    ):
        assert find_merge(child, [one, other], sign(child)) is None


@pytest.mark.slow
def test_a_query_of_many_signatures_is_quick(relations_index: Path, networks: Networks):
    """Candidates alone; the time of 100,000 is in the benchmark."""
    signatures = SignatureIndex(relations_index)
    signature = sign(networks["mlp"][1]["tuned"])
    nearest = next(iter(signatures.candidates(signature)))
    assert name(read_heads(relations_index, [nearest])[nearest].source) == "tuned.safetensors"


def test_compare_of_files_is_compare_of_tensors(folder: Path, networks: Networks):
    states = networks["mlp"][1]
    by_file = weightsearch.diff(folder / "base.safetensors", folder / "tuned.safetensors")
    by_tensor = compare(states["base"], states["tuned"])
    assert by_file.relation is by_tensor.relation
    assert (
        weightsearch.diff(folder / "base.safetensors", folder / "copy of base.safetensors").relation is Kind.IDENTICAL
    )


@pytest.mark.slow
def test_removing_rows_forgets_their_signatures(tmp_path: Path):
    from weightsearch.index import IndexStore, remove_rows

    index = Path(shutil.copytree(Path(__file__).parents[2] / "index", tmp_path / "index"))
    examples = sorted(str(path.resolve()) for path in (index / "examples").glob("*.pt"))
    report = weightsearch.add([index / "examples"], index, quiet=True)
    assert report.signed == report.added == len(examples) == 4
    store = IndexStore.open(index)
    ids = {
        source: id
        for fingerprint in store.architectures
        for source, id in zip(*store.table(fingerprint, ["source", "id"]).values(), strict=True)
    }
    assert remove_rows(index, ids=[ids[examples[0]]]) == 1
    left = read_known(index)
    assert sorted(left["source"]) == examples[1:]
    assert set(read_signatures(index, left["number"].tolist())) == set(left["number"].tolist())


@pytest.fixture(scope="module")
def adapter_folder(networks: Networks, small_networks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, one of another seed, one that the adapter was merged into, and the adapter, trained on the first."""
    path = tmp_path_factory.mktemp("adapters")
    recipe = networks["mlp"][0]
    images, labels = (torch.from_numpy(array[:800]) for array in small_networks.digits())
    states = {}
    for seed, name_ in ((1, "base"), (2, "apart")):
        torch.manual_seed(seed)
        network = small_networks.FAMILIES["mlp"](recipe)
        for epoch in range(8):
            small_networks.train_epoch(network, recipe, images, labels, seed + epoch, 5e-3)
        states[name_] = small_networks.tensors_of(network)
    factors = small_networks.trained_adapter(recipe, states["base"], rank=4, epochs=10, seed=1)
    (path / "lora").mkdir()
    save_file(
        {f"base_model.model.{m}.lora_{k}.weight": f for m, (a, b) in factors.items() for k, f in (("A", a), ("B", b))},
        path / "lora" / "adapter_model.safetensors",
    )
    (path / "lora" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4}))
    save_file(states["base"], path / "base.safetensors")
    save_file(states["apart"], path / "apart.safetensors")
    merged = dict(states["base"])
    for module, (a, b) in factors.items():
        change = 2 * np.tensordot(b.reshape(len(b), -1), a, axes=1)
        merged[f"{module}.weight"] = (merged[f"{module}.weight"] + change).astype(np.float32)
    save_file(merged, path / "merged.safetensors")
    return path


@pytest.mark.slow
def test_an_adapter_names_its_base(adapter_folder: Path, tmp_path: Path):
    adapter = adapter_folder / "lora" / "adapter_model.safetensors"
    own = weightsearch.diff(adapter_folder / "base.safetensors", adapter)
    assert (own.relation, str(own.direction)) == (Kind.RELATIVE, "a-to-b")
    assert str(weightsearch.diff(adapter, adapter_folder / "base.safetensors").direction) == "b-to-a"
    assert weightsearch.diff(adapter_folder / "apart.safetensors", adapter).relation is Kind.UNRELATED
    for name_ in ("apart", "base"):
        weightsearch.add([adapter_folder / f"{name_}.safetensors"], tmp_path / "index", quiet=True)
    answer = weightsearch.relatives(adapter, tmp_path / "index")
    assert [name(r.source) for r in answer.relatives] == ["base.safetensors"]
    assert "adapter" in answer.summary


@pytest.mark.slow
def test_an_adapter_beside_what_it_was_merged_into_is_certain_of_its_base(adapter_folder: Path, tmp_path: Path):
    weightsearch.add([adapter_folder], tmp_path / "index", quiet=True)
    answer = weightsearch.relatives(adapter_folder / "lora" / "adapter_model.safetensors", tmp_path / "index")
    first, second = answer.relatives[:2]
    assert (name(first.source), first.comparison.certainty.value) == ("base.safetensors", "certain")
    assert (name(second.source), second.comparison.relation) == ("merged.safetensors", Kind.LORA_MERGED)
    assert "apart.safetensors" not in [name(r.source) for r in answer.relatives]


def exchange_first_two(path: Path, table: str, column: str, key: str) -> None:
    """By DuckDB, so that its own checksums agree."""
    with duckdb.connect(str(path / DATABASE)) as connection:
        (one, cell), (other, another) = connection.execute(
            f"SELECT rowid, {column} FROM {table} QUALIFY row_number() OVER (PARTITION BY {column} ORDER BY rowid) = 1 "
            f"AND {column} IS NOT NULL ORDER BY {key}, rowid LIMIT 2"
        ).fetchall()
        for row, value in ((one, another), (other, cell)):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", [value, row])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "column"),
    [("signatures", "content"), ("signatures", "sketch"), ("signatures", "raw_sketch"), ("signatures", "file_hash"),
     ("tensors", "unordered"), ("tensors", "norm"), ("tensors", "name")],
)  # fmt: skip
def test_a_cell_of_signatures_in_another_rows_place_is_never_answered_from(
    table: str, column: str, relations_index: Path, folder: Path, tmp_path: Path
):
    index = Path(shutil.copytree(relations_index, tmp_path / "index"))
    numbers = read_known(index).columns["number"].tolist()
    assert len(read_signatures(index, numbers)) == 9
    assert {finding.state for finding in doctor(index)} == {State.OK}
    exchange_first_two(index, table, column, "number" if table == "signatures" else "signature")
    with pytest.raises(WeightsearchError, match="is damaged"):
        read_signatures(index, numbers)
    with pytest.raises(WeightsearchError, match="is damaged"):
        SignatureIndex(index).relatives(folder / "base.safetensors")
    said = [finding.detail for finding in doctor(index) if finding.state is State.BROKEN]
    assert any(" signatures that are not as they were written: number 0" in detail for detail in said), said


@pytest.mark.slow
def test_a_repair_of_another_table_keeps_signatures(relations_index: Path, folder: Path, tmp_path: Path):
    index = Path(shutil.copytree(relations_index, tmp_path / "index"))
    numbers = read_known(index).columns["number"].tolist()
    before = {number: signature.tensors for number, signature in read_signatures(index, numbers).items()}
    with duckdb.connect(str(index / DATABASE)) as connection:
        connection.execute("DROP TABLE keys")
    assert {finding.what for finding in doctor(index) if finding.state is State.REPAIRED} == {DATABASE}
    after = {number: signature.tensors for number, signature in read_signatures(index, numbers).items()}
    assert before == after
    assert weightsearch.add([folder], index, quiet=True).signed == 0


@pytest.mark.slow
def test_signatures_of_before_are_read_and_get_checksums_when_more_are_added(
    relations_index: Path, folder: Path, tmp_path: Path
):
    index = Path(shutil.copytree(relations_index, tmp_path / "index"))
    with duckdb.connect(str(index / DATABASE)) as connection:
        connection.execute("ALTER TABLE signatures DROP COLUMN head_hash; ALTER TABLE signatures DROP COLUMN rest_hash")
    numbers = read_known(index).columns["number"].tolist()
    before = read_signatures(index, numbers)
    (tmp_path / "more").mkdir()
    save_file(
        {"w": np.random.default_rng(0).standard_normal((50, 50)).astype(np.float32)},
        tmp_path / "more" / "w.safetensors",
    )
    weightsearch.add([tmp_path / "more"], index, quiet=True)
    after = read_signatures(index, numbers)
    assert {number: signature.tensors for number, signature in after.items()} == {
        number: signature.tensors for number, signature in before.items()
    }
    exchange_first_two(index, "tensors", "norm", "signature")
    with pytest.raises(WeightsearchError, match="is damaged"):
        read_signatures(index, numbers)
