"""Places that are remote: a local S3, memory, a web server; and a cache for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.remote.local_s3 import KEYS, LocalS3
from weightsearch.checkpoints.remote import cache, listing, stores


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing is known of any folder, and no try is waited for."""
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(cache.LIMIT_VARIABLE, raising=False)
    monkeypatch.setattr(stores, "FIRST_PAUSE_SECONDS", 0.01)
    for known in (listing._entries, listing._folders, listing._listed, cache._unmeasured):
        known.clear()
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def server() -> Iterator[LocalS3]:
    with pytest.MonkeyPatch.context() as environment:
        server = LocalS3()
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.endpoint}.items():
            environment.setenv(name, value)
        yield server
        server.stop()


@pytest.fixture
def s3(server: LocalS3) -> LocalS3:
    """A bucket `models`, empty, behind a good network."""
    server.throttled = server.cut = 0
    server.forbidden = lambda request: False
    server.before_get = lambda number: None
    client = server.client
    if "models" in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        for item in client.list_objects_v2(Bucket="models").get("Contents", ()):
            client.delete_object(Bucket="models", Key=item["Key"])
    else:
        client.create_bucket(Bucket="models")
    server.forget()
    return server
