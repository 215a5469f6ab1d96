"""One policy, one capacity, one view of a trace: which accesses hit.

LRU and the optimum have exact shortcuts for requests (`curve`, `optimal`), and single accesses have
compiled loops (`kernels`). All other replays drive the engine's own policy objects as the engine's
block pool does, so that a policy's result here is what it does there.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np

from vllm.kv.evict import EvictionPolicy, Use, make, parse
from vllm.prefixlab.curve import lru_positions
from vllm.prefixlab.kernels import KERNELS
from vllm.prefixlab.optimal import OPTIMAL, optimal
from vllm.prefixlab.view import Hits, Outcome, View


def known(policies: Iterable[str]) -> None:
    """Raises ValueError for a name, or settings, of no policy."""
    for name in policies:
        if name != OPTIMAL:
            parse(name)


def policy_for(view: View, name: str) -> EvictionPolicy:
    """A policy as a view needs it: prefixes stay closed (leaf first) where only they can be hit."""
    return make(name) if view.closed else parse(name)()


def replay(view: View, policy: str, capacity: int, *, fast: bool = True) -> Outcome:
    """Replay under a policy by name; `fast=False` drives the policy's object, the slow twin.

    Raises ValueError for a policy that does not exist, or a capacity below 1.
    """
    if not 1 <= capacity < 2**31:
        raise ValueError(f"capacity: must be 1 to {2**31 - 1} blocks, is {capacity}")
    trace = view.trace
    hits = np.zeros(trace.accesses, np.uint8)
    if policy == OPTIMAL:
        _optimal(view, capacity, hits)
    elif fast and policy == "lru" and view.closed:
        hits[:] = (lru_positions(view) < capacity) & view.may_hit
    elif fast and policy in KERNELS and not view.closed:
        KERNELS[policy](trace.ids, min(capacity, trace.universe + 1), trace.universe, hits)
    else:
        drive(view, policy_for(view, policy), capacity, hits)
    return Outcome(view, policy, capacity, hits)


def _optimal(view: View, capacity: int, hits: Hits) -> None:
    trace = view.trace
    optimal(trace.ids, capacity, trace.universe, view.may_hit, hits)
    if view.closed:
        # Among blocks of one request that are used again together the optimum may keep any; the
        # count is what is optimal, and the leading ones are what a prefix cache would keep.
        kept = np.bincount(trace.request, weights=hits, minlength=trace.requests)
        hits[:] = trace.depth < kept[trace.request]


def drive(view: View, policy: EvictionPolicy, capacity: int, hits: Hits) -> list[int]:
    """Replay through a policy object, marking `hits`; returns the evicted ids in their order."""
    cache = _Cache(view, policy, capacity)
    bounds = view.trace.starts.tolist()
    for r in range(view.trace.requests):
        first, end = bounds[r], bounds[r + 1]
        ids = view.trace.ids[first:end].tolist()
        if view.closed:
            run = cache.request(r, ids)
            hits[first : first + run] = view.may_hit[first : first + run]
        else:
            cache.accesses(r, ids, hits[first:end])
    return cache.evicted


class _Cache:
    """What the engine's block pool does to a policy, without blocks."""

    def __init__(self, view: View, policy: EvictionPolicy, capacity: int) -> None:
        trace = view.trace
        self._policy = policy
        self._capacity = capacity
        self._keys = view.keys
        self._codes = {key: code for code, key in enumerate(view.keys)}
        self._resident: set[int] = set()
        self.evicted: list[int] = []
        sessions = ["" if s < 0 else str(s) for s in trace.session.tolist()]
        workloads = [trace.workloads[w] for w in trace.workload.tolist()]
        self._about = list(zip(trace.arrival.tolist(), workloads, sessions, strict=True))

    def _uses(self, r: int, ids: list[int]) -> list[Use]:
        """What is told of a request's use of each of its blocks."""
        time, workload, session = self._about[r]
        parents = [None, *(self._keys[code] for code in ids[:-1])]
        return [Use(time, parent, depth, workload, session) for depth, parent in enumerate(parents)]

    def accesses(self, r: int, ids: list[int], hits: Hits) -> None:
        """A request's blocks, each by itself."""
        for i, (code, use) in enumerate(zip(ids, self._uses(r, ids), strict=False)):
            if code in self._resident:
                self._policy.touch(self._keys[code], use)
                hits[i] = 1
            else:
                self._make_room(1, use.time)
                self._resident.add(code)
                self._policy.insert(self._keys[code], use)

    def request(self, r: int, ids: list[int]) -> int:
        """A whole request, which holds its blocks while it runs; returns its leading hits."""
        resident, keys = self._resident, self._keys
        run = 0
        while run < len(ids) and ids[run] in resident:
            run += 1
        kept = ids[: self._capacity]
        held = [code for code in kept if code in resident]
        for code in held:
            self._policy.remove(keys[code])
        self._make_room(len(kept) - len(held), self._about[r][0])
        resident.update(kept)
        for code, use in zip(reversed(kept), reversed(self._uses(r, kept)), strict=False):
            self._policy.insert(keys[code], use)
        return run

    def _make_room(self, count: int, now: float) -> None:
        missing = len(self._resident) + count - self._capacity
        if missing <= 0:
            return
        for key in list(islice(self._policy.victims(now), missing)):
            self._policy.evict(key)
            code = self._codes[key]
            self._resident.remove(code)
            self.evicted.append(code)
