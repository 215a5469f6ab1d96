"""First in, first out: uses count for nothing."""

from __future__ import annotations

from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class FIFO(Tracked):
    """A key keeps the place that it got when it came into the cache."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: dict[Key, None] = {}

    def _new(self, key: Key) -> None:
        self._queue[key] = None

    def _hit(self, key: Key) -> None:
        """Its place does not change."""

    def _order(self) -> Iterator[Key]:
        return iter(self._queue)

    def _gone(self, key: Key) -> None:
        del self._queue[key]
