"""Policies that give each key a number at its use; the lowest goes first, of equals the oldest."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class Ranked(Tracked):
    """A heap of (rank, use, key). An entry is stale once its key has another or is gone.

    Invariant: every key has exactly one entry that is not stale.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, int, Key]] = []
        self._current: dict[Key, tuple[float, int, Key]] = {}
        self._clock = 0

    @abstractmethod
    def _rank(self, key: Key) -> float:
        """The key's number after the use that it sees now."""

    def rank(self, key: Key) -> float:
        return self._current[key][0]

    def _new(self, key: Key) -> None:
        self._hit(key)

    def _hit(self, key: Key) -> None:
        self._clock += 1
        entry = (self._rank(key), self._clock, key)
        self._current[key] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._current) + 64:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)

    def _order(self) -> Iterator[Key]:
        """The heap from its top down, entry by entry, without taking any out."""
        heap = self._heap
        frontier = [(heap[0], 0)] if heap else []
        while frontier:
            entry, at = heapq.heappop(frontier)
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heapq.heappush(frontier, (heap[child], child))
            if self._current.get(entry[2]) is entry:
                yield entry[2]

    def _gone(self, key: Key) -> None:
        del self._current[key]
        while self._heap and self._current.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
