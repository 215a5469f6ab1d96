"""Keys: equal exactly where contents and tenants are, and refused where they would be wrong."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.kv.lineage import Lineage, LossyLineageError, chain, root
from vllm.kv.spec import KVSpec, fingerprint

SPEC = KVSpec(num_layers=4, num_kv_heads=2, head_dim=8, block_size=16, dtype="float32")
PRINT = bytes(range(32))


def test_golden_keys():
    """Keys name content on disks and in shared stores, so they may not change unnoticed."""
    start = root(PRINT, "tenant")
    assert start.hex() == "1cbbd7827caf1c7e03fed9df6d987666a11444d984d4509dd4768838378ece9f"
    assert chain(start, [1, 2, 3, 70000]).hex() == (
        "f16db5d09d6682ba92ca3222c0aa27dfc4f78136156be66544a4e7b5ee9b4202"
    )
    assert fingerprint(SPEC, b"weights", adapter="a", rank=1, world_size=2).hex() == (
        "c0234c5cd6a0db9e9af22947db0ba92232ebc0decbd7fa23ce2bdab38df6a564"
    )


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(KVSpec)])
def test_fingerprint_differs_on_every_field_of_the_spec(field):
    value = getattr(SPEC, field)
    other = "bfloat16" if field == "dtype" else value + 1
    changed = dataclasses.replace(SPEC, **{field: other})
    assert fingerprint(changed, b"w") != fingerprint(SPEC, b"w")


def test_fingerprint_differs_on_all_else_that_shapes_kvs():
    made = [
        fingerprint(SPEC, b"w"),
        fingerprint(SPEC, b"v"),
        fingerprint(SPEC, b"w", adapter="a"),
        fingerprint(SPEC, b"w", world_size=2),
        fingerprint(SPEC, b"w", rank=1, world_size=2),
    ]
    assert len(set(made)) == len(made)
    assert made[0] == fingerprint(SPEC, b"w")


def test_swapped_numbers_do_not_cancel_out():
    """heads=2, dim=8 is not heads=8, dim=2, though the bytes of a block are as many."""
    swapped = dataclasses.replace(SPEC, num_kv_heads=8, head_dim=2)
    assert swapped.block_bytes == SPEC.block_bytes
    assert fingerprint(swapped, b"w") != fingerprint(SPEC, b"w")


def test_adjacent_fields_cannot_trade_characters():
    names = [("org_1", "2345"), ("org_12345", ""), ("org_12345", None), ("", "org_12345")]
    roots = {root(fingerprint(SPEC, b"w", adapter=a), s) for a, s in names}
    assert len(roots) == len(names)
    # Not even a fingerprint of another length could be read as a part of the salt.
    size = (1).to_bytes(8, "little")
    assert root(b"f", "s") != root(b"fsalt" + size + b"s", None)


def test_no_salt_is_not_the_empty_salt():
    assert root(PRINT, None) != root(PRINT, "")


def test_any_string_is_a_salt():
    """A lone surrogate, which JSON can hold and UTF-8 cannot, must not stop the engine."""
    assert root(PRINT, "\ud800") != root(PRINT, "\ud801")


@given(st.lists(st.text(), min_size=2, max_size=6, unique=True))
@settings(max_examples=50, deadline=None)
def test_salts_keep_tenants_apart(salts):
    assert len({root(PRINT, salt) for salt in salts}) == len(salts)


def test_a_key_names_all_that_came_before():
    tokens = list(range(8))
    whole = Lineage(root(PRINT), 2)
    whole.extend(tokens, 4)
    for changed in range(8):
        other = Lineage(root(PRINT), 2)
        other.extend([t + 100 * (i == changed) for i, t in enumerate(tokens)], 4)
        same = [a == b for a, b in zip(whole.keys(), other.keys(), strict=True)]
        assert same == [block < changed // 2 for block in range(4)]


def test_keys_do_not_depend_on_how_a_lineage_grew():
    tokens = list(range(12))
    at_once, stepwise = Lineage(root(PRINT), 3), Lineage(root(PRINT), 3)
    at_once.extend(tokens, 4)
    for known in range(13):
        stepwise.extend(tokens[:known], known // 3)
    assert at_once.keys() == stepwise.keys()
    assert len(at_once) == 4
    assert len(set(at_once.keys())) == 4


def test_order_of_equal_blocks_matters():
    keys = set()
    for order in itertools.permutations([(1, 1), (2, 2), (3, 3)]):
        lineage = Lineage(root(PRINT), 2)
        lineage.extend([t for block in order for t in block], 3)
        keys.add(lineage.key(2))
    assert len(keys) == 6


def test_a_fork_shares_the_past_and_not_the_future():
    parent = Lineage(root(PRINT), 2)
    parent.extend([1, 2, 3, 4], 2)
    child = parent.fork(1)
    assert child.keys() == parent.keys()[:1]
    child.extend([1, 2, 9, 9], 2)
    parent.extend([1, 2, 3, 4, 5, 6], 3)
    assert len(child) == 2
    assert child.key(1) != parent.key(1)


def test_a_lossy_lineage_refuses_everything():
    lineage = Lineage(root(PRINT), 2)
    lineage.extend([1, 2, 3, 4], 2)
    lineage.lose()
    assert lineage.lossy
    for use in (
        lambda: lineage.key(0),
        lambda: lineage.keys(),
        lambda: lineage.fork(1),
        lambda: lineage.extend([1, 2, 3, 4, 5, 6], 3),
    ):
        with pytest.raises(LossyLineageError):
            use()
