"""A large file is read once, and what is said of its bytes and of its tensors is what reading it twice would say."""

from __future__ import annotations

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from weightsearch.relations import hashed_file, open_files
from weightsearch.relations.hashed_file import HashedFile, lie_in
from weightsearch.relations.open_files import open_file

PIECE = 1_000  # bytes that are hashed together here
CONTENT = np.random.default_rng(0).bytes(3 * PIECE + 7)


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, length: int | None = -1, /) -> bytes:
        content = super().read(length)
        self.count += len(content)
        return content


places = st.integers(0, len(CONTENT) + 5)


@given(st.lists(st.tuples(places, st.integers(0, 2 * PIECE)), max_size=6))
def test_whatever_is_read_in_whatever_order_the_whole_is_hashed(readings: list[tuple[int, int]]):
    with mock.patch.object(hashed_file, "TOGETHER", PIECE), ThreadPoolExecutor(1) as beside:
        hashed = HashedFile(io.BytesIO(CONTENT), beside)
        for start, length in readings:
            hashed.seek(start)
            assert hashed.read(length) == CONTENT[start : start + length]
        assert hashed.digest() == hashlib.sha256(CONTENT).hexdigest()


def test_what_is_read_in_order_is_read_once():
    file = Counting(CONTENT)
    with mock.patch.object(hashed_file, "TOGETHER", PIECE), ThreadPoolExecutor(1) as beside:
        hashed = HashedFile(file, beside)
        for start in range(100, 2 * PIECE, 300):  # a header before, and something behind
            hashed.seek(start)
            hashed.read(300)
        hashed.digest()
    assert file.count == len(CONTENT)


@pytest.mark.parametrize(
    "name", ["in-order.safetensors", "reversed.safetensors", "model.pt", "legacy.pt", "arrays.npz"]
)
def test_signed_and_hashed_at_once_or_one_after_the_other(name: str, tmp_path: Path, monkeypatch, rng):
    path = tmp_path / name
    weights = {f"layer{k}.weight": rng.standard_normal((700, 1024), np.float32) for k in range(3)}
    match path.suffix:
        case ".safetensors":
            save_file(weights, path)
            if name == "reversed.safetensors":  # the header names first what lies last
                content = path.read_bytes()
                end = 8 + int.from_bytes(content[:8], "little")
                header = json.dumps(dict(reversed(json.loads(content[8:end]).items()))).encode()
                path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
        case ".npz":
            np.savez(path, **weights)
        case _:
            state = {key: torch.from_numpy(value) for key, value in weights.items()}
            torch.save(state, path, _use_new_zipfile_serialization=name != "legacy.pt")
    one_after_the_other = open_file(path).sign()
    monkeypatch.setattr(open_files, "HASHED_BESIDE", 0)
    assert lie_in(path, open_file(path).tensors.unread.values()) == (path.suffix != ".npz")
    at_once = open_file(path).sign()
    assert at_once.file_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    hashes, expected = ([(one.name, one.hashes) for one in told.tensors] for told in (at_once, one_after_the_other))
    assert hashes == expected
    np.testing.assert_allclose(at_once.sketch, one_after_the_other.sketch, atol=1e-6)
