"""LRU against a list that does the same slowly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.kv.evict.lru import LRU
from vllm.kv.lineage import Key

KEYS = [Key(bytes([i]) * 32) for i in range(5)]


class Naive:
    """Oldest first."""

    def __init__(self):
        self.keys = []

    def insert(self, key):
        self.keys.append(key)

    def touch(self, key):
        self.keys.remove(key)
        self.keys.append(key)

    def remove(self, key):
        self.keys.remove(key)


@given(st.lists(st.tuples(st.sampled_from(["insert", "touch", "remove"]), st.sampled_from(KEYS))))
@settings(max_examples=200, deadline=None)
def test_equals_the_naive_twin(operations):
    lru, naive = LRU(), Naive()
    for name, key in operations:
        if (name == "insert") == (key in naive.keys):
            continue  # callers insert what is outside, and touch or remove what is inside
        getattr(lru, name)(key)
        getattr(naive, name)(key)
        assert list(lru.victims()) == naive.keys
        assert len(lru) == len(naive.keys)
        assert [k in lru for k in KEYS] == [k in naive.keys for k in KEYS]


@pytest.mark.parametrize("name", ["touch", "remove"])
def test_a_key_that_is_not_inside_is_an_error(name):
    lru = LRU()
    lru.insert(KEYS[0])
    with pytest.raises(KeyError):
        getattr(lru, name)(KEYS[1])
    assert list(lru.victims()) == [KEYS[0]]
