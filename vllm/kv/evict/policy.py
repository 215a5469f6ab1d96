"""What an eviction policy is asked, and what it may know. See `EvictionPolicy`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from vllm.core.retention import DEFAULT_PRIORITY
from vllm.kv.lineage import Key


class Use(NamedTuple):
    """All that is known of one use of one block. Fields that the caller does not know stay."""

    time: float = 0.0  # seconds of the caller's clock, never going backwards
    parent: Key | None = None  # the block before it in its chain; None: it is the first
    depth: int = 0  # how many blocks are before it
    workload: str = ""  # what kind of request used it, in the client's words
    session: str = ""
    cost: float = 1.0  # of computing it again, relative to the other blocks'
    priority: int = DEFAULT_PRIORITY
    expires: float = math.inf  # when the priority falls to the default; same clock as `time`


UNKNOWN = Use()


class EvictionPolicy(Protocol):
    """Ranks keys for eviction. The engine and the laboratory use the same objects.

        insert          remove
    new ----> evictable ----> in use       insert again: that use is a hit
                  |  <---- insert |
                evict           evict
                  v               v
                gone: a policy may remember such keys as ghosts, but only boundedly many

    A class without constructor arguments. A policy never reads a clock: time comes with each use
    and with `victims`. It needs no capacity either: shares are shares of the most keys that it
    has ever had (evictable and in use), which is the cache's capacity once that has been full.

    Calls cost O(1) or O(log n), `victims` that much for each key taken. A policy ranks single
    keys; that a chain's end goes before its beginning is seen to by `LeafFirst`, which the engine
    puts around every policy (see `make`), and by the callers' habit of inserting the last block
    of a sequence first. A replay that wants a policy as it was published uses its class alone.
    """

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        """The key may be evicted from now on; it was used until just now. It is not inside."""
        ...

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        """The key was used, though it stays evictable. KeyError when it is not inside."""
        ...

    def remove(self, key: Key) -> None:
        """The key is in use, and cannot go. KeyError when it is not inside."""
        ...

    def evict(self, key: Key) -> None:
        """The key has left the cache, from inside or while it was in use."""
        ...

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        """The keys inside, in the order in which they should go. Changes nothing.

        The caller passes over those that it cannot let go, and calls `evict` for those that went,
        after it has stopped iterating. `now` is the caller's time, if it has one.
        """
        ...

    def check(self) -> None:
        """AssertionError unless every invariant holds; may take O(n)."""
        ...

    def __len__(self) -> int:
        """How many keys are inside: evictable, not those in use."""
        ...

    def __contains__(self, key: object) -> bool: ...
