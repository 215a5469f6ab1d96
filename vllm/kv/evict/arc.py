"""ARC (Megiddo and Modha, FAST'03): recency and frequency share the cache as their ghosts ask.

A victim is chosen before it is known what comes instead, so a ghost's return moves the border
from the next eviction on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class ARC(Tracked):
    """Two LRU lists, of keys used once and more often, each with its ghosts."""

    def __init__(self) -> None:
        super().__init__()
        self._once: OrderedDict[Key, None] = OrderedDict()
        self._often: OrderedDict[Key, None] = OrderedDict()
        self._once_ghosts: OrderedDict[Key, None] = OrderedDict()
        self._often_ghosts: OrderedDict[Key, None] = OrderedDict()
        self._border = 0.0  # how many keys the first list should have

    def _new(self, key: Key) -> None:
        once, often = len(self._once_ghosts), len(self._often_ghosts)
        if key in self._once_ghosts:
            del self._once_ghosts[key]
            self._border = min(float(self.peak), self._border + max(1.0, often / once))
            self._often[key] = None
        elif key in self._often_ghosts:
            del self._often_ghosts[key]
            self._border = max(0.0, self._border - max(1.0, once / often))
            self._often[key] = None
        else:
            self._once[key] = None
        # At most `peak` keys and ghosts were used once, and twice that many are known in all.
        while self._once_ghosts and len(self._once) + len(self._once_ghosts) > self.peak:
            self._once_ghosts.popitem(last=False)
        while self._often_ghosts and self._known() > 2 * self.peak:
            self._often_ghosts.popitem(last=False)

    def _known(self) -> int:
        ghosts = len(self._once_ghosts) + len(self._often_ghosts)
        return len(self._once) + len(self._often) + ghosts

    def _hit(self, key: Key) -> None:
        self._once.pop(key, None)
        self._often[key] = None
        self._often.move_to_end(key)

    def _order(self) -> Iterator[Key]:
        once, often = iter(self._once), iter(self._often)
        over = max(0, len(self._once) - int(self._border))
        for _ in range(over):
            yield next(once)
        yield from often
        yield from once

    def _gone(self, key: Key) -> None:
        if key in self._once:
            del self._once[key]
            self._once_ghosts[key] = None
        else:
            del self._often[key]
            self._often_ghosts[key] = None
