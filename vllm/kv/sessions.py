"""Conversations by the client's own name, so that it can say what is to become of their blocks.

pin       they go last, for so long          demote    they go first, to the slower tiers
prefetch  they come up to the device         release   they are as all others again
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from vllm.kv.lineage import Key

VERBS = ("pin", "demote", "prefetch", "release")
MAX_SESSIONS = 4096


class Sessions:
    """The blocks of each session's latest turn; `limit` keys in all, oldest sessions forgotten.

    A session is named by the root of its keys too, so nobody reaches another tenant's by its name.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._keys: OrderedDict[tuple[Key, str], tuple[Key, ...]] = OrderedDict()
        self._count = 0

    def note(self, root: Key, name: str, keys: Sequence[Key]) -> None:
        self._count += len(keys) - len(self._keys.pop((root, name), ()))
        self._keys[root, name] = tuple(keys)
        while self._keys and (self._count > self.limit or len(self._keys) > MAX_SESSIONS):
            self._count -= len(self._keys.popitem(last=False)[1])

    def keys(self, root: Key, name: str) -> tuple[Key, ...]:
        return self._keys.get((root, name), ())

    def clear(self) -> None:
        self._keys.clear()
        self._count = 0

    def check(self) -> None:
        assert self._count == sum(map(len, self._keys.values())) <= max(self.limit, 0)
