"""SIEVE (Zhang et al., NSDI'24): CLOCK whose kept keys stay where they are.

    oldest  [ passed ... ]  hand  [ ahead ... ]  newest

The hand takes the first key ahead whose bit is clear. New keys enter ahead of everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key


class Sieve(Tracked):
    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[Key, bool] = {}
        self._ahead: dict[Key, bool] = {}

    def _new(self, key: Key) -> None:
        self._ahead[key] = False

    def _hit(self, key: Key) -> None:
        (self._ahead if key in self._ahead else self._passed)[key] = True

    def _order(self) -> Iterator[Key]:
        for wanted in (False, True):
            rounds = chain(self._ahead.items(), self._passed.items())
            yield from (key for key, used in rounds if used is wanted)

    def _gone(self, key: Key) -> None:
        """Walk the hand to the key; what it passes loses its bit."""
        while True:
            if not self._ahead:
                self._ahead, self._passed = self._passed, {}
            front = next(iter(self._ahead))
            used = self._ahead.pop(front)
            if front == key and not used:
                return
            self._passed[front] = False
