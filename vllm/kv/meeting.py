"""Prompts that are computed from the front while their end is loaded (Cake, arXiv 2410.03065).

For a tier about as slow as computing: both together take less time than either. The sequence runs
at once with what the device has; the end comes up behind it, held, and in nobody's table. When it
is there and the front has come so far, it takes the place of the blocks that were to be computed.
Where a load fails the sequence has lost nothing: it computes on.

    | on the device | front: computed meanwhile | end: on its way |
    0                                           begin             end
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllm.kv.hierarchy import Hierarchy, Hit
from vllm.kv.index import BlockId, Index
from vllm.kv.pool import BlockPool

PARTS = 8  # a front that is there first goes on by so small a part of what is left of the end


@dataclass(slots=True)
class Meeting:
    begin: int  # tokens
    end: int
    hits: list[Hit]
    held: list[BlockId]


class Meetings:
    """Those under way, by sequence."""

    def __init__(self, tiers: Hierarchy, pool: BlockPool, index: Index, block_size: int) -> None:
        self._tiers, self._pool, self._index = tiers, pool, index
        self._size = block_size
        self._meetings: dict[int, Meeting] = {}

    def __len__(self) -> int:
        return len(self._meetings)

    def arrange(self, seq: int, begin: int, hits: Sequence[Hit]) -> None:
        """Load these, which follow `begin` tokens, for a sequence that computes what is before."""
        held = self._tiers.bring((hit.key for hit in hits), self._pool.available)
        end = begin + len(hits) * self._size
        self._meetings[seq] = Meeting(begin, end, list(hits), held)

    def front(self, seq: int, computed: int) -> int | None:
        """At most how many tokens to compute next, so as not to miss it; None: any number."""
        meeting = self._meetings.get(seq)
        if meeting is None:
            return None
        if computed < meeting.begin:
            return meeting.begin - computed
        return max(1, (meeting.end - computed) // PARTS // self._size) * self._size

    def met(self, seq: int, computed: int) -> int | None:
        """Where a sequence that has computed so many tokens may go on, further than there."""
        meeting = self._meetings.get(seq)
        if meeting is None or computed < meeting.begin:
            return None
        if any(hit.key in self._tiers.loads for hit in meeting.hits):
            if computed + self._size >= meeting.end:
                self.drop(seq)
            return None
        there = all(self._index.block(hit.key) is not None for hit in meeting.hits)
        if there and computed + self._size < meeting.end:
            return meeting.end
        self.drop(seq)
        return None

    def sources(self, seq: int, computed: int) -> Counter[str]:
        """By tier, the tokens of the end that are not computed yet."""
        meeting = self._meetings[seq]
        left = meeting.hits[-((meeting.end - computed) // self._size) :]
        return Counter({tier: n * self._size for tier, n in Counter(h.tier for h in left).items()})

    def drop(self, seq: int) -> None:
        """The sequence has met it, has passed it, or is gone; what has come stays cached."""
        meeting = self._meetings.pop(seq, None)
        if meeting is not None:
            self._pool.release(reversed(meeting.held))

    def blocks(self) -> list[BlockId]:
        """One for each reference that is held."""
        return [block for meeting in self._meetings.values() for block in meeting.held]
