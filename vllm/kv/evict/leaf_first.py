"""A chain's end goes before its beginning, whatever the policy inside says.

A block whose parent is gone can never be found again, so a parent never goes while a child that
could go is left: when the policy offers a parent, its descendants are offered before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm.kv.evict.banded import Banded
from vllm.kv.evict.policy import UNKNOWN, Use
from vllm.kv.lineage import Key


class LeafFirst:
    """Wraps a policy. Knows the parents of the keys inside, and of no others."""

    def __init__(self, policy: Banded) -> None:
        self.policy = policy
        self._parents: dict[Key, Key] = {}
        self._children: dict[Key, dict[Key, None]] = {}  # by parent, inside or not; none is empty

    def insert(self, key: Key, use: Use = UNKNOWN) -> None:
        self.insert_all([(key, use)])

    def insert_all(self, used: Sequence[tuple[Key, Use]]) -> None:
        """Insert each, in this order."""
        self.policy.insert_all(used)
        parents, children = self._parents, self._children
        for key, use in used:
            parent = use.parent
            if parent is not None:
                parents[key] = parent
                siblings = children.get(parent)
                if siblings is None:
                    children[parent] = {key: None}
                else:
                    siblings[key] = None

    def touch(self, key: Key, use: Use = UNKNOWN) -> None:
        self.policy.touch(key, use)

    def remove(self, key: Key) -> None:
        self.policy.remove(key)
        self._unlink(key)

    def evict(self, key: Key) -> None:
        self.evict_all([key])

    def evict_all(self, keys: Sequence[Key]) -> None:
        self.policy.evict_all(keys)
        for key in keys:
            self._unlink(key)

    def _unlink(self, key: Key) -> None:
        parent = self._parents.pop(key, None)
        if parent is not None:
            children = self._children[parent]
            if len(children) == 1:
                del self._children[parent]
            else:
                del children[key]

    def victims(self, now: float = 0.0) -> Iterator[Key]:
        told: set[Key] = set()
        for key in self.policy.victims(now):
            if key in told:
                continue
            children = self._children.get(key)
            if children is None or told.issuperset(children):  # as in an order that is closed
                told.add(key)
                yield key
            else:
                yield from self._family(key, told)

    def _family(self, key: Key, told: set[Key]) -> Iterator[Key]:
        """The key behind its descendants that have not been told; a chain may be long."""
        stack = [key]
        while stack:
            left = [k for k in self._children.get(stack[-1], ()) if k not in told]
            if left:
                stack += left
                continue
            told.add(stack[-1])
            yield stack.pop()

    def check(self) -> None:
        self.policy.check()
        assert all(key in self.policy for key in self._parents)
        links = {(key, parent) for key, parent in self._parents.items()}
        assert links == {(c, p) for p, children in self._children.items() for c in children}

    def __len__(self) -> int:
        return len(self.policy)

    def __contains__(self, key: object) -> bool:
        return key in self.policy
