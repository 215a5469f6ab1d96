"""Who used which block last, and what was asked for it: what the eviction policies are told."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache

from vllm.core.retention import DEFAULT_PRIORITY, NO_HINTS, CacheHints, Retention
from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key

FIRST_TO_GO, LAST_TO_GO = -1, 101  # outside of what requests can ask for: `release` and `pin`


@lru_cache(maxsize=1024)
def wish(ranges: tuple[Retention, ...], first_token: int) -> tuple[int, float]:
    """(priority, ttl in seconds) of a block that begins at this token.

    A block is only worth as much as what comes before it is there, so a range's priority holds for
    all before its end too, as far as that is not asked to go sooner itself. Where ranges overlap
    the highest priority wins, and the longest time of all that reach so far.
    """
    found, ttl = None, 0.0
    for each in ranges:
        end = math.inf if each.end is None else each.end
        if first_token >= end or (first_token < each.start and each.priority <= DEFAULT_PRIORITY):
            continue
        found = each.priority if found is None else max(found, each.priority)
        ttl = max(ttl, math.inf if each.ttl is None else each.ttl)
    return (DEFAULT_PRIORITY, math.inf) if found is None else (found, ttl)


class Uses:
    """The last use of each block that a tier may have; at most `limit`, oldest forgotten first.

    What has been forgotten is unknown to the policies, and nothing else. `now` is the engine's
    time in seconds; policies have no other.
    """

    def __init__(self, limit: int, block_size: int) -> None:
        self.limit = limit
        self.now = 0.0
        self._block_size = block_size
        self._uses: OrderedDict[Key, Use] = OrderedDict()

    def used(self, key: Key, parent: Key | None, depth: int, hints: CacheHints = NO_HINTS) -> Use:
        """A request is done with the block. What others asked for it holds until it expires."""
        known = self._uses.get(key, UNKNOWN)
        priority, expires = known.priority, known.expires
        if expires <= self.now or priority == FIRST_TO_GO:
            priority, expires = DEFAULT_PRIORITY, math.inf
        if hints.retention:
            asked, ttl = wish(hints.retention, depth * self._block_size)
            if asked != DEFAULT_PRIORITY:
                if priority == DEFAULT_PRIORITY or asked > priority:
                    priority, expires = asked, self.now + ttl
                elif asked == priority:
                    expires = max(expires, self.now + ttl)
        use = Use(self.now, parent, depth, hints.workload, hints.session, 1.0, priority, expires)
        self._keep(key, use)
        return use

    def rank(self, key: Key, priority: int, expires: float) -> Use:
        """Give the block a priority whatever was asked for before."""
        use = self._uses.get(key, UNKNOWN)._replace(priority=priority, expires=expires)
        self._keep(key, use)
        return use

    def last(self, key: Key) -> Use:
        return self._uses.get(key, UNKNOWN)

    def _keep(self, key: Key, use: Use) -> None:
        self._uses[key] = use
        self._uses.move_to_end(key)
        if len(self._uses) > self.limit:
            self._uses.popitem(last=False)

    def __len__(self) -> int:
        return len(self._uses)
