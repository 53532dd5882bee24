"""The rules against derivations whose truth is exact; what preserves the function is checked by running it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from weightsearch.relations import Comparison, Direction, Kind, State, compare

SLOW = pytest.mark.slow
FAMILIES = ("mlp", pytest.param("residual", marks=SLOW), "lstm", pytest.param("transformer", marks=SLOW))
Networks = dict[str, tuple[Any, dict[str, dict[str, np.ndarray]]]]


def both(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> Comparison:
    """The comparison, after checking that the other way round says the same with the direction turned."""
    there, back = compare(a, b), compare(b, a)
    assert there.relation is back.relation
    assert (there.direction and there.direction.turned()) == back.direction
    turned = {"a": "b", "b": "a", None: None}
    assert turned[there.evidence.get("trained_further")] == back.evidence.get("trained_further")
    return there


def half(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float16) for name, value in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_copies(family: str, networks: Networks, derive: ModuleType):
    base = networks[family][1]["base"]
    for copy in (dict(base), derive.renamed(base), derive.transposed(base), derive.renamed(derive.transposed(base))):
        answer = both(base, copy)
        assert answer.relation is Kind.SAME_WEIGHTS
        assert answer.direction is None
    rounded = both(base, derive.renamed(derive.transposed(half(base))))
    assert (rounded.relation, rounded.direction) == (Kind.SAME_WEIGHTS, Direction.A_TO_B)
    brain = {name: derive.bfloat16(value) for name, value in base.items()}
    assert both(half(base), brain).relation is Kind.SAME_WEIGHTS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rescale", [False, True])
def test_the_same_function(
    family: str,
    rescale: bool,
    networks: Networks,
    derive: ModuleType,
    small_networks: ModuleType,
    rng: np.random.Generator,
):
    recipe, states = networks[family]
    groups = derive.hidden_units(recipe)
    if rescale and not any(group.scalable for group in groups):
        pytest.skip("nothing in it can be rescaled")
    base = states["base"]
    twin = derive.permuted(base, groups, rng, rescale=rescale)
    images = small_networks.digits()[0][:64]
    np.testing.assert_allclose(  # the oracle: it does compute the same
        small_networks.outputs(recipe, twin, images), small_networks.outputs(recipe, base, images), rtol=1e-3, atol=1e-3
    )
    for copy in (twin, derive.renamed(twin)):
        assert both(base, copy).relation is Kind.SAME_FUNCTION


def test_gates_in_another_order(networks: Networks, derive: ModuleType):
    base = networks["lstm"][1]["base"]
    answer = both(base, derive.with_gates_reordered(base))
    assert answer.relation is Kind.SAME_FUNCTION
    assert "gates" in answer.summary


def test_shuffled_values_are_not_the_same_function(networks: Networks, rng: np.random.Generator):
    base = networks["mlp"][1]["base"]
    shuffled = {
        name: rng.permutation(value.ravel()).reshape(value.shape) if value.ndim > 1 else value
        for name, value in base.items()
    }
    assert compare(base, shuffled).relation in (Kind.INDEPENDENT, Kind.UNRELATED)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scheme", ["tensor", "row", "asymmetric"])
def test_quantised(family: str, bits: int, scheme: str, networks: Networks, derive: ModuleType):
    base = networks[family][1]["base"]
    answer = both(base, derive.quantised(base, bits, scheme))
    assert (answer.relation, answer.direction) == (Kind.QUANTISED, Direction.A_TO_B)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("scheme", "share"), [("magnitude", 0.2), ("magnitude", 0.8), ("global", 0.5), ("rows", 0.3)])
def test_pruned(family: str, scheme: str, share: float, networks: Networks, derive: ModuleType):
    base = networks[family][1]["base"]
    answer = both(base, derive.pruned(base, share, scheme))
    assert (answer.relation, answer.direction) == (Kind.PRUNED, Direction.A_TO_B)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_low_rank_and_training(family: str, networks: Networks, derive: ModuleType, rng: np.random.Generator):
    states = networks[family][1]
    base = states["base"]
    assert both(base, derive.noised(base, 0.03, rng)).relation is Kind.NOISED
    assert both(base, derive.lora_merged(base, 1, 0.1, rng)).relation is Kind.LORA_MERGED
    tuned = both(base, states["tuned"])
    assert tuned.relation is Kind.RELATIVE
    assert tuned.direction is None
    assert tuned.evidence.get("trained_further") in (None, "b")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_apart(family: str, networks: Networks, derive: ModuleType):
    states = networks[family][1]
    for other in (states["apart"], derive.quantised(states["apart"], 8, "row"), half(states["apart"])):
        answer = both(states["base"], other)
        assert answer.relation is Kind.INDEPENDENT
        assert answer.unseen  # what it could not have seen is said


def test_other_architectures(networks: Networks):
    assert both(networks["mlp"][1]["base"], networks["lstm"][1]["base"]).relation is Kind.UNRELATED


@pytest.mark.parametrize("family", FAMILIES)
def test_permuted_fine_tune(family: str, networks: Networks, derive: ModuleType, rng: np.random.Generator):
    recipe, states = networks[family]
    other = derive.permuted(states["tuned"], derive.hidden_units(recipe), rng)
    assert both(states["base"], other).relation is Kind.PERMUTED_RELATIVE


def test_new_heads(networks: Networks, rng: np.random.Generator):
    states = networks["mlp"][1]
    head = {"head.weight": rng.normal(size=(3, 32)).astype(np.float32), "head.bias": np.float32([1, 2, 3])}
    frozen = both(states["base"], {**states["base"], **head})
    assert frozen.relation is Kind.NEW_HEAD
    tuned = both(states["base"], {**states["tuned"], **head})
    assert tuned.relation is Kind.NEW_HEAD
    assert Kind.RELATIVE in tuned.also
    assert {layer.state for layer in tuned.layers} >= {State.ONLY_A, State.ONLY_B, State.MOVED}


@pytest.mark.slow
def test_parts(networks: Networks):
    """A file that holds another, one that shares a weight with it, and one that shares a filter bank alone."""
    one, other = networks["residual"][1]["base"], networks["residual"][1]["apart"]
    both_of_them = {f"a.{n}": v for n, v in one.items()} | {f"b.{n}": v for n, v in other.items()}
    answer = both(one, both_of_them)
    assert (answer.relation, answer.evidence["container"]) == (Kind.CONTAINS, "b")
    shared = both(one, {**other, "first.0.weight": one["first.0.weight"]})
    assert shared.relation is Kind.SHARES
    assert "first.0.weight" in shared.summary
    waves = np.arange(64)[None] * np.arange(1, 17)[:, None] * 2 * np.pi / 64
    bank = np.concatenate([np.cos(waves), np.sin(waves)]).astype(np.float32) * np.hanning(64).astype(np.float32)
    fixed = both({"basis": bank, **one}, {"basis": bank, **other})
    assert fixed.relation is Kind.SHARES
    assert "filter bank" in fixed.summary


def test_batch_norms_count_steps(rng: np.random.Generator):
    def state(weight: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        return {"conv.weight": weight, "next.weight": weight[::-1].copy(), "bn.num_batches_tracked": np.int64(steps)}

    weight = rng.standard_normal((32, 32)).astype(np.float32)
    later = (weight + 0.05 * np.outer(rng.standard_normal(32), weight[0]) + 0.1 * weight[:, ::-1]).astype(np.float32)
    answer = both(state(weight, 100), state(later, 300))
    assert answer.relation.is_related
    assert answer.direction is None  # two children of one network would look the same
    assert answer.evidence["trained_further"] == "b"


def test_only_vectors_moved(networks: Networks):
    base = networks["mlp"][1]["base"]
    answer = both(base, {**base, "head.bias": base["head.bias"] + 1})
    assert answer.relation is Kind.RELATIVE
    assert "head.bias" in answer.summary


@pytest.mark.slow
def test_split_attention(networks: Networks, derive: ModuleType):
    base = networks["transformer"][1]["base"]
    split = {}
    for name, value in base.items():
        parts = np.split(value, 3) if ".qkv." in name else [value]
        split |= {f"{name}.{k}" if len(parts) > 1 else name: part for k, part in enumerate(parts)}
    assert both(base, split).relation is Kind.SAME_WEIGHTS


def test_json_has_what_is_promised(networks: Networks):
    states = networks["mlp"][1]
    found = compare(states["base"], states["tuned"]).to_dict()
    assert found["relation"] in list(Kind)
    assert found["direction"] in ("a-to-b", "b-to-a", None)
    assert len(found["layers"]) == len(states["base"])
    assert {"relation", "also", "direction", "certainty", "evidence", "layers"} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float16, "bfloat16"])
def test_half_precision_is_no_grid_and_no_low_rank(kind: object, networks: Networks, derive: ModuleType):
    """A relative stored in half precision is a relative, beside one in full or in half precision."""

    def stored(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return half(tensors) if kind is np.float16 else {n: derive.bfloat16(v) for n, v in tensors.items()}

    states = networks["mlp"][1]
    for base in (states["base"], stored(states["base"])):
        assert both(base, stored(states["tuned"])).relation is Kind.RELATIVE
        copy = derive.quantised(states["base"], 4, "row")
        assert both(base, stored(copy)).relation is Kind.QUANTISED
        assert both(base, derive.quantised(states["tuned"], 8, "row")).relation is Kind.RELATIVE


def test_a_change_that_rounding_would_hide_is_one(rng: np.random.Generator):
    base = {name: rng.normal(size=(8, 16)).astype(np.float32) for name in ("a.weight", "b.weight")}
    brain = {name: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, value in base.items()}
    nudged = {name: np.nextafter(value, np.float32(9)) for name, value in brain.items()}
    later = {name: np.nextafter(value, np.float32(9)) for name, value in nudged.items()}
    answer = both(nudged, later)  # which are equal as bfloat16 and as float16
    assert answer.relation is not Kind.SAME_WEIGHTS
    assert {layer.state for layer in answer.layers} == {State.MOVED}
