"""What a tier holds and which of it goes first: the bookkeeping that all tiers share.

Belongs to the engine's loop; the mover's threads never touch it. A key on a shelf is

    storing --> spare   it is on the device too; nothing is lost with it, so it goes before any sole
                  ^ |
                  | v
                 sole   it is here and not on the device; ranked by the eviction policy

or, from either of these, bad: a read of it failed. It is not looked for any more, and goes first.
Pinned by transfers that read it, it keeps its place and may not go. A key that goes is `going`
until the tier has deleted it, and is not written again before that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from vllm.kv.evict import EvictionPolicy
from vllm.kv.lineage import Key
from vllm.kv.retention import Uses
from vllm.kv.tiers import Tier

BATCH = 16  # blocks a job: enough to be worth a thread's while, few enough to spread over threads


class Shelf:
    """`capacity` blocks."""

    def __init__(self, capacity: int, policy: EvictionPolicy, uses: Uses) -> None:
        self.capacity = capacity
        self._uses = uses
        self._storing: set[Key] = set()
        self._spare: OrderedDict[Key, None] = OrderedDict()
        self._sole = policy
        self._bad: OrderedDict[Key, None] = OrderedDict()
        self._going: set[Key] = set()  # these have no place any more: their place is given away
        self._pins: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._storing) + len(self._spare) + len(self._sole) + len(self._bad)

    def __contains__(self, key: Key) -> bool:
        """Whether the key can be read from here."""
        return key in self._spare or key in self._sole

    def readable(self) -> list[Key]:
        """All that can be read from here, in no order."""
        return [*self._spare, *self._sole.victims(self._uses.now)]

    def knows(self, key: Key) -> bool:
        """Whether the key is here, or may not be written now."""
        return (
            key in self
            or key in self._storing
            or key in self._going
            or (key in self._bad and key in self._pins)
        )

    def adopt(self, keys: Iterable[Key]) -> list[Key]:
        """Take over what was here before this process, oldest first; returns what has no room."""
        ordered = list(keys)
        keep = ordered[max(0, len(ordered) - self.capacity) :]
        for key in keep:
            self._sole.insert(key, self._uses.last(key))
        return ordered[: len(ordered) - len(keep)]

    def reserve(self, key: Key) -> list[Key] | None:
        """Room for a key that will be written: the keys to delete before, or None: not now.

        Those are to be reported by `deleted` when that is done.
        """
        if self.knows(key):
            return None
        victims: list[Key] = []
        if key in self._bad:
            victims.append(key)
        elif len(self) >= self.capacity:
            victim = next(self._victims(), None)
            if victim is None:
                return None
            victims.append(victim)
        for gone in victims:
            self._remove(gone)
            self._going.add(gone)
        self._storing.add(key)
        return victims

    def learn(self, key: Key, *, on_device: bool) -> None:
        """Somebody else has written the key. What there is no room for is not known any more."""
        if self.knows(key):
            return
        if key not in self._bad and len(self) >= self.capacity:
            victim = next(self._victims(), None)
            if victim is None:
                return
            self._remove(victim)
        self._bad.pop(key, None)
        self._put(key, on_device)

    def deleted(self, keys: Iterable[Key]) -> None:
        self._going.difference_update(keys)

    def keep(self, key: Key, *, on_device: bool, bad: bool) -> None:
        """A key that was to go is still there: nothing was written in its place."""
        self._going.remove(key)
        if bad:
            self._bad[key] = None
        else:
            self._put(key, on_device)

    @property
    def reservable(self) -> int:
        """How many keys could be reserved now, one after the other."""
        return self.capacity - len(self._storing) - len(self._pins)

    @property
    def room(self) -> int:
        """How many keys would push none out."""
        return self.capacity - len(self)

    def discard(self, key: Key) -> None:
        """Forget a key that is here, and not pinned; the caller deletes it."""
        assert key not in self._pins
        self._remove(key)

    def rank_anew(self, key: Key) -> None:
        """What is known of the key's use has changed."""
        if key in self._sole:
            self._sole.remove(key)
            self._sole.insert(key, self._uses.last(key))

    def _victims(self) -> Iterator[Key]:
        for group in (self._bad, self._spare, self._sole.victims(self._uses.now)):
            for key in group:
                if key not in self._pins:
                    yield key

    def next_sole(self, count: int) -> list[Key]:
        """The next `count` keys that would be lost here, for the tier below to take."""
        unpinned = (k for k in self._sole.victims(self._uses.now) if k not in self._pins)
        return list(islice(unpinned, count))

    def stored(self, key: Key, *, on_device: bool) -> None:
        """The write has succeeded."""
        self._storing.remove(key)
        self._put(key, on_device)

    def _put(self, key: Key, on_device: bool) -> None:
        if on_device:
            self._spare[key] = None
        else:
            self._sole.insert(key, self._uses.last(key))

    def failed(self, key: Key) -> None:
        """The write has not succeeded; the key is not here."""
        self._storing.discard(key)

    def spoil(self, key: Key) -> None:
        """A read has not succeeded."""
        if key in self:
            self._remove(key)
            self._bad[key] = None

    def _remove(self, key: Key) -> None:
        self._sole.evict(key)
        self._spare.pop(key, None)
        self._bad.pop(key, None)

    def device_has(self, key: Key) -> None:
        """The key is on the device now, so this copy is to spare."""
        if key in self._sole:
            self._sole.remove(key)
            self._spare[key] = None

    def device_lost(self, key: Key) -> None:
        """The device has evicted the key: this copy is the one that is left, and was just used."""
        if key in self._spare:
            del self._spare[key]
            self._sole.insert(key, self._uses.last(key))

    def pin(self, key: Key) -> None:
        """Keep the key, at its place in the order, while it is read."""
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: Key) -> None:
        self._pins[key] -= 1
        if self._pins[key] == 0:
            del self._pins[key]

    def clear(self) -> list[Key]:
        """Forget every key that is not pinned or being written; returns them, to be deleted."""
        gone = list(self._victims())
        for key in gone:
            self._remove(key)
        return gone

    def check(self) -> None:
        """AssertionError unless the states are disjoint and within the capacity."""
        assert len(self) <= self.capacity
        self._sole.check()
        for key in self._pins:
            assert key in self or key in self._bad, "a pinned key stays"
        for key in self._storing:
            assert key not in self
            assert key not in self._bad
        for key in (*self._spare, *self._bad):
            assert key not in self._sole
        assert not self._spare.keys() & self._bad.keys()
        assert not any(key in self for key in self._going)


@dataclass(slots=True)
class Level:
    """One tier and its bookkeeping.

    To a shared one others write as well. It keeps itself within its bounds, and its shelf is only
    what is known of it: by stores of our own, and by asking (see `kv.seek`).
    """

    tier: Tier
    shelf: Shelf
    shared: bool = False
