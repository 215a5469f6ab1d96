"""Eviction policies: which of the blocks that nobody uses goes first. One file a policy.

`policy.py` says what a policy is asked. A new one is a file here and a line in `POLICIES`; one that
takes settings behind its name, `quota:chat=0.6,qa=0.4`, has a line in `WITH_SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vllm.kv.evict.allow import AllowList
from vllm.kv.evict.arc import ARC
from vllm.kv.evict.banded import Banded
from vllm.kv.evict.clock import Clock
from vllm.kv.evict.fifo import FIFO
from vllm.kv.evict.gdsf import GDSF
from vllm.kv.evict.leaf_first import LeafFirst
from vllm.kv.evict.lfu import LFU
from vllm.kv.evict.lhd import LHD
from vllm.kv.evict.lirs import LIRS
from vllm.kv.evict.lru import LRU
from vllm.kv.evict.policy import UNKNOWN, EvictionPolicy, Use
from vllm.kv.evict.quota import Quota
from vllm.kv.evict.s3fifo import S3FIFO, S3FIFOMain
from vllm.kv.evict.session import SessionAware
from vllm.kv.evict.sieve import Sieve
from vllm.kv.evict.slru import SLRU
from vllm.kv.evict.ttl import TTL
from vllm.kv.evict.two_q import TwoQ
from vllm.kv.evict.w_tinylfu import WTinyLFU
from vllm.kv.evict.workload import WorkloadAware

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": LRU,
    "fifo": FIFO,
    "lfu": LFU,
    "s3fifo": S3FIFO,
    "s3fifo-main": S3FIFOMain,
    "workload": WorkloadAware,
    "session": SessionAware,
    "ttl": TTL,
    "quota": Quota,
    "arc": ARC,
    "clock": Clock,
    "gdsf": GDSF,
    "lhd": LHD,
    "lirs": LIRS,
    "sieve": Sieve,
    "slru": SLRU,
    "w-tinylfu": WTinyLFU,
    "2q": TwoQ,
}
WITH_SETTINGS: dict[str, Callable[[str], EvictionPolicy]] = {
    "allow": AllowList.of,
    "quota": Quota.of,
    "ttl": TTL.of,
}


def parse(spec: str) -> Callable[[], EvictionPolicy]:
    """`NAME` or `NAME:SETTINGS` -> what makes such a policy, as it was published.

    Raises ValueError for a name that is not known, and for settings that are none.
    """
    name, colon, settings = spec.partition(":")
    if not colon and name in POLICIES:
        return POLICIES[name]
    if name in WITH_SETTINGS:
        make = partial(WITH_SETTINGS[name], settings)
        try:
            make()
        except ValueError as error:
            raise ValueError(f"eviction policy {name}: {error}") from None
        return make
    if name in POLICIES:
        raise ValueError(f"eviction policy {name}: takes no settings, but has {settings!r}")
    known = ", ".join(sorted({*POLICIES, *WITH_SETTINGS}))
    raise ValueError(f"eviction policy: {name!r} is not one of {known}")


def make(spec: str) -> LeafFirst:
    """A policy as the engine uses it: leaf first, and by priority. Raises ValueError as `parse`."""
    return LeafFirst(Banded(parse(spec)))


__all__ = [
    "POLICIES",
    "UNKNOWN",
    "WITH_SETTINGS",
    "EvictionPolicy",
    "LeafFirst",
    "Use",
    "make",
    "parse",
]
