"""Who used which block last, and what was asked for it: what the eviction policies are told."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial

from vllm.core.retention import DEFAULT_PRIORITY, NO_HINTS, CacheHints, Retention
from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key

_use = partial(tuple.__new__, Use)  # without the detour through Python that `Use(...)` is

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

    def used(self, keys: Sequence[Key], hints: CacheHints = NO_HINTS) -> list[Use]:
        """A request is done with these blocks, which begin a chain: its use of each.

        The last one's is the oldest. What others asked for a block holds until it expires.
        """
        now, workload, session = self.now, hints.workload, hints.session
        uses, made = self._uses, []
        for depth in range(len(keys) - 1, -1, -1):
            key, priority, expires = keys[depth], DEFAULT_PRIORITY, math.inf
            known = uses.get(key)
            if known is not None:
                uses.move_to_end(key)
                if known.priority != DEFAULT_PRIORITY:
                    priority, expires = self._still(known)
            if hints.retention:
                priority, expires = self._asked(hints, depth, priority, expires)
            parent = keys[depth - 1] if depth else None
            use = _use((now, parent, depth, workload, session, 1.0, priority, expires))
            uses[key] = use
            made.append(use)
        self._forget()
        made.reverse()
        return made

    def _still(self, known: Use) -> tuple[int, float]:
        """What holds of a priority that was given before."""
        if known.expires <= self.now or known.priority == FIRST_TO_GO:
            return DEFAULT_PRIORITY, math.inf
        return known.priority, known.expires

    def _asked(
        self, hints: CacheHints, depth: int, priority: int, expires: float
    ) -> tuple[int, float]:
        """What holds when the request asks for more than that."""
        asked, ttl = wish(hints.retention, depth * self._block_size)
        if asked == DEFAULT_PRIORITY or (priority != DEFAULT_PRIORITY and asked < priority):
            return priority, expires
        if asked == priority:
            return priority, max(expires, self.now + ttl)
        return asked, self.now + ttl

    def rank(self, key: Key, priority: int, expires: float) -> Use:
        """Give the block a priority whatever was asked for before."""
        use = self._uses[key] = self.last(key)._replace(priority=priority, expires=expires)
        self._uses.move_to_end(key)
        self._forget()
        return use

    def last(self, key: Key) -> Use:
        return self._uses.get(key, UNKNOWN)

    def _forget(self) -> None:
        for _ in range(len(self._uses) - self.limit):
            self._uses.popitem(last=False)

    def __len__(self) -> int:
        return len(self._uses)
