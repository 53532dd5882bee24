"""The cache holds no more than it may, keeps what is used, and is nobody else's business."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import fsspec
import pytest

from weightsearch.checkpoints.remote import cache
from weightsearch.checkpoints.remote.paths import as_path
from weightsearch.checkpoints.remote.reading import localize
from weightsearch.errors import UsageError, WeightsearchError


@pytest.fixture
def files() -> list[str]:
    """Twelve of 300 kB in a store."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for number in range(12):
        memory.pipe(f"/store/{number}.bin", bytes([number]) * 300_000)
    return [f"memory://store/{number}.bin" for number in range(12)]


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_it_stays_within_its_limit_and_what_was_used_last_stays(
    files: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "1M")
    inode = localize(as_path(files[0])).stat().st_ino
    for number, url in enumerate(files):
        place = localize(as_path(url))
        assert place.read_bytes() == bytes([number]) * 300_000
        assert held(own_cache) <= 1_000_000
        # This one is used again and again, and stays.
        assert localize(as_path(files[0])).stat().st_ino == inode
    assert held(own_cache) > 500_000


def test_a_file_larger_than_the_cache_is_refused(files: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "200K")
    with pytest.raises(WeightsearchError, match="more than the cache may hold") as caught:
        localize(as_path(files[0]))
    assert cache.LIMIT_VARIABLE in str(caught.value)
    assert held(own_cache) == 0


def test_only_its_owner_may_enter(files: list[str], own_cache: Path):
    place = localize(as_path(files[0]))
    for path in (place, place.parent, own_cache):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    own_cache.chmod(0o777)
    with pytest.raises(WeightsearchError, match="others can write into it"):
        localize(as_path(files[1]))


@pytest.mark.parametrize(
    ("given", "bytes_"), [("50G", 50 * 10**9), ("1.5m", 1_500_000), ("700", 700), ("2 TB", 2 * 10**12)]
)
def test_its_limit_is_an_environment_variable(given: str, bytes_: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, given)
    assert cache.limit() == bytes_


def test_another_limit_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "much")
    with pytest.raises(UsageError, match="give a number of bytes"):
        cache.limit()


def test_what_lies_there_from_a_broken_fetch_is_not_taken(files: list[str]):
    place = localize(as_path(files[3]))
    os.truncate(place, 1000)
    assert localize(as_path(files[3])).read_bytes() == bytes([3]) * 300_000
