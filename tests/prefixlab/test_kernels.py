"""The compiled loops against the policies' objects, and against libCacheSim."""

from __future__ import annotations

import libcachesim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prefixlab.made import accesses, flat
from vllm.prefixlab.kernels import KERNELS
from vllm.prefixlab.replay import replay
from vllm.prefixlab.trace import dense
from vllm.prefixlab.view import view

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=80)


def compiled(name: str, ids: np.ndarray, capacity: int) -> np.ndarray:
    hits = np.zeros(ids.size, np.uint8)
    KERNELS[name](ids, capacity, int(ids.max()) + 1, hits)
    return hits


@pytest.mark.parametrize("name", KERNELS)
@given(ids=IDS, capacity=st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_kernels_hit_where_the_engines_policy_does(
    name: str, ids: list[int], capacity: int
) -> None:
    seen = view(flat(dense(np.array(ids))), "flat")
    fast = replay(seen, name, capacity)
    slow = replay(seen, name, capacity, fast=False)
    assert fast.hits.tolist() == slow.hits.tolist()


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_hit_where_the_policy_does_on_longer_traces(name: str) -> None:
    for seed in range(3):
        seen = view(flat(accesses(seed, 3000, 400)), "flat")
        for capacity in (7, 60, 250):
            fast = replay(seen, name, capacity)
            slow = replay(seen, name, capacity, fast=False)
            assert (fast.hits == slow.hits).all(), (seed, capacity)


ORACLES = {
    "lru": libcachesim.LRU,
    "fifo": libcachesim.FIFO,
    "lfu": libcachesim.LFU,
    "sieve": libcachesim.Sieve,
    "clock": libcachesim.Clock,
}


def oracle(cls: type, ids: np.ndarray, capacity: int) -> list[bool]:
    cache, request, hits = cls(capacity), libcachesim.Request(), []
    for i in ids.tolist():
        request.obj_id, request.obj_size = i + 1, 1
        hits.append(bool(cache.get(request)))
    return hits


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("seed", range(8))
def test_libcachesim_hits_the_same_accesses(name: str, seed: int) -> None:
    ids = accesses(seed, 4000, 60 + 90 * seed)
    for capacity in (2, 17, 100, 333):
        assert compiled(name, ids, capacity).tolist() == oracle(ORACLES[name], ids, capacity)


# Variants differ in details (when a ghost is forgotten, how shares are rounded), so rates are near.
NEAR = {
    "s3fifo-main": libcachesim.S3FIFO,
    "arc": libcachesim.ARC,
    "lirs": libcachesim.LIRS,
    "2q": libcachesim.TwoQ,
    "slru": libcachesim.SLRU,
    "w-tinylfu": libcachesim.WTinyLFU,
}


@pytest.mark.parametrize("name", NEAR)
def test_libcachesims_other_policies_are_near(name: str) -> None:
    ids = accesses(5, 6000, 900)
    for capacity in (100, 300):
        mine = replay(view(flat(ids), "flat"), name, capacity).hits.mean()
        assert mine == pytest.approx(np.mean(oracle(NEAR[name], ids, capacity)), abs=0.03)
