"""Priorities: all keys of a lower one go before any of a higher one.

Each priority that is in use has a policy of its own. A priority that was given for a time falls
back to the default one when that has passed, as if the key had been used then.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from vllm.core.retention import DEFAULT_PRIORITY
from vllm.kv.evict.policy import UNKNOWN, EvictionPolicy, Use
from vllm.kv.lineage import Key


class Banded:
    """Policies by priority. Keys of the default one are in no table here: they cost nothing."""

    def __init__(self, make: Callable[[], EvictionPolicy]) -> None:
        self._make = make
        self._usual = make()
        self._bands: dict[int, EvictionPolicy] = {DEFAULT_PRIORITY: self._usual}
        self._special: dict[Key, tuple[int, Use]] = {}  # band and last use; inside or in use
        self._expiry: list[tuple[float, Key]] = []  # a heap; stale once the key's use is another

    def _band(self, key: Key) -> EvictionPolicy:
        special = self._special.get(key)
        return self._usual if special is None else self._bands[special[0]]

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        if use.time:
            self._expire(use.time)
        priority = use.priority if use.expires > use.time else DEFAULT_PRIORITY
        before = self._special.get(key)
        if before is None and priority == DEFAULT_PRIORITY:
            self._usual.insert(key, use)
            return
        if (before[0] if before else DEFAULT_PRIORITY) != priority:
            self._band(key).evict(key)
        self._special.pop(key, None)
        if priority != DEFAULT_PRIORITY:
            self._special[key] = priority, use
            if priority not in self._bands:
                self._bands[priority] = self._make()
            if use.expires < math.inf:
                heapq.heappush(self._expiry, (use.expires, key))
                self._sweep()
        self._bands[priority].insert(key, use)

    def insert_all(self, used: Iterable[tuple[Key, Use]]) -> None:
        """Insert each, in this order."""
        usual = self._usual.insert
        for key, use in used:
            if use.priority == DEFAULT_PRIORITY and not self._special:
                usual(key, use)
            else:
                self.insert(key, use)

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        self._band(key).touch(key, use)

    def remove(self, key: Key) -> None:
        self._band(key).remove(key)

    def evict(self, key: Key) -> None:
        self._band(key).evict(key)
        self._special.pop(key, None)

    def evict_all(self, keys: Iterable[Key]) -> None:
        evict = self.evict if self._special else self._usual.evict
        for key in keys:
            evict(key)

    def _expire(self, now: float) -> None:
        while self._expiry and self._expiry[0][0] <= now:
            expires, key = heapq.heappop(self._expiry)
            special = self._special.get(key)
            if special is None or special[1].expires != expires:
                continue
            band, use = self._bands[special[0]], special[1]
            if key in band:  # in use, it is looked at when it is inserted again
                del self._special[key]
                band.evict(key)
                self._usual.insert(key, use)

    def _sweep(self) -> None:
        if len(self._expiry) > 2 * len(self._special) + 64:
            self._expiry = [
                (use.expires, key)
                for key, (_, use) in self._special.items()
                if use.expires < math.inf
            ]
            heapq.heapify(self._expiry)

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        if self._expiry:
            self._expire(now)
        if len(self._bands) == 1:
            return self._usual.victims(now)
        bands = [self._bands[priority] for priority in sorted(self._bands)]
        return chain.from_iterable(band.victims(now) for band in bands)

    def check(self) -> None:
        for priority, band in self._bands.items():
            band.check()
            if priority != DEFAULT_PRIORITY:
                assert all(self._special[key][0] == priority for key in band.victims())
        timed = {(use.expires, key) for key, (_, use) in self._special.items()}
        due = set(self._expiry)
        assert all(pair in due for pair in timed if pair[0] < math.inf and pair[1] in self)

    def __len__(self) -> int:
        if len(self._bands) == 1:
            return len(self._usual)
        return sum(len(band) for band in self._bands.values())

    def __contains__(self, key: object) -> bool:
        special = self._special.get(key)  # type: ignore[call-overload]
        return key in (self._usual if special is None else self._bands[special[0]])
