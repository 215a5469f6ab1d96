"""Time to live by kind of request (as Continuum, 2025, does for agents): who expires first, goes.

`ttl:chat=300,tool=20` says how many seconds after its last use a block of each workload expires;
`*=60` is for all others. Without settings each workload's time is learnt: the mean time until its
blocks are used again, times ln 10; of exponential times nine in ten are shorter than that.

A ranking and no promise: a block that has expired is still a hit while nobody wants its memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllm.kv.evict.ranked import Ranked
from vllm.kv.evict.settings import shares
from vllm.kv.lineage import Key

REST = "*"
START = 300.0  # seconds, until something has been learnt
MEMORY = 1000  # gaps, over which the mean is taken
MAX_KINDS = 64  # further ones share what is learnt for all others


class TTL(Ranked):
    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self._told = seconds
        self._learnt: dict[str, tuple[float, int]] = {REST: (0.0, 0)}  # mean gap, gaps
        self._last: dict[Key, tuple[str, float]] = {}  # kind and time of the last use

    @classmethod
    def of(cls, text: str) -> TTL:
        """Raises ValueError for what is not `KIND=SECONDS,...`."""
        return cls(shares(text))

    def seconds(self, kind: str) -> float:
        if self._told is not None:
            return self._told.get(kind, self._told.get(REST, START))
        mean, gaps = self._learnt.get(kind, self._learnt[REST])
        return mean * math.log(10) if gaps else START

    def _rank(self, key: Key) -> float:
        time, kind = self.use.time, self.use.workload
        if key in self._last:
            before, since = self._last[key]
            self._learn(before, max(0.0, time - since))
        self._last[key] = kind, time
        return time + self.seconds(kind)

    def _learn(self, kind: str, gap: float) -> None:
        if kind not in self._learnt and len(self._learnt) >= MAX_KINDS:
            kind = REST
        mean, gaps = self._learnt.get(kind, (0.0, 0))
        gaps += 1
        self._learnt[kind] = mean + (gap - mean) / min(gaps, MEMORY), gaps

    def _gone(self, key: Key) -> None:
        del self._last[key]
        super()._gone(key)
