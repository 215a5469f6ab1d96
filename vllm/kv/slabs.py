"""Slabs: whole blocks cut into head blocks, for sequences whose heads keep different amounts.

    pool --a block with one reference--> slab: L*H head blocks, each held or free --all free--> pool

Compacting a sequence inside its own blocks would give nothing back, because a block lives until its
last head has left it; head blocks of many sequences share slabs, so memory comes back whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vllm.kv.index import BlockId
from vllm.kv.pool import BlockPool


class Slabs:
    """Head blocks by number: that of block `b`, layer `l`, head `h` is `(b * L + l) * H + h`.

    Allocation is all or nothing; a refusal changes nothing.
    """

    def __init__(self, pool: BlockPool, heads: int) -> None:
        """heads: head blocks a block, layers times KV heads. ValueError when numbers overflow."""
        if pool.num_blocks * heads >= 2**31:
            raise ValueError(f"{pool.num_blocks} blocks of {heads} heads are too many head blocks")
        self._pool = pool
        self._heads = heads
        self._free: dict[BlockId, list[int]] = {}  # slab -> its free head blocks, perhaps none
        self._partial: dict[BlockId, None] = {}  # the slabs that have some
        self.remainder = 0  # free head blocks of all slabs

    def __len__(self) -> int:
        return len(self._free)

    @property
    def held(self) -> int:
        return len(self._free) * self._heads - self.remainder

    def blocks(self) -> Iterable[BlockId]:
        """The pool's blocks that are slabs; each is held once."""
        return self._free

    def blocks_for(self, count: int) -> int:
        """How many more blocks of the pool `count` head blocks take."""
        return max(0, -(-(count - self.remainder) // self._heads))

    def allocate(self, count: int) -> np.ndarray | None:
        """`count` head blocks, int32; None when there are too few."""
        new = self._pool.allocate(self.blocks_for(count))
        if new is None:
            return None
        for block in new:
            first = block * self._heads
            self._free[block] = list(range(first + self._heads - 1, first - 1, -1))  # a stack
            self._partial[block] = None
        self.remainder += len(new) * self._heads - count
        taken: list[int] = []
        while len(taken) < count:
            block = next(iter(self._partial))
            free = self._free[block]
            some = min(count - len(taken), len(free))
            taken += reversed(free[len(free) - some :])
            del free[len(free) - some :]
            if not free:
                del self._partial[block]
        return np.array(taken, dtype=np.int32)

    def adopt(self, blocks: list[BlockId]) -> np.ndarray:
        """Make slabs of blocks that the caller holds, and take all of their head blocks, int32."""
        taken = [np.arange(b * self._heads, (b + 1) * self._heads, dtype=np.int32) for b in blocks]
        self._free |= {block: [] for block in blocks}
        return np.concatenate(taken)

    def release(self, head_blocks: np.ndarray) -> None:
        """Give head blocks back, each once; slabs that are empty by that go back to the pool."""
        if not len(head_blocks):
            return
        ordered = np.sort(head_blocks)
        slabs, starts = np.unique(ordered // self._heads, return_index=True)
        for slab, mine in zip(slabs.tolist(), np.split(ordered, starts[1:]), strict=True):
            block = BlockId(slab)
            free = self._free[block]
            free += mine.tolist()
            assert len(free) <= self._heads, "a head block was given back twice"
            self.remainder += len(mine)
            self._partial[block] = None
            if len(free) == self._heads:
                del self._free[block], self._partial[block]
                self.remainder -= self._heads
                self._pool.release([block])

    def check(self, holders: Iterable[np.ndarray]) -> None:
        """AssertionError unless each head block of each slab is free or in one holder, once."""
        held = [i for ids in holders for i in ids.tolist()]
        free = [i for ids in self._free.values() for i in ids]
        slabs = [b * self._heads + i for b in self._free for i in range(self._heads)]
        assert sorted(held + free) == sorted(slabs), "free and held head blocks make up the slabs"
        assert len(free) == self.remainder
        assert self._partial.keys() == {b for b, ids in self._free.items() if ids}
        assert all(len(ids) < self._heads for ids in self._free.values()), "an empty slab is none"
