"""First in, first out: uses count for nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class FIFO(Tracked):
    """A key keeps the place that it got when it came into the cache.

    Ordered, not a plain dict: that would look at all its former entries to find the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._queue: OrderedDict[Key, None] = OrderedDict()

    def _new(self, key: Key) -> None:
        self._queue[key] = None

    def _hit(self, key: Key) -> None:
        """Its place does not change."""

    def _order(self) -> Iterator[Key]:
        return iter(self._queue)

    def _gone(self, key: Key) -> None:
        del self._queue[key]
