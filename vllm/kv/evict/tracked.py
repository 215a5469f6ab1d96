"""What policies with a memory share: they rank all cached keys, and offer those that may go.

        insert                 remove
  new --------> evictable <--------------> in use          remove: used again; insert: a hit
                    |        insert
                  evict
                    v
                  gone (a ghost, for those that remember)

A key keeps its rank while it is in use. Sizes are shares of the most keys that there ever were,
which is the cache's capacity once it has been full.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key


class Tracked(ABC):
    """A policy made of four moves: a new key, a hit, a key that is gone, and the order."""

    def __init__(self) -> None:
        self._evictable: set[Key] = set()
        self._in_use: set[Key] = set()
        self.peak = 0
        self.use = UNKNOWN  # the one that `_new` or `_hit` is told of

    @abstractmethod
    def _new(self, key: Key) -> None: ...

    @abstractmethod
    def _hit(self, key: Key) -> None: ...

    @abstractmethod
    def _gone(self, key: Key) -> None: ...

    @abstractmethod
    def _order(self) -> Iterator[Key]:
        """All keys, the next to go first. Changes nothing."""

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        assert key not in self._evictable, "a key is inserted once"
        self.use = use
        self._evictable.add(key)
        if key in self._in_use:
            self._in_use.remove(key)
            self._hit(key)
        else:
            self.peak = max(self.peak, len(self._evictable) + len(self._in_use))
            self._new(key)

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        if key not in self._evictable:
            raise KeyError(key)
        self.use = use
        self._hit(key)

    def remove(self, key: Key) -> None:
        self._evictable.remove(key)
        self._in_use.add(key)

    def evict(self, key: Key) -> None:
        if key in self._evictable:
            self._evictable.remove(key)
        elif key in self._in_use:
            self._in_use.remove(key)
        else:
            return
        self._gone(key)

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        return (key for key in self._order() if key in self._evictable)

    def check(self) -> None:
        assert not self._evictable & self._in_use
        ordered = list(self._order())
        assert len(ordered) == len(set(ordered)), "a key has one place"
        assert set(ordered) == self._evictable | self._in_use, "every cached key has a place"

    def __len__(self) -> int:
        return len(self._evictable)

    def __contains__(self, key: object) -> bool:
        return key in self._evictable
