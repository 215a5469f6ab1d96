"""Eviction policies: which of the blocks that nobody uses goes first. One file a policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vllm.kv.evict.lru import LRU
from vllm.kv.lineage import Key


class EvictionPolicy(Protocol):
    """Ranks the evictable keys. The engine and the laboratory use the same objects.

    Only keys that may go now are inside: a key enters when its last user leaves and is removed when
    it is used again. Users release a sequence's blocks last one first, so that a chain's end is
    always offered before its beginning.
    """

    def insert(self, key: Key) -> None:
        """The key may be evicted from now on; it was just used."""
        ...

    def touch(self, key: Key) -> None:
        """The key was used, though it stays evictable."""
        ...

    def remove(self, key: Key) -> None:
        """The key is in use again, or gone. KeyError when it is not inside."""
        ...

    def victims(self) -> Iterator[Key]:
        """The keys in the order in which they should go; the caller removes those that it takes."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...


POLICIES: dict[str, type[EvictionPolicy]] = {"lru": LRU}
