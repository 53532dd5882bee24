"""Checkpoints in an S3: what is fetched, what a bad network does, and what changes meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.checkpoints.remote.local_s3 import LocalS3
from weightsearch.checkpoints.discovery import discover, find_files
from weightsearch.checkpoints.formats import read_content
from weightsearch.checkpoints.readers import limits
from weightsearch.checkpoints.remote import stores
from weightsearch.checkpoints.remote.paths import as_path
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.errors import WeightsearchError
from weightsearch.relations.store import read_known
from weightsearch.search.add import add
from weightsearch.search.shards import collect, embed

pytestmark = pytest.mark.slow  # moto takes long to import

EXAMPLES = Path(__file__).parents[3] / "index" / "examples"
GOOD, BAD = (EXAMPLES / name for name in ("good.pt", "bad.pt"))


def tensors(seed: int, rows: int = 3) -> dict[str, np.ndarray]:
    """`a.weight`, `b.weight` and so on, of a MiB each."""
    generator = np.random.default_rng(seed)
    return {
        f"{letter}.weight": generator.normal(size=(512, 512)).astype(np.float32) for letter in "abcdefghijkl"[:rows]
    }


def error_of(url: str) -> str:
    with pytest.raises(WeightsearchError) as caught:
        read_checkpoint(url)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_is_listed_once_and_its_files_are_those_of_the_disk(s3: LocalS3):
    for number, file in enumerate(sorted(EXAMPLES.glob("*.pt"))):
        s3.client.upload_file(str(file), "models", f"sweep/run-{number}/{file.name}")
    s3.put("models", Key="sweep/notes.txt", Body=b"no weights")
    s3.put("models", Key="sweeping/other.pt", Body=GOOD.read_bytes())  # in another folder
    s3.forget()
    files, missing = find_files(["s3://models/sweep"])
    assert not missing
    assert [file.path.name for file in files] == sorted(file.name for file in EXAMPLES.glob("*.pt"))
    assert [file.run for file in files] == [f"sweep/run-{number}" for number in range(4)]
    assert {file.path.stat().st_size for file in files} == {GOOD.stat().st_size}
    listings = len(s3.listings)
    for file in files:
        assert read_checkpoint(file.path).id == read_checkpoint(EXAMPLES / file.path.name).id
    assert len(s3.listings) == listings
    assert len(s3.gets) == 4  # a request each, and nothing else


def test_of_safetensors_the_header_and_the_wanted_tensors_are_fetched(s3: LocalS3):
    arrays = tensors(0, rows=12)
    s3.put("models", Key="model.safetensors", Body=save(arrays))
    s3.forget()
    content = read_content(as_path("s3://models/model.safetensors"))
    assert s3.sent_bytes < 100_000  # of 12 MiB
    assert np.array_equal(content.tree["state_dict"]["f.weight"].array(), arrays["f.weight"])
    assert s3.sent_bytes < 6_000_000
    before = s3.sent_bytes
    content.tree["state_dict"]["f.weight"].array()
    assert s3.sent_bytes == before


def test_an_unchanged_file_comes_from_the_cache_and_a_changed_one_anew(s3: LocalS3):
    s3.put("models", Key="model.pt", Body=GOOD.read_bytes())
    first = read_checkpoint("s3://models/model.pt").id
    s3.forget()
    assert read_checkpoint("s3://models/model.pt").id == first
    assert not s3.gets
    s3.put("models", Key="model.pt", Body=BAD.read_bytes())  # of the same size
    assert read_checkpoint("s3://models/model.pt").id == read_checkpoint(BAD).id != first


def test_a_file_that_changes_after_the_listing_is_read_as_it_is_now(s3: LocalS3):
    s3.put("models", Key="run/model.pt", Body=GOOD.read_bytes())
    (file,) = discover(["s3://models/run"]).files
    s3.put("models", Key="run/model.pt", Body=BAD.read_bytes())
    assert read_checkpoint(file.path).id == read_checkpoint(BAD).id


def test_a_file_that_changes_while_it_is_read_is_no_mixture(s3: LocalS3):
    s3.put("models", Key="model.safetensors", Body=save(tensors(0)))
    content = read_content(as_path("s3://models/model.safetensors"))
    s3.put("models", Key="model.safetensors", Body=save(tensors(1)))
    with pytest.raises(WeightsearchError, match="changed while it was read; run the same command again"):
        content.tree["state_dict"]["c.weight"].array()


def test_throttled_requests_are_tried_again(s3: LocalS3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores._filesystem("s3://models"), "retries", 2)  # which s3fs waits for, too
    s3.put("models", Key="model.pt", Body=GOOD.read_bytes())
    s3.throttled = 6
    assert read_checkpoint("s3://models/model.pt").id == read_checkpoint(GOOD).id
    assert len(s3.gets) == 7
    s3.put("models", Key="model.pt", Body=BAD.read_bytes())
    s3.put("models", Key="run/model.pt", Body=GOOD.read_bytes())
    s3.throttled = 2
    assert [file.path.name for file in discover(["s3://models/run"]).files] == ["model.pt"]
    s3.throttled = 10**6
    assert "the store asks for fewer requests; run the same command again later" in error_of("s3://models/model.pt")


def test_cut_connections_are_made_again(s3: LocalS3):
    s3.put("models", Key="model.pt", Body=GOOD.read_bytes())
    s3.cut = 2
    assert read_checkpoint("s3://models/model.pt").id == read_checkpoint(GOOD).id
    s3.put("models", Key="model.pt", Body=BAD.read_bytes())
    s3.cut = 10**6
    assert "cannot be reached" in error_of("s3://models/model.pt")


def test_errors_name_the_thing_and_the_fix(s3: LocalS3):
    s3.put("models", Key="private/model.pt", Body=GOOD.read_bytes())
    s3.forbidden = lambda request: "private" in request.path
    assert error_of("s3://models/gone.pt") == "s3://models/gone.pt: there is no such file"
    assert error_of("s3://nowhere/model.pt") == (
        "s3://nowhere/model.pt: there is no bucket nowhere; check its name, and the store's endpoint"
    )
    assert error_of("s3://models/private/model.pt").startswith(
        "s3://models/private/model.pt: no permission to read it; set AWS_PROFILE"
    )
    with pytest.raises(WeightsearchError, match="there is no bucket nowhere"):
        discover(["s3://nowhere/sweep"])


def test_a_file_that_goes_after_the_listing_is_named(s3: LocalS3):
    s3.put("models", Key="run/model.pt", Body=GOOD.read_bytes())
    (file,) = discover(["s3://models/run"]).files
    s3.client.delete_object(Bucket="models", Key="run/model.pt")
    with pytest.raises(WeightsearchError, match=r"run/model\.pt: it is gone since its folder was listed"):
        read_checkpoint(file.path)


def test_a_file_over_the_limit_is_not_fetched(s3: LocalS3, monkeypatch: pytest.MonkeyPatch):
    s3.put("models", Key="model.pt", Body=GOOD.read_bytes())
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 20_000)
    assert "over the limit" in error_of("s3://models/model.pt")
    assert not s3.gets


def test_shards_of_urls_make_the_same_index_as_add_and_read_what_changed(s3: LocalS3, tmp_path: Path):
    for number in range(3):
        s3.put("models", Key=f"sweep/run-{number}/model.safetensors", Body=save(tensors(number)))
    parts, collected, added = tmp_path / "parts", tmp_path / "collected", tmp_path / "added"

    def share() -> int:
        return sum(embed(["s3://models/sweep"], parts, shard=f"{i}/2", quiet=True).read for i in range(2))

    def contents(index: Path) -> dict[str, str]:
        rows = read_known(index)
        return dict(zip(rows["source"], rows["content"], strict=True))

    assert share() == 3
    assert share() == 0
    collect(parts, collected, quiet=True)
    assert add(["s3://models/sweep"], added, quiet=True).signed == 3
    assert contents(collected) == contents(added)
    before = contents(added)
    assert list(before) == [f"s3://models/sweep/run-{number}/model.safetensors" for number in range(3)]
    s3.put("models", Key="sweep/run-1/model.safetensors", Body=save(tensors(7)))
    assert share() == 1
    collect(parts, collected, quiet=True)
    again = add(["s3://models/sweep"], added, quiet=True)
    assert (again.signed, again.signed_already) == (1, 2)
    assert contents(collected) == contents(added) != before


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_inventory_takes_the_place_of_the_listing(s3: LocalS3, suffix: str, tmp_path: Path):
    import duckdb

    for name in ("good.pt", "bad.pt"):
        s3.put("models", Key=f"sweep/{name}", Body=(EXAMPLES / name).read_bytes())
    listed = s3.client.list_objects_v2(Bucket="models")["Contents"]
    rows = ", ".join(f"('s3://models/{item['Key']}', {item['Size']}, '{item['ETag']}')" for item in listed)
    table = tmp_path / f"inventory.{suffix}"
    duckdb.connect().execute(f"COPY (SELECT * FROM (VALUES {rows}) AS t(path, size, etag)) TO '{table}'")
    s3.forbidden = lambda request: request.is_listing
    s3.forget()
    files = discover(["s3://models/sweep"], table).files
    assert [file.path.name for file in files] == ["bad.pt", "good.pt"]
    assert [read_checkpoint(file.path).id for file in files] == [read_checkpoint(path).id for path in (BAD, GOOD)]
    assert len(s3.requests) == 2
