"""Hashes against torch's own rounding, sketches against the cosines that they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from weightsearch.relations import signature
from weightsearch.relations.hashes import CHUNK, to_bfloat16, to_float16, value_hashes
from weightsearch.relations.kernels import ChunkAdder, add_tensors
from weightsearch.relations.roles import Role
from weightsearch.relations.signature import sign, summed_compiled, summed_in_numpy


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    """Of all sizes that float16 treats differently: normal, subnormal, ties, too large."""
    normal = rng.standard_normal(50_000).astype(np.float32)
    tiny = (rng.standard_normal(20_000) * 1e-6).astype(np.float32)
    ties = (np.arange(2_000, dtype=np.float32) + 0.5) * np.float32(2.0**-24)
    return np.concatenate([normal, tiny, ties, np.float32([0, -0.0, 65504, 65519, 65520, 70000, -1e9, 1e-9, 2**-14])])


def test_rounding_is_torchs(values: np.ndarray):
    half = torch.from_numpy(values).half().float().numpy()
    brain = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(to_float16(values), half)
    np.testing.assert_array_equal(to_bfloat16(values), brain)


def test_a_copy_in_half_precision_has_the_hash_that_its_origin_foretells(values: np.ndarray):
    values = values[np.abs(values) < 60_000]
    hashes = value_hashes(values)
    assert hashes.float16 == value_hashes(values.astype(np.float16)).exact
    assert hashes.bfloat16 == value_hashes(torch.from_numpy(values).bfloat16().float().numpy()).exact
    assert len({hashes.exact, hashes.float16, hashes.bfloat16, hashes.unordered}) == 4


@pytest.mark.slow
def test_small_tensors_signed_together_are_signed_as_each_alone(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    tensors = {
        "a.weight": rng.standard_normal((16, 9), np.float32),
        "a.bias": rng.standard_normal(16),
        "constant": np.ones((3, 3), np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "strange": np.array([[1, np.nan], [3, -np.inf]], np.float32),
        "counter": np.int64(4),
        "half": rng.standard_normal((200, 300)).astype(np.float16),
        "long": rng.standard_normal(CHUNK + 7).astype(np.float32),
        "vast": np.array([1e30, -1e38, 0], np.float32),
    }
    signatures = []
    for seen in (-(10**12), 10**12):  # numbers signed before: below and above those that compiled code pays from
        monkeypatch.setattr(signature, "_seen", seen)
        signatures.append(sign(tensors))
    alone, together = signatures
    for one, other in zip(alone.tensors, together.tensors, strict=True):
        close = {"norm": 0.0, "mean": 0.0, "kurtosis": 0.0}
        assert replace(one, **close) == replace(other, **close)
        assert one.not_finite == other.not_finite
        sums = [(tensor.norm, tensor.mean, tensor.kurtosis) for tensor in (one, other)]
        np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(alone.sketch, together.sketch, atol=1e-5)


@pytest.mark.parametrize("strange", [False, True])
@pytest.mark.parametrize("size", [1, 17, CHUNK, 2 * CHUNK + 31])
def test_compiled_code_says_what_numpy_says(size: int, strange: bool, values: np.ndarray, rng: np.random.Generator):
    """Hashes to the bit; sums within the rounding of their order. What lies beside a chunk does not count."""
    around = np.full(size + 32, np.float32(7))
    block = around[16 : 16 + size]
    block[:] = rng.permutation(np.resize(values, size))
    if strange:
        block[: min(size, 6)] = (np.nan, np.inf, -np.inf, -np.nan, 3e38, -0.0)[: min(size, 6)]
    signs = np.where(rng.random(min(2 * CHUNK, size)) < 0.5, -1, 1).astype(np.int8)
    (hashes, expected), (compiled_hashes, sums) = (
        summed(block, signs) for summed in (summed_in_numpy, summed_compiled)
    )
    assert compiled_hashes == hashes
    assert (sums.zeros, sums.largest, sums.differ) == (expected.zeros, expected.largest, expected.differ)
    assert sums.not_finite == expected.not_finite == (0 if not strange else min(size, 4))
    np.testing.assert_allclose(sums.powers, expected.powers, rtol=1e-6)
    np.testing.assert_array_equal(sums.ones, expected.ones)
    magnitude = np.abs(np.where(np.isfinite(block), block, 0)).max(initial=1e-30)
    np.testing.assert_allclose(sums.sketch, expected.sketch, atol=1e-4 * magnitude)


def test_compiled_code_reads_nothing_outside_of_its_arrays():
    values, signs, start = np.zeros(64, np.float32), np.ones(64, np.int8), np.array([48])
    with pytest.raises(ValueError, match="outside"):
        add_tensors(values, signs, start, np.array([17]))
    with pytest.raises(ValueError, match="too few signs"):
        ChunkAdder(signs).add(values, 1)


@pytest.mark.parametrize("size", [2, 1_000, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
def test_order_counts_for_one_hash_and_not_for_the_other(size: int, rng: np.random.Generator):
    values = rng.standard_normal(size).astype(np.float32)
    swapped = values.copy()
    swapped[[0, -1]] = swapped[[-1, 0]]
    one, other = value_hashes(values), value_hashes(swapped)
    assert one.exact != other.exact
    assert one.unordered == other.unordered
    changed = values.copy()
    changed[size // 2] = np.nextafter(changed[size // 2], np.float32(9))
    assert value_hashes(changed).exact != one.exact
    assert value_hashes(changed).unordered != one.unordered


def test_equal_values_that_change_places_change_the_hash():
    """Weights from quantised and pruned networks repeat a few values: a sum with linear weights would collide."""
    values = np.zeros(64, np.float32)
    values[[3, 10]] = 1
    moved = np.zeros(64, np.float32)
    moved[[4, 9]] = 1
    assert value_hashes(values).exact != value_hashes(moved).exact


def test_statistics_are_numpys(rng: np.random.Generator):
    weight = rng.standard_normal((300, 400)).astype(np.float32) + np.float32(0.3)
    weight[:7] = 0
    tensor = sign({"w": weight}).tensors[0]
    wide = weight.astype(np.float64)
    assert tensor.norm == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    assert tensor.mean == pytest.approx(wide.mean(), rel=1e-5)
    assert tensor.kurtosis == pytest.approx(((wide - wide.mean()) ** 4).mean() / wide.var() ** 2, rel=1e-4)
    assert tensor.zeros == 7 * 400
    assert tensor.largest == np.abs(weight).max()


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9, 0.99])
def test_sketches_keep_cosines(cosine: float, rng: np.random.Generator):
    """Within four standard errors of a sketch of 512 numbers."""
    a = {f"{k}": rng.standard_normal((200, 400)).astype(np.float32) for k in range(3)}
    b = {
        name: (cosine * w + np.sqrt(1 - cosine**2) * rng.standard_normal(w.shape)).astype(np.float32)
        for name, w in a.items()
    }
    assert float(sign(a).sketch @ sign(b).sketch) == pytest.approx(cosine, abs=4 / np.sqrt(512))


def test_raw_sketches_are_linear(rng: np.random.Generator):
    a, b = ({"w": rng.standard_normal((100, 700)).astype(np.float32)} for _ in range(2))
    merged = {"w": (0.3 * a["w"] + 0.7 * b["w"]).astype(np.float32)}
    expected = 0.3 * sign(a).raw_sketch + 0.7 * sign(b).raw_sketch
    np.testing.assert_allclose(sign(merged).raw_sketch, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "value", "role"),
    [
        ("layer.weight", np.eye(3, dtype=np.float32), Role.WEIGHT),
        ("layer.bias", np.arange(3, dtype=np.float32), Role.VECTOR),
        ("norm.weight", np.ones(3, np.float32), Role.CONSTANT),
        ("norm.running_var", np.arange(3, dtype=np.float32), Role.STATISTIC),
        ("norm.num_batches_tracked", np.int64(7), Role.COUNTER),
        ("position_ids", np.arange(4).reshape(2, 2), Role.INTEGER),
        ("layer.qweight", np.arange(6, dtype=np.int8).reshape(2, 3), Role.WEIGHT),
        ("conv.weight", np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1), Role.VECTOR),
    ],
)
def test_roles(name: str, value: np.ndarray, role: Role):
    assert sign({name: value}).tensors[0].role is role


def test_values_that_are_not_finite_are_hashed_and_do_not_spoil_the_sketch():
    weight = np.ones((8, 8), np.float32)
    weight[0, 0], weight[1, 1] = np.nan, np.inf
    signature = sign({"w": weight})
    assert np.isfinite(signature.sketch).all()
    assert sign({"w": weight.copy()}).content == signature.content
