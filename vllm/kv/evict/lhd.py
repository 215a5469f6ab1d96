"""LHD (Beckmann, Chen and Cidon, NSDI'18): the least hits to expect for the time they will take.

A key's class is how often it has been used, its age the uses of other keys since. What has become
of earlier keys of a class at each age gives the hits to expect from one that has grown so old,
divided by how long it will still be there: its hit density. The lowest of a sample goes first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key

CLASSES, AGES = 4, 128
SAMPLE = 32  # as many as LHD's authors draw
FADE = 0.9  # of what was counted, at each new reckoning


@dataclass(slots=True)
class _Entry:
    uses: int
    last: int  # by the clock of uses


class LHD:
    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}  # all cached keys
        self._keys: list[Key] = []  # the evictable ones, in any order
        self._slot: dict[Key, int] = {}
        self._clock = 0
        self._peak = 0
        self._step = 1  # uses in one unit of age
        self._due = 256  # the next reckoning
        self._hits = [[0.0] * AGES for _ in range(CLASSES)]
        self._gone = [[0.0] * AGES for _ in range(CLASSES)]
        # Until something has been learnt, the older the less.
        self._density = [[1.0 / (age + 1) for age in range(AGES)] for _ in range(CLASSES)]

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        assert key not in self._slot, "a key is inserted once"
        self._slot[key] = len(self._keys)
        self._keys.append(key)
        self._used(key)

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        if key not in self._slot:
            raise KeyError(key)
        self._used(key)

    def _used(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(1, self._clock)
            self._peak = max(self._peak, len(self._entries))
        else:
            self._hits[self._class(entry)][self._age(entry)] += 1
            entry.uses += 1
            entry.last = self._clock
        self._clock += 1
        if self._clock >= self._due:
            self._reckon()

    def remove(self, key: Key) -> None:
        slot, last = self._slot.pop(key), self._keys.pop()
        if last != key:
            self._keys[slot] = last
            self._slot[last] = slot

    def evict(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if key in self._slot:
            self.remove(key)
        self._gone[self._class(entry)][self._age(entry)] += 1

    def _class(self, entry: _Entry) -> int:
        return min(CLASSES - 1, entry.uses.bit_length() - 1)

    def _age(self, entry: _Entry) -> int:
        return min(AGES - 1, (self._clock - entry.last) // self._step)

    def _reckon(self) -> None:
        """Densities anew from what was counted: sums from the highest age down."""
        self._due = self._clock + max(256, self._peak)
        for hits, gone, density in zip(self._hits, self._gone, self._density, strict=True):
            ended = hit = lifetime = 0.0
            for age in reversed(range(AGES)):
                hit += hits[age]
                ended += hits[age] + gone[age]
                lifetime += ended
                if ended:
                    density[age] = hit / lifetime
        # Ages reach over four times what the cache holds; another unit makes the counts others.
        step = max(1, 4 * self._peak // AGES)
        fade = FADE if step == self._step else 0.0
        self._step = step
        for rows in (self._hits, self._gone):
            rows[:] = [[fade * count for count in row] for row in rows]

    def _rank(self, key: Key) -> tuple[float, int]:
        entry = self._entries[key]
        return self._density[self._class(entry)][self._age(entry)], entry.last

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        """The lowest of a sample, until half are told; the rest in order. Draws by the clock."""
        draw = random.Random(self._clock).randrange
        keys, told = self._keys, set[Key]()
        while 2 * len(told) < len(keys) - SAMPLE:
            sample = {keys[draw(len(keys))] for _ in range(SAMPLE)} - told
            if sample:
                lowest = min(sample, key=self._rank)
                told.add(lowest)
                yield lowest
        yield from sorted((key for key in keys if key not in told), key=self._rank)

    def check(self) -> None:
        assert all(self._keys[slot] == key for key, slot in self._slot.items())
        assert len(self._keys) == len(self._slot)
        assert self._slot.keys() <= self._entries.keys()
        assert len(self._entries) <= self._peak

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._slot
