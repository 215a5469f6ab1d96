"""Workload-aware eviction (Wang et al., "KVCache Cache in the Wild", ATC'25).

Requests of one kind use their blocks again after times that are nearly exponential, and each kind
has its own rate. So a key's chance to be used again within the next `HORIZON` seconds follows from
its kind and its age; the key with the smallest goes first, of equals the deeper one.

With `p` the share of a kind's keys that are used again at all, and `m` the mean time until then,
a key that has waited `a` seconds is used within the next `w` with the probability

    p (e^(-a/m) - e^(-(a+w)/m)) / (1 - p + p e^(-a/m))

which falls with `a`: within a kind the order is LRU, and only the kinds' oldest are compared. Both
`p` and `m` are learnt while running, as means over the latest `MEMORY` keys of the kind.

A key that goes counts as not used again, until it comes back: what has gone is remembered, as many
keys as the cache holds. Otherwise a kind that is thought useless would go first, and so never be
seen to be of use.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key

HORIZON = 60.0  # seconds
MEMORY = 1000  # keys, over which the means are taken
MAX_KINDS = 64  # what further kinds do counts as done by the kind without a name
START_SHARE, START_GAP = 0.5, 60.0  # until something has been learnt


@dataclass(slots=True)
class _Kind:
    """What is known of one workload, and its evictable keys, the oldest use first."""

    share: float = START_SHARE  # of keys that are used again
    gap: float = START_GAP  # mean seconds until then
    seen: int = 0  # outcomes
    reused: int = 0
    keys: OrderedDict[Key, Use] = field(default_factory=OrderedDict)

    def learn(self, gap: float | None) -> None:
        """One key was used again after so many seconds, or (None) has gone without."""
        self.seen += 1
        weight = max(1 / (self.seen + 1), 1 / MEMORY)
        self.share += weight * ((gap is not None) - self.share)
        if gap is not None:
            self._learn_gap(gap)

    def recant(self, gap: float) -> None:
        """One key that had gone without is used again after all."""
        self.share = min(1.0, self.share + max(1 / (self.seen + 1), 1 / MEMORY))
        self._learn_gap(gap)

    def _learn_gap(self, gap: float) -> None:
        self.reused += 1
        self.gap += max(1 / (self.reused + 1), 1 / MEMORY) * (gap - self.gap)

    def chance(self, age: float) -> float:
        """That a key of this age is used again within the horizon."""
        mean = max(self.gap, 1e-3)
        alive = self.share * math.exp(-age / mean)
        rest = 1 - self.share + alive
        return alive * -math.expm1(-HORIZON / mean) / rest if rest > 0 else 1.0


class WorkloadAware:
    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {"": _Kind()}
        self._kind_of: dict[Key, str] = {}  # of the keys inside
        self._in_use: dict[Key, tuple[str, float]] = {}  # kind and time of the use before
        self._gone: OrderedDict[Key, tuple[str, float]] = OrderedDict()  # as `_in_use`
        self._peak = 0  # the most keys that there were
        self._now = 0.0

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        assert key not in self._kind_of, "a key is inserted once"
        before = self._in_use.pop(key, None)
        gone = self._gone.pop(key, None)
        if before is not None:
            self._kinds[before[0]].learn(max(0.0, use.time - before[1]))
        elif gone is not None:
            self._kinds[gone[0]].recant(max(0.0, use.time - gone[1]))
        self._put(key, use)
        self._peak = max(self._peak, len(self._kind_of) + len(self._in_use))

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        kind = self._kinds[self._kind_of[key]]
        kind.learn(max(0.0, use.time - kind.keys.pop(key).time))
        self._put(key, use)

    def _name(self, use: Use) -> str:
        """The kind of the request that made this use."""
        return use.workload

    def _put(self, key: Key, use: Use) -> None:
        name = self._name(use)
        if name not in self._kinds:
            if len(self._kinds) < MAX_KINDS:
                self._kinds[name] = _Kind()
            else:
                name = ""
        self._now = max(self._now, use.time)
        self._kinds[name].keys[key] = use
        self._kind_of[key] = name

    def remove(self, key: Key) -> None:
        name = self._kind_of.pop(key)
        self._in_use[key] = name, self._kinds[name].keys.pop(key).time

    def evict(self, key: Key) -> None:
        if self._in_use.pop(key, None) is not None or key not in self._kind_of:
            return
        name = self._kind_of.pop(key)
        self._gone[key] = name, self._kinds[name].keys.pop(key).time
        self._kinds[name].learn(None)
        if len(self._gone) > self._peak:
            self._gone.popitem(last=False)

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        """The kinds' queues, merged by the chance of their oldest."""
        now = max(now, self._now)
        heads: list[tuple[float, int, int, Key]] = []
        queues = [(kind, iter(kind.keys.items())) for kind in self._kinds.values()]

        def advance(number: int) -> None:
            kind, queue = queues[number]
            for key, use in queue:
                heapq.heappush(heads, (kind.chance(now - use.time), -use.depth, number, key))
                return

        for number in range(len(queues)):
            advance(number)
        while heads:
            _, _, number, key = heapq.heappop(heads)
            yield key
            advance(number)

    def check(self) -> None:
        inside = {key: name for name, kind in self._kinds.items() for key in kind.keys}
        assert inside == self._kind_of, "a key is in the queue of its kind"
        assert len(self._kinds) <= MAX_KINDS
        assert not self._in_use.keys() & inside.keys()
        assert not self._gone.keys() & (inside.keys() | self._in_use.keys())
        assert len(self._gone) <= self._peak
        assert all(0 <= kind.share <= 1 for kind in self._kinds.values())

    def __len__(self) -> int:
        return len(self._kind_of)

    def __contains__(self, key: object) -> bool:
        return key in self._kind_of
