"""Shares of the cache by workload: whose part is the fullest lets go first.

`quota:chat=0.6,qa=0.4` gives each workload its part; the numbers count relative to each other, and
a workload that is not named has none. `vllm lab mixed` and `advise` find the parts from each
workload's own curve. Without settings all workloads that there are have equal parts.

A block belongs to the workload that used it last; within a workload the order is LRU. A part that
its workload does not fill is left to the others.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from vllm.kv.evict.settings import shares
from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key

MAX_KINDS = 64  # further workloads are one with those that have no name


class Quota(Tracked):
    def __init__(self, parts: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self._parts = parts
        self._queues: dict[str, OrderedDict[Key, None]] = {"": OrderedDict()}
        self._kind_of: dict[Key, str] = {}

    @classmethod
    def of(cls, text: str) -> Quota:
        """Raises ValueError for what is not `KIND=SHARE,...`."""
        return cls(shares(text))

    def _new(self, key: Key) -> None:
        kind = self.use.workload
        if kind not in self._queues:
            if len(self._queues) < MAX_KINDS:
                self._queues[kind] = OrderedDict()
            else:
                kind = ""
        self._kind_of[key] = kind
        self._queues[kind][key] = None

    def _hit(self, key: Key) -> None:
        self._gone(key)
        self._new(key)

    def _gone(self, key: Key) -> None:
        del self._queues[self._kind_of.pop(key)][key]

    def _order(self) -> Iterator[Key]:
        """Whose queue is the largest for its part goes first: all shrink in their proportion.

        By the difference a small part would be gone before a large one has shrunk by as much.
        """
        queues = {kind: iter(queue) for kind, queue in self._queues.items() if queue}
        left = {kind: len(self._queues[kind]) for kind in queues}
        parts = {kind: self._quota(kind) for kind in queues}

        def fullness(kind: str) -> tuple[float, int]:
            return left[kind] / parts[kind] if parts[kind] else math.inf, left[kind]

        while queues:
            kind = max(queues, key=fullness)
            key = next(queues[kind], None)
            if key is None:
                del queues[kind]
            else:
                left[kind] -= 1
                yield key

    def _quota(self, kind: str) -> float:
        if self._parts is None:
            return self.peak / sum(map(bool, self._queues.values()))
        return self.peak * self._parts.get(kind, 0.0) / sum(self._parts.values())

    def check(self) -> None:
        super().check()
        assert self._kind_of == {key: kind for kind, q in self._queues.items() for key in q}
        assert len(self._queues) <= MAX_KINDS
