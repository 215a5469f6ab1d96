"""2Q (Johnson and Shasha, VLDB'94): a key used once leaves early, unless it comes back soon."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key

FIRST, GHOSTS = 0.25, 0.5  # of all keys


class TwoQ(Tracked):
    """A FIFO of first uses, an LRU of keys that came back while they were ghosts of the FIFO."""

    def __init__(self) -> None:
        super().__init__()
        self._first: OrderedDict[Key, None] = OrderedDict()
        self._often: OrderedDict[Key, None] = OrderedDict()
        self._ghosts: OrderedDict[Key, None] = OrderedDict()

    def _new(self, key: Key) -> None:
        if key in self._ghosts:
            del self._ghosts[key]
            self._often[key] = None
        else:
            self._first[key] = None

    def _hit(self, key: Key) -> None:
        if key in self._often:
            self._often.move_to_end(key)

    def _order(self) -> Iterator[Key]:
        first, often = iter(self._first), iter(self._often)
        over = len(self._first) - int(FIRST * self.peak)
        for _ in range(over):
            yield next(first)
        yield from often
        yield from first

    def _gone(self, key: Key) -> None:
        if key in self._often:
            del self._often[key]
            return
        del self._first[key]
        self._ghosts[key] = None
        while len(self._ghosts) > int(GHOSTS * self.peak):
            self._ghosts.popitem(last=False)
