"""Compressed prefixes that many sequences share, each as a whole under a lossy key of its own.

A snapshot is a copy, packed into whole blocks that nobody writes; a sequence that begins with it
gets a copy of the copy, to go on behind. They live on the device alone. The longest unused go when
there are too many, and before any sequence has to wait for memory or is preempted.

All copies are made at once, between steps, when nobody writes to the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vllm.core.plan import BlockIO, Choice
from vllm.kv.heads import Heads
from vllm.kv.index import BlockId
from vllm.kv.lineage import Key
from vllm.kv.pool import BlockPool

SHARE = 4  # at most a quarter of the blocks


@dataclass(slots=True)
class Snapshot:
    blocks: list[BlockId]  # its head blocks, in the order of heads
    choice: Choice


class Snapshots:
    def __init__(self, pool: BlockPool, heads: Heads, io: BlockIO, block_size: int) -> None:
        self._pool, self._heads, self._io = pool, heads, io
        self._size = block_size
        self._kept: OrderedDict[Key, Snapshot] = OrderedDict()  # the longest unused first
        self._begun: dict[int, Choice] = {}  # what sequences that are here began with
        self.held = 0  # blocks

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Key) -> Snapshot | None:
        return self._kept.get(key)

    def missing(self, snapshot: Snapshot, tokens: int) -> int:
        """Blocks that a sequence takes at most that goes on behind it to `tokens` tokens."""
        return self._blocks_for(snapshot.choice.lengths + tokens - snapshot.choice.tokens)

    def _blocks_for(self, lengths: np.ndarray) -> int:
        return -(-int((-(-lengths // self._size)).sum()) // self._heads.per_block)

    def takes(self, blocks: int) -> bool:
        """Whether a snapshot of so many blocks is not too large to keep."""
        return blocks <= self._pool.num_blocks // SHARE

    def keep(self, key: Key, seq: int, choice: Choice) -> None:
        """Copy what a sequence has just been compressed to, if there is room for it."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        count = self._blocks_for(choice.lengths)
        if not self.takes(count):
            return
        self.give_up(self.held + count - self._pool.num_blocks // SHARE)
        blocks = self._pool.allocate(count)
        if blocks is None:
            return
        for block, blob in zip(blocks, self._heads.pack(seq, self._io.view), strict=True):
            self._io.view(block)[:] = blob
        self._kept[key] = Snapshot(blocks, choice)
        self.held += count

    def begin(self, seq: int, key: Key) -> Choice:
        """Let a new sequence begin with it: the caller has seen to it that there is room."""
        snapshot = self._kept[key]
        self._kept.move_to_end(key)
        blocks = self._pool.allocate(len(snapshot.blocks))
        assert blocks is not None
        for mine, kept in zip(blocks, snapshot.blocks, strict=True):
            self._io.view(mine)[:] = self._io.view(kept)
        choice = self._begun[seq] = snapshot.choice
        self._heads.begin(seq, blocks, choice.lengths, choice.tokens)
        return choice

    def begun(self, seq: int) -> Choice | None:
        """What an admitted sequence began with; None: nothing of this kind."""
        return self._begun.get(seq)

    def forget(self, seq: int) -> None:
        self._begun.pop(seq, None)

    def give_up(self, blocks: int, spare: Key | None = None) -> bool:
        """Free so many blocks, the longest unused snapshot first, but not `spare`.

        False, and nothing changes, when there are too few.
        """
        others = self.held - (0 if spare is None else len(self._kept[spare].blocks))
        if blocks > others:
            return False
        for key in [k for k in self._kept if k != spare]:
            if blocks <= 0:
                break
            gone = self._kept.pop(key).blocks
            self.held -= len(gone)
            blocks -= len(gone)
            self._pool.release(gone)
        return True

    def clear(self) -> None:
        self.give_up(self.held)

    def blocks(self) -> Iterable[BlockId]:
        """Those that snapshots hold, each once."""
        return (block for snapshot in self._kept.values() for block in snapshot.blocks)

    def check(self) -> None:
        assert self.held == sum(len(s.blocks) for s in self._kept.values())
        assert self.held <= self._pool.num_blocks // SHARE
        assert self._begun.keys() <= self._heads.tables.keys()
        for snapshot in self._kept.values():
            assert len(snapshot.blocks) == self._blocks_for(snapshot.choice.lengths)
