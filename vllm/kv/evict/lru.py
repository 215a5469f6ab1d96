"""Least recently used: the key whose last use is longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key


class LRU:
    """An ordered dict, oldest first: every operation is O(1)."""

    def __init__(self) -> None:
        self._order: OrderedDict[Key, None] = OrderedDict()

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        self._order[key] = None

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        self._order.move_to_end(key)

    def remove(self, key: Key) -> None:
        del self._order[key]

    def evict(self, key: Key) -> None:
        self._order.pop(key, None)

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        return iter(self._order)

    def check(self) -> None:
        """Nothing can be out of step with anything else."""

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: object) -> bool:
        return key in self._order
