"""Session-aware eviction: how long a conversation has gone on tells whether it goes on.

What workload-aware eviction learns of each workload is learnt here of each workload and turn: what
share of the blocks is used again, and when (Learned Prefix Caching, NeurIPS'25, predicts the same
from a conversation's text). A turn is a use of any block in a session at a time of its own.
"""

from __future__ import annotations

from collections import OrderedDict

from vllm.kv.evict.policy import Use
from vllm.kv.evict.workload import WorkloadAware

MAX_SESSIONS = 1 << 16  # the one that was used longest ago begins anew
MOST_TURNS = 8  # from here on all are alike


class SessionAware(WorkloadAware):
    def __init__(self) -> None:
        super().__init__()
        self._turns: OrderedDict[str, tuple[int, float]] = OrderedDict()  # turns, last one's time

    def _name(self, use: Use) -> str:
        if not use.session:
            return use.workload
        turns, last = self._turns.get(use.session, (0, -1.0))
        if use.time > last:
            turns, last = min(turns + 1, MOST_TURNS), use.time
            self._turns[use.session] = turns, last
            self._turns.move_to_end(use.session)
            if len(self._turns) > MAX_SESSIONS:
                self._turns.popitem(last=False)
        return f"{use.workload}#{turns}"

    def check(self) -> None:
        super().check()
        assert len(self._turns) <= MAX_SESSIONS
        assert all(1 <= turns <= MOST_TURNS for turns, _ in self._turns.values())
