"""LIRS (Jiang and Zhang, SIGMETRICS'02): ranks by the time between the last two uses of a key.

    stack   oldest [ low, high, ghost, low, ... ] newest     its bottom is low
    queue   oldest [ high, high ]  newest                    these go first

Nearly all keys are `low`: the time between their uses is short. The others are `high`, a hundredth.
A high key that is used while it stands in the stack, cached or a ghost, has come back sooner than
the low key at the bottom, and changes places with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key

LOW = 0.99  # of all keys


class LIRS(Tracked):
    def __init__(self) -> None:
        super().__init__()
        self._stack: OrderedDict[Key, None] = OrderedDict()
        self._low: set[Key] = set()  # all in the stack
        self._queue: OrderedDict[Key, None] = OrderedDict()  # the high ones
        self._ghosts: OrderedDict[Key, None] = OrderedDict()  # all in the stack

    @property
    def _low_size(self) -> int:
        return max(1, int(LOW * self.peak))

    def _new(self, key: Key) -> None:
        if key in self._ghosts:
            del self._ghosts[key]
            self._raise(key)
        elif self._queue or len(self._low) >= self._low_size:
            self._fill()
            self._queue[key] = None
        else:
            self._low.add(key)
        self._top(key)

    def _fill(self) -> None:
        """A low place that is free, as while the cache grows, goes to the newest high key."""
        if self._queue and len(self._low) < self._low_size:
            newest = self._queue.popitem()[0]
            self._low.add(newest)
            if newest not in self._stack:
                self._stack[newest] = None
                self._stack.move_to_end(newest, last=False)

    def _hit(self, key: Key) -> None:
        if key in self._queue:
            if key in self._stack:
                del self._queue[key]
                self._raise(key)
            else:
                self._queue.move_to_end(key)
        self._top(key)

    def _top(self, key: Key) -> None:
        self._stack[key] = None
        self._stack.move_to_end(key)
        self._prune()

    def _raise(self, key: Key) -> None:
        """The key becomes low, and the low key at the bottom of the stack high."""
        self._low.add(key)
        self._stack.move_to_end(key)
        if len(self._low) > self._low_size:
            bottom = next(iter(self._stack))
            del self._stack[bottom]
            self._low.remove(bottom)
            self._queue[bottom] = None

    def _prune(self) -> None:
        """The bottom of the stack is low: what is under the last low key tells nothing more."""
        while self._stack:
            bottom = next(iter(self._stack))
            if bottom in self._low:
                return
            del self._stack[bottom]
            self._ghosts.pop(bottom, None)

    def _order(self) -> Iterator[Key]:
        yield from self._queue
        yield from (key for key in self._stack if key in self._low)

    def _gone(self, key: Key) -> None:
        if key in self._low:
            self._low.remove(key)
            del self._stack[key]
        else:
            del self._queue[key]
            if key in self._stack:
                self._ghosts[key] = None
        self._prune()
        while len(self._ghosts) > 2 * self.peak:
            ghost = self._ghosts.popitem(last=False)[0]
            del self._stack[ghost]

    def check(self) -> None:
        super().check()
        assert not self._low & self._queue.keys()
        assert self._low <= self._stack.keys() and self._ghosts.keys() <= self._stack.keys()
        assert set(self._stack) <= self._low | self._queue.keys() | self._ghosts.keys()
        assert not self._stack or next(iter(self._stack)) in self._low, "its bottom is low"
        assert len(self._ghosts) <= 2 * self.peak
