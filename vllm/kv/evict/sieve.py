"""SIEVE (Zhang et al., NSDI'24): CLOCK whose kept keys stay where they are.

    oldest  [ passed ... ]  hand  [ ahead ... ]  newest

The hand takes the first key ahead whose bit is clear. New keys enter ahead of everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class Sieve(Tracked):
    def __init__(self) -> None:
        super().__init__()
        self._passed: OrderedDict[Key, bool] = OrderedDict()
        self._ahead: OrderedDict[Key, bool] = OrderedDict()

    def _new(self, key: Key) -> None:
        self._ahead[key] = False

    def _hit(self, key: Key) -> None:
        (self._ahead if key in self._ahead else self._passed)[key] = True

    def _order(self) -> Iterator[Key]:
        for wanted in (False, True):
            rounds = chain(self._ahead.items(), self._passed.items())
            yield from (key for key, used in rounds if used is wanted)

    def _gone(self, key: Key) -> None:
        """Walk the hand to the key; what it passes loses its bit.

        When the caller has passed over one that the hand would have taken, it follows an order of
        its own, and the hand stays.
        """
        if next(k for k in self._order() if k == key or k in self._evictable) != key:
            del (self._ahead if key in self._ahead else self._passed)[key]
            self._wrap()
            return
        while True:
            front, used = self._ahead.popitem(last=False)
            taken = front == key and not used
            if not taken:
                self._passed[front] = False
            self._wrap()
            if taken:
                return

    def _wrap(self) -> None:
        """Past the newest the hand is at the oldest again, before newer ones come."""
        if not self._ahead:
            self._ahead, self._passed = self._passed, OrderedDict()

    def check(self) -> None:
        super().check()
        assert self._ahead or not self._passed
