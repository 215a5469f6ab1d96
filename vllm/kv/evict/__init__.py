"""Eviction policies: which of the blocks that nobody uses goes first. One file a policy.

`policy.py` says what a policy is asked. A new one is a file here and a line in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.kv.evict.arc import ARC
from vllm.kv.evict.banded import Banded
from vllm.kv.evict.clock import Clock
from vllm.kv.evict.fifo import FIFO
from vllm.kv.evict.gdsf import GDSF
from vllm.kv.evict.leaf_first import LeafFirst
from vllm.kv.evict.lfu import LFU
from vllm.kv.evict.lru import LRU
from vllm.kv.evict.policy import UNKNOWN, EvictionPolicy, Use
from vllm.kv.evict.s3fifo import S3FIFO
from vllm.kv.evict.sieve import Sieve
from vllm.kv.evict.slru import SLRU
from vllm.kv.evict.two_q import TwoQ
from vllm.kv.evict.workload import WorkloadAware

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": LRU,
    "fifo": FIFO,
    "lfu": LFU,
    "s3fifo": S3FIFO,
    "workload": WorkloadAware,
    "arc": ARC,
    "clock": Clock,
    "gdsf": GDSF,
    "sieve": Sieve,
    "slru": SLRU,
    "2q": TwoQ,
}


def make(name: str) -> EvictionPolicy:
    """A policy as the engine uses it: leaf first, and by priority. KeyError for an unknown name."""
    return LeafFirst(Banded(POLICIES[name]))


__all__ = [
    "POLICIES",
    "UNKNOWN",
    "EvictionPolicy",
    "Use",
    "make",
]
