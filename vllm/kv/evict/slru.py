"""Segmented LRU (Karedla et al., 1994): a key must be used twice to be protected."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key

PROTECTED = 0.8  # of all keys


class SLRU(Tracked):
    """New keys stand on probation; the protected segment's oldest fall back to it."""

    def __init__(self) -> None:
        super().__init__()
        self._probation: OrderedDict[Key, None] = OrderedDict()
        self._protected: OrderedDict[Key, None] = OrderedDict()

    def _new(self, key: Key) -> None:
        self._probation[key] = None

    def _hit(self, key: Key) -> None:
        self._probation.pop(key, None)
        self._protected[key] = None
        self._protected.move_to_end(key)
        while len(self._protected) > max(1, int(PROTECTED * self.peak)):
            self._probation[self._protected.popitem(last=False)[0]] = None

    def _order(self) -> Iterator[Key]:
        yield from self._probation
        yield from self._protected

    def _gone(self, key: Key) -> None:
        del (self._probation if key in self._probation else self._protected)[key]
