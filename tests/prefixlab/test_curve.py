"""One pass against a replay at every capacity, and the optimum against trying everything."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prefixlab.made import chains, flat, seeds
from vllm.kv.evict import POLICIES
from vllm.prefixlab.curve import FAR, knots, lru_hits, lru_positions, positions
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.replay import replay
from vllm.prefixlab.trace import dense
from vllm.prefixlab.view import SEMANTICS, view


@pytest.mark.parametrize("semantics", SEMANTICS)
@given(seed=seeds, requests=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_the_curve_is_what_replays_say(semantics: str, seed: int, requests: int) -> None:
    seen = view(chains(seed, requests), semantics)
    hits = lru_hits(seen)
    assert hits.size == seen.trace.universe + 1
    for capacity in range(1, seen.trace.universe + 1, max(1, seen.trace.universe // 12)):
        slow = replay(seen, "lru", capacity, fast=False)
        assert hits[capacity] == slow.hits.sum()
        assert (replay(seen, "lru", capacity).hits == slow.hits).all()


def test_positions_are_distinct_blocks_used_since() -> None:
    """The definition, step by step, over a trace long enough to pack the tree many times."""
    trace = chains(3, 700)
    ids, starts = trace.ids, trace.starts
    out = np.empty(ids.size, np.int32)
    positions(ids, starts, trace.universe, out)
    stack: list[int] = []  # the newest use last
    for r in range(trace.requests):
        request = ids[starts[r] : starts[r + 1]].tolist()
        for i, block in enumerate(request, int(starts[r])):
            if block in stack:
                assert out[i] == len(stack) - 1 - stack.index(block)
            else:
                assert out[i] == FAR
        for block in reversed(request):
            if block in stack:
                stack.remove(block)
            stack.append(block)


def test_the_tree_is_packed_when_its_slots_are_used_up() -> None:
    ids = np.tile(np.arange(40, dtype=np.int32), 500)  # 20,000 uses, 4,096 slots
    out = np.empty(ids.size, np.int32)
    positions(ids, np.arange(ids.size + 1), 40, out)
    assert (out[:40] == FAR).all()
    assert (out[40:] == 39).all()


def best(ids: tuple[int, ...], capacity: int) -> int:
    """The most hits, trying at each access to let go of anything, or not to keep it."""

    @cache
    def most(at: int, held: frozenset[int]) -> int:
        if at == len(ids):
            return 0
        hit = ids[at] in held
        now = held | {ids[at]}
        choices = [now] if len(now) <= capacity else [now - {gone} for gone in now]
        return hit + max(most(at + 1, choice) for choice in choices)

    return most(0, frozenset())


@given(ids=st.lists(st.integers(0, 5), min_size=1, max_size=14), capacity=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_the_optimum_is_the_best_of_all_choices(ids: list[int], capacity: int) -> None:
    codes = dense(np.array(ids))
    found = replay(view(flat(codes), "flat"), OPTIMAL, capacity)
    assert found.hits.sum() == best(tuple(codes.tolist()), capacity)


@pytest.mark.parametrize("semantics", SEMANTICS)
@given(seed=seeds, capacity=st.integers(1, 30))
@settings(max_examples=10, deadline=None)
def test_no_policy_beats_the_optimum(semantics: str, seed: int, capacity: int) -> None:
    seen = view(chains(seed, 40), semantics)
    most = replay(seen, OPTIMAL, capacity).hits.sum()
    for policy in POLICIES:
        assert replay(seen, policy, capacity).hits.sum() <= most


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_without_evictions_all_reach_the_ceiling(seed: int) -> None:
    for semantics in SEMANTICS:
        seen = view(chains(seed, 40), semantics)
        enough = seen.trace.universe
        ceiling = int(lru_hits(seen)[-1])
        for policy in (OPTIMAL, "lru", "fifo", "s3fifo"):
            assert replay(seen, policy, enough).hits.sum() == ceiling


def test_positions_of_flat_accesses() -> None:
    seen = view(flat(dense(np.array([7, 8, 7, 9, 8]))), "flat")
    assert lru_positions(seen).tolist() == [FAR, FAR, 1, FAR, 2]


def test_knots_reach_from_one_to_the_end() -> None:
    assert knots(5) == [1, 2, 3, 4, 5]
    assert knots(100, 1) == [100] and knots(0) == []
    spread = knots(100_000, 24)
    assert spread[0] == 1 and spread[-1] == 100_000
    assert len(spread) <= 24 and spread == sorted(set(spread))
