"""CLOCK: a queue whose used keys get a second round (Corbató, 1968)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class Clock(Tracked):
    """One bit a key; the hand stands at the front of the queue and passes keys to its back."""

    def __init__(self) -> None:
        super().__init__()
        self._used: OrderedDict[Key, bool] = OrderedDict()

    def _new(self, key: Key) -> None:
        self._used[key] = False

    def _hit(self, key: Key) -> None:
        self._used[key] = True

    def _order(self) -> Iterator[Key]:
        yield from (key for key, used in self._used.items() if not used)
        yield from (key for key, used in self._used.items() if used)

    def _gone(self, key: Key) -> None:
        """Walk the hand to the key; what it passes loses its bit.

        When the caller has passed over one that the hand would have taken, it follows an order of
        its own, and the hand stays.
        """
        if next(k for k in self._order() if k == key or k in self._evictable) == key:
            while True:
                front, used = next(iter(self._used.items()))
                if front == key and not used:
                    break
                self._used.move_to_end(front)
                self._used[front] = False
        del self._used[key]
