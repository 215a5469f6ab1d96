"""Blocks that come up before their request runs, and stay until it does or is out of sight."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.kv.hierarchy import Hierarchy
from vllm.kv.index import BlockId
from vllm.kv.lineage import Key
from vllm.kv.pool import BlockPool

WATERMARK = 0.1  # share of the device's blocks that prefetching leaves to those who run


class Prefetch:
    """Holds one reference to each block of what it has brought, by the sequence it is meant for."""

    def __init__(self, tiers: Hierarchy, pool: BlockPool) -> None:
        self._tiers, self._pool = tiers, pool
        self._watermark = int(WATERMARK * pool.num_blocks)
        self._held: dict[int, list[BlockId]] = {}

    def want(self, seq: int, keys: Sequence[Key]) -> None:
        """Bring what of these keys is only in slower tiers, as far as there is room. Once."""
        if seq in self._held:
            return
        room = self._pool.available - self._watermark
        if room <= 0 or all(hit.tier == "device" for hit in self._tiers.find(keys)):
            return
        held = self._tiers.bring(keys, room)
        if held:
            self._held[seq] = held

    def keep_only(self, seqs: set[int]) -> None:
        """The window has moved on: give back what was meant for others."""
        for seq in [seq for seq in self._held if seq not in seqs]:
            self.drop(seq)

    def drop(self, seq: int) -> None:
        """The sequence holds what it needs itself, or does not come."""
        held = self._held.pop(seq, None)
        if held:
            self._pool.release(reversed(held))

    def drop_all(self) -> bool:
        """Room is needed by those who run. Whether that gave any back."""
        some = bool(self._held)
        self.keep_only(set())
        return some

    def blocks(self) -> list[BlockId]:
        return [block for held in self._held.values() for block in held]
