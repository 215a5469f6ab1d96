"""Least frequently used: the key with the fewest uses since it came goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class LFU(Tracked):
    """Keys by their count, each count's oldest use first: all but the order of counts is O(1)."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[Key, int] = {}
        self._used: dict[int, OrderedDict[Key, None]] = {}  # no entry is empty

    def _new(self, key: Key) -> None:
        self._counts[key] = 1
        self._used.setdefault(1, OrderedDict())[key] = None

    def _hit(self, key: Key) -> None:
        self._leave(key)
        self._counts[key] += 1
        self._used.setdefault(self._counts[key], OrderedDict())[key] = None

    def _leave(self, key: Key) -> None:
        count = self._counts[key]
        del self._used[count][key]
        if not self._used[count]:
            del self._used[count]

    def _order(self) -> Iterator[Key]:
        for count in sorted(self._used):
            yield from self._used[count]

    def _gone(self, key: Key) -> None:
        self._leave(key)
        del self._counts[key]
