"""S3-FIFO (Yang et al., SOSP'23): a small queue sorts out what is used once.

    new --> [ small, a tenth ] --used twice--> [ main ] <--+
                 | else                           |  used: a round more
                 v                                v
            ghosts: those that come back go to main     gone

The small queue may hold more than its share until the cache has been full, as in the paper;
`S3FIFOMain` fills the main queue then, as libCacheSim does. They differ for as long as those keys
stay, which may be a whole trace.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key

MOST = 3  # uses that are counted


class S3FIFO(Tracked):
    def __init__(self) -> None:
        super().__init__()
        self._small: OrderedDict[Key, int] = OrderedDict()  # uses since it came, oldest first
        self._main: OrderedDict[Key, int] = OrderedDict()
        self._ghosts: OrderedDict[Key, None] = OrderedDict()

    @property
    def _small_size(self) -> int:
        return max(1, self.peak // 10)

    def _new(self, key: Key) -> None:
        if key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = 0
        else:
            self._small[key] = 0
        # Not before: the key that had to go for this one must not push its ghost out.
        while len(self._ghosts) > self.peak - self._small_size:
            self._ghosts.popitem(last=False)

    def _hit(self, key: Key) -> None:
        queue = self._small if key in self._small else self._main
        queue[key] = min(MOST, queue[key] + 1)

    def _order(self) -> Iterator[Key]:
        """What the rounds would let go one by one, played on the side."""
        small, in_small, main, in_main = self._queues()
        again: deque[tuple[Key, int]] = deque()  # behind main's end: promoted, or a round more
        fresh = in_main
        while in_small or in_main:
            if in_small and (in_small >= self._small_size or not in_main):
                key, uses = next(small)
                in_small -= 1
                if uses > 1:
                    again.append((key, 0))
                    in_main += 1
                    continue
            else:
                if fresh:
                    key, uses = next(main)
                    fresh -= 1
                else:
                    key, uses = again.popleft()
                if uses:
                    again.append((key, uses - 1))
                    continue
                in_main -= 1
            yield key

    def _queues(self) -> tuple[Iterator[tuple[Key, int]], int, Iterator[tuple[Key, int]], int]:
        """Both queues, oldest first, and their lengths."""
        small, main = iter(self._small.items()), iter(self._main.items())
        return small, len(self._small), main, len(self._main)

    def _gone(self, key: Key) -> None:
        """Play the rounds up to the key, past those in use, which keep their places.

        When the caller has passed over one that could go, it follows an order of its own, and the
        key leaves without a round.
        """
        self._play(key)
        if self._main.pop(key, None) is None and self._small.pop(key) <= 1:
            self._ghosts[key] = None

    def _play(self, key: Key) -> None:
        kept: list[tuple[OrderedDict[Key, int], Key, int]] = []
        while self._small or self._main:
            from_small = len(self._small) >= self._small_size or not self._main
            if self._small and from_small:
                queue, front = self._small, next(iter(self._small))
                if self._small[front] > 1:
                    del self._small[front]
                    self._main[front] = 0
                    continue
            else:
                queue, front = self._main, next(iter(self._main))
                if self._main[front]:
                    self._main[front] -= 1
                    self._main.move_to_end(front)
                    continue
            if front == key or front not in self._in_use:
                break
            kept.append((queue, front, queue.pop(front)))
        for queue, front, uses in reversed(kept):
            queue[front] = uses
            queue.move_to_end(front, last=False)


class S3FIFOMain(S3FIFO):
    """Of the keys that came before the first one went, those beyond the small share are main's.

    How much that share is shows only when the cache is full, so they are told apart then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._filling = True

    def _queues(self) -> tuple[Iterator[tuple[Key, int]], int, Iterator[tuple[Key, int]], int]:
        if not self._filling:
            return super()._queues()
        held = self._small.items()
        share = min(self._small_size, len(held))
        return islice(held, share), share, islice(held, share, None), len(held) - share

    def _gone(self, key: Key) -> None:
        if self._filling:
            self._filling = False
            for early in list(islice(self._small, self._small_size, None)):
                self._main[early] = self._small.pop(early)
        super()._gone(key)
