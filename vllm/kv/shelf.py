"""What a tier holds and which of it goes first: the bookkeeping that all tiers share.

Belongs to the engine's loop; the mover's threads never touch it. A key on a shelf is

    storing --> spare   it is on the device too; the first to go, since nothing is lost with it
                  ^ |
                  | v
                 sole   it is here and not on the device; ranked by the eviction policy

and, in either state, perhaps pinned by transfers that read it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from vllm.kv.evict import EvictionPolicy
from vllm.kv.lineage import Key


class Shelf:
    """`capacity` blocks."""

    def __init__(self, capacity: int, policy: EvictionPolicy) -> None:
        self.capacity = capacity
        self._storing: set[Key] = set()
        self._spare: OrderedDict[Key, None] = OrderedDict()
        self._sole = policy
        self._sole_pinned: set[Key] = set()
        self._pins: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._storing) + len(self._spare) + len(self._sole) + len(self._sole_pinned)

    def __contains__(self, key: Key) -> bool:
        """Whether the key can be read from here."""
        return key in self._spare or key in self._sole or key in self._sole_pinned

    def knows(self, key: Key) -> bool:
        """Whether the key is here or on its way."""
        return key in self._storing or key in self

    def adopt(self, keys: Iterable[Key]) -> list[Key]:
        """Take over what was here before this process, oldest first; returns what has no room."""
        ordered = list(keys)
        keep = ordered[max(0, len(ordered) - self.capacity) :]
        for key in keep:
            self._sole.insert(key)
        return ordered[: len(ordered) - len(keep)]

    def reserve(self, key: Key) -> list[Key] | None:
        """Room for a key that will be written: the keys to delete for it, or None: no room."""
        victims: list[Key] = []
        if len(self) >= self.capacity:
            victim = next(self._victims(), None)
            if victim is None:
                return None
            self.drop(victim)
            victims.append(victim)
        self._storing.add(key)
        return victims

    def _victims(self) -> Iterator[Key]:
        for key in self._spare:
            if key not in self._pins:
                yield key
        yield from self._sole.victims()  # pinned ones are not in the policy

    def next_sole(self, count: int) -> list[Key]:
        """The next `count` keys that would be lost here, for the tier below to take."""
        found: list[Key] = []
        for key in self._sole.victims():
            if len(found) == count:
                break
            found.append(key)
        return found

    def stored(self, key: Key, *, on_device: bool) -> None:
        """The write has succeeded."""
        self._storing.remove(key)
        if on_device:
            self._spare[key] = None
        else:
            self._sole.insert(key)

    def failed(self, key: Key) -> None:
        """The write has not succeeded; the key is not here."""
        self._storing.discard(key)

    def drop(self, key: Key) -> None:
        """The key is gone. One that is not here is fine."""
        if key in self._spare:
            del self._spare[key]
        elif key in self._sole:
            self._sole.remove(key)
        self._sole_pinned.discard(key)

    def device_has(self, key: Key) -> None:
        """The key is on the device now, so this copy is to spare."""
        if key in self._sole:
            self._sole.remove(key)
        elif key in self._sole_pinned:
            self._sole_pinned.remove(key)
        else:
            return
        self._spare[key] = None

    def device_lost(self, key: Key) -> None:
        """The device has evicted the key: this copy is the one that is left, and was just used."""
        if key in self._spare:
            del self._spare[key]
            if key in self._pins:
                self._sole_pinned.add(key)
            else:
                self._sole.insert(key)

    def pin(self, key: Key) -> None:
        """Keep the key while it is read."""
        self._pins[key] = self._pins.get(key, 0) + 1
        if key in self._sole:
            self._sole.remove(key)
            self._sole_pinned.add(key)

    def unpin(self, key: Key) -> None:
        self._pins[key] -= 1
        if self._pins[key] == 0:
            del self._pins[key]
            if key in self._sole_pinned:
                self._sole_pinned.remove(key)
                self._sole.insert(key)

    def clear(self) -> list[Key]:
        """Forget every key that is not pinned or being written; returns them, to be deleted."""
        gone = list(self._victims())
        for key in gone:
            self.drop(key)
        return gone

    def check(self) -> None:
        """AssertionError unless the states are disjoint and within the capacity."""
        assert len(self) <= self.capacity
        for key in self._pins:
            assert key not in self._sole, "a pinned key is not evictable"
        for key in self._sole_pinned:
            assert key in self._pins
            assert key not in self._spare
        for key in self._storing:
            assert key not in self
