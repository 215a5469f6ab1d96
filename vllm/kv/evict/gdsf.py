"""GDSF (Cherkasova, 1998): frequency, aged by the rank of what was evicted last.

All blocks are of one size and cost, so the rank is the age at the last use plus the uses.
"""

from __future__ import annotations

from vllm.kv.evict.ranked import Ranked
from vllm.kv.lineage import Key


class GDSF(Ranked):
    def __init__(self) -> None:
        super().__init__()
        self._uses: dict[Key, int] = {}
        self._age = 0.0

    def _rank(self, key: Key) -> float:
        self._uses[key] = self._uses.get(key, 0) + 1
        return self._age + self._uses[key]

    def _gone(self, key: Key) -> None:
        self._age = max(self._age, self.rank(key))
        del self._uses[key]
        super()._gone(key)
