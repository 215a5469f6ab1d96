"""An allow list: `allow:chat,qa` lets go of what other workloads used last before all else.

Within the list and outside of it the order is LRU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.evict.settings import kinds
from vllm.kv.lineage import Key


class AllowList:
    def __init__(self, allowed: frozenset[str]) -> None:
        self.allowed = allowed
        self._others: OrderedDict[Key, None] = OrderedDict()
        self._listed: OrderedDict[Key, None] = OrderedDict()

    @classmethod
    def of(cls, text: str) -> AllowList:
        """Raises ValueError for what is not `KIND,...`."""
        return cls(kinds(text))

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        (self._listed if use.workload in self.allowed else self._others)[key] = None

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        self.remove(key)
        self.insert(key, use)

    def remove(self, key: Key) -> None:
        del (self._others if key in self._others else self._listed)[key]

    def evict(self, key: Key) -> None:
        self._others.pop(key, None)
        self._listed.pop(key, None)

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        yield from self._others
        yield from self._listed

    def check(self) -> None:
        assert not self._others.keys() & self._listed.keys()

    def __len__(self) -> int:
        return len(self._others) + len(self._listed)

    def __contains__(self, key: object) -> bool:
        return key in self._others or key in self._listed
