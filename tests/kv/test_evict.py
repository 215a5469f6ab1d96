"""What holds for every eviction policy: what it offers, and in which order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kv.evicting import Cache, key, name
from vllm.config.args.cache import EVICTION_POLICIES
from vllm.core.retention import DEFAULT_PRIORITY
from vllm.kv.evict import POLICIES, WITH_SETTINGS, make, parse
from vllm.kv.evict.banded import Banded
from vllm.kv.evict.leaf_first import LeafFirst
from vllm.kv.evict.lru import LRU
from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key

NAMES = [*POLICIES, "allow:0", "quota:0=2,1=1", "ttl:0=5,*=3"]


def test_the_flag_offers_what_there_is() -> None:
    assert set(EVICTION_POLICIES) == {*POLICIES, *WITH_SETTINGS}
    assert len(set(EVICTION_POLICIES)) == len(EVICTION_POLICIES)


# What leaves a cache of 4 blocks under these accesses, worked out by hand from each paper.
ACCESSES = "a b c d a a b e f a b g e h a".split()
GOLDEN = {
    "lru": "c d e f a b",
    "fifo": "a b c d e f a b",
    "lfu": "c d e f g",
    "clock": "c d e f a b",
    "sieve": "c d e f g",
}


@pytest.mark.parametrize("policy", GOLDEN)
def test_golden_sequences(policy: str) -> None:
    cache = Cache(POLICIES[policy](), 4)
    for wanted in ACCESSES:
        cache.access(wanted)
    assert cache.gone == GOLDEN[policy].split()


OPERATIONS = st.lists(
    st.tuples(st.sampled_from("insert use touch remove evict drop".split()), st.integers(0, 7)),
    max_size=60,
)


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("wrapped", [False, True])
@given(operations=OPERATIONS)
@settings(max_examples=60)
def test_a_policy_offers_exactly_what_may_go(
    policy: str, wrapped: bool, operations: list[tuple[str, int]]
) -> None:
    """Whatever happens: all evictable keys once, no others, and asking changes nothing."""
    it = make(policy) if wrapped else parse(policy)()
    inside: set[Key] = set()
    in_use: set[Key] = set()
    for now, (operation, number) in enumerate(operations):
        told = key(number)
        use = Use(float(now), key(number - 1) if number % 4 else None, number % 4, str(number % 2))
        if operation in ("insert", "use") and told not in inside:
            it.insert(told, use)
            inside.add(told)
            in_use.discard(told)
        elif operation == "touch":
            if told in inside:
                it.touch(told, use)
            else:
                with pytest.raises(KeyError):
                    it.touch(told, use)
        elif operation == "remove":
            if told in inside:
                it.remove(told)
                inside.remove(told)
                in_use.add(told)
            else:
                with pytest.raises(KeyError):
                    it.remove(told)
        elif operation == "evict" and inside:
            first = next(it.victims(float(now)))
            it.evict(first)
            inside.remove(first)
        elif operation == "drop":  # not the policy's own choice: a damaged file, a reset
            it.evict(told)
            inside.discard(told)
            in_use.discard(told)
        offered = list(it.victims(float(now)))
        assert offered == list(it.victims(float(now))), "asking changes nothing"
        assert len(offered) == len(set(offered))
        assert set(offered) == inside
        assert len(it) == len(inside)
        assert all((key(n) in it) == (key(n) in inside) for n in range(8))
        it.check()


@pytest.mark.parametrize("policy", NAMES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_a_chains_end_goes_before_its_beginning(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    it = make(policy)
    parents = {n: rng.choice([None, *range(n)]) for n in range(12)}
    order = list(parents)
    rng.shuffle(order)
    for now, n in enumerate(order):
        parent = parents[n]
        it.insert(key(n), Use(float(now), None if parent is None else key(parent), n))
        if rng.random() < 0.4:
            it.touch(key(n), Use(float(now)))
    left = set(parents)
    for victim in it.victims(99.0):
        n = int(name(victim))
        left.remove(n)
        assert all(parents[child] != n for child in left), "a child is left behind"


def test_leaf_first_changes_nothing_where_the_order_is_closed() -> None:
    bare, wrapped = LRU(), LeafFirst(Banded(LRU))
    for policy in (bare, wrapped):
        for chain in "ab":
            for depth in reversed(range(4)):
                parent = key(f"{chain}{depth - 1}") if depth else None
                policy.insert(key(f"{chain}{depth}"), Use(0.0, parent, depth))
    assert list(bare.victims()) == list(wrapped.victims())


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.sampled_from([0, 35, 80]), st.sampled_from([5.0, math.inf])
        ),
        max_size=30,
    )
)
@settings(max_examples=200)
def test_priorities_against_sorting(uses: list[tuple[int, int, float]]) -> None:
    """A slow twin: by the priority that holds now, then by age."""
    it = Banded(LRU)
    twin: dict[Key, tuple[float, int, float]] = {}  # last use, priority, expiry
    for now, (number, priority, ttl) in enumerate(uses, 1):
        told = key(number)
        if told in it:
            it.remove(told)
        it.insert(told, Use(float(now), priority=priority, expires=now + ttl))
        twin[told] = float(now), priority, now + ttl
        at = now + 1.0

        def band(k: Key, at: float = at) -> int:
            _, own, expires = twin[k]
            return own if expires > at else DEFAULT_PRIORITY

        offered = list(it.victims(at))
        assert [band(k) for k in offered] == sorted(band(k) for k in twin)
        for priority_now in (0, 80):
            mine = [k for k in offered if band(k) == priority_now]
            assert mine == sorted(mine, key=lambda k: twin[k][0])
        it.check()


def test_unknown_uses_are_fine_everywhere() -> None:
    for policy in NAMES:
        it = make(policy)
        it.insert(key(1))
        it.insert(key(2), UNKNOWN)
        assert set(it.victims()) == {key(1), key(2)}
